//! An old owner who goes on writing, whatever is decided about the device: what of it reaches the disk
//! after its revocation was acknowledged must be nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rma::initiator::{Io, IoError, IoOp};
use rma::wire::Guid;
use rma_rig::intruder::{Attempt, Intruder};
use rma_rig::{Cluster, Daemon, Faults, Plan, RigError, wait_until};
use serde_json::json;

use super::{Args, Figures, Result};

const PATIENCE: Duration = Duration::from_secs(180);
const DEVICE: &str = "u1c1d1";
const DEVICE_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 512;
/// Writes of the old owner that are under way at a time.
const DEPTH: u64 = 48;
/// Writes of the old owner around one revocation.
const ROUND_WRITES: u64 = 20_000;

/// Incarnations beyond that of a host's rmad.
static LATER: AtomicU64 = AtomicU64::new(1);

/// What became of the old owner's writes.
#[derive(Debug, Default)]
struct Outcome {
    sent: u64,
    applied: u64,
    refused: BTreeMap<String, u64>,
    /// Begun after the revocation was acknowledged, and answered as done.
    late: u64,
}

pub(crate) fn revocations(args: &Args, figures: &mut Figures) -> Result<()> {
    figures.say(&format!(
        "{} writes of hosts that are losing a device",
        args.writes
    ));
    let plan = Plan {
        devices: 1,
        device_bytes: DEVICE_BYTES,
        backend: "memory",
        mtu: 1500,
        in_memory: !args.disk,
        ..Plan::default()
    };
    let cluster = Cluster::up(plan, PATIENCE)?;
    for target in ["u1", "u1c1"] {
        cluster.rma(&["allocate", target, "--to", "h1,h2"])?;
    }
    // Old frames come late, twice and out of order.
    cluster.rig.switch().set_faults(Faults {
        loss_ppm: 500,
        duplicate_ppm: 10_000,
        reorder_ppm: 5_000,
        reorder_within: Duration::from_millis(20),
        ..Faults::default()
    })?;
    let mut total = Outcome::default();
    let (mut changed, mut rounds) = (0, 0_usize);
    while total.sent < args.writes {
        let writes = ROUND_WRITES.min(args.writes - total.sent);
        let (outcome, differing) = revocation(&cluster, rounds % 2, writes)?;
        rounds += 1;
        changed += differing;
        total.sent += outcome.sent;
        total.applied += outcome.applied;
        total.late += outcome.late;
        for (why, count) in outcome.refused {
            *total.refused.entry(why).or_default() += count;
        }
    }
    figures.note("revocations", json!(rounds));
    figures.note("revoked_writes_sent", json!(total.sent));
    figures.note("revoked_writes_before", json!(total.applied - total.late));
    for (why, count) in &total.refused {
        figures.note(
            &format!("revoked_{}", why.replace([' ', '-'], "_")),
            json!(count),
        );
    }
    figures.note("revoked_writes_applied_after", json!(total.late + changed));
    if total.late + changed > 0 {
        return Err(
            "an old owner's write was applied after its revocation was acknowledged".into(),
        );
    }
    Ok(())
}

/// Host `owner` gets the device, writes, and goes on writing while and after the other one gets it; what
/// the old owner's writes came to, and how many blocks changed after the acknowledgement.
fn revocation(cluster: &Cluster, owner: usize, writes: u64) -> Result<(Outcome, u64)> {
    let (old, new) = (&cluster.hosts[owner], &cluster.hosts[1 - owner]);
    allocate(new, old.node().name())?;
    let attempt = attempt(old)?;
    let round = Round {
        writes,
        begun: AtomicU64::new(0),
        is_revoked: AtomicBool::new(false),
    };
    let (outcome, before) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| old.node().enter(|| round.write(&attempt)));
        let before = wait_until(PATIENCE, "the owner to write", || {
            round.begun.load(Ordering::Relaxed) >= writes / 8 || writer.is_finished()
        })
        .map_err(Into::into)
        .and_then(|()| allocate(new, new.node().name()));
        // Whatever came of it, the writer comes to its end.
        round.is_revoked.store(true, Ordering::SeqCst);
        let before = before.and_then(|()| snapshot(new));
        let outcome = writer.join().map_err(|_| "the writer panicked")???;
        Ok::<_, Box<dyn std::error::Error>>((outcome, before?))
    })?;
    let after = snapshot(new)?;
    let blocks = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes
            .chunks(BLOCK_BYTES as usize)
            .map(<[u8]>::to_vec)
            .collect()
    };
    let pairs = blocks(&before).into_iter().zip(blocks(&after));
    Ok((outcome, pairs.filter(|(a, b)| a != b).count() as u64))
}

/// What the old owner and the administrator know of each other.
struct Round {
    writes: u64,
    /// Writes begun.
    begun: AtomicU64,
    /// Whether the revocation has been acknowledged.
    is_revoked: AtomicBool,
}

impl Round {
    /// Writes as the owner did, to the end: half of it at most before the revocation.
    fn write(&self, attempt: &Attempt) -> std::result::Result<Outcome, RigError> {
        let mut intruder = Intruder::open(attempt)?;
        let mut outcome = Outcome::default();
        // Writes under way, and whether each was begun after the acknowledgement.
        let mut open: BTreeMap<u64, bool> = BTreeMap::new();
        let end = Instant::now() + PATIENCE;
        while outcome.sent < self.writes || !open.is_empty() {
            if Instant::now() > end {
                return Err(RigError::Timeout {
                    what: format!(
                        "the old owner's writes to end: {} of {} were begun, {} are open",
                        outcome.sent,
                        self.writes,
                        open.len()
                    ),
                    after: PATIENCE,
                });
            }
            let is_revoked = self.is_revoked.load(Ordering::SeqCst);
            let quota = if is_revoked {
                self.writes
            } else {
                self.writes / 2
            };
            while outcome.sent < quota && (open.len() as u64) < DEPTH {
                outcome.sent += 1;
                open.insert(outcome.sent, is_revoked);
                intruder.submit(block_write(outcome.sent), outcome.sent);
            }
            self.begun.store(outcome.sent, Ordering::Relaxed);
            for (token, result) in intruder.pump(Duration::from_millis(1))? {
                let was_revoked = open.remove(&token).unwrap_or(true);
                match result {
                    Ok(_) => {
                        outcome.applied += 1;
                        outcome.late += u64::from(was_revoked);
                    }
                    Err(IoError::Status(status)) => {
                        *outcome.refused.entry(status.to_string()).or_default() += 1;
                    }
                    Err(other) => *outcome.refused.entry(other.to_string()).or_default() += 1,
                }
            }
        }
        intruder.close()?;
        Ok(outcome)
    }
}

/// A write of one block that is like no other of its round.
fn block_write(number: u64) -> Io {
    let data: Vec<u8> = number
        .to_be_bytes()
        .into_iter()
        .cycle()
        .take(BLOCK_BYTES as usize)
        .collect();
    Io {
        op: IoOp::Write,
        offset: number.wrapping_mul(7919) % (DEVICE_BYTES / BLOCK_BYTES) * BLOCK_BYTES,
        len: BLOCK_BYTES,
        data: data.into(),
        fua: false,
    }
}

/// The whole device, as its owner reads it.
fn snapshot(owner: &Daemon) -> Result<Vec<u8>> {
    let attempt = attempt(owner)?;
    let io = Io {
        op: IoOp::Read,
        offset: 0,
        len: DEVICE_BYTES,
        data: Arc::default(),
        fua: false,
    };
    let read = owner.node().enter(|| {
        let mut intruder = Intruder::open(&attempt)?;
        let result = intruder.finish(io)?;
        intruder.close()?;
        Ok::<_, RigError>(result)
    })??;
    Ok(read?)
}

fn allocate(administrator: &Daemon, owner: &str) -> Result<()> {
    let output = administrator.rma(&["allocate", DEVICE, "--to", owner])?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{DEVICE} to {owner}: {}", output.stderr).into())
    }
}

/// I/O on the device by `host`, under the epoch that it knows now.
fn attempt(host: &Daemon) -> Result<Attempt> {
    let status = host.json(&["status"]).ok_or("a host gives no status")?;
    let host_guid = status["host"]["guid"].as_str().unwrap_or_default();
    let (unit, device) = (host.row("u1")?, host.row(DEVICE)?);
    Ok(Attempt {
        interface: "eth0".into(),
        host: host_guid.parse()?,
        // A later start of the host than its rmad's: that one is kept out, and does not interfere.
        incarnation: status["incarnation"].as_u64().unwrap_or_default()
            + LATER.fetch_add(1, Ordering::Relaxed),
        cluster: "A".parse()?,
        unit: unit.guid.parse()?,
        unit_mac: unit.macs.first().ok_or("a unit without a NIC")?.parse()?,
        ioc: 1,
        iod: 1,
        device: device.guid.parse()?,
        extent: Guid::NIL,
        epoch: device.epoch,
    })
}
