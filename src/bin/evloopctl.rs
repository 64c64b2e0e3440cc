//! `evloopctl`: parses the command line and calls the library.

use std::process::ExitCode;

use evloopd::ctl;

fn main() -> ExitCode {
    ctl::complete();
    let invocation = match ctl::parse() {
        Ok(invocation) => invocation,
        Err(code) => return code,
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
    let code = runtime.block_on(ctl::main(invocation));
    // A thread that reads stdin cannot be cancelled, so the program does not wait for it.
    runtime.shutdown_background();
    code
}
