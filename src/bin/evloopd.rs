//! `evloopd`: parses the command line and calls the library.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use evloopd::daemon::{self, Arguments, Show};
use evloopd::keeper::{self, Role};

/// Prints one line on standard error.
fn complain(error: &dyn std::fmt::Display) {
    let error = evloopd::text::escaped(error, evloopd::error::TEXT_MAX);
    let _ = writeln!(std::io::stderr(), "{error}");
}

fn main() -> ExitCode {
    let args = Arguments::parse();
    match &args.show {
        Some(Show::Demo) => return evloopd::demo::run(),
        Some(Show::DemoClient { args }) => return evloopd::demo::client(args),
        None => {}
    }
    let life = if args.no_keeper || args.check_config {
        None
    } else {
        match keeper::start() {
            Ok(Role::Life(life)) => Some(life),
            Ok(Role::Ended(code)) => return code,
            Err(errno) => {
                complain(&format_args!("evloopd: there is no keeper: clone: {errno}"));
                None
            }
        }
    };
    let setup = match daemon::setup(&args, life) {
        Ok(setup) => setup,
        Err(errors) => {
            // `FILE:LINE: ...` without a prefix, as compilers print it, so that editors can jump
            // there.
            errors.iter().for_each(|error| complain(error));
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        let values = setup.config.effective();
        for (key, what) in daemon::warnings(&setup.config) {
            let of_key = values.iter().find(|(known, ..)| *known == key);
            let source = of_key.map_or("default", |(_, _, source)| source);
            complain(&format_args!("{source}: warning: {key} {what}"));
        }
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    daemon::init_log(&setup.config);
    match daemon::run(setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format_args!("evloopd: {error}"));
            ExitCode::FAILURE
        }
    }
}
