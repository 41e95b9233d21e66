//! The loads that `rma bench` has the service thread make: which I/O belongs to which, and when its
//! user hears of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::service::ServiceEvent;
use crate::initiator::load::Load;
use crate::initiator::{DeviceId, Initiator, IoError};
use crate::wire::Time;

/// The most loads at a time.
const MAX_LOADS: usize = 16;
/// How often its user hears how a load goes.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The bit of an I/O's token that says that it is a load's; a connection to an NBD socket would
/// have it only after 2^31 others.
const LOAD: u64 = 1 << 63;

struct Running {
    /// Names it in the tokens of its I/Os.
    number: u32,
    device: DeviceId,
    load: Load,
    report_at: Time,
    /// Nobody waits for it any more.
    is_unwanted: bool,
}

/// The loads under way, by their users' tokens.
#[derive(Default)]
pub(super) struct Loads {
    running: BTreeMap<u64, Running>,
    next_number: u32,
}

impl Loads {
    /// Whether an I/O's token is of a load.
    pub(super) const fn owns(token: u64) -> bool {
        token & LOAD != 0
    }

    /// Begins a load, or says why not.
    pub(super) fn begin(
        &mut self,
        now: Time,
        token: u64,
        device: DeviceId,
        load: Load,
    ) -> Result<(), String> {
        if self.running.len() >= MAX_LOADS {
            return Err(format!("{MAX_LOADS} loads are running; try again"));
        }
        let number = self.next_number;
        self.next_number = (number + 1) % (1 << 31);
        let running = Running {
            number,
            device,
            load,
            report_at: now + REPORT_INTERVAL,
            is_unwanted: false,
        };
        self.running.insert(token, running);
        Ok(())
    }

    /// Begins nothing more for that user; what is under way is awaited.
    pub(super) fn end(&mut self, token: u64) {
        if let Some(running) = self.running.get_mut(&token) {
            running.is_unwanted = true;
        }
    }

    /// Submits the I/Os that are to be begun now; whether there were any.
    pub(super) fn submit(&mut self, now: Time, initiator: &mut Initiator) -> bool {
        let mut any = false;
        for running in self.running.values_mut().filter(|r| !r.is_unwanted) {
            let high = LOAD | u64::from(running.number) << 32;
            let device = running.device;
            while let Some((slot, io)) = running.load.next(now) {
                any = true;
                initiator.submit(now, device, io, high | u64::from(slot));
            }
        }
        any
    }

    /// An I/O has ended; what it has read goes back to the initiator.
    pub(super) fn done(
        &mut self,
        now: Time,
        token: u64,
        result: Result<Vec<u8>, IoError>,
        initiator: &mut Initiator,
    ) {
        let number = ((token & !LOAD) >> 32) as u32;
        let running = self.running.values_mut().find(|r| r.number == number);
        if let Some(running) = running {
            let result = result.map(|read| initiator.give_buffer(running.device, read));
            running.load.done(now, token as u32, result);
        }
    }

    /// What their users are to hear now.
    pub(super) fn reports(&mut self, now: Time) -> Vec<ServiceEvent> {
        let mut told = Vec::new();
        self.running.retain(|token, running| {
            let over = running.load.is_over(now) || (running.is_unwanted && running.load.is_idle());
            if over || running.report_at <= now {
                running.report_at = now + REPORT_INTERVAL;
                told.push(ServiceEvent::Load {
                    token: *token,
                    report: Ok(running.load.report()),
                    over,
                });
            }
            !over
        });
        told
    }

    /// When [`Self::reports`] has something next.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.running.values().map(|r| r.report_at).min()
    }
}
