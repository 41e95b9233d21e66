//! `rmad`: the resource management agent of a host.

use std::process::ExitCode;

use clap::Parser as _;
use rma::daemon::args::RmadArgs;
use rma::daemon::rmad_config::RmadConfig;
use rma::daemon::{devices_once, event_loop, rmad};

fn main() -> ExitCode {
    let args = RmadArgs::parse();
    event_loop::init_logging(&args.log);
    let load = || RmadConfig::load(args.keys.clone(), args.config.as_deref());
    let result = load().map_err(|e| e.to_string()).and_then(|config| {
        if args.load_modules {
            devices_once::load_modules(config.export)
        } else if args.remove_devices {
            devices_once::remove_left_over(&config, args.force)
        } else {
            rmad::run(&config, &load).map_err(|e| e.to_string())
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rmad: {message}");
            ExitCode::from(2)
        }
    }
}
