//! What becomes of a session's commands when a path, or the whole connection, is lost and another is there.

use super::command::Phase;
use super::commands::Commands;
use super::paths::Paths;

impl Commands {
    /// Asks after all commands of a path, which is lost or carries less than was thought.
    pub(super) fn ask_again_all(&mut self, path: usize) {
        for id in self.floor..self.next_send {
            let Some(command) = self.flying(id).filter(|c| c.path == path) else {
                continue;
            };
            command.retried = true;
            command.tries = 0;
            if command.has_unsent() {
                self.take_usable_path(id);
            } else {
                self.ask_again(id);
            }
        }
    }

    /// Has a command take another path where its own does not answer.
    pub(super) fn take_usable_path(&mut self, id: u64) {
        let Some(command) = self.get(id) else {
            return;
        };
        let (from, cost) = (command.path, command.cost);
        let to = self.paths.again(from);
        if to != from {
            self.paths.list[from].window.release(cost);
            self.paths.list[to].window.sent(cost);
            if let Some(command) = self.get(id) {
                command.path = to;
            }
        }
    }

    fn stop_timers(&mut self) {
        for path in &mut self.paths.list {
            path.fresh.clear();
        }
        self.wakes.clear();
        self.probing.clear();
        self.sending.clear();
    }

    /// The connection is gone: nothing is sent until [`Self::resume`] or [`Self::restart`].
    pub(super) fn pause(&mut self) {
        self.stop_timers();
        for command in &mut self.list {
            command.rest();
        }
    }

    /// A connection is there again, and the responder knows what it knew: asks after everything, by the
    /// connection's first path.
    pub(super) fn resume(&mut self) {
        self.pause();
        for command in &mut self.list {
            command.path = 0;
            if command.phase == Phase::Flight {
                self.paths.list[0].window.sent(command.cost);
            }
        }
        for id in self.floor..self.next_send {
            let Some(command) = self.flying(id) else {
                continue;
            };
            let half_sent = command.has_unsent();
            command.retried = true;
            if half_sent {
                self.queue_sending(id);
            } else {
                self.ask_again(id);
            }
        }
    }

    /// A connection is there, and the responder knows nothing: everything unanswered is sent
    /// again. What is not wanted any more is not.
    pub(super) fn restart(&mut self) {
        self.stop_timers();
        self.held = 0;
        self.reply_bytes = 0;
        for command in &mut self.list {
            command.path = 0;
            if command.phase == Phase::Flight {
                command.rewind();
            }
            if command.phase == Phase::Done {
                command.charge = 0;
            }
        }
        let cancelled: Vec<u64> = (self.floor..)
            .zip(&self.list)
            .filter(|(_, c)| c.cancelled && c.phase == Phase::Queued)
            .map(|(id, _)| id)
            .collect();
        for id in cancelled {
            self.finish(id);
        }
        self.next_send = self.floor;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        let paths = Paths::new(self.service, self.mtu);
        *self = Self {
            // A farewell goes where the connection was.
            paths: std::mem::replace(&mut self.paths, paths),
            ..Self::new(self.credits, self.mtu, self.service)
        };
    }
}
