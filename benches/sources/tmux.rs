//! A tmux server of its own, with one window of 80 columns and 24 rows, of which tmux's status line
//! takes one.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Outcome;

/// The time after which a start has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; it is killed when dropped.
pub(crate) struct Tmux {
    directory: TempDir,
}

impl Tmux {
    /// Returns whether the host has tmux.
    pub(crate) fn is_there() -> bool {
        let version = Command::new("tmux")
            .arg("-V")
            .stdout(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    }

    /// Starts a server whose window runs that line of sh(1).
    pub(crate) fn start(line: &str) -> Outcome<Self> {
        let tmux = Self {
            directory: tempfile::tempdir()?,
        };
        tmux.run(["new-session", "-d", "-x", "80", "-y", "24", line])?;
        Ok(tmux)
    }

    /// Returns a command of a client of this server.
    pub(crate) fn client(&self) -> [String; 5] {
        let socket = self.directory.path().join("socket");
        let socket = socket.to_string_lossy().into_owned();
        ["tmux", "-f", "/dev/null", "-S", &socket].map(str::to_owned)
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let [program, options @ ..] = self.client();
        let mut command = Command::new(program);
        command
            .args(options)
            .args(arguments)
            .env("TERM", "xterm-256color");
        command.env_remove("TMUX").stdin(Stdio::null());
        command
    }

    /// Runs a command of tmux to its end and returns its output.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Outcome<String> {
        let output = self.command(arguments).output()?;
        if !output.status.success() {
            return Err(format!("tmux: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until its window shows that text.
    pub(crate) fn shows(&self, text: &str) -> Outcome<()> {
        let begun = Instant::now();
        while !self.run(["capture-pane", "-p"])?.contains(text) {
            if begun.elapsed() > PATIENCE {
                return Err("tmux does not show the end of the output".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // If it fails, the server has ended with its window.
        let _ = self.command(["kill-server"]).output();
    }
}

/// Writes a file like the log of a build: numbered lines with colours, `bytes` in all at least.
/// Returns its size on a terminal, which shows each newline as two bytes.
pub(crate) fn build_log(path: &Path, bytes: usize) -> Outcome<u64> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes + 128);
    let mut lines = 0_u64;
    while text.len() < bytes {
        lines += 1;
        writeln!(
            text,
            "\x1b[32m[{lines:>7}]\x1b[0m compiled the module number {lines} of this project"
        )?;
    }
    let shown = u64::try_from(text.len())? + lines;
    std::fs::write(path, text)?;
    Ok(shown)
}
