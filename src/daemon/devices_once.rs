//! What `rmad` does about block devices without becoming a daemon: before it starts, and after it has
//! ended for good.

use super::devices_kernel::Unclaimed;
use super::rmad_config::RmadConfig;
use crate::export::choice::{Choice, Way};
use crate::export::kernel::{nbd, ublk, udevd, usage};
use crate::export::rules_file::RulesFile;
use crate::export::udev;
use crate::store::identity::{IDENTITY_FILE, Identity};

/// Loads the modules of the first way of `choice` that works. The error is one line: why none does.
pub fn load_modules(choice: Choice) -> Result<(), String> {
    let mut refused = Vec::new();
    for way in choice.ways() {
        let works = match way {
            Way::Ublk => ublk::probe(),
            Way::Nbd => nbd::probe(),
            Way::NbdSocket => Ok(()),
        };
        match works {
            Ok(()) => return Ok(()),
            Err(why) => refused.push(why),
        }
    }
    Err(refused.join("; "))
}

/// Removes the block devices that this host's `rmad` has left in the kernel when it ended, and the file
/// of its rules. The error is one line: the daemon runs, or a device is in use and `force` was not said.
pub fn remove_left_over(config: &RmadConfig, force: bool) -> Result<(), String> {
    if config.state_dir.join(IDENTITY_FILE).exists() {
        // While it is held no daemon of this host runs.
        let identity = Identity::open(&config.state_dir, config.guid).map_err(|e| e.to_string())?;
        remove_of(&Unclaimed::all(identity.guid()), force)?;
    }
    if let Some(dir) = &config.udev_rules_dir {
        let rules = RulesFile::new(dir, udev::RULES_FILE_NAME);
        if rules.remove().map_err(|e| e.to_string())? {
            udevd::reload()?;
        }
    }
    Ok(())
}

fn remove_of(left: &[Unclaimed], force: bool) -> Result<(), String> {
    let names: Vec<_> = left.iter().map(|left| left.kernel().name()).collect();
    let words: Vec<&str> = names.iter().map(udev::KernelName::as_str).collect();
    for (name, users) in words.iter().zip(usage::users_of_all(&words)) {
        if !force && !users.is_empty() {
            return Err(format!(
                "/dev/{name} is in use ({}); nothing was removed: end that, or say --force",
                users.join(", ")
            ));
        }
    }
    let mut failed = Vec::new();
    for left in left {
        if let Err(e) = left.kernel().remove() {
            failed.push(format!("/dev/{}: {e}", left.kernel().name().as_str()));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("not removed: {}", failed.join("; ")))
}
