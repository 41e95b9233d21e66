//! Generic netlink, as much as it takes to tell a driver something: messages, and one socket.

use std::io::{self, Error, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Request, and an acknowledgement is wanted.
const FLAGS: u16 = 1 | 4;
/// The family that knows the others.
const CONTROL_FAMILY: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
/// The longest answer.
const MAX_ANSWER: usize = 32 << 10;

/// A request in the making.
#[derive(Debug, Clone)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(super) fn new(family: u16, command: u8) -> Self {
        let mut bytes = vec![0; NLMSG_HEADER + GENL_HEADER];
        bytes[4..6].copy_from_slice(&family.to_ne_bytes());
        bytes[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
        bytes[NLMSG_HEADER..NLMSG_HEADER + 2].copy_from_slice(&[command, 1]);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, attribute: u16, value: &[u8]) {
        self.nested(attribute, |message| message.bytes.extend_from_slice(value));
    }

    /// Adds an attribute that holds others.
    pub(super) fn nested(&mut self, attribute: u16, inner: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        inner(self);
        let len = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&attribute.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The value of an attribute among `attributes`.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    None
}

/// One message of an answer.
struct Part<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message of what has come, and the rest; `None` where it is cut off.
fn part(bytes: &[u8]) -> Option<(Part<'_>, &[u8])> {
    let (head, _) = bytes.split_first_chunk::<NLMSG_HEADER>()?;
    let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let part = Part {
        kind: u16::from_ne_bytes([head[4], head[5]]),
        sequence: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
        body: bytes.get(NLMSG_HEADER..len)?,
    };
    let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((part, rest))
}

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let limit = TimeVal::seconds(super::PATIENCE.as_secs().cast_signed());
        setsockopt(&socket, ReceiveTimeout, &limit)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The number of a driver's family.
    pub(super) fn family(&mut self, name: &str) -> io::Result<u16> {
        let mut message = Message::new(CONTROL_FAMILY, CONTROL_GET_FAMILY);
        let text = [name.as_bytes(), &[0]].concat();
        message.put(CONTROL_FAMILY_NAME, &text);
        let answer = self.request(message)?;
        let id = answer
            .get(GENL_HEADER..)
            .and_then(|attributes| attribute(attributes, CONTROL_FAMILY_ID))
            .and_then(|value| value.try_into().ok())
            .ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
        Ok(u16::from_ne_bytes(id))
    }

    /// Sends a request and waits until it is acknowledged; the body of the answer, if there was one.
    pub(super) fn request(&mut self, message: Message) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; MAX_ANSWER];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..len];
            while let Some((part, after)) = part(rest) {
                rest = after;
                if part.sequence != self.sequence {
                    continue;
                }
                match part.kind {
                    NLMSG_ERROR => {
                        let code = part.body.split_first_chunk::<4>();
                        return match code.map(|(code, _)| i32::from_ne_bytes(*code)) {
                            Some(0) => Ok(answer),
                            Some(code) => Err(Error::from_raw_os_error(-code)),
                            None => Err(ErrorKind::InvalidData.into()),
                        };
                    }
                    NLMSG_DONE => return Ok(answer),
                    _ => answer = part.body.to_vec(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut message = Message::new(0x1234, 7);
        message.put(1, b"abc");
        message.nested(9, |inner| {
            inner.put(1, &5_u32.to_ne_bytes());
            inner.put(2, b"");
        });
        let bytes = message.finish(42);
        assert_eq!(bytes.len() % 4, 0);
        let (part, rest) = part(&bytes).unwrap();
        assert_eq!((part.kind, part.sequence, rest.len()), (0x1234, 42, 0));
        let attributes = &part.body[GENL_HEADER..];
        assert_eq!(attribute(attributes, 1), Some(&b"abc"[..]));
        let inner = attribute(attributes, 9).unwrap();
        assert_eq!(attribute(inner, 1), Some(&5_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(inner, 2), Some(&b""[..]));
        assert_eq!(attribute(attributes, 3), None);
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let mut message = Message::new(1, 1);
        message.put(1, b"abcdef");
        let bytes = message.finish(1);
        for len in 0..bytes.len() {
            assert!(part(&bytes[..len]).is_none(), "{len} bytes");
        }
        for len in 0..12 {
            let attributes = &bytes[20..20 + len.min(bytes.len() - 20)];
            assert!(
                len >= 10 || attribute(attributes, 1).is_none(),
                "{len} bytes"
            );
        }
        // A length of nothing ends the search.
        assert_eq!(attribute(&[0; 8], 5), None);
    }

    #[test]
    fn the_kernel_knows_its_own_family_and_not_any() {
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.family("nlctrl").unwrap(), CONTROL_FAMILY);
        let error = netlink.family("rma-no-such").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
