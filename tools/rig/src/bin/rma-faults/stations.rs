//! Hosts' loads made in one thread: what a unit does for many hosts, where the hosts do not take the processors from
//! it and from each other.

use std::ops::Range;
use std::time::Duration;

use rma::daemon::event_loop::now;
use rma::daemon::rmad::{SERVICE_CREDITS, SERVICE_RING_BYTES};
use rma::initiator::load::{Load, LoadReport, LoadSpec, Order};
use rma::initiator::{DeviceId, Initiator, InitiatorConfig, IoEvent, Target};
use rma::net::{Inbox, Interface, NetError, Nics};
use rma::wire::{
    ETHERTYPE_SERVICE, Epoch, Guid, Hop, Incarnation, IocNumber, IodNumber, Mac, Time,
};
use rma_rig::{Daemon, wait_until};

use super::{PATIENCE, Result};

/// How often a station without frames looks at its timers.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// Before a load is measured.
const RAMP_SECONDS: u32 = 1;

/// What a host that has ended knew of its devices.
pub(super) struct Facts {
    host: Guid,
    incarnation: u64,
    unit: Guid,
    mac: Mac,
    targets: Vec<Target>,
}

impl Facts {
    /// Asks a host for what it knows of devices on controller 1 of unit `u1`.
    pub(super) fn of(host: &Daemon, devices: &[String]) -> Result<Self> {
        let status = host.json(&["status"]).ok_or("a host gives no status")?;
        let unit = host.row("u1")?;
        let guid: Guid = unit.guid.parse()?;
        let target = |name: &String| -> Result<Target> {
            let row = host.row(name)?;
            Ok(Target {
                unit: guid,
                ioc: IocNumber(row.ioc),
                iod: IodNumber(row.iod),
                device: row.guid.parse()?,
                extent: Guid::NIL,
                epoch: Epoch(row.epoch),
                size_bytes: row.size_bytes,
                block_size: row.block_size_bytes,
                features: 0,
            })
        };
        Ok(Self {
            host: status["host"]["guid"]
                .as_str()
                .ok_or("a host tells no GUID")?
                .parse()?,
            incarnation: status["incarnation"]
                .as_u64()
                .ok_or("a host tells no incarnation")?,
            unit: guid,
            mac: unit.macs.first().ok_or("a unit without a NIC")?.parse()?,
            targets: devices.iter().map(target).collect::<Result<_>>()?,
        })
    }
}

/// A host in its place: its NIC, its connection, its devices.
pub(super) struct Station {
    nics: Nics,
    inbox: Inbox,
    initiator: Initiator,
    devices: Vec<(DeviceId, u64)>,
    /// Each load's device and the load; its place is in the tokens of its I/Os.
    loads: Vec<(DeviceId, Load)>,
    look_at: Time,
}

impl Station {
    /// Takes the place of `host`, which has ended, as its next start.
    pub(super) fn open(host: &Daemon, facts: Facts) -> Result<Self> {
        let interface = host.node().enter(|| {
            let interface = Interface::by_name(host.interface())?;
            let nics = Nics::open_with(
                std::slice::from_ref(&interface),
                ETHERTYPE_SERVICE,
                SERVICE_RING_BYTES,
            )?;
            Ok::<_, NetError>((interface, nics))
        })?;
        let (interface, nics) = interface?;
        let config = InitiatorConfig {
            local: facts.host,
            incarnation: Incarnation(facts.incarnation + 1),
            cluster: "A".parse()?,
            local_macs: vec![interface.mac],
            mtu: interface.mtu,
            credits: SERVICE_CREDITS,
        };
        // Stations differ.
        let mut initiator = Initiator::new(config, facts.host.0 as u64);
        let at = now();
        initiator.add_controller(at, facts.unit, IocNumber(1), facts.mac);
        let open = |target: Target| (initiator.open(at, target), target.size_bytes);
        let devices = facts.targets.into_iter().map(open).collect();
        let mut station = Self {
            inbox: Inbox::new(interface.mtu),
            nics,
            initiator,
            devices,
            loads: Vec::new(),
            look_at: at,
        };
        wait_until(PATIENCE, "a connection to the unit", || {
            station.turn().is_ok() && station.initiator.is_up(facts.unit, IocNumber(1))
        })?;
        Ok(station)
    }

    /// Takes what has come, and sends what is to be sent.
    fn turn(&mut self) -> Result<()> {
        let mut time = now();
        if self.nics.recv(&mut self.inbox)? > 0 {
            let nic = self.nics.heard_by();
            for frame in self.inbox.frames() {
                if self.nics.is_for_us(frame.destination) {
                    let mac = frame.source;
                    // What is wrong with a frame is counted by the initiator.
                    let _ = self.initiator.handle(time, Hop { mac, nic }, frame.payload);
                }
            }
            time = now();
        } else if time < self.look_at {
            return Ok(());
        }
        self.look_at = time + LOOK_EVERY;
        self.initiator.tick(time);
        self.serve(time);
        let initiator = &mut self.initiator;
        self.nics.send(time, |out, tail| {
            initiator.poll_transmit_parts(time, out, tail)
        })?;
        Ok(())
    }

    /// Ends what is done and begins what is next.
    fn serve(&mut self, time: Time) {
        while let Some(event) = self.initiator.poll_event() {
            let IoEvent::Done { token, result } = event else {
                continue;
            };
            let (index, slot) = ((token >> 32) as usize, token as u32);
            let Some((device, load)) = self.loads.get_mut(index) else {
                continue;
            };
            let result = result.map(|read| self.initiator.give_buffer(*device, read));
            load.done(time, slot, result);
        }
        for (index, (device, load)) in self.loads.iter_mut().enumerate() {
            while let Some((slot, io)) = load.next(time) {
                let token = (index as u64) << 32 | u64::from(slot);
                self.initiator.submit(time, *device, io, token);
            }
        }
    }
}

/// Blocks of 4 KiB at random, `depth` at a time on these of each station's devices; I/Os a second of each.
///
/// # Errors
/// Where I/O fails or does not end.
pub(super) fn run(
    stations: &mut [Station],
    devices: Range<usize>,
    rw: &str,
    depth: u32,
    seconds: u32,
) -> Result<Vec<Vec<f64>>> {
    let begin = now();
    let spec = LoadSpec {
        order: Order::Random,
        read_percent: if rw == "randread" { 100 } else { 0 },
        block_bytes: 4096,
        depth,
        seconds,
        ramp_seconds: RAMP_SECONDS,
        offset: 0,
        size: 0,
        fua: false,
    };
    for (number, station) in stations.iter_mut().enumerate() {
        let devices = &station.devices[devices.clone()];
        let loads = devices.iter().enumerate().map(|(index, (device, size))| {
            let seed = (number * 1000 + index) as u64;
            (*device, Load::new(begin, spec.clone(), *size, seed))
        });
        station.loads = loads.collect();
    }
    let end = begin + Duration::from_secs((seconds + RAMP_SECONDS).into());
    let all_over = |stations: &[Station], time| {
        stations
            .iter()
            .flat_map(|s| &s.loads)
            .all(|(_, load)| load.is_over(time))
    };
    while now() < end || !all_over(stations, now()) {
        for station in &mut *stations {
            station.turn()?;
        }
        if now() > end + PATIENCE {
            return Err("I/O does not end".into());
        }
    }
    let reports = |station: &Station| {
        let loads = station.loads.iter();
        loads.map(|(_, load)| load.report()).collect()
    };
    let reports: Vec<Vec<LoadReport>> = stations.iter().map(reports).collect();
    match reports.iter().flatten().find(|report| report.errors > 0) {
        Some(report) => Err(format!("I/O failed: {}", report.first_error).into()),
        None => {
            let each = reports.iter();
            Ok(each
                .map(|own| own.iter().map(LoadReport::iops).collect())
                .collect())
        }
    }
}
