//! Frames from the wire: header and body parse without a panic, and what parses says the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rma::wire::{Body, HEADER_LEN, Header};

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let service = first & 1 == 1;
    let _ = Header::parse(bytes, service);

    // The same with the length and checksum that a sender would have put there.
    let mut frame = bytes.to_vec();
    if frame.len() < HEADER_LEN {
        return;
    }
    let payload_len = u16::try_from(frame.len() - HEADER_LEN).unwrap_or(u16::MAX);
    frame[4..6].copy_from_slice(&payload_len.to_be_bytes());
    rma_fuzz::seal(&mut frame);
    let Ok((header, payload)) = Header::parse(&frame, service) else {
        return;
    };
    let mut again = Vec::new();
    header.emit(payload, &mut again);
    assert_eq!(again, frame, "a frame has one form");
    if let Ok(body) = Body::parse(&header, payload) {
        assert_eq!(body.encode(), payload, "a body has one form");
        assert!(!body.to_string().contains('\n'));
    }
});
