//! How fast a session is where frames are lost: a closed loop of reads or writes over a wire that takes a
//! while for each frame, in virtual time.

mod session_pair;

use std::collections::BTreeMap;
use std::time::Duration;

use rma::session::ClientEvent;
use rma::wire::{Status, Time};
use session_pair::{Faults, World};

/// As the daemons: what is sent while a lost command is not answered has to fit into the window behind it.
const CREDITS: u16 = 1024;

/// What a load came to.
#[derive(Debug)]
struct Outcome {
    ios_per_second: f64,
    /// 99.9th percentile of the latency.
    p999: Duration,
    longest: Duration,
}

/// Keeps `depth` reads (or writes) of `bytes` under way until `count` are done, where frames are lost by
/// chance.
fn load(loss: f64, reads: bool, bytes: u64, depth: usize, count: usize) -> Outcome {
    let faults = Faults {
        loss,
        ..Faults::NONE
    };
    let world = World::with_credits(faults, 7, 9000, CREDITS);
    run(world, reads, bytes, depth, count)
}

fn run(mut world: World, reads: bool, bytes: u64, depth: usize, count: usize) -> Outcome {
    // What two processors and a virtual wire make of a jumbo frame.
    world.segment.frame_time = Duration::from_micros(3);
    let data = vec![0xa5; bytes as usize];
    let mut begun: BTreeMap<_, Time> = BTreeMap::new();
    let mut latencies = Vec::new();
    let (mut next, mut submitted, start) = (0, 0, world.now);
    while latencies.len() < count {
        while begun.len() < depth && submitted < count {
            next = (next + bytes) % (8 << 20);
            let at = world.now;
            let id = if reads {
                world.read(submitted as u64, next, bytes)
            } else {
                world.write(submitted as u64, next, &data)
            };
            begun.insert(id, at);
            submitted += 1;
        }
        assert!(
            world.now.since(start) < Duration::from_secs(600),
            "{} of {count} done",
            latencies.len()
        );
        world.step();
        for event in std::mem::take(&mut world.events) {
            if let ClientEvent::Reply {
                command, status, ..
            } = event
            {
                assert_eq!(status, Status::Ok);
                let at = begun.remove(&command).expect("answered once");
                latencies.push(world.now.since(at));
            }
        }
    }
    assert!(world.disk.executed.values().all(|n| *n == 1), "once each");
    let seconds = world.now.since(start).as_secs_f64();
    latencies.sort();
    Outcome {
        ios_per_second: count as f64 / seconds,
        p999: latencies[count * 999 / 1000],
        longest: latencies[count - 1],
    }
}

#[test]
fn one_percent_of_loss_leaves_most_of_the_throughput() {
    for (reads, bytes, depth) in [
        (true, 4096, 32),
        (false, 4096, 32),
        (true, 128 << 10, 8),
        (false, 128 << 10, 8),
    ] {
        // Long enough that the last I/O's timeout, after which nothing comes, does not count.
        let count = if bytes == 4096 { 30_000 } else { 4000 };
        let good = load(0.0, reads, bytes, depth, count);
        let bad = load(0.01, reads, bytes, depth, count);
        let kept = bad.ios_per_second / good.ios_per_second;
        let what = format!(
            "{} of {bytes}: {kept:.2} kept, p99.9 {:?}",
            if reads { "reads" } else { "writes" },
            bad.p999
        );
        println!("{what}");
        assert!(kept >= 0.6, "{what}");
        assert!(bad.p999 <= Duration::from_millis(20), "{what}");
    }
}

#[test]
fn what_later_commands_have_overtaken_is_asked_after_before_its_timeout() {
    for reads in [true, false] {
        let mut world = World::with_credits(Faults::NONE, 7, 9000, CREDITS);
        world.segment.lose = Some(|number, _| number == 500);
        let outcome = run(world, reads, 4096, 8, 2000);
        let what = format!("{:?}", outcome.longest);
        println!("{what}");
        // Of this path the timeout would be RTO_MIN, 4 ms.
        assert!(outcome.longest > Duration::from_millis(1), "lost: {what}");
        assert!(outcome.longest < Duration::from_millis(3), "{what}");
    }
}

/// Losses make no path slow: what is lost again and again is asked for again, and again soon.
#[test]
fn a_tenth_of_all_frames_lost_is_no_standstill() {
    for reads in [true, false] {
        let outcome = load(0.1, reads, 4096, 32, 5000);
        let what = format!("{outcome:?}");
        println!("{what}");
        assert!(outcome.ios_per_second > 8000.0, "{what}");
        assert!(outcome.p999 < Duration::from_millis(200), "{what}");
    }
}

#[test]
fn a_tenth_of_all_frames_lost_loses_no_io() {
    for (reads, bytes) in [
        (true, 4096),
        (false, 4096),
        (true, 128 << 10),
        (false, 128 << 10),
    ] {
        load(0.1, reads, bytes, 8, 500);
    }
}
