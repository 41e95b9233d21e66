//! The payload of a frame where it is, instead of a copy behind the frame's header.

use std::sync::Arc;

/// Part of a message that ends a frame: whoever sends the frame takes the octets from here.
#[derive(Debug, Clone)]
pub struct Tail {
    message: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Tail {
    /// The octets from `start` to `end` of a message.
    ///
    /// # Panics
    /// When they leave the message: a programmer's mistake.
    pub fn new(message: &Arc<Vec<u8>>, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= message.len());
        Self {
            message: Arc::clone(message),
            start,
            end,
        }
    }

    /// The octets.
    pub fn bytes(&self) -> &[u8] {
        &self.message[self.start..self.end]
    }
}

/// A message that is kept while it may have to be sent again; a long one is sent from where it is.
#[derive(Debug)]
pub enum Kept {
    /// Short, or not to be sent.
    Own(Vec<u8>),
    /// Long: frames may hold it too, until they are sent.
    Shared(Arc<Vec<u8>>),
}

/// From this length on copying costs more than keeping.
const SHARED_BYTES: usize = 2048;

impl From<Vec<u8>> for Kept {
    fn from(message: Vec<u8>) -> Self {
        if message.len() < SHARED_BYTES {
            Self::Own(message)
        } else {
            Self::Shared(Arc::new(message))
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl std::ops::Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(message) => message,
            Self::Shared(message) => message,
        }
    }
}

impl Kept {
    /// The octets from `start` to `end` as a frame's end, where they are better not copied.
    pub fn tail(&self, start: usize, end: usize) -> Option<Tail> {
        match self {
            Self::Shared(message) if end - start >= SHARED_BYTES / 2 => {
                Some(Tail::new(message, start, end))
            }
            _ => None,
        }
    }

    /// The buffer, where nothing else holds it.
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Own(message) => message,
            Self::Shared(message) => Arc::try_unwrap(message).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_lent_and_comes_back() {
        let kept = Kept::from((0..5000).map(|i| i as u8).collect::<Vec<_>>());
        assert!(kept.tail(4900, 5000).is_none(), "short: copied");
        let tail = kept.tail(1000, 4000).unwrap();
        assert_eq!(tail.bytes(), &kept[1000..4000]);
        drop(tail);
        assert_eq!(kept.into_buffer().len(), 5000);
        let kept = Kept::from(vec![1; 5000]);
        let tail = kept.tail(0, 5000);
        assert!(kept.into_buffer().is_empty(), "a frame still holds it");
        drop(tail);
        assert!(Kept::from(vec![1; 100]).tail(0, 100).is_none());
    }
}
