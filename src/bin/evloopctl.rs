//! `evloopctl`: parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser as _;
use evloopd::ctl;

fn main() -> ExitCode {
    let args = match ctl::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return ctl::usage(&error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("evloopctl: runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(ctl::main(args));
    // A read of stdin cannot be cancelled, and is not waited for.
    runtime.shutdown_background();
    code
}
