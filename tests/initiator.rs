//! The block I/O client against disks behind servers, over a faulty segment, in virtual time.

mod session_pair;

use std::collections::BTreeMap;
use std::time::Duration;

use rma::initiator::{
    DeviceId, Initiator, InitiatorConfig, Io, IoError, IoEvent, IoOp, MAX_IO_BYTES, Policy, Target,
};
use rma::session::{Hub, HubEvent, Server, ServerConfig, ServerEvent};
use rma::wire::message::{DeviceRecord, DevicesReply};
use rma::wire::row::features;
use rma::wire::{
    DecodeError, Epoch, Guid, Incarnation, IocNumber, IodNumber, Kind, Mac, ObservationStamp,
    Status, Time, Wire,
};
use session_pair::{CLIENT, CLIENT_MAC, Disk, Faults, IOC, InFlight, Segment, server_config};

const SECONDS: Duration = Duration::from_secs(1);
const SIZE: usize = 4 << 20;
const DEVICE: Guid = Guid(0xd);

struct UnitModel {
    mac: Mac,
    guid: Guid,
    incarnation: u64,
    hub: Hub<u32>,
    disk: Disk,
    up: bool,
    /// What is answered instead of the list of devices.
    list: Option<Vec<u8>>,
}

impl UnitModel {
    fn new(number: u8) -> Self {
        let mut unit = Self {
            mac: Mac([2, 0, 0, 0, 1, number]),
            guid: Guid(0x50 + u128::from(number)),
            incarnation: 0,
            hub: Hub::new(true, Vec::new()),
            disk: Disk::new(SIZE),
            up: true,
            list: None,
        };
        unit.restart();
        unit
    }

    fn restart(&mut self) {
        self.incarnation += 1;
        self.up = true;
        self.disk.forget();
        self.hub = Hub::new(true, vec![self.mac]);
        let config = ServerConfig {
            local: self.guid,
            incarnation: Incarnation(self.incarnation),
            ..server_config(1, 9000, 16)
        };
        self.hub.set_server(Server::new(config, 0));
    }

    fn devices() -> DevicesReply {
        DevicesReply {
            controller: Guid(0x10c),
            listed: ObservationStamp::default(),
            devices: vec![DeviceRecord {
                guid: DEVICE,
                iod: IodNumber(1),
                name: "one".into(),
                vendor: String::new(),
                model: String::new(),
                serial: String::new(),
                size_bytes: SIZE as u64,
                block_size: 512,
                features: 0,
                observed: ObservationStamp::default(),
            }],
        }
    }
}

struct Bench {
    now: Time,
    segment: Segment,
    initiator: Initiator,
    units: Vec<UnitModel>,
    done: BTreeMap<u64, Result<Vec<u8>, IoError>>,
    events: Vec<IoEvent>,
    mtu: u16,
}

impl Bench {
    fn new(faults: Faults, seed: u64, mtu: u16) -> Self {
        let config = InitiatorConfig {
            local: CLIENT,
            incarnation: Incarnation(1),
            cluster: "A".parse().unwrap(),
            local_macs: vec![CLIENT_MAC],
            mtu,
            credits: 16,
        };
        let mut bench = Self {
            now: Time::from_nanos(5_000_000_000),
            segment: Segment::new(faults, seed),
            initiator: Initiator::new(config, seed),
            units: vec![UnitModel::new(1), UnitModel::new(2)],
            done: BTreeMap::new(),
            events: Vec::new(),
            mtu,
        };
        bench.add(0);
        bench
    }

    fn add(&mut self, unit: usize) {
        let (now, unit) = (self.now, &self.units[unit]);
        self.initiator.add_controller(now, unit.guid, IOC, unit.mac);
        self.pump();
    }

    fn remove(&mut self, unit: usize) {
        let (now, unit) = (self.now, &self.units[unit]);
        self.initiator.remove_controller(now, unit.guid, IOC);
        self.pump();
    }

    fn target(&self, unit: usize, epoch: u64) -> Target {
        Target {
            unit: self.units[unit].guid,
            ioc: IOC,
            iod: IodNumber(1),
            device: DEVICE,
            extent: Guid::NIL,
            epoch: Epoch(epoch),
            size_bytes: SIZE as u64,
            block_size: 512,
            features: features::DISCARD,
        }
    }

    fn open(&mut self) -> DeviceId {
        let target = self.target(0, 1);
        self.initiator.open(self.now, target)
    }

    fn submit(&mut self, device: DeviceId, token: u64, op: IoOp, offset: u64, len: u64) {
        let data = if op == IoOp::Write {
            data_of(token, len as usize)
        } else {
            Vec::new()
        };
        let io = Io {
            op,
            offset,
            len,
            data: data.into(),
            fua: token.is_multiple_of(2),
        };
        self.initiator.submit(self.now, device, io, token);
        self.pump();
    }

    fn pump(&mut self) {
        let now = self.now;
        let mut out = Vec::new();
        while let Some(event) = self.initiator.poll_event() {
            match event {
                IoEvent::Done { token, result } => {
                    assert!(self.done.insert(token, result).is_none(), "one end each");
                }
                event => self.events.push(event),
            }
        }
        while let Some(dst) = self.initiator.poll_transmit(now, &mut out) {
            let bytes = std::mem::take(&mut out);
            assert!(bytes.len() <= self.mtu.into());
            let src = CLIENT_MAC;
            self.segment.send(now, InFlight { src, dst, bytes });
        }
        for unit in self.units.iter_mut().filter(|u| u.up) {
            while let Some(event) = unit.hub.poll_event() {
                let HubEvent::Server(event) = event else {
                    continue;
                };
                if let ServerEvent::Request {
                    connection,
                    command,
                    kind: Kind::Devices,
                    ..
                } = event
                {
                    let own = || UnitModel::devices().to_body();
                    let body = unit.list.clone().unwrap_or_else(own);
                    let server = unit.hub.server_mut().unwrap();
                    server.reply(now, connection, command, Status::Ok, body);
                    continue;
                }
                unit.disk.accept(now, &mut self.segment.rng, event);
            }
            unit.disk.finish(now, unit.hub.server_mut().unwrap());
            while let Some(dst) = unit.hub.poll_transmit(now, &mut out) {
                let bytes = std::mem::take(&mut out);
                let src = unit.mac;
                self.segment.send(now, InFlight { src, dst, bytes });
            }
        }
    }

    fn step(&mut self) {
        let units = self.units.iter().filter(|u| u.up);
        let next = units
            .flat_map(|u| [u.hub.deadline(), u.disk.next()])
            .chain([self.segment.next(), self.initiator.deadline()])
            .flatten()
            .min();
        self.now = self.now.max(next.expect("something happens"));
        let now = self.now;
        while let Some(frame) = self.segment.arrived(now) {
            if frame.dst == CLIENT_MAC {
                let _ = self.initiator.handle(now, frame.src, &frame.bytes);
            } else if let Some(unit) = self.units.iter_mut().find(|u| u.mac == frame.dst && u.up) {
                let _ = unit.hub.handle(now, frame.src, &frame.bytes);
            }
            self.pump();
        }
        self.initiator.tick(now);
        for unit in self.units.iter_mut().filter(|u| u.up) {
            unit.hub.tick(now);
        }
        self.pump();
    }

    fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            self.step();
            assert!(self.now.since(start) <= limit, "not within {limit:?}");
        }
        self.now.since(start)
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn result(&mut self, token: u64) -> Result<Vec<u8>, IoError> {
        self.until(30 * SECONDS, |b| b.done.contains_key(&token));
        self.done.remove(&token).unwrap()
    }
}

fn data_of(token: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(token);
    let mut data = vec![0; len];
    rng.fill(&mut data);
    data
}

/// Random I/O without overlaps in time, compared with a model; returns when all has ended.
fn exercise(
    bench: &mut Bench,
    device: DeviceId,
    count: u64,
    seed: u64,
    mut disturb: impl FnMut(&mut Bench, u64),
) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut model = vec![0_u8; SIZE];
    let mut running: BTreeMap<u64, (IoOp, usize, usize)> = BTreeMap::new();
    let mut next = 1;
    while next <= count || !running.is_empty() {
        let ended: Vec<u64> = running
            .keys()
            .copied()
            .filter(|t| bench.done.contains_key(t))
            .collect();
        for token in ended {
            let (op, from, len) = running.remove(&token).unwrap();
            let result = bench.done.remove(&token).unwrap().unwrap();
            let at = from..from + len;
            match op {
                IoOp::Read => assert!(result == model[at], "seed {seed}"),
                IoOp::Write => model[at].copy_from_slice(&data_of(token, len)),
                IoOp::Discard | IoOp::WriteZeroes => model[at].fill(0),
                IoOp::Flush => {}
            }
        }
        while next <= count && running.len() < 6 {
            let max = if rng.u32(0..20) == 0 { 4096 } else { 64 };
            let len = rng.usize(1..=max) * 512;
            let from = rng.usize(0..=(SIZE - len) / 512) * 512;
            let op = match rng.u32(0..12) {
                0 => IoOp::Flush,
                1 => IoOp::Discard,
                2 => IoOp::WriteZeroes,
                3..7 => IoOp::Read,
                _ => IoOp::Write,
            };
            let (from, len) = if op == IoOp::Flush {
                (0, 0)
            } else {
                (from, len)
            };
            if running
                .values()
                .any(|(_, f, l)| from < f + l && *f < from + len)
            {
                break;
            }
            bench.submit(device, next, op, from as u64, len as u64);
            running.insert(next, (op, from, len));
            disturb(bench, next);
            next += 1;
        }
        bench.step();
    }
    assert!(bench.units[0].disk.bytes == model, "seed {seed}");
}

#[test]
fn content_equals_the_model_over_a_faulty_segment() {
    for seed in 1..16 {
        for (faults, mtu) in [
            (Faults::NONE, 9000),
            (Faults::ALL, 1500),
            (Faults::ALL, 9000),
        ] {
            let mut bench = Bench::new(faults, seed, mtu);
            bench.units[0].disk.slowness = Duration::from_micros(seed * 100);
            let device = bench.open();
            exercise(&mut bench, device, 60, seed, |_, _| {});
        }
    }
}

#[test]
fn content_equals_the_model_when_the_unit_restarts_and_is_removed_and_comes_back() {
    for seed in 1..12 {
        let mut bench = Bench::new(Faults::ALL, seed, 9000);
        bench.units[0].disk.slowness = Duration::from_millis(3);
        let device = bench.open();
        exercise(&mut bench, device, 80, seed, |bench, number| match number {
            20 | 35 => bench.units[0].restart(),
            50 => bench.remove(0),
            55 => bench.add(0),
            65 => bench.units[0].disk.refuse = Some((9, Status::Busy)),
            _ => {}
        });
    }
}

#[test]
fn long_io_is_split_and_put_together() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    let len = 3 * (1 << 20) + 512;
    bench.submit(device, 1, IoOp::Write, 512, len);
    assert_eq!(bench.result(1), Ok(Vec::new()));
    assert_eq!(bench.units[0].disk.executed.len(), 4);
    bench.submit(device, 2, IoOp::Read, 512, len);
    assert!(bench.result(2) == Ok(data_of(1, len as usize)));
}

#[test]
fn io_that_cannot_be_is_refused_at_once() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    for (token, op, offset, len, error) in [
        (1, IoOp::Read, SIZE as u64, 512, IoError::OutOfRange),
        (3, IoOp::Read, u64::MAX - 511, 512, IoError::OutOfRange),
        (5, IoOp::Write, 100, 512, IoError::Misaligned),
        (7, IoOp::Discard, 0, 100, IoError::Misaligned),
    ] {
        bench.submit(device, token, op, offset, len);
        assert_eq!(bench.done.remove(&token), Some(Err(error)));
    }
    bench.submit(device, 9, IoOp::Read, 0, 0);
    assert_eq!(bench.done.remove(&9), Some(Ok(Vec::new())));
    let read_only = Target {
        features: features::READ_ONLY,
        size_bytes: u64::MAX,
        ..bench.target(0, 1)
    };
    let read_only = bench.initiator.open(bench.now, read_only);
    bench.submit(read_only, 11, IoOp::WriteZeroes, 0, 512);
    assert_eq!(
        bench.done.remove(&11),
        Some(Err(IoError::Status(Status::ReadOnly)))
    );
    bench.submit(read_only, 13, IoOp::Read, 0, MAX_IO_BYTES + 512);
    assert_eq!(bench.done.remove(&13), Some(Err(IoError::Full)));
}

#[test]
fn a_refusal_fails_fast_and_a_new_epoch_heals_it() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    bench.units[0].disk.refuse = Some((1, Status::NotOwner));
    bench.submit(device, 1, IoOp::Write, 0, 3 << 20);
    assert_eq!(bench.result(1), Err(IoError::Status(Status::NotOwner)));
    bench.units[0].disk.epoch = Some(Epoch(2));
    bench.submit(device, 3, IoOp::Write, 0, 512);
    assert_eq!(bench.result(3), Err(IoError::Status(Status::StaleEpoch)));
    // What is under way when the epoch changes is sent again under the new one.
    bench.submit(device, 5, IoOp::Write, 0, 512);
    let target = bench.target(0, 2);
    bench.initiator.retarget(bench.now, device, target);
    assert_eq!(bench.result(5), Ok(Vec::new()));
}

#[test]
fn a_busy_unit_is_asked_again() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    bench.units[0].disk.refuse = Some((7, Status::Busy));
    bench.submit(device, 1, IoOp::Write, 0, 2 << 20);
    assert_eq!(bench.result(1), Ok(Vec::new()));
    assert!(bench.units[0].disk.bytes[..2 << 20] == data_of(1, 2 << 20));
}

#[test]
fn closing_fails_what_is_outstanding_and_nothing_of_it_overtakes() {
    for seed in 1..20 {
        let mut bench = Bench::new(Faults::ALL, seed, 9000);
        bench.units[0].disk.slowness = Duration::from_millis(20);
        let device = bench.open();
        for token in 1..40 {
            bench.submit(device, token, IoOp::Write, 0, 4096);
        }
        bench.pass(Duration::from_millis(seed * 3));
        bench.initiator.close(bench.now, device);
        bench.pump();
        for token in 1..40 {
            let result = bench.done.remove(&token).expect("ended by the close");
            assert!(matches!(result, Ok(_) | Err(IoError::Closed)));
        }
        bench.submit(device, 41, IoOp::Read, 0, 512);
        assert_eq!(bench.done.remove(&41), Some(Err(IoError::Closed)));
        if seed % 3 == 0 {
            // Another session replaces the first with all it left behind.
            bench.remove(0);
            bench.add(0);
        }
        let device = bench.open();
        bench.submit(device, 100, IoOp::Write, 0, 4096);
        assert_eq!(bench.result(100), Ok(Vec::new()));
        bench.pass(2 * SECONDS);
        assert!(
            bench.units[0].disk.bytes[..4096] == data_of(100, 4096),
            "seed {seed}"
        );
    }
}

#[test]
fn io_waits_while_the_unit_is_away() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    bench.pass(SECONDS);
    bench.units[0].up = false;
    for token in 1..200 {
        bench.submit(device, token, IoOp::Write, token * 512, 512);
    }
    bench.pass(60 * SECONDS);
    assert!(bench.done.is_empty());
    let away = |e: &IoEvent| matches!(e, IoEvent::Down { .. });
    assert_eq!(bench.events.iter().filter(|e| away(e)).count(), 1);
    bench.units[0].restart();
    let took = bench.until(10 * SECONDS, |b| b.done.len() == 199);
    assert!(took < 2 * SECONDS, "{took:?}");
    assert!(bench.done.values().all(Result::is_ok));
}

#[test]
fn io_fails_after_a_while_where_the_policy_says_so() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    let after = |seconds: u32| Policy::FailAfter(SECONDS * seconds);
    bench.initiator.set_policy(bench.now, device, after(5));
    bench.pass(SECONDS);
    bench.submit(device, 1, IoOp::Write, 0, 512);
    assert_eq!(bench.result(1), Ok(Vec::new()));
    bench.units[0].up = false;
    bench.submit(device, 2, IoOp::Read, 0, 512);
    let took = bench.until(20 * SECONDS, |b| b.done.contains_key(&2));
    assert_eq!(bench.done.remove(&2), Some(Err(IoError::Unreachable)));
    // From when the connection is lost, which takes up to 2.5 s.
    assert!((5 * SECONDS..8 * SECONDS).contains(&took), "{took:?}");
    assert!(bench.initiator.is_failing(device));
    bench.submit(device, 3, IoOp::Read, 0, 512);
    assert_eq!(
        bench.done.remove(&3),
        Some(Err(IoError::Unreachable)),
        "at once"
    );
    // The policy is changed while the unit is away, and counts for what waits already.
    bench.initiator.set_policy(bench.now, device, Policy::Queue);
    bench.submit(device, 4, IoOp::Write, 0, 512);
    bench.pass(60 * SECONDS);
    assert!(bench.done.is_empty());
    bench.initiator.set_policy(bench.now, device, after(60));
    bench.pump();
    assert_eq!(bench.done.remove(&4), Some(Err(IoError::Unreachable)));
    bench.units[0].restart();
    bench.until(10 * SECONDS, |b| !b.initiator.is_failing(device));
    bench.submit(device, 5, IoOp::Read, 0, 512);
    assert!(bench.result(5).is_ok());
    // Of a unit that was never there.
    let target = bench.target(1, 1);
    let device = bench.initiator.open(bench.now, target);
    bench.initiator.set_policy(bench.now, device, after(1));
    bench.submit(device, 6, IoOp::Read, 0, 512);
    assert_eq!(bench.result(6), Err(IoError::Unreachable));
}

#[test]
fn a_write_that_has_failed_never_overtakes_a_later_one() {
    for seed in 1..20 {
        let mut bench = Bench::new(Faults::ALL, seed, 9000);
        bench.units[0].disk.slowness = Duration::from_millis(20);
        let device = bench.open();
        bench.pass(SECONDS);
        let policy = Policy::FailAfter(SECONDS);
        bench.initiator.set_policy(bench.now, device, policy);
        for token in 1..40 {
            bench.submit(device, token, IoOp::Write, 0, 4096);
        }
        bench.pass(Duration::from_millis(seed));
        // Its wire is cut, and it goes on with what it has.
        let mac = bench.units[0].mac;
        bench.segment.dead.insert(mac);
        bench.until(20 * SECONDS, |b| b.done.len() == 39);
        bench.done.clear();
        bench.segment.dead.clear();
        if seed % 3 == 0 {
            bench.units[0].restart();
        }
        bench.until(20 * SECONDS, |b| !b.initiator.is_failing(device));
        bench.submit(device, 100, IoOp::Write, 0, 4096);
        assert_eq!(bench.result(100), Ok(Vec::new()));
        bench.pass(2 * SECONDS);
        assert!(
            bench.units[0].disk.bytes[..4096] == data_of(100, 4096),
            "seed {seed}"
        );
    }
}

#[test]
fn a_device_that_moves_takes_its_waiting_io_along() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    bench.add(1);
    let device = bench.open();
    bench.remove(0);
    bench.submit(device, 1, IoOp::Write, 0, 512);
    bench.pass(3 * SECONDS);
    assert!(bench.done.is_empty());
    let target = bench.target(1, 1);
    bench.initiator.retarget(bench.now, device, target);
    bench.pump();
    assert_eq!(bench.result(1), Ok(Vec::new()));
    assert!(bench.units[1].disk.bytes[..512] == data_of(1, 512));
}

#[test]
fn what_waits_goes_on_as_soon_as_a_controller_that_was_left_is_wanted_again() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let device = bench.open();
    bench.pass(SECONDS);
    bench.units[0].disk.slowness = Duration::from_secs(60);
    bench.submit(device, 1, IoOp::Write, 0, 512);
    bench.pass(Duration::from_millis(5));
    bench.units[0].disk.slowness = Duration::ZERO;
    bench.remove(0);
    bench.submit(device, 2, IoOp::Write, 512, 512);
    bench.pass(SECONDS);
    assert!(bench.done.is_empty());
    bench.add(0);
    bench.pass(SECONDS);
    assert_eq!(bench.done.keys().collect::<Vec<_>>(), [&2]);
}

#[test]
fn devices_are_listed_when_their_controller_can_be_reached() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let unit = bench.units[0].guid;
    bench.units[0].up = false;
    bench.initiator.list_devices(unit, IOC);
    bench.initiator.list_devices(Guid(99), IocNumber(7));
    bench.pass(SECONDS);
    bench.units[0].up = true;
    bench.pass(3 * SECONDS);
    let lists: Vec<_> = bench
        .events
        .iter()
        .filter_map(|e| match e {
            IoEvent::Devices { unit, result, .. } => Some((*unit, result.clone())),
            _ => None,
        })
        .collect();
    let expected = UnitModel::devices();
    assert_eq!(
        lists,
        [(Guid(99), Err(Status::NoController)), (unit, Ok(expected))]
    );
}

#[test]
fn an_odd_device_does_not_cost_the_others_and_a_list_that_cannot_be_read_is_told_of() {
    let mut bench = Bench::new(Faults::NONE, 1, 9000);
    let unit = bench.units[0].guid;
    bench.pass(SECONDS);
    let mut both = UnitModel::devices();
    both.devices.push(DeviceRecord {
        guid: Guid(0xe),
        iod: IodNumber(2),
        block_size: 513,
        ..both.devices[0].clone()
    });
    let cut = both.to_body().split_last().unwrap().1.to_vec();
    for list in [both.to_body(), cut] {
        bench.units[0].list = Some(list);
        bench.initiator.list_devices(unit, IOC);
        bench.pump();
        bench.pass(SECONDS);
    }
    let told: Vec<_> = bench
        .events
        .drain(..)
        .filter(|e| matches!(e, IoEvent::Devices { .. } | IoEvent::Malformed { .. }))
        .collect();
    let devices = |result| IoEvent::Devices {
        unit,
        ioc: IOC,
        result,
    };
    let malformed = IoEvent::Malformed {
        unit,
        ioc: IOC,
        reason: DecodeError::Truncated,
    };
    let refused = devices(Err(Status::BadRequest));
    assert_eq!(told, [devices(Ok(both)), malformed, refused]);
}
