//! Events of paths and files in words.

use std::fmt::Write as _;

use anstyle::Style;

use super::super::json::word;
use super::super::style::{BAD, DIM, GOOD, NOTICE, PLAIN, printable};
use super::super::units::{counted, grouped};
use super::{Words, system_error};
use crate::proto::{
    FileChangeKind, FileChanged, GiveUpReason, PathChanged, PathRescan, PathRoot, PathSynced,
};

/// Returns a path relative to the root, which is `.` itself.
fn shown(path: &str, bytes: &[u8]) -> String {
    match (path, bytes) {
        ("", []) => ".".to_owned(),
        ("", bytes) => bytes.escape_ascii().to_string(),
        (path, _) => printable(path),
    }
}

impl Words for PathChanged {
    fn words(&self) -> (String, Style) {
        let kinds = self
            .kinds()
            .map(|kind| word(kind.as_str_name(), "PATH_CHANGE_KIND_"));
        let kinds: Vec<_> = kinds.collect();
        let path = shown(&self.path, &self.path_bytes);
        let slash = if self.is_directory { "/" } else { "" };
        let mut text = format!("{} {path}{slash}", kinds.join(" "));
        if !self.from_path.is_empty() || !self.from_path_bytes.is_empty() {
            let _ = write!(
                text,
                " from {}",
                shown(&self.from_path, &self.from_path_bytes)
            );
        }
        if self.count > 1 {
            let _ = write!(text, ", {} times", grouped(self.count));
        }
        (text, PLAIN)
    }
}

impl Words for PathRescan {
    fn words(&self) -> (String, Style) {
        let reason = word(self.reason().as_str_name(), "RESCAN_REASON_");
        let mut text = format!("rescan {}: {reason}", shown(&self.path, &self.path_bytes));
        if let Some(error) = &self.error {
            let _ = write!(text, ", {}", system_error(error));
        }
        (text, NOTICE)
    }
}

impl Words for PathSynced {
    fn words(&self) -> (String, Style) {
        let mut text = format!("synced, {} directories", grouped(self.directories));
        if self.unwatched > 0 {
            let _ = write!(text, ", {} not watched", grouped(self.unwatched));
        }
        (text, DIM)
    }
}

impl Words for PathRoot {
    fn words(&self) -> (String, Style) {
        if self.present {
            let what = if self.is_directory {
                "a directory"
            } else {
                "a file"
            };
            return (format!("appeared, {what}"), GOOD);
        }
        let mut text = format!(
            "gone: {}",
            word(self.reason().as_str_name(), "PATH_GONE_REASON_")
        );
        if let Some(error) = &self.error {
            let _ = write!(text, ", {}", system_error(error));
        }
        (text, NOTICE)
    }
}

impl Words for FileChanged {
    fn words(&self) -> (String, Style) {
        let kind = word(self.change().as_str_name(), "FILE_CHANGE_KIND_");
        let mut text = kind;
        if self.generation > 0 {
            let _ = write!(text, ", file {}", self.generation);
        }
        match self.change() {
            FileChangeKind::Truncated | FileChangeKind::GaveUp => {
                let length = counted(self.length, "byte", "bytes");
                let _ = write!(text, ", at least {length} lost");
            }
            FileChangeKind::Hole => {
                let length = counted(self.length, "byte", "bytes");
                let _ = write!(text, ", {length} at {}", grouped(self.offset));
            }
            _ => {}
        }
        if self.give_up() != GiveUpReason::Unspecified {
            let reason = word(self.give_up().as_str_name(), "GIVE_UP_REASON_");
            let _ = write!(text, ": {reason}");
        }
        if let Some(error) = &self.error {
            let _ = write!(text, ": {}", system_error(error));
        }
        let style = match self.change() {
            FileChangeKind::Reading => DIM,
            FileChangeKind::Appeared | FileChangeKind::Rotated | FileChangeKind::Removed => PLAIN,
            FileChangeKind::Hole => NOTICE,
            _ => BAD,
        };
        (text, style)
    }
}
