//! The kernel's ublk driver, told to make and remove devices and to take them over from an earlier
//! start. Every command may take at most [`super::PATIENCE`].
//!
//! A device is made with user recovery: when `rmad` dies the kernel keeps it, holds back its I/O, and
//! gives all of it that was not answered to the one that takes the device over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{PATIENCE, bounded, modules, uring};
use crate::export::block::ExportInfo;
use crate::wire::Guid;

/// Requests of one device that the kernel has under way at a time.
pub const QUEUE_DEPTH: u16 = 128;
/// The most bytes of one read or write.
pub const MAX_IO_BYTES: u32 = 1 << 20;

const CONTROL: &str = "/dev/ublk-control";
/// A control command's bytes, which its number tells too.
const COMMAND_BYTES: u32 = 32;
const INFO_BYTES: usize = 64;
/// More numbers than this are not looked at for one that is free.
const MAX_DEVICES: u32 = 4096;
/// The largest blocks that the driver has: a page.
const MAX_BLOCK_BYTES: u32 = 4096;

const USER_RECOVERY: u64 = 1 << 3;
const USER_RECOVERY_REISSUE: u64 = 1 << 4;
const IOCTL_ENCODE: u64 = 1 << 6;
const USER_COPY: u64 = 1 << 7;
const UPDATE_SIZE: u64 = 1 << 10;
const FLAGS: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | IOCTL_ENCODE | USER_COPY;

const READ_ONLY: u32 = 1;
const ROTATIONAL: u32 = 1 << 1;
const VOLATILE_CACHE: u32 = 1 << 2;
const FUA: u32 = 1 << 3;
const PARAM_BASIC: u32 = 1;
const PARAM_DISCARD: u32 = 1 << 1;

/// What is asked of the driver: the number, and whether it reads what the command points at.
#[derive(Debug, Clone, Copy)]
enum Verb {
    AddDev = 0x04,
    DelDev = 0x05,
    StartDev = 0x06,
    StopDev = 0x07,
    SetParams = 0x08,
    StartRecovery = 0x10,
    EndRecovery = 0x11,
    GetDevInfo = 0x02,
    GetFeatures = 0x13,
    DelDevAsync = 0x14,
    UpdateSize = 0x15,
}

impl Verb {
    const fn operation(self) -> u32 {
        let direction = match self {
            Self::GetDevInfo | Self::GetFeatures | Self::DelDevAsync => 2,
            _ => 3,
        };
        (direction << 30) | (COMMAND_BYTES << 16) | ((b'u' as u32) << 8) | self as u32
    }
}

/// Gives a control command; the buffer comes back as the driver has left it.
fn control(verb: Verb, id: u32, buffer: Vec<u8>, data: u64) -> io::Result<Vec<u8>> {
    bounded("ublk", move || {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let len = buffer.len() as u16;
        let (result, buffer) = uring::command(&file, verb.operation(), buffer, |address| {
            let mut bytes = [0; 80];
            bytes[..4].copy_from_slice(&id.to_ne_bytes());
            bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
            bytes[6..8].copy_from_slice(&len.to_ne_bytes());
            bytes[8..16].copy_from_slice(&address.to_ne_bytes());
            bytes[16..24].copy_from_slice(&data.to_ne_bytes());
            bytes
        })?;
        if result < 0 {
            return Err(Error::from_raw_os_error(-result));
        }
        Ok(buffer)
    })
}

fn features() -> io::Result<u64> {
    let answer = control(Verb::GetFeatures, u32::MAX, vec![0; 8], 0)?;
    let bytes = answer.try_into().map_err(|_| ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Whether the driver is there and can do what we need; it is loaded if need be. The error says why
/// not, in one line.
pub fn probe() -> Result<(), String> {
    if !Path::new(CONTROL).exists() {
        modules::load("ublk_drv").map_err(|e| format!("the kernel has no ublk driver ({e})"))?;
    }
    match features() {
        Ok(features) if features & FLAGS == FLAGS => Ok(()),
        Ok(_) => Err("the kernel's ublk driver is too old: it has no user copy".into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(format!(
            "the kernel has no ublk driver ({CONTROL} is not there)"
        )),
        Err(e) => Err(format!(
            "the kernel's ublk driver does not tell what it can ({e})"
        )),
    }
}

/// Whether the driver can make a device of it.
pub fn fits(info: &ExportInfo) -> Result<(), String> {
    if info.block_size > MAX_BLOCK_BYTES {
        return Err(format!(
            "ublk has no blocks of {} bytes, {MAX_BLOCK_BYTES} at most",
            info.block_size
        ));
    }
    Ok(())
}

/// A number that no ublk device has, at least `from`.
pub fn free_id(from: u32) -> u32 {
    let taken = |id: &u32| Path::new(&format!("/dev/ublkc{id}")).exists();
    let last = from.saturating_add(MAX_DEVICES);
    (from..last).find(|id| !taken(id)).unwrap_or(last)
}

/// What tells a device of ours from others' after a restart: 16 bits for the host, 48 for host and
/// device. The driver keeps it and does not look at it.
fn mark(host: Guid, device: Guid) -> u64 {
    let (host, device) = (host.0.to_be_bytes(), device.0.to_be_bytes());
    let both = [host, device].concat();
    (xxh3_64(&host) & !(u64::MAX >> 16)) | (xxh3_64(&both) & (u64::MAX >> 16))
}

/// A device of an earlier start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOver {
    /// Its number.
    pub id: u32,
    mark: u64,
}

impl LeftOver {
    /// Whether it was made for this device.
    pub fn is_of(&self, host: Guid, device: Guid) -> bool {
        self.mark == mark(host, device)
    }
}

/// The devices that `host` has made and that are still there.
pub fn left_over(host: Guid) -> Vec<LeftOver> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        let Some(id) = id.and_then(|id| id.parse().ok()) else {
            continue;
        };
        let Ok(info) = control(Verb::GetDevInfo, id, vec![0; INFO_BYTES], 0) else {
            continue;
        };
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&info[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let (flags, kept) = (word(24), word(32));
        if flags & FLAGS == FLAGS && (kept ^ mark(host, Guid::NIL)) >> 48 == 0 {
            found.push(LeftOver { id, mark: kept });
        }
    }
    found
}

/// Makes a device that does not take I/O yet; the file is for its queue.
pub fn add(id: u32, host: Guid, device: Guid, info: &ExportInfo) -> io::Result<File> {
    let mut bytes = vec![0; INFO_BYTES];
    bytes[..2].copy_from_slice(&1_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&QUEUE_DEPTH.to_ne_bytes());
    bytes[8..12].copy_from_slice(&MAX_IO_BYTES.to_ne_bytes());
    bytes[12..16].copy_from_slice(&id.to_ne_bytes());
    bytes[24..32].copy_from_slice(&FLAGS.to_ne_bytes());
    bytes[32..40].copy_from_slice(&mark(host, device).to_ne_bytes());
    control(Verb::AddDev, id, bytes, 0)?;
    control(Verb::SetParams, id, parameters(info), 0)?;
    open_queue(id)
}

/// The file of a device's queue, once the node is there.
fn open_queue(id: u32) -> io::Result<File> {
    let path = format!("/dev/ublkc{id}");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

fn parameters(info: &ExportInfo) -> Vec<u8> {
    let mut attributes = VOLATILE_CACHE;
    for (on, bit) in [
        (info.read_only, READ_ONLY),
        (info.rotational, ROTATIONAL),
        (info.fua, FUA),
    ] {
        attributes |= if on { bit } else { 0 };
    }
    let block = info.block_size.trailing_zeros() as u8;
    let physical = block.max(12);
    let range = |on: bool| {
        if on && !info.read_only {
            u32::MAX >> 9
        } else {
            0
        }
    };
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(&attributes.to_ne_bytes());
    bytes.extend_from_slice(&[block, physical, physical, physical]);
    bytes.extend_from_slice(&(MAX_IO_BYTES >> 9).to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&(info.served_bytes() >> 9).to_ne_bytes());
    bytes.extend_from_slice(&0_u64.to_ne_bytes());
    // Discard: alignment, granularity, most sectors of both kinds, segments.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&info.block_size.to_ne_bytes());
    bytes.extend_from_slice(&range(info.discard).to_ne_bytes());
    bytes.extend_from_slice(&range(info.write_zeroes).to_ne_bytes());
    bytes.extend_from_slice(&1_u16.to_ne_bytes());
    bytes.extend_from_slice(&0_u16.to_ne_bytes());
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(PARAM_BASIC | PARAM_DISCARD).to_ne_bytes());
    bytes
}

/// Makes the block device appear, once its queue is being served: the kernel reads its partitions.
pub fn start(id: u32) -> io::Result<()> {
    control(Verb::StartDev, id, Vec::new(), own_pid()).map(drop)
}

fn own_pid() -> u64 {
    u64::from(std::process::id())
}

/// Begins to take over a device of an earlier start; the file is for its queue.
pub fn take_over(id: u32) -> io::Result<File> {
    // The kernel needs a moment to see that the process before is gone.
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match control(Verb::StartRecovery, id, Vec::new(), 0) {
            Ok(_) => return open_queue(id),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && std::time::Instant::now() < end => {
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Ends the taking over, once the queue is being served.
pub fn resume(id: u32) -> io::Result<()> {
    control(Verb::EndRecovery, id, Vec::new(), own_pid()).map(drop)
}

/// Tells the kernel the device's size, where it can hear of that.
pub fn resize(id: u32, info: &ExportInfo) -> io::Result<()> {
    if features()? & UPDATE_SIZE == 0 {
        return Err(ErrorKind::Unsupported.into());
    }
    let sectors = info.served_bytes() >> 9;
    control(Verb::UpdateSize, id, Vec::new(), sectors).map(drop)
}

/// Removes the device; I/O under way and to come fails. Its node is gone when the last who has it
/// open closes it.
pub fn remove(id: u32) -> io::Result<()> {
    match control(Verb::StopDev, id, Vec::new(), 0) {
        Ok(_) => {}
        Err(e) if is_gone(&e) => return Ok(()),
        Err(e) => return Err(e),
    }
    match control(Verb::DelDevAsync, id, Vec::new(), 0) {
        Ok(_) => Ok(()),
        Err(e) if is_gone(&e) => Ok(()),
        // Older kernels only have the one that waits.
        Err(_) => control(Verb::DelDev, id, Vec::new(), 0).map(drop),
    }
}

fn is_gone(error: &Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
        || error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        // _IOWR('u', 0x04, 32 bytes) and _IOR('u', 0x13, 32 bytes).
        assert_eq!(Verb::AddDev.operation(), 0xc020_7504);
        assert_eq!(Verb::GetFeatures.operation(), 0x8020_7513);
    }

    #[test]
    fn a_mark_tells_hosts_and_devices_apart() {
        let left = LeftOver {
            id: 0,
            mark: mark(Guid(1), Guid(2)),
        };
        assert!(left.is_of(Guid(1), Guid(2)));
        assert!(!left.is_of(Guid(1), Guid(3)) && !left.is_of(Guid(2), Guid(2)));
        assert_eq!(left.mark >> 48, mark(Guid(1), Guid::NIL) >> 48);
        assert_ne!(left.mark >> 48, mark(Guid(2), Guid::NIL) >> 48);
    }

    #[test]
    fn parameters_are_as_long_as_they_say() {
        let info = ExportInfo {
            name: String::new(),
            description: String::new(),
            size_bytes: (1 << 20) + 100,
            block_size: 512,
            read_only: false,
            fua: true,
            discard: true,
            write_zeroes: false,
            rotational: false,
        };
        let bytes = parameters(&info);
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..4], 60_u32.to_ne_bytes());
        assert_eq!(bytes[12..16], [9, 12, 12, 12]);
        assert_eq!(bytes[24..32], 2048_u64.to_ne_bytes());
        assert_eq!(bytes[48..52], (u32::MAX >> 9).to_ne_bytes());
        assert_eq!(bytes[52..56], [0; 4]);
    }
}
