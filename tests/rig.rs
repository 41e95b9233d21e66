//! The test rig itself: frames cross its switch, faults happen as asked, nothing is left behind.

use rma::net::{Inbox, Interface, Outbox, PacketSocket};
use rma::wire::{ETHERTYPE_SERVICE, FABRIC_MULTICAST, Mac};
use rma_rig::{Node, NodeOptions, Rig, RigError, TestResult, wait_until};
use std::time::Duration;

rma_rig::test_main!(
    frames_cross_and_only_to_whom_they_are_sent,
    multicast_reaches_everybody_else,
);

const SOON: Duration = Duration::from_secs(5);

/// A socket on a node, opened inside it.
struct Station {
    socket: PacketSocket,
    inbox: Inbox,
    received: Vec<(Mac, Vec<u8>)>,
}

impl Station {
    fn on(node: &Node) -> Result<Self, Box<dyn std::error::Error>> {
        let socket = node.enter(|| {
            let mut socket = PacketSocket::open(&Interface::by_name("eth0")?, ETHERTYPE_SERVICE)?;
            socket.join(FABRIC_MULTICAST)?;
            Ok::<_, rma::net::NetError>(socket)
        })??;
        Ok(Self {
            socket,
            inbox: Inbox::new(9000),
            received: Vec::new(),
        })
    }

    fn send(&mut self, to: Mac, frame: &[u8]) -> TestResult {
        let mut outbox = Outbox::new();
        assert!(outbox.push(to, frame));
        assert!(self.socket.send(&mut outbox)?);
        Ok(())
    }

    /// Takes what has arrived; how many frames there were in all.
    fn take(&mut self) -> usize {
        while self.socket.recv(&mut self.inbox).expect("receive") > 0 {
            let frames = self.inbox.frames().map(|f| (f.source, f.payload.to_vec()));
            self.received.extend(frames);
        }
        self.received.len()
    }

    fn expect(&mut self, count: usize) -> Result<(), RigError> {
        wait_until(SOON, &format!("{count} frames"), || self.take() >= count)
    }
}

fn frames_cross_and_only_to_whom_they_are_sent() -> TestResult {
    let rig = Rig::new()?;
    let nodes = ["a", "b", "c"].map(|name| rig.add_node(name, NodeOptions::default()));
    let [a, b, c] = nodes;
    let (a, b, c) = (a?, b?, c?);
    let (mut on_a, mut on_b, mut on_c) = (Station::on(&a)?, Station::on(&b)?, Station::on(&c)?);
    on_a.send(b.mac(), b"to b")?;
    on_b.expect(1)?;
    on_b.send(a.mac(), b"to a")?;
    on_a.expect(1)?;
    on_c.send(a.mac(), b"from c")?;
    on_a.expect(2)?;
    assert_eq!(
        on_a.received,
        [(b.mac(), b"to a".to_vec()), (c.mac(), b"from c".to_vec())]
    );
    assert_eq!(on_b.received, [(a.mac(), b"to b".to_vec())]);
    assert_eq!(on_c.take(), 0);
    let counters = rig.switch().node_counters(&c)?;
    assert_eq!(
        (counters.received_frames, counters.sent_frames),
        (1, 1),
        "one was flooded"
    );
    Ok(())
}

fn multicast_reaches_everybody_else() -> TestResult {
    let rig = Rig::new()?;
    let wanted = (0..5).map(|n| (format!("n{n}"), NodeOptions::default().mtu(9000)));
    let nodes = rig.add_nodes(wanted.collect())?;
    let mut stations = nodes
        .iter()
        .map(Station::on)
        .collect::<Result<Vec<_>, _>>()?;
    let long = vec![7; 9000];
    stations[0].send(FABRIC_MULTICAST, &long)?;
    for station in &mut stations[1..] {
        station.expect(1)?;
        assert_eq!(station.received, [(nodes[0].mac(), long.clone())]);
    }
    assert_eq!(stations[0].take(), 0);
    Ok(())
}
