//! A guest: a QEMU process, its console's log, and the channel on which it runs commands.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rma_rig::wait_until;
use serde_json::{Value, json};

use crate::Result;
use crate::guest::PORT;
use crate::image::Image;
use crate::segment::Segment;

/// How long a guest may take to start.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// How long a command may take that does not say otherwise, seconds.
const COMMAND_SECONDS: u64 = 60;
/// Time for an answer beyond that of the command itself.
const ANSWER_GRACE: Duration = Duration::from_secs(15);

type Waiting = Arc<Mutex<HashMap<u64, Sender<Value>>>>;

/// What a command printed, and its status.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: i64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

struct Running {
    qemu: Child,
    channel: UnixStream,
    waiting: Waiting,
    ready: Receiver<()>,
}

/// What a guest boots, and its disks with their formats.
pub(crate) struct Boot {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// More for the kernel's command line.
    pub(crate) append: String,
    pub(crate) disks: Vec<(PathBuf, &'static str)>,
}

impl Boot {
    /// The small guest, with a disk of its own for what must survive a reset.
    pub(crate) fn small(name: &str, image: &Image, directory: &Path) -> Result<Self> {
        let disk = directory.join(format!("{name}.disk"));
        File::create(&disk)?.set_len(1 << 30)?;
        Ok(Self {
            kernel: image.kernel.clone(),
            initramfs: image.initramfs.clone(),
            append: String::new(),
            disks: vec![(disk, "raw")],
        })
    }
}

/// A guest; dropping it ends its process.
pub(crate) struct Machine {
    pub(crate) name: String,
    directory: PathBuf,
    command: Vec<String>,
    nics: Vec<PathBuf>,
    running: Mutex<Option<Running>>,
    last_id: AtomicU64,
}

impl Machine {
    /// Prepares a guest at ports of the segment; it is not started.
    pub(crate) fn new(
        name: &str,
        boot: &Boot,
        segment: &Segment,
        ports: &[usize],
        directory: &Path,
    ) -> Self {
        let channel = directory.join(format!("{name}.channel"));
        let command = [
            "-accel", "tcg", "-machine", "q35", "-cpu", "qemu64", "-smp", "1", "-m", "640",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-device", "virtio-serial-pci",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([
            "-serial".into(),
            format!("file:{}", directory.join(format!("{name}.console")).display()),
            "-chardev".into(),
            format!("socket,id=channel,path={}", channel.display()),
            "-device".into(),
            format!("virtserialport,chardev=channel,name={PORT}"),
            "-kernel".into(),
            boot.kernel.display().to_string(),
            "-initrd".into(),
            boot.initramfs.display().to_string(),
            "-append".into(),
            // An emulated timer, and the guest as a whole, may be late when the machine is busy: the kernel is not to
            // wonder.
            format!(
                "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check nosoftlockup net.ifnames=0 rma_vm={name} {}",
                boot.append
            ),
        ])
        .chain(boot.disks.iter().flat_map(|(path, format)| {
            let drive = format!("file={},format={format},if=virtio,cache=unsafe", path.display());
            ["-drive".into(), drive]
        }))
        .chain(ports.iter().flat_map(|port| {
            let nic = format!(
                "virtio-net-pci,netdev=net{port},host_mtu=9000,romfile=,mac=02:72:6d:00:00:{port:02x}"
            );
            ["-netdev".into(), segment.netdev(*port), "-device".into(), nic]
        }))
        .collect();
        Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
            command,
            nics: ports.iter().map(|port| segment.guest_path(*port)).collect(),
            running: Mutex::new(None),
            last_id: AtomicU64::new(0),
        }
    }

    /// Starts it; [`Self::wait_ready`] for it.
    pub(crate) fn start(&self) -> Result<()> {
        let path = self.directory.join(format!("{}.channel", self.name));
        for stale in self.nics.iter().chain([&path]) {
            let _ = fs::remove_file(stale);
        }
        let listener = UnixListener::bind(&path)?;
        let errors = File::create(self.directory.join(format!("{}.qemu", self.name)))?;
        // The process ends with this one, whatever becomes of it.
        let mut qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("setpriv qemu-system-x86_64: {e}"))?;
        listener.set_nonblocking(true)?;
        let mut channel = None;
        let connected = wait_until(BOOT_PATIENCE, "QEMU to start", || {
            channel = listener.accept().ok();
            channel.is_some() || !matches!(qemu.try_wait(), Ok(None))
        });
        let Some((channel, _)) = channel else {
            let _ = qemu.kill();
            let _ = qemu.wait();
            connected?;
            let said = fs::read_to_string(self.directory.join(format!("{}.qemu", self.name)))?;
            return Err(format!("{}: QEMU does not start: {}", self.name, said.trim()).into());
        };
        channel.set_nonblocking(false)?;
        let waiting = Waiting::default();
        let (is_ready, ready) = mpsc::channel();
        let (reader, answers) = (channel.try_clone()?, Arc::clone(&waiting));
        thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || listen(reader, &answers, &is_ready))?;
        *self.lock() = Some(Running {
            qemu,
            channel,
            waiting,
            ready,
        });
        Ok(())
    }

    /// Waits until it takes commands.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        match self.lock().as_ref() {
            Some(running) => running
                .ready
                .recv_timeout(BOOT_PATIENCE)
                .map_err(|_| format!("{} does not come up; see its console", self.name).into()),
            None => Err(format!("{} is not started", self.name).into()),
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait_off(&self, patience: Duration) -> Result<()> {
        let what = format!("{} to be off", self.name);
        let over = || match self.lock().as_mut() {
            Some(running) => !matches!(running.qemu.try_wait(), Ok(None)),
            None => true,
        };
        wait_until(patience, &what, over)?;
        self.kill();
        Ok(())
    }

    /// Ends it at once, as a loss of power does: its disk keeps what had reached it.
    pub(crate) fn kill(&self) {
        if let Some(mut running) = self.lock().take() {
            let _ = running.qemu.kill();
            let _ = running.qemu.wait();
        }
    }

    /// Runs a shell command, at most `seconds`.
    pub(crate) fn try_sh(&self, seconds: u64, command: &str) -> Result<Output> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = mpsc::channel();
        {
            let mut running = self.lock();
            let Some(running) = running.as_mut() else {
                return Err(format!("{} is not running", self.name).into());
            };
            lock(&running.waiting).insert(id, sender);
            let question = json!({ "id": id, "sh": command, "seconds": seconds });
            running
                .channel
                .write_all(format!("{question}\n").as_bytes())?;
        }
        let patience = Duration::from_secs(seconds) + ANSWER_GRACE;
        let answer = answer
            .recv_timeout(patience)
            .map_err(|_| format!("{}: no answer to: {command}", self.name))?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        Ok(Output {
            status: answer["status"].as_i64().unwrap_or(-1),
            stdout: text("stdout"),
            stderr: text("stderr"),
        })
    }

    /// Runs a shell command that must succeed, at most `seconds`; what it printed.
    pub(crate) fn sh_within(&self, seconds: u64, command: &str) -> Result<String> {
        let output = self.try_sh(seconds, command)?;
        if output.status != 0 {
            return Err(format!(
                "{}: status {}: {command}\n{}{}",
                self.name, output.status, output.stdout, output.stderr
            )
            .into());
        }
        Ok(output.stdout)
    }

    /// Runs a shell command that must succeed; what it printed.
    pub(crate) fn sh(&self, command: &str) -> Result<String> {
        self.sh_within(COMMAND_SECONDS, command)
    }

    /// Runs a shell command that must fail; what it said.
    pub(crate) fn sh_fails(&self, command: &str) -> Result<String> {
        let output = self.try_sh(COMMAND_SECONDS, command)?;
        if output.status == 0 {
            return Err(
                format!("{}: did not fail: {command}\n{}", self.name, output.stdout).into(),
            );
        }
        Ok(output.stdout + &output.stderr)
    }

    /// Waits until a shell command succeeds. It is looked at every so often in the guest.
    pub(crate) fn wait_sh(&self, seconds: u64, what: &str, command: &str) -> Result<String> {
        let script = format!(
            "while :; do out=$({command}) && break; busybox usleep 50000; done; echo \"$out\""
        );
        match self.try_sh(seconds, &script)? {
            output if output.status == 0 => Ok(output.stdout),
            _ => {
                let last = self.try_sh(COMMAND_SECONDS, command)?;
                Err(format!(
                    "{}: waited {seconds} s in vain for {what}: {command}\n{}{}",
                    self.name, last.stdout, last.stderr
                )
                .into())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        lock(&self.running)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(channel: UnixStream, waiting: &Waiting, ready: &Sender<()>) {
    for line in BufReader::new(channel).lines() {
        let Ok(line) = line else { break };
        let Ok(answer) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if answer["ready"] == true {
            let _ = ready.send(());
        } else if let Some(sender) = answer["id"]
            .as_u64()
            .and_then(|id| lock(waiting).remove(&id))
        {
            let _ = sender.send(answer);
        }
    }
    // Whoever waits for an answer learns that none comes.
    lock(waiting).clear();
}
