//! The daemon's command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::refusals;
use crate::config::{Config, Refusal};

/// Event loops as a service of the host.
///
/// Any program connects over gRPC, makes named event loops, and watches sockets, pipes, children,
/// timers, signals and its own file descriptors; it gets every event on one ordered, resumable
/// stream. evloopctl(1) is the client for people and scripts.
#[derive(Debug, Clone, Parser)]
#[command(name = "evloopd", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Configuration file; by default that of the user, or the system's for root, if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket of the service, in place of server.socket; EVLOOPD_SOCKET is for clients only
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Check the configuration and exit: 0 if it is good, 2 if not, with one line FILE:LINE: KEY:
    /// ... per error; a limit that cannot be reached here is a warning
    #[arg(long)]
    pub check_config: bool,
    /// Run without the keeper, the process that starts the daemon again when it dies: for debuggers
    /// and tests
    #[arg(long)]
    pub no_keeper: bool,
    /// What to run in place of the daemon
    #[command(subcommand)]
    pub show: Option<Show>,
}

const EXAMPLES: &str = "Examples:
  evloopd 2> evloopd.log &
  evloopd --socket /tmp/evloopd.sock
  evloopd --check-config --config evloopd.toml
  evloopd demo";

/// The subcommands, which run in place of the daemon.
#[derive(Debug, Clone, Subcommand)]
pub enum Show {
    /// Show in a few seconds what evloopd does, on a daemon of its own
    #[command(after_help = "Example:\n  evloopd demo")]
    Demo,
    /// Run one of the demo's clients.
    #[command(hide = true)]
    DemoClient {
        /// The client's name and its arguments.
        args: Vec<String>,
    },
}

impl Arguments {
    /// Loads the configuration; arguments of the command line replace values of the file.
    ///
    /// # Errors
    /// One line per error.
    pub fn configuration(&self) -> Result<Config, Vec<String>> {
        self.load(refusals)
    }

    /// As [`configuration`](Self::configuration), without a look at what this host refuses, so that
    /// it can be called at any time.
    ///
    /// # Errors
    /// One line per error.
    pub fn on_disk(&self) -> Result<Config, Vec<String>> {
        self.load(|_| Vec::new())
    }

    fn load(&self, host: impl FnOnce(&Config) -> Vec<Refusal>) -> Result<Config, Vec<String>> {
        let mut arguments = Vec::new();
        if let Some(socket) = &self.socket {
            let socket = std::path::absolute(socket).map_err(|e| vec![format!("--socket: {e}")])?;
            let Some(socket) = socket.to_str() else {
                return Err(vec!["--socket: the path must be UTF-8".to_owned()]);
            };
            arguments.push(("server.socket", socket.into()));
        }
        let config = Config::load(self.config.as_deref(), &arguments, host);
        config.map_err(|error| error.lines().to_vec())
    }
}
