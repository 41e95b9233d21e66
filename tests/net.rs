//! Packet sockets between the namespaces of the rig.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rma::net::{
    BATCH_FRAMES, Counters, Inbox, Interface, LinkState, LinkWatch, NetError, OUTBOX_FRAMES,
    Outbox, PacketSocket, interfaces,
};
use rma::wire::{ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, FABRIC_MULTICAST, Mac};
use rma_rig::{Node, NodeOptions, Rig, RigError, TestResult, station, wait_until};
use std::error::Error;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

rma_rig::test_main!(
    interfaces_are_listed_with_their_facts,
    an_unknown_interface_is_named_in_the_error,
    frames_of_every_length_cross_unchanged,
    batches_keep_their_order_and_are_counted,
    a_socket_hears_its_own_ethertype_only,
    frames_for_other_stations_are_not_heard,
    a_frame_that_is_too_long_costs_only_itself,
    a_frame_longer_than_the_inbox_is_counted,
    a_socket_that_is_not_drained_counts_what_the_kernel_drops,
    readiness_is_told_by_the_descriptor,
    a_socket_survives_its_interface_going_down,
    a_socket_follows_its_interface_through_removal,
    a_ring_keeps_frames_in_order_and_counts_what_does_not_fit,
    a_socket_with_a_ring_follows_its_interface,
    a_socket_opens_on_an_interface_that_is_down,
    a_watch_tells_of_every_change,
);

const SOON: Duration = Duration::from_secs(10);
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn open(node: &Node, ethertype: u16) -> Result<PacketSocket> {
    let open = || PacketSocket::open(&Interface::by_name("eth0")?, ethertype);
    Ok(node.enter(open)??)
}

fn refresh(node: &Node, socket: &mut PacketSocket) -> Result<Option<LinkState>> {
    Ok(node.enter(|| socket.refresh())??)
}

/// Two nodes with a service socket each.
struct Pair {
    rig: Rig,
    a: Node,
    b: Node,
    on_a: PacketSocket,
    on_b: PacketSocket,
    inbox: Inbox,
}

impl Pair {
    fn new(mtu: u16) -> Result<Self> {
        let rig = Rig::new()?;
        let a = rig.add_node("a", NodeOptions::new(station(1)).mtu(mtu))?;
        let b = rig.add_node("b", NodeOptions::new(station(2)).mtu(mtu))?;
        let (on_a, on_b) = (open(&a, ETHERTYPE_SERVICE)?, open(&b, ETHERTYPE_SERVICE)?);
        Ok(Self {
            rig,
            a,
            b,
            on_a,
            on_b,
            inbox: Inbox::new(mtu),
        })
    }

    /// The same where b receives into a ring.
    fn with_ring(mtu: u16, ring_bytes: usize) -> Result<Self> {
        let mut pair = Self::new(mtu)?;
        let open = || {
            let interface = Interface::by_name("eth0")?;
            PacketSocket::open_with(&interface, ETHERTYPE_SERVICE, ring_bytes)
        };
        pair.on_b = pair.b.enter(open)??;
        Ok(pair)
    }

    /// Sends from a; everything must be taken.
    fn send(&mut self, outbox: &mut Outbox) -> TestResult {
        assert!(self.on_a.send(outbox)?);
        assert!(outbox.is_empty());
        Ok(())
    }

    fn send_one(&mut self, to: Mac, frame: &[u8]) -> TestResult {
        let mut outbox = Outbox::new();
        assert!(outbox.push(to, frame));
        self.send(&mut outbox)
    }

    /// What b receives, until there are `count` frames.
    fn receive(&mut self, count: usize) -> std::result::Result<Vec<Vec<u8>>, RigError> {
        let mut frames = Vec::new();
        wait_until(SOON, &format!("{count} frames"), || {
            self.on_b.recv(&mut self.inbox).expect("receive");
            frames.extend(self.inbox.frames().map(|frame| frame.payload.to_vec()));
            frames.len() >= count
        })?;
        Ok(frames)
    }

    /// Waits until the switch has passed on whatever was sent to b.
    fn settle(&mut self) -> TestResult {
        let sent = self.on_a.counters().sent_frames;
        wait_until(SOON, "the switch", || {
            let counters = self.rig.switch().node_counters(&self.a);
            counters.is_ok_and(|counters| counters.received_frames == sent)
        })?;
        Ok(())
    }
}

fn interfaces_are_listed_with_their_facts() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h7", NodeOptions::new(station(7)).nic(station(8)).mtu(9000))?;
    node.interface_down(1)?;
    let found = node.enter(interfaces)?;
    let facts: Vec<_> = found
        .iter()
        .map(|i| (i.name.as_str(), i.mac, i.mtu, i.up))
        .collect();
    assert_eq!(
        facts,
        [
            ("eth0", station(7), 9000, true),
            ("eth1", station(8), 9000, false)
        ]
    );
    assert_eq!(node.enter(|| Interface::by_name("eth1"))??, found[1]);
    assert!(!found[1].carrier);
    Ok(())
}

fn an_unknown_interface_is_named_in_the_error() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h7", NodeOptions::default())?;
    let error = node
        .enter(|| Interface::by_name("eth9"))?
        .expect_err("not there");
    assert!(matches!(&error, NetError::NoInterface { name } if name == "eth9"));
    let error = node
        .enter(|| Interface::by_name("lo"))?
        .expect_err("no Ethernet");
    assert_eq!(
        error.to_string(),
        "interface lo is not an Ethernet interface"
    );
    let mut gone = node.enter(|| Interface::by_name("eth0"))??;
    gone.index = 999_999;
    let error = node
        .enter(|| PacketSocket::open(&gone, ETHERTYPE_SERVICE))?
        .expect_err("gone");
    assert_eq!(error.to_string(), "cannot bind a packet socket on eth0");
    assert!(
        error
            .source()
            .is_some_and(|cause| cause.to_string().contains("No such device"))
    );
    Ok(())
}

fn frames_of_every_length_cross_unchanged() -> TestResult {
    for mtu in [1500u16, 9000] {
        let mut pair = Pair::new(mtu)?;
        for len in [1, 46, 88, 1499, 1500, 1501, 8999, 9000] {
            if len > usize::from(mtu) {
                continue;
            }
            let frame: Vec<u8> = (0..len).map(|index| (index * 7 + len) as u8).collect();
            pair.send_one(pair.b.mac(), &frame)?;
            assert_eq!(pair.receive(1)?, [frame]);
        }
        let frame = pair.inbox.frames().next().expect("the last frame");
        assert_eq!(
            (frame.source, frame.destination),
            (pair.a.mac(), pair.b.mac())
        );
        assert_eq!(frame.bytes[12..14], ETHERTYPE_SERVICE.to_be_bytes());
    }
    Ok(())
}

fn batches_keep_their_order_and_are_counted() -> TestResult {
    let mut pair = Pair::new(1500)?;
    let mut outbox = Outbox::new();
    for number in 0..OUTBOX_FRAMES as u16 {
        assert!(outbox.push(pair.b.mac(), &number.to_be_bytes()));
    }
    pair.send(&mut outbox)?;
    let expected: Vec<_> = (0..OUTBOX_FRAMES as u16)
        .map(|number| number.to_be_bytes().to_vec())
        .collect();
    assert_eq!(pair.receive(OUTBOX_FRAMES)?, expected);
    let (frames, octets) = (OUTBOX_FRAMES as u64, OUTBOX_FRAMES as u64 * 16);
    let sent = pair.on_a.counters();
    assert_eq!((sent.sent_frames, sent.sent_bytes), (frames, octets));
    assert_eq!(sent.sent_batches, frames / BATCH_FRAMES as u64);
    let received = pair.on_b.counters();
    assert_eq!(
        (received.received_frames, received.received_bytes),
        (frames, octets)
    );
    assert!(received.received_batches >= frames / BATCH_FRAMES as u64);
    let nothing_else = Counters {
        received_frames: frames,
        received_bytes: octets,
        received_batches: received.received_batches,
        ..Counters::default()
    };
    assert_eq!(received, nothing_else);
    Ok(())
}

fn a_socket_hears_its_own_ethertype_only() -> TestResult {
    let mut pair = Pair::new(1500)?;
    let mut management = open(&pair.b, ETHERTYPE_MANAGEMENT)?;
    pair.send_one(pair.b.mac(), b"service")?;
    assert_eq!(pair.receive(1)?, [b"service".to_vec()]);
    let mut inbox = Inbox::new(1500);
    assert_eq!(management.recv(&mut inbox)?, 0);
    assert_eq!(
        (management.ethertype(), pair.on_b.ethertype()),
        (0x88b5, 0x88b6)
    );
    Ok(())
}

fn frames_for_other_stations_are_not_heard() -> TestResult {
    let mut pair = Pair::new(1500)?;
    // The switch floods what it does not know, so this frame does reach the interface.
    pair.send_one(station(99), b"for somebody else")?;
    pair.send_one(FABRIC_MULTICAST, b"for a group")?;
    pair.send_one(Mac::BROADCAST, b"for all")?;
    pair.send_one(pair.b.mac(), b"for b")?;
    let expected = [&b"for a group"[..], b"for all", b"for b"].map(<[u8]>::to_vec);
    assert_eq!(pair.receive(3)?, expected);
    assert_eq!(pair.rig.switch().node_counters(&pair.b)?.sent_frames, 4);
    let mut inbox = Inbox::new(1500);
    assert_eq!(pair.on_a.recv(&mut inbox)?, 0, "not even its own");
    Ok(())
}

fn a_frame_that_is_too_long_costs_only_itself() -> TestResult {
    let mut pair = Pair::new(1500)?;
    let mut outbox = Outbox::new();
    for len in [100, 1501, 200, 9000, 300] {
        assert!(outbox.push(pair.b.mac(), &vec![0; len]));
    }
    pair.send(&mut outbox)?;
    let lengths: Vec<_> = pair.receive(3)?.iter().map(Vec::len).collect();
    assert_eq!(lengths, [100, 200, 300]);
    let counters = pair.on_a.counters();
    assert_eq!((counters.sent_frames, counters.send_oversized), (3, 2));
    Ok(())
}

fn a_frame_longer_than_the_inbox_is_counted() -> TestResult {
    let mut pair = Pair::new(9000)?;
    pair.inbox = Inbox::new(1500);
    pair.send_one(pair.b.mac(), &[1; 1501])?;
    pair.send_one(pair.b.mac(), &[2; 1500])?;
    assert_eq!(pair.receive(1)?, [vec![2; 1500]]);
    let counters = pair.on_b.counters();
    assert_eq!(
        (counters.received_frames, counters.received_malformed),
        (1, 1)
    );
    Ok(())
}

fn a_socket_that_is_not_drained_counts_what_the_kernel_drops() -> TestResult {
    const FRAMES: u64 = 20_000;
    let mut pair = Pair::new(9000)?;
    let frame = vec![0; 9000];
    let mut sent = 0;
    while sent < FRAMES {
        let mut outbox = Outbox::new();
        while outbox.len() < BATCH_FRAMES && outbox.push(pair.b.mac(), &frame) {
            sent += 1;
        }
        wait_until(SOON, "room to send", || {
            pair.on_a.send(&mut outbox).expect("send")
        })?;
        pair.settle()?;
    }
    let delivered = pair.rig.switch().node_counters(&pair.b)?.sent_frames;
    let dropped = pair.on_b.counters().receive_drops;
    assert!(dropped > 0, "{delivered} delivered");
    let mut received = 0;
    while pair.on_b.recv(&mut pair.inbox)? > 0 {
        received += pair.inbox.len() as u64;
    }
    assert_eq!(received + dropped, delivered);
    assert_eq!(
        pair.on_b.counters().receive_drops,
        dropped,
        "told once, counted on"
    );
    Ok(())
}

fn readiness_is_told_by_the_descriptor() -> TestResult {
    let mut pair = Pair::new(1500)?;
    let ready = |socket: &PacketSocket, flags, timeout: PollTimeout| -> Result<bool> {
        let mut fds = [PollFd::new(socket.as_fd(), flags)];
        Ok(poll(&mut fds, timeout)? == 1)
    };
    assert!(ready(&pair.on_b, PollFlags::POLLOUT, PollTimeout::ZERO)?);
    assert!(!ready(&pair.on_b, PollFlags::POLLIN, PollTimeout::ZERO)?);
    pair.send_one(pair.b.mac(), b"wake up")?;
    assert!(ready(
        &pair.on_b,
        PollFlags::POLLIN,
        PollTimeout::from(5000u16)
    )?);
    assert_eq!(pair.receive(1)?.len(), 1);
    assert!(!ready(&pair.on_b, PollFlags::POLLIN, PollTimeout::ZERO)?);
    Ok(())
}

fn a_socket_survives_its_interface_going_down() -> TestResult {
    let mut pair = Pair::new(1500)?;
    assert_eq!(refresh(&pair.a, &mut pair.on_a)?, None);
    pair.a.interface_down(0)?;
    assert_eq!(pair.on_a.recv(&mut pair.inbox)?, 0, "told, not failed");
    pair.send_one(pair.b.mac(), b"dropped")?;
    assert_eq!(pair.on_a.counters().send_drops, 1);
    assert_eq!(pair.on_a.state(), LinkState::Down);
    refresh(&pair.a, &mut pair.on_a)?;
    assert_eq!(pair.on_a.state(), LinkState::Down);
    assert_eq!(pair.on_a.counters().link_losses, 1);

    pair.a.interface_up(0)?;
    assert_eq!(refresh(&pair.a, &mut pair.on_a)?, Some(LinkState::Up));
    pair.send_one(pair.b.mac(), b"up again")?;
    assert_eq!(pair.receive(1)?, [b"up again".to_vec()]);
    assert_eq!(pair.on_a.counters().sent_frames, 1);
    Ok(())
}

fn a_socket_follows_its_interface_through_removal() -> TestResult {
    let mut pair = Pair::new(1500)?;
    pair.on_b.join(FABRIC_MULTICAST)?;
    pair.on_b.join(FABRIC_MULTICAST)?;
    let joined = |node: &Node| {
        let output = node.run(
            Command::new("ip").args(["maddr", "show", "dev", "eth0"]),
            SOON,
        );
        output.is_ok_and(|output| output.stdout.contains(&FABRIC_MULTICAST.to_string()))
    };
    assert!(joined(&pair.b));
    let before = pair.on_b.interface().clone();

    pair.b.remove_interface(0)?;
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, Some(LinkState::Gone));
    assert_eq!(pair.on_b.recv(&mut pair.inbox)?, 0);
    let mut outbox = Outbox::new();
    assert!(outbox.push(pair.a.mac(), b"dropped"));
    assert!(pair.on_b.send(&mut outbox)?);
    assert_eq!(pair.on_b.counters().send_drops, 1);
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, None, "still gone");
    assert_eq!(pair.on_b.counters().link_losses, 1);

    pair.b.restore_interface(0)?;
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, Some(LinkState::Up));
    let after = pair.on_b.interface();
    assert_eq!((&after.name, after.mac), (&before.name, before.mac));
    assert_ne!(after.index, before.index);
    assert!(joined(&pair.b), "and joined its groups again");
    pair.send_one(FABRIC_MULTICAST, b"you are back")?;
    assert_eq!(pair.receive(1)?, [b"you are back".to_vec()]);
    Ok(())
}

fn a_ring_keeps_frames_in_order_and_counts_what_does_not_fit() -> TestResult {
    let mut pair = Pair::with_ring(9000, 256 << 10)?;
    let mut number = 0_u32;
    for round in 0..60_usize {
        let frames: Vec<Vec<u8>> = (0..5)
            .map(|_| {
                number += 1;
                number.to_be_bytes().repeat(1 + (round * 331) % 2250)
            })
            .collect();
        for frame in &frames {
            pair.send_one(pair.b.mac(), frame)?;
        }
        assert_eq!(pair.receive(5)?, frames, "round {round}");
    }
    for _ in 0..200 {
        pair.send_one(pair.b.mac(), &[7; 9000])?;
        pair.settle()?;
    }
    let delivered = pair.rig.switch().node_counters(&pair.b)?.sent_frames;
    let mut left = 0;
    while pair.on_b.recv(&mut pair.inbox)? > 0 {
        left += pair.inbox.len() as u64;
    }
    let counters = pair.on_b.counters();
    assert!(counters.receive_drops > 0 && left > 0);
    assert_eq!(counters.received_frames, 300 + left);
    assert_eq!(counters.received_frames + counters.receive_drops, delivered);
    pair.send_one(pair.b.mac(), b"room again")?;
    assert_eq!(pair.receive(1)?, [b"room again".to_vec()]);
    Ok(())
}

fn a_socket_with_a_ring_follows_its_interface() -> TestResult {
    let mut pair = Pair::with_ring(1500, 256 << 10)?;
    pair.send_one(pair.b.mac(), b"before")?;
    assert_eq!(pair.receive(1)?, [b"before".to_vec()]);
    pair.b.remove_interface(0)?;
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, Some(LinkState::Gone));
    pair.b.restore_interface(0)?;
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, Some(LinkState::Up));
    pair.send_one(pair.b.mac(), b"after")?;
    assert_eq!(pair.receive(1)?, [b"after".to_vec()]);
    let mut outbox = Outbox::new();
    assert!(outbox.push(pair.a.mac(), b"and back"));
    assert!(pair.on_b.send(&mut outbox)?);
    assert_eq!(pair.on_b.state(), LinkState::Up, "what was is over");
    assert_eq!(pair.on_b.counters().sent_frames, 1);
    Ok(())
}

fn a_socket_opens_on_an_interface_that_is_down() -> TestResult {
    let mut pair = Pair::new(1500)?;
    pair.b.interface_down(0)?;
    pair.on_b = open(&pair.b, ETHERTYPE_SERVICE)?;
    assert_eq!(pair.on_b.state(), LinkState::Down);
    assert_eq!(pair.on_b.recv(&mut pair.inbox)?, 0);
    pair.b.interface_up(0)?;
    assert_eq!(refresh(&pair.b, &mut pair.on_b)?, Some(LinkState::Up));
    wait_until(SOON, "a frame", || {
        pair.send_one(pair.b.mac(), b"hello").expect("send");
        pair.on_b.recv(&mut pair.inbox).expect("receive") > 0
    })?;
    assert_eq!(pair.on_b.counters().link_losses, 0, "it never had one");
    Ok(())
}

fn a_watch_tells_of_every_change() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h7", NodeOptions::new(station(7)))?;
    let mut watch = node.enter(LinkWatch::new)??;
    let mut told = |what: &str, change: &dyn Fn() -> std::result::Result<(), RigError>| {
        while watch.drain()? {}
        change()?;
        wait_until(SOON, &format!("word of {what}"), || {
            watch.drain().expect("drain")
        })?;
        Ok::<_, Box<dyn Error>>(())
    };
    told("going down", &|| node.interface_down(0))?;
    told("coming up", &|| node.interface_up(0))?;
    told("being removed", &|| node.remove_interface(0))?;
    told("returning", &|| node.restore_interface(0))?;
    Ok(())
}
