//! The NBD handshake of one connection: options in, option replies out.

use super::Violation;
use super::codes::{
    FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPT_ABORT,
    OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_STRUCTURED_REPLY, OPTION_REPLY_MAGIC, REP_ACK,
    REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER, TRANSMISSION_DF,
    TRANSMISSION_FLUSH, TRANSMISSION_FUA, TRANSMISSION_HAS_FLAGS, TRANSMISSION_MULTI_CONN,
    TRANSMISSION_READ_ONLY, TRANSMISSION_ROTATIONAL, TRANSMISSION_TRIM, TRANSMISSION_WRITE_ZEROES,
};
use super::output::ReplyForm;
use crate::export::block::{ExportInfo, PREFERRED_MAX_BYTES};
use crate::wire::Reader;

/// The most options that a client may send.
const MAX_OPTIONS: u32 = 64;
/// What the protocol allows a name or description to have.
const MAX_STRING_BYTES: usize = 4096;
/// The block size that we recommend, unless the device's is larger.
const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// What follows an export's size and flags for a client that has not waived it.
const ZEROES: usize = 124;

/// What has been agreed so far.
#[derive(Debug)]
pub(super) struct Negotiation {
    no_zeroes: bool,
    pub(super) form: ReplyForm,
    options: u32,
}

/// What follows an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Options,
    Transmission,
    /// The client has taken its leave.
    End,
}

impl Negotiation {
    pub(super) const fn new() -> Self {
        Self {
            no_zeroes: false,
            form: ReplyForm::Simple,
            options: 0,
        }
    }

    pub(super) const fn client_flags(&mut self, flags: u32) -> Result<(), Violation> {
        if flags & !3 != 0 {
            return Err(Violation::ClientFlags);
        }
        self.no_zeroes = flags & FLAG_NO_ZEROES as u32 != 0;
        Ok(())
    }

    /// Answers one option into `out`.
    pub(super) fn option(
        &mut self,
        info: &ExportInfo,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Next, Violation> {
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(Violation::Options);
        }
        let mut reply = |kind: u32, body: &[u8]| {
            out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
            out.extend_from_slice(&option.to_be_bytes());
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&(body.len() as u32).to_be_bytes());
            out.extend_from_slice(body);
        };
        match option {
            OPT_EXPORT_NAME => {
                if !is_served(info, data) {
                    return Err(Violation::UnknownExport);
                }
                out.extend_from_slice(&self.export(info));
                if !self.no_zeroes {
                    out.resize(out.len() + ZEROES, 0);
                }
                return Ok(Next::Transmission);
            }
            OPT_ABORT => {
                reply(REP_ACK, &[]);
                return Ok(Next::End);
            }
            OPT_LIST if data.is_empty() => {
                let name = string(&info.name);
                let mut body = (name.len() as u32).to_be_bytes().to_vec();
                body.extend_from_slice(name);
                reply(REP_SERVER, &body);
                reply(REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.form = ReplyForm::Structured;
                reply(REP_ACK, &[]);
            }
            OPT_INFO | OPT_GO => match info_request(data) {
                None => reply(REP_ERR_INVALID, &[]),
                Some((name, _)) if !is_served(info, name) => reply(REP_ERR_UNKNOWN, &[]),
                Some((_, wanted)) => {
                    reply(REP_INFO, &tagged(INFO_EXPORT, &self.export(info)));
                    reply(REP_INFO, &tagged(INFO_BLOCK_SIZE, &block_sizes(info)));
                    if wanted.name {
                        reply(REP_INFO, &tagged(INFO_NAME, string(&info.name)));
                    }
                    if wanted.description && !info.description.is_empty() {
                        let text = string(&info.description);
                        reply(REP_INFO, &tagged(INFO_DESCRIPTION, text));
                    }
                    reply(REP_ACK, &[]);
                    if option == OPT_GO {
                        return Ok(Next::Transmission);
                    }
                }
            },
            OPT_LIST | OPT_STRUCTURED_REPLY => reply(REP_ERR_INVALID, &[]),
            _ => reply(REP_ERR_UNSUP, &[]),
        }
        Ok(Next::Options)
    }

    /// Size and transmission flags.
    fn export(&self, info: &ExportInfo) -> [u8; 10] {
        let mut flags = kernel_flags(info);
        if self.form == ReplyForm::Structured {
            flags |= TRANSMISSION_DF;
        }
        let mut out = [0; 10];
        out[..8].copy_from_slice(&info.served_bytes().to_be_bytes());
        out[8..].copy_from_slice(&flags.to_be_bytes());
        out
    }
}

/// The transmission flags of a connection with simple replies, as the kernel's driver has it.
pub const fn kernel_flags(info: &ExportInfo) -> u16 {
    let mut flags =
        TRANSMISSION_HAS_FLAGS | TRANSMISSION_FLUSH | TRANSMISSION_FUA | TRANSMISSION_MULTI_CONN;
    if info.read_only {
        flags |= TRANSMISSION_READ_ONLY;
    }
    if info.rotational {
        flags |= TRANSMISSION_ROTATIONAL;
    }
    if info.discard && !info.read_only {
        flags |= TRANSMISSION_TRIM;
    }
    if info.write_zeroes && !info.read_only {
        flags |= TRANSMISSION_WRITE_ZEROES;
    }
    flags
}

/// The name that clients ask for is ours; the empty one is, too.
fn is_served(info: &ExportInfo, name: &[u8]) -> bool {
    name.is_empty() || name == info.name.as_bytes()
}

/// Text as long as the protocol allows.
fn string(text: &str) -> &[u8] {
    let mut len = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text.as_bytes()[..len]
}

fn tagged(info: u16, body: &[u8]) -> Vec<u8> {
    [&info.to_be_bytes(), body].concat()
}

fn block_sizes(info: &ExportInfo) -> Vec<u8> {
    let preferred = info.block_size.max(PREFERRED_BLOCK_BYTES);
    [info.block_size, preferred, PREFERRED_MAX_BYTES]
        .map(u32::to_be_bytes)
        .concat()
}

struct Wanted {
    name: bool,
    description: bool,
}

/// The export's name and the information asked for; `None` where the option is malformed.
fn info_request(data: &[u8]) -> Option<(&[u8], Wanted)> {
    let mut r = Reader::new(data);
    let name_len: u32 = r.get().ok()?;
    let name = r.take(name_len as usize).ok()?;
    let count: u16 = r.get().ok()?;
    let mut wanted = Wanted {
        name: false,
        description: false,
    };
    for _ in 0..count {
        match r.get::<u16>().ok()? {
            INFO_NAME => wanted.name = true,
            INFO_DESCRIPTION => wanted.description = true,
            _ => {}
        }
    }
    r.finish().ok()?;
    Some((name, wanted))
}
