//! The body of a request, kept while it may have to be sent again.

use super::{IoRequest, Request};
use crate::wire::message::IO_RANGE_BYTES;
use crate::wire::{Kept, Part, Tail};

/// A request's body.
#[derive(Debug)]
pub(super) enum Body {
    /// In one piece.
    Whole(Kept),
    /// An I/O's: its range, allocated nowhere else, and what is to be written where that is.
    Io([u8; IO_RANGE_BYTES], Option<Tail>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Kept::default())
    }
}

impl From<Request> for Body {
    fn from(request: Request) -> Self {
        Self::Whole(request.body.into())
    }
}

impl From<&mut IoRequest> for Body {
    fn from(request: &mut IoRequest) -> Self {
        Self::Io(request.range.to_octets(), request.data.take())
    }
}

impl Body {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Io(range, data) => range.len() + data.as_ref().map_or(0, Tail::len),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The octets from `start` to `end`.
    ///
    /// # Panics
    /// When they leave the body: a programmer's mistake.
    pub(super) fn part(&self, (start, end): (u32, u32)) -> Part<'_> {
        let (start, end) = (start as usize, end as usize);
        match self {
            Self::Whole(body) => body.part(start, end),
            Self::Io(range, Some(data)) if end > IO_RANGE_BYTES => {
                let copied = &range[start.min(IO_RANGE_BYTES)..];
                let from = start.saturating_sub(IO_RANGE_BYTES);
                Part::lent(copied, data, from, end - IO_RANGE_BYTES)
            }
            Self::Io(range, _) => Part::copied(&range[start..end]),
        }
    }

    /// The buffer, where nothing else holds it.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Whole(body) => body.into_buffer(),
            Self::Io(..) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_range_and_data_are_one_message_wherever_it_is_cut() {
        let data = Arc::new((0..=255).cycle().take(6000).collect::<Vec<u8>>());
        let range = [7; IO_RANGE_BYTES];
        let body = Body::Io(range, Some(Tail::new(&data, 500, 5500)));
        let whole = [&range[..], &data[500..5500]].concat();
        assert_eq!(body.len(), whole.len());
        for size in [1, 31, 32, 33, 1000, 1412, 4999, 5032] {
            let mut got = Vec::new();
            for start in (0..whole.len()).step_by(size) {
                let end = (start + size).min(whole.len());
                let part = body.part((start as u32, end as u32));
                if let Some(tail) = &part.tail {
                    assert_eq!(tail.bytes(), part.rest);
                }
                got.extend_from_slice(part.copied);
                got.extend_from_slice(part.rest);
            }
            assert!(got == whole, "cut into pieces of {size}");
        }
        assert!(body.into_buffer().is_empty());
        assert_eq!(Arc::strong_count(&data), 1);
        let body = Body::Io(range, None);
        assert_eq!((body.len(), body.part((3, 32)).copied), (32, &range[3..]));
    }
}
