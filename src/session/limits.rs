//! The named limits and timers of sessions, in one place.

use std::time::Duration;

/// Commands that a client holds, sent or not; more are refused with `Full`.
pub const MAX_COMMANDS: usize = 16_384;
/// Request bytes that a client holds; more are refused with `Full`.
pub const MAX_QUEUED_BYTES: usize = 256 << 20;
/// Request and reply bytes that a responder keeps for one session.
pub const MAX_SESSION_BYTES: usize = 16 << 20;
/// Request and reply bytes that a responder keeps for all of its sessions.
pub const MAX_SERVER_BYTES: usize = 512 << 20;
/// Bytes of incomplete replies that a client keeps.
pub const MAX_REPLY_BYTES: usize = 64 << 20;
/// Small control frames waiting to be sent; more are not answered.
pub const MAX_CONTROL_FRAMES: usize = 256;
/// Notifications of a session that wait for their acknowledgement; more are not sent (polling heals).
pub const MAX_NOTIFICATIONS: usize = 256;
/// The most commands that may be outstanding on a session, whatever is asked for.
pub const MAX_CREDITS: u16 = 4096;

/// Retransmission timeout before the first measurement.
pub const RTO_INITIAL: Duration = Duration::from_millis(20);
/// The least retransmission timeout of a service connection; that of a management connection is
/// [`RTO_INITIAL`].
pub const RTO_MIN: Duration = Duration::from_millis(4);
/// The most that the variation of measured round trips makes of the first timeout of a command;
/// twice the smoothed round trip is always allowed.
pub const RTO_FIRST_MAX: Duration = Duration::from_millis(40);
/// The most that an answer that came only after a retry makes of the first timeout of the next
/// commands, until one is answered without.
pub const RTO_DOUBT_MAX: Duration = Duration::from_millis(120);
/// The most that backing off makes of a timeout.
pub const RTO_MAX: Duration = Duration::from_secs(1);
/// How long a gap in a reply may be mere reordering.
pub const REORDER_DELAY: Duration = Duration::from_millis(1);
/// A reply is not repeated as a whole sooner than this after it was sent.
pub const REPEAT_INTERVAL: Duration = Duration::from_millis(1);
/// When a connect is repeated first; it doubles.
pub const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// The least time between two immediate reconnects.
pub const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Silence after which a connection's liveness is asked for.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The same of a connection that nothing depends on: to a controller of which the host owns nothing.
pub const KEEPALIVE_QUIET: Duration = Duration::from_secs(10);
/// Keep-alives are sent at multiples of this on the initiator's clock, shifted by its identity: those
/// of its many connections together. An unanswered one is repeated at the next.
pub const KEEPALIVE_STEP: Duration = Duration::from_millis(250);
/// Unanswered keep-alives after which a connection is lost.
pub const KEEPALIVE_MISSED: u32 = 5;
/// The most keep-alives that may be unanswered where the responder has been slow to answer them: then it
/// is busy rather than dead, and connecting anew would make it busier.
pub const KEEPALIVE_MISSED_MAX: u32 = 35;
/// The longest silence of a connection that is not lost, where keep-alives are answered at once: asked
/// for at the step after the interval, then at every step.
pub const LOST_AFTER: Duration = Duration::from_nanos(
    KEEPALIVE_INTERVAL.as_nanos() as u64
        + KEEPALIVE_STEP.as_nanos() as u64 * (KEEPALIVE_MISSED as u64 + 1),
);
/// How long a responder keeps a connection that its initiator has not used yet.
pub const HALF_OPEN_TTL: Duration = Duration::from_secs(5);
/// Silence after which a responder reports a connection as closed.
pub const CONNECTION_TTL: Duration = Duration::from_secs(30);
/// How long a responder keeps a silent session for its initiator to resume, unless it runs out of
/// room or memory.
pub const SESSION_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long an incomplete request may stand still when memory is short.
pub const STALLED_AFTER: Duration = Duration::from_secs(2);
/// First delay between repetitions of a notification; it doubles.
pub const NOTIFY_INTERVAL: Duration = Duration::from_millis(50);
/// How often a notification is sent before the responder gives up.
pub const NOTIFY_TRIES: u32 = 10;

/// The most paths of a connection: pairs of NICs.
pub const MAX_PATHS: usize = 16;
/// What a path is taken to carry before longer frames were tried on it.
pub const PATH_MTU_START: u16 = 1500;
/// How often a path probe is sent in vain before that means something.
pub const PATH_TRIES: u8 = 3;
/// Silence after which a path is asked whether it is alive, where the connection has several.
pub const PATH_INTERVAL: Duration = Duration::from_secs(5);
/// How long a path that does not carry what its NICs would take is left in peace.
pub const PATH_AGAIN: Duration = Duration::from_secs(60);
/// How long at first: on a busy way what was tried in vain may have been lost. It doubles.
pub const PATH_AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Timeouts of commands on a path, without one in between that was answered, after which it is tried
/// whether long frames still pass.
pub const PATH_STRIKES: u32 = 3;

/// Bytes in flight at the start of a connection.
pub const WINDOW_START: usize = 256 << 10;
/// The least bytes in flight after losses (one command is always allowed).
pub const WINDOW_MIN: usize = 8 << 10;
/// So many bytes more are in flight after each round trip without losses, but at most a quarter of what there
/// were: many small windows at one port would overrun it each time.
pub const WINDOW_GROWTH: usize = 32 << 10;
/// A loss takes so many times its bytes from the window …
pub const LOSS_WEIGHT: usize = 4;
/// … and at least this part of it; at most the half.
pub const WINDOW_LEAST_CUT: usize = 16;
/// The most bytes in flight.
pub const WINDOW_MAX: usize = 4 << 20;
/// Bytes of requests that all initiators of a responder may have under way together, once more than that is lost on
/// the way to it: at first half of this …
pub const SHARED_BYTES_MAX: usize = 4 << 20;
/// … and never less than this: two round trips' worth of a wire of 10 Gbit/s.
pub const SHARED_BYTES_LEAST: usize = 256 << 10;
/// The most separate pieces of one incomplete message.
pub const MAX_SPANS: usize = 2048;
/// Commands that a responder executes at the same time, all sessions together.
pub const MAX_EXECUTING: usize = 65_536;
/// Notifications (client) or connectionless frames (hub) waiting to be polled.
pub const MAX_EVENTS: usize = 1024;
/// The most that backing off makes of the interval of asking after a command that is being executed.
pub const EXECUTING_PROBE_MAX: Duration = Duration::from_millis(100);
/// How often, at most, a responder short of memory looks for some to take back.
pub const RELIEF_INTERVAL: Duration = Duration::from_millis(100);
