//! Sessions over a faulty segment, in virtual time.

mod session_pair;

use std::time::Duration;

use rma::session::ClientEvent;
use rma::session::limits::LOST_AFTER;
use rma::wire::{DropReason, Header, Kind, Mac, Status};
use session_pair::{CLIENT_MAC, Faults, InFlight, SERVER_MAC, Workload, World};

const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 3]);

const SECONDS: Duration = Duration::from_secs(1);

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = std::env::var("RMA_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    first..first + count
}

fn survive(faults: Faults, count: u64) {
    for seed in seeds(count) {
        for mtu in [1500, 9000] {
            let mut world = World::new(faults, seed, mtu);
            world.disk.slowness = Duration::from_micros(seed % 3 * 700);
            Workload::new(60, 8, 40_000, seed).run(&mut world, 60 * SECONDS);
        }
    }
}

#[test]
fn commands_are_executed_once_on_a_good_segment() {
    survive(Faults::NONE, 4);
}

#[test]
fn commands_are_executed_once_under_loss() {
    survive(
        Faults {
            loss: 0.1,
            ..Faults::NONE
        },
        10,
    );
}

#[test]
fn commands_are_executed_once_under_duplication() {
    survive(
        Faults {
            duplicate: 0.3,
            ..Faults::NONE
        },
        10,
    );
}

#[test]
fn commands_are_executed_once_under_reordering() {
    survive(
        Faults {
            reorder: 0.3,
            ..Faults::NONE
        },
        10,
    );
}

#[test]
fn commands_are_executed_once_under_corruption() {
    survive(
        Faults {
            corrupt: 0.1,
            ..Faults::NONE
        },
        10,
    );
}

#[test]
fn commands_are_executed_once_under_everything_together() {
    survive(Faults::ALL, 40);
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ salt).collect()
}

#[test]
fn a_mebibyte_goes_both_ways_at_either_mtu() {
    for faults in [Faults::NONE, Faults::ALL] {
        for mtu in [1500, 9000] {
            let mut world = World::new(faults, 7, mtu);
            let data = pattern(1 << 20, 3);
            let id = world.write(1, 4096, &data);
            assert_eq!(world.reply(id).0, Status::Ok);
            let id = world.read(2, 4096, 1 << 20);
            assert!(world.reply(id) == (Status::Ok, data));
            assert!(world.disk.executed.values().all(|n| *n == 1));
        }
    }
}

#[test]
fn a_first_loss_is_recovered_in_milliseconds() {
    // Each of the first frames after the handshake is lost in turn, once.
    for mtu in [1500, 9000] {
        for len in [4096, 200_000] {
            for victim in 1..60 {
                let mut world = World::new(Faults::NONE, victim, mtu);
                world.pass(Duration::from_millis(5));
                assert!(world.connected());
                VICTIM.with(|v| v.set(world.segment.frames + victim));
                world.segment.lose = Some(|number, _| VICTIM.with(|v| v.get() == number));
                let id = world.write(1, 0, &pattern(len, 1));
                let took = world.until(SECONDS, |w| w.take_reply(id).is_some());
                assert!(
                    took < Duration::from_millis(50),
                    "write {victim} {len}: {took:?}"
                );
                let id = world.read(2, 0, len as u64);
                let took = world.until(SECONDS, |w| w.take_reply(id).is_some());
                assert!(
                    took < Duration::from_millis(50),
                    "read {victim} {len}: {took:?}"
                );
            }
        }
    }
}

#[test]
fn a_gap_is_asked_for_long_before_the_timeout() {
    let mut world = World::new(Faults::NONE, 1, 1500);
    // A slow disk makes a long timeout.
    world.disk.slowness = Duration::from_millis(60);
    for op in 0..50 {
        let id = world.read(op, 0, 512);
        world.reply(id);
    }
    world.disk.slowness = Duration::ZERO;
    VICTIM.with(|v| v.set(world.segment.frames + 40));
    world.segment.lose = Some(|number, _| VICTIM.with(|v| v.get() == number));
    let id = world.read(99, 0, 200_000);
    let took = world.until(SECONDS, |w| w.take_reply(id).is_some());
    assert!(took < Duration::from_millis(3), "{took:?}");
}

#[test]
fn a_resumed_transfer_does_not_start_again() {
    for write in [true, false] {
        let mut world = World::new(Faults::NONE, 1, 1500);
        world.pass(Duration::from_millis(5));
        // Every second large frame of the first pass is lost.
        world.segment.lose = Some(|n, f| n % 2 == 0 && f.bytes.len() > 1000);
        let id = if write {
            world.write(1, 0, &pattern(1 << 20, 1))
        } else {
            world.read(1, 0, 1 << 20)
        };
        world.pass(Duration::from_micros(100));
        world.segment.lose = None;
        let now = world.now;
        world.client.client_mut(&1).unwrap().connect(now, OTHER_MAC);
        let before = world.segment.bytes;
        world.reply(id);
        let sent = world.segment.bytes - before;
        assert!((400_000..800_000).contains(&sent), "{sent}");
    }
}

thread_local! {
    static VICTIM: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[test]
fn a_transfer_goes_on_after_a_reconnect() {
    for seed in seeds(20) {
        let mut world = World::new(Faults::ALL, seed, 1500);
        world.disk.slowness = Duration::from_millis(seed % 4);
        let mut work = Workload::new(60, 6, 200_000, seed);
        for round in 0..6 {
            let steps = world.segment.rng.u32(1..2000);
            for _ in 0..steps {
                work.drive(&mut world);
                world.step();
            }
            // The unit moves to its other NIC: a new connection in the middle of everything.
            let mac = if round % 2 == 0 {
                OTHER_MAC
            } else {
                SERVER_MAC
            };
            let now = world.now;
            world.client.client_mut(&1).unwrap().connect(now, mac);
        }
        work.run(&mut world, 60 * SECONDS);
        let resumed = |e: &ClientEvent| matches!(e, ClientEvent::Connected { resumed: true, .. });
        assert!(world.events.iter().filter(|e| resumed(e)).count() > 1);
    }
}

#[test]
fn an_outage_is_noticed_and_survived() {
    let mut world = World::new(Faults::NONE, 5, 9000);
    let mut work = Workload::new(40, 6, 200_000, 5);
    for _ in 0..50 {
        work.drive(&mut world);
        world.step();
    }
    world.segment.lose = Some(|_, _| true);
    let took = world.until(20 * SECONDS, |w| !w.connected());
    assert!(took > SECONDS && took <= LOST_AFTER, "{took:?}");
    world.pass(30 * SECONDS);
    world.segment.lose = None;
    let took = world.until(20 * SECONDS, |w| w.connected());
    assert!(took < 2 * SECONDS, "{took:?}");
    work.run(&mut world, 10 * SECONDS);
}

#[test]
fn an_idle_connection_stays() {
    let mut world = World::new(Faults::NONE, 5, 9000);
    world.pass(600 * SECONDS);
    assert!(world.connected());
    assert_eq!(world.events.len(), 1, "{:?}", world.events);
}

#[test]
fn a_restarted_responder_gets_everything_unanswered_again() {
    for seed in seeds(20) {
        let mut world = World::new(Faults::ALL, seed, 1500);
        world.disk.slowness = Duration::from_millis(seed % 4);
        let mut work = Workload::new(60, 6, 100_000, seed);
        for _ in 0..3 {
            let steps = world.segment.rng.u32(1..1500);
            for _ in 0..steps {
                work.drive(&mut world);
                world.step();
            }
            world.restart_server();
        }
        let start = world.now;
        work.run(&mut world, 60 * SECONDS);
        assert!(world.now.since(start) < 30 * SECONDS);
    }
}

#[test]
fn an_initiator_that_is_far_along_goes_on_with_a_restarted_responder() {
    let mut world = World::new(Faults::NONE, 3, 1500);
    // More commands than a client can hold at once.
    let mut work = Workload::new(17_000, 32, 64, 3);
    work.run(&mut world, 600 * SECONDS);
    world.restart_server();
    work.left = 30;
    let start = world.now;
    work.run(&mut world, 60 * SECONDS);
    assert!(world.now.since(start) < 10 * SECONDS);
}

#[test]
fn frames_of_old_connections_change_nothing() {
    for restart in [false, true] {
        let mut world = World::new(Faults::NONE, 9, 1500);
        world.segment.record = Some(Vec::new());
        let mut work = Workload::new(30, 6, 30_000, 9);
        work.run(&mut world, SECONDS);
        let old = world.segment.record.take().unwrap();
        if restart {
            world.restart_server();
        } else {
            let now = world.now;
            world.client.client_mut(&1).unwrap().connect(now, OTHER_MAC);
        }
        // Before the client is back, between its handshake and its commands, and after.
        for phase in 0..3 {
            if phase == 1 {
                world.until(10 * SECONDS, |w| w.connected());
            }
            if phase == 2 {
                let mut more = Workload::new(0, 1, 1, 9);
                std::mem::swap(&mut more, &mut work);
                work = more;
                work.left = 30;
                work.drive(&mut world);
            }
            let executed = world.disk.executed.clone();
            let bytes = world.disk.bytes.clone();
            for frame in &old {
                let now = world.now;
                if frame.dst == CLIENT_MAC {
                    let _ = world.client.handle(now, frame.src, &frame.bytes);
                } else {
                    let _ = world.server.handle(now, frame.src, &frame.bytes);
                }
                world.pump();
            }
            assert!(world.disk.executed == executed && world.disk.bytes == bytes);
        }
        // Once the new connection is open, not one of them gets as far as the duplicate window.
        let to_server = |f: &&InFlight| {
            let kind = Header::parse(&f.bytes, true).map(|(h, _)| h.kind);
            f.dst == SERVER_MAC && kind != Ok(Kind::Connect)
        };
        let commands = old.iter().filter(to_server).count() as u64;
        let dropped = world.server.drops().get(DropReason::Connection);
        assert!(dropped >= commands * 2, "{dropped} of {commands}");
        work.run(&mut world, 60 * SECONDS);
    }
}

#[test]
fn every_frame_may_come_again_at_any_time() {
    let mut world = World::new(Faults::NONE, 11, 1500);
    world.segment.record = Some(Vec::new());
    let mut work = Workload::new(40, 6, 30_000, 11);
    while !work.drive(&mut world) {
        world.step();
        let frames = world.segment.record.as_ref().unwrap();
        let again =
            frames[fastrand::Rng::with_seed(frames.len() as u64).usize(0..frames.len())].clone();
        let now = world.now;
        if again.dst == CLIENT_MAC {
            let _ = world.client.handle(now, again.src, &again.bytes);
        } else {
            let _ = world.server.handle(now, again.src, &again.bytes);
        }
        world.pump();
    }
    work.check(&world);
}

#[test]
fn credits_are_respected() {
    let mut world = World::new(Faults::NONE, 3, 9000);
    world.disk.slowness = Duration::from_millis(20);
    let mut work = Workload::new(300, 200, 512, 3);
    work.run(&mut world, 60 * SECONDS);
    assert_eq!(world.disk.most_busy, usize::from(world.credits));
    assert_eq!(world.server.drops().total(), 0);
}
