//! `rma-unitd` as a real process on a real wire: serving, reloading, dying, and refusing nonsense.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rma::admin::unit_protocol::{TrafficInfo, UnitStatus};
use rma::net::{Inbox, Interface, Outbox, PacketSocket};
use rma::session::{Client, ClientConfig, ClientEvent, Request};
use rma::wire::kind::{Event, Role};
use rma::wire::message::{
    Change, CompareAndSet, ControllersReply, DeviceRecord, DevicesReply, IoRange,
};
use rma::wire::{
    ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Epoch, Flags, Guid, Header, Incarnation, IocNumber,
    IodNumber, Kind, Mac, Ownership, Status, Wire,
};
use rma_rig::{Daemon, Faults, Node, NodeOptions, Program, Rig, TestResult, bin_dir, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const HOST: Guid = Guid(0x108);

/// A host on the wire: sessions to the UMS and to controller 1 over real sockets.
struct Station {
    ports: [(PacketSocket, Inbox, Outbox, Client); 2],
    notified: Vec<Event>,
}

impl Station {
    fn open(node: &Node, unit: &Node) -> Result<Self, Box<dyn std::error::Error>> {
        let to = unit.mac();
        let ports = node.enter(|| -> Result<_, rma::net::NetError> {
            let interface = Interface::by_name("eth0")?;
            let port = |ethertype, ioc| -> Result<_, rma::net::NetError> {
                let config = ClientConfig {
                    local: HOST,
                    incarnation: Incarnation(1),
                    role: Role::Host,
                    cluster: "A".parse().expect("a name"),
                    session: 1,
                    remote: Guid::NIL,
                    ioc: IocNumber(ioc),
                    service: ioc != 0,
                    mtu: 1500,
                    credits: 32,
                };
                let mut client = Client::new(config, u64::from(ioc) + 1);
                client.connect(rma::daemon::event_loop::now(), to);
                let socket = PacketSocket::open(&interface, ethertype)?;
                Ok((socket, Inbox::new(1500), Outbox::new(), client))
            };
            Ok([port(ETHERTYPE_MANAGEMENT, 0)?, port(ETHERTYPE_SERVICE, 1)?])
        })??;
        Ok(Self {
            ports,
            notified: Vec::new(),
        })
    }

    /// Moves frames until `done` says so of an event.
    fn run<T>(&mut self, mut done: impl FnMut(usize, ClientEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no answer within {PATIENCE:?}");
            let now = rma::daemon::event_loop::now();
            for (at, (socket, inbox, outbox, client)) in self.ports.iter_mut().enumerate() {
                if socket.recv(inbox).expect("frames can be received") > 0 {
                    for frame in inbox.frames() {
                        if let Ok((header, payload)) = Header::parse(frame.payload, at == 1)
                            && client.owns(&header)
                        {
                            let _ = client.handle(now, frame.source, &header, payload);
                        }
                    }
                }
                client.tick(now);
                while outbox.push_with(|bytes| client.poll_transmit(now, bytes)) {}
                socket.send(outbox).expect("frames can be sent");
                while let Some(event) = client.poll_event() {
                    if let ClientEvent::Notified(n) = &event {
                        self.notified.push(n.event);
                    }
                    if let Some(found) = done(at, event) {
                        return found;
                    }
                }
            }
            let [a, b] = &self.ports;
            let mut fds = [
                PollFd::new(std::os::fd::AsFd::as_fd(&a.0), PollFlags::POLLIN),
                PollFd::new(std::os::fd::AsFd::as_fd(&b.0), PollFlags::POLLIN),
            ];
            let _ = poll(&mut fds, PollTimeout::from(2_u8));
        }
    }

    fn ask(&mut self, port: usize, kind: Kind, iod: u16, epoch: u64, body: Vec<u8>) -> Answer {
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(iod),
            epoch: Epoch(epoch),
            body,
            expect: 4096,
        };
        let now = rma::daemon::event_loop::now();
        let wanted = self.ports[port]
            .3
            .submit(now, request)
            .expect("room for a command");
        self.run(|at, event| match event {
            ClientEvent::Reply {
                command,
                status,
                body,
            } if at == port && command == wanted => Some((status, body)),
            _ => None,
        })
    }

    fn wait_notified(&mut self, wanted: Event) {
        if let Some(at) = self.notified.iter().position(|e| *e == wanted) {
            self.notified.remove(at);
            return;
        }
        self.run(|_, event| match event {
            ClientEvent::Notified(n) if n.event == wanted => Some(()),
            _ => None,
        });
        self.notified.retain(|e| *e != wanted);
    }

    fn devices(&mut self) -> Vec<DeviceRecord> {
        let (status, body) = self.ask(1, Kind::Devices, 0, 0, vec![]);
        assert_eq!(status, Status::Ok);
        DevicesReply::from_body(&body).expect("a list").devices
    }

    /// Makes `HOST` the owner of everything there is now.
    fn own_all(&mut self) -> Answer {
        let (status, body) = self.ask(0, Kind::Controllers, 0, 0, vec![]);
        assert_eq!(status, Status::Ok);
        let all = ControllersReply::from_body(&body).expect("a list");
        let devices = self.devices();
        let rows = [all.unit]
            .into_iter()
            .chain(all.controllers.iter().map(|c| c.guid))
            .chain(devices.iter().map(|d| d.guid));
        let changes = rows
            .map(|row| Change {
                row,
                expected: Epoch(0),
                ownership: Ownership::Dedicated(HOST),
                extent: None,
            })
            .collect();
        let body = CompareAndSet {
            term: 1,
            writer: HOST,
            changes,
        };
        self.ask(0, Kind::CompareAndSet, 0, 0, body.to_body())
    }

    fn write(&mut self, iod: u16, offset: u64, data: &[u8]) -> Status {
        let len = data.len() as u64;
        let mut body = IoRange::of_device(offset, len).to_body();
        body.extend_from_slice(data);
        self.ask(1, Kind::Write, iod, 1, body).0
    }

    fn read(&mut self, iod: u16, offset: u64, len: u64) -> Answer {
        let body = IoRange::of_device(offset, len).to_body();
        self.ask(1, Kind::Read, iod, 1, body)
    }
}

type Answer = (Status, Vec<u8>);

fn status(unit: &Daemon) -> Result<UnitStatus, Box<dyn std::error::Error>> {
    let path = unit.run_dir().join("unitd.sock");
    let mut client = rma::admin::control::ControlClient::connect(&path, Some(PATIENCE))?;
    client.send(r#"{"request":"status"}"#)?;
    let line = client.receive()?;
    match serde_json::from_str(&line)? {
        rma::admin::unit_protocol::UnitReply::Status(status) => Ok(*status),
        other => Err(format!("{other:?}").into()),
    }
}

fn reload(unit: &Daemon) -> Result<String, Box<dyn std::error::Error>> {
    let path = unit.run_dir().join("unitd.sock");
    let mut client = rma::admin::control::ControlClient::connect(&path, Some(PATIENCE))?;
    client.send(r#"{"request":"reload"}"#)?;
    Ok(client.receive()?)
}

/// A unit's configuration with one controller and these devices: number, size.
fn config(dir: &Path, devices: &[(u16, &str)]) -> String {
    let mut text = "name = \"u112\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\n".to_owned();
    for (number, size) in devices {
        let path = dir.join(format!("disk{number}"));
        let keys = [
            format!("number = {number}\nbackend = \"file\"\nsize = \"{size}\""),
            format!("path = \"{}\"\n", path.display()),
        ];
        text = [text, "[[controller.device]]".into(), keys.join("\n")].join("\n");
    }
    text
}

struct Bench {
    rig: Rig,
    host: Node,
    fabric: Daemon,
    unit: Daemon,
}

impl Bench {
    /// Fabric services, a unit with two files behind one controller, and a host.
    fn up() -> Result<Self, Box<dyn std::error::Error>> {
        let rig = Rig::new()?;
        let fabric = rig.add_node("fabric", NodeOptions::default())?;
        let unit = rig.add_node("u112", NodeOptions::default())?;
        let host = rig.add_node("h108", NodeOptions::default())?;
        let fabric = Daemon::start(&rig, fabric, Program::Fabric, "policy = \"auto-join\"\n")?;
        let disks = config(rig.directory(), &[(1, "4MiB"), (2, "1MiB")]);
        let unit = Daemon::start(&rig, unit, Program::Unit, &disks)?;
        let bench = Self {
            rig,
            host,
            fabric,
            unit,
        };
        wait_until(PATIENCE, "the unit to have its cluster", || {
            status(&bench.unit).is_ok_and(|s| s.cluster.as_deref() == Some("A"))
        })?;
        Ok(bench)
    }

    fn station(&self) -> Result<Station, Box<dyn std::error::Error>> {
        Station::open(&self.host, self.unit.node())
    }
}

fn a_unit_serves_through_deaths_and_a_bad_wire() -> TestResult {
    let bench = Bench::up()?;
    let mut station = bench.station()?;
    assert_eq!(station.own_all().0, Status::Ok);
    bench.rig.switch().set_faults(Faults {
        loss_ppm: 10_000,
        duplicate_ppm: 10_000,
        reorder_ppm: 50_000,
        corrupt_ppm: 1_000,
        ..Faults::default()
    })?;
    let data: Vec<u8> = (0..200_000_u32).map(|i| (i / 3) as u8).collect();
    let data = &data[..300 * 512];
    assert_eq!(station.write(1, 512, data), Status::Ok);
    let nothing = IoRange::of_device(0, 0).to_body();
    assert_eq!(station.ask(1, Kind::Flush, 1, 1, nothing).0, Status::Ok);
    let on_disk = fs::read(bench.rig.directory().join("disk1"))?;
    assert_eq!(on_disk[512..512 + data.len()], *data);

    // Without fabric services it goes on, and after a violent death too.
    bench.fabric.kill9()?;
    bench.unit.kill9()?;
    bench.unit.restart()?;
    assert_eq!(
        station.read(1, 512, data.len() as u64),
        (Status::Ok, data.to_vec())
    );
    let seen = status(&bench.unit)?;
    assert_eq!((seen.incarnation, seen.fabric_up), (2, false));
    assert_eq!(seen.cluster.as_deref(), Some("A"));
    let device = &seen.controllers[0].devices[0];
    let register = device.register.as_ref().ok_or("a register")?;
    assert_eq!(register.owners, [HOST.to_string()]);
    assert_eq!((register.epoch, &*register.ownership), (1, "dedicated"));
    assert_eq!((device.size_bytes, &*device.backend), (4 << 20, "file"));
    assert!(device.operations > 0 && device.errors == 0);
    assert!(
        seen.connections
            .iter()
            .any(|c| c.ioc == 1 && c.peer == HOST.to_string())
    );

    // The interface goes down and comes back.
    bench.rig.switch().set_faults(Faults::default())?;
    bench.unit.node().interface_down(0)?;
    wait_until(PATIENCE, "the unit to notice", || {
        bench.unit.log().contains("is down")
    })?;
    bench.unit.node().interface_up(0)?;
    assert_eq!(station.write(2, 0, &[7; 512]), Status::Ok);

    // A clean end, and its control socket is gone.
    bench.unit.stop()?;
    assert!(!bench.unit.run_dir().join("unitd.sock").exists());
    bench.unit.restart()?;
    assert_eq!(station.read(2, 0, 512), (Status::Ok, vec![7; 512]));
    Ok(())
}

fn a_reload_adds_removes_and_resizes_while_hosts_are_connected() -> TestResult {
    let bench = Bench::up()?;
    let dir = bench.rig.directory().to_owned();
    let mut station = bench.station()?;
    assert_eq!(station.own_all().0, Status::Ok);
    station.wait_notified(Event::RegistersChanged);
    let before = station.devices();

    bench
        .unit
        .configure(&config(&dir, &[(1, "8MiB"), (2, "1MiB"), (3, "2MiB")]))?;
    let reply = reload(&bench.unit)?;
    assert!(
        reply.contains("resized from 4194304 to 8388608 bytes")
            && reply.contains("device 1/3 (u112-1-3) added"),
        "{reply}"
    );
    station.wait_notified(Event::DevicesChanged);
    let now = station.devices();
    assert_eq!(now.len(), 3);
    assert_eq!((now[0].guid, now[0].size_bytes), (before[0].guid, 8 << 20));
    assert_eq!(now[1], before[1]);
    // The new end can be used, with the same ownership.
    assert_eq!(station.write(1, (8 << 20) - 512, &[1; 512]), Status::Ok);
    assert_eq!(station.write(3, 0, &[1; 512]), Status::NotOwner);

    // By SIGHUP as well: one device goes.
    bench
        .unit
        .configure(&config(&dir, &[(1, "8MiB"), (3, "2MiB")]))?;
    let pid = i32::try_from(bench.unit.pid().ok_or("a process")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGHUP)?;
    station.wait_notified(Event::DevicesChanged);
    assert_eq!(station.devices().len(), 2);
    assert_eq!(station.write(2, 0, &[1; 512]), Status::NoDevice);
    // It returns as itself, with its owner.
    bench
        .unit
        .configure(&config(&dir, &[(1, "8MiB"), (2, "1MiB"), (3, "2MiB")]))?;
    assert!(reload(&bench.unit)?.contains("device 1/2 (u112-1-2) added"));
    assert_eq!(station.devices()[1].guid, before[1].guid);
    assert_eq!(station.write(2, 0, &[1; 512]), Status::Ok);

    // What cannot be is refused with one line, and nothing has changed.
    let mut two_of_one = config(&dir, &[(1, "16MiB"), (2, "1MiB")]);
    two_of_one += "[[controller]]\nnumber = 1\n";
    let missing = config(&dir, &[(1, "16MiB")]).replace("disk1", "none/disk1");
    let nowhere = config(&dir, &[(1, "16MiB"), (4, "1MiB")]).replace("disk4", "no/where");
    for (text, words) in [
        (two_of_one, "number 1 is used twice"),
        (missing, "none/disk1"),
        (nowhere, "no/where"),
        ("colour = 1\n".to_owned(), "colour"),
    ] {
        bench.unit.configure(&text)?;
        let reply = reload(&bench.unit)?;
        assert!(
            reply.starts_with(r#"{"reply":"error""#) && reply.contains(words),
            "{reply}"
        );
        let now = station.devices();
        assert_eq!((now.len(), now[0].size_bytes), (3, 8 << 20));
    }
    Ok(())
}

fn lost_registers_are_said_and_nothing_is_served() -> TestResult {
    let bench = Bench::up()?;
    let mut station = bench.station()?;
    assert_eq!(station.own_all().0, Status::Ok);
    bench.unit.stop()?;
    fs::remove_file(bench.unit.state_dir().join("unitd/registers"))?;
    for _ in 0..2 {
        bench.unit.restart()?;
        assert_eq!(station.write(1, 0, &[1; 512]), Status::NoRegisters);
        assert!(status(&bench.unit)?.registers_lost);
        assert!(
            bench.unit.log().contains("are lost"),
            "{}",
            bench.unit.log()
        );
        bench.unit.stop()?;
    }
    Ok(())
}

/// Sends 10,000 frames of noise on either EtherType, as fast as the kernel takes them.
fn flood(rng: &mut fastrand::Rng, unit: Mac) {
    let interface = Interface::by_name("eth0").expect("the interface");
    for ethertype in [ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE] {
        let mut socket = PacketSocket::open(&interface, ethertype).expect("a socket");
        let mut outbox = Outbox::new();
        for _ in 0..10_000 {
            let len = rng.usize(1..400);
            let mut frame: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
            frame[0] = 1;
            while !outbox.push(unit, &frame) {
                let _ = socket.send(&mut outbox);
            }
        }
        while !socket.send(&mut outbox).expect("frames can be sent") {
            std::thread::yield_now();
        }
    }
}

fn hostile_frames_at_full_rate_are_counted_and_ignored() -> TestResult {
    let bench = Bench::up()?;
    let mut station = bench.station()?;
    assert_eq!(station.own_all().0, Status::Ok);
    let unit = bench.unit.node().mac();
    let mut rng = fastrand::Rng::with_seed(1);
    // At full rate the kernel drops some before the daemon sees them, more of them where the
    // socket may not have a large buffer: so it goes on until enough were seen.
    wait_until(PATIENCE, "the drops to be counted and logged", || {
        bench
            .host
            .enter(|| flood(&mut rng, unit))
            .expect("the host's namespace");
        let counted = |t: &TrafficInfo| t.drops.iter().map(|d| d.count).sum::<u64>() > 10_000;
        status(&bench.unit).is_ok_and(|s| counted(&s.management) && counted(&s.service))
            && bench.unit.log().contains("frames dropped")
    })?;
    assert_eq!(station.write(1, 0, &[1; 512]), Status::Ok);
    let lines = bench.unit.log().matches("frames dropped").count();
    assert!(lines < 20, "{lines} lines about dropped frames");
    Ok(())
}

/// Runs the daemon with `text` as its configuration, to its end; what it said.
fn refusal(
    rig: &Rig,
    node: &Node,
    text: &str,
    prepare: impl FnOnce(&mut Command),
) -> Result<String, Box<dyn std::error::Error>> {
    let dir = rig.directory();
    let path = dir.join("refused.toml");
    let directories = format!(
        "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n",
        dir.display()
    );
    fs::write(&path, directories + text)?;
    let mut command = Command::new("setpriv");
    prepare(&mut command);
    command
        .arg(bin_dir().join("rma-unitd"))
        .arg("--config")
        .arg(&path);
    let output = node.run(&mut command, PATIENCE)?;
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}{}",
        output.stdout,
        output.stderr
    );
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("rma-unitd: "))
        .collect();
    assert_eq!(lines.len(), 1, "{}", output.stderr);
    Ok(lines[0].to_owned())
}

fn mistakes_are_told_in_one_line_with_exit_status_2() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("u112", NodeOptions::default())?;
    let dir = rig.directory();
    let base = "interface = \"eth0\"\nname = \"u\"\n";
    let memory = "[[controller]]\nnumber = 1\n[[controller.device]]\nnumber = 1\nbackend = \"memory\"\nsize = \"1MiB\"\n";
    let file = memory.replace("memory", "file");
    let guid = "00000000-0000-0000-0000-000000000001";
    fs::write(dir.join("short"), "x")?;
    for (text, words) in [
        ("interface = \"eth9\"\nname = \"u\"\n".to_owned(), "eth9"),
        ("interface = \"lo\"\nname = \"u\"\n".to_owned(), "lo"),
        (
            format!("{base}colour = 1\n"),
            "refused.toml:5: unknown field `colour`",
        ),
        (
            format!("{base}mtu = 9000\n"),
            "mtu 9000 is over the MTU 1500 of eth0",
        ),
        (
            format!("{base}{file}path = \"/no/where\"\n"),
            "file:/no/where cannot be created: its directory does not exist",
        ),
        (
            format!("{base}{file}path = \"/no/where\"\n").replace("size = \"1MiB\"\n", ""),
            "file:/no/where does not exist",
        ),
        (
            format!("{base}{file}path = \"{}/short\"\n", dir.display())
                .replace("size = \"1MiB\"\n", ""),
            "is smaller than one block",
        ),
        (
            format!(
                "{base}{}path = \"{}/short\"\n",
                file.replace("file", "block"),
                dir.display()
            ),
            "is not a block device",
        ),
        (format!("{base}{memory}{memory}"), "number 1 is used twice"),
        (
            format!("guid = \"{guid}\"\n{base}{memory}guid = \"{guid}\"\n"),
            "device 1/1: guid",
        ),
    ] {
        let line = refusal(&rig, &node, &text, |_| {})?;
        assert!(line.contains(words), "{line}");
    }
    let line = refusal(&rig, &node, base, |command| {
        command.args(["--bounding-set", "-net_raw"]);
    })?;
    assert!(line.contains("CAP_NET_RAW"), "{line}");
    Ok(())
}

fn foreign_state_is_refused() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("u112", NodeOptions::default())?;
    let state = rig.directory().join("state/unitd");
    let base = "interface = \"eth0\"\nname = \"u\"\n";
    let unit = Daemon::start(&rig, node, Program::Unit, "name = \"u\"\n")?;
    wait_until(PATIENCE, "the unit", || status(&unit).is_ok())?;
    unit.stop()?;
    // The state of that unit, damaged in some way or taken to another unit.
    let own = unit.state_dir().join("unitd");
    fs::create_dir_all(&state)?;
    let take = |what: &str| fs::copy(own.join(what), state.join(what));
    take("registers")?;
    let line = refusal(&rig, unit.node(), base, |_| {})?;
    assert!(line.contains("registers"), "of another unit: {line}");
    take("identity.toml")?;
    let whole = fs::read(own.join("registers"))?;
    for (what, bytes) in [
        ("truncated", &whole[..100]),
        ("not ours", &vec![b'x'; 20_000][..]),
        ("empty", &[][..]),
    ] {
        fs::write(state.join("registers"), bytes)?;
        let line = refusal(&rig, unit.node(), base, |_| {})?;
        assert!(line.contains("registers"), "{what}: {line}");
        assert_eq!(fs::read(state.join("registers"))?, bytes, "{what}");
    }
    take("registers")?;
    fs::write(state.join("guids.json"), "{")?;
    let line = refusal(&rig, unit.node(), base, |_| {})?;
    assert!(line.contains("guids.json"), "{line}");
    Ok(())
}

rma_rig::test_main!(
    a_unit_serves_through_deaths_and_a_bad_wire,
    a_reload_adds_removes_and_resizes_while_hosts_are_connected,
    lost_registers_are_said_and_nothing_is_served,
    hostile_frames_at_full_rate_are_counted_and_ignored,
    mistakes_are_told_in_one_line_with_exit_status_2,
    foreign_state_is_refused,
);
