//! The paths of a session at its responder: by which pairs of NICs it was heard, and how long frames may be
//! that are sent there. Who may send what by which of them is no question: a path identifies nothing.

use super::session::Session;
use crate::session::limits::{MAX_PATHS, PATH_MTU_START};
use crate::wire::{Hop, MIN_MTU};

/// A pair of NICs by which the session was heard.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) hop: Hop,
    /// The most bytes of a frame that may be sent there.
    pub(super) mtu: u16,
}

/// What the own NIC of a hop takes.
fn nic_mtu(nics: &[u16], hop: Hop) -> u16 {
    let nic = nics.get(usize::from(hop.nic)).or_else(|| nics.iter().min());
    nic.copied().unwrap_or(MIN_MTU)
}

impl Session {
    /// A new connection: what else was known of paths is of the past.
    pub(super) fn begin_paths(&mut self, hop: Hop, nics: &[u16]) {
        // Longer frames are sent when the initiator has tried them.
        let mtu = self.mtu.min(PATH_MTU_START).min(nic_mtu(nics, hop));
        self.paths.clear();
        self.paths.push(Path { hop, mtu });
        self.last = 0;
        self.answer_by_first_path();
    }

    /// A frame came by `hop`.
    pub(super) fn came_by(&mut self, hop: Hop, nics: &[u16]) {
        if self
            .paths
            .get(self.last)
            .is_some_and(|path| path.hop == hop)
            || hop.mac.is_multicast()
        {
            return;
        }
        self.peer.mac = hop.mac;
        if let Some(at) = self.paths.iter().position(|path| path.hop == hop) {
            self.last = at;
            return;
        }
        let mtu = self.mtu.min(PATH_MTU_START).min(nic_mtu(nics, hop));
        let path = Path { hop, mtu };
        if self.paths.len() < MAX_PATHS {
            self.paths.push(path);
            self.last = self.paths.len() - 1;
        } else {
            self.last = (self.last + 1) % MAX_PATHS;
            self.paths[self.last] = path;
        }
    }

    /// Where the last frame came from.
    pub(super) fn hop(&self) -> Hop {
        let path = self.paths.get(self.last);
        path.map_or(Hop::any(self.peer.mac), |path| path.hop)
    }

    /// What frames may have that are sent where the last one came from.
    pub(super) fn path_mtu(&self) -> u16 {
        let path = self.paths.get(self.last);
        path.map_or(self.mtu, |path| path.mtu)
    }

    /// The initiator's word on what the path of this frame carries; gives what the own NIC takes.
    pub(super) fn take_path_mtu(&mut self, mtu: u16, nics: &[u16]) -> u16 {
        let Some(path) = self.paths.get_mut(self.last) else {
            return self.mtu;
        };
        let own = nic_mtu(nics, path.hop);
        path.mtu = mtu.min(own);
        own
    }

    /// The own NICs take so much now.
    pub(super) fn limit_paths(&mut self, nics: &[u16]) {
        for path in &mut self.paths {
            path.mtu = path.mtu.min(nic_mtu(nics, path.hop));
        }
    }
}
