//! What processes cost: processor time and memory, as the kernel counts them.

use std::fs;
use std::time::Duration;

use rma_rig::Daemon;

/// Processor time that a daemon has used, all its threads together. Small enough steps are seen:
/// the scheduler counts nanoseconds.
pub(crate) fn cpu(daemon: &Daemon) -> Duration {
    let Some(pid) = daemon.pid() else {
        return Duration::ZERO;
    };
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let nanos = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// As [`cpu`], of many.
pub(crate) fn cpu_of<'a>(daemons: impl IntoIterator<Item = &'a Daemon>) -> Duration {
    daemons.into_iter().map(cpu).sum()
}

/// Processor time of this process: the software switch, above all.
pub(crate) fn own_cpu() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// (resident, most ever resident) memory of a daemon, MiB.
pub(crate) fn memory_mib(daemon: &Daemon) -> (f64, f64) {
    let text = daemon
        .pid()
        .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .unwrap_or_default();
    let kib = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

/// The machine's load averages.
pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .unwrap_or_default()
}
