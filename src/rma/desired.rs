//! What an administrator wants a whole cluster to be like: the content of a file for `rma apply`, which
//! `rma export` writes. Plain data; what it means for a table is in `apply_plan`.

use serde::{Deserialize, Serialize};

use super::request::{RowInfo, TableInfo};

/// The most rows and extents that one file may name.
pub const MAX_DESIRED_ROWS: usize = 65_536;

/// A cluster as it shall be. What is not named stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// The finest level of allocation: `unit`, `controller`, `device` or `extent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// I/O units.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unit: Vec<DesiredRow>,
    /// I/O controllers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controller: Vec<DesiredRow>,
    /// I/O devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device: Vec<DesiredDevice>,
}

/// How a row shall be owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// By nobody.
    #[default]
    Unallocated,
    /// By one host alone.
    Dedicated,
    /// By one host or several.
    Shared,
}

/// A unit or controller as it shall be owned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredRow {
    /// Which: GUID, address, name or path.
    pub row: String,
    /// How it shall be owned.
    pub ownership: Word,
    /// The hosts that shall own it: GUID, address or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
}

/// A device as it shall be owned and carved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredDevice {
    /// Which: GUID, address, name or path.
    pub row: String,
    /// How it shall be owned.
    pub ownership: Word,
    /// The hosts that shall own it: GUID, address or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
    /// Its extents, all of them: others are removed. Left out: they stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<Vec<DesiredExtent>>,
}

/// An extent as it shall be: the one with this range, or a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredExtent {
    /// First byte on the device.
    pub offset: Size,
    /// Number of bytes.
    pub size: Size,
    /// Its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// How it shall be owned.
    #[serde(default)]
    pub ownership: Word,
    /// The hosts that shall own it: GUID, address or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
}

/// A number of bytes: a number, or a text like `16M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Number", into = "String")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Bytes(u64),
    Text(String),
}

/// A text is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no number of bytes; say for instance 4096, 512K, 16M, 10G or 1T", .0.escape_debug())]
pub struct SizeError(String);

/// The letters behind a number, each 1024 times the one before.
const LETTERS: [char; 4] = ['K', 'M', 'G', 'T'];

impl std::str::FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let (digits, factor) = match text.char_indices().next_back() {
            Some((at, last)) if last.is_ascii_alphabetic() => {
                let letter = last.to_ascii_uppercase();
                let power = LETTERS
                    .iter()
                    .position(|l| *l == letter)
                    .ok_or_else(error)?;
                (&text[..at], 1_u64 << (10 * (power + 1)))
            }
            _ => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl TryFrom<Number> for Size {
    type Error = SizeError;

    fn try_from(number: Number) -> Result<Self, SizeError> {
        match number {
            Number::Bytes(bytes) => Ok(Self(bytes)),
            Number::Text(text) => text.parse(),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// With the largest letter that divides it.
impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut number = self.0;
        let mut letter = None;
        for next in LETTERS {
            if number == 0 || !number.is_multiple_of(1024) {
                break;
            }
            number /= 1024;
            letter = Some(next);
        }
        match letter {
            Some(letter) => f.pad(&format!("{number}{letter}")),
            None => f.pad(&number.to_string()),
        }
    }
}

impl Desired {
    /// How many rows and extents it names.
    pub fn len(&self) -> usize {
        let extents = |d: &DesiredDevice| d.extents.as_ref().map_or(0, Vec::len);
        self.unit.len()
            + self.controller.len()
            + self.device.iter().map(|d| 1 + extents(d)).sum::<usize>()
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.granularity.is_none()
    }

    /// A cluster as it is: every unit, controller, device and extent that is there.
    pub fn of(table: &TableInfo) -> Self {
        let names = Names::of(table);
        let mut desired = Self {
            granularity: Some(table.granularity.clone()),
            ..Self::default()
        };
        let carves = table.granularity == "extent";
        for row in names.present("I/O unit") {
            desired.unit.push(names.row(row));
        }
        for row in names.present("I/O controller") {
            desired.controller.push(names.row(row));
        }
        for row in names.present("I/O device") {
            let DesiredRow {
                row: path,
                ownership,
                owners,
            } = names.row(row);
            let extents: Vec<DesiredExtent> = names
                .present("extent")
                .filter(|e| e.parent.as_ref().is_some_and(|p| p.guid == row.guid))
                .filter_map(|e| names.extent(e))
                .collect();
            desired.device.push(DesiredDevice {
                row: path,
                ownership,
                owners,
                extents: (carves || !extents.is_empty()).then_some(extents),
            });
        }
        desired
    }
}

/// The rows of a table by what a file calls them.
struct Names<'a> {
    rows: std::collections::BTreeMap<&'a str, &'a RowInfo>,
    order: &'a [RowInfo],
    counts: std::collections::BTreeMap<String, usize>,
}

impl<'a> Names<'a> {
    fn of(table: &'a TableInfo) -> Self {
        let mut names = Self {
            rows: table.rows.iter().map(|r| (r.guid.as_str(), r)).collect(),
            order: &table.rows,
            counts: std::collections::BTreeMap::new(),
        };
        let mut counts = std::collections::BTreeMap::new();
        for row in names.order {
            *counts.entry(names.path(row)).or_insert(0) += 1;
            if !row.name.is_empty() {
                *counts.entry(row.name.clone()).or_insert(0) += 1;
            }
        }
        names.counts = counts;
        names
    }

    fn parent(&self, row: &RowInfo) -> Option<&'a RowInfo> {
        let parent = row.parent.as_ref()?;
        self.rows.get(parent.guid.as_str()).copied()
    }

    /// Names from the unit down to the row.
    fn path(&self, row: &RowInfo) -> String {
        let mut names = vec![row.name.as_str()];
        let mut at = self.parent(row);
        // A unit, a controller and a device are above an extent.
        for _ in 0..3 {
            let Some(parent) = at else { break };
            names.push(&parent.name);
            at = self.parent(parent);
        }
        names.reverse();
        names.join("/")
    }

    /// What the file calls a row: its path where only it has that, and otherwise its GUID.
    fn call(&self, row: &RowInfo) -> String {
        let path = self.path(row);
        let named = !row.name.is_empty() && !path.starts_with('/') && !path.contains("//");
        // A unit's or host's path is its name, which is counted twice then.
        let most = if path == row.name { 2 } else { 1 };
        if named && path == path.trim() && self.counts.get(&path) == Some(&most) {
            path
        } else {
            row.guid.clone()
        }
    }

    /// The rows of a type that are there, with all above them.
    fn present(&self, entity: &str) -> impl Iterator<Item = &'a RowInfo> {
        self.order
            .iter()
            .filter(move |row| row.entity == entity)
            .filter(|row| {
                let mut at = Some(*row);
                let mut levels = 0;
                while let Some(row) = at {
                    levels += 1;
                    if row.state != "valid" || levels > 4 {
                        return false;
                    }
                    at = self.parent(row);
                }
                true
            })
    }

    fn owners(&self, row: &RowInfo) -> (Word, Vec<String>) {
        let word = match row.ownership.ownership.as_str() {
            "dedicated" => Word::Dedicated,
            "shared" => Word::Shared,
            _ => Word::Unallocated,
        };
        let owners = row.ownership.owners.iter().map(|owner| {
            let known = self.rows.get(owner.guid.as_str());
            known.map_or_else(|| owner.guid.clone(), |row| self.call(row))
        });
        (word, owners.collect())
    }

    fn row(&self, row: &RowInfo) -> DesiredRow {
        let (ownership, owners) = self.owners(row);
        DesiredRow {
            row: self.call(row),
            ownership,
            owners,
        }
    }

    fn extent(&self, row: &RowInfo) -> Option<DesiredExtent> {
        let range = row.extent.as_ref()?;
        let (ownership, owners) = self.owners(row);
        Some(DesiredExtent {
            offset: Size(range.offset),
            size: Size(range.length),
            name: row.name.clone(),
            ownership,
            owners,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512k", 512 << 10),
            ("16M", 16 << 20),
            ("10G", 10 << 30),
            ("3T", 3 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "16 M",
            "16MB",
            "1P",
            "99999999999999999999",
            "16777216T",
            "1ß",
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(
                error.contains("16M") && error.lines().count() == 1,
                "{error}"
            );
        }
        assert_eq!(Size(1 << 40).to_string(), "1T");
        assert_eq!(Size(1 << 50).to_string(), "1024T");
        assert_eq!(Size(1536).to_string(), "1536");
        assert_eq!(Size(3 << 19).to_string(), "1536K");
    }

    #[test]
    fn a_file_says_only_what_there_is_to_say() {
        let good = "granularity = \"extent\"\n[[device]]\nrow = \"a/b/c\"\nownership = \"shared\"\n\
                    owners = [\"h\"]\nextents = [{ offset = 0, size = \"1M\" }]\n";
        let desired: Desired = toml::from_str(good).unwrap();
        assert_eq!(desired.len(), 2);
        let again = toml::to_string(&desired).unwrap();
        assert_eq!(toml::from_str::<Desired>(&again).unwrap(), desired);
        for bad in [
            "granularity = 4",
            "colour = \"red\"",
            "[[device]]\nrow = \"a\"\n",
            "[[device]]\nrow = \"a\"\nownership = \"mine\"\n",
            "[[unit]]\nrow = \"a\"\nownership = \"shared\"\nowner = \"x\"\n",
            "[[device]]\nrow = \"a\"\nownership = \"shared\"\nextents = [{ offset = -1, size = 1 }]\n",
            "[[device]]\nrow = \"a\"\nownership = \"shared\"\nextents = [{ offset = 0, size = \"many\" }]\n",
        ] {
            assert!(toml::from_str::<Desired>(bad).is_err(), "{bad}");
        }
    }
}
