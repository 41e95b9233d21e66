//! Stories of the NBD machine, told by a client that writes its bytes out by hand.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::codes::{
    CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE_ZEROES,
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO,
    OPT_INFO, OPT_LIST, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_INVALID, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_SERVER,
};
use super::*;

const SIZE: u64 = 1 << 30;

fn info() -> ExportInfo {
    ExportInfo {
        name: "disk".to_owned(),
        description: "a disk".to_owned(),
        size_bytes: SIZE,
        block_size: 512,
        read_only: false,
        fua: true,
        discard: true,
        write_zeroes: true,
        rotational: false,
    }
}

fn connection(info: ExportInfo) -> Connection {
    Connection::new(Guid(7), 3, info)
}

fn feed(c: &mut Connection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let mut taken = 0;
        for space in c.input() {
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            taken += n;
        }
        assert!(taken > 0, "the connection takes no more");
        c.received(taken);
    }
}

fn drain(c: &mut Connection) -> Vec<u8> {
    let bytes: Vec<u8> = c.output().flatten().copied().collect();
    c.sent(bytes.len());
    bytes
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &len,
        data,
    ]
    .concat()
}

fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    for info in infos {
        data.extend_from_slice(&info.to_be_bytes());
    }
    data
}

fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &REQUEST_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

/// Splits option replies: (option, kind, body).
fn option_replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let word = |b: &[u8], at: usize| u32::from_be_bytes(b[at..at + 4].try_into().unwrap());
    let mut out = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(&bytes[..8], codes::OPTION_REPLY_MAGIC.to_be_bytes());
        let len = word(bytes, 16) as usize;
        out.push((
            word(bytes, 8),
            word(bytes, 12),
            bytes[20..20 + len].to_vec(),
        ));
        bytes = &bytes[20 + len..];
    }
    out
}

fn greeted(info: ExportInfo) -> Connection {
    let mut c = connection(info);
    assert_eq!(drain(&mut c), b"NBDMAGICIHAVEOPT\0\x03");
    feed(&mut c, &3_u32.to_be_bytes());
    assert_eq!(c.poll_request(), None);
    c
}

fn ask(c: &mut Connection, option: u32, data: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    feed(c, &option_bytes(option, data));
    assert_eq!(c.poll_request(), None);
    option_replies(&drain(c))
}

fn ready(info: ExportInfo, structured: bool) -> Connection {
    let mut c = greeted(info);
    if structured {
        assert_eq!(ask(&mut c, OPT_STRUCTURED_REPLY, &[]).len(), 1);
    }
    ask(&mut c, OPT_GO, &go_data("", &[]));
    assert!(c.is_negotiated());
    c
}

/// The error code of a simple reply to `cookie` without data.
fn simple_error(c: &mut Connection, cookie: u64) -> u32 {
    assert_eq!(c.poll_request(), None);
    let reply = drain(c);
    assert_eq!(reply.len(), 16);
    assert_eq!(reply[..4], codes::SIMPLE_REPLY_MAGIC.to_be_bytes());
    assert_eq!(reply[8..], cookie.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let mut c = greeted(info());
    let data = go_data("disk", &[INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 77]);
    for option in [OPT_INFO, OPT_GO] {
        let replies = ask(&mut c, option, &data);
        assert!(replies.iter().all(|r| r.0 == option));
        let bodies: Vec<_> = replies.iter().map(|r| (r.1, &r.2[..])).collect();
        let export = [
            &INFO_EXPORT.to_be_bytes()[..],
            &SIZE.to_be_bytes(),
            &[1, 0x6d],
        ]
        .concat();
        let sizes = [
            &INFO_BLOCK_SIZE.to_be_bytes()[..],
            &512_u32.to_be_bytes(),
            &4096_u32.to_be_bytes(),
            &(1_u32 << 20).to_be_bytes(),
        ]
        .concat();
        assert_eq!(
            bodies,
            [
                (REP_INFO, &export[..]),
                (REP_INFO, &sizes),
                (REP_INFO, b"\0\x01disk"),
                (REP_INFO, b"\0\x02a disk"),
                (REP_ACK, b""),
            ]
        );
        assert_eq!(c.is_negotiated(), option == OPT_GO);
    }
}

#[test]
fn flags_promise_what_the_device_can_do() {
    let flags = |info: ExportInfo, structured: bool| {
        let mut c = greeted(info);
        if structured {
            ask(&mut c, OPT_STRUCTURED_REPLY, &[]);
        }
        let replies = ask(&mut c, OPT_INFO, &go_data("", &[]));
        let body = &replies[0].2;
        u16::from_be_bytes(body[10..12].try_into().unwrap())
    };
    let plain = ExportInfo {
        discard: false,
        write_zeroes: false,
        fua: false,
        ..info()
    };
    assert_eq!(flags(plain.clone(), false), 0x10d);
    assert_eq!(flags(plain.clone(), true), 0x18d);
    let spinning = ExportInfo {
        rotational: true,
        ..plain
    };
    assert_eq!(flags(spinning, false), 0x11d);
    let read_only = ExportInfo {
        read_only: true,
        ..info()
    };
    assert_eq!(flags(read_only, false), 0x10f);
}

#[test]
fn options_that_cannot_be_served_are_refused_and_negotiation_goes_on() {
    let mut c = greeted(info());
    let only = |replies: Vec<(u32, u32, Vec<u8>)>| {
        assert_eq!(replies.len(), 1);
        replies[0].1
    };
    // STARTTLS, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS, PEEK_EXPORT, none.
    for option in [5, 9, 10, 11, 4, 0, u32::MAX] {
        assert_eq!(only(ask(&mut c, option, b"whatever")), REP_ERR_UNSUP);
    }
    assert_eq!(only(ask(&mut c, OPT_LIST, b"x")), REP_ERR_INVALID);
    assert_eq!(
        only(ask(&mut c, OPT_STRUCTURED_REPLY, b"x")),
        REP_ERR_INVALID
    );
    let unknown = go_data("other", &[]);
    assert_eq!(only(ask(&mut c, OPT_GO, &unknown)), REP_ERR_UNKNOWN);
    for len in 0..6 {
        let short = &go_data("", &[])[..len];
        assert_eq!(only(ask(&mut c, OPT_INFO, short)), REP_ERR_INVALID);
    }
    let lying = [&u32::MAX.to_be_bytes()[..], b"disk\0\0"].concat();
    assert_eq!(only(ask(&mut c, OPT_INFO, &lying)), REP_ERR_INVALID);
    let list = ask(&mut c, OPT_LIST, &[]);
    assert_eq!(list[0], (OPT_LIST, REP_SERVER, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(list[1], (OPT_LIST, REP_ACK, Vec::new()));
}

#[test]
fn an_old_client_asks_by_export_name() {
    for (flags, len) in [(3_u32, 10), (1, 134)] {
        let mut c = connection(info());
        drain(&mut c);
        feed(&mut c, &flags.to_be_bytes());
        feed(&mut c, &option_bytes(OPT_EXPORT_NAME, b"disk"));
        assert_eq!(c.poll_request(), None);
        let reply = drain(&mut c);
        assert_eq!(reply.len(), len);
        assert_eq!(reply[..8], SIZE.to_be_bytes());
        assert!(c.is_negotiated());
    }
    let mut c = greeted(info());
    feed(&mut c, &option_bytes(OPT_EXPORT_NAME, b"other"));
    assert_eq!(c.poll_request(), None);
    assert_eq!(c.violation(), Some(Violation::UnknownExport));
}

#[test]
fn abort_is_acknowledged_before_the_end() {
    let mut c = greeted(info());
    feed(&mut c, &option_bytes(OPT_ABORT, &[]));
    assert_eq!(c.poll_request(), None);
    assert!(!c.is_finished());
    assert_eq!(option_replies(&drain(&mut c))[0].1, REP_ACK);
    assert!(c.is_finished());
    assert!(c.input().iter().all(|space| space.is_empty()));
}

#[test]
fn hostile_negotiation_ends_the_connection() {
    let violation = |bytes: &[u8]| {
        let mut c = connection(info());
        feed(&mut c, bytes);
        while c.poll_request().is_some() {}
        assert_eq!(c.is_finished(), c.violation().is_some());
        c.violation()
    };
    assert_eq!(violation(&[0, 0, 0, 4]), Some(Violation::ClientFlags));
    assert_eq!(
        violation(b"\0\0\0\x03GET / HTTP/1.1\r\n\r\n"),
        Some(Violation::OptionMagic)
    );
    let long = [&3_u32.to_be_bytes()[..], &option_bytes(OPT_GO, &[])[..12]].concat();
    let long = [&long[..], &(MAX_OPTION_BYTES as u32 + 1).to_be_bytes()].concat();
    assert_eq!(violation(&long), Some(Violation::OptionLength));
    let many = [
        &3_u32.to_be_bytes()[..],
        &option_bytes(OPT_LIST, &[]).repeat(65),
    ]
    .concat();
    assert_eq!(violation(&many), Some(Violation::Options));
    assert_eq!(violation(&many[..4 + 16 * 64]), None);
    let longest = [
        &3_u32.to_be_bytes()[..],
        &option_bytes(99, &[7; MAX_OPTION_BYTES]),
    ]
    .concat();
    assert_eq!(violation(&longest), None);
}

#[test]
fn a_read_is_answered_in_the_form_agreed() {
    for structured in [false, true] {
        let mut c = ready(info(), structured);
        feed(&mut c, &request(CMD_READ, 0, 0xc0, 4096, 1024));
        let r = c.poll_request().unwrap();
        assert_eq!(
            (r.device, r.op, r.offset, r.len),
            (Guid(7), BlockOp::Read, 4096, 1024)
        );
        assert_eq!(r.token >> 32, 3);
        assert!(!c.has_output());
        c.complete(r.token, Ok(vec![5; 1024]));
        let reply = drain(&mut c);
        let head = if structured {
            let words = [0x668e_33ef_u32, 0x0001_0001, 0, 0xc0, 1032, 0, 4096];
            words.map(u32::to_be_bytes).concat()
        } else {
            [0x6744_6698_u32, 0, 0, 0xc0].map(u32::to_be_bytes).concat()
        };
        assert_eq!(reply, [&head[..], &[5; 1024]].concat());

        // The same token again does nothing; a failure has its code; a short result is one.
        c.complete(r.token, Ok(vec![5; 1024]));
        assert!(!c.has_output());
        for result in [Err(BlockError::Io), Ok(vec![0; 1023])] {
            feed(&mut c, &request(CMD_READ, 0, 0xc1, 0, 1024));
            let token = c.poll_request().unwrap().token;
            assert_ne!(token, r.token);
            c.complete(token, result);
            let words: Vec<u8> = if structured {
                let words = [0x668e_33ef_u32, 0x0001_8001, 0, 0xc1, 6, 5];
                [&words.map(u32::to_be_bytes).concat()[..], &[0, 0]].concat()
            } else {
                [0x6744_6698_u32, 5, 0, 0xc1].map(u32::to_be_bytes).concat()
            };
            assert_eq!(drain(&mut c), words);
        }
    }
}

#[test]
fn a_write_arrives_whole_however_it_is_cut() {
    let len = 100 * 512_u32;
    let data: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    let bytes = [
        request(CMD_WRITE, CMD_FLAG_FUA, 1, 512, len),
        data.clone(),
        request(CMD_FLUSH, 0, 2, 0, 0),
    ]
    .concat();
    for step in [1, 27, 28, 29, 512, 5000, 16_000] {
        let mut c = ready(info(), false);
        let mut requests = Vec::new();
        for piece in bytes.chunks(step) {
            feed(&mut c, piece);
            requests.extend(std::iter::from_fn(|| c.poll_request()));
        }
        assert_eq!(requests.len(), 2);
        let (write, flush) = (&requests[0], &requests[1]);
        assert_eq!(
            (write.op, write.offset, write.len),
            (BlockOp::Write, 512, len)
        );
        assert!(write.fua && write.data == data);
        assert_eq!((flush.op, flush.offset, flush.len), (BlockOp::Flush, 0, 0));
        // Completed in another order than asked.
        c.complete(flush.token, Ok(Vec::new()));
        assert_eq!(simple_error(&mut c, 2), 0);
        c.complete(write.token, Ok(Vec::new()));
        assert_eq!(simple_error(&mut c, 1), 0);
    }
}

#[test]
fn durability_that_the_device_cannot_give_comes_from_a_flush() {
    let volatile = ExportInfo {
        fua: false,
        ..info()
    };
    for (kind, op, info) in [
        (CMD_WRITE, BlockOp::Write, volatile),
        (CMD_TRIM, BlockOp::Discard, info()),
        (CMD_WRITE_ZEROES, BlockOp::WriteZeroes, info()),
    ] {
        let mut c = ready(info, false);
        feed(&mut c, &request(kind, CMD_FLAG_FUA, 9, 0, 512));
        if op == BlockOp::Write {
            feed(&mut c, &[1; 512]);
        }
        let first = c.poll_request().unwrap();
        assert_eq!((first.op, first.fua), (op, false));
        c.complete(first.token, Ok(Vec::new()));
        assert!(!c.has_output(), "not answered before the flush");
        let flush = c.poll_request().unwrap();
        assert_eq!((flush.op, flush.len), (BlockOp::Flush, 0));
        assert_ne!(flush.token, first.token);
        c.complete(flush.token, Err(BlockError::Io));
        assert_eq!(simple_error(&mut c, 9), 5);

        // A failed write is not flushed.
        feed(&mut c, &request(kind, CMD_FLAG_FUA, 10, 0, 512));
        if op == BlockOp::Write {
            feed(&mut c, &[1; 512]);
        }
        let token = c.poll_request().unwrap().token;
        c.complete(token, Err(BlockError::NoSpace));
        assert_eq!(simple_error(&mut c, 10), 28);
    }
}

#[test]
fn requests_that_the_device_cannot_take_get_their_error_and_harm_nothing() {
    let plain = ExportInfo {
        discard: false,
        write_zeroes: false,
        ..info()
    };
    let read_only = ExportInfo {
        read_only: true,
        ..info()
    };
    let big = MAX_REQUEST_BYTES + 512;
    let cases = [
        (info(), CMD_READ, 0, SIZE, 512, 22),
        (info(), CMD_READ, 0, u64::MAX - 511, 512, 22),
        (info(), CMD_READ, 0, 1, 512, 22),
        (info(), CMD_READ, 0, 0, 511, 22),
        (info(), CMD_READ, 0, 0, big, 22),
        (info(), CMD_READ, CMD_FLAG_DF, 0, 512, 22),
        (info(), CMD_READ, 1 << 7, 0, 512, 22),
        (info(), CMD_WRITE, 0, SIZE - 512, 1024, 28),
        (info(), CMD_WRITE, 0, 100, 512, 22),
        (info(), CMD_WRITE, CMD_FLAG_NO_HOLE, 0, 512, 22),
        (info(), CMD_WRITE, 0, 0, big, 22),
        (info(), CMD_TRIM, 0, SIZE, 512, 22),
        (info(), CMD_WRITE_ZEROES, 0, SIZE, 512, 28),
        (info(), CMD_WRITE_ZEROES, 1 << 4, 0, 512, 22),
        (info(), 5, 0, 0, 512, 22),
        (info(), 7, 0, 0, 512, 22),
        (info(), 999, 0, 0, 0, 22),
        (plain.clone(), CMD_TRIM, 0, 0, 512, 22),
        (plain, CMD_WRITE_ZEROES, 0, 0, 512, 22),
        (read_only.clone(), CMD_WRITE, 0, 0, 512, 1),
        (read_only.clone(), CMD_WRITE, 0, 0, 0, 1),
        (read_only.clone(), CMD_TRIM, 0, 0, 512, 1),
        (read_only, CMD_WRITE_ZEROES, 0, 0, 512, 1),
    ];
    for (info, kind, flags, offset, len, expected) in cases {
        let mut c = ready(info, false);
        feed(&mut c, &request(kind, flags, 4, offset, len));
        let mut left = if kind == CMD_WRITE { len as usize } else { 0 };
        while left > 0 {
            assert_eq!(c.poll_request(), None);
            assert!(!c.has_output(), "answered before its data has come");
            let piece = left.min(8192);
            feed(&mut c, &vec![0xa5; piece]);
            left -= piece;
        }
        assert_eq!(
            simple_error(&mut c, 4),
            expected,
            "kind {kind} flags {flags} {offset}+{len}"
        );
        // What follows is understood.
        feed(&mut c, &request(CMD_FLUSH, 0, 5, 0, 0));
        assert_eq!(c.poll_request().unwrap().op, BlockOp::Flush);
    }
}

#[test]
fn the_last_block_and_large_zeroes_are_in_range() {
    let odd = ExportInfo {
        size_bytes: SIZE + 100,
        ..info()
    };
    assert_eq!(odd.served_bytes(), SIZE);
    let mut c = ready(odd, false);
    feed(&mut c, &request(CMD_READ, 0, 1, SIZE - 512, 512));
    assert!(c.poll_request().is_some());
    feed(
        &mut c,
        &request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 1, 0, SIZE as u32),
    );
    assert_eq!(c.poll_request().unwrap().len, SIZE as u32);
    feed(&mut c, &request(CMD_READ, 0, 1, 0, MAX_REQUEST_BYTES));
    assert_eq!(c.poll_request(), None, "waits for the read before it");
}

#[test]
fn empty_requests_succeed_without_the_device() {
    for structured in [false, true] {
        let mut c = ready(info(), structured);
        for kind in [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            feed(&mut c, &request(kind, 0, 8, 512, 0));
            assert_eq!(c.poll_request(), None);
            let reply = drain(&mut c);
            if structured {
                let words = [0x668e_33ef_u32, 0x0001_0000, 0, 8, 0];
                assert_eq!(reply, words.map(u32::to_be_bytes).concat());
            } else {
                assert_eq!(reply[4..8], [0; 4]);
            }
        }
    }
}

#[test]
fn facts_that_change_hold_for_the_next_request() {
    let mut c = ready(info(), false);
    c.update(ExportInfo {
        size_bytes: 4096,
        read_only: true,
        ..info()
    });
    feed(&mut c, &request(CMD_READ, 0, 1, 4096, 512));
    assert_eq!(simple_error(&mut c, 1), 22);
    feed(&mut c, &request(CMD_TRIM, 0, 2, 0, 512));
    assert_eq!(simple_error(&mut c, 2), 1);
}

#[test]
fn requests_in_flight_are_bounded_and_room_is_used_again() {
    let mut c = ready(info(), false);
    for n in 0..MAX_REQUESTS as u64 + 10 {
        feed(&mut c, &request(CMD_READ, 0, n, 0, 512));
    }
    let taken: Vec<_> = std::iter::from_fn(|| c.poll_request()).collect();
    assert_eq!(taken.len(), MAX_REQUESTS);
    let mut tokens: Vec<_> = taken.iter().map(|r| r.token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), MAX_REQUESTS);

    // A reply that is not sent yet still takes its place.
    c.complete(taken[0].token, Ok(vec![0; 512]));
    assert_eq!(c.poll_request(), None);
    drain(&mut c);
    assert!(c.poll_request().is_some());
    assert_eq!(c.poll_request(), None);

    // Nothing is taken for ever: reading stops when the buffer is full.
    let mut fed = 0;
    while c.input().iter().any(|space| !space.is_empty()) {
        feed(&mut c, &request(CMD_FLUSH, 0, 1, 0, 0)[..1]);
        fed += 1;
        assert!(fed <= BUFFER_BYTES);
    }
}

#[test]
fn replies_that_nobody_reads_are_bounded() {
    let mut c = ready(info(), true);
    let bad = request(999, 0, 1, 0, 0);
    let mut fed = 0;
    while c.input().iter().any(|space| space.len() >= bad.len()) {
        feed(&mut c, &bad);
        assert_eq!(c.poll_request(), None);
        fed += 1;
        assert!(fed <= MAX_REQUESTS + BUFFER_BYTES / bad.len());
    }
    assert_eq!(drain(&mut c).len(), MAX_REQUESTS * 26);
}

#[test]
fn data_in_flight_is_bounded_but_one_request_always_fits() {
    let mut c = ready(info(), false);
    feed(&mut c, &request(CMD_READ, 0, 1, 0, MAX_REQUEST_BYTES));
    let large = c.poll_request().unwrap();
    feed(&mut c, &request(CMD_READ, 0, 2, 0, 512));
    assert_eq!(c.poll_request(), None);
    c.complete(large.token, Ok(vec![0; MAX_REQUEST_BYTES as usize]));
    assert_eq!(c.poll_request(), None);
    c.sent(16 + MAX_REQUEST_BYTES as usize - 1);
    assert_eq!(c.poll_request(), None);
    c.sent(1);
    let small = c.poll_request().unwrap();

    // A write waits before its data has a place.
    feed(&mut c, &request(CMD_WRITE, 0, 3, 0, MAX_DATA_BYTES as u32));
    assert_eq!(c.poll_request(), None);
    assert!(c.input()[0].is_empty());
    c.complete(small.token, Err(BlockError::Io));
    drain(&mut c);
    assert_eq!(c.poll_request(), None);
    assert_eq!(c.input()[0].len(), MAX_DATA_BYTES);
}

#[test]
fn a_client_that_leaves_is_still_answered() {
    let leave: [fn(&mut Connection); 2] = [
        |c| feed(c, &request(CMD_DISC, 0, 0, 0, 0)),
        Connection::end_of_input,
    ];
    for leave in leave {
        let mut c = ready(info(), false);
        feed(&mut c, &request(CMD_FLUSH, 0, 1, 0, 0));
        let flush = c.poll_request().unwrap();
        leave(&mut c);
        assert_eq!(c.poll_request(), None);
        assert!(!c.is_finished());
        assert!(c.input().iter().all(|space| space.is_empty()));
        c.complete(flush.token, Ok(Vec::new()));
        assert!(!c.is_finished());
        assert_eq!(simple_error(&mut c, 1), 0);
        assert!(c.is_finished() && c.violation().is_none());
    }
    // In the middle of a write: nothing of it is executed.
    let mut c = ready(info(), false);
    feed(&mut c, &request(CMD_WRITE, 0, 1, 0, 1024));
    feed(&mut c, &[1; 1023]);
    assert_eq!(c.poll_request(), None);
    c.end_of_input();
    assert_eq!(c.poll_request(), None);
    assert!(c.is_finished());
}

#[test]
fn the_largest_device_is_served_to_its_end() {
    let size_bytes = (1 << 63) - 512;
    let largest = ExportInfo {
        size_bytes,
        ..info()
    };
    let mut c = ready(largest, false);
    feed(&mut c, &request(CMD_READ, 0, 1, size_bytes - 512, 512));
    let asked = c.poll_request().expect("a request");
    assert_eq!((asked.offset, asked.len), (size_bytes - 512, 512));
    for (cookie, offset) in [(2, size_bytes), (3, u64::MAX - 511)] {
        feed(&mut c, &request(CMD_READ, 0, cookie, offset, 512));
        assert_ne!(simple_error(&mut c, cookie), 0);
    }
}

#[test]
fn nonsense_instead_of_a_request_ends_the_connection() {
    let mut c = ready(info(), true);
    feed(&mut c, &[0xa5; 28]);
    assert_eq!(c.poll_request(), None);
    assert_eq!(c.violation(), Some(Violation::RequestMagic));
    assert!(c.is_finished());
    c.complete(3 << 32, Ok(Vec::new()));
    c.end_of_input();
    assert_eq!(c.violation(), Some(Violation::RequestMagic));
}

/// Executes what is asked in the order in which it is asked, and completes it in reverse.
fn serve(c: &mut Connection, disk: &mut [u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut done = Vec::new();
        while let Some(r) = c.poll_request() {
            let range = r.offset as usize..r.offset as usize + r.len as usize;
            let mut data = Vec::new();
            match r.op {
                BlockOp::Read => data = disk[range].to_vec(),
                BlockOp::Write => disk[range].copy_from_slice(&r.data),
                BlockOp::WriteZeroes | BlockOp::Discard => disk[range].fill(0),
                BlockOp::Flush => {}
            }
            done.push((r.token, data));
        }
        let idle = done.is_empty();
        for (token, data) in done.into_iter().rev() {
            c.complete(token, Ok(data));
        }
        out.extend(drain(c));
        if idle {
            return out;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the bytes are cut, the disk ends the same and each request has one reply.
    #[test]
    fn cuts_change_nothing(
        commands in proptest::collection::vec((0_u16..8, 0_u64..70, 0_u32..5, 0_u16..2), 1..40),
        cuts in proptest::collection::vec(1_usize..2000, 1..20),
        structured: bool,
    ) {
        let small = ExportInfo { size_bytes: 64 * 512, ..info() };
        let mut bytes = Vec::new();
        let mut model = vec![0_u8; 64 * 512];
        for (n, (kind, block, blocks, flags)) in commands.iter().enumerate() {
            let kind = if *kind == CMD_DISC { CMD_READ } else { *kind };
            let (offset, len) = (block * 512, blocks * 512);
            bytes.extend(request(kind, *flags, n as u64, offset, len));
            let fits = offset + u64::from(len) <= 64 * 512;
            let range = offset as usize..offset as usize + len as usize;
            if kind == CMD_WRITE {
                bytes.resize(bytes.len() + len as usize, n as u8 + 1);
            }
            if fits && kind == CMD_WRITE {
                model[range].fill(n as u8 + 1);
            } else if fits && matches!(kind, CMD_TRIM | CMD_WRITE_ZEROES) {
                model[range].fill(0);
            }
        }
        let mut c = ready(small, structured);
        let mut disk = vec![0_u8; 64 * 512];
        let (mut at, mut out) = (0, Vec::new());
        for cut in cuts.iter().cycle() {
            let end = bytes.len().min(at + cut);
            feed(&mut c, &bytes[at..end]);
            out.extend(serve(&mut c, &mut disk));
            at = end;
            if at == bytes.len() {
                break;
            }
        }
        prop_assert!(disk == model);
        let mut answered = BTreeSet::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let word = |at: usize| u64::from_be_bytes(rest[at..at + 8].try_into().unwrap());
            let cookie = word(8);
            let ok = rest[4..8] == [0; 4];
            let (kind, _, blocks, _) = commands[cookie as usize];
            let read = matches!(kind, CMD_READ | CMD_DISC);
            let len = if structured {
                20 + (word(12) as u32) as usize
            } else if ok && read {
                16 + blocks as usize * 512
            } else {
                16
            };
            prop_assert!(answered.insert(cookie));
            rest = &rest[len.min(rest.len())..];
        }
        prop_assert_eq!(answered.len(), commands.len());
    }

    /// No input panics, and none makes the connection hold more than its limits.
    #[test]
    fn any_bytes_are_survived(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                (0_u32..12, proptest::collection::vec(any::<u8>(), 0..40))
                    .prop_map(|(option, data)| option_bytes(option, &data)),
                (any::<u16>(), 0_u16..9, any::<u64>(), any::<u32>())
                    .prop_map(|(flags, kind, offset, len)| request(kind, flags % 4, 1, offset, len)),
                (0_u16..9, 0_u64..200, 0_u32..9)
                    .prop_map(|(kind, at, len)| request(kind, 0, 1, at * 512, len * 512)),
                Just(option_bytes(OPT_GO, &go_data("", &[]))),
            ],
            0..40,
        ),
        greet in proptest::bool::weighted(0.9),
        complete_every in 1_usize..5,
    ) {
        let mut c = connection(info());
        let mut bytes = if greet { 3_u32.to_be_bytes().to_vec() } else { Vec::new() };
        bytes.extend(pieces.concat());
        let mut requests = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let mut taken = 0;
            for space in c.input() {
                let n = space.len().min(rest.len());
                space[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                taken += n;
            }
            c.received(taken);
            while let Some(r) = c.poll_request() {
                prop_assert!(r.offset + u64::from(r.len) <= SIZE);
                prop_assert!(r.op == BlockOp::Write || r.data.is_empty());
                requests.push(r);
                if requests.len().is_multiple_of(complete_every) {
                    c.complete(requests[requests.len() / 2].token, Err(BlockError::Io));
                }
            }
            prop_assert!(c.slots.len() <= MAX_REQUESTS);
            prop_assert!(c.data_bytes <= MAX_DATA_BYTES.max(MAX_REQUEST_BYTES as usize));
            if taken == 0 {
                break;
            }
        }
        for r in requests {
            c.complete(r.token, Err(BlockError::Io));
        }
        drain(&mut c);
        c.end_of_input();
        while let Some(r) = c.poll_request() {
            c.complete(r.token, Err(BlockError::Io));
        }
        drain(&mut c);
        prop_assert!(c.is_finished());
        prop_assert_eq!(c.data_bytes, 0);
    }
}
