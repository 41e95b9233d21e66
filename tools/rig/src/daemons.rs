//! The daemons as processes in a rig: their directories, configuration, restarts, and `rma` asked in
//! their place.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rma::admin::control::ControlClient;
use rma::rma::request::RowInfo;
use serde_json::Value;

use crate::{Node, Output, Process, Rig, RigError, wait_until};

/// How long a command of `rma` may take.
const RMA_PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to start or to end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(20);

/// Which daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `rmad`.
    Host,
    /// `rma-unitd`.
    Unit,
    /// `rma-fabricd`.
    Fabric,
}

impl Program {
    const fn binary(self) -> &'static str {
        match self {
            Self::Host => "rmad",
            Self::Unit => "rma-unitd",
            Self::Fabric => "rma-fabricd",
        }
    }

    const fn socket(self) -> &'static str {
        match self {
            Self::Host => "rmad.sock",
            Self::Unit => "unitd.sock",
            Self::Fabric => "fabricd.sock",
        }
    }
}

/// Where the programs are: `RMA_BIN_DIR`, or beside the running one.
///
/// # Panics
/// When the running program's own path cannot be found out.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("RMA_BIN_DIR") {
        return dir.into();
    }
    let own = std::env::current_exe().expect("the running program has a path");
    let dir = own.parent().expect("a program is in a directory");
    // Test programs are one below, in deps.
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    dir.to_owned()
}

/// A daemon in a node: it can be killed and started again.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    node: Node,
    interface: String,
    dir: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Daemon {
    /// Prepares a daemon in `node` with `config` (TOML; interface and directories are added) and
    /// starts it.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn start(rig: &Rig, node: Node, program: Program, config: &str) -> Result<Self, RigError> {
        Self::start_on(rig, node, program, "eth0", config)
    }

    /// As [`Daemon::start`], on another interface than the first one on the switch, or on several,
    /// separated by commas.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn start_on(
        rig: &Rig,
        node: Node,
        program: Program,
        interface: &str,
        config: &str,
    ) -> Result<Self, RigError> {
        let dir = rig.directory().join(node.name());
        fs::create_dir_all(dir.join("rules.d")).map_err(fail("make a daemon's directory"))?;
        let daemon = Self {
            program,
            node,
            interface: interface.to_owned(),
            dir,
            process: Mutex::new(None),
        };
        daemon.configure(config)?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Writes its configuration anew.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn configure(&self, config: &str) -> Result<(), RigError> {
        let interfaces: Vec<&str> = self.interface.split(',').collect();
        let interfaces = match interfaces[..] {
            [one] => format!("{one:?}"),
            _ => format!("{interfaces:?}"),
        };
        let mut text = format!(
            "interface = {interfaces}\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n",
            self.state_dir().display(),
            self.run_dir().display()
        );
        if self.program == Program::Host {
            let _ = writeln!(
                text,
                "udev_rules_dir = \"{}\"",
                self.dir.join("rules.d").display()
            );
            // The kernel's block devices are the machine's, whatever namespace a host is in.
            if !config.contains("export = ") {
                text.push_str("export = \"nbd-socket\"\n");
            }
        }
        text.push_str(config);
        fs::write(self.config_path(), text).map_err(fail("write a daemon's configuration"))
    }

    /// Starts it (again).
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn restart(&self) -> Result<(), RigError> {
        let mut command = Command::new(bin_dir().join(self.program.binary()));
        command.arg("--config").arg(self.config_path());
        let process = self.node.spawn(&mut command)?;
        *self.lock() = Some(process);
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`].
    pub fn kill9(&self) -> Result<(), RigError> {
        if let Some(process) = self.lock().take() {
            process.kill9()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`].
    pub fn stop(&self) -> Result<(), RigError> {
        if let Some(process) = self.lock().take() {
            process.terminate()?;
            process.wait(DAEMON_PATIENCE)?;
        }
        Ok(())
    }

    /// SIGHUP: it reads its configuration again.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn reload(&self) -> Result<(), RigError> {
        match self.lock().as_ref() {
            Some(process) => process.reload(),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The valid row of this name in the table that a host has stored.
    ///
    /// # Errors
    /// [`RigError::Refused`] where there is none, or the table cannot be shown.
    pub fn row(&self, name: &str) -> Result<RowInfo, RigError> {
        let file = self.crt().display().to_string();
        let table = self.json(&["crt", "show", "--file", &file]);
        let rows = table.as_ref().and_then(|table| table["rows"].as_array());
        rows.into_iter()
            .flatten()
            .filter_map(|row| serde_json::from_value::<RowInfo>(row.clone()).ok())
            .find(|row| row.name == name && row.state == "valid")
            .ok_or_else(|| RigError::Refused {
                command: format!("rma crt show --file {file}"),
                message: format!("the table has no row {name}"),
            })
    }

    /// The interface it was told to use.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The node it is in.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its directory: configuration, `state`, `run`, `rules.d`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// The table's file of a host.
    pub fn crt(&self) -> PathBuf {
        self.state_dir().join("crt")
    }

    /// Everything that it has logged since its last start.
    pub fn log(&self) -> String {
        self.lock().as_ref().map(Process::log).unwrap_or_default()
    }

    /// Its process number, if it has been started.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::pid)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join(self.program.socket())
    }

    /// What the daemon answers to one line on its control socket, past `rma`; `None` where it does not.
    pub fn ask(&self, question: &str) -> Option<Value> {
        let mut client = ControlClient::connect(&self.socket(), Some(RMA_PATIENCE)).ok()?;
        client.send(question).ok()?;
        serde_json::from_str(&client.receive().ok()?).ok()
    }

    /// A host's status, as `rma -o json status` has it.
    pub fn status(&self) -> Option<Value> {
        let mut answer = self.ask(r#"{"agent":{"verb":"status"}}"#)?;
        Some(answer["agent"].take()).filter(Value::is_object)
    }

    /// `rma` with these arguments, asking this daemon.
    pub fn rma_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bin_dir().join("rma"));
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    /// Runs `rma` in the node, asking this daemon.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`]. An exit status other than 0 is none.
    pub fn rma(&self, args: &[&str]) -> Result<Output, RigError> {
        self.node.run(&mut self.rma_command(args), RMA_PATIENCE)
    }

    /// Runs `rma -o json` and gives what it printed, or `None` where it failed.
    pub fn json(&self, args: &[&str]) -> Option<Value> {
        let output = self.rma(&[&["-o", "json"], args].concat()).ok()?;
        if !output.status.success() {
            return None;
        }
        serde_json::from_str(&output.stdout).ok()
    }

    /// Waits until `rma -o json ARGS` prints something for which `condition` holds.
    ///
    /// # Errors
    /// [`RigError::Timeout`].
    pub fn wait_for(
        &self,
        patience: Duration,
        args: &[&str],
        what: &str,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Result<(), RigError> {
        let what = format!("{}: {what}", self.node.name());
        wait_until(patience, &what, || {
            self.json(args).is_some_and(|value| condition(&value))
        })
    }

    /// Where this host serves a device, by name or GUID.
    pub fn export(&self, device: &str) -> Option<PathBuf> {
        let value = self.json(&["exports"])?;
        let exports = value["exports"].as_array()?;
        let export = exports
            .iter()
            .find(|e| e["name"] == device || e["guid"] == device)?;
        Some(PathBuf::from(export["path"].as_str()?))
    }

    /// Waits until this host serves a device; where.
    ///
    /// # Errors
    /// [`RigError::Timeout`].
    pub fn wait_export(&self, patience: Duration, device: &str) -> Result<PathBuf, RigError> {
        let mut found = None;
        let what = format!("{} to export {device}", self.node.name());
        wait_until(patience, &what, || {
            found = self.export(device).filter(|path| path.exists());
            found.is_some()
        })?;
        Ok(found.unwrap_or_default())
    }

    /// The digest of this host's table, once it is past Fig. 5.
    pub fn digest(&self) -> Option<String> {
        let status = self.status()?;
        (status["block"] == 0).then(|| status["table"]["digest"].as_str().map(str::to_owned))?
    }
}

/// Waits until all hosts are past Fig. 5 and their tables have `rows` rows and are equal.
///
/// # Errors
/// [`RigError::Timeout`].
pub fn wait_equal_tables(patience: Duration, hosts: &[&Daemon], rows: u64) -> Result<(), RigError> {
    wait_until(
        patience,
        &format!("{} equal tables of {rows} rows", hosts.len()),
        || {
            let mut digest = None;
            hosts.iter().all(|host| {
                let Some(status) = host.status() else {
                    return false;
                };
                let table = &status["table"];
                let first = digest.get_or_insert_with(|| table["digest"].clone());
                status["block"] == 0 && table["row_count"] == rows && *first == table["digest"]
            })
        },
    )
}

fn fail(action: &str) -> impl FnOnce(std::io::Error) -> RigError {
    let action = action.to_owned();
    move |source| RigError::System { action, source }
}
