//! The cluster's table, asked of fabric services over the link.

use super::{FabricLink, LinkEvent, Purpose};
use crate::session::Request;
use crate::wire::{CommandId, Time};

impl FabricLink {
    /// Asks something about the cluster's table; `None` where that cannot be asked now. What comes of
    /// it is [`LinkEvent::Table`], or [`LinkEvent::TablesClosed`].
    pub fn ask_table(&mut self, now: Time, request: Request) -> Option<CommandId> {
        if !self.tables_open {
            return None;
        }
        let command = self.client.as_mut()?.submit(now, request).ok()?;
        self.waiting.insert(command, Purpose::Table);
        Some(command)
    }

    /// Registered, on this connection.
    pub(super) fn open_tables(&mut self) {
        if self.config.tables && !std::mem::replace(&mut self.tables_open, true) {
            self.events.push_back(LinkEvent::TablesOpen);
        }
    }

    /// No longer registered on this connection.
    pub(super) fn unregister(&mut self) {
        self.registered = false;
        if std::mem::take(&mut self.tables_open) {
            self.events.push_back(LinkEvent::TablesClosed);
        }
    }
}
