//! The system calls under files and block devices, behind a trait so that tests can watch and fail them.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

/// What a [`super::Disk`] asks of the kernel. Ranges fit an `off_t`. Errors are error numbers.
pub trait Syscalls: Send + Sync {
    /// What is read and written, where it is an open file.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Reads up to `buffer.len()` bytes; 0 at the end.
    fn pread(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// Reads what is in memory of up to `buffer.len()` bytes: `EAGAIN` where none is, `EOPNOTSUPP` where that
    /// cannot be asked.
    fn pread_nowait(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// Writes up to `data.len()` bytes.
    fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize, Errno>;
    /// Writes up to `data.len()` bytes, durable when it returns.
    fn pwrite_dsync(&self, data: &[u8], offset: u64) -> Result<usize, Errno>;
    /// Makes all data, and the metadata needed to find it, durable.
    fn fdatasync(&self) -> Result<(), Errno>;
    /// Frees a range of a file; it reads as zeroes.
    fn punch_hole(&self, offset: u64, len: u64) -> Result<(), Errno>;
    /// Zeroes a range of a file without sending zeroes.
    fn zero_range(&self, offset: u64, len: u64) -> Result<(), Errno>;
    /// Discards a range of a block device.
    fn block_discard(&self, offset: u64, len: u64) -> Result<(), Errno>;
    /// Zeroes a range of a block device.
    fn block_zero(&self, offset: u64, len: u64) -> Result<(), Errno>;
    /// Size in bytes now.
    fn size(&self) -> Result<u64, Errno>;
    /// Makes a file longer.
    fn grow(&self, size: u64) -> Result<(), Errno>;
}

/// The real system calls on an open file or block device.
#[derive(Debug)]
pub struct Kernel(pub fs::File);

mod ioctl {
    use nix::{ioctl_read, ioctl_read_bad, ioctl_write_ptr_bad, request_code_none};

    ioctl_read!(blkgetsize64, 0x12, 114, u64);
    ioctl_read_bad!(blksszget, request_code_none!(0x12, 104), nix::libc::c_int);
    ioctl_read_bad!(blkrotational, request_code_none!(0x12, 126), u16);
    ioctl_write_ptr_bad!(blkdiscard, request_code_none!(0x12, 119), [u64; 2]);
    ioctl_write_ptr_bad!(blkzeroout, request_code_none!(0x12, 127), [u64; 2]);
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn offset_of(value: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(value).map_err(|_| Errno::EFBIG)
}

impl Kernel {
    /// Logical block size of a block device, bytes.
    pub fn block_size(&self) -> Result<u32, Errno> {
        let mut size = 0;
        // SAFETY: BLKSSZGET writes one int, and `size` is one.
        unsafe { ioctl::blksszget(self.0.as_raw_fd(), &raw mut size) }?;
        u32::try_from(size).map_err(|_| Errno::EINVAL)
    }

    /// Whether a block device says that it spins.
    pub fn is_rotational(&self) -> bool {
        let mut word = 0;
        // SAFETY: BLKROTATIONAL writes one unsigned short, and `word` is one.
        unsafe { ioctl::blkrotational(self.0.as_raw_fd(), &raw mut word) }.is_ok() && word != 0
    }

    /// Whether a block device says that it can discard.
    pub fn can_discard(&self) -> bool {
        let Ok(meta) = self.0.metadata() else {
            return false;
        };
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let device = format!("/sys/dev/block/{major}:{minor}");
        // A partition has its disk's queue one level up.
        ["queue", "../queue"]
            .iter()
            .find_map(|queue| {
                fs::read_to_string(format!("{device}/{queue}/discard_max_bytes")).ok()
            })
            .is_some_and(|text| text.trim() != "0")
    }
}

impl Syscalls for Kernel {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn pread(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.0.read_at(buffer, offset).map_err(|e| errno(&e))
    }

    fn pread_nowait(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let offset = offset_of(offset)?;
        // SAFETY: `part` names `buffer`, which outlives the call and which nobody else refers to.
        let count = unsafe {
            libc::preadv2(
                self.0.as_raw_fd(),
                &raw const part,
                1,
                offset,
                libc::RWF_NOWAIT,
            )
        };
        Errno::result(count).map(|count| count as usize)
    }

    fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
        self.0.write_at(data, offset).map_err(|e| errno(&e))
    }

    fn pwrite_dsync(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
        let part = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        let offset = offset_of(offset)?;
        // SAFETY: `part` names `data`, which outlives the call; the kernel only reads from it.
        let count = unsafe {
            libc::pwritev2(
                self.0.as_raw_fd(),
                &raw const part,
                1,
                offset,
                libc::RWF_DSYNC,
            )
        };
        Errno::result(count).map(|count| count as usize)
    }

    fn fdatasync(&self) -> Result<(), Errno> {
        nix::unistd::fdatasync(&self.0)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, mode, offset_of(offset)?, offset_of(len)?)
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, mode, offset_of(offset)?, offset_of(len)?)
    }

    fn block_discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two 64-bit words, start and length, and `range` is that.
        unsafe { ioctl::blkdiscard(self.0.as_raw_fd(), &raw const range) }.map(drop)
    }

    fn block_zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let range = [offset, len];
        // SAFETY: BLKZEROOUT reads two 64-bit words, start and length, and `range` is that.
        unsafe { ioctl::blkzeroout(self.0.as_raw_fd(), &raw const range) }.map(drop)
    }

    fn size(&self) -> Result<u64, Errno> {
        let meta = self.0.metadata().map_err(|e| errno(&e))?;
        if !meta.file_type().is_block_device() {
            return Ok(meta.len());
        }
        let mut size = 0;
        // SAFETY: BLKGETSIZE64 writes one 64-bit word, and `size` is one.
        unsafe { ioctl::blkgetsize64(self.0.as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }

    fn grow(&self, size: u64) -> Result<(), Errno> {
        self.0.set_len(size).map_err(|e| errno(&e))
    }
}
