//! What becomes of I/O while a unit cannot be reached, for each device of this host: kept in the state
//! directory, as an administrator has set it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::service::ServiceHandle;
use super::service_words::ServiceCommand;
use crate::admin::protocol::{PolicyChange, PolicyInfo};
use crate::initiator::Policy;
use crate::store::replace_file;
use crate::wire::Guid;

/// Name of the file in the state directory.
const FILE: &str = "policies.json";
/// The version of its form.
const VERSION: u32 = 1;
/// The most devices that have a policy of their own: those that were once this host's stay.
const MAX_DEVICES: usize = 65_536;

/// The file's form.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// By GUID: the seconds after which I/O fails, or `null` where it waits for ever.
    devices: BTreeMap<String, Option<u32>>,
}

/// The policies of a host.
#[derive(Debug)]
pub(super) struct Policies {
    path: PathBuf,
    /// Of devices without one of their own.
    default: Policy,
    own: BTreeMap<Guid, Policy>,
}

impl Policies {
    /// Reads what is kept in the state directory. A file that cannot be used is reported and left alone
    /// until a policy is set: then I/O waits for ever, as without it.
    pub(super) fn open(state_dir: &Path, default: Policy) -> Self {
        let path = state_dir.join(FILE);
        let own = read(&path).unwrap_or_else(|why| {
            log::error!(
                "{}: {why}; no device has a policy of its own",
                path.display()
            );
            BTreeMap::new()
        });
        Self { path, default, own }
    }

    /// Changes or tells a device's policy, after which it is durable; or says why not.
    pub(super) fn apply(
        &mut self,
        device: Guid,
        name: &str,
        change: Option<PolicyChange>,
    ) -> Result<PolicyInfo, String> {
        if let Some(change) = change {
            let mut own = self.own.clone();
            match change {
                PolicyChange::Queue => own.insert(device, Policy::Queue),
                PolicyChange::FailAfter { seconds } => own.insert(
                    device,
                    Policy::FailAfter(Duration::from_secs(seconds.into())),
                ),
                PolicyChange::Default => own.remove(&device),
            };
            if own.len() > MAX_DEVICES {
                return Err(format!(
                    "{MAX_DEVICES} devices have a policy already; set one back to the default first"
                ));
            }
            write(&self.path, &own).map_err(|e| {
                format!(
                    "{} cannot be written: {e}; nothing was changed",
                    self.path.display()
                )
            })?;
            self.own = own;
        }
        let policy = self.own.get(&device).copied();
        Ok(PolicyInfo {
            guid: device.to_string(),
            name: name.to_owned(),
            fail_after_s: seconds(policy.unwrap_or(self.default)),
            is_default: policy.is_none(),
        })
    }

    /// Tells the service thread all of them.
    pub(super) fn tell(&self, service: &ServiceHandle) {
        service.send(ServiceCommand::Policies(self.default, self.own.clone()));
    }
}

/// After how many seconds I/O fails; `None`: never.
pub(super) const fn seconds(policy: Policy) -> Option<u32> {
    match policy {
        Policy::Queue => None,
        Policy::FailAfter(after) => Some(after.as_secs() as u32),
    }
}

fn read(path: &Path) -> Result<BTreeMap<Guid, Policy>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.to_string()),
    };
    let stored: Stored = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    if stored.version != VERSION {
        return Err(format!("version {} is not known", stored.version));
    }
    let devices = stored.devices.into_iter().map(|(guid, after)| {
        let guid: Guid = guid.parse().map_err(|_| format!("{guid:?} is no GUID"))?;
        let policy = match after {
            None => Policy::Queue,
            Some(seconds) => Policy::FailAfter(Duration::from_secs(seconds.into())),
        };
        Ok((guid, policy))
    });
    devices.collect()
}

fn write(path: &Path, own: &BTreeMap<Guid, Policy>) -> std::io::Result<()> {
    let devices = own
        .iter()
        .map(|(guid, policy)| (guid.to_string(), seconds(*policy)));
    let stored = Stored {
        version: VERSION,
        devices: devices.collect(),
    };
    let mut text = serde_json::to_vec_pretty(&stored)?;
    text.push(b'\n');
    replace_file(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_survive_and_a_broken_file_is_no_policy() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Guid(0xa), Guid(0xb));
        let after = |s| Policy::FailAfter(Duration::from_secs(s));
        let mut policies = Policies::open(dir.path(), after(9));
        let info = policies.apply(a, "a", None).unwrap();
        assert_eq!((info.fail_after_s, info.is_default), (Some(9), true));
        policies.apply(a, "a", Some(PolicyChange::Queue)).unwrap();
        let change = PolicyChange::FailAfter { seconds: 30 };
        policies.apply(b, "b", Some(change)).unwrap();
        let mut policies = Policies::open(dir.path(), Policy::Queue);
        assert_eq!(policies.own, [(a, Policy::Queue), (b, after(30))].into());
        let info = policies.apply(b, "b", Some(PolicyChange::Default)).unwrap();
        assert_eq!((info.fail_after_s, info.is_default), (None, true));
        assert_eq!(Policies::open(dir.path(), Policy::Queue).own.len(), 1);
        for text in [
            "",
            "{}",
            "{\"version\":2,\"devices\":{}}",
            "{\"version\":1,\"devices\":{\"x\":1}}",
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(Policies::open(dir.path(), Policy::Queue).own.is_empty());
        }
    }
}
