//! `rma-unitd`: an I/O unit.
use std::process::ExitCode;

fn main() -> ExitCode {
    rma::daemon::unitd::main()
}
