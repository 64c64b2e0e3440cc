//! Yardsticks in processes of their own: this program, started with a first argument that names the
//! yardstick. They end when their standard input ends, and so with the process that started them.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::{Outcome, spent};

/// The variable that names the Python of the yardsticks; without it, `python3`.
const PYTHON: &str = "EVLOOPD_BENCH_PYTHON";

/// Returns the Python that runs yardsticks.
pub(crate) fn python() -> String {
    std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned())
}

/// A yardstick that runs.
pub(crate) struct Process {
    process: Child,
    /// Its standard input; `None` once this is being dropped.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program again.
    pub(crate) fn start(arguments: &[&str]) -> Outcome<Self> {
        Self::start_program(&std::env::current_exe()?, arguments)
    }

    pub(crate) fn start_program(program: &Path, arguments: &[&str]) -> Outcome<Self> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        Ok(Self {
            process,
            input,
            output: BufReader::new(output.ok_or("the yardstick has no output")?),
        })
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) -> Outcome<()> {
        let input = self.input.as_mut().ok_or("the yardstick has no input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Returns the next line that it prints.
    pub(crate) fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("the yardstick has ended".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Returns the CPU time that all its threads have used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        spent::by_process(self.process.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // If this fails, the process has been waited for already.
        let _ = self.process.wait();
    }
}
