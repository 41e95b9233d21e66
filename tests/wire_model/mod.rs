//! A second, independent description of the wire for the tests: every frame kind with a
//! distinctive value in every field, and each of its fields by name, bytes and text.
//!
//! Nothing here uses the encoder under test: bytes are put together field by field from
//! `docs/protocol.md`. Golden files, emitted frames and the dissector are all compared with it.

// Each test file uses its part.
#![allow(dead_code, unreachable_pub)]

mod layout;
mod samples;

pub use layout::{body_fields, header_fields};
pub use samples::samples;

use rma::wire::kind::Kind;
use rma::wire::{Body, ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Header, Mac};

/// One frame that carries one whole message.
pub struct Sample {
    /// Name of its golden file, without `.hex`.
    pub name: &'static str,
    /// On which EtherType it travels.
    pub service: bool,
    /// Its header; the lengths are those of the body.
    pub header: Header,
    /// Its body.
    pub body: Body<'static>,
}

/// A field of a frame.
#[derive(Debug, Clone)]
pub struct Field {
    /// The dissector's name for it.
    pub name: &'static str,
    /// Its bytes on the wire.
    pub bytes: Vec<u8>,
    /// How the dissector shows its value.
    pub show: String,
    /// The name of its code, where it is one.
    pub code: Option<&'static str>,
}

impl Sample {
    /// All fields in the order of the wire, header first.
    pub fn fields(&self) -> Vec<Field> {
        let body = body_fields(&self.body);
        let body_bytes: Vec<u8> = body.iter().flat_map(|f| f.bytes.clone()).collect();
        let mut fields = header_fields(&self.header, &body_bytes);
        fields.extend(body);
        fields
    }

    /// The frame behind its Ethernet header, from the fields.
    pub fn frame(&self) -> Vec<u8> {
        self.fields().into_iter().flat_map(|f| f.bytes).collect()
    }
}

/// The initiator of the captures.
pub const HOST: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
/// The responder of the captures.
pub const UNIT: Mac = Mac([0x02, 0, 0, 0, 0, 0x0b]);

/// Puts an Ethernet header in front.
pub fn ethernet(dst: Mac, src: Mac, service: bool, frame: &[u8]) -> Vec<u8> {
    let ethertype = if service {
        ETHERTYPE_SERVICE
    } else {
        ETHERTYPE_MANAGEMENT
    };
    [&dst.0[..], &src.0, &ethertype.to_be_bytes(), frame].concat()
}

/// From the host to the unit, replies (and what responders say) the other way.
pub fn directed(header: &Header, service: bool, frame: &[u8]) -> Vec<u8> {
    let back = header.is_reply()
        || matches!(
            header.kind,
            Kind::Here | Kind::Notify | Kind::Progress | Kind::Refused
        );
    let (dst, src) = if back { (HOST, UNIT) } else { (UNIT, HOST) };
    ethernet(dst, src, service, frame)
}
