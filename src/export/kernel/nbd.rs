//! The kernel's nbd driver, told over generic netlink which sockets to use for which device.
//!
//! The kernel keeps a device while its connections are dead and holds its I/O back; when new ones come
//! (`rmad` is there again) it goes on. A request that is not answered in [`REQUEST_TIMEOUT`] is
//! sent once more on another connection, never failed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::netlink::{Message, Netlink};
use super::{bounded, modules};
use crate::export::block::ExportInfo;
use crate::export::nbd::kernel_flags;
use crate::wire::Guid;

/// Connections of each device.
pub const CONNECTIONS: usize = 2;
/// After this time without an answer the driver takes a request to another connection. What was under
/// way when `rmad` was killed goes on after it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long I/O waits for a connection. A device that is released ends at once; so this is the time
/// that `rmad` may be away.
pub const DEAD_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

const FAMILY: &str = "nbd";
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_TIMEOUT: u16 = 8;
const IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// The device goes away when it is disconnected.
const DESTROY_ON_DISCONNECT: u64 = 1;
/// More numbers than this are not looked at for one that is free.
const MAX_DEVICES: u32 = 4096;
/// The largest blocks that the driver has.
const MAX_BLOCK_BYTES: u32 = 4096;

/// Whether the driver is there; it is loaded if need be. The error says why not, in one line.
pub fn probe() -> Result<(), String> {
    let look = || bounded("nbd", || Netlink::open()?.family(FAMILY));
    match look() {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            modules::load("nbd").map_err(|e| format!("the kernel has no nbd driver ({e})"))?;
            let still = |e| format!("the kernel has no nbd driver, even after modprobe nbd ({e})");
            look().map(drop).map_err(still)
        }
        Err(e) => Err(format!("the kernel does not tell of its nbd driver ({e})")),
    }
}

/// Whether the driver can make a device of it.
pub fn fits(info: &ExportInfo) -> Result<(), String> {
    if info.block_size > MAX_BLOCK_BYTES {
        return Err(format!(
            "nbd has no blocks of {} bytes, {MAX_BLOCK_BYTES} at most",
            info.block_size
        ));
    }
    Ok(())
}

/// A number that no nbd device has, at least `from`.
pub fn free_index(from: u32) -> u32 {
    let taken = |index: &u32| Path::new(&format!("/sys/block/nbd{index}")).exists();
    let last = from.saturating_add(MAX_DEVICES);
    (from..last).find(|index| !taken(index)).unwrap_or(last)
}

/// What tells our devices from others' after a restart.
fn identifier(host: Guid, device: Guid) -> String {
    format!("rma/{host}/{device}")
}

/// The nbd devices that `host` has made and that are still there.
pub fn left_over(host: Guid) -> Vec<(u32, Guid)> {
    let mut found = Vec::new();
    let prefix = format!("rma/{host}/");
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd"));
        let Some(index) = index.and_then(|index| index.parse().ok()) else {
            continue;
        };
        let backend = fs::read_to_string(entry.path().join("backend")).unwrap_or_default();
        let device = backend.trim().strip_prefix(&prefix);
        if let Some(device) = device.and_then(|device| device.parse().ok()) {
            found.push((index, device));
        }
    }
    found
}

/// Socket pairs: our ends, and the driver's.
pub fn pairs(count: usize) -> io::Result<(Vec<UnixStream>, Vec<OwnedFd>)> {
    let pairs: Vec<_> = (0..count)
        .map(|_| UnixStream::pair())
        .collect::<io::Result<_>>()?;
    Ok(pairs
        .into_iter()
        .map(|(ours, theirs)| (ours, OwnedFd::from(theirs)))
        .unzip())
}

/// Makes the device `nbd{index}`, served on the other ends of `sockets`.
pub fn connect(
    index: u32,
    host: Guid,
    device: Guid,
    info: &ExportInfo,
    sockets: Vec<OwnedFd>,
) -> io::Result<()> {
    let info = info.clone();
    bounded("nbd connect", move || {
        request(CONNECT, |message| {
            message.put(INDEX, &index.to_ne_bytes());
            message.put(BLOCK_SIZE_BYTES, &u64::from(info.block_size).to_ne_bytes());
            message.put(SERVER_FLAGS, &u64::from(kernel_flags(&info)).to_ne_bytes());
            message.put(CLIENT_FLAGS, &DESTROY_ON_DISCONNECT.to_ne_bytes());
            common(message, &identifier(host, device), &info, &sockets);
        })
    })
}

/// Gives the device new connections for those that are dead, and its present size.
pub fn reconnect(
    index: u32,
    host: Guid,
    device: Guid,
    info: &ExportInfo,
    sockets: Vec<OwnedFd>,
) -> io::Result<()> {
    let info = info.clone();
    bounded("nbd reconnect", move || {
        request(RECONFIGURE, |message| {
            message.put(INDEX, &index.to_ne_bytes());
            common(message, &identifier(host, device), &info, &sockets);
        })
    })
}

/// Removes the device; I/O under way and to come fails. It is gone when the last who has it open
/// closes it.
pub fn disconnect(index: u32) -> io::Result<()> {
    bounded("nbd disconnect", move || {
        request(DISCONNECT, |message| {
            message.put(INDEX, &index.to_ne_bytes());
        })
    })
}

fn common(message: &mut Message, identifier: &str, info: &ExportInfo, sockets: &[OwnedFd]) {
    message.put(SIZE_BYTES, &info.served_bytes().to_ne_bytes());
    message.put(TIMEOUT, &REQUEST_TIMEOUT.as_secs().to_ne_bytes());
    let dead = DEAD_CONNECTION_TIMEOUT.as_secs();
    message.put(DEAD_TIMEOUT, &dead.to_ne_bytes());
    message.put(IDENTIFIER, &[identifier.as_bytes(), &[0]].concat());
    if sockets.is_empty() {
        return;
    }
    message.nested(SOCKETS, |list| {
        for socket in sockets {
            list.nested(SOCKET_ITEM, |item| {
                item.put(SOCKET_FD, &socket.as_raw_fd().to_ne_bytes());
            });
        }
    });
}

fn request(command: u8, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let family = netlink.family(FAMILY)?;
    let mut message = Message::new(family, command);
    fill(&mut message);
    netlink.request(message).map(drop)
}
