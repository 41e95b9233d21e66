//! What `rma-unitd` remembers in its state directory besides identity and registers: the cluster
//! that was assigned, and the GUIDs that were generated for controllers and devices.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::wire::{ClusterName, Guid, IocNumber, IodNumber};

const CLUSTER: &str = "cluster";
const GUIDS: &str = "guids.json";
const GUIDS_VERSION: u32 = 1;

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file cannot be read or written.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file's content makes no sense.
    #[error("{path}: {why}; restore it from a backup, or remove it and configure the GUIDs")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GuidsFile {
    version: u32,
    /// By controller number.
    controllers: BTreeMap<u16, String>,
    /// By `controller/device` numbers.
    devices: BTreeMap<String, RememberedDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RememberedDevice {
    guid: String,
    medium: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Remembered {
    guid: Guid,
    medium: String,
}

/// The remembered cluster and GUIDs.
#[derive(Debug, Clone)]
pub struct UnitState {
    dir: PathBuf,
    cluster: ClusterName,
    assignment: u64,
    controllers: BTreeMap<IocNumber, Guid>,
    devices: BTreeMap<(IocNumber, IodNumber), Remembered>,
    is_altered: bool,
}

fn read(path: &Path) -> Result<Option<String>, StateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(StateError::Corrupt {
            path: path.to_owned(),
            why: "it is not text".into(),
        }),
        Err(source) => Err(StateError::Io {
            path: path.to_owned(),
            what: "read it",
            source,
        }),
    }
}

/// Replaces a file so that after a crash it is the old one or the new one.
fn replace(dir: &Path, name: &str, content: &str) -> Result<(), StateError> {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| StateError::Io {
        path: path.clone(),
        what: "write it",
        source,
    })
}

fn parse_guids(text: &str) -> Result<GuidsFile, String> {
    let file: GuidsFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if file.version != GUIDS_VERSION {
        return Err(format!(
            "it is of version {}, this program knows version {GUIDS_VERSION}",
            file.version
        ));
    }
    Ok(file)
}

/// `CLUSTER`, or `CLUSTER ASSIGNMENT`.
fn parse_cluster(text: &str) -> Result<(ClusterName, u64), String> {
    let text = text.trim_end();
    let (name, assignment) = text.split_once(' ').unwrap_or((text, "0"));
    let cluster = name
        .parse()
        .map_err(|e: crate::wire::id::ParseIdError| e.to_string())?;
    let assignment = assignment
        .parse()
        .map_err(|_| format!("'{assignment}' counts no assignments"))?;
    Ok((cluster, assignment))
}

fn parse_place(text: &str) -> Result<(IocNumber, IodNumber), String> {
    let numbers = text
        .split_once('/')
        .and_then(|(ioc, iod)| Some((ioc.parse().ok()?, iod.parse().ok()?)));
    let (ioc, iod) = numbers.ok_or_else(|| format!("'{text}' names no device"))?;
    Ok((IocNumber(ioc), IodNumber(iod)))
}

impl UnitState {
    /// Reads the state directory.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let corrupt = |name: &str, why: String| StateError::Corrupt {
            path: dir.join(name),
            why,
        };
        let (cluster, assignment) = match read(&dir.join(CLUSTER))? {
            None => (ClusterName::NONE, 0),
            Some(text) => parse_cluster(&text).map_err(|why| corrupt(CLUSTER, why))?,
        };
        let mut state = Self {
            dir: dir.to_owned(),
            cluster,
            assignment,
            controllers: BTreeMap::new(),
            devices: BTreeMap::new(),
            is_altered: false,
        };
        if let Some(text) = read(&dir.join(GUIDS))? {
            state.adopt(&text).map_err(|why| corrupt(GUIDS, why))?;
        }
        Ok(state)
    }

    fn adopt(&mut self, text: &str) -> Result<(), String> {
        let file = parse_guids(text)?;
        let guid = |text: &str| text.parse::<Guid>().map_err(|e| e.to_string());
        for (number, text) in &file.controllers {
            self.controllers.insert(IocNumber(*number), guid(text)?);
        }
        for (place, device) in file.devices {
            let remembered = Remembered {
                guid: guid(&device.guid)?,
                medium: device.medium,
            };
            self.devices.insert(parse_place(&place)?, remembered);
        }
        Ok(())
    }

    /// The cluster that fabric services last assigned, or none.
    pub const fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// Which assignment that was, 0 where that was not remembered.
    pub const fn assignment(&self) -> u64 {
        self.assignment
    }

    /// Remembers the cluster that the unit belongs to, by which assignment.
    pub fn set_cluster(&mut self, cluster: ClusterName, assignment: u64) -> Result<(), StateError> {
        (self.cluster, self.assignment) = (cluster, assignment);
        replace(&self.dir, CLUSTER, &format!("{cluster} {assignment}\n"))
    }

    /// The GUID of a controller that has none configured; the same for ever.
    pub fn controller_guid(&mut self, ioc: IocNumber, generate: impl FnOnce() -> Guid) -> Guid {
        *self.controllers.entry(ioc).or_insert_with(|| {
            self.is_altered = true;
            generate()
        })
    }

    /// The GUID of a device that has none configured: the same for ever as long as the same medium
    /// is behind it. Another medium is another device: who owned the one does not own the other.
    pub fn device_guid(
        &mut self,
        place: (IocNumber, IodNumber),
        medium: &str,
        generate: impl FnOnce() -> Guid,
    ) -> Guid {
        if let Some(known) = self.devices.get(&place) {
            if known.medium == medium {
                return known.guid;
            }
            log::warn!(
                "device {}/{} is now {medium}, no longer {}: it gets a new GUID; to keep {}, \
                 configure it as the device's guid",
                place.0,
                place.1,
                known.medium,
                known.guid
            );
        }
        let guid = generate();
        let remembered = Remembered {
            guid,
            medium: medium.to_owned(),
        };
        self.devices.insert(place, remembered);
        self.is_altered = true;
        guid
    }

    /// Makes generated GUIDs durable.
    pub fn save(&mut self) -> Result<(), StateError> {
        if !self.is_altered {
            return Ok(());
        }
        let file = GuidsFile {
            version: GUIDS_VERSION,
            controllers: self
                .controllers
                .iter()
                .map(|(ioc, guid)| (ioc.0, guid.to_string()))
                .collect(),
            devices: self
                .devices
                .iter()
                .map(|((ioc, iod), d)| {
                    let device = RememberedDevice {
                        guid: d.guid.to_string(),
                        medium: d.medium.clone(),
                    };
                    (format!("{ioc}/{iod}"), device)
                })
                .collect(),
        };
        // Plain maps of numbers and texts always have a JSON form.
        let text = serde_json::to_string_pretty(&file).map_err(|e| StateError::Corrupt {
            path: self.dir.join(GUIDS),
            why: e.to_string(),
        })?;
        replace(&self.dir, GUIDS, &(text + "\n"))?;
        self.is_altered = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_survives_and_another_medium_is_another_device() {
        let dir = tempfile::tempdir().unwrap();
        let place = (IocNumber(1), IodNumber(2));
        let mut state = UnitState::open(dir.path()).unwrap();
        assert!(state.cluster().is_none());
        assert_eq!(state.controller_guid(IocNumber(1), || Guid(7)), Guid(7));
        assert_eq!(state.device_guid(place, "file:/a", || Guid(8)), Guid(8));
        state.save().unwrap();
        assert_eq!(state.assignment(), 0);
        state.set_cluster("A".parse().unwrap(), 7).unwrap();

        let mut state = UnitState::open(dir.path()).unwrap();
        assert_eq!((state.cluster().as_str(), state.assignment()), ("A", 7));
        let never = || -> Guid { panic!("it is remembered") };
        assert_eq!(state.controller_guid(IocNumber(1), never), Guid(7));
        assert_eq!(state.device_guid(place, "file:/a", never), Guid(8));
        assert_eq!(state.device_guid(place, "file:/b", || Guid(9)), Guid(9));
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            (CLUSTER, "a b\n"),
            (GUIDS, "{"),
            (GUIDS, r#"{"version":2,"controllers":{},"devices":{}}"#),
            (
                GUIDS,
                r#"{"version":1,"controllers":{"1":"x"},"devices":{}}"#,
            ),
            (
                GUIDS,
                r#"{"version":1,"controllers":{},"devices":{"1":{"guid":"00000000000000000000000000000001","medium":""}}}"#,
            ),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
            let error = UnitState::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains('\n'), "{error}");
            fs::remove_file(dir.path().join(name)).unwrap();
        }
    }
}
