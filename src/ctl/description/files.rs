//! What is special to paths and files.

use super::super::table::Sheet;
use super::super::units::{counted, grouped, size};
use crate::proto::{FileStatus, PathStatus};

pub(super) fn path(sheet: &mut Sheet, s: &PathStatus) {
    let state = match (s.synced, s.unwatched) {
        (false, _) => "being scanned".to_owned(),
        (true, 0) => counted(s.directories, "directory", "directories"),
        (true, missing) => format!("{}, {missing} not", grouped(s.directories)),
    };
    sheet.line("watched", state);
    sheet.line("rescans", grouped(s.rescans));
    let (used, most) = (grouped(s.kernel_watches), grouped(s.kernel_watches_max));
    let user = grouped(s.user_watches_max);
    sheet.line(
        "inotify",
        format!("{used} of {most} on the loop, {user} of the user"),
    );
}

pub(super) fn file(sheet: &mut Sheet, s: &FileStatus) {
    let reading = if s.reading_paused { ", paused" } else { "" };
    let (read, left) = (size(s.offset), size(s.unread_bytes));
    sheet.line("read", format!("{read}, {left} left{reading}"));
    sheet.line(
        "files",
        format!("{} so far, {} open", s.generation, s.open_files),
    );
    if s.deleted_bytes > 0 {
        sheet.line(
            "holds",
            format!("{} of deleted files", size(s.deleted_bytes)),
        );
    }
    if s.given_up > 0 {
        let lost = size(s.given_up_bytes);
        sheet.line("given up", format!("{} files, {lost} at least", s.given_up));
    }
}
