//! How the service thread exports a device: in the way that the device thread has chosen, and as
//! `rma exports` shows it.

use std::path::PathBuf;

use super::event_loop::now;
use super::rmad_policies::seconds;
use super::service::Service;
use super::service_words::{Exposure, How, info};
use crate::admin::protocol::{
    DeviceStatistics, ExportInfo as ExportStatus, FrameStatistics, PathStatistics,
};
use crate::initiator::Policy;
use crate::wire::Guid;

/// How an export looks from outside.
pub(super) struct Shown {
    backend: &'static str,
    reason: String,
    path: PathBuf,
    problem: Option<String>,
}

impl Service {
    /// Serves a device in the way that the device thread has chosen.
    pub(super) fn expose(&mut self, guid: Guid, exposure: Exposure) {
        // One that is no longer owned is no longer served either: what came with it is closed.
        let Some(export) = self.exports.get_mut(&guid) else {
            return;
        };
        let facts = info(&export.owned);
        let Exposure {
            backend,
            reason,
            path,
            how,
        } = exposure;
        let problem = match how {
            How::Socket => match self.sockets.open(guid, &path, facts) {
                Ok(()) => {
                    let name = export.owned.row.name.escape_default();
                    log::info!("export {name} ({guid}) at {}", path.display());
                    None
                }
                Err(e) => {
                    let name = export.owned.row.name.escape_default();
                    log::error!("device {name} ({guid}) is not exported: {e}");
                    Some(e.to_string())
                }
            },
            How::Nbd(streams) => self
                .sockets
                .serve_kernel(guid, facts, streams)
                .err()
                .map(|e| e.to_string()),
            How::Ublk(file) => self
                .queues
                .open(guid, facts, file)
                .err()
                .map(|e| e.to_string()),
            How::Failed(why) => {
                // What served it until now does no longer.
                self.sockets.close(guid);
                self.queues.close(guid);
                Some(why)
            }
        };
        export.shown = Some(Shown {
            backend,
            reason,
            path,
            problem,
        });
    }

    /// What the devices and the sockets have counted.
    pub(super) fn statistics(&mut self) -> (Vec<DeviceStatistics>, FrameStatistics) {
        let devices = self.exports.iter().filter_map(|(guid, export)| {
            Some(DeviceStatistics {
                guid: guid.to_string(),
                name: export.owned.row.name.clone(),
                done: self.initiator.stats(export.device)?,
            })
        });
        let devices = devices.collect();
        let counters = self.socket.counters();
        let frames = FrameStatistics {
            received: counters.received_frames,
            receive_drops: counters.receive_drops,
            malformed: counters.received_malformed + self.lists.malformed,
            sent: counters.sent_frames,
            send_drops: counters.send_drops + counters.send_oversized,
        };
        (devices, frames)
    }

    pub(super) fn report(&self) -> Vec<ExportStatus> {
        self.exports
            .values()
            .map(|export| {
                let row = &export.owned.row;
                let up = self.controllers.get(&(export.owned.unit, row.ioc)) == Some(&true);
                let shown = export.shown.as_ref();
                ExportStatus {
                    guid: row.guid.to_string(),
                    name: row.name.clone(),
                    backend: shown.map_or("none", |shown| shown.backend).into(),
                    reason: shown.map_or_else(String::new, |shown| shown.reason.clone()),
                    path: shown.map_or_else(String::new, |shown| shown.path.display().to_string()),
                    size_bytes: row.size_bytes,
                    block_size_bytes: row.block_size,
                    state: match shown.map(|shown| &shown.problem) {
                        None => "waiting for its controller".into(),
                        Some(Some(why)) => why.clone(),
                        Some(None) if up => "up".into(),
                        Some(None) if self.initiator.is_failing(export.device) => "failing".into(),
                        Some(None) => "queueing".into(),
                    },
                    fail_after_s: seconds(self.policy(row.guid)),
                    warning: self.warnings.get(&row.guid).cloned(),
                }
            })
            .collect()
    }

    /// The paths to controllers.
    pub(super) fn paths(&self) -> Vec<PathStatistics> {
        let names: Vec<String> = self.socket.interfaces().map(|i| i.name.clone()).collect();
        let paths = self.initiator.paths();
        let told = paths.map(|(unit, ioc, path)| PathStatistics {
            unit: unit.to_string(),
            controller: ioc.0,
            interface: names
                .get(usize::from(path.hop.nic))
                .cloned()
                .unwrap_or_default(),
            mac: path.hop.mac.to_string(),
            state: if path.is_used { "used" } else { "silent" }.to_owned(),
            mtu_bytes: path.mtu,
            round_trip_ns: path.round_trip.map(|trip| trip.as_nanos() as u64),
            commands: path.commands,
        });
        told.collect()
    }

    /// What becomes of a device's I/O while its unit cannot be reached.
    pub(super) fn policy(&self, guid: Guid) -> Policy {
        let (default, own) = &self.policies;
        own.get(&guid).copied().unwrap_or(*default)
    }

    pub(super) fn set_policies(&mut self) {
        for (guid, export) in &self.exports {
            let (default, own) = &self.policies;
            let policy = own.get(guid).copied().unwrap_or(*default);
            self.initiator.set_policy(now(), export.device, policy);
        }
    }
}
