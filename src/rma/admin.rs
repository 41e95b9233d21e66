//! Administrators' requests and what the agent shows of itself.

use super::agent::Agent;
use super::members::{Liveness, Station};
use super::plan::error;
use super::report::{self, children_by_number, in_figure_order};
use super::request::{
    AdminError, AdminReply, AdminRequest, Caller, ControllerTreeInfo, DeviceInfo, DeviceTreeInfo,
    DropInfo, ErrorKind, HostInfo, LivenessInfo, StatusInfo, TreeInfo, UnitInfo, UnitTreeInfo,
};
use super::settle::granularity_reply;
use crate::wire::{EntityType, Guid, Row, Time};

impl Agent {
    /// An administrator, whose process is `caller`, asks; the answer is an
    /// [`AgentAction::AdminReply`] with the same token, at once or later.
    ///
    /// [`AgentAction::AdminReply`]: super::AgentAction::AdminReply
    pub fn admin(&mut self, now: Time, token: u64, caller: Caller, request: AdminRequest) {
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(Box::new(self.status(now))),
            AdminRequest::Hosts => AdminReply::Hosts {
                hosts: self.hosts(now),
            },
            AdminRequest::Units => AdminReply::Units {
                units: self.units(now),
            },
            AdminRequest::Devices => AdminReply::Devices {
                devices: self.devices(now, |_| true),
            },
            AdminRequest::Tree => AdminReply::Tree(Box::new(self.tree(now))),
            AdminRequest::Table => {
                AdminReply::Table(Box::new(report::table_info(&self.table, self.cluster)))
            }
            AdminRequest::Exports => AdminReply::Exports {
                devices: self.devices(now, |agent_owned| agent_owned),
            },
            AdminRequest::Watch => AdminReply::Watching,
            AdminRequest::GranularityGet => granularity_reply(self.table.settings(), false),
            AdminRequest::GranularitySet { granularity } => {
                match self.set_granularity(now, token, &caller, &granularity) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::Allocate {
                target,
                hosts,
                shared,
                recursive,
            } => {
                let to = Some((&hosts[..], shared));
                match self.allocate(now, token, &caller, &target, to, recursive) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::Move {
                target,
                cluster,
                host,
                recursive,
            } => {
                let what = (&*target, &*cluster, &*host);
                match self.move_row(now, token, &caller, what, recursive) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::RestoreUnit { unit, force } => {
                match self.restore_unit(now, token, &unit, force) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::Forget { target } => match self.forget(token, &target) {
                Ok(()) => return self.pump(now),
                Err(e) => AdminReply::Error(e),
            },
            AdminRequest::Carve {
                device,
                offset,
                size,
                name,
            } => match self.carve(now, token, &caller, &device, (offset, size), &name) {
                Ok(()) => return self.pump(now),
                Err(e) => AdminReply::Error(e),
            },
            AdminRequest::Apply { desired, dry_run } => {
                match self.apply(now, token, &caller, &desired, dry_run) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::Uncarve { extent } => match self.uncarve(now, token, &caller, &extent) {
                Ok(()) => return self.pump(now),
                Err(e) => AdminReply::Error(e),
            },
            AdminRequest::Release { target, recursive } => {
                match self.allocate(now, token, &caller, &target, None, recursive) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::LockStatus => match self.lock_status(now, token) {
                Ok(()) => return self.pump(now),
                Err(e) => AdminReply::Error(e),
            },
            AdminRequest::LockAcquire { force } => {
                match self.lock_acquire(now, token, caller, force) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
            AdminRequest::LockRelease { force } => {
                match self.lock_release(now, token, caller, force) {
                    Ok(()) => return self.pump(now),
                    Err(e) => AdminReply::Error(e),
                }
            }
        };
        self.reply(token, reply);
        self.pump(now);
    }

    pub(super) fn not_ready(&self) -> AdminError {
        let message = if self.boot.is_stopped() {
            "the agent has stopped; start rmad again".to_owned()
        } else if self.cluster.is_none() {
            "this host has no cluster yet; let fabric services assign one (`rma status`)".to_owned()
        } else {
            format!(
                "the agent is still at block {} of its start; try again in a few seconds \
                 (`rma status`)",
                self.boot.number()
            )
        };
        error(ErrorKind::NotReady, message)
    }

    fn liveness(&self, now: Time, guid: Guid) -> LivenessInfo {
        let station: Option<&Station> = self.station(guid);
        let (word, since) = match station {
            None if guid == self.config.guid => ("self", Time::ZERO),
            None => ("unknown", now),
            Some(s) => (
                match s.liveness {
                    Liveness::Unknown => "unknown",
                    Liveness::Reachable => "reachable",
                    Liveness::Unreachable => "unreachable",
                },
                s.since,
            ),
        };
        LivenessInfo {
            liveness: word.to_owned(),
            liveness_ms: if word == "self" {
                0
            } else {
                now.since(since).as_millis() as u64
            },
        }
    }

    fn rows_of(&self, entities: &'static [EntityType]) -> impl Iterator<Item = &Row> {
        in_figure_order(&self.table)
            .into_iter()
            .filter(move |row| entities.contains(&row.entity))
    }

    fn hosts(&self, now: Time) -> Vec<HostInfo> {
        let digest = self.table.digest();
        self.rows_of(&[EntityType::Host])
            .map(|row| {
                let own = row.guid == self.config.guid;
                let told = match self.peers.get(&row.guid) {
                    _ if own => Some(self.table.summary()),
                    Some(peer) => peer.summary,
                    None => None,
                };
                HostInfo {
                    row: report::row_info(&self.table, row),
                    liveness: self.liveness(now, row.guid),
                    member: self.is_member(row.guid),
                    table: told.as_ref().map(report::summary_info),
                    in_step: told.is_some_and(|t| t.digest == digest),
                }
            })
            .collect()
    }

    fn unit_info(&self, now: Time, row: &Row) -> UnitInfo {
        let controllers = || self.table.children(row.guid).filter(|c| c.is_valid());
        let devices = controllers()
            .flat_map(|c| self.table.children(c.guid))
            .filter(|d| d.is_valid());
        UnitInfo {
            row: report::row_info(&self.table, row),
            liveness: self.liveness(now, row.guid),
            member: self.is_member(row.guid),
            guest: self.is_guest(row.guid),
            registers_lost: self
                .units
                .get(&row.guid)
                .is_some_and(|unit| unit.registers_lost),
            controller_count: controllers().count() as u64,
            device_count: devices.count() as u64,
        }
    }

    fn units(&self, now: Time) -> Vec<UnitInfo> {
        self.rows_of(&[EntityType::Unit])
            .map(|row| self.unit_info(now, row))
            .collect()
    }

    fn devices(&self, now: Time, wanted: impl Fn(bool) -> bool) -> Vec<DeviceInfo> {
        self.rows_of(&[EntityType::Device, EntityType::Extent])
            .map(|row| (row, self.owned.contains_key(&row.guid)))
            .filter(|(_, owned)| wanted(*owned))
            .map(|(row, owned)| {
                let unit = self.table.unit_of(row.guid).unwrap_or(Guid::NIL);
                DeviceInfo {
                    row: report::row_info(&self.table, row),
                    unit: report::name_info(&self.table, unit),
                    liveness: self.liveness(now, unit),
                    owned_here: owned,
                }
            })
            .collect()
    }

    fn tree(&self, now: Time) -> TreeInfo {
        let valid = |guid| {
            let children = children_by_number(&self.table, guid).into_iter();
            children.filter(|row| row.is_valid())
        };
        let units = self
            .rows_of(&[EntityType::Unit])
            .filter(|row| row.is_valid())
            .map(|row| UnitTreeInfo {
                unit: self.unit_info(now, row),
                controllers: valid(row.guid)
                    .map(|controller| ControllerTreeInfo {
                        row: report::row_info(&self.table, controller),
                        devices: valid(controller.guid)
                            .map(|device| DeviceTreeInfo {
                                row: report::row_info(&self.table, device),
                                extents: valid(device.guid)
                                    .map(|extent| report::row_info(&self.table, extent))
                                    .collect(),
                            })
                            .collect(),
                    })
                    .collect(),
            })
            .collect();
        TreeInfo {
            cluster: self.cluster.as_str().to_owned(),
            hosts: self.hosts(now),
            units,
        }
    }

    fn status(&self, now: Time) -> StatusInfo {
        let digest = self.table.digest();
        let up = |s: &Station| s.is_up();
        let devices = self
            .table
            .rows()
            .filter(|row| row.entity == EntityType::Device && self.table.is_present(row.guid));
        StatusInfo {
            host: super::request::NameInfo {
                guid: self.config.guid.to_string(),
                name: self.config.name.clone(),
            },
            macs: self.config.macs.iter().map(ToString::to_string).collect(),
            cluster: self.cluster.as_str().to_owned(),
            incarnation: self.config.incarnation.0,
            block: self.boot.number(),
            fabric: self.fabric.0.word().to_owned(),
            fabric_ms: now.since(self.fabric.1).as_millis() as u64,
            table: report::summary_info(&self.table.summary()),
            granularity: self.table.settings().granularity.name().to_owned(),
            crt_source: self.config.crt_source.word().to_owned(),
            centre: self.centre_info(),
            peer_count: self.hosts_as_peers().count() as u64,
            peers_reachable: self.hosts_as_peers().filter(|p| up(&p.station)).count() as u64,
            peers_in_step: self
                .hosts_as_peers()
                .filter(|p| p.summary.is_some_and(|t| t.digest == digest))
                .count() as u64,
            unit_count: self.units.len() as u64,
            units_reachable: self.units.values().filter(|u| up(&u.station)).count() as u64,
            device_count: devices.count() as u64,
            devices_owned: self.owned.len() as u64,
            refused: self.refusals(),
            drops: self
                .drops()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| DropInfo {
                    reason: reason.name().to_owned(),
                    count,
                })
                .collect(),
        }
    }
}
