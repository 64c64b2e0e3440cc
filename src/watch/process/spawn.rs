//! Starts a child, and reports at which step that failed.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::terminal::Pty;
use super::{Attributes, Program, Stdio};
use crate::cgroup::{Cgroups, Group};
use crate::error::{Error, Result, SystemError};
use crate::proto::TerminalSize;
use crate::sys::{self, Step};

/// The directories in which programs are looked up if the environment has no PATH, as execvp(3)
/// does.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
const SHELL: &CStr = c"/bin/sh";

/// Everything that is set up before the program is executed.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) program: Program,
    /// `NAME=value`
    pub(super) env: Arc<[CString]>,
    pub(super) cwd: CString,
    /// The targets of stdin, stdout and stderr.
    pub(super) stdio: [Stdio; 3],
    /// The size of the terminal, if one of them is it.
    pub(super) terminal: TerminalSize,
    pub(super) attributes: Attributes,
}

/// A running child, and the daemon's ends of its pipes (non-blocking).
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) pipes: [Option<OwnedFd>; 3],
    /// The cgroup that it was started in.
    pub(super) group: Option<Group>,
    pub(super) terminal: Option<Pty>,
}

/// Starts the child, in a session of its own.
///
/// # Errors
/// The errno, and the step: `lookup`, `pipe`, `pty`, `fork`, or one that the child takes: `setsid`,
/// `terminal`, `stdio`, `oom_score_adj`, `chdir`, `setrlimit`, `nice` or `exec`. No child runs after
/// an error.
pub(super) fn spawn(recipe: Recipe, cgroups: &Cgroups) -> Result<Spawned> {
    let (path, argv) = match recipe.program {
        Program::Shell(line) => (SHELL.to_owned(), vec![c"sh".into(), c"-c".into(), line]),
        Program::Exec(argv) => {
            let name = argv.first().ok_or(Error::Internal("argv is empty"))?;
            (lookup(name, &recipe.env, &recipe.cwd)?, argv)
        }
    };
    let [stdin, stdout, stderr] = recipe.stdio;
    let mut null = None;
    let has_terminal = recipe.stdio.contains(&Stdio::Pty);
    let terminal = has_terminal.then(|| Pty::open(recipe.terminal));
    let terminal = terminal.transpose()?;
    let (our_stdin, stdin) = stream(stdin, true, &mut null)?;
    let (our_stdout, stdout) = stream(stdout, false, &mut null)?;
    let (our_stderr, stderr) = stream(stderr, false, &mut null)?;
    // A stream that is none of its own is the terminal.
    let slave = terminal.as_ref().map(|pty| pty.slave.as_fd());
    let attributes = &recipe.attributes;
    let limits = attributes.limits.iter();
    let limits: Vec<_> = limits.map(|(r, l)| (r.kernel(), (*l).into())).collect();
    let oom_score_adj = attributes.oom_score_adj.map(|adj| adj.to_string());
    let mut group = cgroups.make();
    let directory = match &group {
        Some(group) => group.open().ok(),
        None => None,
    };
    let mut launch = sys::Launch {
        path: &path,
        argv: &argv,
        env: &recipe.env,
        cwd: &recipe.cwd,
        stdio: [
            child_end(&stdin, slave)?,
            child_end(&stdout, slave)?,
            child_end(&stderr, slave)?,
        ],
        terminal: slave,
        umask: attributes.umask.map(Mode::from_bits_truncate),
        limits: &limits,
        nice: attributes.nice,
        oom_score_adj: oom_score_adj.as_ref().map(String::as_bytes),
        cgroup: directory.as_ref().map(AsFd::as_fd),
    };
    let mut spawned = sys::spawn(&launch);
    if let Err((Step::Fork, errno)) = spawned
        && launch.cgroup.is_some()
        && cgroups.refused(errno)
    {
        launch.cgroup = None;
        spawned = sys::spawn(&launch);
    }
    if launch.cgroup.is_none() {
        group = None;
    }
    let (pid, pidfd) =
        spawned.map_err(|(step, errno)| failed(step, errno, &path, &recipe.cwd, attributes))?;
    Ok(Spawned {
        pid,
        pidfd,
        pipes: [our_stdin, our_stdout, our_stderr],
        group,
        terminal,
    })
}

/// Returns the error for a step that the system refused.
fn failed(
    step: Step,
    errno: Errno,
    path: &CStr,
    cwd: &CStr,
    attributes: &Attributes,
) -> SystemError {
    let text = |of: &CStr| of.to_string_lossy().into_owned();
    let number = |of: Option<i32>| of.map_or_else(String::new, |of| of.to_string());
    let (step, detail) = match step {
        Step::Fork => ("fork", text(path)),
        Step::Setsid => ("setsid", String::new()),
        Step::Terminal => ("terminal", String::new()),
        Step::Stdio => ("stdio", String::new()),
        Step::OomScoreAdj => ("oom_score_adj", number(attributes.oom_score_adj)),
        Step::Chdir => ("chdir", text(cwd)),
        Step::Setrlimit(resource) => {
            let mut limits = attributes.limits.iter();
            let limit = limits.find(|(of, _)| of.kernel() == resource);
            let shown = limit.map(|(resource, limit)| format!("{}={limit}", resource.name()));
            ("setrlimit", shown.unwrap_or_default())
        }
        Step::Nice => ("nice", number(attributes.nice)),
        Step::Exec => ("exec", text(path)),
    };
    SystemError::new(errno, step, detail)
}

/// Returns the child's end of a stream: its own, or the terminal.
fn child_end<'a>(
    own: &'a Option<Rc<OwnedFd>>,
    terminal: Option<BorrowedFd<'a>>,
) -> Result<BorrowedFd<'a>> {
    let end = own.as_ref().map(|own| own.as_fd()).or(terminal);
    end.ok_or(Error::Internal("a stream has no descriptor"))
}

/// Makes one of the child's first three descriptors. Returns the daemon's end, if it is a pipe, and
/// the child's, unless it is the terminal. All streams that are `/dev/null` share one descriptor.
fn stream(
    stdio: Stdio,
    child_reads: bool,
    null: &mut Option<Rc<OwnedFd>>,
) -> Result<(Option<OwnedFd>, Option<Rc<OwnedFd>>), SystemError> {
    match (stdio, &*null) {
        (Stdio::Pty, _) => Ok((None, None)),
        (Stdio::Pipe, _) => {
            pipe(child_reads).map(|(ours, theirs)| (Some(ours), Some(theirs.into())))
        }
        (Stdio::Null, Some(null)) => Ok((None, Some(Rc::clone(null)))),
        (Stdio::Null, None) => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let opened = rustix::fs::open(c"/dev/null", flags, Mode::empty());
            let opened = opened.map_err(|errno| SystemError::new(errno, "stdio", "/dev/null"))?;
            Ok((None, Some(Rc::clone(null.insert(opened.into())))))
        }
    }
}

/// Opens a pipe. Returns the daemon's end, non-blocking (no other process has that end), and the
/// child's.
fn pipe(child_reads: bool) -> Result<(OwnedFd, OwnedFd), SystemError> {
    let error = |errno| SystemError::new(errno, "pipe", "");
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
    let (ours, theirs) = if child_reads {
        (writer, reader)
    } else {
        (reader, writer)
    };
    rustix::io::ioctl_fionbio(ours.as_fd(), true).map_err(error)?;
    Ok((ours, theirs))
}

/// Returns the file that execvp(3) would execute.
fn lookup(name: &CStr, env: &[CString], cwd: &CStr) -> Result<CString> {
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let mut variables = env.iter().map(CString::as_bytes);
    let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH);
    let [name, cwd] = [name, cwd].map(|text| OsStr::from_bytes(text.to_bytes()));
    let mut errno = Errno::NOENT;
    for dir in path.split(|byte| *byte == b':') {
        // An empty element means the working directory (environ(7)).
        let candidate = Path::new(cwd).join(OsStr::from_bytes(dir)).join(name);
        if !candidate.is_file() {
            continue;
        }
        match rustix::fs::accessat(CWD, &candidate, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => {
                let found = CString::new(candidate.into_os_string().into_encoded_bytes());
                return found.map_err(|_| Error::Internal("a path contains NUL"));
            }
            Err(_) => errno = Errno::ACCESS,
        }
    }
    let detail = format!("`{}` in PATH", name.display());
    Err(SystemError::new(errno, "lookup", detail).into())
}
