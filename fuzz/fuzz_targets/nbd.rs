//! An NBD client that does anything, in any pieces: requests that come out are in range, each is
//! completed once, and what is held stays within the limits.
#![no_main]

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rma::export::block::{BlockError, BlockOp, BlockRequest, ExportInfo};
use rma::export::nbd::{Connection, MAX_DATA_BYTES, MAX_REQUEST_BYTES, MAX_REQUESTS};
use rma::wire::Guid;

const SIZE: u64 = 1 << 16;

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Bytes(&'a [u8]),
    Greet,
    Option {
        option: u8,
        data: &'a [u8],
    },
    Go,
    Request {
        flags: u8,
        kind: u8,
        block: u8,
        blocks: u8,
    },
    Odd {
        flags: u16,
        kind: u16,
        offset: u64,
        len: u32,
    },
    Data(u16),
    Complete {
        which: u8,
        fails: bool,
    },
    CompleteAny(u64),
    Send(u16),
    Update {
        read_only: bool,
        size_blocks: u8,
    },
    EndOfInput,
}

fn info() -> ExportInfo {
    ExportInfo {
        name: "disk".to_owned(),
        description: String::new(),
        size_bytes: SIZE,
        block_size: 512,
        read_only: false,
        fua: false,
        discard: true,
        write_zeroes: true,
        rotational: false,
    }
}

fn request(flags: u16, kind: u16, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &0x0123_4567_89ab_cdef_u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &option.to_be_bytes()[..], &len, data].concat()
}

struct Client {
    connection: Connection,
    /// Sent, but not taken yet.
    wire: Vec<u8>,
    open: Vec<BlockRequest>,
    tokens: BTreeSet<u64>,
}

impl Client {
    /// Moves bytes and requests until nothing moves.
    fn turn(&mut self) {
        loop {
            while let Some(r) = self.connection.poll_request() {
                assert!(r.offset + u64::from(r.len) <= SIZE);
                assert_eq!(r.op == BlockOp::Flush, r.len == 0);
                let data = if r.op == BlockOp::Write { r.len } else { 0 };
                assert_eq!(r.data.len(), data as usize);
                assert!(self.tokens.insert(r.token), "a token came twice");
                self.open.push(r);
            }
            assert!(self.open.len() <= MAX_REQUESTS);
            let held: usize = self.open.iter().map(|r| r.len as usize).sum();
            assert!(held <= MAX_DATA_BYTES.max(MAX_REQUEST_BYTES as usize));
            let mut taken = 0;
            for space in self.connection.input() {
                let n = space.len().min(self.wire.len());
                space[..n].copy_from_slice(&self.wire[..n]);
                self.wire.drain(..n);
                taken += n;
            }
            if taken == 0 {
                return;
            }
            self.connection.received(taken);
        }
    }

    fn complete(&mut self, which: usize, fails: bool) {
        if self.open.is_empty() {
            return;
        }
        let r = self.open.swap_remove(which % self.open.len());
        let len = if r.op == BlockOp::Read { r.len } else { 0 };
        let result = match fails {
            true => Err(BlockError::Io),
            false => Ok(vec![0; len as usize]),
        };
        self.connection.complete(r.token, result);
    }

    fn send(&mut self, most: usize) {
        let len: usize = self.connection.output().map(<[u8]>::len).sum();
        self.connection.sent(len.min(most));
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut client = Client {
        connection: Connection::new(Guid(1), 1, info()),
        wire: Vec::new(),
        open: Vec::new(),
        tokens: BTreeSet::new(),
    };
    for step in steps {
        match step {
            Step::Bytes(bytes) => client.wire.extend(bytes),
            Step::Greet => client.wire.extend([0, 0, 0, 3]),
            Step::Option { option: code, data } => client.wire.extend(option(code.into(), data)),
            Step::Go => client.wire.extend(option(7, &[0; 6])),
            Step::Request {
                flags,
                kind,
                block,
                blocks,
            } => {
                let (offset, len) = (u64::from(block) * 512, u32::from(blocks) * 512);
                let (flags, kind) = (u16::from(flags % 4), u16::from(kind % 8));
                client.wire.extend(request(flags, kind, offset, len));
                if kind == 1 {
                    client.wire.resize(client.wire.len() + len as usize, 7);
                }
            }
            Step::Odd {
                flags,
                kind,
                offset,
                len,
            } => client.wire.extend(request(flags, kind, offset, len)),
            Step::Data(len) => client.wire.resize(client.wire.len() + usize::from(len), 9),
            Step::Complete { which, fails } => client.complete(which.into(), fails),
            Step::CompleteAny(token) => {
                if !client.open.iter().any(|r| r.token == token) {
                    client.connection.complete(token, Ok(Vec::new()));
                }
            }
            Step::Send(most) => client.send(most.into()),
            Step::Update {
                read_only,
                size_blocks,
            } => client.connection.update(ExportInfo {
                read_only,
                size_bytes: SIZE.min(u64::from(size_blocks) * 512),
                ..info()
            }),
            Step::EndOfInput => client.connection.end_of_input(),
        }
        client.turn();
    }
    // Whatever happened, it comes to an end.
    client.connection.end_of_input();
    client.turn();
    while !client.open.is_empty() {
        client.complete(0, false);
        client.turn();
    }
    client.send(usize::MAX);
    assert!(client.connection.is_finished());
});
