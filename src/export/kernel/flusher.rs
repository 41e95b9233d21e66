//! The threads that the kernel's write-back waits for tell it so: when memory is short, the kernel then
//! does not wait for write-back in them, which would wait for them.
#![allow(unsafe_code)]

use std::io;

use nix::libc;

/// The number of the option (Linux 5.6), which the binding does not name.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Marks the calling thread. It needs `CAP_SYS_RESOURCE`.
pub fn mark_thread() -> io::Result<()> {
    // SAFETY: this option reads its integer arguments and changes a flag of the calling thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
