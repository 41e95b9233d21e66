//! The samples: no two fields of a frame have the same value where the layout allows it.

use rma::wire::kind::{Event, Progress, Role};
use rma::wire::message::*;
use rma::wire::*;

use super::Sample;

/// A GUID that begins with `n`.
const fn guid(n: u8) -> Guid {
    Guid(((n as u128) << 120) | 0x01_0203_0405_0607_0809_0a0b_0c0d_0e0f)
}

/// An address with `n` in the middle.
const fn mac(n: u8) -> Mac {
    Mac([0x02, 0x11, 0x22, n, 0x44, 0x55])
}

/// A number that begins with `n`.
const fn big(n: u8) -> u64 {
    ((n as u64) << 56) | 0x0002_0304_0506_0708
}

const fn observed(n: u8) -> ObservationStamp {
    ObservationStamp {
        incarnation: Incarnation(big(n)),
        change: big(n + 1),
    }
}

const fn owned(n: u8) -> OwnershipStamp {
    OwnershipStamp {
        epoch: Epoch(big(n)),
        term: big(n + 1),
        writer: guid(n + 2),
    }
}

const fn table_stamp(n: u8) -> TableStamp {
    TableStamp {
        term: big(n),
        counter: big(n + 1),
        writer: guid(n + 2),
    }
}

const fn summary(n: u8) -> TableSummary {
    TableSummary {
        stamp: table_stamp(n),
        digest: guid(n + 3).0,
        row_count: 0x7001_0203,
        floor: table_stamp(n + 4),
    }
}

const fn settings(n: u8) -> Settings {
    Settings {
        granularity: Granularity::Controller,
        stamp: table_stamp(n),
    }
}

fn rows() -> Vec<Row> {
    let device = Row {
        state: RowState::Invalid,
        macs: vec![mac(0x31), mac(0x32)],
        ioc: IocNumber(0x3334),
        iod: IodNumber(0x3536),
        parent: guid(0x37),
        name: "Plätze \"1\"".into(),
        vendor: "row vendor".into(),
        model: "row model".into(),
        serial: "row serial".into(),
        size_bytes: big(0x38),
        block_size: 4096,
        features: row::features::READ_ONLY | row::features::FUA | row::features::ROTATIONAL,
        mode: 64,
        observed: observed(0x39),
        ownership: Ownership::Shared(vec![guid(0x3b), guid(0x3c)]),
        owned: owned(0x3d),
        ..Row::new(guid(0x30), EntityType::Device)
    };
    let extent = Row {
        macs: vec![mac(0x41)],
        ioc: IocNumber(0x4243),
        iod: IodNumber(0x4445),
        extent: Some(Extent {
            offset: big(0x46),
            len: big(0x47),
        }),
        parent: guid(0x48),
        name: "an extent".into(),
        size_bytes: big(0x49),
        block_size: 512,
        observed: observed(0x4a),
        ownership: Ownership::Dedicated(guid(0x4c)),
        owned: owned(0x4d),
        ..Row::new(guid(0x40), EntityType::Extent)
    };
    vec![device, extent]
}

fn device(n: u8) -> DeviceRecord {
    DeviceRecord {
        guid: guid(n),
        iod: IodNumber(u16::from_be_bytes([n, 1])),
        name: "disk one".into(),
        vendor: "device vendor".into(),
        model: "device model".into(),
        serial: "device serial".into(),
        size_bytes: big(n + 1),
        block_size: 4096,
        features: row::features::DISCARD | row::features::WRITE_ZEROES | row::features::DURABLE,
        observed: observed(n + 2),
    }
}

fn register(n: u8) -> OwnershipRegister {
    OwnershipRegister {
        row: guid(n),
        ownership: Ownership::Dedicated(guid(n + 1)),
        owned: owned(n + 2),
        extent: None,
    }
}

fn extent_facts(n: u8, present: bool) -> ExtentFacts {
    ExtentFacts {
        device: guid(n),
        range: Extent {
            offset: big(n + 1),
            len: big(n + 2),
        },
        name: "a range".into(),
        present,
    }
}

fn host() -> Member {
    Member {
        guid: guid(0x51),
        entity: EntityType::Host,
        macs: vec![mac(0x52), mac(0x53)],
        name: "host 108".into(),
        observed: observed(0x54),
        ownership: Ownership::Unallocated,
        epoch: Epoch(0),
        version: big(0x56),
        guest: false,
    }
}

fn unit() -> Member {
    Member {
        guid: guid(0x61),
        entity: EntityType::Unit,
        macs: vec![mac(0x62)],
        name: "unit 112".into(),
        observed: observed(0x63),
        ownership: Ownership::Shared(vec![guid(0x65), guid(0x66)]),
        epoch: Epoch(big(0x67)),
        version: big(0x68),
        guest: true,
    }
}

struct Maker(Vec<Sample>);

impl Maker {
    fn add(&mut self, name: &'static str, header: Header, body: Body<'static>) {
        let header = Header {
            message_len: body.encode().len() as u32,
            ..header
        };
        self.0.push(Sample {
            name,
            service: header.kind.is_service().unwrap_or(false),
            header,
            body,
        });
    }
}

/// The header of a request on a connection.
fn request(kind: Kind) -> Header {
    Header {
        outstanding: 0x0a0b,
        connection: ConnectionId(big(0xc1)),
        command: CommandId(big(kind.code())),
        cluster: "cluster-A".parse().expect("a name"),
        ..Header::new(kind)
    }
}

/// The header of its reply.
fn reply(kind: Kind) -> Header {
    Header {
        flags: Flags::REPLY,
        outstanding: 0,
        credits: 0x0c0d,
        ..request(kind)
    }
}

/// The header of what a responder says by itself.
fn told(kind: Kind) -> Header {
    Header {
        flags: Flags::NONE,
        ..reply(kind)
    }
}

/// The same for a device of a controller.
fn at_device(header: Header) -> Header {
    Header {
        ioc: IocNumber(0x0102),
        iod: IodNumber(0x0304),
        epoch: Epoch(if header.is_reply() { 0 } else { big(0xe1) }),
        connection: ConnectionId(big(0xc2)),
        ..header
    }
}

/// The same for a controller.
fn at_controller(header: Header) -> Header {
    Header {
        iod: IodNumber(0),
        epoch: Epoch(0),
        ..at_device(header)
    }
}

/// A sample of every kind, requests before their replies.
pub fn samples() -> Vec<Sample> {
    let mut m = Maker(Vec::new());
    sessions(&mut m);
    fabric(&mut m);
    uses(&mut m);
    tables(&mut m);
    leases(&mut m);
    units(&mut m);
    data(&mut m);
    m.0
}

fn sessions(m: &mut Maker) {
    let nonce = |header| Header {
        connection: ConnectionId(0),
        ioc: IocNumber(0x0102),
        outstanding: 0,
        ..header
    };
    m.add(
        "connect-request",
        nonce(request(Kind::Connect)),
        Body::ConnectRequest(ConnectRequest {
            initiator: guid(0x11),
            incarnation: Incarnation(big(0x12)),
            session: big(0x13),
            attempt: 0x1401_0203,
            role: Role::Unit,
            responder: guid(0x15),
            features: big(0x16),
            mtu: 0x2328,
            credits: 0x1718,
        }),
    );
    m.add(
        "connect-reply",
        Header {
            connection: ConnectionId(big(0xc0)),
            ..nonce(reply(Kind::Connect))
        },
        Body::ConnectReply(ConnectReply {
            responder: guid(0x21),
            incarnation: Incarnation(big(0x22)),
            features: big(0x23),
            mtu: 0x05dc,
            credits: 0x2425,
            resumed: true,
        }),
    );
    m.add("keep-alive-request", request(Kind::KeepAlive), Body::Empty);
    m.add("keep-alive-reply", reply(Kind::KeepAlive), Body::Empty);
    m.add(
        "probe",
        Header {
            flags: Flags::RETRY,
            ..request(Kind::Probe)
        },
        Body::Missing(Missing {
            ranges: vec![
                ByteRange {
                    offset: 0x0000_0102,
                    len: 0x0003_0405,
                },
                ByteRange {
                    offset: 0x0006_0708,
                    len: 0x0000_090a,
                },
            ],
        }),
    );
    m.add(
        "progress",
        Header {
            command: CommandId(big(Kind::Probe.code())),
            ..told(Kind::Progress)
        },
        Body::ProgressReport(ProgressReport {
            progress: Progress::Incomplete,
            missing: Missing {
                ranges: vec![ByteRange {
                    offset: 0x0001_0203,
                    len: 0x0004_0506,
                }],
            },
        }),
    );
    for (name, header) in [
        ("path-request", request(Kind::Path)),
        ("path-reply", reply(Kind::Path)),
    ] {
        let probe = PathProbe {
            number: 0x4142_4344,
            mtu: 0x2328,
            padding: 5,
        };
        m.add(name, header, Body::PathProbe(probe));
    }
    let notification = Body::Notification(Notification {
        number: big(0x31),
        event: Event::DevicesChanged,
        ioc: IocNumber(0x3233),
        stamp: observed(0x34),
    });
    m.add("notify", told(Kind::Notify), notification.clone());
    m.add("notify-ack", request(Kind::NotifyAck), notification);
    m.add(
        "refused",
        Header {
            status: Status::UnknownConnection,
            connection: ConnectionId(big(0xcf)),
            credits: 0,
            ..told(Kind::Refused)
        },
        Body::Empty,
    );
    m.add("disconnect", request(Kind::Disconnect), Body::Empty);
}

fn fabric(m: &mut Maker) {
    m.add(
        "discover",
        Header {
            command: CommandId(big(0x10)),
            ..Header::new(Kind::Discover)
        },
        Body::Discover(Discover {
            asker: guid(0x11),
            role: Role::Host,
        }),
    );
    m.add(
        "here",
        Header::new(Kind::Here),
        Body::Here(Here {
            fabric: guid(0x12),
            incarnation: Incarnation(big(0x13)),
        }),
    );
    let Member {
        guid: id,
        entity,
        macs,
        name,
        observed,
        ..
    } = unit();
    m.add(
        "register-request",
        request(Kind::Register),
        Body::Register(Register {
            guid: id,
            entity,
            macs,
            name,
            observed,
            cluster: "wanted".parse().expect("a name"),
            placement: Placement {
                home: "home".parse().expect("a name"),
                assignment: big(0x69),
                guests: ["guest-1", "guest-2"]
                    .map(|name| name.parse().expect("a name"))
                    .into(),
            },
        }),
    );
    m.add(
        "register-reply",
        reply(Kind::Register),
        Body::Registered(Registered {
            cluster: "assigned".parse().expect("a name"),
            version: big(0x71),
            assignment: big(0x6a),
        }),
    );
    m.add(
        "membership-request",
        request(Kind::Membership),
        Body::MembershipRequest(MembershipRequest {
            known_version: big(0x72),
            after: guid(0x73),
        }),
    );
    m.add(
        "membership-reply",
        reply(Kind::Membership),
        Body::MembershipReply(MembershipReply {
            version: big(0x74),
            unchanged: false,
            more: true,
            members: vec![host(), unit()],
        }),
    );
    m.add(
        "unit-ownership-request",
        request(Kind::UnitOwnership),
        Body::UnitOwnership(UnitOwnership {
            unit: guid(0x75),
            ownership: Ownership::Dedicated(guid(0x76)),
            epoch: Epoch(big(0x77)),
        }),
    );
    m.add(
        "unit-ownership-reply",
        reply(Kind::UnitOwnership),
        Body::Empty,
    );
    m.add(
        "deposit-request",
        request(Kind::Deposit),
        Body::Deposit(Deposit {
            summary: summary(0x51),
            settings: settings(0x55),
            base: 0x5801_0203_0405_0607_0809_0a0b_0c0d_0e0f,
            piece: 0x5901_0203,
            more: true,
            parts: Parts {
                level: 2,
                numbers: vec![0x12, 0xfe],
            },
            rows: rows(),
        }),
    );
    m.add(
        "deposit-reply",
        reply(Kind::Deposit),
        Body::TableSummary(summary(0x5a)),
    );
    m.add(
        "find-host-request",
        request(Kind::FindHost),
        Body::FindHost(FindHost {
            cluster: "other".parse().expect("a name"),
            host: "host 130".into(),
        }),
    );
    m.add(
        "find-host-reply",
        reply(Kind::FindHost),
        Body::FoundHost(FoundHost { host: guid(0x78) }),
    );
}

fn uses(m: &mut Maker) {
    m.add(
        "in-use-request",
        request(Kind::InUse),
        Body::InUseRequest(InUseRequest {
            rows: vec![guid(0x79), guid(0x7a)],
        }),
    );
    m.add(
        "in-use-reply",
        reply(Kind::InUse),
        Body::InUseReply(InUseReply {
            row: guid(0x7a),
            users: Users("mounted at /srv/x".into()),
        }),
    );
    m.add(
        "in-use-reply-none",
        reply(Kind::InUse),
        Body::InUseReply(InUseReply::default()),
    );
}

fn tables(m: &mut Maker) {
    m.add(
        "table-stamp-request",
        request(Kind::TableStamp),
        Body::Empty,
    );
    m.add(
        "table-stamp-told",
        request(Kind::TableStamp),
        Body::TableSummary(summary(0x13)),
    );
    m.add(
        "table-stamp-reply",
        reply(Kind::TableStamp),
        Body::TableSummary(summary(0x11)),
    );
    m.add(
        "table-rows-request",
        request(Kind::TableRows),
        Body::TableRowsRequest(TableRowsRequest {
            after: guid(0x21),
            parts: Parts {
                level: 4,
                numbers: vec![0x2122, 0xfefd],
            },
        }),
    );
    m.add(
        "table-digests-request",
        request(Kind::TableDigests),
        Body::TableDigestsRequest(TableDigestsRequest {
            parts: Parts {
                level: 2,
                numbers: vec![0x12, 0xfe],
            },
            depth: 1,
        }),
    );
    m.add(
        "table-digests-reply",
        reply(Kind::TableDigests),
        Body::TableDigestsReply(TableDigestsReply {
            summary: summary(0x12),
            settings: settings(0x16),
            digests: (0x40..0x60).map(big).collect(),
        }),
    );
    m.add(
        "table-rows-reply",
        reply(Kind::TableRows),
        Body::TableRowsReply(TableRowsReply {
            summary: summary(0x22),
            settings: settings(0x26),
            more: true,
            rows: rows(),
        }),
    );
    m.add(
        "offer-request",
        request(Kind::Offer),
        Body::Offer(Offer {
            summary: summary(0x22),
            settings: settings(0x26),
            rows: rows(),
        }),
    );
    m.add(
        "offer-reply",
        reply(Kind::Offer),
        Body::TableSummary(summary(0x15)),
    );
}

fn holder(n: u8) -> Holder {
    Holder {
        term: big(n),
        host: guid(n + 1),
        purpose: Purpose::Administrator,
        process: 0x7301_0203,
        name: "host 108".into(),
        user: "root".into(),
    }
}

fn leases(m: &mut Maker) {
    m.add(
        "lease-request",
        request(Kind::Lease),
        Body::LeaseRequest(LeaseRequest {
            verb: LeaseVerb::Ask,
            force: true,
            holder: holder(0x11),
        }),
    );
    m.add(
        "lease-reply",
        reply(Kind::Lease),
        Body::LeaseReply(LeaseReply {
            granted: true,
            promised: big(0x1f),
            settings: settings(0x12),
            held_ms: big(0x16),
            left_ms: big(0x17),
            holder: Some(Holder {
                purpose: Purpose::Work,
                ..holder(0x18)
            }),
        }),
    );
    m.add(
        "settle-request",
        request(Kind::Settle),
        Body::Settings(settings(0x11)),
    );
    m.add(
        "settle-reply",
        reply(Kind::Settle),
        Body::Settings(settings(0x15)),
    );
}

fn units(m: &mut Maker) {
    m.add(
        "controllers-request",
        request(Kind::Controllers),
        Body::Empty,
    );
    m.add(
        "controllers-reply",
        reply(Kind::Controllers),
        Body::ControllersReply(ControllersReply {
            unit: guid(0x11),
            name: "unit 112".into(),
            vendor: "unit vendor".into(),
            model: "unit model".into(),
            serial: "unit serial".into(),
            macs: vec![mac(0x12), mac(0x13)],
            observed: observed(0x14),
            listed: observed(0x16),
            controllers: vec![
                ControllerRecord {
                    guid: guid(0x18),
                    ioc: IocNumber(0x191a),
                    name: "114A".into(),
                    model: "first model".into(),
                    observed: observed(0x1b),
                },
                ControllerRecord {
                    guid: guid(0x1d),
                    ioc: IocNumber(0x1e1f),
                    name: "114B".into(),
                    model: "second model".into(),
                    observed: observed(0x20),
                },
            ],
        }),
    );
    m.add(
        "registers-request",
        request(Kind::Registers),
        Body::RegistersRequest(RegistersRequest { after: guid(0x30) }),
    );
    let registers = RegistersReply {
        more: true,
        registers: vec![
            register(0x31),
            OwnershipRegister {
                ownership: Ownership::Shared(vec![guid(0x3b), guid(0x3c)]),
                ..register(0x3a)
            },
            OwnershipRegister {
                extent: Some(extent_facts(0x54, true)),
                ..register(0x50)
            },
            OwnershipRegister {
                ownership: Ownership::Unallocated,
                extent: Some(extent_facts(0x64, false)),
                ..register(0x60)
            },
        ],
    };
    m.add(
        "registers-reply",
        reply(Kind::Registers),
        Body::RegistersReply(registers.clone()),
    );
    m.add(
        "restore-request",
        request(Kind::Restore),
        Body::Restore(Restore {
            term: big(0x32),
            after: guid(0x30),
            more: true,
            registers: registers.registers.clone(),
        }),
    );
    m.add("restore-reply", reply(Kind::Restore), Body::Empty);
    m.add(
        "compare-and-set-request",
        request(Kind::CompareAndSet),
        Body::CompareAndSet(CompareAndSet {
            term: big(0x41),
            writer: guid(0x42),
            changes: vec![
                Change {
                    row: guid(0x43),
                    expected: Epoch(big(0x44)),
                    ownership: Ownership::Shared(vec![guid(0x45), guid(0x46)]),
                    extent: None,
                },
                Change {
                    row: guid(0x47),
                    expected: Epoch(big(0x48)),
                    ownership: Ownership::Unallocated,
                    extent: None,
                },
                Change {
                    row: guid(0x4a),
                    expected: Epoch(0),
                    ownership: Ownership::Dedicated(guid(0x4b)),
                    extent: Some(extent_facts(0x4c, true)),
                },
            ],
        }),
    );
    m.add(
        "compare-and-set-reply",
        reply(Kind::CompareAndSet),
        Body::RegistersReply(RegistersReply {
            more: false,
            registers: vec![register(0x51)],
        }),
    );
    m.add(
        "compare-and-set-refused",
        Header {
            status: Status::Conflict,
            command: CommandId(big(0xf2)),
            ..reply(Kind::CompareAndSet)
        },
        Body::Conflict(Conflict {
            register: register(0x61),
        }),
    );
    m.add(
        "move-request",
        request(Kind::Move),
        Body::Move(Move {
            term: big(0x71),
            writer: guid(0x72),
            row: guid(0x73),
            expected: Epoch(big(0x74)),
            to: "other".parse().expect("a name"),
            owner: guid(0x75),
            recursive: true,
        }),
    );
    m.add(
        "move-reply",
        reply(Kind::Move),
        Body::RegistersReply(RegistersReply {
            more: false,
            registers: vec![OwnershipRegister {
                ownership: Ownership::Unallocated,
                ..register(0x76)
            }],
        }),
    );
    m.add(
        "move-refused",
        Header {
            status: Status::Elsewhere,
            command: CommandId(big(0xf3)),
            ..reply(Kind::Move)
        },
        Body::Conflict(Conflict {
            register: register(0x7a),
        }),
    );
}

fn data(m: &mut Maker) {
    const RANGE: IoRange = IoRange {
        extent: guid(0x10),
        offset: big(0x11),
        len: big(0x12),
    };
    m.add(
        "devices-request",
        at_controller(request(Kind::Devices)),
        Body::Empty,
    );
    m.add(
        "devices-reply",
        at_controller(reply(Kind::Devices)),
        Body::DevicesReply(DevicesReply {
            controller: guid(0x21),
            listed: observed(0x22),
            devices: vec![device(0x24), device(0x28)],
        }),
    );
    m.add(
        "identify-request",
        at_device(request(Kind::Identify)),
        Body::Empty,
    );
    m.add(
        "identify-reply",
        at_device(reply(Kind::Identify)),
        Body::IdentifyReply(IdentifyReply {
            device: device(0x31),
            register: register(0x38),
        }),
    );
    m.add(
        "read-request",
        at_device(request(Kind::Read)),
        Body::IoRange(RANGE),
    );
    m.add(
        "read-reply",
        at_device(reply(Kind::Read)),
        Body::Data(b"what is read"),
    );
    m.add(
        "write-request",
        Header {
            flags: Flags::FUA.with(Flags::RETRY),
            ..at_device(request(Kind::Write))
        },
        Body::Write(IoRange::of_device(big(0x13), 15), b"what is written"),
    );
    m.add(
        "write-reply",
        Header {
            status: Status::NotOwner,
            ..at_device(reply(Kind::Write))
        },
        Body::Empty,
    );
    m.add(
        "flush-request",
        at_device(request(Kind::Flush)),
        Body::IoRange(IoRange {
            offset: 0,
            len: 0,
            ..RANGE
        }),
    );
    m.add("flush-reply", at_device(reply(Kind::Flush)), Body::Empty);
    m.add(
        "discard-request",
        at_device(request(Kind::Discard)),
        Body::IoRange(RANGE),
    );
    m.add(
        "discard-reply",
        at_device(reply(Kind::Discard)),
        Body::Empty,
    );
    m.add(
        "write-zeroes-request",
        at_device(request(Kind::WriteZeroes)),
        Body::IoRange(RANGE),
    );
    m.add(
        "write-zeroes-reply",
        at_device(reply(Kind::WriteZeroes)),
        Body::Empty,
    );
}
