//! The daemon's command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use evloopd::config::{Config, Source};

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
    /// Checks the configuration and ends.
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

fn configure(args: &Args) -> Result<Config, String> {
    let mut config = Config::load(args.config.as_deref()).map_err(|e| e.to_string())?;
    if let Some(socket) = &args.socket {
        let socket = std::path::absolute(socket).map_err(|e| e.to_string())?;
        let socket = socket.to_str().ok_or("the socket's path must be UTF-8")?;
        config
            .set("server.socket", socket, Source::CommandLine)
            .map_err(|e| e.to_string())?;
    }
    Ok(config)
}

/// One line on standard error.
fn complain(error: &dyn std::fmt::Display) {
    let error = evloopd::text::escaped(error, evloopd::error::TEXT_MAX);
    let _ = writeln!(std::io::stderr(), "evloopd: {error}");
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
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    evloopd::daemon::init_log(&config);
    match evloopd::daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
