//! `rma`: the I/O device allocation application (210) and every other administrator's verb.
//!
//! Exit status: 0 done (or yes), 1 no, 2 error. Errors are one line on standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use super::cli_error::CliError;
use super::cli_verbs::{CrtVerb, FabricVerb, GranularityVerb, LockVerb, UdevVerb, UnitVerb};
use super::control::ControlClient;
use super::protocol::{Answer, PolicyChange, SCHEMA};
use super::text::{self, Style};
use super::unit_protocol::UnitRequest;
use super::{apply, change_text};
use crate::rma::desired::Size;
use crate::rma::request::{AdminReply, AdminRequest, WatchEvent};

/// How long an answer of a daemon is awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command line of `rma`.
#[derive(Debug, Parser)]
#[command(
    name = "rma",
    version,
    about = "Allocate I/O devices of the segment to hosts, and look at them",
    propagate_version = true
)]
pub struct Cli {
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Show everything: whole GUIDs, stamps
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Rule the lists
    #[arg(long, global = true)]
    ruled: bool,
    /// Run directory of the daemon to ask
    #[arg(
        long,
        global = true,
        env = "RMA_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/rma"
    )]
    run_dir: PathBuf,
    /// Control socket of the daemon to ask [default: rmad.sock, unitd.sock or fabricd.sock in the run directory]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show this host's agent in short
    Status,
    /// List the hosts of the cluster
    Hosts,
    /// List the I/O units of the cluster
    Units,
    /// List the I/O devices of the cluster and their extents
    Devices {
        /// Show what has been done on those that this host owns instead: counts, bytes, latencies
        #[arg(long)]
        stats: bool,
    },
    /// Show hosts, units, controllers and devices with their owners as a tree
    Tree,
    /// List the devices that this host owns, and where the system finds them
    Exports,
    /// Give a unit, controller, device or extent to one host (dedicated) or several (shared)
    Allocate {
        /// Unit, controller, device or extent: GUID, its first 8 digits or more, address or name
        target: String,
        /// Hosts that shall own it, divided by commas: GUID, address or name
        #[arg(long, required = true, value_delimiter = ',', value_name = "HOST,…")]
        to: Vec<String>,
        /// Shared, even with one host
        #[arg(long)]
        shared: bool,
        /// Also take from hosts that lose the parent what lies below it
        #[arg(long)]
        recursive: bool,
        /// Even where a host loses a device that is in use on it, or does not say: its I/O fails
        #[arg(long)]
        force: bool,
    },
    /// Take a unit, controller, device or extent from its owners
    Release {
        /// Unit, controller, device or extent: GUID, its first 8 digits or more, address or name
        target: String,
        /// Also release what lies below
        #[arg(long)]
        recursive: bool,
        /// Even where a device is in use on its owner, or that does not say: its I/O fails
        #[arg(long)]
        force: bool,
    },
    /// Move a device or a whole unit to a host of another cluster
    Move {
        /// I/O device or unit: GUID, its first 8 digits or more, address or name
        target: String,
        /// The other cluster
        #[arg(long, value_name = "CLUSTER")]
        cluster: String,
        /// The host there that it shall be dedicated to: GUID or name
        #[arg(long, value_name = "HOST")]
        to: String,
        /// Of a unit, also give what lies below it to that host
        #[arg(long)]
        recursive: bool,
    },
    /// Take a row out of the table for good, with all below it: a controller or device that its unit
    /// no longer lists, or a host or unit that is no member any more
    Forget {
        /// GUID, its first 8 digits or more, address or name
        target: String,
    },
    /// Make a range of a device an extent, which is allocated on its own
    Carve {
        /// I/O device: GUID, its first 8 digits or more, address or name
        device: String,
        /// Where it begins on the device: bytes, or with K, M, G or T behind the number
        #[arg(long, value_name = "N[K|M|G|T]")]
        offset: Size,
        /// How long it is: bytes, or with K, M, G or T behind the number
        #[arg(long, value_name = "N[K|M|G|T]")]
        size: Size,
        /// Its name
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Write units, controllers, devices and extents as they are owned: a file for `rma apply`
    Export,
    /// Make the cluster as a file says, unit by unit; what it does not name stays as it is
    Apply {
        /// A TOML or JSON file, as `rma export` writes one
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove an extent that nobody owns; its range is of nobody's use until it is carved again
    Uncarve {
        /// Extent: GUID, its first 8 digits or more, address or name
        extent: String,
    },
    /// Show or set the finest level at which the cluster allocates
    #[command(subcommand)]
    Granularity(GranularityVerb),
    /// The allocation lease: one allocation application works at a time
    #[command(subcommand)]
    Lock(LockVerb),
    /// Print events as they happen, until interrupted
    Watch,
    /// Look at a cluster resource table file, with or without the daemon
    #[command(subcommand)]
    Crt(CrtVerb),
    /// The udev rules that rmad generates
    #[command(subcommand)]
    Udev(UdevVerb),
    /// Take block devices from the system whose unit is gone for good: what waits for them fails
    Abandon(super::abandon::Args),
    /// Show or set what becomes of a device's I/O on this host while its unit cannot be reached
    Policy {
        /// Device or extent: GUID, its first 8 digits or more, address or name
        device: String,
        /// It waits, however long
        #[arg(long, group = "policy")]
        queue: bool,
        /// It fails when the unit has been away for so many seconds; 0: at once
        #[arg(long, group = "policy", value_name = "SECONDS")]
        fail_after: Option<u32>,
        /// As rmad's configuration says
        #[arg(long, group = "policy")]
        default: bool,
    },
    /// Measure a device that this host owns: load made inside rmad, as fio would
    Bench(super::bench::Args),
    /// Decode a packet capture of the segment, a line per frame
    Capture {
        /// A pcap or pcapng file
        file: PathBuf,
    },
    /// Ask an I/O unit's daemon on its own box, or restore a unit's registers
    #[command(subcommand)]
    Unit(UnitVerb),
    /// Ask fabric services' daemon on its own box
    #[command(subcommand)]
    Fabric(FabricVerb),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages of rma and its verbs (section 1) and of the daemons (8) into a directory
    Manpages {
        /// The directory
        dir: PathBuf,
    },
}

/// Runs `rma` with the process's arguments.
pub fn main(daemons: fn() -> [clap::Command; 3]) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.run(daemons) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // A reader that went away (`rma devices | head`) is no error.
        Err(CliError::Output(e) | CliError::Bench(super::bench::BenchError::Output(e)))
            if e.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("rma: {}", text::printable(&e.to_string()));
            ExitCode::from(2)
        }
    }
}

impl Cli {
    fn run(self, daemons: fn() -> [clap::Command; 3]) -> Result<bool, CliError> {
        let style = Style {
            ruled: self.ruled,
            verbose: self.verbose,
        };
        let request = match &self.verb {
            Verb::Status => AdminRequest::Status,
            Verb::Hosts => AdminRequest::Hosts,
            Verb::Units => AdminRequest::Units,
            Verb::Devices { stats: false } => AdminRequest::Devices,
            Verb::Devices { stats: true } => return self.statistics(style),
            Verb::Tree => AdminRequest::Tree,
            Verb::Exports => return self.exports(style),
            Verb::Allocate {
                target,
                to,
                shared,
                recursive,
                ..
            } => AdminRequest::Allocate {
                target: target.clone(),
                hosts: to.clone(),
                shared: *shared,
                recursive: *recursive,
            },
            Verb::Release {
                target, recursive, ..
            } => AdminRequest::Release {
                target: target.clone(),
                recursive: *recursive,
            },
            Verb::Move {
                target,
                cluster,
                to,
                recursive,
            } => AdminRequest::Move {
                target: target.clone(),
                cluster: cluster.clone(),
                host: to.clone(),
                recursive: *recursive,
            },
            Verb::Forget { target } => AdminRequest::Forget {
                target: target.clone(),
            },
            Verb::Carve {
                device,
                offset,
                size,
                name,
            } => AdminRequest::Carve {
                device: device.clone(),
                offset: offset.0,
                size: size.0,
                name: name.clone(),
            },
            Verb::Export => return self.export(),
            Verb::Apply { file, dry_run } => return self.apply(file, *dry_run),
            Verb::Uncarve { extent } => AdminRequest::Uncarve {
                extent: extent.clone(),
            },
            Verb::Granularity(GranularityVerb::Get) => AdminRequest::GranularityGet,
            Verb::Granularity(GranularityVerb::Set { level }) => AdminRequest::GranularitySet {
                granularity: level.clone(),
            },
            Verb::Lock(LockVerb::Status) => AdminRequest::LockStatus,
            Verb::Lock(LockVerb::Acquire { force }) => AdminRequest::LockAcquire { force: *force },
            Verb::Lock(LockVerb::Release { force }) => AdminRequest::LockRelease { force: *force },
            Verb::Watch => return self.watch(),
            Verb::Crt(verb) => return self.crt(verb, style),
            Verb::Udev(UdevVerb::Rules) => return self.udev_rules(),
            Verb::Udev(UdevVerb::Test { device }) => return self.udev_test(device, style),
            Verb::Abandon(args) => {
                let json = self.output == Format::Json;
                return Ok(super::abandon::run(args, &self.socket("rmad.sock"), json)?);
            }
            Verb::Policy {
                device,
                queue,
                fail_after,
                default,
            } => {
                let change = match fail_after {
                    Some(seconds) => Some(PolicyChange::FailAfter { seconds: *seconds }),
                    None if *queue => Some(PolicyChange::Queue),
                    None => default.then_some(PolicyChange::Default),
                };
                return self.policy(device, change);
            }
            Verb::Bench(args) => {
                let json = self.output == Format::Json;
                return Ok(super::bench::run(args, &self.socket("rmad.sock"), json)?);
            }
            Verb::Capture { file } => {
                let json = self.output == Format::Json;
                let summary = super::capture::run(file, json, &mut std::io::stdout().lock())?;
                return Ok(summary.is_clean());
            }
            Verb::Unit(UnitVerb::Restore { unit, force }) => AdminRequest::RestoreUnit {
                unit: unit.clone(),
                force: *force,
            },
            Verb::Unit(UnitVerb::Status) => return self.unit(UnitRequest::Status, style),
            Verb::Unit(UnitVerb::Reload) => return self.unit(UnitRequest::Reload, style),
            Verb::Fabric(verb) => return self.fabric(verb, style),
            Verb::Completions { shell } => {
                clap_complete::generate(
                    *shell,
                    &mut Self::command(),
                    "rma",
                    &mut std::io::stdout(),
                );
                return Ok(true);
            }
            Verb::Manpages { dir } => {
                let fail = |source| CliError::File {
                    path: dir.clone(),
                    source,
                };
                super::manpages::write(dir, daemons(), Self::command()).map_err(fail)?;
                return Ok(true);
            }
        };
        let reply = self.ask(request)?;
        self.print(&reply, || text::reply(&reply, style))?;
        Ok(true)
    }

    fn export(&self) -> Result<bool, CliError> {
        let AdminReply::Table(table) = self.ask(AdminRequest::Table)? else {
            return Err(CliError::unexpected());
        };
        // As `rma apply` reads it: it has its own form, and nothing around it.
        let text = apply::export(&table, self.output == Format::Json)?;
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(true)
    }

    fn apply(&self, file: &Path, dry_run: bool) -> Result<bool, CliError> {
        let desired = apply::read(file)?;
        let reply = self.ask(AdminRequest::Apply { desired, dry_run })?;
        let AdminReply::Applied(info) = &reply else {
            return Err(CliError::unexpected());
        };
        self.print(&reply, || change_text::applied(info))?;
        match change_text::left(info) {
            None => Ok(true),
            Some(left) => Err(CliError::Refused(left)),
        }
    }

    pub(super) fn socket(&self, default: &str) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| self.run_dir.join(default))
    }

    fn ask(&self, request: AdminRequest) -> Result<AdminReply, CliError> {
        let question = match self.verb {
            Verb::Allocate { force: true, .. } | Verb::Release { force: true, .. } => {
                super::protocol::Question::Forced(request)
            }
            _ => super::protocol::Question::Agent(request),
        };
        match ask(&self.socket("rmad.sock"), &question)? {
            Answer::Agent(AdminReply::Error(error)) | Answer::Error(error) => {
                Err(CliError::Refused(error.message))
            }
            Answer::Agent(reply) => Ok(reply),
            _ => Err(CliError::unexpected()),
        }
    }

    pub(super) fn print<T: serde::Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        match self.output {
            Format::Text => out.write_all(text().as_bytes())?,
            Format::Json => {
                let versioned = Versioned {
                    schema: SCHEMA,
                    value,
                };
                serde_json::to_writer_pretty(&mut out, &versioned).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    fn watch(&self) -> Result<bool, CliError> {
        let path = self.socket("rmad.sock");
        let mut client = ControlClient::connect(&path, None)?;
        send(
            &mut client,
            &super::protocol::Question::Agent(AdminRequest::Watch),
            &path,
        )?;
        loop {
            let line = client.receive()?;
            let answer: Answer =
                serde_json::from_str(&line).map_err(|source| CliError::Answer {
                    path: path.clone(),
                    source,
                })?;
            let mut out = std::io::stdout().lock();
            match answer {
                Answer::Event(event) => self.print_event(&mut out, &event)?,
                Answer::Agent(AdminReply::Watching) => {}
                Answer::Error(error) | Answer::Agent(AdminReply::Error(error)) => {
                    return Err(CliError::Refused(error.message));
                }
                _ => {}
            }
            out.flush()?;
        }
    }

    fn print_event(&self, out: &mut impl Write, event: &WatchEvent) -> Result<(), CliError> {
        match self.output {
            Format::Text => writeln!(out, "{}", text::event(event))?,
            Format::Json => {
                let versioned = Versioned {
                    schema: SCHEMA,
                    value: event,
                };
                serde_json::to_writer(&mut *out, &versioned).map_err(std::io::Error::from)?;
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn crt(&self, verb: &CrtVerb, style: Style) -> Result<bool, CliError> {
        match verb {
            CrtVerb::Show { file } => {
                let snapshot = crate::store::crt_file::Snapshot::read(file)?;
                let info = crate::rma::report::table_info(&snapshot.table, snapshot.info.cluster);
                let reply = AdminReply::Table(Box::new(info));
                self.print(&reply, || text::reply(&reply, style))?;
                Ok(true)
            }
            CrtVerb::Verify { file } => {
                let report = super::crt_verify::VerifyInfo::of(file)?;
                self.print(&report, || report.to_string())?;
                Ok(report.sound)
            }
        }
    }

    fn unit(&self, request: UnitRequest, style: Style) -> Result<bool, CliError> {
        use super::unit_protocol::UnitReply;
        let reply: UnitReply = ask(&self.socket("unitd.sock"), &request)?;
        if let UnitReply::Error { message } = reply {
            return Err(CliError::Refused(message));
        }
        self.print(&reply, || super::daemon_text::unit(&reply, style))?;
        Ok(true)
    }

    fn fabric(&self, verb: &FabricVerb, style: Style) -> Result<bool, CliError> {
        use super::fabric_protocol::{FabricReply, FabricRequest};
        let request = match verb {
            FabricVerb::Catalog => FabricRequest::List,
            FabricVerb::Status => FabricRequest::Status,
            FabricVerb::Tables { cluster: None } => FabricRequest::Tables,
            FabricVerb::Tables {
                cluster: Some(cluster),
            } => FabricRequest::Table {
                cluster: cluster.clone(),
            },
            FabricVerb::Assign { entity, cluster } => FabricRequest::Assign {
                entity: entity.clone(),
                cluster: cluster.clone(),
            },
            FabricVerb::Remove { entity } => FabricRequest::Remove {
                entity: entity.clone(),
            },
        };
        let reply: FabricReply = ask(&self.socket("fabricd.sock"), &request)?;
        if let FabricReply::Error { message } = reply {
            return Err(CliError::Refused(message));
        }
        self.print(&reply, || super::daemon_text::fabric(&reply, style))?;
        Ok(true)
    }
}

#[derive(serde::Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    value: &'a T,
}

fn send<Q: serde::Serialize>(
    client: &mut ControlClient,
    question: &Q,
    path: &Path,
) -> Result<(), CliError> {
    let line = serde_json::to_string(question).map_err(|source| CliError::Answer {
        path: path.to_owned(),
        source,
    })?;
    Ok(client.send(&line)?)
}

/// Asks a daemon one question and awaits its one answer.
pub(super) fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    path: &Path,
    question: &Q,
) -> Result<A, CliError> {
    let mut client = ControlClient::connect(path, Some(PATIENCE))?;
    send(&mut client, question, path)?;
    let line = client.receive()?;
    serde_json::from_str(&line).map_err(|source| CliError::Answer {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
