//! A network namespace that lives as long as its descriptor, without a process in it.
#![allow(unsafe_code)]

use crate::{RigError, system};
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};
use std::fs::{self, File};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, Stdio};
use std::ptr;
use std::sync::Arc;
use std::thread;

/// A network namespace. It ends when the last clone, and the last process in it, is gone.
#[derive(Debug, Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes an empty namespace, without IPv6 chatter where the system lets us turn it off.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn new() -> Result<Self, RigError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            for scope in ["all", "default"] {
                // Only saves frames that nobody needs; /proc/sys may be read-only.
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            bring_up("lo")?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = thread::scope(|scope| scope.spawn(make).join().expect("no panic in there"));
        let file = file.map_err(system("make a network namespace"))?;
        Ok(Self {
            fd: Arc::new(file.into()),
        })
    }

    /// Runs `body` on a thread of its own inside the namespace. A panic in there goes on here.
    ///
    /// # Errors
    /// [`RigError::System`] if the namespace cannot be entered.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, RigError> {
        let fd = &self.fd;
        let inside = || setns(fd, CloneFlags::CLONE_NEWNET).map(|()| body());
        let result = thread::scope(|scope| scope.spawn(inside).join());
        match result {
            Ok(result) => result.map_err(system("enter a network namespace")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn join_thread(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Makes a command start inside the namespace.
    pub(crate) fn place(&self, command: &mut Command) {
        let fd = Arc::clone(&self.fd);
        // SAFETY: between fork and exec this makes one system call, on a descriptor that the closure
        // keeps open, and neither allocates nor locks.
        unsafe {
            command.pre_exec(move || Ok(setns(&fd, CloneFlags::CLONE_NEWNET)?));
        }
    }

    /// A path by which other processes reach the namespace while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.fd.as_raw_fd())
    }

    /// Lets `ip` carry out a batch of commands, one a line, inside the namespace.
    pub fn ip(&self, batch: &str) -> Result<(), RigError> {
        self.run_ip(&["-batch", "-"], batch).map(|_| ())
    }

    /// What `ip` prints about something inside the namespace.
    pub(crate) fn ip_says(&self, question: &[&str]) -> Result<String, RigError> {
        self.run_ip(question, "")
    }

    fn run_ip(&self, arguments: &[&str], batch: &str) -> Result<String, RigError> {
        let action = "run ip (package iproute2)";
        let mut command = Command::new("ip");
        command.args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.place(&mut command);
        let mut child = command.spawn().map_err(system(action))?;
        let input = child.stdin.take();
        // It may give up before it has read all; what it says then is reported below.
        let _ = input.map(|mut input| input.write_all(batch.as_bytes()));
        let output = child.wait_with_output().map_err(system(action))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let batch = format!("ip {}\n{batch}", arguments.join(" "))
            .trim()
            .to_owned();
        Err(RigError::Ip { message, batch })
    }
}

/// Brings an interface of the calling thread's namespace up.
pub(crate) fn bring_up(interface: &str) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    // SAFETY: ifreq is plain integers and a union of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let call = |request: &mut libc::ifreq, operation| {
        // SAFETY: both operations take an ifreq, which lives across the call, with a name, which ends
        // in a zero here; one writes the flags and the other reads them.
        match unsafe { libc::ioctl(socket.as_raw_fd(), operation, ptr::from_mut(request)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    call(&mut request, libc::SIOCGIFFLAGS)?;
    // SAFETY: the call succeeded, so the kernel wrote this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(&mut request, libc::SIOCSIFFLAGS)
}
