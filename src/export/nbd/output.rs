//! What waits to be sent to one client: reply headers and, behind each, data that is never copied.

use std::collections::VecDeque;

use super::codes::{
    REPLY_ERROR, REPLY_FLAG_DONE, REPLY_NONE, REPLY_OFFSET_DATA, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, error_code,
};
use crate::export::block::BlockError;

/// A structured header and the offset of its data.
const MAX_HEAD_BYTES: usize = 28;

#[derive(Debug)]
struct Chunk {
    head: [u8; MAX_HEAD_BYTES],
    head_len: usize,
    data: Vec<u8>,
}

/// How a reply goes out: simple or structured, as negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyForm {
    Simple,
    Structured,
}

/// A queue of bytes. Its bound is its user's: it takes whatever it is given and tells its size.
#[derive(Debug, Default)]
pub(super) struct Output {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are sent already.
    sent: usize,
    data_bytes: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Replies that are not wholly sent.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of data held, headers not counted.
    pub(super) const fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    fn push(&mut self, fields: &[&[u8]], data: Vec<u8>) {
        let mut chunk = Chunk {
            head: [0; MAX_HEAD_BYTES],
            head_len: 0,
            data,
        };
        for field in fields {
            chunk.head[chunk.head_len..chunk.head_len + field.len()].copy_from_slice(field);
            chunk.head_len += field.len();
        }
        if chunk.head_len + chunk.data.len() > 0 {
            self.data_bytes += chunk.data.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Queues bytes as they are.
    pub(super) fn raw(&mut self, bytes: Vec<u8>) {
        self.push(&[], bytes);
    }

    fn structured(&mut self, kind: u16, cookie: u64, len: usize, rest: &[u8], data: Vec<u8>) {
        let len = len as u32;
        self.push(
            &[
                &STRUCTURED_REPLY_MAGIC.to_be_bytes(),
                &REPLY_FLAG_DONE.to_be_bytes(),
                &kind.to_be_bytes(),
                &cookie.to_be_bytes(),
                &len.to_be_bytes(),
                rest,
            ],
            data,
        );
    }

    fn simple(&mut self, cookie: u64, error: u32, data: Vec<u8>) {
        self.push(
            &[
                &SIMPLE_REPLY_MAGIC.to_be_bytes(),
                &error.to_be_bytes(),
                &cookie.to_be_bytes(),
            ],
            data,
        );
    }

    /// Queues the success of a command that has no data.
    pub(super) fn done(&mut self, form: ReplyForm, cookie: u64) {
        match form {
            ReplyForm::Simple => self.simple(cookie, 0, Vec::new()),
            ReplyForm::Structured => self.structured(REPLY_NONE, cookie, 0, &[], Vec::new()),
        }
    }

    /// Queues the data of a read at `offset`.
    pub(super) fn data(&mut self, form: ReplyForm, cookie: u64, offset: u64, data: Vec<u8>) {
        match form {
            ReplyForm::Simple => self.simple(cookie, 0, data),
            ReplyForm::Structured if data.is_empty() => self.done(form, cookie),
            ReplyForm::Structured => {
                let (len, offset) = (data.len() + 8, offset.to_be_bytes());
                self.structured(REPLY_OFFSET_DATA, cookie, len, &offset, data);
            }
        }
    }

    /// Queues a failure.
    pub(super) fn error(&mut self, form: ReplyForm, cookie: u64, error: BlockError) {
        let code = error_code(error);
        match form {
            ReplyForm::Simple => self.simple(cookie, code, Vec::new()),
            ReplyForm::Structured => {
                // The code, then an empty message.
                let mut rest = [0; 6];
                rest[..4].copy_from_slice(&code.to_be_bytes());
                self.structured(REPLY_ERROR, cookie, rest.len(), &rest, Vec::new());
            }
        }
    }

    /// The bytes to send, in order.
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.chunks
            .iter()
            .flat_map(|c| [&c.head[..c.head_len], &c.data[..]])
            .map(move |bytes| {
                let (_, rest) = bytes.split_at(skip.min(bytes.len()));
                skip -= bytes.len() - rest.len();
                rest
            })
            .filter(|bytes| !bytes.is_empty())
    }

    /// The first `len` bytes are sent.
    pub(super) fn advance(&mut self, len: usize) {
        self.sent += len;
        while let Some(first) = self.chunks.front() {
            let whole = first.head_len + first.data.len();
            if self.sent < whole {
                return;
            }
            self.sent -= whole;
            self.data_bytes -= first.data.len();
            self.chunks.pop_front();
        }
        debug_assert_eq!(self.sent, 0, "more sent than was queued");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_sends_lose_and_repeat_nothing() {
        let mut whole = Output::default();
        for form in [ReplyForm::Simple, ReplyForm::Structured] {
            whole.raw(vec![7; 3]);
            whole.raw(Vec::new());
            whole.data(form, 1, 512, vec![9; 5]);
            whole.done(form, 2);
            whole.error(form, 3, BlockError::NoSpace);
        }
        let expected: Vec<u8> = whole.slices().flatten().copied().collect();
        assert_eq!(expected.len(), 2 * 3 + (21 + 16 + 16) + (33 + 20 + 26));
        for step in 1..=expected.len() {
            let mut out = Output::default();
            for form in [ReplyForm::Simple, ReplyForm::Structured] {
                out.raw(vec![7; 3]);
                out.data(form, 1, 512, vec![9; 5]);
                out.done(form, 2);
                out.error(form, 3, BlockError::NoSpace);
            }
            let mut seen: Vec<u8> = Vec::new();
            while !out.is_empty() {
                let before = seen.len();
                seen.extend(out.slices().flatten().take(step));
                out.advance(seen.len() - before);
            }
            assert_eq!(seen, expected, "in steps of {step}");
            assert_eq!((out.len(), out.data_bytes()), (0, 0));
        }
    }
}
