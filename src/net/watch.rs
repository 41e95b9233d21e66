//! Notice of interfaces that change, from the kernel's link multicast group.

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Octets of one notice; a longer one is cut, which loses nothing that is looked at.
const NOTICE_BYTES: usize = 4096;

/// Becomes readable when an interface of the namespace appears, disappears or changes.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    /// Starts watching the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(
            socket.as_raw_fd(),
            &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32),
        )?;
        Ok(Self { socket })
    }

    /// Takes all notices; whether there were any. What changed is for the caller to look up, so a
    /// notice that the kernel had no room for is as good as one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut notice = [0; NOTICE_BYTES];
        let mut any = false;
        loop {
            match recv(self.socket.as_raw_fd(), &mut notice, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(any),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
