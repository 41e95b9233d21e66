//! One thread's waiting: file descriptors, a deadline and signals; the clock of the daemons; logging.
//! Knows no protocol.
//!
//! ```text
//! loop {
//!     ready.clear();
//!     event_loop.wait(core.deadline(), &mut ready)?;
//!     for event in &ready { drain what it names }
//!     core.tick(now()); act; send
//! }
//! ```

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::watchdog::Watchdog;
use crate::wire::Time;

/// The most events that one [`Loop::wait`] reports; what is left over comes with the next.
pub const MAX_EVENTS: usize = 64;

/// A deadline that is nearer is waited for with a timer, to the nanosecond; one that is farther with the
/// wait's own timeout, which costs two system calls less and comes up to a millisecond late.
const NEAR: Duration = Duration::from_millis(3);
/// The longest timeout of one wait, in milliseconds: its clock stands still while the machine sleeps.
const LONGEST_WAIT_MS: u16 = 1000;

const TOKEN_SIGNALS: u64 = u64::MAX;
const TOKEN_TIMER: u64 = u64::MAX - 1;

/// The monotonic clock that goes on while the machine sleeps (CLOCK_BOOTTIME).
pub fn now() -> Time {
    // The clock exists on every kernel this runs on; there is no other cause of an error.
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("CLOCK_BOOTTIME is there since Linux 2.6.39");
    Time::from_nanos(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// What to wait for on a file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Something to read, or room to write.
    ReadWrite,
    /// Nothing but errors.
    None,
}

impl Interest {
    const fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::ReadWrite => EpollFlags::EPOLLIN.union(EpollFlags::EPOLLOUT),
            Self::None => EpollFlags::empty(),
        }
    }
}

/// What [`Loop::wait`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A file descriptor is ready.
    Ready {
        /// The token it was added under.
        token: u64,
        /// Something to read, or the end.
        readable: bool,
        /// Room to write.
        writable: bool,
        /// An error is pending or the other side has hung up.
        hangup: bool,
    },
    /// SIGTERM or SIGINT: stop cleanly.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
    /// The service manager wants to hear that the daemon is alive: [`notify_alive`].
    Beat,
}

/// Waits for file descriptors, a deadline and signals; level-triggered.
#[derive(Debug)]
pub struct Loop {
    epoll: Epoll,
    timer: TimerFd,
    signals: Option<SignalFd>,
    watchdog: Option<Watchdog>,
    armed: Option<Time>,
}

impl Loop {
    /// A loop that owns SIGTERM, SIGINT and SIGHUP of this process. Make it before any thread:
    /// threads inherit the blocked signals. SIGPIPE is ignored from here on.
    pub fn new() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for wanted in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(wanted);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        ignore_sigpipe()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut event_loop = Self::without_signals()?;
        event_loop.epoll.add(
            &signals,
            EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_SIGNALS),
        )?;
        event_loop.signals = Some(signals);
        event_loop.watchdog = Watchdog::from_environment(now());
        Ok(event_loop)
    }

    /// A loop for a further thread, which leaves the signals to the first.
    pub fn without_signals() -> io::Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_TIMER))?;
        Ok(Self {
            epoll,
            timer,
            signals: None,
            watchdog: None,
            armed: None,
        })
    }

    /// Adds a file descriptor under `token`; the two largest numbers are the loop's own.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        assert!(token < TOKEN_TIMER, "token {token} is the loop's own");
        let event = EpollEvent::new(interest.flags(), token);
        Ok(self.epoll.add(fd, event)?)
    }

    /// Changes what is waited for.
    pub fn change(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = EpollEvent::new(interest.flags(), token);
        Ok(self.epoll.modify(fd, &mut event)?)
    }

    /// Forgets a file descriptor; a closed one is forgotten by itself.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until something is ready or `deadline` has come (`None`: for ever; in the past: only
    /// looks) and appends what it saw. May return early with nothing.
    pub fn wait(&mut self, deadline: Option<Time>, seen: &mut Vec<Event>) -> io::Result<()> {
        let beat = self.watchdog.as_ref().map(Watchdog::deadline);
        let timeout = match deadline.into_iter().chain(beat).min() {
            Some(at) => {
                let left = at.since(now());
                if left.is_zero() {
                    EpollTimeout::ZERO
                } else if left < NEAR {
                    self.arm(at)?;
                    EpollTimeout::NONE
                } else {
                    let ms = left.as_micros().div_ceil(1000);
                    EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX).min(LONGEST_WAIT_MS))
                }
            }
            None => EpollTimeout::NONE,
        };
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for event in &events[..count] {
            match event.data() {
                TOKEN_SIGNALS => self.take_signals(seen)?,
                TOKEN_TIMER => self.take_timer()?,
                token => {
                    let flags = event.events();
                    let hangup = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
                    seen.push(Event::Ready {
                        token,
                        readable: hangup || flags.contains(EpollFlags::EPOLLIN),
                        writable: flags.contains(EpollFlags::EPOLLOUT),
                        hangup,
                    });
                }
            }
        }
        if self.watchdog.as_mut().is_some_and(|dog| dog.is_due(now())) {
            seen.push(Event::Beat);
        }
        Ok(())
    }

    /// Arms the timer unless it already goes off by then: waking early is cheaper than arming.
    fn arm(&mut self, at: Time) -> io::Result<()> {
        if self.armed.is_some_and(|armed| armed <= at) {
            return Ok(());
        }
        let nanos = at.as_nanos();
        let spec = TimeSpec::new(
            i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            i64::from((nanos % 1_000_000_000) as u32),
        );
        self.timer.set(
            Expiration::OneShot(spec),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        )?;
        self.armed = Some(at);
        Ok(())
    }

    fn take_timer(&mut self) -> io::Result<()> {
        self.armed = None;
        let mut count = [0; 8];
        match nix::unistd::read(&self.timer, &mut count) {
            Ok(_) | Err(nix::Error::EAGAIN | nix::Error::ECANCELED) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take_signals(&self, seen: &mut Vec<Event>) -> io::Result<()> {
        let Some(signals) = &self.signals else {
            return Ok(());
        };
        while let Some(info) = signals.read_signal()? {
            seen.push(if info.ssi_signo == Signal::SIGHUP as u32 {
                Event::Reload
            } else {
                Event::Stop
            });
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn ignore_sigpipe() -> nix::Result<()> {
    // SAFETY: ignoring a signal installs no handler that could run.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.map(drop)
}

/// Starts the log on standard error: `RUST_LOG` if set, otherwise `level` (such as `info`). Lines
/// carry no time under systemd, whose journal has its own.
pub fn init_logging(level: &str) {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level));
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.format_timestamp(None);
    } else {
        builder.format_timestamp_millis();
    }
    // A second start in one process (tests) keeps the first.
    let _ = builder.format_target(false).try_init();
}

/// Tells the service manager, if there is one, how the daemon is.
pub fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        log::debug!("service manager not told: {e}");
    }
}

/// Tells the service manager that the daemon is alive; after [`Event::Beat`], once whatever must turn
/// has turned.
pub fn notify_alive() {
    notify(&[sd_notify::NotifyState::Watchdog]);
}

/// Tells the service manager that the configuration is read again; say ready when that is over.
pub fn notify_reloading() {
    let mut state = vec![sd_notify::NotifyState::Reloading];
    state.extend(sd_notify::NotifyState::monotonic_usec_now());
    notify(&state);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ready_descriptor_is_named_until_it_is_drained_or_removed() {
        let mut event_loop = Loop::new().unwrap();
        let (reader, mut writer) = UnixStream::pair().unwrap();
        event_loop.add(&reader, 7, Interest::Read).unwrap();
        let mut seen = Vec::new();
        event_loop.wait(Some(Time::ZERO), &mut seen).unwrap();
        assert_eq!(seen, []);
        writer.write_all(b"x").unwrap();
        for _ in 0..2 {
            seen.clear();
            event_loop.wait(None, &mut seen).unwrap();
            let expected = Event::Ready {
                token: 7,
                readable: true,
                writable: false,
                hangup: false,
            };
            assert_eq!(seen, [expected]);
        }
        event_loop.change(&reader, 7, Interest::ReadWrite).unwrap();
        seen.clear();
        event_loop.wait(None, &mut seen).unwrap();
        assert!(matches!(seen[..], [Event::Ready { writable: true, .. }]));
        event_loop.remove(&reader).unwrap();
        seen.clear();
        event_loop.wait(Some(Time::ZERO), &mut seen).unwrap();
        assert_eq!(seen, []);
    }

    #[test]
    fn a_deadline_ends_the_wait_and_not_before_it_has_come() {
        let mut event_loop = Loop::new().unwrap();
        let far = now() + Duration::from_secs(3600);
        event_loop.arm(far).unwrap();
        let deadline = now() + Duration::from_millis(3);
        let mut seen = Vec::new();
        event_loop.wait(Some(deadline), &mut seen).unwrap();
        assert!(now() >= deadline);
        assert_eq!(seen, []);
    }

    #[test]
    fn signals_become_events() {
        let mut event_loop = Loop::new().unwrap();
        let mut seen = Vec::new();
        for (sent, expected) in [
            (Signal::SIGHUP, Event::Reload),
            (Signal::SIGTERM, Event::Stop),
            (Signal::SIGINT, Event::Stop),
        ] {
            // To this thread only; Loop::new has blocked the signals in it.
            nix::sys::signal::raise(sent).unwrap();
            seen.clear();
            event_loop.wait(None, &mut seen).unwrap();
            assert_eq!(seen, [expected]);
        }
    }
}
