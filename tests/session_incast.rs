//! Many hosts write to one unit at the same time, through a switch port that takes no more than a wire's worth
//! and holds only so much: what is too much is dropped. In virtual time.

mod session_pair;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use rma::session::{Client, ClientConfig, ClientEvent, Hub, HubEvent, NicState, Request};
use rma::session::{Server, ServerConfig, ServerEvent};
use rma::wire::message::IoRange;
use rma::wire::{CommandId, Epoch, Flags, Guid, IodNumber, Kind, Mac, Status, Time, Wire};
use session_pair::{SERVER_MAC, client_config, frames, server_config};

const MTU: u16 = 9000;
const CREDITS: u16 = 1024;
/// Nanoseconds that a byte takes, of a wire of 10 Gbit/s.
const BYTE_NS: f64 = 0.8;
/// What a frame has around it on a wire, bytes.
const OVERHEAD: usize = 38;
const LATENCY: Duration = Duration::from_micros(5);
/// Bytes that the port to the unit holds.
const BUFFER: usize = 512 << 10;

struct Host {
    mac: Mac,
    hub: Hub<u32>,
    begun: BTreeMap<CommandId, Time>,
    sent: u64,
    /// Until when its wire is busy.
    busy: Time,
    done: u64,
    longest: Duration,
}

impl Host {
    fn new(number: u8) -> Self {
        let mac = Mac([2, 0, 0, 0, 1, number]);
        let mut hub = Hub::new(true, vec![mac]);
        let config = ClientConfig {
            local: Guid(0x100 + u128::from(number)),
            ..client_config(u64::from(number) + 1, MTU, CREDITS)
        };
        hub.insert(1, Client::new(config, number.into()));
        let client = hub.client_mut(&1).unwrap();
        client.set_nics(START, &[NicState { up: true, mtu: MTU }]);
        client.reach(START, &[SERVER_MAC]);
        Self {
            mac,
            hub,
            begun: BTreeMap::new(),
            sent: 0,
            busy: START,
            done: 0,
            longest: Duration::ZERO,
        }
    }

    /// Keeps `depth` writes of `bytes` under way.
    fn work(&mut self, now: Time, depth: usize, bytes: u64, measured: bool) {
        while let Some(event) = self.hub.poll_event() {
            if let HubEvent::Client(
                _,
                ClientEvent::Reply {
                    command, status, ..
                },
            ) = event
            {
                assert_eq!(status, Status::Ok);
                let at = self.begun.remove(&command).expect("answered once");
                if measured {
                    self.done += 1;
                    self.longest = self.longest.max(now.since(at));
                }
            }
        }
        while self.begun.len() < depth {
            let mut body = IoRange::of_device(self.sent * bytes, bytes).to_body();
            body.resize(body.len() + bytes as usize, 0xa5);
            let request = Request {
                kind: Kind::Write,
                flags: Flags::NONE,
                iod: IodNumber(1),
                epoch: Epoch(1),
                body,
                expect: 0,
            };
            let id = self
                .hub
                .client_mut(&1)
                .unwrap()
                .submit(now, request)
                .unwrap();
            self.begun.insert(id, now);
            self.sent += 1;
        }
    }
}

const START: Time = Time::from_nanos(1_000_000_000);

fn wire_time(bytes: usize) -> Duration {
    Duration::from_nanos(((bytes + OVERHEAD) as f64 * BYTE_NS) as u64)
}

/// A frame on its way: to the unit's port of the switch, to the unit, or to a host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Port(usize),
    Unit(usize),
    Host(usize),
}

/// When it is there, its number, where, and its octets.
type OnItsWay = (Time, u64, To, Vec<u8>);

struct Outcome {
    /// Of what the unit's wire carries, the share that was data written.
    used: f64,
    jain: f64,
    longest: Duration,
    dropped: u64,
}

fn tell(hosts: u8, depth: usize, bytes: u64) -> (String, Outcome) {
    let o = incast(hosts, depth, bytes);
    let what = format!(
        "{hosts} hosts, {depth} writes of {bytes}: {:.2} of the wire, Jain {:.3}, longest {:?}, {} dropped",
        o.used, o.jain, o.longest, o.dropped
    );
    println!("{what}");
    (what, o)
}

fn incast(hosts: u8, depth: usize, bytes: u64) -> Outcome {
    let mut hosts: Vec<Host> = (0..hosts).map(Host::new).collect();
    let mut unit: Hub<u32> = Hub::new(true, vec![SERVER_MAC]);
    let config = ServerConfig {
        max_connections: hosts.len(),
        ..server_config(1, MTU, CREDITS)
    };
    unit.set_server(Server::new(config, 7));
    unit.server_mut().unwrap().set_nics(&[MTU]);
    let mut executed: BTreeMap<_, u32> = BTreeMap::new();
    let mut way: BinaryHeap<Reverse<OnItsWay>> = BinaryHeap::new();
    let (mut number, mut dropped) = (0, 0);
    let (mut port_free, mut unit_busy) = (START, START);
    let (warm, end) = (
        START + Duration::from_millis(500),
        START + Duration::from_millis(2500),
    );
    let mut now = START;
    let mut rng = fastrand::Rng::with_seed(1);
    while now < end {
        for (at, host) in hosts.iter_mut().enumerate() {
            host.work(now, depth, bytes, now >= warm);
            for (_, frame) in frames(&mut host.hub, now, true) {
                // No processor sends at the same moment twice.
                let late = Duration::from_nanos(rng.u64(..10_000));
                let gap = Duration::from_nanos(rng.u64(..150));
                host.busy = host.busy.max(now + late) + wire_time(frame.len()) + gap;
                number += 1;
                way.push(Reverse((host.busy + LATENCY, number, To::Port(at), frame)));
            }
        }
        while let Some(event) = unit.poll_event() {
            if let HubEvent::Server(ServerEvent::Request {
                connection,
                command,
                ..
            }) = event
            {
                *executed.entry((connection, command)).or_default() += 1;
                let server = unit.server_mut().unwrap();
                server.reply(now, connection, command, Status::Ok, Vec::new());
            }
        }
        for (hop, frame) in frames(&mut unit, now, true) {
            let to = hosts.iter().position(|host| host.mac == hop.mac).unwrap();
            let late = Duration::from_nanos(rng.u64(..20_000));
            unit_busy = unit_busy.max(now) + wire_time(frame.len());
            number += 1;
            way.push(Reverse((
                unit_busy + late + LATENCY,
                number,
                To::Host(to),
                frame,
            )));
        }
        let deadlines = hosts.iter().filter_map(|host| host.hub.deadline());
        let first = way.peek().map(|Reverse((at, ..))| *at);
        let next = deadlines.chain(unit.deadline()).chain(first).min();
        now = now.max(next.expect("something is under way"));
        while let Some(Reverse((at, ..))) = way.peek()
            && *at <= now
        {
            let Some(Reverse((_, _, to, frame))) = way.pop() else {
                break;
            };
            match to {
                To::Port(from) => {
                    let waiting = port_free.since(now).as_nanos() as f64 / BYTE_NS;
                    if waiting as usize + frame.len() > BUFFER {
                        dropped += 1;
                        continue;
                    }
                    port_free = port_free.max(now) + wire_time(frame.len());
                    number += 1;
                    way.push(Reverse((
                        port_free + LATENCY,
                        number,
                        To::Unit(from),
                        frame,
                    )));
                }
                // What comes late after it was sent again is dropped.
                To::Unit(from) => drop(unit.handle(now, hosts[from].mac, &frame)),
                To::Host(to) => drop(hosts[to].hub.handle(now, SERVER_MAC, &frame)),
            }
        }
        for host in &mut hosts {
            host.hub.tick(now);
        }
        unit.tick(now);
    }
    assert!(executed.values().all(|n| *n == 1), "once each");
    let done: Vec<f64> = hosts.iter().map(|host| host.done as f64).collect();
    let (sum, squares) = done.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    Outcome {
        used: sum * bytes as f64 * BYTE_NS / end.since(warm).as_nanos() as f64,
        jain: sum * sum / (done.len() as f64 * squares),
        longest: hosts.iter().map(|host| host.longest).max().unwrap(),
        dropped,
    }
}

#[test]
fn many_hosts_at_one_unit_share_its_wire_and_waste_little_of_it() {
    // Few that are each as quick as the port are in step with it, and the one that is ahead stays there longer.
    for (hosts, jain) in [(1, 1.0), (4, 0.85), (8, 0.95), (16, 0.95)] {
        let (what, o) = tell(hosts, 8, 128 << 10);
        assert!(o.used >= 0.9, "{what}");
        assert!(o.jain >= jain - 1e-9, "{what}");
        assert!(o.longest < Duration::from_secs(1), "{what}");
    }
}

/// Writes of many hosts that are not long fill the port's buffer with a few frames of each: windows alone would leave it
/// to chance who gets how much, but the unit gives all the same credits. So would hosts be that take the way to be one
/// for short frames, of which more get through, as it was busy when they came.
#[test]
fn small_writes_of_many_hosts_share_the_wire() {
    for (hosts, depth, bytes) in [
        (8, 32, 4096),
        (16, 32, 4096),
        (16, 128, 4096),
        (32, 32, 4096),
        (16, 16, 32 << 10),
        (32, 8, 64 << 10),
    ] {
        let (what, o) = tell(hosts, depth, bytes);
        assert!(o.used >= 0.9, "{what}");
        assert!(o.jain >= 0.95, "{what}");
        assert!(o.longest < Duration::from_secs(1), "{what}");
    }
}
