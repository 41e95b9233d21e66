//! iSCSI: tgt at the unit's end, libiscsi by way of `qemu-img bench` at the host's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rma_rig::{Node, Process, wait_until};

use super::{PATIENCE, Result, SIZE_MIB, Workload};

const TARGET: &str = "iqn.2026-01.example.rma:bench";
/// I/Os of the run that tells how many are wanted.
const TRIAL_IOS: u32 = 2000;

/// tgtd with one logical unit.
pub(super) struct Target {
    _process: Process,
    uri: String,
}

impl Target {
    /// Starts it in a node at an address, with a file behind it.
    pub(super) fn start(node: &Node, address: &str, dir: &Path, file: &Path) -> Result<Self> {
        let socket = dir.join("tgtd");
        let mut tgtd = Command::new("tgtd");
        tgtd.args(["--foreground", "--iscsi"])
            .arg(format!("portal={address}:3260"))
            .env("TGT_IPC_SOCKET", &socket);
        let process = node.spawn(&mut tgtd)?;
        wait_until(PATIENCE, "tgtd to answer", || {
            admin(node, &socket, &["--op", "show", "--mode", "target"]).is_ok()
        })?;
        let file = file.to_string_lossy();
        for words in [
            &[
                "--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET,
            ][..],
            &[
                "--op",
                "new",
                "--mode",
                "logicalunit",
                "--tid",
                "1",
                "--lun",
                "1",
                "-b",
                &file,
            ],
            &[
                "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
            ],
        ] {
            admin(node, &socket, words)?;
        }
        Ok(Self {
            _process: process,
            uri: format!("iscsi://{address}/{TARGET}/1"),
        })
    }

    /// I/Os each second, for about so long.
    pub(super) fn measure(&self, host: &Node, workload: &Workload, time: Duration) -> Result<f64> {
        let trial = self.run(host, workload, TRIAL_IOS)?;
        let wanted = f64::from(TRIAL_IOS) * time.as_secs_f64() / trial.max(1e-3);
        let count = wanted.clamp(f64::from(TRIAL_IOS), 1e7) as u32;
        Ok(f64::from(count) / self.run(host, workload, count)?.max(1e-3))
    }

    /// How many seconds so many I/Os take.
    fn run(&self, host: &Node, workload: &Workload, count: u32) -> Result<f64> {
        // Random I/O is not among what it can do; a long odd step goes all over the medium as well.
        let step = match workload.rw {
            "randread" | "randwrite" => workload.bytes * 4097,
            _ => workload.bytes,
        };
        let mut bench = Command::new("qemu-img");
        bench.args(["bench", "-f", "raw", "-t", "none"]);
        for (key, number) in [
            ("-c", count),
            ("-d", workload.depth),
            ("-s", workload.bytes),
            ("-S", step % (SIZE_MIB << 20)),
        ] {
            bench.args([key, &number.to_string()]);
        }
        if !workload.is_read() {
            bench.arg("-w");
        }
        let output = host.run(bench.arg(&self.uri), PATIENCE * 4)?;
        let seconds = output.stdout.split_whitespace().rev().nth(1);
        seconds.and_then(|word| word.parse().ok()).ok_or_else(|| {
            format!("qemu-img bench failed: {}{}", output.stdout, output.stderr).into()
        })
    }
}

fn admin(node: &Node, socket: &PathBuf, words: &[&str]) -> Result<()> {
    let mut tgtadm = Command::new("tgtadm");
    tgtadm.args(["--lld", "iscsi"]).args(words);
    let output = node.run(tgtadm.env("TGT_IPC_SOCKET", socket), PATIENCE)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("tgtadm {}: {}", words.join(" "), output.stderr).into())
    }
}
