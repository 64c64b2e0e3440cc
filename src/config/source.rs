//! The places that values come from, and the error that names them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The place from which a value was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// The built-in default.
    Default,
    /// An argument of `evloopd`.
    CommandLine,
    /// A line of a file.
    File {
        /// The file's path.
        path: PathBuf,
        /// The line, counted from 1; 0 means the file as a whole.
        line: usize,
    },
}

impl Source {
    pub(super) fn whole(path: &Path) -> Self {
        Self::File {
            path: path.to_owned(),
            line: 0,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::CommandLine => f.write_str("command line"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// The error of a wrong configuration: one line `FILE:LINE: KEY: what is wrong, what is allowed`
/// per finding, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    pub(super) const fn new(lines: Vec<String>) -> Self {
        Self(lines)
    }

    /// The lines: one per finding, at most 100. If there are more, one last line says how many.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}
