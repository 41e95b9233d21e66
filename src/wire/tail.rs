//! The payload of a frame where it is, instead of a copy behind the frame's header.

use std::sync::Arc;

use super::sum::{BLOCK_BYTES, sum, sum_on, sum_with_block};

/// Octets that stay as they are as long as somebody holds them.
pub trait Lender: std::fmt::Debug + Send + Sync {
    /// All of them.
    fn octets(&self) -> &[u8];

    /// The checksum of the block that begins at `at`, where it is kept: found once, and used until the octets are
    /// others.
    fn block_sum(&self, at: usize) -> Option<u32> {
        let _ = at;
        None
    }
}

impl Lender for Vec<u8> {
    fn octets(&self) -> &[u8] {
        self
    }
}

/// Part of a message that ends a frame: whoever sends the frame takes the octets from here.
#[derive(Debug, Clone)]
pub struct Tail {
    lender: Arc<dyn Lender>,
    start: u32,
    end: u32,
}

impl Tail {
    /// The octets from `start` to `end` of a message.
    ///
    /// # Panics
    /// When they leave the message: a programmer's mistake.
    pub fn new(message: &Arc<Vec<u8>>, start: usize, end: usize) -> Self {
        Self::lent(message.clone(), start, end)
    }

    /// The octets from `start` to `end` of what is lent.
    ///
    /// # Panics
    /// When there are not so many: a programmer's mistake.
    pub fn lent(lender: Arc<dyn Lender>, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= lender.octets().len());
        let short = |at| u32::try_from(at).expect("a message is no longer");
        Self {
            start: short(start),
            end: short(end),
            lender,
        }
    }

    /// Whether it is these octets that are lent.
    pub fn is_lent_by(&self, lender: &impl Lender) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.lender), lender)
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The octets.
    pub fn bytes(&self) -> &[u8] {
        &self.lender.octets()[self.start as usize..self.end as usize]
    }

    /// The checksum of these octets, where they are one block of which it is kept. Of more blocks it is not asked for:
    /// the processor fetches them, one after the other, sooner than whoever sends them would.
    fn kept_sum(&self) -> Option<u32> {
        let is_block = self.len() == BLOCK_BYTES && self.start.is_multiple_of(BLOCK_BYTES as u32);
        is_block
            .then(|| self.lender.block_sum(self.start as usize))
            .flatten()
    }

    /// The checksum of what `front` is that of, followed by these octets.
    pub(super) fn sum_on(&self, front: u32) -> u32 {
        match self.kept_sum() {
            Some(block) => sum_with_block(front, block),
            None => sum_on(front, self.bytes()),
        }
    }

    /// Whether these octets are those of which a checksum is kept, where one is.
    pub fn is_sound(&self) -> bool {
        self.kept_sum().is_none_or(|kept| kept == sum(self.bytes()))
    }

    /// Appends a whole frame to `out`: what `emit` appends, and the tail that it leaves. Gives what it gives.
    pub fn join<T>(
        out: &mut Vec<u8>,
        emit: impl FnOnce(&mut Vec<u8>, &mut Option<Self>) -> T,
    ) -> T {
        let mut tail = None;
        let given = emit(out, &mut tail);
        if let Some(tail) = tail {
            out.extend_from_slice(tail.bytes());
        }
        given
    }

    /// The octets of these from `start` to `end`.
    fn part(&self, start: usize, end: usize) -> Self {
        let lender = Arc::clone(&self.lender);
        Self::lent(
            lender,
            self.start as usize + start,
            self.start as usize + end,
        )
    }
}

/// A message that is kept while it may have to be sent again; a long one is sent from where it is.
#[derive(Debug)]
pub enum Kept {
    /// Short, or not to be sent.
    Own(Vec<u8>),
    /// Long: frames may hold it too, until they are sent.
    Shared(Arc<Vec<u8>>),
    /// Somebody else's.
    Lent(Tail),
}

/// Some octets of a message, to be put into a frame.
#[derive(Debug)]
pub struct Part<'a> {
    /// Those to be copied.
    pub copied: &'a [u8],
    /// Those behind them.
    pub rest: &'a [u8],
    /// The rest where it is, where it is better not copied.
    pub tail: Option<Tail>,
}

impl<'a> Part<'a> {
    /// Octets to be copied, and none behind them.
    pub const fn copied(copied: &'a [u8]) -> Self {
        Self {
            copied,
            rest: &[],
            tail: None,
        }
    }

    /// Octets to be copied, and behind them those from `start` to `end` of what is lent.
    ///
    /// # Panics
    /// When there are not so many: a programmer's mistake.
    pub fn lent(copied: &'a [u8], lent: &'a Tail, start: usize, end: usize) -> Self {
        Self {
            copied,
            rest: &lent.bytes()[start..end],
            tail: (end - start >= LENT_BYTES).then(|| lent.part(start, end)),
        }
    }
}

/// From this length on copying costs more than keeping.
const SHARED_BYTES: usize = 2048;
/// From this length on a part is lent.
const LENT_BYTES: usize = SHARED_BYTES / 2;

impl From<Vec<u8>> for Kept {
    fn from(message: Vec<u8>) -> Self {
        if message.len() < SHARED_BYTES {
            Self::Own(message)
        } else {
            Self::Shared(Arc::new(message))
        }
    }
}

impl From<Tail> for Kept {
    fn from(message: Tail) -> Self {
        Self::Lent(message)
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Kept {
    /// Octets of the message.
    pub fn len(&self) -> usize {
        match self {
            Self::Own(message) => message.len(),
            Self::Shared(message) => message.len(),
            Self::Lent(message) => message.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The octets from `start` to `end`.
    ///
    /// # Panics
    /// When they leave the message: a programmer's mistake.
    pub fn part(&self, start: usize, end: usize) -> Part<'_> {
        match self {
            Self::Own(message) => Part::copied(&message[start..end]),
            Self::Shared(message) if end - start < LENT_BYTES => Part::copied(&message[start..end]),
            Self::Shared(message) => Part {
                copied: &[],
                rest: &message[start..end],
                tail: Some(Tail::new(message, start, end)),
            },
            Self::Lent(message) => Part::lent(&[], message, start, end),
        }
    }

    /// What it holds of somebody else's.
    pub const fn lent(&self) -> Option<&Tail> {
        match self {
            Self::Own(_) | Self::Shared(_) => None,
            Self::Lent(message) => Some(message),
        }
    }

    /// The buffer, where nothing else holds it.
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Own(message) => message,
            Self::Shared(message) => Arc::try_unwrap(message).unwrap_or_default(),
            Self::Lent(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_lent_and_comes_back() {
        let bytes: Vec<u8> = (0..5000).map(|i| i as u8).collect();
        let kept = Kept::from(bytes.clone());
        let short = kept.part(4900, 5000);
        assert!(short.tail.is_none() && short.rest.is_empty(), "copied");
        assert_eq!(short.copied, &bytes[4900..]);
        let tail = kept.part(1000, 4000).tail.unwrap();
        assert_eq!(tail.bytes(), &bytes[1000..4000]);
        drop(tail);
        assert_eq!(kept.into_buffer().len(), 5000);
        let kept = Kept::from(vec![1; 5000]);
        let tail = kept.part(0, 5000).tail;
        assert!(kept.into_buffer().is_empty(), "a frame still holds it");
        drop(tail);
        assert!(Kept::from(vec![1; 100]).part(0, 100).tail.is_none());
    }
}
