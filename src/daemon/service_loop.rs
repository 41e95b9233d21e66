//! The service thread's rounds: what it waits for, and for how long it polls.

use super::event_loop::{Event, Loop, now};
use super::service::{Service, TOKEN_COMMANDS};
use super::spin::Spin;
use crate::export::kernel::flusher;
use crate::net::LinkState;
use crate::wire::Time;

impl Service {
    pub(super) fn run(mut self, mut event_loop: Loop) {
        if let Err(e) = flusher::mark_thread() {
            // Without block devices of ours nothing waits for this thread.
            log::debug!("the service thread is not marked as one that write-back needs: {e}");
        }
        self.tell_nics();
        let mut seen = Vec::new();
        // Frames are polled for while answers are awaited, otherwise what clients want next.
        let (mut frames, mut clients) = (Spin::default(), Spin::default());
        let mut has_worked = false;
        loop {
            seen.clear();
            let mut time = now();
            let waits = self.initiator.is_waiting();
            let spin = if waits { &mut frames } else { &mut clients };
            if std::mem::take(&mut has_worked) {
                spin.worked(time);
            }
            let polls = spin.polls(time);
            // While it polls for frames, everything else is looked at now and then.
            let looks = !polls || !waits || spin.looks(time);
            if looks {
                if !self.look(&mut event_loop, polls, &mut seen) {
                    return;
                }
                time = now();
            }
            let received = self.state() == LinkState::Up && self.receive(time);
            if !received && polls && spin.yields(time) {
                std::thread::yield_now();
            }
            if !looks && !received {
                std::hint::spin_loop();
                continue;
            }
            // The clock is read once for a round: that takes as long as much of the rest.
            if received {
                time = now();
            }
            self.initiator.tick(time);
            self.serve(time, looks);
            self.transmit(time);
            match (waits, self.initiator.is_waiting()) {
                (true, true) => has_worked = received || !polls,
                (true, false) => {
                    frames.rest();
                    has_worked = true;
                }
                (false, true) => {
                    clients.worked(time);
                    clients.rest();
                    has_worked = true;
                }
                (false, false) => {}
            }
        }
    }

    /// Sees what is ready, or (where `polls`) only whether something is, and obeys the management
    /// thread; `false` to end.
    fn look(&mut self, event_loop: &mut Loop, polls: bool, seen: &mut Vec<Event>) -> bool {
        let told = if polls {
            self.socket.disarm()
        } else {
            self.socket.arm()
        };
        if let Err(e) = told {
            log::error!("service thread: {e}");
            return false;
        }
        let deadline = if polls || self.is_unfinished {
            Some(Time::ZERO)
        } else {
            let own = self.initiator.deadline().into_iter();
            own.chain(self.loads.deadline()).min()
        };
        if let Err(e) = event_loop.wait(deadline, seen) {
            log::error!("service thread: cannot wait: {e}");
            return false;
        }
        let commands = seen.iter().any(|event| {
            matches!(
                event,
                Event::Ready {
                    token: TOKEN_COMMANDS,
                    ..
                }
            )
        });
        if commands {
            let _ = self.wake.read();
        }
        self.obey()
    }
}
