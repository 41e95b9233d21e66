//! Processes inside namespaces: logged, waited for with a deadline, and never left behind.
#![allow(unsafe_code)]

use crate::{Namespace, RigError, system, wait_until};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process that the rig started. Clones are the same process; the rig kills it when it ends.
#[derive(Debug, Clone)]
pub struct Process {
    child: Arc<Mutex<Child>>,
    name: String,
    pid: Pid,
    log: PathBuf,
}

/// What a command that ran to its end printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// The file that its standard output and error go to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far; empty if nothing or not to be read.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// How it has ended, or `None` while it runs.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn exited(&self) -> Result<Option<ExitStatus>, RigError> {
        self.child()
            .try_wait()
            .map_err(system(format!("look at {}", self.name)))
    }

    /// Sends it a signal; nothing happens if it has ended.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn signal(&self, signal: Signal) -> Result<(), RigError> {
        let mut child = self.child();
        let action = format!("signal {}", self.name);
        // Until it is waited for, which only happens under this lock, its number names nothing else.
        match child.try_wait().map_err(system(action.clone()))? {
            Some(_) => Ok(()),
            None => kill(self.pid, signal).map_err(system(action)),
        }
    }

    /// Asks it to end (SIGTERM); [`Self::wait`] for it.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn terminate(&self) -> Result<(), RigError> {
        self.signal(Signal::SIGTERM)
    }

    /// Has it read its configuration again (SIGHUP).
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn reload(&self) -> Result<(), RigError> {
        self.signal(Signal::SIGHUP)
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`].
    pub fn kill9(&self) -> Result<ExitStatus, RigError> {
        self.signal(Signal::SIGKILL)?;
        self.wait(KILL_DEADLINE)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// [`RigError::Timeout`] if it still runs after `deadline`; [`RigError::System`].
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus, RigError> {
        let mut result = Ok(None);
        wait_until(deadline, &format!("{} to end", self.name), || {
            result = self.exited();
            !matches!(result, Ok(None))
        })?;
        result.map(|status| status.expect("the wait ends with a status or an error"))
    }

    /// A look at its log for people: its name and its last lines.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n");
        format!(
            "--- {} ({}), {} lines, the last:\n{tail}\n",
            self.name,
            self.pid,
            all.len()
        )
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the spawning thread is asked for.
type Request = (Command, Sender<Answer>);
/// The command, given back, and what has come of it.
type Answer = (Command, io::Result<Child>);

/// The thread that starts all processes of a rig.
///
/// The kernel ends a process with the *thread* that started it, and threads of tests come and go.
#[derive(Debug)]
pub(crate) struct Spawner {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    directory: PathBuf,
    started: Mutex<Vec<Process>>,
}

impl Spawner {
    /// Starts the thread; logs go to `directory`.
    pub(crate) fn new(directory: &Path) -> Result<Self, RigError> {
        let (requests, queue) = mpsc::channel::<Request>();
        let spawn_all = move || {
            for (mut command, answer) in queue {
                let child = command.spawn();
                // Whoever asked waits for it.
                let _ = answer.send((command, child));
            }
        };
        let thread = thread::Builder::new()
            .name("rig-spawn".into())
            .spawn(spawn_all)
            .map_err(system("start a thread"))?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            directory: directory.to_owned(),
            started: Mutex::default(),
        })
    }

    /// Starts a command in a namespace, its output going to a log.
    pub(crate) fn spawn(
        &self,
        node: &str,
        namespace: &Namespace,
        command: &mut Command,
    ) -> Result<Process, RigError> {
        let program = Path::new(command.get_program());
        let program = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{node}-{program}-{}", started.len() + 1);
        let log = self.directory.join(format!("{name}.log"));
        let action = format!("write {}", log.display());
        let file = File::create(&log).map_err(system(action.clone()))?;
        let copy = file.try_clone().map_err(system(action))?;
        command.stdin(Stdio::null()).stdout(file).stderr(copy);
        let child = self.start(&name, namespace, command)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let process = Process {
            child: Arc::new(Mutex::new(child)),
            name,
            pid,
            log,
        };
        started.push(process.clone());
        Ok(process)
    }

    /// Runs a command to its end.
    pub(crate) fn run(
        &self,
        node: &str,
        namespace: &Namespace,
        command: &mut Command,
        deadline: Duration,
    ) -> Result<Output, RigError> {
        let name = format!("{} on {node}", command.get_program().to_string_lossy());
        let action = format!("keep the output of {name}");
        let file = || tempfile::tempfile_in(&self.directory).map_err(system(action.clone()));
        let (stdout, stderr) = (file()?, file()?);
        let copy = |file: &File| file.try_clone().map_err(system(action.clone()));
        command
            .stdin(Stdio::null())
            .stdout(copy(&stdout)?)
            .stderr(copy(&stderr)?);
        let child = self.start(&name, namespace, command)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let child = Arc::new(Mutex::new(child));
        let process = Process {
            child,
            name,
            pid,
            log: PathBuf::new(),
        };
        let ended = process.wait(deadline);
        if ended.is_err() {
            process.kill9()?;
        }
        let text = |file| read_all(file).map_err(system(action.clone()));
        Ok(Output {
            status: ended?,
            stdout: text(stdout)?,
            stderr: text(stderr)?,
        })
    }

    /// The processes that it has started and that write logs.
    pub(crate) fn started(&self) -> Vec<Process> {
        self.started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn start(
        &self,
        name: &str,
        namespace: &Namespace,
        command: &mut Command,
    ) -> Result<Child, RigError> {
        namespace.place(command);
        die_with_us(command);
        let (answer, result) = mpsc::channel();
        let requests = self.requests.as_ref().expect("there until the drop");
        let gone = || RigError::System {
            action: format!("start {name}"),
            source: io::Error::other("the spawning thread has ended"),
        };
        // The other thread needs it whole; the caller may look at it and use it again afterwards.
        let lent = mem::replace(command, Command::new("lent"));
        requests.send((lent, answer)).map_err(|_| gone())?;
        let (returned, child) = result.recv().map_err(|_| gone())?;
        *command = returned;
        child.map_err(system(format!("start {name}")))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        for process in self.started() {
            if let Err(error) = process.kill9() {
                eprintln!("rig: {error}");
            }
        }
        // Ends the thread's queue.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has the kernel kill the process when the thread that starts it ends.
fn die_with_us(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec this makes two system calls and neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
    }
}

fn read_all(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
