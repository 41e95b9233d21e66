//! `rma`: the I/O device allocation application and every other administrator's verb.

fn main() -> std::process::ExitCode {
    rma::admin::cli::main(rma::daemon::args::commands)
}
