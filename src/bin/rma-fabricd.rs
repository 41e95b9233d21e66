//! `rma-fabricd`: fabric services.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rma::daemon::fabricd_config::{FabricdConfig, Keys};
use rma::daemon::{event_loop, fabricd};

/// Fabric services: knows the hosts and I/O units of a segment and tells every cluster its own
#[derive(Debug, Parser)]
#[command(name = "rma-fabricd", version)]
struct Args {
    /// Configuration file [default: /etc/rma/fabricd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
}

fn main() -> ExitCode {
    let args = Args::parse();
    event_loop::init_logging("info");
    let load = || FabricdConfig::load(args.keys.clone(), args.config.as_deref());
    let result = load()
        .map_err(|e| e.to_string())
        .and_then(|config| fabricd::run(&config, &load).map_err(|e| e.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rma-fabricd: {message}");
            ExitCode::from(2)
        }
    }
}
