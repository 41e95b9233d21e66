//! The system calls on packet sockets that no crate wraps well: `recvmmsg` and `sendmmsg` over
//! buffers that the caller keeps, packet options, the interface's MTU.
//!
//! Each function makes one system call and judges nothing. The software switch of the test rig
//! uses them too.
#![allow(unsafe_code)]

use super::BATCH_FRAMES;
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// EtherType that stands for all of them when a socket is bound.
pub const ETHERTYPE_ALL: u16 = 0x0003;

/// A non-blocking packet socket that receives nothing until it is bound.
///
/// # Errors
/// The kernel's; `EPERM` without CAP_NET_RAW.
pub fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Binds a packet socket to an interface and an EtherType ([`ETHERTYPE_ALL`] for every one).
///
/// # Errors
/// The kernel's; `ENODEV` if the interface is gone.
pub fn bind(socket: &Socket, index: u32, ethertype: u16) -> io::Result<()> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the platform's sockaddr types and no larger than the storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = signed(index)?;
    // SAFETY: the storage holds a sockaddr_ll with its family set, and the length is that type's.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) };
    socket.bind(&address)
}

/// Joins a multicast group on an interface; it is left when the interface goes or the socket closes.
///
/// # Errors
/// The kernel's; `ENODEV` if the interface is gone.
pub fn join(socket: &Socket, index: u32, group: [u8; 6]) -> io::Result<()> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&group);
    let request = libc::packet_mreq {
        mr_ifindex: signed(index)?,
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: address,
    };
    set_option(socket, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Stops a socket bound to [`ETHERTYPE_ALL`] from receiving what its own interface sends.
///
/// # Errors
/// The kernel's; `ENOPROTOOPT` before Linux 4.20.
pub fn ignore_outgoing(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::PACKET_IGNORE_OUTGOING, &1i32)
}

/// Sends past the interface's queue, straight to its driver: a frame that the driver has no room for is
/// dropped instead of queued, and a new interface sends from the moment it has a carrier.
///
/// # Errors
/// The kernel's.
pub fn bypass_queue(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::PACKET_QDISC_BYPASS, &1i32)
}

/// Has a socket put what it receives into a ring of `slots` slots in `blocks` blocks of memory, to be mapped
/// (`TPACKET_V2`).
///
/// # Errors
/// The kernel's.
pub fn use_ring(
    socket: &Socket,
    block_bytes: usize,
    blocks: usize,
    slot_bytes: usize,
    slots: usize,
) -> io::Result<()> {
    let number = |n: usize| u32::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    let request = libc::tpacket_req {
        tp_block_size: number(block_bytes)?,
        tp_block_nr: number(blocks)?,
        tp_frame_size: number(slot_bytes)?,
        tp_frame_nr: number(slots)?,
    };
    set_option(
        socket,
        libc::PACKET_VERSION,
        &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
    )?;
    set_option(socket, libc::PACKET_RX_RING, &request)
}

/// Frames that the kernel dropped because the receive buffer was full, since the last call.
///
/// # Errors
/// The kernel's.
pub fn take_drops(socket: &Socket) -> io::Result<u64> {
    // SAFETY: tpacket_stats is plain integers, for which zero is a value.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `stats`, which lives across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            ptr::from_mut(&mut stats).cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok(u64::from(stats.tp_drops))
}

/// The MTU of an interface of the calling thread's network namespace.
///
/// # Errors
/// The kernel's; `ENODEV` if there is none of this name.
pub fn mtu(name: &str) -> io::Result<u16> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    // SAFETY: ifreq is plain integers and a union of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: SIOCGIFMTU reads the name from an ifreq, which ends in a zero here, and writes its
    // MTU; `request` lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the call succeeded, so the kernel wrote this field of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// Receives up to `want` and [`BATCH_FRAMES`] frames without waiting, each into its own `slot` octets of
/// `buffer`, and appends their lengths; a frame that did not fit has a length above `slot`.
///
/// # Errors
/// The kernel's; `WouldBlock` if none waits.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    slot: usize,
    want: usize,
    lengths: &mut Vec<usize>,
) -> io::Result<usize> {
    // Only what is used is filled in: a call for one frame would else mostly clear memory.
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH_FRAMES];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH_FRAMES];
    let mut count = 0;
    for (slice, (vector, header)) in buffer
        .chunks_exact_mut(slot)
        .zip(vectors.iter_mut().zip(&mut headers))
        .take(want)
    {
        let vector = vector.write(libc::iovec {
            iov_base: slice.as_mut_ptr().cast(),
            iov_len: slot,
        });
        header.write(message(vector, 1));
        count += 1;
    }
    // SAFETY: `count` headers are filled in; each points at one vector, each of those at `slot`
    // octets of `buffer` that no other points at; all of them live across the call.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    check(received)?;
    lengths.extend(headers.iter().take(received as usize).map(|header| {
        // SAFETY: the kernel receives into the first headers, no more than `count`, all filled in.
        let header = unsafe { header.assume_init_ref() };
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        if truncated {
            slot + 1
        } else {
            header.msg_len as usize
        }
    }));
    Ok(received as usize)
}

/// Sends up to [`BATCH_FRAMES`] of the frames without waiting, Ethernet headers included, each in parts;
/// returns how many were taken, from the front. An error says what became of the first frame.
///
/// # Errors
/// The kernel's; `WouldBlock` if the send buffer is full.
pub fn send<'a>(socket: BorrowedFd<'_>, frames: &[impl AsRef<[IoSlice<'a>]>]) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH_FRAMES];
    let mut count = 0;
    for (frame, header) in frames.iter().zip(&mut headers) {
        // An IoSlice is an iovec by its documentation; sending does not write through it.
        let parts = frame.as_ref();
        let vector = parts.as_ptr().cast::<libc::iovec>().cast_mut();
        header.write(message(vector, parts.len()));
        count += 1;
    }
    // SAFETY: `count` headers are filled in, each points at the parts of one of `frames`, which outlive the
    // call.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count,
            libc::MSG_DONTWAIT as _,
        )
    };
    check(sent)?;
    Ok(sent as usize)
}

/// The header of one message in `parts` pieces.
fn message(vector: *mut libc::iovec, parts: usize) -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_iov = vector;
    header.msg_hdr.msg_iovlen = parts as _;
    header
}

fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, a plain struct or integer of the type
    // that the callers' options take.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

fn signed(index: u32) -> io::Result<i32> {
    i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
