//! `rma abandon`: block devices whose unit is gone are taken from the system, so that what waits for
//! them ends with an error.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control::{AskError, ControlClient};
use super::protocol::{Answer, ExportInfo, Question, SCHEMA};

/// `rmad` takes at most this long to have the kernel remove one device.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often `--unreachable` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `rma abandon` is asked to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Device or extent that this host owns: GUID, its first 8 digits or more, address or name
    #[arg(
        required_unless_present = "unreachable",
        conflicts_with = "unreachable"
    )]
    device: Option<String>,
    /// Every device whose unit does not answer
    #[arg(long)]
    unreachable: bool,
    /// With --unreachable: those that have not answered for so long from now on
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        requires = "unreachable"
    )]
    after: u64,
}

/// Why it was not done: one line for people.
#[derive(Debug, thiserror::Error)]
pub enum AbandonError {
    /// The daemon.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The daemon refuses.
    #[error("{0}")]
    Refused(String),
    /// Another version.
    #[error("the daemon's answer cannot be read; are rma and rmad of the same version?")]
    Answer,
    /// Standard output.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// Does it.
pub fn run(args: &Args, socket: &Path, json: bool) -> Result<bool, AbandonError> {
    let wanted = match &args.device {
        Some(device) => vec![device.clone()],
        None => unreachable(socket, Duration::from_secs(args.after))?,
    };
    let mut done = Vec::new();
    for device in wanted {
        match ask(socket, &Question::Abandon { device })? {
            Answer::Abandoned(export) => done.push(export),
            Answer::Error(error) => return Err(AbandonError::Refused(error.message)),
            _ => return Err(AbandonError::Answer),
        }
    }
    let mut out = std::io::stdout().lock();
    if json {
        let value = serde_json::json!({ "schema": SCHEMA, "abandoned": done });
        writeln!(out, "{value}")?;
    } else {
        for name in &done {
            writeln!(out, "{name} is abandoned")?;
        }
    }
    Ok(true)
}

/// The GUIDs of the devices that do not answer now, nor for `after` from now on.
fn unreachable(socket: &Path, after: Duration) -> Result<Vec<String>, AbandonError> {
    let end = Instant::now() + after;
    loop {
        let Answer::Exports { exports } = ask(socket, &Question::Exports)? else {
            return Err(AbandonError::Answer);
        };
        let waiting = |export: &ExportInfo| export.state == "queueing";
        let silent: Vec<String> = exports
            .iter()
            .filter(|export| waiting(export) && export.backend != "nbd-socket")
            .map(|export| export.guid.clone())
            .collect();
        if silent.is_empty() || Instant::now() >= end {
            return Ok(silent);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

fn ask(socket: &Path, question: &Question) -> Result<Answer, AbandonError> {
    let mut client = ControlClient::connect(socket, Some(PATIENCE))?;
    let line = serde_json::to_string(question).map_err(|_| AbandonError::Answer)?;
    client.send(&line)?;
    serde_json::from_str(&client.receive()?).map_err(|_| AbandonError::Answer)
}
