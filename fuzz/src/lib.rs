//! What the fuzz targets share: frames that are well-formed as far as the fuzzer wants them to be, so
//! that it gets behind the checksum and into the state machines.

use arbitrary::Arbitrary;
use rma::wire::id::{CommandId, ConnectionId, Epoch, IocNumber, IodNumber};
use rma::wire::kind::{Role, Status};
use rma::wire::message::{Change, CompareAndSet, ConnectRequest, ExtentFacts, IoRange};
use rma::wire::{
    ClusterName, Extent, Flags, Guid, Header, Incarnation, Kind, MAX_MESSAGE_BYTES, Mac, Ownership, Wire,
};

/// Puts the right checksum into a frame.
pub fn seal(frame: &mut [u8]) {
    frame[16..20].fill(0);
    let sum = crc32fast::hash(frame);
    frame[16..20].copy_from_slice(&sum.to_be_bytes());
}

/// A body, valid or not.
#[derive(Debug, Clone, Arbitrary)]
pub enum Content {
    /// Any bytes.
    Bytes(Vec<u8>),
    /// A connect of one of a few initiators.
    Connect {
        initiator: u8,
        incarnation: u8,
        session: u8,
        attempt: u8,
        mtu: u16,
        credits: u16,
    },
    /// An I/O command of a range, and for a write its data.
    Io {
        what: u8,
        extent: u8,
        block: u8,
        blocks: u8,
    },
    /// A change of the registers of a few rows.
    Set {
        term: u8,
        changes: Vec<(u8, u8, Option<u8>, Option<(u8, u8, u8)>)>,
    },
}

impl Content {
    /// The kind of frame that has such a body.
    fn kind(&self) -> Kind {
        match self {
            Self::Bytes(_) => Kind::KeepAlive,
            Self::Connect { .. } => Kind::Connect,
            Self::Io { what, .. } => {
                let kinds = [
                    Kind::Read,
                    Kind::Write,
                    Kind::Flush,
                    Kind::Discard,
                    Kind::WriteZeroes,
                ];
                kinds[usize::from(*what) % kinds.len()]
            }
            Self::Set { .. } => Kind::CompareAndSet,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Connect {
                initiator,
                incarnation,
                session,
                attempt,
                mtu,
                credits,
            } => ConnectRequest {
                initiator: Guid(u128::from(initiator % 4) + 1),
                incarnation: Incarnation(u64::from(incarnation % 4)),
                session: u64::from(session % 4),
                attempt: u32::from(attempt % 4),
                role: Role::Host,
                responder: Guid::NIL,
                features: 0,
                mtu: *mtu,
                credits: *credits,
            }
            .to_body(),
            Self::Io {
                extent,
                block,
                blocks,
                ..
            } => {
                let flush = self.kind() == Kind::Flush;
                let len = if flush { 0 } else { u64::from(*blocks) * 512 };
                let offset = if flush { 0 } else { u64::from(*block) * 512 };
                let extent = if *extent == 0 {
                    Guid::NIL
                } else {
                    Guid(100 + u128::from(extent % 8))
                };
                let mut body = IoRange {
                    extent,
                    offset,
                    len,
                }
                .to_body();
                if self.kind() == Kind::Write {
                    body.resize(body.len() + len as usize, *block);
                }
                body
            }
            Self::Set { term, changes } => CompareAndSet {
                term: u64::from(*term),
                writer: Guid(1),
                changes: changes
                    .iter()
                    .map(|(row, expected, owner, extent)| Change {
                        row: Guid(100 + u128::from(row % 8)),
                        expected: Epoch(u64::from(expected % 4)),
                        ownership: owner.map_or(Ownership::Unallocated, |owner| {
                            Ownership::Dedicated(Guid(u128::from(owner % 4) + 1))
                        }),
                        extent: extent.map(|(device, offset, len)| ExtentFacts {
                            device: Guid(100 + u128::from(device % 4)),
                            range: Extent {
                                offset: u64::from(offset) * 256,
                                len: u64::from(len) * 256 + 256,
                            },
                            name: String::new(),
                            present: row & 8 == 0,
                        }),
                    })
                    .collect(),
            }
            .to_body(),
        }
    }
}

/// What is wrong with a message.
#[derive(Debug, Clone, Arbitrary)]
struct Odd {
    kind: u8,
    reply: bool,
    status: u8,
    credits: u8,
    foreign: bool,
    /// Which segment is left out.
    without: u8,
    /// A length of the message other than its own.
    lie: Option<u32>,
}

/// One message as frames of a sender that may break every rule but the checksum.
#[derive(Debug, Clone, Arbitrary)]
pub struct Forged {
    sender: u8,
    service: bool,
    flags: u8,
    ioc: u8,
    iod: u8,
    connection: u8,
    command: u8,
    outstanding: u8,
    epoch: u8,
    content: Content,
    /// Bytes of a segment; 0 for as many as the MTU permits.
    segment: u16,
    odd: Option<Odd>,
}

impl Forged {
    /// Who sends it.
    pub fn source(&self) -> Mac {
        Mac([2, 0, 0, 0, 1, self.sender % 4])
    }

    /// On which EtherType it comes.
    pub fn service(&self) -> bool {
        self.kind().is_service().unwrap_or(self.service)
    }

    fn kind(&self) -> Kind {
        match &self.odd {
            Some(odd) => Kind::ALL[usize::from(odd.kind) % Kind::ALL.len()],
            None => self.content.kind(),
        }
    }

    /// Which of `count` connections it claims to come by.
    pub fn connection(&self, count: usize) -> usize {
        usize::from(self.connection) % count.max(1)
    }

    /// The frames. `connections` are those that mean something to the receiver.
    pub fn frames(
        &self,
        cluster: ClusterName,
        connections: &[(ConnectionId, IocNumber)],
    ) -> Vec<Vec<u8>> {
        let body = self.content.bytes();
        let segment = match self.segment {
            0 => 1412,
            n => usize::from(n),
        };
        let mut header = Header {
            ioc: IocNumber(u16::from(self.ioc % 3)),
            iod: IodNumber(u16::from(self.iod % 3)),
            outstanding: self.outstanding.into(),
            command: CommandId(self.command.into()),
            epoch: Epoch(u64::from(self.epoch % 4)),
            cluster,
            message_len: body.len() as u32,
            ..Header::new(self.kind())
        };
        for (bit, flag) in [(1, Flags::FUA), (2, Flags::RETRY)] {
            if self.flags & bit != 0 {
                header.flags = header.flags.with(flag);
            }
        }
        let connection = connections.get(self.connection(connections.len()));
        if let Some((connection, ioc)) = connection.filter(|_| header.kind != Kind::Connect) {
            header.connection = *connection;
            header.ioc = *ioc;
        }
        let mut without = usize::MAX;
        if let Some(odd) = &self.odd {
            header.status = Status::ALL[usize::from(odd.status) % Status::ALL.len()];
            header.credits = odd.credits.into();
            header.ioc = IocNumber(u16::from(self.ioc % 3));
            without = odd.without.into();
            if odd.reply {
                header.flags = header.flags.with(Flags::REPLY);
            }
            if odd.foreign {
                header.cluster = ClusterName::NONE;
            }
            if let Some(len) = odd.lie {
                header.message_len = len % (MAX_MESSAGE_BYTES as u32 + 2);
            }
        }
        let mut frames = Vec::new();
        for (n, piece) in pieces(&body, segment).take(MAX_SEGMENTS).enumerate() {
            header.segment_offset = (n * segment) as u32;
            let end = n * segment + piece.len();
            if n != without && end <= header.message_len as usize {
                let mut frame = Vec::new();
                header.emit(piece, &mut frame);
                frames.push(frame);
            }
        }
        frames
    }
}

/// The most frames of a message; the rest of a longer one does not come.
const MAX_SEGMENTS: usize = 256;

/// Pieces of `body`, one empty one where it is empty.
fn pieces(body: &[u8], len: usize) -> impl Iterator<Item = &[u8]> {
    let empty = body.is_empty().then_some(body);
    empty.into_iter().chain(body.chunks(len))
}
