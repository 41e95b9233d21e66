//! The sizes and block sizes that units tell of their devices, judged: what can be exported, and what goes on
//! with what was told before.

use std::collections::BTreeMap;
use std::fmt;

use crate::rma::OwnedDevice;
use crate::wire::Guid;
use crate::wire::row::{BLOCK_SIZES, is_block_size};

/// What is wrong with what a unit tells of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// No disk has such blocks. 0: the table keeps no other number that is none.
    BlockSize(u32),
    /// It is shorter than one block.
    TooShort { size_bytes: u64, block_size: u32 },
    /// The kernel counts the bytes of a device with 63 bits.
    TooLong { size_bytes: u64 },
    /// Its last bytes are no whole block: they are not served.
    Rest { size_bytes: u64, block_size: u32 },
}

impl Flaw {
    /// What is wrong with this size and these blocks, if anything is.
    pub(super) fn of(size_bytes: u64, block_size: u32) -> Option<Self> {
        if !is_block_size(block_size) {
            Some(Self::BlockSize(block_size))
        } else if size_bytes < u64::from(block_size) {
            Some(Self::TooShort {
                size_bytes,
                block_size,
            })
        } else if i64::try_from(size_bytes).is_err() {
            Some(Self::TooLong { size_bytes })
        } else if !size_bytes.is_multiple_of(block_size.into()) {
            Some(Self::Rest {
                size_bytes,
                block_size,
            })
        } else {
            None
        }
    }

    /// Whether nothing can be exported.
    const fn is_fatal(self) -> bool {
        !matches!(self, Self::Rest { .. })
    }
}

/// What the unit says, and what to do about it.
impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockSize(said) => {
                f.write_str("its unit tells of a block size that no disk has")?;
                if *said != 0 {
                    write!(f, " ({said} bytes)")?;
                }
                let (least, most) = (BLOCK_SIZES.start(), BLOCK_SIZES.end());
                write!(
                    f,
                    ": give it one at the unit, a power of two from {least} to {most}"
                )
            }
            Self::TooShort {
                size_bytes,
                block_size,
            } => write!(
                f,
                "its unit says that its size is {size_bytes} bytes, less than one block of {block_size}: \
                 look at the unit what has become of its medium, and give it a size"
            ),
            Self::TooLong { size_bytes } => write!(
                f,
                "its unit says that its size is {size_bytes} bytes, and no block device has 2^63 or more: \
                 make it smaller at the unit, or own parts of it (`rma carve`)"
            ),
            Self::Rest {
                size_bytes,
                block_size,
            } => write!(
                f,
                "its unit says that its size is {size_bytes} bytes, no multiple of its blocks of {block_size}: \
                 the last {} bytes are not served; to have them, make it longer at the unit",
                size_bytes % u64::from(*block_size)
            ),
        }
    }
}

/// Whether a device can be exported. The error is one line: why not, and what to do.
pub(super) fn usable(owned: &OwnedDevice) -> Result<(), String> {
    match Flaw::of(owned.row.size_bytes, owned.row.block_size) {
        Some(flaw) if flaw.is_fatal() => Err(flaw.to_string()),
        _ => Ok(()),
    }
}

/// What is known of a device that this host owns.
#[derive(Debug, Default)]
struct Known {
    /// Size and block size that could be exported, the last that were told.
    good: Option<(u64, u32)>,
    flaw: Option<Flaw>,
}

/// What the devices that this host owns are exported with.
#[derive(Debug, Default)]
pub(super) struct Facts {
    known: BTreeMap<Guid, Known>,
}

impl Facts {
    /// Judges all that this host owns. A device whose unit tells of what cannot be exported, after it has
    /// told of what can, goes on with that: who uses it is not to lose it by a mistake at the unit. Returns
    /// what people must know of devices that are exported nevertheless; each is logged once.
    pub(super) fn settle(&mut self, owned: &mut [OwnedDevice]) -> BTreeMap<Guid, String> {
        let mut before = std::mem::take(&mut self.known);
        let mut warnings = BTreeMap::new();
        for device in owned {
            let row = &mut device.row;
            let mut known = before.remove(&row.guid).unwrap_or_default();
            let flaw = Flaw::of(row.size_bytes, row.block_size);
            let warning = match (flaw, known.good) {
                (Some(flaw), Some((size_bytes, block_size))) if flaw.is_fatal() => {
                    (row.size_bytes, row.block_size) = (size_bytes, block_size);
                    Some(format!(
                        "{flaw}; until then it goes on with the {size_bytes} bytes that it had"
                    ))
                }
                // Who makes the export says it.
                (Some(flaw), None) if flaw.is_fatal() => None,
                (flaw, _) => {
                    known.good = Some((row.size_bytes, row.block_size));
                    flaw.map(|flaw| flaw.to_string())
                }
            };
            if let Some(warning) = warning {
                if known.flaw != flaw {
                    let name = row.name.escape_default();
                    log::warn!("device {name} ({}): {warning}", row.guid);
                }
                warnings.insert(row.guid, warning);
            }
            known.flaw = flaw;
            self.known.insert(row.guid, known);
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EntityType, Epoch, Row};

    const LARGEST: u64 = (1 << 63) - 512;

    fn owned(size_bytes: u64, block_size: u32) -> OwnedDevice {
        OwnedDevice {
            row: Row {
                name: "d1".into(),
                size_bytes,
                block_size,
                ..Row::new(Guid(1), EntityType::Device)
            },
            unit: Guid(2),
            unit_name: String::new(),
            controller_name: String::new(),
            unit_macs: Vec::new(),
            epoch: Epoch(1),
        }
    }

    #[test]
    fn what_cannot_be_exported_is_told_with_what_to_do() {
        for (size_bytes, block_size, words) in [
            (
                1 << 20,
                0,
                ["no disk has", "a power of two from 512 to 65536"],
            ),
            (1 << 20, 513, ["513", "a power of two from 512 to 65536"]),
            (1 << 20, 256, ["256", "a power of two from 512 to 65536"]),
            (0, 512, ["0 bytes", "give it a size"]),
            (511, 512, ["511 bytes", "give it a size"]),
            (1 << 63, 512, ["9223372036854775808", "rma carve"]),
            (u64::MAX, 4096, ["18446744073709551615", "rma carve"]),
        ] {
            let said = usable(&owned(size_bytes, block_size)).unwrap_err();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
        for (size_bytes, block_size) in [(512, 512), (65_536, 65_536), (LARGEST, 512)] {
            assert_eq!(Flaw::of(size_bytes, block_size), None);
        }
        assert_eq!(usable(&owned(LARGEST + 511, 512)), Ok(()));
        assert_eq!(
            super::super::service_words::info(&owned(LARGEST + 511, 512)).served_bytes(),
            LARGEST
        );
    }

    #[test]
    fn an_export_outlives_what_its_unit_says_by_mistake() {
        let mut facts = Facts::default();
        let mut told = |size_bytes, block_size| {
            let mut all = [owned(size_bytes, block_size)];
            let warnings = facts.settle(&mut all);
            let row = &all[0].row;
            (
                row.size_bytes,
                row.block_size,
                warnings.get(&Guid(1)).cloned(),
            )
        };
        // What was never exported is not exported with guesses.
        assert_eq!(told(0, 512), (0, 512, None));
        assert_eq!(told(1 << 20, 512), (1 << 20, 512, None));
        for (size_bytes, block_size) in [(0, 512), (1 << 20, 0), (1 << 63, 512)] {
            let (size, block, warning) = told(size_bytes, block_size);
            assert_eq!((size, block), (1 << 20, 512));
            assert!(warning.unwrap().contains("goes on with the 1048576 bytes"));
        }
        // It is mended.
        assert_eq!(told(1 << 21, 512), (1 << 21, 512, None));
        let (size, _, warning) = told((1 << 21) + 100, 512);
        assert_eq!(size, (1 << 21) + 100);
        assert!(
            warning
                .unwrap()
                .contains("the last 100 bytes are not served")
        );
        // Released, it begins anew.
        assert!(facts.settle(&mut []).is_empty());
        let mut all = [owned(0, 512)];
        assert!(facts.settle(&mut all).is_empty());
        assert_eq!(all[0].row.size_bytes, 0);
    }
}
