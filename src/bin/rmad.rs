//! `rmad`: the resource management agent of a host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rma::daemon::rmad_config::{Keys, RmadConfig};
use rma::daemon::{event_loop, rmad};

/// The resource management agent: keeps the cluster resource table and serves what this host owns
#[derive(Debug, Parser)]
#[command(name = "rmad", version)]
struct Args {
    /// Configuration file [default: /etc/rma/rmad.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
}

fn main() -> ExitCode {
    let args = Args::parse();
    event_loop::init_logging("info");
    let result = RmadConfig::load(args.keys, args.config.as_deref())
        .map_err(|e| e.to_string())
        .and_then(|config| rmad::run(&config).map_err(|e| e.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rmad: {message}");
            ExitCode::from(2)
        }
    }
}
