//! An I/O unit on a hostile wire: whatever comes, its disk operations are inside its device, they and
//! everything else stay within the limits, and only an owner's writes reach the disk.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rma::lease::StoredVote;
use rma::unit::{
    ControllerSpec, DeviceSpec, DiskInfo, DiskOp, MAX_IN_FLIGHT, MAX_IO_BYTES, StoredRegisters,
    Unit, UnitAction, UnitConfig, UnitFacts,
};
use rma::wire::kind::Role;
use rma::wire::message::{ConnectRequest, OwnershipRegister};
use rma::wire::row::features;
use rma::wire::{
    ClusterName, CommandId, ConnectionId, Epoch, Guid, Header, Incarnation, IocNumber, IodNumber,
    Kind, Mac, Ownership, OwnershipStamp, Time, Wire,
};
use rma_fuzz::Forged;

#[derive(Debug, Arbitrary)]
enum Step {
    Forge(Forged),
    Raw { service: bool, frame: Vec<u8> },
    DiskDone { which: u8 },
    Persisted { ok: bool },
    Wait { ms: u16 },
    RemoveDevice,
    AddDevice,
}

const SIZE: u64 = 128 << 10;
const DEVICE: Guid = Guid(102);
const MAX_FRAMES: usize = 4096;

fn device() -> DeviceSpec {
    DeviceSpec {
        guid: DEVICE,
        iod: IodNumber(1),
        name: "disk".to_owned(),
        vendor: String::new(),
        model: String::new(),
        serial: String::new(),
        info: DiskInfo {
            size_bytes: SIZE,
            block_size: 512,
            features: features::DISCARD | features::WRITE_ZEROES | features::FUA,
        },
    }
}

fn unit(cluster: ClusterName, now: Time) -> Unit {
    let config = UnitConfig {
        facts: UnitFacts {
            guid: Guid(100),
            name: "unit".to_owned(),
            vendor: String::new(),
            model: String::new(),
            serial: String::new(),
            macs: vec![Mac([2, 0, 0, 0, 0, 1])],
        },
        incarnation: Incarnation(1),
        cluster_wanted: cluster,
        cluster,
        assignment: 0,
        fabric_mac: None,
        mtu: 1500,
        credits: 16,
        max_connections: 6,
        vote: Some(StoredVote::default()),
    };
    let owned = |row| OwnershipRegister {
        row: Guid(row),
        ownership: Ownership::Dedicated(Guid(1)),
        owned: OwnershipStamp {
            epoch: Epoch(1),
            term: 1,
            writer: Guid(1),
        },
        extent: None,
    };
    let registers = StoredRegisters {
        registers: vec![owned(100), owned(101), owned(102)],
        term: 1,
        ..StoredRegisters::default()
    };
    let mut unit = Unit::new(config, Some(registers), 1);
    let controller = ControllerSpec {
        guid: Guid(101),
        ioc: IocNumber(1),
        name: "controller".to_owned(),
        model: String::new(),
    };
    unit.add_controller(now, controller).expect("a controller");
    unit.add_device(now, IocNumber(1), device())
        .expect("a device");
    unit
}

/// A session of an honest host: its connect, to be sent from the MAC that forged frames may have too.
fn connect(unit: &mut Unit, now: Time, cluster: ClusterName, host: u8, ioc: u16) {
    let request = ConnectRequest {
        initiator: Guid(host.into()),
        incarnation: Incarnation(1),
        session: 1,
        attempt: 1,
        role: Role::Host,
        responder: Guid::NIL,
        features: 0,
        mtu: 1500,
        credits: 16,
    };
    let header = Header {
        ioc: IocNumber(ioc),
        cluster,
        command: CommandId(1),
        ..Header::new(Kind::Connect)
    };
    let mut frame = Vec::new();
    header.emit_whole(&request.to_body(), &mut frame);
    let source = Mac([2, 0, 0, 0, 1, host]);
    unit.handle(now, ioc != 0, source, &frame)
        .expect("an honest connect");
}

/// Sends what the unit has to send, and learns the connections that it grants: number, controller.
fn transmit(unit: &mut Unit, now: Time, known: &mut Vec<(ConnectionId, IocNumber)>) {
    for n in 0.. {
        assert!(n < MAX_FRAMES, "one input makes it send for ever");
        let mut frame = Vec::new();
        let Some((service, _)) = unit.poll_transmit(now, &mut frame) else {
            return;
        };
        let (header, _) = Header::parse(&frame, service).expect("what is sent is well-formed");
        let entry = (header.connection, header.ioc);
        let granted = header.kind == Kind::Connect && header.is_reply();
        if granted && !known.contains(&entry) && known.len() < 64 {
            known.push(entry);
        }
    }
}

/// Who has a connection.
fn host_of(unit: &Unit, connection: ConnectionId) -> Option<Guid> {
    let both = unit.connections(false).chain(unit.connections(true));
    both.into_iter()
        .find(|(number, ..)| *number == connection)
        .map(|(_, _, peer)| peer.guid)
}

fuzz_target!(|steps: Vec<Step>| {
    let cluster: ClusterName = "A".parse().expect("a name");
    let mut now = Time::from_nanos(1);
    let mut unit = unit(cluster, now);
    for host in [1, 2] {
        connect(&mut unit, now, cluster, host, 0);
        connect(&mut unit, now, cluster, host, 1);
    }
    let mut known = Vec::new();
    transmit(&mut unit, now, &mut known);
    assert_eq!(known.len(), 4);
    let mut disk = Vec::new();
    let mut persist = Vec::new();
    for step in steps.iter().take(200) {
        let mut asker = None;
        match step {
            Step::Forge(forged) => {
                for frame in forged.frames(cluster, &known) {
                    let _ = unit.handle(now, forged.service(), forged.source(), &frame);
                }
                asker = known.get(forged.connection(known.len()));
            }
            Step::Raw { service, frame } => {
                let _ = unit.handle(now, *service, Mac([2, 0, 0, 0, 1, 9]), frame);
            }
            Step::DiskDone { which } if !disk.is_empty() => {
                let (token, len) = disk.swap_remove(usize::from(*which) % disk.len());
                unit.disk_done(now, token, Ok(vec![0; len]));
            }
            Step::Persisted { ok } if !persist.is_empty() => {
                match persist.remove(0) {
                    (true, token) => unit.vote_persisted(now, token, *ok),
                    (false, token) => unit.registers_persisted(now, token, *ok),
                }
            }
            Step::DiskDone { .. } | Step::Persisted { .. } => {}
            Step::Wait { ms } => {
                now = now + Duration::from_millis(u64::from(*ms));
                unit.tick(now);
            }
            Step::RemoveDevice => {
                let _ = unit.remove_device(now, IocNumber(1), IodNumber(1));
            }
            Step::AddDevice => {
                let _ = unit.add_device(now, IocNumber(1), device());
            }
        }
        while let Some(action) = unit.poll_action() {
            match action {
                UnitAction::Disk { token, device, op } => {
                    assert_eq!(device, DEVICE);
                    let (offset, len) = op.range().unwrap_or_default();
                    assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE));
                    assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
                    let register = unit.register(DEVICE).expect("registers are there");
                    let (connection, _) = asker.expect("only a request makes an operation");
                    let host = host_of(&unit, *connection).expect("a host asks");
                    assert!(register.ownership.includes(host), "{op:?} of no owner");
                    let reply_len = match &op {
                        DiskOp::Read { len, .. } => *len as usize,
                        DiskOp::Write { data, .. } => {
                            assert!(data.len() as u64 <= MAX_IO_BYTES);
                            0
                        }
                        _ => 0,
                    };
                    disk.push((token, reply_len));
                }
                UnitAction::PersistRegisters { token, .. } => persist.push((false, token)),
                UnitAction::PersistVote { token, .. } => persist.push((true, token)),
                _ => {}
            }
        }
        assert!(unit.in_flight() <= MAX_IN_FLIGHT);
        transmit(&mut unit, now, &mut known);
    }
});
