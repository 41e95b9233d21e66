//! What others say that cannot be true: found, named, left out, so that nothing of ours is lost by it.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::report::label;
use crate::wire::message::{ControllersReply, Member, TableSummary};
use crate::wire::{Guid, Mac, Row, Settings};

impl Agent {
    /// Whether a table's stamps are such as no cluster comes to: then nothing is taken from it.
    pub(super) fn is_impossible(&mut self, from: Guid, theirs: &TableSummary) -> bool {
        let possible = theirs.stamp.is_possible() && theirs.floor.is_possible();
        if !possible {
            let name = self.name_list(&[from]);
            let (daemon, file) = if self.is_centre(from) {
                ("rma-fabricd", "database")
            } else {
                ("rmad", "table file")
            };
            self.warn(format!(
                "the table of {name} has a stamp that no cluster comes to ({}); nothing is taken \
                 from it: stop its {daemon}, put its {file} away, and start it again",
                stamp_text(theirs)
            ));
        }
        !possible
    }

    /// Leaves out rows with stamps that nothing could ever outrank; gives back settings to join.
    pub(super) fn leave_out_impossible(
        &mut self,
        from: Guid,
        settings: &Settings,
        rows: &mut Vec<Row>,
    ) -> Settings {
        let mut refused = Vec::new();
        rows.retain(|row| {
            let possible = row.observed.is_possible() && row.owned.is_possible();
            if !possible {
                refused.push(row.guid);
            }
            possible
        });
        for guid in refused {
            let name = self.name_list(&[from]);
            let row = label(&self.table, guid);
            self.warn(format!(
                "{row} in the table of {name} has a stamp that nothing could ever outrank; it is \
                 refused"
            ));
        }
        if settings.stamp.is_possible() {
            *settings
        } else {
            *self.table.settings()
        }
    }

    /// Which members claim a MAC address that another has: the one stays whose row has the address
    /// already, or of two newcomers the first.
    pub(super) fn mac_takers(&self, members: &[Member]) -> BTreeMap<Guid, (Mac, Guid)> {
        let had = |member: &Member, mac: &Mac| {
            let row = self.table.get(member.guid);
            row.is_some_and(|row| row.is_valid() && row.macs.contains(mac))
        };
        let mut holders: BTreeMap<Mac, &Member> = BTreeMap::new();
        let mut takers = BTreeMap::new();
        for member in members {
            for mac in &member.macs {
                let Some(holder) = holders.get(mac).copied() else {
                    holders.insert(*mac, member);
                    continue;
                };
                if had(member, mac) && !had(holder, mac) {
                    holders.insert(*mac, member);
                    takers.insert(holder.guid, (*mac, member.guid));
                } else {
                    takers.insert(member.guid, (*mac, holder.guid));
                }
            }
        }
        takers
    }

    /// Leaves out addresses of a unit that are another member's; whether any are left.
    pub(super) fn leave_out_taken(&mut self, unit: Guid, reply: &mut ControllersReply) -> bool {
        let Some(members) = &self.members else {
            return true;
        };
        let holder = |mac: &Mac| {
            let mut others = members.values().filter(|m| m.guid != unit);
            others.find(|m| m.macs.contains(mac)).map(|m| m.guid)
        };
        let taken: Vec<(Mac, Guid)> = reply
            .macs
            .iter()
            .filter_map(|mac| Some((*mac, holder(mac)?)))
            .collect();
        reply
            .macs
            .retain(|mac| taken.iter().all(|(other, _)| mac != other));
        for (mac, holder) in taken {
            let (name, other) = (label(&self.table, unit), label(&self.table, holder));
            self.warn(format!(
                "{name} claims MAC address {mac}, which is {other}'s; it is refused"
            ));
        }
        !reply.macs.is_empty()
    }

    /// What has been refused since the start, in words.
    pub(super) fn refusals(&self) -> Vec<String> {
        self.warned().cloned().collect()
    }
}

fn stamp_text(summary: &TableSummary) -> String {
    let stamp = if summary.stamp.is_possible() {
        summary.floor
    } else {
        summary.stamp
    };
    format!("{}.{}", stamp.term, stamp.counter)
}
