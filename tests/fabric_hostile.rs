//! Frames from strangers: nothing crashes, nothing grows without bound, nobody's row changes.

mod fabric_world;

use std::time::Duration;

use fabric_world::{World, mac};
use proptest::prelude::*;
use rma::fabric::service::{CREDITS, MAX_BATCH, MAX_EVENTS, MAX_SEARCHERS};
use rma::fabric::{Catalog, Change, Entity, Fabric, FabricConfig, MemoryCatalog, Policy};
use rma::session::{Client, ClientConfig, ClientEvent, Request};
use rma::wire::kind::Role;
use rma::wire::message::{
    ConnectRequest, Discover, Here, MembershipRequest, Notification, Placement, Register,
    UnitOwnership,
};
use rma::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, EntityType, Epoch, Flags, Guid, Header,
    Incarnation, IocNumber, IodNumber, Kind, Mac, ObservationStamp, Ownership, Status, Time, Wire,
};

type Sim = World<MemoryCatalog>;

fn body() -> impl Strategy<Value = Vec<u8>> {
    let guid = || (0..140_u128).prop_map(Guid);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        (guid(), any::<u64>(), 0..4_u64, any::<u32>(), any::<u16>()).prop_map(
            |(initiator, session, incarnation, attempt, mtu)| ConnectRequest {
                initiator,
                incarnation: Incarnation(incarnation),
                session,
                attempt,
                role: Role::Host,
                responder: Guid::NIL,
                features: 0,
                mtu,
                credits: mtu,
            }
            .to_body()
        ),
        (guid(), guid()).prop_map(|(unit, owner)| UnitOwnership {
            unit,
            ownership: Ownership::Dedicated(owner),
            epoch: Epoch(u64::MAX),
        }
        .to_body()),
        (guid(), any::<u64>()).prop_map(|(after, known_version)| MembershipRequest {
            known_version,
            after
        }
        .to_body()),
        guid().prop_map(|guid| Register {
            guid,
            entity: EntityType::Host,
            macs: vec![mac(0x666)],
            name: "x".repeat(63),
            observed: ObservationStamp::default(),
            cluster: ClusterName::NONE,
            placement: Placement::default(),
        }
        .to_body()),
        guid().prop_map(|asker| Discover {
            asker,
            role: Role::Unit
        }
        .to_body()),
        guid().prop_map(|fabric| Here {
            fabric,
            incarnation: Incarnation(1)
        }
        .to_body()),
        any::<u64>().prop_map(|number| Notification {
            number,
            event: rma::wire::kind::Event::MembershipChanged,
            ioc: IocNumber(0),
            stamp: ObservationStamp::default(),
        }
        .to_body()),
    ]
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(
        Kind::ALL
            .iter()
            .copied()
            .filter(|k| k.is_service() != Some(true))
            .collect::<Vec<_>>(),
    );
    let status = prop::sample::select(Status::ALL.to_vec());
    let header = (
        kind,
        status,
        prop_oneof![Just(0), any::<u64>()],
        prop_oneof![0..4_u64, any::<u64>()],
        0..8_u16,
        any::<bool>(),
        0..400_u32,
    );
    let good = (header, body()).prop_map(
        |((kind, status, connection, command, outstanding, reply, extra), body)| {
            let header = Header {
                status,
                connection: ConnectionId(connection),
                command: CommandId(command),
                outstanding,
                credits: outstanding,
                flags: if reply { Flags::REPLY } else { Flags::NONE },
                message_len: body.len() as u32 + if extra < 300 { 0 } else { extra },
                ..Header::new(kind)
            };
            let mut out = Vec::new();
            if body.is_empty() {
                header.emit_whole(&body, &mut out);
            } else {
                header.emit(&body, &mut out);
            }
            out
        },
    );
    prop_oneof![
        5 => good,
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn strangers_disturb_nobody(
        frames in prop::collection::vec((frame(), any::<bool>(), any::<bool>()), 1..120),
        seed in any::<u64>(),
    ) {
        let mut world = Sim::new(seed);
        world.add_fabric(139, Policy::Pending);
        let (host, unit) = (world.add_host(108, None), world.add_unit(112, None));
        world.run_for(Duration::from_millis(300));
        let now = world.now;
        for guid in [108, 112] {
            world.fabric(0).assign(now, Guid(guid), fabric_world::cluster("A")).unwrap();
        }
        world.run_for(Duration::from_millis(300));
        let rows = |w: &mut Sim| {
            let all = w.fabric(0).snapshot().entities.clone();
            [all[&Guid(108)].clone(), all[&Guid(112)].clone()]
        };
        let before = rows(&mut world);
        for (bytes, to_fabric, burst) in frames {
            let to = if to_fabric { world.fabrics[0].mac } else { world.links[host].mac };
            world.inject(to, mac(0x666), bytes);
            if !burst {
                world.run_for(Duration::from_millis(10));
            }
        }
        world.run_for(Duration::from_secs(10));
        prop_assert_eq!(rows(&mut world), before);
        prop_assert!(world.links[host].link.is_up() && world.links[unit].link.is_up());
        prop_assert_eq!(world.links[host].guids(), vec![108, 112]);
        // And a change still reaches the host.
        let now = world.now;
        world.fabric(0).remove(now, Guid(112)).unwrap();
        world.wait(Duration::from_secs(2), "the list follows", |w| w.links[host].guids() == [108]);
    }
}

fn discover(asker: u128) -> Vec<u8> {
    let mut out = Vec::new();
    let body = Discover {
        asker: Guid(asker),
        role: Role::Host,
    };
    Header::new(Kind::Discover).emit_whole(&body.to_body(), &mut out);
    out
}

#[test]
fn searchers_are_answered_one_for_one_and_only_so_many_wait() {
    let mut world = Sim::new(1);
    world.add_fabric(9, Policy::Pending);
    let fabric = world.fabric(0);
    let mut taken = 0;
    for n in 0..2 * MAX_SEARCHERS as u64 {
        match fabric.handle(Time::ZERO, mac(n + 1), &discover(1)) {
            Ok(()) => taken += 1,
            Err(reason) => assert_eq!(reason, DropReason::Full),
        }
    }
    assert_eq!(taken, MAX_SEARCHERS);
    let mut out = Vec::new();
    let answers = std::iter::from_fn(|| fabric.poll_transmit(Time::ZERO, &mut out)).count();
    assert_eq!(answers, MAX_SEARCHERS);
    assert_eq!(fabric.drops().get(DropReason::Full), MAX_SEARCHERS as u64);
}

#[test]
fn group_addresses_and_other_fabric_services_are_no_senders() {
    let mut world = Sim::new(2);
    world.add_fabric(9, Policy::Pending);
    let fabric = world.fabric(0);
    for source in [Mac::BROADCAST, Mac::default()] {
        let done = fabric.handle(Time::ZERO, source, &discover(1));
        assert_eq!(done, Err(DropReason::Source));
    }
    let mut here = Vec::new();
    let body = Here {
        fabric: Guid(8),
        incarnation: Incarnation(1),
    };
    Header::new(Kind::Here).emit_whole(&body.to_body(), &mut here);
    let done = fabric.handle(Time::ZERO, mac(1), &here);
    assert_eq!(done, Err(DropReason::Unexpected));
    assert_eq!(fabric.deadline(), None);
}

#[test]
fn nobody_registers_under_another_guid_or_an_address_that_is_not_theirs() {
    let mut world = Sim::new(3);
    world.add_fabric(9, Policy::AutoJoin);
    let mut config = Sim::link_config(EntityType::Host, 108, Some("A"));
    // It speaks from mac(108) and says it is elsewhere.
    let spoken_from = config.facts.macs[0];
    config.facts.macs = vec![mac(0x555)];
    let liar = world.add_link(config);
    world.links[liar].mac = spoken_from;
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.links[liar].names(), ["up", "refused"]);
    assert!(world.fabric(0).snapshot().entities.is_empty());
}

#[test]
fn a_log_that_nobody_reads_does_not_grow() {
    let mut world = Sim::new(4);
    world.add_fabric(9, Policy::AutoJoin);
    world.add_host(108, Some("A"));
    world.run_for(Duration::from_millis(300));
    let now = world.now;
    for n in 0..MAX_EVENTS + 100 {
        let to = fabric_world::cluster(if n % 2 == 0 { "B" } else { "A" });
        world.fabric(0).assign(now, Guid(108), to).unwrap();
    }
    let fabric = world.fabric(0);
    assert_eq!(
        std::iter::from_fn(|| fabric.poll_event()).count(),
        MAX_EVENTS
    );
    assert!(fabric.counters().lost_events >= 100);
}

fn client(guid: u128, credits: u16) -> Client {
    let config = ClientConfig {
        local: Guid(guid),
        incarnation: Incarnation(1),
        role: Role::Host,
        cluster: ClusterName::NONE,
        session: 1,
        remote: Guid::NIL,
        ioc: IocNumber(0),
        service: false,
        mtu: 1500,
        credits,
    };
    Client::new(config, guid as u64)
}

fn request(kind: Kind, body: Vec<u8>) -> Request {
    Request {
        kind,
        flags: Flags::NONE,
        iod: IodNumber(0),
        epoch: Epoch(0),
        body,
        expect: 64,
    }
}

/// A client that speaks the session's language well and says anything over it.
struct Insider {
    client: Client,
    fabric: Fabric<MemoryCatalog>,
    now: Time,
    heard: Vec<u8>,
    replies: usize,
}

const SECRET: u128 = 0x5ec2_e7a0_b1c2_d3e4_f5a6_9788_6950_4132;
const SECRET_MAC: Mac = Mac([0x02, 0x5e, 0xc2, 0xe7, 0xa0, 0xb1]);

impl Insider {
    /// Its GUID is 666 and its cluster B; cluster A has a host and a unit that it must not learn of.
    fn new(seed: u64) -> Self {
        let row = |guid: u128, entity, cluster, mac| Entity {
            guid: Guid(guid),
            entity,
            macs: vec![mac],
            name: "secret-name".into(),
            observed: ObservationStamp::default(),
            requested: ClusterName::NONE,
            assigned: cluster,
            assignment: 1,
            guests: std::collections::BTreeMap::new(),
            ownership: Ownership::Unallocated,
            epoch: Epoch(7),
            version: 1,
            label: String::new(),
        };
        let (a, b) = (fabric_world::cluster("A"), fabric_world::cluster("B"));
        let mut catalog = MemoryCatalog::new();
        catalog
            .commit(&Change {
                expected: 0,
                version: 1,
                put: vec![
                    row(SECRET, EntityType::Unit, a, SECRET_MAC),
                    row(SECRET + 1, EntityType::Host, a, SECRET_MAC),
                    row(666, EntityType::Host, b, mac(0x666)),
                ],
                touched: vec![a, b],
                ..Change::default()
            })
            .unwrap();
        let config = FabricConfig {
            guid: Guid(9),
            incarnation: Incarnation(1),
            policy: Policy::AutoJoin,
            mtu: 1500,
        };
        let mut client = client(666, 8);
        client.connect(Time::ZERO, mac(9));
        let fabric = Fabric::new(config, catalog, seed).unwrap();
        let mut insider = Self {
            client,
            fabric,
            now: Time::ZERO,
            heard: Vec::new(),
            replies: 0,
        };
        insider.pump();
        assert!(insider.client.is_connected());
        insider
    }

    fn pump(&mut self) {
        for _ in 0..50 {
            let mut out = Vec::new();
            while self.client.poll_transmit(self.now, &mut out).is_some() {
                let _ = self.fabric.handle(self.now, mac(0x666), &out);
                out.clear();
            }
            while self.fabric.poll_transmit(self.now, &mut out).is_some() {
                self.heard.extend_from_slice(&out);
                let (header, payload) = Header::parse(&out, false).unwrap();
                let _ = self.client.handle(self.now, mac(9), &header, payload);
                out.clear();
            }
            while let Some(event) = self.client.poll_event() {
                self.replies += usize::from(matches!(event, ClientEvent::Reply { .. }));
            }
            self.now = self.now + Duration::from_millis(5);
            self.client.tick(self.now);
            self.fabric.tick(self.now);
        }
    }

    fn ask(&mut self, kind: Kind, body: Vec<u8>) {
        self.client.submit(self.now, request(kind, body)).unwrap();
    }

    fn heard(&self, bytes: &[u8]) -> bool {
        self.heard.windows(bytes.len()).any(|w| w == bytes)
    }
}

fn anything() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    let guid = || prop::sample::select(vec![SECRET, SECRET + 1, 666, 667]).prop_map(Guid);
    let macs = prop::sample::select(vec![SECRET_MAC, mac(0x666)]);
    let cluster = prop::sample::select(vec!["A", "B", "C"]).prop_map(fabric_world::cluster);
    let register = (guid(), macs, cluster, any::<u64>(), any::<bool>()).prop_map(
        |(guid, mac, cluster, change, unit)| {
            let body = Register {
                guid,
                entity: if unit {
                    EntityType::Unit
                } else {
                    EntityType::Host
                },
                macs: vec![mac],
                name: "insider".into(),
                observed: ObservationStamp {
                    incarnation: Incarnation(change),
                    change,
                },
                cluster,
                placement: if unit {
                    Placement {
                        home: cluster,
                        assignment: change,
                        guests: Vec::new(),
                    }
                } else {
                    Placement::default()
                },
            };
            (Kind::Register, body.to_body())
        },
    );
    let own = (guid(), guid(), any::<u64>()).prop_map(|(unit, owner, epoch)| {
        let body = UnitOwnership {
            unit,
            ownership: Ownership::Dedicated(owner),
            epoch: Epoch(epoch),
        };
        (Kind::UnitOwnership, body.to_body())
    });
    let list = (any::<bool>(), guid()).prop_map(|(known, after)| {
        let body = MembershipRequest {
            known_version: u64::from(known),
            after: if known { Guid::NIL } else { after },
        };
        (Kind::Membership, body.to_body())
    });
    let requests: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|k| k.is_request() && k.is_service().is_none_or(|s| !s) && *k != Kind::KeepAlive)
        .collect();
    let noise = (
        prop::sample::select(requests),
        prop::collection::vec(any::<u8>(), 0..4000),
    );
    prop_oneof![3 => register, 2 => own, 3 => list, 2 => noise]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_member_of_one_cluster_learns_and_changes_nothing_of_another(
        requests in prop::collection::vec(anything(), 1..60),
        seed in any::<u64>(),
    ) {
        let mut insider = Insider::new(seed);
        let count = requests.len();
        for (kind, body) in requests {
            insider.ask(kind, body);
        }
        insider.pump();
        insider.pump();
        prop_assert_eq!(insider.replies, count, "everything is answered");
        let rows = &insider.fabric.snapshot().entities;
        prop_assert_eq!(rows.len(), 3);
        for guid in [SECRET, SECRET + 1] {
            let row = &rows[&Guid(guid)];
            prop_assert!(row.version == 1 && row.epoch == Epoch(7));
            prop_assert!(!insider.heard(&guid.to_be_bytes()));
        }
        prop_assert!(!insider.heard(&SECRET_MAC.0) && !insider.heard(b"secret-name"));
        prop_assert_eq!(rows[&Guid(666)].assigned, fabric_world::cluster("B"));
    }
}

#[test]
fn requests_beyond_one_transaction_are_answered_busy() {
    let mut fabric = Insider::new(1).fabric;
    let now = Time::ZERO;
    let mut clients = Vec::new();
    let (mut out, mut frames) = (Vec::new(), Vec::new());
    for n in 0..=(MAX_BATCH / usize::from(CREDITS)) as u64 {
        let mut client = client(2000 + u128::from(n), CREDITS);
        client.connect(now, mac(9));
        while client.poll_transmit(now, &mut out).is_some() {
            fabric.handle(now, mac(2000 + n), &out).unwrap();
            out.clear();
        }
        while fabric.poll_transmit(now, &mut out).is_some() {
            let (header, payload) = Header::parse(&out, false).unwrap();
            client.handle(now, mac(9), &header, payload).unwrap();
            out.clear();
        }
        for _ in 0..CREDITS {
            let request = request(Kind::Lease, Vec::new());
            client.submit(now, request).unwrap();
        }
        while client.poll_transmit(now, &mut out).is_some() {
            frames.push((mac(2000 + n), std::mem::take(&mut out)));
        }
        clients.push(client);
    }
    // All of them arrive before anything is executed.
    for (from, frame) in &frames {
        fabric.handle(now, *from, frame).unwrap();
    }
    let mut answers = std::collections::BTreeMap::new();
    while fabric.poll_transmit(now, &mut out).is_some() {
        let (header, _) = Header::parse(&out, false).unwrap();
        if header.kind == Kind::Lease {
            *answers.entry(header.status).or_insert(0) += 1;
        }
        out.clear();
    }
    let busy = usize::from(CREDITS);
    assert_eq!(
        answers,
        [(Status::Busy, busy), (Status::Unsupported, MAX_BATCH)].into()
    );
}
