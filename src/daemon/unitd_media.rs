//! The controllers and devices that `rma-unitd` serves: from the configuration to open media, and
//! from one configuration to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::event_loop;
use super::unitd_config::{ControllerConfig, DeviceConfig, UnitdConfig};
use super::unitd_keys::BackendKind;
use super::unitd_state::{StateError, UnitState};
use crate::backend::{Backend, Disk, Memory, OpenError, Options};
use crate::unit::{ControllerSpec, DeviceSpec, DiskError, DiskInfo, DiskOp, SpecError, Unit};
use crate::wire::{Guid, IocNumber, IodNumber, Tail, Time};

/// How often it is looked whether media have grown.
const SIZES_INTERVAL: Duration = Duration::from_secs(2);

/// Why media cannot be served. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The medium of a device cannot be opened or resized.
    #[error("device {ioc}/{iod}: {medium} {source}")]
    Open {
        /// The controller.
        ioc: IocNumber,
        /// The device.
        iod: IodNumber,
        /// What was to be opened.
        medium: String,
        /// Why it cannot be.
        source: OpenError,
    },
    /// A key of a device cannot be changed while it is served.
    #[error(
        "device {ioc}/{iod}: {key} cannot be changed while {medium} is served; remove the device, reload, and add it again"
    )]
    Fixed {
        /// The controller.
        ioc: IocNumber,
        /// The device.
        iod: IodNumber,
        /// The key.
        key: &'static str,
        /// What is open.
        medium: String,
    },
    /// A GUID names two things.
    #[error("GUID {0} is used twice in this unit; every GUID names one thing: configure another")]
    GuidTwice(Guid),
    /// The unit cannot consist of that.
    #[error("{what}: {source}")]
    Spec {
        /// The controller or device.
        what: String,
        /// Why not.
        source: SpecError,
    },
    /// Generated GUIDs cannot be remembered.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel gives no randomness.
    #[error("cannot generate a GUID: {0}")]
    Random(std::io::Error),
}

/// A medium whose operations are counted, and whose failures are logged, at most one a second.
pub struct Metered {
    medium: String,
    inner: Box<dyn Backend>,
    operations: AtomicU64,
    errors: AtomicU64,
    logged_at_s: AtomicU64,
}

impl Metered {
    /// Operations performed.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Operations that failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn failed(&self, what: &str, error: DiskError) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let now_s = event_loop::now().as_nanos() / 1_000_000_000;
        if self.logged_at_s.swap(now_s, Ordering::Relaxed) != now_s {
            log::warn!("{}: {what} failed: {error}", self.medium);
        }
    }
}

impl Backend for Metered {
    fn info(&self) -> DiskInfo {
        self.inner.info()
    }

    fn execute(&self, op: DiskOp) -> Result<Vec<u8>, DiskError> {
        let name = match op {
            DiskOp::Read { .. } => "read",
            DiskOp::Write { .. } => "write",
            DiskOp::Flush => "flush",
            DiskOp::Discard { .. } => "discard",
            DiskOp::WriteZeroes { .. } => "write-zeroes",
        };
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.inner
            .execute(op)
            .inspect_err(|e| self.failed(name, *e))
    }

    fn read_at_once(&self, offset: u64, into: &mut [u8]) -> Option<Result<(), DiskError>> {
        let outcome = self.inner.read_at_once(offset, into)?;
        self.operations.fetch_add(1, Ordering::Relaxed);
        Some(outcome.inspect_err(|e| self.failed("read", *e)))
    }

    fn lend(&self, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        let outcome = self.inner.lend(offset, len)?;
        self.operations.fetch_add(1, Ordering::Relaxed);
        Some(outcome.inspect_err(|e| self.failed("read", *e)))
    }

    fn is_lent(&self, offset: u64, len: u64) -> bool {
        self.inner.is_lent(offset, len)
    }

    fn is_lent_as(&self, lent: &Tail, offset: u64, len: u64) -> bool {
        self.inner.is_lent_as(lent, offset, len)
    }

    fn readable(&self, offset: u64, len: u32) -> Option<BorrowedFd<'_>> {
        let file = self.inner.readable(offset, len)?;
        self.operations.fetch_add(1, Ordering::Relaxed);
        Some(file)
    }

    fn write_at_once(
        &mut self,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        let outcome = self.inner.write_at_once(offset, data, sum)?;
        *self.operations.get_mut() += 1;
        Some(outcome.inspect_err(|e| self.failed("write", *e)))
    }

    fn resize(&self, wanted: Option<u64>) -> Result<DiskInfo, OpenError> {
        self.inner.resize(wanted)
    }

    fn medium_bytes(&self) -> Option<u64> {
        self.inner.medium_bytes()
    }

    fn is_instant(&self) -> bool {
        self.inner.is_instant()
    }
}

/// A device with its open medium.
#[derive(Clone)]
pub struct Served {
    /// How it is configured.
    pub config: DeviceConfig,
    /// What it is.
    pub guid: Guid,
    /// Facts of its medium.
    pub info: DiskInfo,
    /// Its medium.
    pub backend: Arc<Metered>,
}

impl Served {
    /// Whether it is as long as its medium.
    fn follows_size(&self) -> bool {
        self.config.size_bytes.is_none()
    }
}

type Place = (IocNumber, IodNumber);

/// Everything that is served.
#[derive(Default)]
pub struct Media {
    controllers: BTreeMap<IocNumber, (ControllerConfig, Guid)>,
    devices: BTreeMap<Place, Served>,
    places: BTreeMap<Guid, Place>,
    /// Media that were found shorter than they are served.
    shrunk: BTreeSet<Guid>,
    /// When their sizes are looked at next.
    sizes_at: Time,
}

/// What is behind a device, in words that stay the same.
fn medium(config: &DeviceConfig) -> String {
    match &config.path {
        Some(path) => format!("{}:{}", config.backend.name(), path.display()),
        None => config.backend.name().to_owned(),
    }
}

fn open(config: &DeviceConfig) -> Result<Arc<Metered>, OpenError> {
    let options = Options {
        read_only: config.read_only,
        size_bytes: config.size_bytes,
        block_size: config.block_size,
    };
    let path = config.path.as_deref().unwrap_or(std::path::Path::new(""));
    let inner: Box<dyn Backend> = match config.backend {
        BackendKind::File => Box::new(Disk::open_file(path, options)?),
        BackendKind::Block => Box::new(Disk::open_block(path, options)?),
        BackendKind::Memory => Box::new(Memory::new(
            config.size_bytes.unwrap_or(0),
            config.block_size,
            config.read_only,
        )?),
    };
    let info = inner.info();
    let bytes = config.size_bytes.or_else(|| inner.medium_bytes());
    if let Some(rest @ 1..) = bytes.and_then(|bytes| bytes.checked_sub(info.size_bytes)) {
        log::warn!(
            "{}: its last {rest} bytes are no whole block of {} and are not served; to have them, make it longer",
            medium(config),
            info.block_size
        );
    }
    Ok(Arc::new(Metered {
        medium: medium(config),
        inner,
        operations: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        logged_at_s: AtomicU64::new(0),
    }))
}

/// A new GUID (random, RFC 9562 version 4).
fn generate() -> Result<Guid, MediaError> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
        .map_err(MediaError::Random)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Guid(u128::from_be_bytes(bytes)))
}

/// Resizes that have been made and may have to be taken back.
#[derive(Default)]
struct Resized(Vec<(Arc<Metered>, u64)>);

impl Resized {
    fn take_back(self) {
        for (backend, size) in self.0 {
            if let Err(e) = backend.resize(Some(size)) {
                log::error!("a medium cannot be given back its size of {size} bytes: it {e}");
            }
        }
    }
}

impl Media {
    /// The device with this GUID.
    pub fn get(&self, device: Guid) -> Option<&Served> {
        self.devices.get(self.places.get(&device)?)
    }

    /// Its medium, where nobody else is using it now.
    pub fn medium_mut(&mut self, device: Guid) -> Option<&mut Metered> {
        let served = self.devices.get_mut(self.places.get(&device)?)?;
        Arc::get_mut(&mut served.backend)
    }

    /// The device at this place.
    pub fn at(&self, ioc: IocNumber, iod: IodNumber) -> Option<&Served> {
        self.devices.get(&(ioc, iod))
    }

    /// What `config` asks for, with every medium open, keeping those that are open already. Either
    /// all of it succeeds or nothing has changed (a file may have been made or have grown).
    fn prepare(
        &self,
        config: &UnitdConfig,
        unit: Guid,
        state: &mut UnitState,
    ) -> Result<Self, MediaError> {
        let mut next = Self::default();
        for c in &config.controllers {
            let guid = if let Some(guid) = c.guid {
                guid
            } else {
                let fresh = generate()?;
                state.controller_guid(c.number, || fresh)
            };
            let mut own = c.clone();
            own.devices.clear();
            next.controllers.insert(c.number, (own, guid));
        }
        let mut resized = Resized::default();
        for c in &config.controllers {
            for d in &c.devices {
                let place = (c.number, d.number);
                match self.prepare_device(place, d, state, &mut resized) {
                    Ok(served) => {
                        next.places.insert(served.guid, place);
                        next.devices.insert(place, served);
                    }
                    Err(e) => {
                        resized.take_back();
                        return Err(e);
                    }
                }
            }
        }
        if let Err(e) = next.check_guids(unit).and_then(|()| Ok(state.save()?)) {
            resized.take_back();
            return Err(e);
        }
        Ok(next)
    }

    fn check_guids(&self, unit: Guid) -> Result<(), MediaError> {
        let mut seen = BTreeSet::from([unit]);
        let controllers = self.controllers.values().map(|(_, guid)| *guid);
        let devices = self.devices.values().map(|d| d.guid);
        match controllers.chain(devices).find(|guid| !seen.insert(*guid)) {
            Some(guid) => Err(MediaError::GuidTwice(guid)),
            None => Ok(()),
        }
    }

    fn prepare_device(
        &self,
        place: Place,
        config: &DeviceConfig,
        state: &mut UnitState,
        resized: &mut Resized,
    ) -> Result<Served, MediaError> {
        let (ioc, iod) = place;
        let medium = medium(config);
        let failed = |source| MediaError::Open {
            ioc,
            iod,
            medium: medium.clone(),
            source,
        };
        let (backend, info) = if let Some(served) = self.open_already(place, config) {
            for (key, differs) in [
                ("read_only", served.config.read_only != config.read_only),
                ("block_size", served.config.block_size != config.block_size),
            ] {
                if differs {
                    let medium = medium.clone();
                    return Err(MediaError::Fixed {
                        ioc,
                        iod,
                        key,
                        medium,
                    });
                }
            }
            let backend = Arc::clone(&served.backend);
            let before = backend.info().size_bytes;
            let info = backend.resize(config.size_bytes).map_err(failed)?;
            if info.size_bytes != before {
                resized.0.push((Arc::clone(&backend), before));
            }
            (backend, info)
        } else {
            let backend = open(config).map_err(failed)?;
            let info = backend.info();
            (backend, info)
        };
        let guid = if let Some(guid) = config.guid {
            guid
        } else {
            let fresh = generate()?;
            state.device_guid(place, &medium, || fresh)
        };
        Ok(Served {
            config: config.clone(),
            guid,
            info,
            backend,
        })
    }

    /// When [`Self::follow_sizes`] has something to look at.
    pub fn deadline(&self) -> Option<Time> {
        let follows = self.devices.values().any(Served::follows_size);
        follows.then_some(self.sizes_at)
    }

    /// Serves media that have grown as long as they are, where the configuration names no size. One that has become shorter is only reported: its end is gone, and to take
    /// it from hosts is an administrator's to decide.
    pub fn follow_sizes(&mut self, now: Time, unit: &mut Unit) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        self.sizes_at = now + SIZES_INTERVAL;
        let mut said = Vec::new();
        for ((ioc, iod), served) in &mut self.devices {
            let before = served.info.size_bytes;
            let Some(bytes) = served
                .backend
                .medium_bytes()
                .filter(|_| served.follows_size())
            else {
                continue;
            };
            let bytes = bytes - bytes % u64::from(served.info.block_size);
            let (name, medium) = (&served.config.name, &served.backend.medium);
            if bytes < before {
                if self.shrunk.insert(served.guid) {
                    said.push(format!(
                        "device {ioc}/{iod} ({name}): {medium} has shrunk from {before} to {bytes} bytes; I/O \
                         behind its end fails: enlarge it again, or `rma unit reload` to serve what is left"
                    ));
                }
                continue;
            }
            self.shrunk.remove(&served.guid);
            if bytes == before {
                continue;
            }
            match served.backend.resize(None) {
                Ok(info) => served.info = info,
                Err(e) => {
                    said.push(format!("device {ioc}/{iod} ({name}): {medium} {e}"));
                    continue;
                }
            }
            said.push(format!(
                "device {ioc}/{iod} ({name}) resized from {before} to {bytes} bytes, as {medium} is"
            ));
            if let Err(e) = unit.alter_device(now, *ioc, device_spec(served)) {
                said.push(format!("device {ioc}/{iod} ({name}): {e}"));
            }
        }
        for change in said {
            log::warn!("{change}");
        }
    }

    /// The open medium that a device can go on with: the same file or block device wherever it is
    /// served now, or the same memory at the same place.
    fn open_already(&self, place: Place, config: &DeviceConfig) -> Option<&Served> {
        let same =
            |d: &&Served| (d.config.backend, &d.config.path) == (config.backend, &config.path);
        match config.backend {
            BackendKind::Memory => self.devices.get(&place).filter(same),
            BackendKind::File | BackendKind::Block => self.devices.values().find(same),
        }
    }

    /// Serves what `config` asks for from now on, and says what has changed, a line each.
    pub fn change(
        &mut self,
        now: Time,
        config: &UnitdConfig,
        state: &mut UnitState,
        unit: &mut Unit,
    ) -> Result<Vec<String>, MediaError> {
        // A configuration that is refused leaves no GUIDs behind.
        let mut trial = state.clone();
        let next = self.prepare(config, unit.controllers().unit, &mut trial)?;
        *state = trial;
        let mut changes = Vec::new();
        self.take_away(now, &next, unit, &mut changes)?;
        for (ioc, (c, guid)) in &next.controllers {
            let what = || format!("controller {ioc}");
            let spec = ControllerSpec {
                guid: *guid,
                ioc: *ioc,
                name: c.name.clone(),
                model: c.model.clone(),
            };
            match self.controllers.get(ioc) {
                Some((old, _)) if old == c => Ok(()),
                Some(_) => {
                    changes.push(format!("controller {ioc} ({}) altered", c.name));
                    unit.alter_controller(now, spec)
                }
                None => {
                    changes.push(format!("controller {ioc} ({}) added", c.name));
                    unit.add_controller(now, spec)
                }
            }
            .map_err(|source| MediaError::Spec {
                what: what(),
                source,
            })?;
        }
        for ((ioc, iod), d) in &next.devices {
            let name = &d.config.name;
            match self.devices.get(&(*ioc, *iod)) {
                Some(old) if device_spec(old) == device_spec(d) => Ok(()),
                Some(old) => {
                    let what = if old.info.size_bytes == d.info.size_bytes {
                        "altered".to_owned()
                    } else {
                        format!(
                            "resized from {} to {} bytes",
                            old.info.size_bytes, d.info.size_bytes
                        )
                    };
                    changes.push(format!("device {ioc}/{iod} ({name}) {what}"));
                    unit.alter_device(now, *ioc, device_spec(d))
                }
                None => {
                    changes.push(format!("device {ioc}/{iod} ({name}) added"));
                    unit.add_device(now, *ioc, device_spec(d))
                }
            }
            .map_err(|source| MediaError::Spec {
                what: format!("device {ioc}/{iod}"),
                source,
            })?;
        }
        *self = next;
        Ok(changes)
    }

    /// Takes out of the unit, and out of here, what is not in `next` as the same thing.
    fn take_away(
        &mut self,
        now: Time,
        next: &Self,
        unit: &mut Unit,
        changes: &mut Vec<String>,
    ) -> Result<(), MediaError> {
        let gone: Vec<Place> = self
            .devices
            .iter()
            .filter(|(place, old)| next.devices.get(place).is_none_or(|d| d.guid != old.guid))
            .map(|(place, _)| *place)
            .collect();
        for (ioc, iod) in gone {
            let name = self.devices.remove(&(ioc, iod)).map(|d| d.config.name);
            let name = name.unwrap_or_default();
            changes.push(format!("device {ioc}/{iod} ({name}) removed"));
            unit.remove_device(now, ioc, iod)
                .map_err(|source| MediaError::Spec {
                    what: format!("device {ioc}/{iod}"),
                    source,
                })?;
        }
        let gone: Vec<IocNumber> = self
            .controllers
            .iter()
            .filter(|(ioc, (_, guid))| next.controllers.get(ioc).is_none_or(|(_, g)| g != guid))
            .map(|(ioc, _)| *ioc)
            .collect();
        for ioc in gone {
            let name = self.controllers.remove(&ioc).map(|(c, _)| c.name);
            let name = name.unwrap_or_default();
            // Its remaining devices leave with it and are added again below the new one.
            self.devices.retain(|(of, _), _| *of != ioc);
            changes.push(format!("controller {ioc} ({name}) removed"));
            unit.remove_controller(now, ioc)
                .map_err(|source| MediaError::Spec {
                    what: format!("controller {ioc}"),
                    source,
                })?;
        }
        Ok(())
    }
}

fn device_spec(served: &Served) -> DeviceSpec {
    let c = &served.config;
    DeviceSpec {
        guid: served.guid,
        iod: c.number,
        name: c.name.clone(),
        vendor: c.vendor.clone(),
        model: c.model.clone(),
        serial: c
            .serial
            .clone()
            .unwrap_or_else(|| format!("{:032x}", served.guid.0)),
        info: served.info,
    }
}
