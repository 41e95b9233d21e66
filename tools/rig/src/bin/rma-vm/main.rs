//! Owned devices on a real kernel: guests under QEMU on one segment, and scenarios in them.

mod cluster;
mod guest;
mod image;
mod machine;
mod scenarios;
mod segment;
mod system;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use serde_json::json;

use cluster::Lab;
use image::Image;
use scenarios::{SCENARIOS, Scenario};
use system::System;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Owned devices as block devices of a real kernel: three guests under QEMU on one Ethernet segment
///
/// One guest is an I/O unit with fabric services, two are hosts. The kernel is Debian's, the userland
/// busybox, udev and e2fsprogs from this machine; no privilege is needed.
#[derive(Debug, Parser)]
struct Args {
    /// Only these scenarios
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Name the scenarios and what each is about
    #[arg(long)]
    list: bool,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where logs and a capture of a failed scenario are kept
    #[arg(long, value_name = "DIR", default_value = "target/vm/failed")]
    keep: PathBuf,
    /// Where the kernel's package is unpacked
    #[arg(long, value_name = "DIR", default_value = "target/vm/kernel")]
    kernel: PathBuf,
    /// Where the disk of a guest with a whole system is (tools/vm-system)
    #[arg(long, value_name = "DIR", default_value = "target/vm/system")]
    system: PathBuf,
    /// Where our Debian packages are, each in two versions (tools/package)
    #[arg(long, value_name = "DIR", default_value = "target/vm/packages")]
    packages: PathBuf,
    /// How often rmad is killed in the scenarios about that
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Inside a guest: run the commands that come over the channel
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.role {
        Some(Role::Guest) => guest::serve().map(|()| true),
        None => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rma-vm: {error}");
            ExitCode::from(2)
        }
    }
}

/// The result of one scenario.
struct Outcome {
    name: &'static str,
    pass: bool,
    seconds: f64,
}

fn run(args: &Args) -> Result<bool> {
    if args.list {
        for scenario in SCENARIOS {
            println!("{:<24} {}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| !SCENARIOS.iter().any(|scenario| scenario.name == **only))
    {
        return Err(format!("--only {unknown}: there is no such scenario; see --list").into());
    }
    let directory = tempfile::Builder::new().prefix("rma-vm-").tempdir()?;
    let image = Image::build(&args.kernel, &rma_rig::bin_dir(), directory.path())?;
    let wanted: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|s| args.only.is_empty() || args.only.iter().any(|only| only == s.name))
        .collect();
    let system = if wanted.iter().any(|scenario| scenario.system) {
        let place = directory.path();
        Some(System::find(&args.system, &args.packages, place)?)
    } else {
        None
    };
    let mut outcomes = Vec::new();
    for scenario in wanted {
        let place = directory.path().join(scenario.name);
        fs::create_dir(&place)?;
        let system = system.as_ref().filter(|_| scenario.system);
        outcomes.push(one(scenario, &image, system, &place, args));
        fs::remove_dir_all(&place)?;
    }
    if let Some(path) = &args.json {
        let rows: Vec<_> = outcomes
            .iter()
            .map(|o| json!({ "name": o.name, "pass": o.pass, "seconds": o.seconds }))
            .collect();
        let text = serde_json::to_string_pretty(&json!({ "scenarios": rows }))?;
        fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(outcomes.iter().all(|outcome| outcome.pass))
}

/// Runs one scenario in guests of its own, and says how it went.
fn one(
    scenario: &Scenario,
    image: &Image,
    system: Option<&System>,
    place: &Path,
    args: &Args,
) -> Outcome {
    let keep = &args.keep;
    let started = Instant::now();
    let result = Lab::start(image, system, place, args.kills).and_then(|lab| {
        let result = (scenario.run)(&lab);
        lab.finish(result.is_err());
        result
    });
    let seconds = started.elapsed().as_secs_f64();
    let word = if result.is_ok() { "pass" } else { "FAIL" };
    println!("{:<24} {word} {seconds:7.1} s", scenario.name);
    if let Err(error) = &result {
        println!("    {}", error.to_string().trim().replace('\n', "\n    "));
        match save(place, &keep.join(scenario.name)) {
            Ok(()) => println!("    kept in {}", keep.join(scenario.name).display()),
            Err(e) => println!("    logs not kept: {e}"),
        }
    }
    Outcome {
        name: scenario.name,
        pass: result.is_ok(),
        seconds,
    }
}

/// Copies what tells why: consoles, logs, the capture. Disks and sockets are left behind.
fn save(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let kept = ["console", "qemu", "log", "pcap"];
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if let Some(name) = path.file_name().filter(|_| kept.contains(&&*extension)) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
