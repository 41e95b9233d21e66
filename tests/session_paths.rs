//! Several NICs at either end: a session uses all of them, goes on when some die, and finds out how long
//! frames may be, in virtual time.

mod session_pair;

use std::collections::BTreeMap;
use std::time::Duration;

use rma::session::{ClientEvent, PathReport};
use rma::wire::{CommandId, Header, Kind, Mac, Status, Time};
use session_pair::{Faults, InFlight, Workload, World};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
/// What a failover may cost: less than a second.
const PAUSE: Duration = ms(500);

fn world(seed: u64, mtu: u16, nics: (u8, u8)) -> World {
    World::with_nics(Faults::NONE, seed, mtu, 64, nics)
}

fn paths(world: &World) -> Vec<PathReport> {
    world.client.client(&1).unwrap().paths().collect()
}

fn used(world: &World) -> usize {
    paths(world).iter().filter(|path| path.is_used).count()
}

/// A closed loop of writes for `time`: how many were done, and the longest. The connection stays.
fn load(world: &mut World, depth: usize, bytes: u64, time: Duration) -> (usize, Duration) {
    let data = vec![7; bytes as usize];
    let done = closed_loop(world, depth, bytes, time, |world, at| {
        world.write(at, at, &data)
    });
    assert!(world.disk.executed.values().all(|n| *n == 1), "once each");
    done
}

/// Keeps `depth` commands of `bytes` under way for `time`: how many were done, and the longest.
fn closed_loop(
    world: &mut World,
    depth: usize,
    bytes: u64,
    time: Duration,
    submit: impl Fn(&mut World, u64) -> CommandId,
) -> (usize, Duration) {
    let start = world.now;
    let mut begun: BTreeMap<_, Time> = BTreeMap::new();
    let (mut done, mut longest, mut next) = (0, Duration::ZERO, 0);
    while world.now.since(start) < time || !begun.is_empty() {
        while begun.len() < depth && world.now.since(start) < time {
            next = (next + bytes) % (8 << 20);
            let id = submit(world, next);
            begun.insert(id, world.now);
        }
        world.step();
        for event in std::mem::take(&mut world.events) {
            if let ClientEvent::Reply {
                command, status, ..
            } = event
            {
                assert_eq!(status, Status::Ok);
                let at = begun.remove(&command).expect("answered once");
                longest = longest.max(world.now.since(at));
                done += 1;
            } else {
                assert_ne!(event, ClientEvent::Lost, "the connection stays");
            }
        }
        assert!(world.now.since(start) < time + Duration::from_secs(60));
    }
    (done, longest)
}

#[test]
fn all_nics_are_used_at_the_same_time() {
    let count = |nics| {
        let mut world = world(1, 1500, nics);
        world.segment.frame_time = Duration::from_micros(10);
        world.until(ms(200), |w| used(w) == usize::from(nics.0 * nics.1));
        load(&mut world, 64, 4096, ms(300)).0
    };
    let (one, two) = (count((1, 1)), count((2, 2)));
    println!("one NIC {one}, two {two}");
    assert!(two * 10 >= one * 17, "{one} by one NIC, {two} by two");
    assert!(count((2, 1)) > one, "two NICs of the host");
}

#[test]
fn a_dead_nic_costs_a_moment_and_no_command() {
    for (dead, seed) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
        let mut world = world(seed, 9000, (2, 2));
        world.until(ms(200), |w| used(w) == 4);
        let macs = [&world.client_macs[..], &world.server_macs].concat();
        load(&mut world, 8, 4096, ms(50));
        world.segment.dead.insert(macs[dead]);
        let (done, longest) = load(&mut world, 8, 4096, ms(300));
        assert!(longest < PAUSE, "NIC {dead}: {longest:?}");
        assert!(done > 2_000, "NIC {dead}: {done}");
        assert_eq!(used(&world), 2, "NIC {dead}");
        // It comes back, and only it is left.
        world.segment.dead.clear();
        world.until(Duration::from_secs(3), |w| used(w) == 4);
        let other = macs[dead ^ 1];
        world.segment.dead.insert(other);
        let (_, longest) = load(&mut world, 8, 4096, ms(200));
        assert!(longest < PAUSE, "NIC {dead} after its return: {longest:?}");
    }
}

#[test]
fn a_nic_that_is_known_to_be_down_is_not_waited_for() {
    let mut world = world(5, 9000, (2, 1));
    world.until(ms(200), |w| used(w) == 2);
    for down in [0, 1] {
        let mac = world.client_macs[down];
        world.segment.dead.insert(mac);
        world.client_nics[down].up = false;
        world.tell_nics();
        let (_, longest) = load(&mut world, 8, 4096, ms(100));
        assert!(longest < ms(50), "{longest:?}");
        world.segment.dead.clear();
        world.client_nics[down].up = true;
        world.tell_nics();
        world.until(ms(200), |w| used(w) == 2);
    }
}

#[test]
fn separate_segments_have_a_path_each() {
    let mut world = world(6, 1500, (2, 2));
    let (c, s) = (world.client_macs.clone(), world.server_macs.clone());
    world.segment.apart.extend([(c[0], s[1]), (c[1], s[0])]);
    world.until(Duration::from_secs(1), |w| used(w) >= 2);
    load(&mut world, 16, 4096, ms(500));
    assert_eq!(used(&world), 2);
    world.segment.dead.insert(s[0]);
    let (_, longest) = load(&mut world, 16, 4096, ms(500));
    assert!(longest < PAUSE, "{longest:?}");
    assert_eq!(used(&world), 1);
}

#[test]
fn a_connection_is_opened_by_whichever_pair_reaches_each_other() {
    for (n, m) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut world = world(7, 1500, (2, 2));
        world.segment.clear();
        let (c, s) = (world.client_macs.clone(), world.server_macs.clone());
        world.segment.dead.extend([c[1 - n], s[1 - m]]);
        world.until(ms(500), |w| w.connected());
        let (done, _) = load(&mut world, 4, 4096, ms(50));
        assert!(done > 100, "{n} {m}");
    }
}

#[test]
fn long_frames_are_used_once_they_were_seen_to_pass() {
    let mut world = world(8, 9000, (1, 1));
    world.until(ms(50), |w| paths(w).first().is_some_and(|p| p.mtu == 9000));
    load(&mut world, 4, 65_536, ms(20));
    let before = (world.segment.frames, world.disk.executed.len());
    load(&mut world, 4, 65_536, ms(100));
    let frames = world.segment.frames - before.0;
    let writes = (world.disk.executed.len() - before.1) as u64;
    // Eight frames of a write and its answer.
    assert!(frames <= writes * 10, "{frames} frames for {writes} writes");
}

#[test]
fn a_switch_that_carries_less_than_the_nics_is_found_out() {
    for carries in [600, 1400, 1500, 4000, 8000] {
        let mut world = world(9, 9000, (1, 1));
        world.segment.carries = carries;
        let (_, longest) = load(&mut world, 2, 16_384, Duration::from_secs(1));
        assert!(longest < ms(800), "{carries}: {longest:?}");
        world.pass(Duration::from_secs(1));
        let found = usize::from(paths(&world)[0].mtu);
        assert!(
            found <= carries && found + 40 > carries,
            "{carries}: {found}"
        );
    }
}

#[test]
fn a_black_hole_shortens_frames_and_keeps_the_connection() {
    for reads in [false, true] {
        let mut world = world(10, 9000, (1, 1));
        load(&mut world, 4, 16_384, ms(100));
        assert_eq!(paths(&world)[0].mtu, 9000);
        world.segment.carries = 1500;
        let at = world.now;
        if reads {
            let id = world.read(1, 0, 65_536);
            assert_eq!(world.reply(id).0, Status::Ok);
        } else {
            load(&mut world, 4, 16_384, ms(100));
        }
        let took = world.now.since(at);
        assert!(took < Duration::from_secs(1), "{took:?}");
        world.pass(Duration::from_secs(2));
        assert_eq!(paths(&world)[0].mtu, 1500);
        assert!(world.connected());
        // The way is good again: that is tried now and then.
        world.segment.carries = usize::MAX;
        world.until(Duration::from_secs(70), |w| paths(w)[0].mtu == 9000);
        load(&mut world, 4, 16_384, ms(100));
    }
}

#[test]
fn frames_that_are_late_are_not_taken_for_frames_that_are_too_long() {
    let mut world = world(12, 1500, (1, 1));
    load(&mut world, 4, 16_384, ms(100));
    // Everything else is as late: that says nothing about length, and trying would make it later still.
    world.segment.faults.delay = ms(150);
    world.segment.record = Some(Vec::new());
    for _ in 0..20 {
        let id = world.read(1, 0, 65_536);
        assert_eq!(world.reply(id).0, Status::Ok);
        assert_eq!(paths(&world)[0].mtu, 1500);
    }
    let frames = world.segment.record.take().unwrap();
    let is_probe = |frame: &&InFlight| {
        Header::parse(&frame.bytes, true).is_ok_and(|(header, _)| header.kind == Kind::Path)
    };
    let probes = frames.iter().filter(is_probe).count();
    // Four checks in six seconds, of six probes each at most, and their answers.
    assert!(probes <= 48, "{probes} probes and answers");
}

#[test]
fn a_unit_that_was_slow_before_a_black_hole_does_not_hide_it() {
    for reads in [false, true] {
        let mut world = world(13, 9000, (1, 1));
        load(&mut world, 8, 16_384, ms(100));
        assert_eq!(paths(&world)[0].mtu, 9000);
        // For a while nothing comes in time: frames of the length in use are looked at, and pass.
        let usual = std::mem::replace(&mut world.segment.faults.delay, ms(60));
        load(&mut world, 8, 16_384, ms(300));
        assert_eq!(paths(&world)[0].mtu, 9000);
        world.segment.faults.delay = usual;
        load(&mut world, 8, 16_384, ms(50));
        world.segment.carries = 1500;
        let at = world.now;
        if reads {
            let id = world.read(1, 0, 65_536);
            assert_eq!(world.reply(id).0, Status::Ok);
        } else {
            load(&mut world, 8, 16_384, ms(100));
        }
        let took = world.now.since(at);
        assert!(took < Duration::from_secs(1), "{took:?}");
        world.pass(Duration::from_secs(2));
        assert_eq!(paths(&world)[0].mtu, 1500);
        assert!(world.connected());
    }
}

/// A closed loop of small reads for `time`: the longest.
fn reads(world: &mut World, depth: usize, time: Duration) -> Duration {
    let read = |world: &mut World, at| world.read(at, at, 4096);
    closed_loop(world, depth, 4096, time, read).1
}

#[test]
fn a_black_hole_on_all_ways_at_once_costs_small_io_less_than_a_second() {
    for seed in 1..5 {
        let mut world = world(seed, 9000, (2, 2));
        reads(&mut world, 8, ms(50));
        world.until(ms(200), |w| {
            paths(w).len() == 4 && paths(w).iter().all(|p| p.mtu == 9000)
        });
        reads(&mut world, 8, ms(5));
        world.segment.carries = 1500;
        let longest = reads(&mut world, 8, ms(500));
        assert!(longest < ms(500), "seed {seed}: {longest:?}");
        assert!(paths(&world).iter().all(|p| p.mtu == 1500));
    }
}

#[test]
fn the_mtu_of_a_nic_changes_while_io_runs() {
    let mut world = world(11, 1500, (1, 1));
    load(&mut world, 4, 16_384, ms(50));
    world.client_nics[0].mtu = 9000;
    world.server_mtus[0] = 9000;
    world.tell_nics();
    load(&mut world, 4, 16_384, ms(200));
    assert_eq!(paths(&world)[0].mtu, 9000);
    // The responder's NIC takes less: nobody says so.
    world.server_mtus[0] = 3000;
    world.tell_nics();
    let (_, longest) = load(&mut world, 4, 16_384, ms(1000));
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!((2900..=3000).contains(&paths(&world)[0].mtu));
    // The initiator's own: at once.
    world.client_nics[0].mtu = 1500;
    world.tell_nics();
    let (_, longest) = load(&mut world, 4, 16_384, ms(100));
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert_eq!(paths(&world)[0].mtu, 1500);
}

/// Has a workload come to its end while `fail` does something every so many milliseconds: it is given the
/// NICs of both ends, all of which live again.
fn endure(
    seed: u64,
    pause_ms: std::ops::Range<u64>,
    fail: impl Fn(&mut World, &mut fastrand::Rng, &[Mac]),
) {
    let mut world = World::with_nics(Faults::ALL, seed, 9000, 32, (2, 2));
    let macs = [&world.client_macs[..], &world.server_macs].concat();
    let mut workload = Workload::new(800, 16, 20_000, seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut next = world.now;
    world.until(Duration::from_secs(600), |w| {
        if w.now >= next {
            next = w.now + ms(rng.u64(pause_ms.clone()));
            w.segment.dead.clear();
            fail(w, &mut rng, &macs);
        }
        workload.drive(w)
    });
    workload.check(&world);
}

#[test]
fn nics_that_come_and_go_change_no_byte_and_repeat_no_command() {
    for seed in 1..=6 {
        endure(seed, 10..300, |w, rng, macs| {
            if rng.bool() {
                w.segment.dead.insert(macs[rng.usize(0..4)]);
            }
            w.segment.carries = if rng.u8(0..4) == 0 { 2000 } else { usize::MAX };
        });
    }
}

#[test]
fn units_restart_while_nics_come_and_go() {
    for seed in 1..=4 {
        endure(seed, 50..500, |w, rng, macs| match rng.u8(0..3) {
            0 => drop(w.segment.dead.insert(macs[rng.usize(0..4)])),
            1 => w.restart_server(),
            _ => {}
        });
    }
}

#[test]
fn frames_of_the_past_are_never_applied_whichever_nic_they_come_by() {
    for restart in [false, true] {
        let mut world = world(13, 9000, (2, 2));
        world.until(ms(200), |w| used(w) == 4);
        world.segment.record = Some(Vec::new());
        for round in 1..=3_u8 {
            for block in 0..20 {
                let id = world.write(block, block * 4096, &[round; 4096]);
                assert_eq!(world.reply(id).0, Status::Ok);
            }
        }
        let record = world.segment.record.take().unwrap();
        if restart {
            world.restart_server();
        } else {
            let now = world.now;
            let last = world.server_macs[1];
            world.client.client_mut(&1).unwrap().reach(now, &[last]);
        }
        let id = world.write(0, 20 * 4096, &[9; 4096]);
        assert_eq!(world.reply(id).0, Status::Ok);
        let before = world.disk.bytes.clone();
        let executed = world.disk.executed.values().sum::<u32>();
        for frame in record {
            for dst in world.server_macs.clone() {
                for src in world.client_macs.clone() {
                    let mut frame = frame.clone();
                    (frame.src, frame.dst) = (src, dst);
                    world.deliver(&frame);
                    world.pump();
                }
            }
        }
        world.pass(Duration::from_secs(1));
        assert!(world.disk.bytes == before);
        assert_eq!(world.disk.executed.values().sum::<u32>(), executed);
    }
}
