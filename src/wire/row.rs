//! Rows of the cluster resource table and their stamps, as they cross the wire and lie in the file.

use super::codec::{DecodeError, Reader, Wire, Writer, distinct, wire_code};
use super::id::{Address, Epoch, Extent, Guid, Incarnation, IocNumber, IodNumber, Mac};
use super::kind::EntityType;

/// The most NICs of a host or unit.
pub const MAX_MACS: usize = 8;
/// The most owners of a row.
pub const MAX_OWNERS: usize = 128;
/// The most bytes of a name.
pub const MAX_NAME_BYTES: usize = 63;
/// The most bytes of a vendor, model or serial.
pub const MAX_LABEL_BYTES: usize = 63;
/// The most bytes of an encoded row; less than a page of the CRT file.
pub const MAX_ROW_BYTES: usize = 2600;

code_table! {
    /// Whether an entity is there.
    pub enum RowState: u8 {
        /// Its parent lists it.
        Valid = 1 => "valid",
        /// Its parent no longer lists it, or an administrator said so: a tombstone.
        Invalid = 2 => "invalid",
    }
}

code_table! {
    /// The finest level at which the cluster allocates.
    pub enum Granularity: u8 {
        /// Whole units, with all their controllers and devices.
        Unit = 1 => "unit",
        /// Units and controllers; devices follow their controller.
        Controller = 2 => "controller",
        /// Units, controllers and devices; extents follow their device.
        Device = 3 => "device",
        /// Units, controllers, devices and extents.
        Extent = 4 => "extent",
    }
}
wire_code!(RowState => "row state", Granularity => "granularity");

/// Who owns a row (Fig. 4 field 414).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Ownership {
    /// Nobody.
    #[default]
    Unallocated,
    /// One host alone.
    Dedicated(Guid),
    /// Every host of the list: sorted, without repetition, 1 to [`MAX_OWNERS`].
    Shared(Vec<Guid>),
}

impl Ownership {
    /// Shared by `hosts` in any order; `None` where there are none or too many.
    pub fn shared(mut hosts: Vec<Guid>) -> Option<Self> {
        hosts.sort_unstable();
        hosts.dedup();
        (1..=MAX_OWNERS)
            .contains(&hosts.len())
            .then_some(Self::Shared(hosts))
    }

    /// The owners, sorted.
    pub fn owners(&self) -> &[Guid] {
        match self {
            Self::Unallocated => &[],
            Self::Dedicated(host) => std::slice::from_ref(host),
            Self::Shared(hosts) => hosts,
        }
    }

    /// Whether `host` is an owner.
    pub fn includes(&self, host: Guid) -> bool {
        self.owners().binary_search(&host).is_ok()
    }

    /// The word that people read: `unallocated`, `dedicated` or `shared`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unallocated => "unallocated",
            Self::Dedicated(_) => "dedicated",
            Self::Shared(_) => "shared",
        }
    }
}

impl Wire for Ownership {
    /// # Panics
    /// When there are more than [`MAX_OWNERS`]: a programmer's mistake, [`Ownership::shared`]
    /// does not make such a value.
    fn put(&self, w: &mut Writer) {
        assert!(self.owners().len() <= MAX_OWNERS);
        w.put(&match self {
            Self::Unallocated => 0_u8,
            Self::Dedicated(_) => 1,
            Self::Shared(_) => 2,
        });
        w.put(&(self.owners().len() as u8));
        for owner in self.owners() {
            w.put(owner);
        }
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (word, count): (u8, u8) = (r.get()?, r.get()?);
        if usize::from(count) > MAX_OWNERS {
            return Err(DecodeError::TooLarge("owners"));
        }
        let mut owners = Vec::with_capacity(count.into());
        for _ in 0..count {
            owners.push(r.identity()?);
        }
        let sorted = owners.windows(2).all(|w| w[0] < w[1]);
        match (word, &owners[..]) {
            (0, []) => Ok(Self::Unallocated),
            (1, [one]) => Ok(Self::Dedicated(*one)),
            (2, [_, ..]) if sorted => Ok(Self::Shared(owners)),
            _ => Err(DecodeError::BadValue("ownership")),
        }
    }
}

macro_rules! wire_struct {
    // With `checked`, the type's `fn check(&self) -> Result<(), DecodeError>` judges what was read.
    ($name:ident { $($field:ident),+ $(,)? } $($check:ident)?) => {
        impl Wire for $name {
            fn put(&self, w: &mut Writer) {
                $( w.put(&self.$field); )+
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let value = Self { $( $field: r.get()?, )+ };
                $( wire_struct!(@$check value); )?
                Ok(value)
            }
        }
    };
    (@checked $value:ident) => { $value.check()? };
}
pub(crate) use wire_struct;

/// The smallest and the largest logical block size.
pub const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=65_536;

/// Whether a device can have this logical block size: a power of two in [`BLOCK_SIZES`].
pub const fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && *BLOCK_SIZES.start() <= bytes && bytes <= *BLOCK_SIZES.end()
}

/// When a unit (or host, for its own row) observed a fact. Larger is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObservationStamp {
    /// The observer's incarnation.
    pub incarnation: Incarnation,
    /// The observer's change number within the incarnation.
    pub change: u64,
}
wire_struct!(ObservationStamp {
    incarnation,
    change
});

/// What no counter of a stamp ever comes to: one beyond could never be outranked.
pub const MAX_STAMP: u64 = 1 << 62;

impl ObservationStamp {
    /// Whether something can be newer: both numbers are below [`MAX_STAMP`].
    pub const fn is_possible(&self) -> bool {
        self.incarnation.0 < MAX_STAMP && self.change < MAX_STAMP
    }
}

/// Which ownership change a row carries. Larger is newer; the unit's register is the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct OwnershipStamp {
    /// Counts the row's ownership changes.
    pub epoch: Epoch,
    /// The allocation session's term.
    pub term: u64,
    /// The host that made the change.
    pub writer: Guid,
}
wire_struct!(OwnershipStamp {
    epoch,
    term,
    writer
});

impl OwnershipStamp {
    /// Whether something can be newer: epoch and term are below [`MAX_STAMP`].
    pub const fn is_possible(&self) -> bool {
        self.epoch.0 < MAX_STAMP && self.term < MAX_STAMP
    }

    /// The stamp of a row that nobody owns because what is above it in the joined tables of all hosts does
    /// not permit its owners: above this one, below that of any change that was made after it, and the same
    /// whoever finds out.
    #[must_use]
    pub const fn not_permitted(self) -> Self {
        Self {
            writer: Guid::MAX,
            ..self
        }
    }
}

/// How current a table is (Fig. 4 field 420): compared field by field, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TableStamp {
    /// The allocation session's term.
    pub term: u64,
    /// Counts the table's versions.
    pub counter: u64,
    /// The host that published the version.
    pub writer: Guid,
}
wire_struct!(TableStamp {
    term,
    counter,
    writer
});

impl TableStamp {
    /// Whether something can be newer: term and counter are below [`MAX_STAMP`].
    pub const fn is_possible(&self) -> bool {
        self.term < MAX_STAMP && self.counter < MAX_STAMP
    }
}

/// Cluster-wide settings, with the stamp of their last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The finest level of allocation.
    pub granularity: Granularity,
    /// When they were last changed; larger wins.
    pub stamp: TableStamp,
}
wire_struct!(Settings { granularity, stamp });

impl Default for Settings {
    fn default() -> Self {
        Self {
            granularity: Granularity::Device,
            stamp: TableStamp::default(),
        }
    }
}

/// One row of the cluster resource table (Fig. 4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    /// What it is.
    pub guid: Guid,
    /// What kind of entity it is.
    pub entity: EntityType,
    /// Whether it is there.
    pub state: RowState,
    /// Its NICs; for controllers and devices, their unit's. None twice, at most [`MAX_MACS`].
    pub macs: Vec<Mac>,
    /// Controller number, 0 where none.
    pub ioc: IocNumber,
    /// Device number, 0 where none.
    pub iod: IodNumber,
    /// Address range, where the row is an extent.
    pub extent: Option<Extent>,
    /// The entity one level up, NIL for hosts and units.
    pub parent: Guid,
    /// The name that people use; not unique by force, any characters.
    pub name: String,
    /// Vendor of the device or unit.
    pub vendor: String,
    /// Model of the device or unit.
    pub model: String,
    /// Serial number of the device or unit.
    pub serial: String,
    /// Size in bytes, 0 where it has none.
    pub size_bytes: u64,
    /// Logical block size in bytes ([`is_block_size`]), 0 where it has none.
    pub block_size: u32,
    /// Feature bits ([`features`]).
    pub features: u64,
    /// Mode of operation (32 or 64 bit addressing); 0 where not said.
    pub mode: u8,
    /// When the observed fields above were observed.
    pub observed: ObservationStamp,
    /// Who owns it.
    pub ownership: Ownership,
    /// Which ownership change that is.
    pub owned: OwnershipStamp,
}

/// Feature bits of a device.
pub mod features {
    /// The device cannot be written.
    pub const READ_ONLY: u64 = 1;
    /// Discard frees space.
    pub const DISCARD: u64 = 2;
    /// Zeroes are written without sending them.
    pub const WRITE_ZEROES: u64 = 4;
    /// A write can be durable by itself.
    pub const FUA: u64 = 8;
    /// A flush reaches the medium (without it the device is volatile by nature).
    pub const DURABLE: u64 = 16;
    /// The device spins.
    pub const ROTATIONAL: u64 = 32;
    /// Every assigned bit with its name.
    pub const NAMES: &[(u64, &str)] = &[
        (READ_ONLY, "read-only"),
        (DISCARD, "discard"),
        (WRITE_ZEROES, "write-zeroes"),
        (FUA, "fua"),
        (DURABLE, "durable"),
        (ROTATIONAL, "rotational"),
    ];
}

impl Row {
    /// An empty valid row.
    pub fn new(guid: Guid, entity: EntityType) -> Self {
        Self {
            guid,
            entity,
            state: RowState::Valid,
            macs: Vec::new(),
            ioc: IocNumber(0),
            iod: IodNumber(0),
            extent: None,
            parent: Guid::NIL,
            name: String::new(),
            vendor: String::new(),
            model: String::new(),
            serial: String::new(),
            size_bytes: 0,
            block_size: 0,
            features: 0,
            mode: 0,
            observed: ObservationStamp::default(),
            ownership: Ownership::Unallocated,
            owned: OwnershipStamp::default(),
        }
    }

    /// Where it is, by its first NIC; `None` where no NIC is known.
    pub fn address(&self) -> Option<Address> {
        let mac = *self.macs.first()?;
        Some(Address {
            mac,
            ioc: self.ioc,
            iod: self.iod,
            extent: self.extent,
        })
    }

    /// Whether its parent lists it.
    pub fn is_valid(&self) -> bool {
        self.state == RowState::Valid
    }
}

impl Wire for Row {
    /// # Panics
    /// When there are more than [`MAX_MACS`] addresses or [`MAX_OWNERS`] owners: a programmer's
    /// mistake.
    fn put(&self, w: &mut Writer) {
        assert!(self.macs.len() <= MAX_MACS);
        w.put(&self.guid);
        w.put(&self.entity);
        w.put(&self.state);
        w.put(&self.mode);
        w.put(&(self.macs.len() as u8));
        for mac in &self.macs {
            w.put(mac);
        }
        w.put(&self.ioc);
        w.put(&self.iod);
        w.put(&self.extent);
        w.put(&self.parent);
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.text_within(&self.vendor, MAX_LABEL_BYTES);
        w.text_within(&self.model, MAX_LABEL_BYTES);
        w.text_within(&self.serial, MAX_LABEL_BYTES);
        w.put(&self.size_bytes);
        w.put(&self.block_size);
        w.put(&self.features);
        w.put(&self.observed);
        w.put(&self.ownership);
        w.put(&self.owned);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (guid, entity, state, mode) = (r.identity()?, r.get()?, r.get()?, r.get()?);
        let count = r.get::<u8>()? as usize;
        if count > MAX_MACS {
            return Err(DecodeError::TooLarge("MAC addresses"));
        }
        let mut macs = Vec::with_capacity(count);
        for _ in 0..count {
            macs.push(r.get()?);
        }
        distinct(&macs, |m: &Mac| *m, "MAC addresses")?;
        let row = Self {
            guid,
            entity,
            state,
            mode,
            macs,
            ioc: r.get()?,
            iod: r.get()?,
            extent: r.get()?,
            parent: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            vendor: r.text("vendor", MAX_LABEL_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            serial: r.text("serial", MAX_LABEL_BYTES)?,
            size_bytes: r.get()?,
            block_size: r.get()?,
            features: r.get()?,
            observed: r.get()?,
            ownership: r.get()?,
            owned: r.get()?,
        };
        if row.block_size != 0 && !is_block_size(row.block_size) {
            return Err(DecodeError::BadValue("block size"));
        }
        Ok(row)
    }
}
