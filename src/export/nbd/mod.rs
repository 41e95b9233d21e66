//! The NBD protocol of one connection, server's side: bytes in, requests out, completions in, bytes
//! out. It performs no I/O, reads no clock, and holds no more than its limits name.
//!
//! Fixed newstyle negotiation with the options GO, INFO, EXPORT_NAME, LIST, ABORT and
//! STRUCTURED_REPLY; every other one (STARTTLS, meta contexts, extended headers) is refused as
//! unsupported. Commands: read, write, flush, trim, write-zeroes, disconnect. A command with FUA
//! that the device cannot make durable by itself is followed by a flush before it is answered.

mod codes;
mod command;
mod negotiate;
mod output;

use std::collections::VecDeque;

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

pub use self::codes::error_code;
use self::codes::{
    CMD_DISC, CMD_WRITE, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, OPTION_MAGIC,
    REQUEST_MAGIC,
};
use self::command::{Command, RequestHeader};
pub use self::negotiate::kernel_flags;
use self::negotiate::{Negotiation, Next};
use self::output::Output;
use super::block::{BlockError, BlockOp, BlockRequest, ExportInfo};
use crate::wire::Guid;

/// The most requests of one connection that are executed or whose replies wait to be sent.
pub const MAX_REQUESTS: usize = 128;
/// The most bytes of data of these requests, unless a single request has more.
pub const MAX_DATA_BYTES: usize = 16 << 20;
/// The most bytes of one read or write; what the protocol lets every client expect.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// The most bytes of one option; a longer one ends the connection.
pub const MAX_OPTION_BYTES: usize = 6144;

/// Bytes read ahead of what is parsed. Data of writes that lies in here is copied once, so it is
/// not large; the rest of a write is read to where it stays.
const BUFFER_BYTES: usize = 16 << 10;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct OptionHeader {
    magic: U64,
    option: U32,
    len: U32,
}

const _: () = {
    assert!(size_of::<OptionHeader>() == 16);
    assert!(MAX_OPTION_BYTES + size_of::<OptionHeader>() <= BUFFER_BYTES / 2);
};

/// Why a client's connection ends without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// The client sets handshake flags that are not assigned.
    #[error("unknown handshake flags")]
    ClientFlags,
    /// An option does not begin with its magic number.
    #[error("no option where one is due")]
    OptionMagic,
    /// An option is longer than [`MAX_OPTION_BYTES`].
    #[error("option too long")]
    OptionLength,
    /// Too many options.
    #[error("too many options")]
    Options,
    /// EXPORT_NAME, which has no error reply, asks for another export.
    #[error("unknown export name")]
    UnknownExport,
    /// A request does not begin with its magic number.
    #[error("no request where one is due")]
    RequestMagic,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Options,
    Transmission,
    /// A write's data is arriving.
    Data(Arriving),
    /// The data of a refused write is passed over; then its error is sent.
    Passing {
        left: u32,
        cookie: u64,
        error: BlockError,
    },
    /// No more input; what is outstanding is still answered.
    Ending,
    /// Nothing more in either direction.
    Failed(Violation),
}

#[derive(Debug)]
struct Arriving {
    command: Command,
    data: Vec<u8>,
    have: usize,
}

#[derive(Debug, Default)]
struct Slot {
    /// Counts the requests that had this slot, so that a token is not soon used again.
    generation: u32,
    command: Option<Command>,
}

/// What one step of the parser came to.
enum Step {
    Request(BlockRequest),
    Again,
    /// More input, or room, is needed.
    Wait,
}

/// One client's connection.
///
/// Read into [`Self::input`] and say [`Self::received`]; then take requests with
/// [`Self::poll_request`] until there are none, also after [`Self::complete`] and [`Self::sent`],
/// which make room; then send [`Self::output`] and say [`Self::sent`].
#[derive(Debug)]
pub struct Connection {
    device: Guid,
    number: u32,
    info: ExportInfo,
    negotiation: Negotiation,
    state: State,
    buffer: Box<[u8]>,
    /// The unparsed part of the buffer.
    start: usize,
    end: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose flush is due.
    flushes: VecDeque<usize>,
    /// Data bytes of the requests in slots and of the write that is arriving.
    data_bytes: usize,
    output: Output,
}

impl Connection {
    /// A client has connected to `device`. `number` is the upper half of its requests' tokens.
    pub fn new(device: Guid, number: u32, info: ExportInfo) -> Self {
        let mut output = Output::default();
        let mut greeting = GREETING_MAGIC.to_be_bytes().to_vec();
        greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        output.raw(greeting);
        Self {
            device,
            number,
            info,
            negotiation: Negotiation::new(),
            state: State::ClientFlags,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            slots: Vec::new(),
            free: Vec::new(),
            flushes: VecDeque::new(),
            data_bytes: 0,
            output,
        }
    }

    /// The kernel's driver uses `device` over this connection: it negotiates nothing and takes
    /// simple replies.
    pub fn of_kernel(device: Guid, number: u32, info: ExportInfo) -> Self {
        let mut connection = Self::new(device, number, info);
        connection.output = Output::default();
        connection.state = State::Transmission;
        connection
    }

    /// The export's facts changed.
    pub fn update(&mut self, info: ExportInfo) {
        self.info = info;
    }

    /// Where the next bytes go: the first slice, then the second. Both are empty while nothing
    /// is wanted; the shell then stops reading.
    pub fn input(&mut self) -> [&mut [u8]; 2] {
        if matches!(self.state, State::Ending | State::Failed(_)) {
            return [&mut [], &mut []];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let data = match &mut self.state {
            State::Data(arriving) => &mut arriving.data[arriving.have..],
            _ => &mut [],
        };
        [data, &mut self.buffer[self.end..]]
    }

    /// `len` bytes have been put into [`Self::input`].
    pub fn received(&mut self, len: usize) {
        let direct = match &mut self.state {
            State::Data(arriving) => {
                let direct = len.min(arriving.data.len() - arriving.have);
                arriving.have += direct;
                direct
            }
            _ => 0,
        };
        self.end += len - direct;
        debug_assert!(self.end <= self.buffer.len());
    }

    /// The client sends no more. What it is owed is still sent.
    pub fn end_of_input(&mut self) {
        if !matches!(self.state, State::Failed(_)) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let State::Data(arriving) = &self.state {
            self.data_bytes -= arriving.command.data_bytes();
        }
        self.state = State::Ending;
    }

    /// The next request that the client has made, while there is room for it.
    pub fn poll_request(&mut self) -> Option<BlockRequest> {
        if let Some(slot) = self.flushes.pop_front() {
            return Some(self.request(slot, BlockOp::Flush, 0, 0, Vec::new(), false));
        }
        loop {
            match self.step() {
                Ok(Step::Request(request)) => return Some(request),
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return None,
                Err(violation) => {
                    self.state = State::Failed(violation);
                    return None;
                }
            }
        }
    }

    /// Completes a request of [`Self::poll_request`]: the data of a read, an empty vector
    /// otherwise. An unknown token is ignored.
    pub fn complete(&mut self, token: u64, result: Result<Vec<u8>, BlockError>) {
        let index = (token as usize) % MAX_REQUESTS;
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let Some(mut command) = slot.command else {
            return;
        };
        if self.token(slot.generation, index) != token {
            return;
        }
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        if result.is_ok() && command.then_flush {
            self.data_bytes -= command.data_bytes();
            command.then_flush = false;
            command.op = BlockOp::Flush;
            slot.command = Some(command);
            self.flushes.push_back(index);
            return;
        }
        slot.command = None;
        self.free.push(index);
        self.data_bytes -= command.data_bytes();
        let (form, cookie) = (self.negotiation.form, command.cookie);
        match result {
            Err(error) => self.output.error(form, cookie, error),
            Ok(_) if command.op != BlockOp::Read => self.output.done(form, cookie),
            Ok(data) if data.len() == command.len as usize => {
                self.output.data(form, cookie, command.offset, data);
            }
            Ok(_) => self.output.error(form, cookie, BlockError::Io),
        }
    }

    /// The tokens of requests that change content and are not completed.
    pub fn unfinished_changes(&self) -> impl Iterator<Item = u64> + '_ {
        let running = |(index, slot): (usize, &Slot)| {
            slot.command.filter(Command::is_change)?;
            Some(self.token(slot.generation, index))
        };
        self.slots.iter().enumerate().filter_map(running)
    }

    /// The tokens of all requests that are not completed.
    pub fn unfinished(&self) -> impl Iterator<Item = u64> + '_ {
        let running = |(index, slot): (usize, &Slot)| {
            slot.command?;
            Some(self.token(slot.generation, index))
        };
        self.slots.iter().enumerate().filter_map(running)
    }

    /// The bytes to send, in order; empty ones are left out.
    pub fn output(&self) -> impl Iterator<Item = &[u8]> {
        self.output.slices()
    }

    /// Whether there is anything to send.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The first `len` bytes of [`Self::output`] have been sent.
    pub fn sent(&mut self, len: usize) {
        self.output.advance(len);
    }

    /// Whether the negotiation is over.
    pub const fn is_negotiated(&self) -> bool {
        !matches!(self.state, State::ClientFlags | State::Options)
    }

    /// Whether the connection is to be closed: the client has left and been answered, or it has
    /// broken the protocol.
    pub fn is_finished(&self) -> bool {
        match self.state {
            State::Failed(_) => true,
            State::Ending => self.output.is_empty() && self.free.len() == self.slots.len(),
            _ => false,
        }
    }

    /// How the client broke the protocol, if it did.
    pub const fn violation(&self) -> Option<Violation> {
        match self.state {
            State::Failed(violation) => Some(violation),
            _ => None,
        }
    }

    fn step(&mut self) -> Result<Step, Violation> {
        match &mut self.state {
            State::ClientFlags => {
                let Some(flags) = self.take::<U32>() else {
                    return Ok(Step::Wait);
                };
                self.negotiation.client_flags(flags.get())?;
                self.state = State::Options;
                Ok(Step::Again)
            }
            State::Options => self.option(),
            State::Transmission => self.command(),
            State::Data(arriving) if arriving.have == arriving.data.len() => {
                let command = arriving.command;
                let data = std::mem::take(&mut arriving.data);
                self.state = State::Transmission;
                Ok(Step::Request(self.start_command(command, data)))
            }
            State::Passing {
                left,
                cookie,
                error,
            } => {
                let now = (*left).min((self.end - self.start) as u32);
                *left -= now;
                self.start += now as usize;
                if *left > 0 {
                    return Ok(Step::Wait);
                }
                self.output.error(self.negotiation.form, *cookie, *error);
                self.state = State::Transmission;
                Ok(Step::Again)
            }
            State::Data(_) | State::Ending | State::Failed(_) => Ok(Step::Wait),
        }
    }

    /// The value at the front of the input, if all of it is there.
    fn peek<T: FromBytes>(&self) -> Option<T> {
        let (value, _) = T::read_from_prefix(&self.buffer[self.start..self.end]).ok()?;
        Some(value)
    }

    fn take<T: FromBytes>(&mut self) -> Option<T> {
        let value = self.peek()?;
        self.start += size_of::<T>();
        Some(value)
    }

    fn option(&mut self) -> Result<Step, Violation> {
        let Some(header) = self.peek::<OptionHeader>() else {
            return Ok(Step::Wait);
        };
        if header.magic.get() != OPTION_MAGIC {
            return Err(Violation::OptionMagic);
        }
        let len = header.len.get() as usize;
        if len > MAX_OPTION_BYTES {
            return Err(Violation::OptionLength);
        }
        let at = self.start + size_of::<OptionHeader>();
        if self.end < at + len {
            return Ok(Step::Wait);
        }
        self.start = at + len;
        let data = &self.buffer[at..at + len];
        let mut reply = Vec::new();
        let next = self
            .negotiation
            .option(&self.info, header.option.get(), data, &mut reply)?;
        self.output.raw(reply);
        match next {
            Next::Options => {}
            Next::Transmission => self.state = State::Transmission,
            Next::End => self.end(),
        }
        Ok(Step::Again)
    }

    fn command(&mut self) -> Result<Step, Violation> {
        let Some(header) = self.peek::<RequestHeader>() else {
            return Ok(Step::Wait);
        };
        if header.magic.get() != REQUEST_MAGIC {
            return Err(Violation::RequestMagic);
        }
        let (kind, cookie, len) = (header.kind.get(), header.cookie.get(), header.len.get());
        if kind == CMD_DISC {
            self.end();
            return Ok(Step::Again);
        }
        let busy = self.slots.len() - self.free.len() + self.output.len();
        if busy >= MAX_REQUESTS {
            return Ok(Step::Wait);
        }
        let command = match Command::new(&header, &self.info, self.negotiation.form) {
            Ok(command) => command,
            Err(error) => {
                self.start += size_of::<RequestHeader>();
                let left = if kind == CMD_WRITE { len } else { 0 };
                self.state = State::Passing {
                    left,
                    cookie,
                    error,
                };
                return Ok(Step::Again);
            }
        };
        let held = self.data_bytes + self.output.data_bytes();
        if held > 0 && held + command.data_bytes() > MAX_DATA_BYTES {
            return Ok(Step::Wait);
        }
        self.start += size_of::<RequestHeader>();
        let form = self.negotiation.form;
        match command.op {
            BlockOp::Read if len == 0 => self.output.data(form, cookie, command.offset, Vec::new()),
            BlockOp::Flush => return Ok(Step::Request(self.start_command(command, Vec::new()))),
            _ if len == 0 => self.output.done(form, cookie),
            BlockOp::Write => self.await_data(command),
            _ => {
                self.data_bytes += command.data_bytes();
                return Ok(Step::Request(self.start_command(command, Vec::new())));
            }
        }
        Ok(Step::Again)
    }

    /// Room for a write's data; what has come with its header is copied there.
    fn await_data(&mut self, command: Command) {
        self.data_bytes += command.data_bytes();
        let mut data = vec![0; command.len as usize];
        let have = data.len().min(self.end - self.start);
        data[..have].copy_from_slice(&self.buffer[self.start..self.start + have]);
        self.start += have;
        self.state = State::Data(Arriving {
            command,
            data,
            have,
        });
    }

    /// Puts a command into a slot. Its data is counted already.
    fn start_command(&mut self, command: Command, data: Vec<u8>) -> BlockRequest {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[index].command = Some(command);
        let Command {
            op,
            offset,
            len,
            fua,
            ..
        } = command;
        match op {
            BlockOp::Flush => self.request(index, op, 0, 0, data, false),
            _ => self.request(index, op, offset, len, data, fua),
        }
    }

    /// A slot's token: the connection, a part of the slot's generation, the slot.
    const fn token(&self, generation: u32, index: usize) -> u64 {
        let low = generation.wrapping_mul(MAX_REQUESTS as u32) | index as u32;
        ((self.number as u64) << 32) | low as u64
    }

    fn request(
        &self,
        index: usize,
        op: BlockOp,
        offset: u64,
        len: u32,
        data: Vec<u8>,
        fua: bool,
    ) -> BlockRequest {
        BlockRequest {
            device: self.device,
            token: self.token(self.slots[index].generation, index),
            op,
            offset,
            len,
            data,
            fua,
        }
    }
}

#[cfg(test)]
mod tests;
