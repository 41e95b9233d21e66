//! Real NBD clients against the sockets that `rmad` exports devices on, here over memory: what
//! they are told, what they copy, and that verifying them finds nothing.
//!
//! A test whose programs are missing says so and passes, unless `RMA_REQUIRE_TOOLS=1`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;

use rma::export::block::{BlockError, BlockOp, BlockRequest, ExportInfo};
use rma::export::socket::NbdSockets;
use rma::wire::Guid;

const DEVICE: Guid = Guid(0x5eed);

/// Whether all of `names` can be run; says which cannot.
fn have(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
        .copied()
        .collect();
    if missing.is_empty() {
        return true;
    }
    let text = format!("skipped: not installed: {}", missing.join(", "));
    assert!(
        std::env::var("RMA_REQUIRE_TOOLS").as_deref() != Ok("1"),
        "{text}"
    );
    eprintln!("{text}");
    false
}

/// What the device was asked, and its content.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Operations with their number, and how many writes had FUA.
    counts: std::collections::BTreeMap<&'static str, usize>,
    largest: u32,
    /// Every request fails so.
    broken: Option<BlockError>,
    /// Every read has a wrong bit.
    lies: bool,
}

impl Disk {
    fn execute(&mut self, r: &BlockRequest) -> Result<Vec<u8>, BlockError> {
        let word = match r.op {
            BlockOp::Read => "read",
            BlockOp::Write if r.fua => "write+fua",
            BlockOp::Write => "write",
            BlockOp::Flush => "flush",
            BlockOp::Discard => "discard",
            BlockOp::WriteZeroes => "zeroes",
        };
        *self.counts.entry(word).or_default() += 1;
        self.largest = self.largest.max(r.data.len() as u32);
        if let Some(error) = self.broken {
            return Err(error);
        }
        let range = r.offset as usize..r.offset as usize + r.len as usize;
        match r.op {
            BlockOp::Read => {
                let mut data = self.bytes[range].to_vec();
                let middle = data.len() / 2;
                data[middle] ^= u8::from(self.lies);
                return Ok(data);
            }
            BlockOp::Write => self.bytes[range].copy_from_slice(&r.data),
            BlockOp::Discard | BlockOp::WriteZeroes => self.bytes[range].fill(0),
            BlockOp::Flush => {}
        }
        Ok(Vec::new())
    }
}

/// A loop like `rmad`'s in a thread of its own: requests of one round are completed in a later
/// one and in a random order.
struct Served {
    dir: tempfile::TempDir,
    disk: Arc<Mutex<Disk>>,
    stop: Sender<()>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(info: ExportInfo) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Mutex::new(Disk {
            bytes: vec![0; info.size_bytes as usize],
            ..Disk::default()
        }));
        let mut sockets = NbdSockets::new().unwrap();
        let path = dir.path().join("disk.sock");
        sockets.open(DEVICE, &path, info).unwrap();
        let (stop, stopped) = mpsc::channel();
        let wake = Arc::new(EventFd::new().unwrap());
        let thread = std::thread::spawn({
            let (disk, wake) = (Arc::clone(&disk), Arc::clone(&wake));
            move || serve(sockets, &disk, &stopped, &wake)
        });
        Self {
            dir,
            disk,
            stop,
            wake,
            thread: Some(thread),
        }
    }

    fn uri(&self) -> String {
        let path = self.dir.path().join("disk.sock");
        format!("nbd+unix:///?socket={}", path.display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn count(&self, word: &str) -> usize {
        let disk = self.disk.lock().unwrap();
        disk.counts.get(word).copied().unwrap_or(0)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        let _ = self.wake.write(1);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server panicked");
        }
    }
}

fn serve(mut sockets: NbdSockets, disk: &Mutex<Disk>, stopped: &Receiver<()>, wake: &EventFd) {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut waiting: Vec<BlockRequest> = Vec::new();
    while stopped.try_recv().is_err() {
        rng.shuffle(&mut waiting);
        let mut disk = disk.lock().unwrap();
        for r in waiting.drain(..) {
            let result = disk.execute(&r);
            sockets.complete(r.token, result);
        }
        drop(disk);
        sockets.poll(|r| waiting.push(r)).unwrap();
        if waiting.is_empty() {
            let mut fds =
                [sockets.as_fd(), wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::NONE).unwrap();
        }
    }
}

fn info(size_bytes: u64) -> ExportInfo {
    ExportInfo {
        name: "disk one".to_owned(),
        description: "a disk in memory".to_owned(),
        size_bytes,
        block_size: 512,
        read_only: false,
        fua: true,
        discard: true,
        write_zeroes: true,
        rotational: false,
    }
}

/// Runs a program that must succeed within a minute, and gives its standard output.
fn run(command: &mut Command) -> String {
    let (ok, text) = outcome(command);
    assert!(ok, "{command:?} failed:\n{text}");
    text
}

/// Whether a program succeeded, and what it printed.
fn outcome(command: &mut Command) -> (bool, String) {
    let name = command.get_program().to_owned();
    let started = Instant::now();
    let mut limited = Command::new("timeout");
    limited.arg("60").arg(name).args(command.get_args());
    let output = limited.output().unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{command:?} hangs"
    );
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    // Some of it empty, so that clients which look for holes find some.
    for hole in bytes.chunks_mut(1 << 20).step_by(4) {
        let half = hole.len() / 2;
        hole[..half].fill(0);
    }
    bytes
}

fn assert_same(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len());
    let at = left.iter().zip(right).position(|(a, b)| a != b);
    assert_eq!(at, None, "first difference");
}

#[test]
fn nbdinfo_is_told_the_truth() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let big = Served::new(ExportInfo {
        block_size: 4096,
        ..info(8 << 20)
    });
    let text = run(Command::new("nbdinfo").args(["--json", "--no-content", &big.uri()]));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    for (key, value) in [
        ("export-size", (8 << 20).into()),
        ("description", "a disk in memory".into()),
        ("is_read_only", false.into()),
        ("is_rotational", false.into()),
        ("can_multi_conn", true.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("can_df", true.into()),
        ("block_size_minimum", 4096.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", (1 << 20).into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(export[key], value, "{key} in {text}");
    }
    // Its content is looked at, too, and its name listed.
    let list = run(Command::new("nbdinfo").args(["--list", &big.uri()]));
    assert!(list.contains("export=\"disk one\""), "{list}");

    let small = Served::new(ExportInfo {
        read_only: true,
        ..info(1 << 20)
    });
    for (question, yes) in [
        ("--is=read-only", true),
        ("--can=write", false),
        ("--can=trim", false),
        ("--can=zero", false),
        ("--can=flush", true),
        ("--is=tls", false),
    ] {
        let (ok, text) = outcome(Command::new("nbdinfo").args([question, &small.uri()]));
        assert_eq!(ok, yes, "{question}: {text}");
    }
    let unknown = small.uri().replace("///", "///other");
    let (ok, _) = outcome(Command::new("nbdinfo").arg(unknown));
    assert!(!ok);
}

#[test]
fn nbdcopy_copies_both_ways_over_several_connections() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let content = noise(48 << 20, 2);
    let served = Served::new(info(content.len() as u64));
    let (source, back) = (served.file("in"), served.file("out"));
    std::fs::write(&source, &content).unwrap();
    served.disk.lock().unwrap().bytes.fill(0xee);
    run(Command::new("nbdcopy")
        .args(["--connections=4", "--flush"])
        .arg(&source)
        .arg(served.uri()));
    assert_same(&served.disk.lock().unwrap().bytes, &content);
    assert!(served.count("flush") > 0 && served.count("zeroes") > 0);
    run(Command::new("nbdcopy")
        .arg("--connections=4")
        .arg(served.uri())
        .arg(&back));
    assert_same(&std::fs::read(&back).unwrap(), &content);

    // Larger requests than we announce, and one at a time without structured replies.
    let (source, target) = (&served, Served::new(info(content.len() as u64)));
    run(Command::new("nbdcopy")
        .args(["--synchronous", "--request-size=33554432"])
        .arg(source.uri())
        .arg(target.uri()));
    assert_same(&target.disk.lock().unwrap().bytes, &content);
    assert!(target.disk.lock().unwrap().largest > 1 << 20);
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have(&["qemu-img"]) {
        return;
    }
    let content = noise(16 << 20, 3);
    for block_size in [512, 4096] {
        let served = Served::new(ExportInfo {
            block_size,
            ..info(content.len() as u64)
        });
        let (raw, qcow, back) = (served.file("raw"), served.file("qcow"), served.file("back"));
        std::fs::write(&raw, &content).unwrap();
        let convert = |extra: &[&str], from: &Path, to: &Path| {
            run(Command::new("qemu-img")
                .arg("convert")
                .args(extra)
                .args([from, to]));
        };
        convert(&["-f", "raw", "-O", "qcow2"], &raw, &qcow);
        let uri = PathBuf::from(served.uri());
        convert(&["-n", "-O", "raw", "-W", "-m", "8"], &qcow, &uri);
        assert_same(&served.disk.lock().unwrap().bytes, &content);
        convert(&["-f", "raw", "-O", "raw"], &uri, &back);
        assert_same(&std::fs::read(&back).unwrap(), &content);
        let compare = ["compare", "-f", "raw", "-F", "qcow2", &served.uri()];
        let text = run(Command::new("qemu-img").args(compare).arg(&qcow));
        assert!(text.contains("identical"), "{text}");
        assert!(served.disk.lock().unwrap().largest <= 1 << 20);
    }
}

fn qemu_io(served: &Served, commands: &[&str]) -> (bool, String) {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw", "-t", "none"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    outcome(qemu_io.arg(served.uri()))
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = Served::new(info(8 << 20));
    let (ok, text) = qemu_io(
        &served,
        &[
            "write -P 0xa5 0 8M",
            "write -f -P 0x5a 1M 64k",
            "read -P 0x5a 1M 64k",
            "read -P 0xa5 0 1M",
            "write -z 2M 1M",
            "read -P 0 2M 1M",
            "write -z -f 3M 512",
            "discard 4M 1M",
            "read -P 0 4M 1M",
            "read -P 0xa5 5M 3M",
            "aio_write -P 0x11 0 4k",
            "aio_flush",
            "flush",
        ],
    );
    assert!(ok && !text.contains("failed"), "{text}");
    assert!(served.count("write+fua") > 0);
    assert!(served.count("flush") > 0);
    assert!(served.count("discard") > 0 && served.count("zeroes") > 1);

    let (_, text) = qemu_io(&served, &["write -P 0x77 8M 512", "read -P 0x77 0 512"]);
    assert!(text.contains("failed"), "{text}");
    served.disk.lock().unwrap().broken = Some(BlockError::Io);
    let (_, text) = qemu_io(&served, &["read 0 512"]);
    assert!(text.contains("Input/output error"), "{text}");

    let read_only = Served::new(ExportInfo {
        read_only: true,
        ..info(1 << 20)
    });
    let (ok, text) = qemu_io(&read_only, &["write 0 512"]);
    assert!(!ok, "{text}");
    assert_eq!(read_only.count("write"), 0);
}

fn fio(served: &Served) -> (bool, String) {
    outcome(
        Command::new("fio")
            .args(["--name=job", "--ioengine=nbd", "--rw=randwrite"])
            .args(["--bsrange=4k-256k", "--blockalign=4k", "--size=16M"])
            .args(["--offset_increment=16M", "--numjobs=2", "--iodepth=32"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--verify_backlog=64", "--fsync=50", "--randseed=7"])
            .args(["--verify_state_save=0", "--minimal"])
            .arg(format!("--uri={}", served.uri()))
            .arg(format!("--aux-path={}", served.dir.path().display())),
    )
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    for (block_size, fua) in [(512, true), (4096, false)] {
        let served = Served::new(ExportInfo {
            block_size,
            fua,
            ..info(32 << 20)
        });
        let (ok, text) = fio(&served);
        assert!(ok, "{text}");
        assert!(served.count("flush") > 0 && served.count("read") > 0);
    }
    // And it would tell: a device that gives back one wrong bit is found out.
    let served = Served::new(info(32 << 20));
    served.disk.lock().unwrap().lies = true;
    let (ok, text) = fio(&served);
    assert!(!ok && text.contains("verify"), "{text}");
}
