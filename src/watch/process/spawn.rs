//! Starts a child, and reports at which step that failed.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::order::{FileTarget, Scheduling};
use super::pty::Opened;
use super::{Attributes, Program, Stdio};
use crate::cgroup::{Cgroups, Group};
use crate::error::{Error, Result, SystemError};
use crate::proto::TerminalSize;
use crate::sys::{self, Credentials, Origin, Place, Step};

/// The directories in which programs are looked up if the environment has no PATH, as execvp(3)
/// does.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
const SHELL: &CStr = c"/bin/sh";

/// Everything that is set up before the program is executed.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    pub(super) program: Program,
    /// `NAME=value`
    pub(super) env: Arc<[CString]>,
    pub(super) cwd: CString,
    /// The targets of stdin, stdout and stderr.
    pub(super) stdio: [Stdio; 3],
    /// The descriptors that were handed over.
    pub(super) given: &'a [BorrowedFd<'a>],
    /// Further descriptors: their number, and their index in `given`.
    pub(super) passed: Vec<(i32, usize)>,
    /// The size of the terminal, if one of the streams is it.
    pub(super) terminal: TerminalSize,
    pub(super) user: Option<Credentials>,
    pub(super) scheduling: Option<Scheduling>,
    pub(super) new_session: bool,
    pub(super) death_signal: Option<i32>,
    pub(super) attributes: Attributes,
}

/// A running child, and the daemon's ends of its pipes (non-blocking) and of its terminal.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) pipes: [Option<OwnedFd>; 3],
    /// The cgroup that it was started in.
    pub(super) group: Option<Group>,
    pub(super) terminal: Option<Opened>,
}

/// What the child gets as a stream.
enum Theirs {
    Own(Rc<OwnedFd>),
    Terminal,
    Given(usize),
    File(FileTarget),
    Stdout,
}

/// Starts the child.
///
/// # Errors
/// The errno, and the step: `lookup`, `pty`, `pipe`, `fork`, or one that the child takes: `setsid`,
/// `setpgid`, `terminal`, `oom_score_adj`, `setuid`, `chdir`, `open`, `stdio`, `setrlimit`, `nice`,
/// `sched_setscheduler`, `parent_death_signal` or `exec`. No child runs after an error.
///
/// The child says at `start` that it is there, see [`sys::Launch`].
pub(super) fn spawn(
    recipe: &Recipe<'_>,
    cgroups: &Cgroups,
    start: Option<&AtomicU64>,
) -> Result<Spawned> {
    let shell;
    let (path, argv) = match &recipe.program {
        Program::Shell(line) => {
            shell = [c"sh".into(), c"-c".into(), line.clone()];
            (SHELL.to_owned(), &shell[..])
        }
        Program::Exec(argv) => {
            let name = argv.first().ok_or(Error::Internal("argv is empty"))?;
            (lookup(name, &recipe.env, &recipe.cwd)?, &argv[..])
        }
    };
    let user = recipe.user.as_ref();
    let terminal = recipe.stdio.contains(&Stdio::Pty);
    let terminal = terminal.then(|| Opened::open(recipe.terminal, user));
    let terminal = terminal.transpose()?;
    let mut null = None;
    let mut stream = |index: usize, child_reads| {
        stream(recipe.stdio[index].clone(), child_reads, user, &mut null)
    };
    let (our_stdin, stdin) = stream(0, true)?;
    let (our_stdout, stdout) = stream(1, false)?;
    let (our_stderr, stderr) = stream(2, false)?;
    let theirs = [stdin, stdout, stderr];
    let given = |index: usize| {
        let given = recipe.given.get(index).copied().map(Origin::Given);
        given.ok_or(Error::Internal("a descriptor of a child is missing"))
    };
    let mut places = Vec::new();
    for (number, theirs) in (0..).zip(&theirs) {
        let origin = match theirs {
            Theirs::Own(fd) => Origin::Given(fd.as_fd()),
            Theirs::Given(index) => given(*index)?,
            Theirs::Stdout => Origin::Same(1),
            Theirs::File(file) => Origin::File {
                path: &file.path,
                flags: file.flags,
                permissions: file.permissions,
            },
            Theirs::Terminal => {
                let opened = terminal.as_ref();
                let opened = opened.ok_or(Error::Internal("a child's terminal is missing"))?;
                Origin::Given(opened.slave.as_fd())
            }
        };
        places.push(Place { number, origin });
    }
    for (number, index) in &recipe.passed {
        places.push(Place {
            number: *number,
            origin: given(*index)?,
        });
    }
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
        argv,
        env: &recipe.env,
        cwd: &recipe.cwd,
        descriptors: &places,
        new_session: recipe.new_session,
        terminal: terminal.as_ref().map(|opened| opened.slave.as_fd()),
        umask: attributes.umask.map(Mode::from_bits_truncate),
        limits: &limits,
        nice: attributes.nice,
        oom_score_adj: oom_score_adj.as_ref().map(String::as_bytes),
        scheduling: recipe.scheduling.map(|scheduling| sys::Scheduling {
            policy: scheduling.policy,
            priority: scheduling.priority,
        }),
        user,
        death_signal: recipe.death_signal,
        start,
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
    let (pid, pidfd) = spawned.map_err(|(step, errno)| failed(step, errno, &path, recipe))?;
    Ok(Spawned {
        pid,
        pidfd,
        pipes: [our_stdin, our_stdout, our_stderr],
        group,
        terminal,
    })
}

/// Returns the error for a step that the system refused.
fn failed(step: Step, errno: Errno, path: &CStr, recipe: &Recipe<'_>) -> SystemError {
    let text = |of: &CStr| of.to_string_lossy().into_owned();
    let number = |of: Option<i32>| of.map_or_else(String::new, |of| of.to_string());
    let attributes = &recipe.attributes;
    let (step, detail) = match step {
        Step::Fork => ("fork", text(path)),
        Step::Setsid => ("setsid", String::new()),
        Step::Setpgid => ("setpgid", String::new()),
        Step::Terminal => ("terminal", String::new()),
        Step::Stdio => ("stdio", String::new()),
        Step::OomScoreAdj => ("oom_score_adj", number(attributes.oom_score_adj)),
        Step::User => {
            let user = recipe.user.as_ref();
            let shown = user.map(|user| format!("uid {}, gid {}", user.uid, user.gid));
            ("setuid", shown.unwrap_or_default())
        }
        Step::Chdir => ("chdir", text(&recipe.cwd)),
        Step::Open(of) => {
            let stdio = usize::try_from(of).ok().and_then(|of| recipe.stdio.get(of));
            let path = match stdio {
                Some(Stdio::File(file)) => text(&file.path),
                _ => String::new(),
            };
            ("open", path)
        }
        Step::Setrlimit(resource) => {
            let mut limits = attributes.limits.iter();
            let limit = limits.find(|(of, _)| of.kernel() == resource);
            let shown = limit.map(|(resource, limit)| format!("{}={limit}", resource.name()));
            ("setrlimit", shown.unwrap_or_default())
        }
        Step::Nice => ("nice", number(attributes.nice)),
        Step::Scheduler => ("sched_setscheduler", String::new()),
        Step::DeathSignal => ("parent_death_signal", number(recipe.death_signal)),
        Step::Exec => ("exec", text(path)),
    };
    SystemError::new(errno, step, detail)
}

/// Makes one of the child's first three descriptors. Returns the daemon's end, if it is a pipe, and
/// the child's, unless it is the terminal. All streams that are `/dev/null` share one descriptor.
fn stream(
    stdio: Stdio,
    child_reads: bool,
    user: Option<&Credentials>,
    null: &mut Option<Rc<OwnedFd>>,
) -> Result<(Option<OwnedFd>, Theirs), SystemError> {
    let theirs = match (stdio, &*null) {
        (Stdio::Pipe, _) => {
            let (ours, theirs) = pipe(child_reads, user)?;
            return Ok((Some(ours), Theirs::Own(theirs.into())));
        }
        (Stdio::Null, Some(null)) => Theirs::Own(Rc::clone(null)),
        (Stdio::Null, None) => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let opened = rustix::fs::open(c"/dev/null", flags, Mode::empty());
            let opened = opened.map_err(|errno| SystemError::new(errno, "stdio", "/dev/null"))?;
            Theirs::Own(Rc::clone(null.insert(opened.into())))
        }
        (Stdio::Pty, _) => Theirs::Terminal,
        (Stdio::File(file), _) => Theirs::File(file),
        (Stdio::Given(index), _) => Theirs::Given(index),
        (Stdio::Stdout, _) => Theirs::Stdout,
    };
    Ok((None, theirs))
}

/// Opens a pipe. Returns the daemon's end, non-blocking (no other process has that end), and the
/// child's. The pipe belongs to the child's user, so that the child can open `/dev/stdout`.
fn pipe(child_reads: bool, user: Option<&Credentials>) -> Result<(OwnedFd, OwnedFd), SystemError> {
    let error = |errno| SystemError::new(errno, "pipe", "");
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
    if let Some(user) = user {
        rustix::fs::fchown(&reader, Some(user.uid), Some(user.gid)).map_err(error)?;
    }
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
