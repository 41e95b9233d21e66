//! ATA over Ethernet: vblade at the unit's end, and commands made here, as many under way as the workload
//! says. The kernel's own AoE driver is not asked for; what is measured is vblade and the wire.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rma::wire::Mac;
use rma_rig::{Node, Process};

use super::ceiling::{End, PATIENCE};
use super::{Result, SIZE_MIB, Workload};

/// The EtherType of AoE.
const ETHERTYPE: u16 = 0x88a2;
const SECTOR_BYTES: u32 = 512;
/// Octets of a command behind the Ethernet header.
const COMMAND_BYTES: usize = 22;
/// The least octets of a frame behind the Ethernet header.
const LEAST_BYTES: usize = 46;
/// Commands that vblade keeps in its receive buffer.
const BUFFERS: u32 = 256;
/// Commands that are made in advance.
const COMMANDS: usize = 1024;

const READ_EXT: u8 = 0x24;
const WRITE_EXT: u8 = 0x34;
const FLAG_WRITE: u8 = 0x01;
const FLAG_LBA48: u8 = 0x40;
/// The bit of the first octet that says that it is a response.
const RESPONSE: u8 = 0x08;

/// vblade on an interface of a node, with a file behind it.
pub(super) fn vblade(node: &Node, interface: &str, file: &Path) -> Result<Process> {
    let mut vblade = Command::new("vblade");
    vblade.args(["-b", &BUFFERS.to_string(), "0", "0", interface]);
    Ok(node.spawn(vblade.arg(file))?)
}

/// I/Os each second.
pub(super) fn measure(
    (host, interface): (&Node, &str),
    to: Mac,
    workload: &Workload,
    mtu: u16,
    time: Duration,
) -> Result<f64> {
    let mut rate = None;
    host.enter(|| {
        rate = Some(
            End::open(interface, ETHERTYPE)
                .and_then(|mut end| drive(&mut end, to, workload, mtu, time)),
        );
    })?;
    Ok(rate.ok_or("no end of the wire")??)
}

fn drive(end: &mut End, to: Mac, workload: &Workload, mtu: u16, time: Duration) -> io::Result<f64> {
    // What fits a frame, as a power of two, so that parts are all of one size.
    let room = (u32::from(mtu) - COMMAND_BYTES as u32) / SECTOR_BYTES;
    let sectors = (workload.bytes / SECTOR_BYTES).min(1 << room.ilog2());
    let parts = (workload.bytes / SECTOR_BYTES / sectors) as usize;
    let commands = commands(end, to, workload.is_read(), sectors);
    let (mut next, mut pending, mut done) = (0, 0, 0_u64);
    let mut send = |end: &End, mut count: usize| -> io::Result<()> {
        while count > 0 {
            let batch = count.min(COMMANDS - next);
            end.send(&commands[next..next + batch], 1)?;
            next = (next + batch) % COMMANDS;
            count -= batch;
        }
        Ok(())
    };
    let most = workload.depth as usize * parts;
    let most = most.min(BUFFERS as usize);
    let begun = Instant::now();
    let mut silent = begun;
    send(end, most)?;
    while begun.elapsed() < time {
        end.receive()?;
        let answers = end.count(|payload| payload[0] & RESPONSE != 0 && payload[1] == 0);
        if answers == 0 {
            if silent.elapsed() > PATIENCE {
                silent = Instant::now();
                send(end, most)?;
            }
            std::hint::spin_loop();
            continue;
        }
        silent = Instant::now();
        pending += answers;
        done += (pending / parts) as u64;
        pending %= parts;
        send(end, answers)?;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Commands of so many sectors, all over the medium.
fn commands(end: &End, to: Mac, is_read: bool, sectors: u32) -> Vec<Vec<u8>> {
    let total = SIZE_MIB * (1 << 20) / SECTOR_BYTES / sectors;
    let data = if is_read {
        0
    } else {
        (sectors * SECTOR_BYTES) as usize
    };
    let size = (COMMAND_BYTES + data).max(LEAST_BYTES);
    let mut random = fastrand::Rng::with_seed(1);
    (0..COMMANDS as u32)
        .map(|tag| {
            let mut frame = end.frames(to, &[size]).remove(0);
            let command = &mut frame[14..14 + COMMAND_BYTES];
            let first = (random.u32(..total) * sectors).to_le_bytes();
            command.fill(0);
            command[0] = 0x10;
            command[6..10].copy_from_slice(&tag.to_be_bytes());
            command[10] = if is_read {
                FLAG_LBA48
            } else {
                FLAG_LBA48 | FLAG_WRITE
            };
            command[12] = sectors as u8;
            command[13] = if is_read { READ_EXT } else { WRITE_EXT };
            command[14..18].copy_from_slice(&first);
            frame
        })
        .collect()
}
