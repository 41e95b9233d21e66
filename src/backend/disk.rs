//! Files and block devices: one medium over [`Syscalls`], which differ in how ranges are freed and zeroed.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use super::syscalls::{Kernel, Syscalls};
use super::{Backend, BackendInfo, OpenError, check_range, settle_block_size};
use crate::unit::disk::{DiskError, DiskOp};
use crate::wire::row::features;

/// Zeroes are written in pieces of this many bytes where the kernel cannot write them itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Up to so many bytes are read on the protocol's own thread where they are in memory; more is better copied
/// by several.
const AT_ONCE_BYTES: usize = 64 << 10;

/// How to open a file or block device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Refuse every change.
    pub read_only: bool,
    /// Serve this many bytes; a file that is missing or shorter is made so long. `None`: all.
    pub size_bytes: Option<u64>,
    /// Logical block size, bytes; `None`: the medium's own.
    pub block_size: Option<u32>,
}

/// What kind of thing is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Medium {
    File,
    Block,
}

/// A file or block device.
pub struct Disk<S: Syscalls = Kernel> {
    syscalls: S,
    medium: Medium,
    read_only: bool,
    block_size: u32,
    size_bytes: AtomicU64,
    features: u64,
    /// The kernel once could not make data durable.
    not_durable: AtomicBool,
    without_dsync: AtomicBool,
    without_zeroing: AtomicBool,
    without_nowait: AtomicBool,
    /// Keeps a file from being served twice.
    #[allow(dead_code)]
    lock: Option<Flock<fs::File>>,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> OpenError {
    move |source| OpenError::Io { what, source }
}

fn os(what: &'static str) -> impl Fn(Errno) -> OpenError {
    move |errno| OpenError::Io {
        what,
        source: errno.into(),
    }
}

impl Disk<Kernel> {
    /// Opens (or, with a size, creates) an ordinary file, and keeps other units off it.
    pub fn open_file(path: &Path, options: Options) -> Result<Self, OpenError> {
        let existing = match fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(io("look at it")(e)),
        };
        match &existing {
            Some(meta) if !meta.is_file() => {
                return Err(OpenError::WrongType {
                    expected: "ordinary file",
                });
            }
            None if options.size_bytes.is_none() || options.read_only => {
                return Err(OpenError::Missing);
            }
            _ => {}
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .create(existing.is_none())
            .truncate(false)
            .open(path)
            .map_err(|e| match e.kind() {
                ErrorKind::NotFound => OpenError::NoDirectory,
                _ => io("open it")(e),
            })?;
        let mode = if options.read_only {
            FlockArg::LockSharedNonblock
        } else {
            FlockArg::LockExclusiveNonblock
        };
        let second = file.try_clone().map_err(io("open it"))?;
        let lock = Flock::lock(second, mode).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => OpenError::InUse,
            errno => os("lock it")(errno),
        })?;
        if existing.is_none() {
            sync_parent(path).map_err(io("make its directory durable"))?;
        }
        let block_size = settle_block_size(options.block_size, super::MIN_BLOCK_SIZE)?;
        let mut disk = Self::new(Kernel(file), Medium::File, options.read_only, block_size);
        disk.lock = Some(lock);
        disk.resize(options.size_bytes)?;
        disk.probe_file();
        Ok(disk)
    }

    /// Opens a block device that nothing else holds.
    pub fn open_block(path: &Path, options: Options) -> Result<Self, OpenError> {
        let meta = fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => OpenError::Missing,
            _ => io("look at it")(e),
        })?;
        if !meta.file_type().is_block_device() {
            return Err(OpenError::WrongType {
                expected: "block device",
            });
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => OpenError::InUse,
                _ => io("open it")(e),
            })?;
        let kernel = Kernel(file);
        let own = kernel.block_size().map_err(os("ask its block size"))?;
        let block_size = settle_block_size(options.block_size, own)?;
        let (rotational, discard) = (kernel.is_rotational(), kernel.can_discard());
        let mut disk = Self::new(kernel, Medium::Block, options.read_only, block_size);
        disk.resize(options.size_bytes)?;
        if rotational {
            disk.features |= features::ROTATIONAL;
        }
        if discard && !options.read_only {
            disk.features |= features::DISCARD;
        }
        Ok(disk)
    }
}

/// Makes a new file's name durable.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::File::open(parent)?.sync_all()
}

impl<S: Syscalls> Disk<S> {
    fn new(syscalls: S, medium: Medium, read_only: bool, block_size: u32) -> Self {
        let mut bits = features::DURABLE;
        if read_only {
            bits |= features::READ_ONLY;
        } else {
            bits |= features::FUA | features::WRITE_ZEROES;
        }
        Self {
            syscalls,
            medium,
            read_only,
            block_size,
            size_bytes: AtomicU64::new(0),
            features: bits,
            not_durable: AtomicBool::new(false),
            without_dsync: AtomicBool::new(false),
            without_zeroing: AtomicBool::new(false),
            without_nowait: AtomicBool::new(false),
            lock: None,
        }
    }

    /// Asks the file system whether it can free ranges, with a range behind the end.
    fn probe_file(&mut self) {
        let end = self.size_bytes.load(Ordering::Relaxed);
        if !self.read_only
            && self
                .syscalls
                .punch_hole(end, self.block_size.into())
                .is_ok()
        {
            self.features |= features::DISCARD;
        }
    }

    fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, DiskError> {
        let mut out = vec![0; len as usize];
        let mut done = 0;
        while done < out.len() {
            match self.syscalls.pread(&mut out[done..], offset + done as u64) {
                // The medium is shorter than it was: nothing to invent there.
                Ok(0) => return Err(DiskError::Media(Errno::EIO as i32)),
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(disk_error(e)),
            }
        }
        Ok(out)
    }

    fn write_all(
        &self,
        data: &[u8],
        offset: u64,
        call: impl Fn(&S, &[u8], u64) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < data.len() {
            match call(&self.syscalls, &data[done..], offset + done as u64) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes; with `fua` in two steps, so that an error says whether the data was not taken (the
    /// medium is as good as before) or taken and not made durable (it is not to be trusted).
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.write_all(data, offset, S::pwrite)
            .map_err(disk_error)?;
        if !fua {
            return Ok(());
        }
        self.check_durable()?;
        if self.without_dsync.load(Ordering::Relaxed) {
            return self.flush();
        }
        match self.write_all(data, offset, S::pwrite_dsync) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.without_dsync.store(true, Ordering::Relaxed);
                self.flush()
            }
            Err(e) => Err(self.lost(e)),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_durable()?;
        loop {
            match self.syscalls.fdatasync() {
                Ok(()) => return self.check_durable(),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
    }

    fn check_durable(&self) -> Result<(), DiskError> {
        if self.not_durable.load(Ordering::Acquire) {
            Err(DiskError::Media(Errno::EIO as i32))
        } else {
            Ok(())
        }
    }

    fn lost(&self, errno: Errno) -> DiskError {
        if !self.not_durable.swap(true, Ordering::AcqRel) {
            log::error!(
                "a medium could not make data durable ({errno}); its flushes fail from now on: \
                 check it, then remove and add its device, or restart the unit"
            );
        }
        disk_error(errno)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let outcome = match self.medium {
            Medium::File => self.syscalls.punch_hole(offset, len),
            Medium::Block => self.syscalls.block_discard(offset, len),
        };
        match outcome {
            // Advice: a medium that cannot take it keeps the content.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(disk_error(e)),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if !self.without_zeroing.load(Ordering::Relaxed) {
            let outcome = match self.medium {
                Medium::File => self
                    .syscalls
                    .zero_range(offset, len)
                    .or_else(|_| self.syscalls.punch_hole(offset, len)),
                Medium::Block => self.syscalls.block_zero(offset, len),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => {
                    self.without_zeroing.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(disk_error(e)),
            }
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let count = (end - at).min(ZEROES.len() as u64);
            self.write_all(&ZEROES[..count as usize], at, S::pwrite)
                .map_err(disk_error)?;
            at += count;
        }
        Ok(())
    }
}

fn disk_error(errno: Errno) -> DiskError {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => DiskError::NoSpace,
        Errno::EROFS | Errno::EPERM | Errno::EBADF => DiskError::ReadOnly,
        other => DiskError::Media(other as i32),
    }
}

impl<S: Syscalls> Backend for Disk<S> {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            block_size: self.block_size,
            features: self.features,
        }
    }

    fn execute(&self, op: DiskOp) -> Result<Vec<u8>, DiskError> {
        if let Some((offset, len)) = op.range() {
            check_range(self.size_bytes.load(Ordering::Acquire), offset, len)?;
            if len == 0 {
                return Ok(Vec::new());
            }
        }
        if self.read_only && op.is_change() {
            return Err(DiskError::ReadOnly);
        }
        match op {
            DiskOp::Read { offset, len } => return self.read(offset, len),
            DiskOp::Write { offset, data, fua } => self.write(&data, offset, fua)?,
            DiskOp::Flush => self.flush()?,
            DiskOp::Discard { offset, len } => self.discard(offset, len)?,
            DiskOp::WriteZeroes { offset, len, fua } => {
                self.write_zeroes(offset, len)?;
                if fua {
                    self.flush()?;
                }
            }
        }
        Ok(Vec::new())
    }

    fn read_at_once(&self, offset: u64, into: &mut [u8]) -> Option<Result<(), DiskError>> {
        let len = into.len();
        if len > AT_ONCE_BYTES || self.without_nowait.load(Ordering::Relaxed) {
            return None;
        }
        check_range(self.size_bytes.load(Ordering::Acquire), offset, len as u64).ok()?;
        match self.syscalls.pread_nowait(into, offset) {
            Ok(count) if count == len => Some(Ok(())),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.without_nowait.store(true, Ordering::Relaxed);
                None
            }
            // Whoever waits for the rest finds out what is wrong with it.
            _ => None,
        }
    }

    fn readable(&self, offset: u64, len: u32) -> Option<BorrowedFd<'_>> {
        let size = self.size_bytes.load(Ordering::Acquire);
        check_range(size, offset, len.into()).ok()?;
        self.syscalls.file()
    }

    fn medium_bytes(&self) -> Option<u64> {
        self.syscalls.size().ok()
    }

    fn resize(&self, wanted: Option<u64>) -> Result<BackendInfo, OpenError> {
        let mut actual = self.syscalls.size().map_err(os("ask its size"))?;
        if let Some(wanted) = wanted.filter(|w| *w > actual) {
            if self.medium == Medium::Block || self.read_only {
                return Err(OpenError::Shorter { wanted, actual });
            }
            self.syscalls.grow(wanted).map_err(os("enlarge it"))?;
            // The new length is durable before anyone relies on it.
            self.syscalls.fdatasync().map_err(os("enlarge it"))?;
            actual = wanted;
        }
        let served = wanted.unwrap_or(actual);
        let served = served - served % u64::from(self.block_size);
        if served == 0 {
            return Err(OpenError::TooSmall(self.block_size));
        }
        self.size_bytes.store(served, Ordering::Release);
        Ok(self.info())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;

    /// A medium in memory that notes every call, keeps apart what is durable, and fails on demand.
    #[derive(Default)]
    struct Script {
        calls: Mutex<Vec<&'static str>>,
        now: Mutex<Vec<u8>>,
        durable: Mutex<Vec<u8>>,
        fail: Mutex<Vec<(&'static str, Errno)>>,
    }

    impl Script {
        fn called(&self, name: &'static str) -> Result<(), Errno> {
            self.calls.lock().unwrap().push(name);
            let mut fail = self.fail.lock().unwrap();
            match fail.iter().position(|(n, _)| *n == name) {
                Some(at) => Err(fail.remove(at).1),
                None => Ok(()),
            }
        }

        fn fill(&self, offset: u64, data: &[u8]) {
            let at = offset as usize;
            self.now.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
    }

    impl Syscalls for Script {
        fn pread(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
            self.called("pread")?;
            // Short reads are normal.
            let count = buffer.len().min(700);
            let at = offset as usize;
            let now = self.now.lock().unwrap();
            let count = count.min(now.len().saturating_sub(at));
            buffer[..count].copy_from_slice(&now[at..at + count]);
            Ok(count)
        }
        /// Nothing behind the first KiB is in memory.
        fn pread_nowait(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
            self.called("pread_nowait")?;
            let at = offset as usize;
            let count = 1024_usize.saturating_sub(at).min(buffer.len());
            if count == 0 {
                return Err(Errno::EAGAIN);
            }
            buffer[..count].copy_from_slice(&self.now.lock().unwrap()[at..at + count]);
            Ok(count)
        }
        fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
            self.called("pwrite")?;
            let count = data.len().min(700);
            self.fill(offset, &data[..count]);
            Ok(count)
        }
        fn pwrite_dsync(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
            self.called("pwrite_dsync")?;
            self.fill(offset, data);
            let at = offset as usize;
            self.durable.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            Ok(data.len())
        }
        fn fdatasync(&self) -> Result<(), Errno> {
            self.called("fdatasync")?;
            self.durable
                .lock()
                .unwrap()
                .clone_from(&self.now.lock().unwrap());
            Ok(())
        }
        fn punch_hole(&self, offset: u64, len: u64) -> Result<(), Errno> {
            self.called("punch_hole")?;
            let now = self.now.lock().unwrap().len() as u64;
            if offset + len <= now {
                self.fill(offset, &vec![0; len as usize]);
            }
            Ok(())
        }
        fn zero_range(&self, offset: u64, len: u64) -> Result<(), Errno> {
            self.called("zero_range")?;
            self.fill(offset, &vec![0; len as usize]);
            Ok(())
        }
        fn block_discard(&self, _: u64, _: u64) -> Result<(), Errno> {
            self.called("block_discard")
        }
        fn block_zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
            self.called("block_zero")?;
            self.fill(offset, &vec![0; len as usize]);
            Ok(())
        }
        fn size(&self) -> Result<u64, Errno> {
            Ok(self.now.lock().unwrap().len() as u64)
        }
        fn grow(&self, size: u64) -> Result<(), Errno> {
            self.called("grow")?;
            self.now.lock().unwrap().resize(size as usize, 0);
            Ok(())
        }
    }

    fn scripted(medium: Medium) -> Disk<Script> {
        let script = Script::default();
        *script.now.lock().unwrap() = vec![0xaa; 8192];
        *script.durable.lock().unwrap() = vec![0xaa; 8192];
        let disk = Disk::new(script, medium, false, 512);
        disk.resize(None).unwrap();
        disk
    }

    fn write(offset: u64, byte: u8, len: usize, fua: bool) -> DiskOp {
        DiskOp::Write {
            offset,
            data: vec![byte; len].into(),
            fua,
        }
    }

    fn calls(disk: &Disk<Script>) -> Vec<&'static str> {
        let mut calls = std::mem::take(&mut *disk.syscalls.calls.lock().unwrap());
        calls.dedup();
        calls
    }

    fn fail(disk: &Disk<Script>, name: &'static str, errno: Errno) {
        disk.syscalls.fail.lock().unwrap().push((name, errno));
    }

    fn durable(disk: &Disk<Script>, offset: usize) -> u8 {
        disk.syscalls.durable.lock().unwrap()[offset]
    }

    #[test]
    fn a_plain_write_is_seen_and_only_a_flush_makes_it_durable() {
        let disk = scripted(Medium::File);
        disk.execute(write(512, 7, 1024, false)).unwrap();
        let read = DiskOp::Read {
            offset: 512,
            len: 1024,
        };
        assert_eq!(disk.execute(read).unwrap(), vec![7; 1024]);
        assert_eq!(calls(&disk), ["pwrite", "pread"]);
        assert_eq!(durable(&disk, 512), 0xaa);
        disk.execute(DiskOp::Flush).unwrap();
        assert_eq!(calls(&disk), ["fdatasync"]);
        assert_eq!(durable(&disk, 512), 7);
    }

    #[test]
    fn only_what_is_in_memory_is_read_at_once() {
        let disk = scripted(Medium::File);
        let mut buffer = vec![0; 512];
        assert_eq!(disk.read_at_once(512, &mut buffer), Some(Ok(())));
        assert_eq!(buffer, [0xaa; 512]);
        assert_eq!(disk.read_at_once(1024, &mut buffer), None, "not there");
        assert_eq!(
            disk.read_at_once(512, &mut [0; 1024]),
            None,
            "not all of it"
        );
        assert_eq!(disk.read_at_once(8192, &mut buffer), None, "behind the end");
        assert_eq!(calls(&disk), ["pread_nowait"]);
        let mut large = vec![0; AT_ONCE_BYTES + 512];
        assert_eq!(disk.read_at_once(0, &mut large), None);
        assert!(calls(&disk).is_empty());
        fail(&disk, "pread_nowait", Errno::EIO);
        assert_eq!(
            disk.read_at_once(0, &mut buffer),
            None,
            "a read that waits tells"
        );
        fail(&disk, "pread_nowait", Errno::EOPNOTSUPP);
        assert_eq!(disk.read_at_once(0, &mut buffer), None);
        assert_eq!(calls(&disk).len(), 1);
        assert_eq!(disk.read_at_once(0, &mut buffer), None);
        assert!(calls(&disk).is_empty(), "not asked again");
    }

    #[test]
    fn a_file_that_was_written_is_read_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let options = Options {
            size_bytes: Some(1 << 20),
            ..Options::default()
        };
        let disk = Disk::open_file(file.path(), options).unwrap();
        disk.execute(write(4096, 7, 8192, false)).unwrap();
        let mut buffer = vec![0; 4096];
        match disk.read_at_once(8192, &mut buffer) {
            Some(outcome) => assert_eq!((outcome, &buffer[..]), (Ok(()), &[7; 4096][..])),
            // A file system that does not tell what is in memory.
            None => assert!(disk.without_nowait.load(Ordering::Relaxed)),
        }
    }

    #[test]
    fn fua_makes_its_own_data_durable_with_or_without_the_kernels_help() {
        let disk = scripted(Medium::File);
        disk.execute(write(0, 1, 512, true)).unwrap();
        assert_eq!(calls(&disk), ["pwrite", "pwrite_dsync"]);
        assert_eq!(durable(&disk, 511), 1);
        fail(&disk, "pwrite_dsync", Errno::EOPNOTSUPP);
        for byte in 2..4 {
            disk.execute(write(0, byte, 512, true)).unwrap();
            assert_eq!(durable(&disk, 511), byte);
            assert!(calls(&disk).ends_with(&["fdatasync"]));
        }
        disk.execute(DiskOp::WriteZeroes {
            offset: 0,
            len: 512,
            fua: true,
        })
        .unwrap();
        assert_eq!(durable(&disk, 511), 0);
    }

    #[test]
    fn once_data_was_lost_no_flush_claims_durability() {
        for (name, op) in [
            ("fdatasync", DiskOp::Flush),
            ("pwrite_dsync", write(0, 1, 512, true)),
        ] {
            let disk = scripted(Medium::File);
            fail(&disk, name, Errno::EIO);
            let media = Err(DiskError::Media(Errno::EIO as i32));
            assert_eq!(disk.execute(op), media);
            assert_eq!(disk.execute(DiskOp::Flush), media);
            assert_eq!(disk.execute(write(0, 1, 512, true)), media);
            // Content is still readable, and plain writes promise nothing.
            disk.execute(write(0, 1, 512, false)).unwrap();
        }
    }

    #[test]
    fn a_full_medium_refuses_a_write_and_is_well_afterwards() {
        let disk = scripted(Medium::File);
        for fua in [false, true] {
            fail(&disk, "pwrite", Errno::ENOSPC);
            assert_eq!(disk.execute(write(0, 1, 512, fua)), Err(DiskError::NoSpace));
            disk.execute(write(0, 1, 512, fua)).unwrap();
        }
        disk.execute(DiskOp::Flush).unwrap();
    }

    #[test]
    fn errors_are_told_apart_and_interruptions_are_not_errors() {
        let disk = scripted(Medium::File);
        for (errno, expected) in [
            (Errno::ENOSPC, DiskError::NoSpace),
            (Errno::EDQUOT, DiskError::NoSpace),
            (Errno::EROFS, DiskError::ReadOnly),
            (Errno::EIO, DiskError::Media(Errno::EIO as i32)),
        ] {
            fail(&disk, "pwrite", errno);
            assert_eq!(disk.execute(write(0, 1, 512, false)), Err(expected));
        }
        let read = DiskOp::Read {
            offset: 0,
            len: 512,
        };
        for name in ["pread", "pwrite", "fdatasync"] {
            fail(&disk, name, Errno::EINTR);
        }
        disk.execute(read.clone()).unwrap();
        disk.execute(write(0, 1, 512, false)).unwrap();
        disk.execute(DiskOp::Flush).unwrap();
        // A medium that shrank behind our back is an error, not zeroes.
        disk.syscalls.now.lock().unwrap().truncate(256);
        assert_eq!(disk.execute(read), Err(DiskError::Media(Errno::EIO as i32)));
    }

    #[test]
    fn nothing_outside_the_served_size_is_touched() {
        let disk = scripted(Medium::File);
        disk.resize(Some(4096)).unwrap();
        for (offset, len) in [
            (4096, 512),
            (3584, 1024),
            (u64::MAX - 511, 512),
            (u64::MAX, 1),
        ] {
            let ops = [
                DiskOp::Read {
                    offset,
                    len: len as u32,
                },
                write(offset, 1, len as usize, false),
                DiskOp::Discard { offset, len },
                DiskOp::WriteZeroes {
                    offset,
                    len,
                    fua: false,
                },
            ];
            for op in ops {
                assert_eq!(disk.execute(op), Err(DiskError::OutOfRange));
            }
        }
        assert_eq!(calls(&disk), [""; 0]);
    }

    #[test]
    fn zeroes_are_written_by_hand_where_the_kernel_cannot() {
        for medium in [Medium::File, Medium::Block] {
            let disk = scripted(medium);
            for name in ["zero_range", "punch_hole", "block_zero"] {
                fail(&disk, name, Errno::EOPNOTSUPP);
            }
            let op = DiskOp::WriteZeroes {
                offset: 1024,
                len: 2048,
                fua: false,
            };
            disk.execute(op).unwrap();
            let read = |offset, len| disk.execute(DiskOp::Read { offset, len }).unwrap();
            assert_eq!(read(1024, 2048), [0; 2048]);
            assert_eq!(read(0, 1024), [0xaa; 1024]);
            assert_eq!(read(3072, 1024), [0xaa; 1024]);
        }
    }

    #[test]
    fn discard_is_advice() {
        let disk = scripted(Medium::Block);
        let op = DiskOp::Discard {
            offset: 0,
            len: 512,
        };
        fail(&disk, "block_discard", Errno::EOPNOTSUPP);
        disk.execute(op.clone()).unwrap();
        fail(&disk, "block_discard", Errno::EIO);
        assert!(disk.execute(op).is_err());
        assert_eq!(calls(&disk), ["block_discard"]);
    }

    #[test]
    fn a_read_only_medium_takes_no_change() {
        let mut disk = scripted(Medium::File);
        disk.read_only = true;
        disk.probe_file();
        for op in [
            write(0, 1, 512, false),
            DiskOp::Discard {
                offset: 0,
                len: 512,
            },
            DiskOp::WriteZeroes {
                offset: 0,
                len: 512,
                fua: false,
            },
        ] {
            assert_eq!(disk.execute(op), Err(DiskError::ReadOnly));
        }
        assert_eq!(calls(&disk), [""; 0]);
        disk.execute(DiskOp::Flush).unwrap();
    }

    #[test]
    fn a_real_file_is_created_grown_and_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let options = |size_bytes| Options {
            size_bytes,
            ..Options::default()
        };
        assert!(matches!(
            Disk::open_file(&path, options(None)),
            Err(OpenError::Missing)
        ));
        let disk = Disk::open_file(&path, options(Some(1 << 20))).unwrap();
        assert!(matches!(
            Disk::open_file(&path, options(None)),
            Err(OpenError::InUse)
        ));
        assert_eq!(disk.info().block_size, 512);
        disk.execute(write((1 << 20) - 512, 9, 512, true)).unwrap();
        disk.execute(DiskOp::Flush).unwrap();
        assert_eq!(disk.resize(Some(1 << 19)).unwrap().size_bytes, 1 << 19);
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        assert_eq!(disk.resize(Some(1 << 21)).unwrap().size_bytes, 1 << 21);
        let last = DiskOp::Read {
            offset: (1 << 20) - 512,
            len: 512,
        };
        assert_eq!(disk.execute(last.clone()).unwrap(), [9; 512]);
        drop(disk);
        let disk = Disk::open_file(&path, options(None)).unwrap();
        assert_eq!(disk.info().size_bytes, 1 << 21);
        for op in [
            DiskOp::Discard {
                offset: 0,
                len: 1 << 20,
            },
            DiskOp::WriteZeroes {
                offset: 0,
                len: 1 << 20,
                fua: true,
            },
        ] {
            disk.execute(write((1 << 20) - 512, 9, 512, false)).unwrap();
            if matches!(op, DiskOp::Discard { .. }) && disk.info().features & features::DISCARD == 0
            {
                continue;
            }
            disk.execute(op).unwrap();
            assert_eq!(disk.execute(last.clone()).unwrap(), [0; 512]);
        }
    }

    #[test]
    fn wrong_things_are_refused_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 100]).unwrap();
        let text = |outcome: Result<Disk, OpenError>| outcome.err().unwrap().to_string();
        let mut options = Options::default();
        let texts: BTreeSet<String> = [
            text(Disk::open_file(&path, options)),
            text(Disk::open_file(dir.path(), options)),
            text(Disk::open_block(&path, options)),
            text(Disk::open_block(&dir.path().join("none"), options)),
            {
                options.block_size = Some(1000);
                text(Disk::open_file(&path, options))
            },
            {
                options.block_size = None;
                options.size_bytes = Some(4096);
                options.read_only = true;
                text(Disk::open_file(&path, options))
            },
        ]
        .into();
        assert_eq!(texts.len(), 6, "{texts:#?}");
        assert_eq!(fs::read(&path).unwrap(), [0; 100]);
    }

    /// On a filesystem in memory: others have no files that long.
    #[test]
    fn the_largest_device_is_served_to_its_end() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
            return;
        };
        let size_bytes = (1 << 63) - 512;
        let options = Options {
            size_bytes: Some(size_bytes),
            ..Options::default()
        };
        let disk = match Disk::open_file(&dir.path().join("largest"), options) {
            Ok(disk) => disk,
            Err(OpenError::Io { .. }) => return,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(disk.info().size_bytes, size_bytes);
        let write = |offset| {
            let data = vec![7; 512].into();
            let fua = true;
            disk.execute(DiskOp::Write { offset, data, fua })
        };
        write(size_bytes - 512).unwrap();
        let read = DiskOp::Read {
            offset: size_bytes - 512,
            len: 512,
        };
        assert_eq!(disk.execute(read).unwrap(), [7; 512]);
        for beyond in [size_bytes, u64::MAX - 511] {
            assert_eq!(write(beyond), Err(DiskError::OutOfRange));
        }
    }
}
