//! The daemon's command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use evloopd::config::Config;
use evloopd::daemon;

/// Event loops as a service of the host.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example: evloopd --socket /tmp/evloopd.sock")]
struct Args {
    /// The configuration; by default the user's or the system's, if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The service's Unix socket; else the configuration's. EVLOOPD_SOCKET is for clients alone.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Checks the configuration and ends: 0 without errors, 2 with; a line FILE:LINE: KEY: ... for each.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    show: Option<Show>,
}

#[derive(Debug, Subcommand)]
enum Show {
    /// Shows in a few seconds what evloopd is for, on a daemon of its own.
    Demo,
    /// One of the demo's clients.
    #[command(hide = true)]
    DemoClient { args: Vec<String> },
}

/// The configuration with what the command line says, or what is wrong, in lines.
fn configure(args: &Args) -> Result<Config, Vec<String>> {
    let mut arguments = Vec::new();
    if let Some(socket) = &args.socket {
        let socket = std::path::absolute(socket).map_err(|e| vec![format!("--socket: {e}")])?;
        let Some(socket) = socket.to_str() else {
            return Err(vec!["--socket: must be UTF-8".to_owned()]);
        };
        arguments.push(("server.socket", socket.into()));
    }
    let config = Config::load(args.config.as_deref(), &arguments, daemon::refusals);
    config.map_err(|error| error.lines().to_vec())
}

/// One line on standard error.
fn complain(error: &dyn std::fmt::Display) {
    let error = evloopd::text::escaped(error, evloopd::error::TEXT_MAX);
    let _ = writeln!(std::io::stderr(), "{error}");
}

fn main() -> ExitCode {
    let args = Args::parse();
    match &args.show {
        Some(Show::Demo) => return evloopd::demo::run(),
        Some(Show::DemoClient { args }) => return evloopd::demo::client(args),
        None => {}
    }
    let config = match configure(&args) {
        Ok(config) => config,
        Err(errors) => {
            // As compilers write them, for editors.
            errors.iter().for_each(|error| complain(error));
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    daemon::init_log(&config);
    match daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format_args!("evloopd: {error}"));
            ExitCode::FAILURE
        }
    }
}
