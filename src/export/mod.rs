//! Owned devices for the operating system: block devices of the kernel, NBD servers on UNIX sockets, udev rules.
//!
//! | module | owns |
//! |---|---|
//! | [`choice`] | the ways of export, and which is taken |
//! | [`kernel`] | making and removing the kernel's block devices; who uses them |
//! | [`block`] | what an export is, what is asked of it, how that can fail: no I/O |
//! | [`nbd`] | the NBD protocol of one connection: bytes in, requests out, and back: no I/O |
//! | [`socket`] | listeners and connections on UNIX sockets, driven by the caller's loop |
//! | [`ublk`] | the queues of ublk devices, driven by the caller's loop |
//! | [`udev`] | rule text from owned rows: a pure function |
//! | [`rules_file`] | the file in which udev finds that text |
//!
//! Nothing here knows sessions, the table or the fabric: the caller hands requests to its initiator
//! and makes exports of rows.

pub mod block;
pub mod choice;
pub mod kernel;
pub mod nbd;
pub mod rules_file;
pub mod socket;
pub mod ublk;
pub mod udev;
