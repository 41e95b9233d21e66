//! Message bodies of every kind, direction and status: what parses has one form and one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rma::wire::{Body, Flags, Header, Kind, Status};

fuzz_target!(|input: (u8, bool, u8, &[u8])| {
    let (kind, reply, status, bytes) = input;
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    let header = Header {
        flags: if reply { Flags::REPLY } else { Flags::NONE },
        status: Status::ALL[usize::from(status) % Status::ALL.len()],
        ..Header::new(kind)
    };
    let Ok(body) = Body::parse(&header, bytes) else {
        return;
    };
    let encoded = body.encode();
    assert_eq!(encoded, bytes, "a body has one form");
    assert_eq!(Body::parse(&header, &encoded).as_ref(), Ok(&body));
    assert!(!body.to_string().contains('\n'));
});
