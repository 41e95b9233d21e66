//! `rma-fabricd`: fabric services.

use std::process::ExitCode;

use clap::Parser as _;
use rma::daemon::args::FabricdArgs;
use rma::daemon::fabricd_config::FabricdConfig;
use rma::daemon::{event_loop, fabricd};

fn main() -> ExitCode {
    let args = FabricdArgs::parse();
    event_loop::init_logging(&args.log);
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
