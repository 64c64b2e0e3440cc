//! Checks of what the descriptors of a child are connected to.

use std::ffi::CString;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use super::Checks;
use super::process::{c_string, either, utf8};
use crate::config::UMASK_MAX;
use crate::error::{Error, Result};
use crate::handover::Claimed;
use crate::proto;
use crate::watch::{FileTarget, Stdio};

/// The most rows and columns of a terminal: programs keep memory for all of them.
const TERMINAL_MAX: u32 = 1000;
/// Most descriptors that a child is given beside its standard streams.
const PASSED_MAX: usize = 64;
/// The numbers that they may have.
const NUMBERS: std::ops::RangeInclusive<u32> = 3..=1023;
/// The permissions of a new file, less the umask, if none are given.
const PERMISSIONS: u32 = 0o666;

/// The descriptors of a child, as they were asked for.
pub(super) struct Descriptors {
    pub(super) stdio: [Stdio; 3],
    /// The numbers of further ones, ascending, and their indices in `claimed`.
    pub(super) passed: Vec<(i32, usize)>,
    /// Those that were handed over.
    pub(super) claimed: Vec<Claimed>,
}

/// The names of the fields of one stream.
struct Names {
    stream: &'static str,
    file: &'static str,
    slot: &'static str,
}

const NAMES: [Names; 3] = [
    Names {
        stream: "spec.process.stdin",
        file: "spec.process.stdin_file",
        slot: "spec.process.stdin_slot",
    },
    Names {
        stream: "spec.process.stdout",
        file: "spec.process.stdout_file",
        slot: "spec.process.stdout_slot",
    },
    Names {
        stream: "spec.process.stderr",
        file: "spec.process.stderr_file",
        slot: "spec.process.stderr_slot",
    },
];

/// Returns the slots that a specification names.
pub(super) fn slots(process: &proto::ProcessSpec) -> impl Iterator<Item = &Bytes> {
    let streams = [
        &process.stdin_slot,
        &process.stdout_slot,
        &process.stderr_slot,
    ];
    let passed = process.passed.iter().map(|passed| &passed.slot);
    let all = streams.into_iter().chain(passed);
    all.filter(|slot| !slot.is_empty())
}

/// Checks the descriptors, and takes those that were handed over out of their slots. In `process`,
/// paths that are UTF-8 become text, and no slots are left.
pub(super) fn descriptors(
    checks: &Checks<'_>,
    process: &mut proto::ProcessSpec,
) -> Result<Descriptors> {
    let mut claimed = Vec::new();
    let given = [
        (
            process.stdin,
            &mut process.stdin_file,
            &mut process.stdin_slot,
        ),
        (
            process.stdout,
            &mut process.stdout_file,
            &mut process.stdout_slot,
        ),
        (
            process.stderr,
            &mut process.stderr_file,
            &mut process.stderr_slot,
        ),
    ];
    let mut stdio = [const { Stdio::Null }; 3];
    for (index, ((asked, file, slot), names)) in given.into_iter().zip(&NAMES).enumerate() {
        stdio[index] = stream(checks, &mut claimed, (asked, file, slot), index, names)?;
    }
    if stdio[1] != Stdio::Pty && stdio.contains(&Stdio::Pty) {
        return Err(Error::invalid(
            NAMES[1].stream,
            "must be PTY, because another stream is: the output of a terminal is stdout's",
        ));
    }
    let passed = passed(checks, &mut claimed, &mut process.passed)?;
    Ok(Descriptors {
        stdio,
        passed,
        claimed,
    })
}

/// Checks one stream; 0 is stdin.
fn stream(
    checks: &Checks<'_>,
    claimed: &mut Vec<Claimed>,
    (asked, file, slot): (i32, &mut Option<proto::FileStdio>, &mut Bytes),
    index: usize,
    names: &Names,
) -> Result<Stdio> {
    let asked = proto::Stdio::try_from(asked);
    if file.is_some() && asked != Ok(proto::Stdio::File) {
        let allowed = "must be absent: the stream is not FILE";
        return Err(Error::invalid(names.file, allowed));
    }
    if !slot.is_empty() && asked != Ok(proto::Stdio::Slot) {
        let allowed = "must be empty: the stream is not SLOT";
        return Err(Error::invalid(names.slot, allowed));
    }
    Ok(match asked {
        Ok(proto::Stdio::Unspecified) if index == 0 => Stdio::Null,
        Ok(proto::Stdio::Unspecified | proto::Stdio::Pipe) => Stdio::Pipe,
        Ok(proto::Stdio::Null) => Stdio::Null,
        Ok(proto::Stdio::Pty) => Stdio::Pty,
        Ok(proto::Stdio::File) => Stdio::File(file_target(names.file, file.as_mut(), index == 0)?),
        Ok(proto::Stdio::Slot) => Stdio::Given(claim(checks, claimed, names.slot, slot)?),
        Ok(proto::Stdio::Stdout) if index == 2 => Stdio::Stdout,
        Ok(proto::Stdio::Stdout) => {
            let allowed = "must be NULL, PIPE, PTY, FILE or SLOT: only stderr can be STDOUT";
            return Err(Error::invalid(names.stream, allowed));
        }
        Err(_) => {
            let allowed = "must be NULL, PIPE, PTY, FILE, SLOT or, for stderr, STDOUT";
            return Err(Error::invalid(names.stream, allowed));
        }
    })
}

fn claim(
    checks: &Checks<'_>,
    claimed: &mut Vec<Claimed>,
    field: &'static str,
    slot: &mut Bytes,
) -> Result<usize> {
    let slot = std::mem::take(slot);
    claimed.push(checks.api.slots.claim(field, checks.peer, &slot)?);
    Ok(claimed.len() - 1)
}

fn file_target(
    field: &'static str,
    file: Option<&mut proto::FileStdio>,
    is_stdin: bool,
) -> Result<FileTarget> {
    let Some(file) = file else {
        return Err(Error::invalid(field, "must be set: the stream is FILE"));
    };
    either(field, file.path.is_empty() || file.path_bytes.is_empty())?;
    let path: &[u8] = if file.path_bytes.is_empty() {
        file.path.as_bytes()
    } else {
        &file.path_bytes
    };
    if !path.starts_with(b"/") {
        return Err(Error::invalid(field, "must have an absolute path"));
    }
    let path: CString = c_string(field, path)?;
    if let Some(text) = utf8(&file.path_bytes).filter(|text| !text.is_empty()) {
        file.path = text;
        file.path_bytes.clear();
    }
    let permissions = file.permissions.unwrap_or(PERMISSIONS);
    if permissions > UMASK_MAX {
        return Err(Error::invalid(
            field,
            "must have permissions from 0 to 0777 (octal)",
        ));
    }
    use proto::FileMode;
    let create = OFlags::WRONLY | OFlags::CREATE;
    let flags = match (FileMode::try_from(file.mode), is_stdin) {
        (Ok(FileMode::Unspecified | FileMode::Read), true) => OFlags::RDONLY,
        (_, true) => return Err(Error::invalid(field, "must have the mode READ for stdin")),
        (Ok(FileMode::Unspecified | FileMode::Append), false) => create | OFlags::APPEND,
        (Ok(FileMode::Create), false) => create | OFlags::EXCL,
        (Ok(FileMode::Truncate), false) => create | OFlags::TRUNC,
        (Ok(FileMode::Read) | Err(_), false) => {
            let allowed = "must have the mode APPEND, CREATE or TRUNCATE for stdout and stderr";
            return Err(Error::invalid(field, allowed));
        }
    };
    Ok(FileTarget {
        path,
        flags,
        permissions: Mode::from_bits_truncate(permissions),
    })
}

/// Checks further descriptors. In the request, they are sorted by number.
fn passed(
    checks: &Checks<'_>,
    claimed: &mut Vec<Claimed>,
    given: &mut [proto::PassedDescriptor],
) -> Result<Vec<(i32, usize)>> {
    let field = "spec.process.passed";
    if given.len() > PASSED_MAX {
        return Err(Error::invalid(field, "must be at most 64 descriptors"));
    }
    given.sort_by_key(|passed| passed.number);
    let twice = given
        .windows(2)
        .any(|pair| pair[0].number == pair[1].number);
    if twice {
        return Err(Error::invalid(field, "must have each number only once"));
    }
    let mut passed = Vec::new();
    for descriptor in given {
        let number = i32::try_from(descriptor.number).ok();
        let number = number.filter(|_| NUMBERS.contains(&descriptor.number));
        let number = number.ok_or_else(|| {
            let allowed =
                "must have a number from 3 to 1023; stdin, stdout and stderr have their own fields";
            Error::invalid("spec.process.passed.number", allowed)
        })?;
        let field = "spec.process.passed.slot";
        passed.push((number, claim(checks, claimed, field, &mut descriptor.slot)?));
    }
    Ok(passed)
}

/// Checks the options of a terminal, and returns its size.
pub(super) fn terminal(
    has_terminal: bool,
    given: &mut Option<proto::TerminalOptions>,
) -> Result<proto::TerminalSize> {
    if !has_terminal {
        if given.is_some() {
            let none = "must be absent: stdout is not PTY";
            return Err(Error::invalid("spec.process.terminal", none));
        }
        return Ok(proto::TerminalSize::default());
    }
    let terminal = given.get_or_insert_default();
    let size = terminal.size.unwrap_or(proto::TerminalSize {
        rows: 24,
        columns: 80,
    });
    terminal.size = Some(terminal_size("spec.process.terminal.size", size)?);
    if terminal.term.contains('\0') {
        let field = "spec.process.terminal.term";
        return Err(Error::invalid(field, "must not contain NUL"));
    }
    match proto::TerminalSizeOf::try_from(terminal.size_of) {
        Ok(_) => Ok(size),
        Err(_) => Err(Error::invalid(
            "spec.process.terminal.size_of",
            "must be LATEST or SMALLEST",
        )),
    }
}

/// Checks the size of a terminal.
pub(in crate::rpc) fn terminal_size(
    field: &'static str,
    size: proto::TerminalSize,
) -> Result<proto::TerminalSize> {
    let fits = |number| (1..=TERMINAL_MAX).contains(&number);
    if fits(size.rows) && fits(size.columns) {
        return Ok(size);
    }
    let allowed = format!("must have 1 to {TERMINAL_MAX} rows and columns");
    Err(Error::invalid(field, allowed))
}
