//! The one way in which tests wait: for a condition, with a deadline.

use crate::RigError;
use std::thread;
use std::time::{Duration, Instant};

/// Time between the first two looks; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
/// The most time between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Looks at `condition` until it holds.
///
/// # Errors
/// [`RigError::Timeout`] with `what`, if it does not within `deadline`; it is looked at at least once.
pub fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<(), RigError> {
    let end = Instant::now() + deadline;
    let mut pause = SHORTEST_PAUSE;
    loop {
        if condition() {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RigError::Timeout {
                what: what.into(),
                after: deadline,
            });
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lets time pass, for programs in which things happen at random moments. Tests wait for a condition.
pub fn pause(time: Duration) {
    thread::sleep(time);
}
