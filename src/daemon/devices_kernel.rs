//! The kernel's block devices as the device thread makes them, serves them again and removes them.

use std::path::PathBuf;
use std::time::Instant;

use super::devices::{Devices, REPLACE_AFTER, held_name};
use super::devices_words::lock;
use super::service::ServiceCommand;
use super::service_words::{Exposure, How, info};
use crate::export::block::ExportInfo;
use crate::export::choice::Way;
use crate::export::kernel::{nbd, ublk};
use crate::export::udev::KernelName;
use crate::wire::Guid;

/// A block device of the kernel that we made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Ublk(u32),
    Nbd(u32),
}

impl Kernel {
    pub(super) fn name(self) -> KernelName {
        let name = match self {
            Self::Ublk(id) => format!("ublkb{id}"),
            Self::Nbd(index) => format!("nbd{index}"),
        };
        KernelName::new(&name).expect("a word and a number")
    }

    pub(super) const fn way(self) -> Way {
        match self {
            Self::Ublk(_) => Way::Ublk,
            Self::Nbd(_) => Way::Nbd,
        }
    }

    /// Has the kernel remove it; whoever uses it has errors from now on.
    pub(super) fn remove(self) -> std::io::Result<()> {
        match self {
            Self::Ublk(id) => ublk::remove(id),
            Self::Nbd(index) => nbd::disconnect(index),
        }
    }
}

/// A device of an earlier start that has not been found among what this host owns.
pub(super) enum Unclaimed {
    Ublk(ublk::LeftOver),
    Nbd(u32, Guid),
}

impl Unclaimed {
    /// All that are there.
    pub(super) fn all(host: Guid) -> Vec<Self> {
        let ublk = ublk::left_over(host).into_iter().map(Self::Ublk);
        let nbd = nbd::left_over(host).into_iter();
        ublk.chain(nbd.map(|(index, guid)| Self::Nbd(index, guid)))
            .collect()
    }

    pub(super) fn is_of(&self, host: Guid, guid: Guid) -> bool {
        match self {
            Self::Ublk(left) => left.is_of(host, guid),
            Self::Nbd(_, device) => *device == guid,
        }
    }

    pub(super) const fn kernel(&self) -> Kernel {
        match self {
            Self::Ublk(left) => Kernel::Ublk(left.id),
            Self::Nbd(index, _) => Kernel::Nbd(*index),
        }
    }
}

impl Devices {
    /// Has the kernel make a device.
    pub(super) fn make(
        &mut self,
        guid: Guid,
        kernel: Kernel,
        reason: String,
    ) -> std::io::Result<()> {
        let Some(held) = self.held.get(&guid) else {
            return Ok(());
        };
        let (facts, host) = (info(&held.owned), self.config.host);
        match kernel {
            Kernel::Ublk(id) => {
                let file = ublk::add(id, host, guid, &facts)?;
                self.expose(guid, kernel, reason, How::Ublk(file));
                ublk::start(id)?;
            }
            Kernel::Nbd(index) => {
                let (ours, theirs) = nbd::pairs(nbd::CONNECTIONS)?;
                self.expose(guid, kernel, reason, How::Nbd(ours));
                nbd::connect(index, host, guid, &facts, theirs)?;
            }
        }
        log::info!(
            "export {} ({guid}) as /dev/{}",
            held_name(&self.held, guid),
            kernel.name().as_str()
        );
        Ok(())
    }

    fn expose(&self, guid: Guid, kernel: Kernel, reason: String, how: How) {
        let exposure = Exposure {
            backend: kernel.way().name(),
            reason,
            path: PathBuf::from("/dev").join(kernel.name().as_str()),
            how,
        };
        self.service.send(ServiceCommand::Expose(guid, exposure));
    }

    /// A device of an earlier start stays, and its I/O waits, as long as its unit tells of what cannot be
    /// served.
    pub(super) fn hold_back(&self, guid: Guid, problem: &str) {
        let Some((held, kernel)) = self.held.get(&guid).and_then(|h| Some((h, h.kernel()?))) else {
            return;
        };
        let (name, node) = (held_name(&self.held, guid), kernel.name());
        lock(&self.names).insert(guid, node.clone());
        let problem = format!("its I/O waits: {problem}");
        log::error!("/dev/{} ({name}) is not served: {problem}", node.as_str());
        self.expose(guid, kernel, held.reason.clone(), How::Failed(problem));
    }

    /// Gives the kernel new connections for those that it has lost.
    pub(super) fn replace(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .held
            .iter_mut()
            .filter_map(|(guid, held)| {
                let (count, _) = held.missing.filter(|(_, at)| *at + REPLACE_AFTER <= now)?;
                held.missing = None;
                Some((
                    *guid,
                    count,
                    held.kernel()?,
                    held.reason.clone(),
                    info(&held.owned),
                ))
            })
            .collect();
        for (guid, count, kernel, reason, facts) in due {
            lock(&self.names).insert(guid, kernel.name());
            let name = kernel.name();
            match self.reconnect(guid, count, kernel, reason, &facts) {
                Ok(()) if count > 0 => {
                    log::info!("/dev/{} is served again", name.as_str());
                    self.links.expect(guid, now);
                }
                Ok(()) => log::info!(
                    "/dev/{} has {} bytes now",
                    name.as_str(),
                    facts.served_bytes()
                ),
                Err(e) if count == 0 => {
                    log::warn!("/dev/{} keeps its size: {e}", name.as_str());
                }
                Err(e) => {
                    log::warn!("/dev/{} is not served yet: {e}", name.as_str());
                    if let Some(held) = self.held.get_mut(&guid) {
                        held.missing = Some((count, Instant::now()));
                    }
                }
            }
        }
    }

    /// Serves a device of the kernel (again), with `count` new connections; where that is 0, only
    /// its size is told.
    fn reconnect(
        &self,
        guid: Guid,
        count: usize,
        kernel: Kernel,
        reason: String,
        facts: &ExportInfo,
    ) -> std::io::Result<()> {
        match kernel {
            Kernel::Ublk(id) if count == 0 => ublk::resize(id, facts),
            Kernel::Ublk(id) => {
                let file = ublk::take_over(id)?;
                self.expose(guid, kernel, reason, How::Ublk(file));
                ublk::resume(id)
            }
            Kernel::Nbd(index) => {
                let (ours, theirs) = nbd::pairs(count)?;
                self.expose(guid, kernel, reason, How::Nbd(ours));
                nbd::reconnect(index, self.config.host, guid, facts, theirs)
            }
        }
    }
}
