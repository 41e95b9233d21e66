//! Takes the process out of the machine's network: into namespaces of its own.

use crate::{RigError, system};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, geteuid};
use std::fs;
use std::sync::OnceLock;

/// Whether the process is isolated already.
static ENTERED: OnceLock<()> = OnceLock::new();

/// Moves the process into network and mount namespaces of its own, with as many open files as the
/// system allows; call it before any thread is started. A second call does nothing.
///
/// Root's are made directly. Anybody else, and root without the capability, gets a user namespace in
/// which they are root.
///
/// # Errors
/// [`RigError::Threads`], [`RigError::Isolation`].
pub fn enter() -> Result<(), RigError> {
    if ENTERED.get().is_some() {
        return Ok(());
    }
    if threads()? != 1 {
        return Err(RigError::Threads);
    }
    raise_file_limit()?;
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(namespaces) {
        Ok(()) => {}
        Err(Errno::EPERM) => enter_as_user(namespaces)?,
        Err(errno) => return Err(RigError::Isolation(errno.into())),
    }
    // What is mounted from now on stays in here.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| RigError::Isolation(errno.into()))?;
    let _ = ENTERED.set(());
    Ok(())
}

fn enter_as_user(namespaces: CloneFlags) -> Result<(), RigError> {
    let (user, group) = (geteuid(), getegid());
    unshare(namespaces | CloneFlags::CLONE_NEWUSER)
        .map_err(|errno| RigError::Isolation(errno.into()))?;
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        fs::write(file, text).map_err(RigError::Isolation)?;
    }
    Ok(())
}

fn threads() -> Result<usize, RigError> {
    Ok(fs::read_dir("/proc/self/task")
        .map_err(system("count the threads"))?
        .count())
}

fn raise_file_limit() -> Result<(), RigError> {
    let action = "raise the limit of open files";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system(action))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(system(action))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_process_with_threads_is_told_to_enter_earlier() {
        let (end, ended) = mpsc::channel::<()>();
        let other = thread::spawn(move || ended.recv());
        assert!(matches!(enter(), Err(RigError::Threads)));
        drop(end);
        assert!(other.join().expect("no panic").is_err());
    }
}
