//! The daemon's command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::refusals;
use crate::config::Config;

/// Event loops as a service of the host.
///
/// Any program connects over gRPC, makes named event loops, and watches sockets, pipes, children, timers, signals and
/// its own file descriptors; it gets every event on one ordered, resumable stream. evloopctl(1) is the client for
/// people and scripts.
#[derive(Debug, Parser)]
#[command(name = "evloopd", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// The configuration; by default the user's or the system's, if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The service's Unix socket; else the configuration's. EVLOOPD_SOCKET is for clients alone
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Check the configuration and end: 0 without errors, 2 with; a line FILE:LINE: KEY: ... for each
    #[arg(long)]
    pub check_config: bool,
    /// What to show in place of serving
    #[command(subcommand)]
    pub show: Option<Show>,
}

const EXAMPLES: &str = "Examples:
  evloopd 2> evloopd.log &
  evloopd --socket /tmp/evloopd.sock
  evloopd --check-config --config evloopd.toml
  evloopd demo";

/// What the daemon's program can show.
#[derive(Debug, Subcommand)]
pub enum Show {
    /// Shows in a few seconds what evloopd is for, on a daemon of its own
    #[command(after_help = "Example:\n  evloopd demo")]
    Demo,
    /// One of the demo's clients.
    #[command(hide = true)]
    DemoClient {
        /// What it does.
        args: Vec<String>,
    },
}

impl Arguments {
    /// The configuration with what the command line says.
    ///
    /// # Errors
    /// All that is wrong with it, in lines.
    pub fn configuration(&self) -> Result<Config, Vec<String>> {
        let mut arguments = Vec::new();
        if let Some(socket) = &self.socket {
            let socket = std::path::absolute(socket).map_err(|e| vec![format!("--socket: {e}")])?;
            let Some(socket) = socket.to_str() else {
                return Err(vec!["--socket: must be UTF-8".to_owned()]);
            };
            arguments.push(("server.socket", socket.into()));
        }
        let config = Config::load(self.config.as_deref(), &arguments, refusals);
        config.map_err(|error| error.lines().to_vec())
    }
}
