//! Whether udev has named what the device thread has made: some seconds later its links are looked at,
//! and where one is missing udev is told to look at the device again. An event can be lost: while udev
//! reads its rules again, or when it starts anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::devices::Devices;
use super::devices_rules::explain;
use crate::export::kernel::udevd;
use crate::export::rules_file::RulesFile;
use crate::wire::Guid;

/// How long after a device was made its links are looked at, the first time; each time after that
/// comes after twice as long.
const LOOK_AFTER: Duration = Duration::from_secs(3);
/// How often udev is told to look at a device again.
const MAX_TRIES: u32 = 5;

#[derive(Debug, Clone, Copy)]
struct Check {
    at: Instant,
    tries: u32,
}

/// The devices whose links are to be looked at, and when.
#[derive(Debug, Default)]
pub(super) struct LinkChecks(BTreeMap<Guid, Check>);

impl LinkChecks {
    /// The device's links should be there soon.
    pub(super) fn expect(&mut self, guid: Guid, now: Instant) {
        let (at, tries) = (now + LOOK_AFTER, 0);
        self.0.insert(guid, Check { at, tries });
    }

    /// When something is to be looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|check| check.at).min()
    }

    /// Takes out what is to be looked at now.
    fn due(&mut self, now: Instant) -> Vec<(Guid, Check)> {
        let due: Vec<_> = self
            .0
            .iter()
            .filter(|(_, check)| check.at <= now)
            .map(|(guid, check)| (*guid, *check))
            .collect();
        for (guid, _) in &due {
            self.0.remove(guid);
        }
        due
    }

    /// Udev still has work: later, without having tried.
    fn later(&mut self, guid: Guid, check: Check, now: Instant) {
        let at = now + LOOK_AFTER;
        self.0.insert(guid, Check { at, ..check });
    }

    /// Udev was not yet told too often: it is to be told now, and the links are looked at again.
    fn again(&mut self, guid: Guid, check: Check, now: Instant) -> bool {
        if check.tries == MAX_TRIES {
            return false;
        }
        let tries = check.tries + 1;
        let at = now + LOOK_AFTER * 2_u32.pow(tries);
        self.0.insert(guid, Check { at, tries });
        true
    }
}

impl Devices {
    /// Looks whether udev has made the links that should be there by now.
    pub(super) fn look_at_links(&mut self) {
        let now = Instant::now();
        let due = self.links.due(now);
        if due.is_empty() || !self.names_come_of_udev() {
            return;
        }
        for (guid, check) in due {
            let Some(held) = self.held.get(&guid) else {
                continue;
            };
            let Some(kernel) = held.kernel() else {
                continue;
            };
            let name = kernel.name();
            let links = explain(&self.text, None, &held.owned, &name).links;
            let Some(missing) = links.iter().find(|link| !link.is_right) else {
                continue;
            };
            if udevd::is_busy() {
                self.links.later(guid, check, now);
            } else if self.links.again(guid, check, now) {
                log::warn!(
                    "udev has not made {} of /dev/{}: it is told to look again",
                    missing.link,
                    name.as_str()
                );
                udevd::look_again(name.as_str());
            } else {
                log::error!(
                    "udev has not made {} of /dev/{}, though it was told {MAX_TRIES} times; \
                     see `udevadm test /sys/class/block/{}`",
                    missing.link,
                    name.as_str(),
                    name.as_str()
                );
            }
        }
    }

    /// Whether udev runs and has our rules.
    fn names_come_of_udev(&self) -> bool {
        let text = self.rules.as_ref().map(RulesFile::path).map(fs::read);
        Path::new(udevd::CONTROL).exists()
            && text.is_some_and(|text| text.is_ok_and(|text| text == self.text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_looked_at_later_and_later_and_not_for_ever() {
        let mut checks = LinkChecks::default();
        let mut now = Instant::now();
        assert_eq!(checks.deadline(), None);
        checks.expect(Guid(1), now);
        assert!(checks.due(now).is_empty());
        let mut waits = Vec::new();
        loop {
            let at = checks.deadline().expect("a time");
            waits.push((at - now).as_secs());
            now = at;
            let due = checks.due(now);
            assert_eq!(due.len(), 1);
            if !checks.again(due[0].0, due[0].1, now) {
                break;
            }
        }
        assert_eq!(waits, [3, 6, 12, 24, 48, 96]);
        assert_eq!(checks.deadline(), None);
    }

    #[test]
    fn what_waits_for_udev_has_not_been_tried() {
        let mut checks = LinkChecks::default();
        let mut now = Instant::now();
        checks.expect(Guid(1), now);
        checks.expect(Guid(2), now + LOOK_AFTER);
        for _ in 0..=2 * MAX_TRIES {
            now = checks.deadline().expect("a time");
            for (guid, check) in checks.due(now) {
                assert_eq!(check.tries, 0);
                checks.later(guid, check, now);
            }
        }
    }
}
