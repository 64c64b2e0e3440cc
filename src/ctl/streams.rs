//! Options that connect the streams of a program with files, and files of variables.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use super::failure::{Failure, USAGE};
use super::parse;
use crate::proto::{FileMode, FileStdio, ProcessSpec, Stdio};

/// Where a program's streams go, if not to evloopctl or to the journal.
#[derive(Debug, Default, Args)]
pub(super) struct Streams {
    /// Read the program's stdin from this file, not from yours
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    stdin: Option<PathBuf>,
    /// Write the program's stdout to this file, which is made or emptied first
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    stdout: Option<PathBuf>,
    /// Write the program's stderr to this file, which is made or emptied first
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    stderr: Option<PathBuf>,
    /// Append to the files of --stdout and --stderr
    #[arg(long)]
    append: bool,
    /// Write the program's stderr where its stdout goes, as 2>&1 of a shell
    #[arg(long, conflicts_with = "stderr")]
    stderr_to_stdout: bool,
}

impl Streams {
    /// Returns whether any option is given.
    pub(super) const fn is_given(&self) -> bool {
        let files = self.stdin.is_some() || self.stdout.is_some() || self.stderr.is_some();
        files || self.stderr_to_stdout
    }

    /// Returns whether stdin is a file.
    pub(super) const fn reads_file(&self) -> bool {
        self.stdin.is_some()
    }

    /// Enters the streams into the request.
    ///
    /// # Errors
    /// --append has no file, or the working directory of evloopctl is not known.
    pub(super) fn enter(&self, spec: &mut ProcessSpec) -> Result<(), Failure> {
        if self.append && self.stdout.is_none() && self.stderr.is_none() {
            let failure = Failure::plain("--append needs --stdout FILE or --stderr FILE");
            return Err(failure.code(USAGE));
        }
        let mode = if self.append {
            FileMode::Append
        } else {
            FileMode::Truncate
        };
        if let Some(path) = &self.stdin {
            spec.set_stdin(Stdio::File);
            spec.stdin_file = Some(file(path, FileMode::Read)?);
        }
        if let Some(path) = &self.stdout {
            spec.set_stdout(Stdio::File);
            spec.stdout_file = Some(file(path, mode)?);
        }
        if let Some(path) = &self.stderr {
            spec.set_stderr(Stdio::File);
            spec.stderr_file = Some(file(path, mode)?);
        }
        if self.stderr_to_stdout {
            spec.set_stderr(Stdio::Stdout);
        }
        Ok(())
    }
}

fn file(path: &Path, mode: FileMode) -> Result<FileStdio, Failure> {
    let path = if path.is_absolute() {
        path.to_owned()
    } else {
        let here = env::current_dir();
        here.map_err(|error| Failure::new("working directory", error))?
            .join(path)
    };
    let (path, path_bytes) = match path.into_os_string().into_string() {
        Ok(text) => (text, bytes::Bytes::new()),
        Err(path) => (String::new(), path.into_vec().into()),
    };
    Ok(FileStdio {
        path,
        path_bytes,
        mode: mode.into(),
        permissions: None,
    })
}

/// Reads a file of variables: `KEY=VALUE` on each line, as it is; a KEY alone passes on yours, which
/// happens anyway. Empty lines and those that begin with `#` are left out.
pub(super) fn variables(path: &OsStr) -> Result<Vec<(OsString, OsString)>, String> {
    let content = std::fs::read(path).map_err(|error| error.to_string())?;
    let lines = content.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.map(|(at, line)| (at + 1, line.strip_suffix(b"\r").unwrap_or(line)));
    let has_variable = |line: &[u8]| !line.trim_ascii().is_empty() && !line.starts_with(b"#");
    let mut variables = Vec::new();
    for (at, line) in lines.filter(|(_, line)| has_variable(line)) {
        if line.contains(&b'=') {
            let variable = parse::variable(OsStr::from_bytes(line));
            variables.push(variable.map_err(|_| format!("line {at}: KEY=VALUE is expected"))?);
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_taken_as_it_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, b"A=1\n\n# B=2\nC = x=\"y\" \r\nHOME\nD=\xff").unwrap();
        let pairs = [
            (&b"A"[..], &b"1"[..]),
            (b"C ", b" x=\"y\" "),
            (b"D", b"\xff"),
        ];
        let pairs = pairs.map(|(k, v)| {
            let text = |bytes| OsStr::from_bytes(bytes).to_owned();
            (text(k), text(v))
        });
        assert_eq!(variables(path.as_os_str()).unwrap(), pairs);
        std::fs::write(&path, "A=1\n=2\n").unwrap();
        assert!(variables(path.as_os_str()).unwrap_err().contains("line 2"));
        assert!(variables(OsStr::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_relative_file_is_below_our_own_directory() {
        let streams = Streams {
            stdout: Some("out".into()),
            append: true,
            ..Streams::default()
        };
        let mut spec = ProcessSpec::default();
        streams.enter(&mut spec).unwrap();
        let here = env::current_dir().unwrap().join("out");
        let file = spec.stdout_file.as_ref().unwrap();
        assert_eq!(Path::new(&file.path), here);
        assert_eq!(
            (spec.stdout(), file.mode()),
            (Stdio::File, FileMode::Append)
        );
    }
}
