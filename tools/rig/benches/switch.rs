//! How many frames a second cross the switch, from one node to another.

use rma::net::{Inbox, Interface, Outbox, PacketSocket};
use rma::wire::ETHERTYPE_SERVICE;
use rma_rig::{Faults, Node, NodeOptions, Rig, RigError, enter};
use std::error::Error;
use std::time::{Duration, Instant};

/// The most frames underway.
const WINDOW: u64 = 1024;
/// How long each measurement takes.
const DURATION: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    enter()?;
    let delay = Duration::from_millis(1);
    let mild = Faults {
        loss_ppm: 1000,
        reorder_ppm: 1000,
        ..Faults::default()
    };
    let slow = Faults {
        delay,
        ..Faults::default()
    };
    for (what, faults) in [
        ("good", Faults::default()),
        ("mild faults", mild),
        ("delay", slow),
    ] {
        for len in [64, 1500, 9000] {
            measure(what, faults, len)?;
        }
    }
    Ok(())
}

fn measure(what: &str, faults: Faults, len: usize) -> Result<(), Box<dyn Error>> {
    let rig = Rig::new()?;
    let a = rig.add_node("a", NodeOptions::default().mtu(9000))?;
    let b = rig.add_node("b", NodeOptions::default().mtu(9000))?;
    rig.switch().set_faults(faults)?;
    let (mut from, mut to) = (open(&a)?, open(&b)?);
    let (mut outbox, mut inbox) = (Outbox::new(), Inbox::new(9000));
    let frame = vec![0; len];
    let start = Instant::now();
    let (mut sent, mut received, mut lost) = (0, 0, 0);
    while start.elapsed() < DURATION {
        if sent - received - lost < WINDOW {
            while outbox.len() < 64 && outbox.push(b.mac(), &frame) {}
            sent += outbox.len() as u64;
            from.send(&mut outbox)?;
            sent -= outbox.len() as u64;
        }
        match to.recv(&mut inbox)? as u64 {
            0 => lost = lost_by(&rig)?,
            more => received += more,
        }
    }
    let rate = received as f64 / start.elapsed().as_secs_f64();
    let drops = to.counters().receive_drops;
    let counters = rig.switch().counters()?;
    println!(
        "{what:12} {len:5} octets: {:8.0} frames/s, {:6.0} MB/s ({drops} dropped at the end, {} overrun, {} congested)",
        rate,
        rate * len as f64 / 1e6,
        counters.overrun,
        counters.congested
    );
    Ok(())
}

fn lost_by(rig: &Rig) -> Result<u64, RigError> {
    let counters = rig.switch().counters()?;
    Ok(counters.lost + counters.overrun + counters.congested)
}

fn open(node: &Node) -> Result<PacketSocket, Box<dyn Error>> {
    let open = || PacketSocket::open(&Interface::by_name("eth0")?, ETHERTYPE_SERVICE);
    Ok(node.enter(open)??)
}
