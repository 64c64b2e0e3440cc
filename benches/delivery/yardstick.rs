//! Yardsticks that are processes of their own: this program again, told so by its first
//! argument. They end with their standard input, and so with whoever started them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Outcome;

/// A yardstick that runs.
pub(crate) struct Process {
    process: Child,
    /// Present until it is dropped.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// This program again.
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

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("the yardstick has ended".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // It has been waited for already if this fails.
        let _ = self.process.wait();
    }
}
