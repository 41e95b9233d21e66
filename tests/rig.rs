//! The test rig itself: frames cross its switch, faults happen as asked, nothing is left behind.

use pcap_file::pcap::PcapReader;
use pcap_file::{DataLink, TsResolution};
use rma::net::{Inbox, Interface, NetError, OUTBOX_FRAMES, Outbox, PacketSocket};
use rma::wire::{ETHERTYPE_SERVICE, FABRIC_MULTICAST, Mac};
use rma_rig::{Faults, Node, NodeOptions, Rig, RigError, TestResult, station, wait_until};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

rma_rig::test_main!(
    frames_cross_and_only_to_whom_they_are_sent,
    multicast_reaches_everybody_else,
    faults_happen_at_the_rates_that_were_set,
    the_same_seed_draws_the_same_faults,
    delayed_frames_arrive_late_and_in_order,
    reordered_frames_are_overtaken,
    faults_of_one_node_leave_the_others_alone,
    long_frames_fall_into_a_black_hole,
    a_partition_stops_frames_until_it_heals,
    a_capture_has_every_frame_as_it_was_sent,
    a_pulled_cable_stops_frames_until_it_is_plugged_in,
    a_removed_interface_comes_back,
    a_direct_wire_goes_past_the_switch,
    a_hundred_nodes_come_up_and_hear_each_other,
    processes_run_in_their_node_and_are_logged,
    commands_that_take_too_long_are_killed,
    a_wait_ends_with_the_condition_or_the_deadline,
    a_dropped_rig_leaves_nothing_behind,
    a_killed_rig_takes_its_processes_along,
    it_works_for_unprivileged_users,
);

const SOON: Duration = Duration::from_secs(10);
/// Long enough for what is underway in the switch to arrive.
const SETTLE: Duration = Duration::from_secs(10);

/// A socket on a node, opened inside it, and what it has received.
struct Station {
    socket: PacketSocket,
    inbox: Inbox,
    received: Vec<(Mac, Vec<u8>)>,
}

impl Station {
    fn on(node: &Node) -> Result<Self, Box<dyn std::error::Error>> {
        Self::on_interface(node, "eth0")
    }

    fn on_interface(node: &Node, name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let socket = node.enter(|| {
            let mut socket = PacketSocket::open(&Interface::by_name(name)?, ETHERTYPE_SERVICE)?;
            socket.join(FABRIC_MULTICAST)?;
            Ok::<_, NetError>(socket)
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

/// A rig with two nodes and a socket on each.
struct Pair {
    rig: Rig,
    a: Node,
    b: Node,
    on_a: Station,
    on_b: Station,
}

impl Pair {
    fn new(seed: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let rig = Rig::with_seed(seed)?;
        let a = rig.add_node("a", NodeOptions::new(station(1)))?;
        let b = rig.add_node("b", NodeOptions::new(station(2)))?;
        let (mut on_a, mut on_b) = (Station::on(&a)?, Station::on(&b)?);
        // The switch learns where both are, so that nothing between them is flooded.
        on_a.send(b.mac(), b"here")?;
        on_b.expect(1)?;
        on_b.send(a.mac(), b"here")?;
        on_a.expect(1)?;
        on_a.received.clear();
        on_b.received.clear();
        Ok(Self {
            rig,
            a,
            b,
            on_a,
            on_b,
        })
    }

    /// Sends `count` frames from a to b, numbered, with what the switch does to them settled: b has
    /// received everything when this returns.
    fn send_numbered(&mut self, count: u32, len: usize) -> TestResult {
        let mut outbox = Outbox::new();
        let mut next = 0u32;
        while next < count {
            while next < count && outbox.len() < OUTBOX_FRAMES / 4 {
                outbox.push_with(|bytes| {
                    bytes.extend(next.to_be_bytes());
                    bytes.resize(bytes.len() + len - 4, 0);
                    Some(self.b.mac())
                });
                next += 1;
            }
            self.on_a.socket.send(&mut outbox)?;
            // Not faster than b takes them: this is not about full buffers.
            let sent = self.on_a.socket.counters().sent_frames;
            wait_until(SOON, "the switch to keep up", || {
                self.on_b.take();
                let counters = self.rig.switch().node_counters(&self.a);
                counters.is_ok_and(|counters| counters.received_frames == sent)
            })?;
        }
        self.settle()
    }

    /// Waits until the switch holds nothing back and b has received what it was sent.
    fn settle(&mut self) -> TestResult {
        let mut seen = String::new();
        let settled = wait_until(SETTLE, "frames held back", || {
            self.on_b.take();
            let (to_b, of_b) = (
                self.rig.switch().node_counters(&self.b),
                self.on_b.socket.counters(),
            );
            seen = format!("{to_b:?} {of_b:?}");
            to_b.is_ok_and(|to_b| to_b.held == 0 && of_b.received_frames == to_b.sent_frames)
        });
        settled.map_err(|error| format!("{error}: {seen}"))?;
        Ok(())
    }

    fn numbers(&self) -> Vec<u32> {
        let number = |(_, bytes): &(Mac, Vec<u8>)| {
            u32::from_be_bytes(*bytes.first_chunk().expect("a numbered frame"))
        };
        self.on_b.received.iter().map(number).collect()
    }
}

fn frames_cross_and_only_to_whom_they_are_sent() -> TestResult {
    let rig = Rig::new()?;
    let [a, b, c] = ["a", "b", "c"].map(|name| rig.add_node(name, NodeOptions::default()));
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

fn faults_happen_at_the_rates_that_were_set() -> TestResult {
    const FRAMES: u32 = 20_000;
    let mut pair = Pair::new(1)?;
    pair.rig.switch().set_faults(Faults {
        loss_ppm: 50_000,
        duplicate_ppm: 30_000,
        corrupt_ppm: 20_000,
        ..Faults::default()
    })?;
    pair.send_numbered(FRAMES, 100)?;
    let counters = pair.rig.switch().node_counters(&pair.b)?;
    for (what, counted, expected) in [
        ("lost", counters.lost, 1000),
        ("duplicated", counters.duplicated, 600 * 95 / 100),
        ("corrupted", counters.corrupted, 400 * 95 / 100),
    ] {
        assert!(
            counted.abs_diff(expected) < expected / 4,
            "{what}: {counted} of {expected}"
        );
    }
    assert_eq!(
        (counters.congested, counters.overrun, counters.refused),
        (0, 0, 0)
    );
    let expected = u64::from(FRAMES) - counters.lost + counters.duplicated;
    assert_eq!(pair.on_b.received.len() as u64, expected);
    let numbered = |bytes: &[u8]| bytes[4..].iter().all(|octet| *octet == 0);
    let damaged = pair
        .on_b
        .received
        .iter()
        .filter(|(_, bytes)| !numbered(bytes))
        .count() as u64;
    assert!(damaged <= counters.corrupted && damaged > counters.corrupted / 2);

    pair.on_b.received.clear();
    pair.rig.switch().set_faults(Faults::default())?;
    pair.send_numbered(1000, 100)?;
    assert_eq!(
        pair.numbers(),
        (0..1000).collect::<Vec<_>>(),
        "a good wire again"
    );
    Ok(())
}

fn the_same_seed_draws_the_same_faults() -> TestResult {
    let run = |seed| {
        let mut pair = Pair::new(seed)?;
        pair.rig.switch().set_faults(Faults {
            loss_ppm: 200_000,
            ..Faults::default()
        })?;
        pair.send_numbered(500, 60)?;
        Ok::<_, Box<dyn std::error::Error>>(pair.numbers())
    };
    let first = run(5)?;
    assert_eq!(first, run(5)?);
    assert_ne!(first, run(6)?);
    Ok(())
}

fn delayed_frames_arrive_late_and_in_order() -> TestResult {
    let mut pair = Pair::new(1)?;
    let delay = Duration::from_millis(30);
    pair.rig.switch().set_faults(Faults {
        delay,
        ..Faults::default()
    })?;
    let start = Instant::now();
    pair.send_numbered(100, 100)?;
    assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
    assert_eq!(pair.numbers(), (0..100).collect::<Vec<_>>());
    Ok(())
}

fn reordered_frames_are_overtaken() -> TestResult {
    let mut pair = Pair::new(1)?;
    let reorder_within = Duration::from_millis(20);
    pair.rig.switch().set_faults(Faults {
        reorder_ppm: 100_000,
        reorder_within,
        ..Faults::default()
    })?;
    pair.send_numbered(1000, 100)?;
    let numbers = pair.numbers();
    let overtaken = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(overtaken > 10, "{overtaken}");
    assert_eq!(
        numbers.iter().copied().collect::<BTreeSet<_>>(),
        (0..1000).collect()
    );
    assert_eq!(numbers.len(), 1000);
    Ok(())
}

fn faults_of_one_node_leave_the_others_alone() -> TestResult {
    let mut pair = Pair::new(1)?;
    let c = pair.rig.add_node("c", NodeOptions::default())?;
    let mut on_c = Station::on(&c)?;
    on_c.send(pair.a.mac(), b"here")?;
    pair.on_a.expect(1)?;
    let all = Faults {
        loss_ppm: 1_000_000,
        ..Faults::default()
    };
    pair.rig.switch().set_node_faults(&c, all)?;
    pair.on_a.send(c.mac(), b"lost on its way to c")?;
    on_c.send(pair.b.mac(), b"lost on its way from c")?;
    pair.send_numbered(10, 60)?;
    assert_eq!(pair.numbers(), (0..10).collect::<Vec<_>>());
    assert_eq!(on_c.take(), 0);
    pair.rig.switch().set_node_faults(&c, Faults::default())?;
    pair.on_a.send(c.mac(), b"not lost")?;
    on_c.expect(1)?;
    assert_eq!(on_c.received[0].1, b"not lost");
    Ok(())
}

fn long_frames_fall_into_a_black_hole() -> TestResult {
    let mut pair = Pair::new(1)?;
    pair.rig.switch().set_nic_faults(
        &pair.b,
        0,
        Faults {
            black_hole_above: Some(600),
            ..Faults::default()
        },
    )?;
    pair.on_a.send(pair.b.mac(), &[0; 601])?;
    pair.on_a.send(pair.b.mac(), &[1; 600])?;
    pair.on_b.expect(1)?;
    assert_eq!(pair.on_b.received, [(pair.a.mac(), vec![1; 600])]);
    assert_eq!(pair.rig.switch().counters()?.black_holed, 1);
    Ok(())
}

fn a_partition_stops_frames_until_it_heals() -> TestResult {
    let mut pair = Pair::new(1)?;
    let c = pair.rig.add_node("c", NodeOptions::default())?;
    let mut on_c = Station::on(&c)?;
    pair.rig.switch().partition(&[&pair.a, &c], &[&pair.b])?;
    pair.on_a.send(pair.b.mac(), b"stopped")?;
    pair.on_b.send(FABRIC_MULTICAST, b"stopped twice")?;
    pair.on_a.send(c.mac(), b"same side")?;
    on_c.expect(1)?;
    wait_until(SOON, "three frames to be stopped", || {
        // The one for c was flooded towards b too.
        pair.rig.switch().counters().is_ok_and(|c| c.blocked == 4)
    })?;
    pair.rig.switch().heal()?;
    pair.on_a.send(pair.b.mac(), b"healed")?;
    pair.on_b.expect(1)?;
    assert_eq!(pair.on_b.received, [(pair.a.mac(), b"healed".to_vec())]);
    assert_eq!(pair.on_a.take(), 0);
    Ok(())
}

fn a_capture_has_every_frame_as_it_was_sent() -> TestResult {
    let mut pair = Pair::new(1)?;
    let path = pair.rig.directory().join("wire.pcap");
    let capture = pair.rig.switch().capture(&path)?;
    pair.rig.switch().set_faults(Faults {
        loss_ppm: 500_000,
        ..Faults::default()
    })?;
    pair.send_numbered(200, 60)?;
    assert_eq!(capture.stop()?, 200);
    pair.send_numbered(10, 60)?;

    let mut reader = PcapReader::new(File::open(&path)?)?;
    assert_eq!(reader.header().datalink, DataLink::ETHERNET);
    assert_eq!(reader.header().ts_resolution, TsResolution::NanoSecond);
    let mut before = Duration::ZERO;
    let mut count = 0u32;
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        assert!(packet.timestamp >= before);
        before = packet.timestamp;
        let mut expected = [pair.b.mac().0, pair.a.mac().0].concat();
        expected.extend(ETHERTYPE_SERVICE.to_be_bytes());
        expected.extend(count.to_be_bytes());
        expected.resize(14 + 60, 0);
        assert_eq!(packet.data, expected);
        count += 1;
    }
    assert_eq!(count, 200);
    assert!(
        before > Duration::from_secs(1_500_000_000),
        "time since the epoch"
    );
    Ok(())
}

fn a_pulled_cable_stops_frames_until_it_is_plugged_in() -> TestResult {
    let mut pair = Pair::new(1)?;
    let carrier = |node: &Node| node.enter(|| Interface::by_name("eth0").map(|i| i.carrier));
    wait_until(SOON, "the first carrier", || {
        matches!(carrier(&pair.b), Ok(Ok(true)))
    })?;
    pair.b.link_down()?;
    wait_until(SOON, "the carrier to be lost", || {
        matches!(carrier(&pair.b), Ok(Ok(false)))
    })?;
    pair.on_a.send(pair.b.mac(), b"into the void")?;
    pair.b.link_up()?;
    wait_until(SOON, "the carrier to return", || {
        matches!(carrier(&pair.b), Ok(Ok(true)))
    })?;
    pair.on_a.send(pair.b.mac(), b"plugged in")?;
    pair.on_b.expect(1)?;
    pair.on_b.send(pair.a.mac(), b"both ways")?;
    pair.on_a.expect(1)?;
    assert_eq!(pair.on_b.received, [(pair.a.mac(), b"plugged in".to_vec())]);
    Ok(())
}

fn a_removed_interface_comes_back() -> TestResult {
    let mut pair = Pair::new(1)?;
    pair.b.remove_interface(0)?;
    let there = |node: &Node| node.enter(|| Interface::by_name("eth0").is_ok());
    assert!(!there(&pair.b)?);
    pair.on_a.send(pair.b.mac(), b"into the void")?;
    pair.b.restore_interface(0)?;
    assert!(there(&pair.b)?);
    let mut on_b = Station::on(&pair.b)?;
    pair.on_a.send(pair.b.mac(), b"back")?;
    on_b.expect(1)?;
    assert_eq!(on_b.received, [(pair.a.mac(), b"back".to_vec())]);
    Ok(())
}

fn a_direct_wire_goes_past_the_switch() -> TestResult {
    let pair = Pair::new(1)?;
    let name = pair.rig.join(&pair.a, &pair.b, 9000)?;
    let mut on_a = Station::on_interface(&pair.a, &name)?;
    let mut on_b = Station::on_interface(&pair.b, &name)?;
    let before = pair.rig.switch().counters()?;
    on_a.send(on_b.socket.interface().mac, &[9; 9000])?;
    on_b.expect(1)?;
    assert_eq!(pair.rig.switch().counters()?, before);
    Ok(())
}

fn a_hundred_nodes_come_up_and_hear_each_other() -> TestResult {
    const NODES: usize = 100;
    let rig = Rig::new()?;
    let start = Instant::now();
    let wanted = (0..NODES).map(|n| (format!("n{n}"), NodeOptions::default()));
    let nodes = rig.add_nodes(wanted.collect())?;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut stations = nodes
        .iter()
        .map(Station::on)
        .collect::<Result<Vec<_>, _>>()?;
    for station in &mut stations {
        station.send(FABRIC_MULTICAST, b"I am here")?;
    }
    for (index, station) in stations.iter_mut().enumerate() {
        station.expect(NODES - 1)?;
        let heard: BTreeSet<_> = station.received.iter().map(|(source, _)| *source).collect();
        assert_eq!(heard.len(), NODES - 1);
        assert!(!heard.contains(&nodes[index].mac()));
    }
    Ok(())
}

fn processes_run_in_their_node_and_are_logged() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h108", NodeOptions::new(station(108)))?;
    let output = node.run(Command::new("ip").args(["-br", "link"]), SOON)?;
    assert!(output.status.success());
    assert!(output.stdout.contains("eth0") && output.stdout.contains("02:72:00:00:00:6c"));
    assert!(!output.stdout.contains("p0"), "{}", output.stdout);

    let mut echo = Command::new("echo");
    echo.arg("once");
    assert_eq!(node.run(&mut echo, SOON)?.stdout, "once\n");
    assert_eq!(node.run(echo.arg("more"), SOON)?.stdout, "once more\n");

    let script = "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; while :; do read x < /dev/zero; done";
    let shell = node.spawn(Command::new("sh").args(["-c", script]))?;
    wait_until(SOON, "the shell to speak", || {
        shell.log().contains("out\nerr\n")
    })?;
    assert_eq!(shell.exited()?, None);
    assert!(shell.log_path().starts_with(rig.directory()));

    // From a thread that ends: the process does not end with it.
    let second = thread::scope(|scope| {
        scope
            .spawn(|| node.spawn(Command::new("sleep").arg("1000")))
            .join()
            .expect("no panic")
    })?;
    assert_eq!(second.exited()?, None);
    assert_eq!(second.kill9()?.signal(), Some(9));
    second.terminate()?;

    let missing = node.spawn(&mut Command::new("/no/such/program"));
    assert!(matches!(missing, Err(RigError::System { .. })));
    Ok(())
}

fn commands_that_take_too_long_are_killed() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h108", NodeOptions::default())?;
    let deadline = Duration::from_millis(50);
    let error = node
        .run(Command::new("sleep").arg("1000"), deadline)
        .expect_err("too long");
    assert_eq!(
        error.to_string(),
        "waited 50ms in vain for sleep on h108 to end"
    );
    Ok(())
}

fn a_wait_ends_with_the_condition_or_the_deadline() -> TestResult {
    let mut looks = 0;
    wait_until(SOON, "the third look", || {
        looks += 1;
        looks == 3
    })?;
    let error = wait_until(Duration::from_millis(5), "godot", || false).expect_err("never comes");
    assert_eq!(error.to_string(), "waited 5ms in vain for godot");
    wait_until(Duration::ZERO, "what is so already", || true)?;
    Ok(())
}

fn a_dropped_rig_leaves_nothing_behind() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("h108", NodeOptions::default())?;
    let sleep = node.spawn(Command::new("sleep").arg("1000"))?;
    let namespace = node.enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    let directory = rig.directory().to_owned();
    let namespace_is_open = || {
        let fds = fs::read_dir("/proc/self/fd").expect("our descriptors");
        fds.flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == namespace))
    };
    assert!(directory.exists() && runs(sleep.pid()) && namespace_is_open());
    drop(rig);
    assert!(!directory.exists());
    assert!(!runs(sleep.pid()));
    assert_eq!(sleep.exited()?.and_then(|status| status.signal()), Some(9));
    assert!(node.spawn(&mut Command::new("true")).is_err());
    drop(node);
    assert!(!namespace_is_open());
    Ok(())
}

fn a_killed_rig_takes_its_processes_along() -> TestResult {
    const ROLE: &str = "RMA_RIG_TEST_VICTIM";
    if let Some(report) = env::var_os(ROLE) {
        let rig = Rig::new()?;
        let sleep = rig.add_node("h108", NodeOptions::default())?;
        let sleep = sleep.spawn(Command::new("sleep").arg("1000"))?;
        let report = Path::new(&report);
        fs::write(report.with_extension("new"), sleep.pid().to_string())?;
        fs::rename(report.with_extension("new"), report)?;
        wait_until(Duration::from_secs(60), "to be killed", || false)?;
    }
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("pid");
    let mut victim = Command::new(env::current_exe()?)
        .args(["--exact", "a_killed_rig_takes_its_processes_along"])
        .env(ROLE, &report)
        .env("TMPDIR", directory.path())
        .stdout(Stdio::null())
        .spawn()?;
    let mut pid = None;
    let reported = wait_until(SOON, "the victim's report", || {
        pid = fs::read_to_string(&report)
            .ok()
            .and_then(|text| text.parse().ok());
        pid.is_some()
    });
    let alive = pid.is_some_and(runs);
    victim.kill()?;
    victim.wait()?;
    reported?;
    assert!(alive);
    wait_until(SOON, "the victim's process to end", || {
        !pid.is_some_and(runs)
    })?;
    let left = || fs::read_dir(directory.path()).map_or(0, Iterator::count);
    wait_until(SOON, "only the report to be left", || left() == 1)?;
    Ok(())
}

fn it_works_for_unprivileged_users() -> TestResult {
    const NOBODY: u32 = 65_534;
    if fs::read_to_string("/proc/self/uid_map")?
        .split_whitespace()
        .nth(2)
        == Some("1")
    {
        // A user namespace: this whole run is the proof.
        return Ok(());
    }
    let rig = Rig::new()?;
    let directory = rig.directory();
    fs::set_permissions(directory, Permissions::from_mode(0o777))?;
    let program = directory.join("rig-tests");
    fs::copy(env::current_exe()?, &program)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let output = Command::new(&program)
        .args(["--skip=unprivileged", "--skip=hundred", "--skip=killed"])
        .env("TMPDIR", directory)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("ok. "), "{text}");
    Ok(())
}

/// Whether there is a process of this number that is not merely waiting to be collected.
fn runs(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z'),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}
