//! Starting a child: what can fail, and at which step.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};

use super::{Program, Stdio};
use crate::error::{Error, Result, SystemError};
use crate::sys;

/// Where programs are looked up when the environment has no PATH, as execvp(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// All that execve(2) needs.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) program: Program,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
    /// stdin, stdout, stderr.
    pub(super) stdio: [Stdio; 3],
}

/// A child that runs, and the daemon's ends of its pipes (non-blocking).
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) pipes: [Option<OwnedFd>; 3],
}

/// Starts it, in a process group of its own.
///
/// # Errors
/// The errno, and the step: `chdir`, `lookup`, `pipe`, `fork`, `exec` or `pidfd_open`. Nothing
/// runs after an error.
pub(super) fn spawn(recipe: &Recipe, file_limit: &Rlimit) -> Result<Spawned> {
    check_cwd(&recipe.cwd)?;
    let (path, argv) = match &recipe.program {
        Program::Shell(line) => {
            let argv = ["sh", "-c", line].map(str::to_owned);
            (PathBuf::from("/bin/sh"), argv.to_vec())
        }
        Program::Exec(argv) => {
            let name = argv.first().ok_or(Error::Internal("an empty argv"))?;
            (lookup(name, &recipe.env, &recipe.cwd)?, argv.clone())
        }
    };
    let argv: Vec<CString> = argv
        .iter()
        .map(|arg| c_string(arg.as_bytes()))
        .collect::<Result<_>>()?;
    let env = recipe
        .env
        .iter()
        .map(|(k, v)| c_string(format!("{k}={v}").as_bytes()));
    let env: Vec<CString> = env.collect::<Result<_>>()?;

    let mut ours = [None, None, None];
    let mut theirs = [None, None, None];
    for (index, stdio) in recipe.stdio.iter().enumerate() {
        if *stdio == Stdio::Pipe {
            let (our_end, their_end) = pipe(index == 0)?;
            (ours[index], theirs[index]) = (Some(our_end), Some(their_end));
        }
    }
    let stdio = theirs.each_ref().map(|end| {
        end.as_ref()
            .map_or(sys::Stdio::Null, |fd| sys::Stdio::Fd(fd.as_fd()))
    });
    let pid = sys::spawn(&sys::Launch {
        path: &c_string(path.as_os_str().as_bytes())?,
        argv: &argv,
        env: &env,
        cwd: &c_string(recipe.cwd.as_os_str().as_bytes())?,
        stdio,
    })
    .map_err(|errno| {
        let step = match errno {
            Errno::AGAIN | Errno::NOMEM => "fork",
            _ => "exec",
        };
        SystemError::new(errno, step, path.display().to_string())
    })?;
    let pidfd = pidfd(pid)?;
    // It may have ended by now, and needs no limit then.
    let _ = rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, *file_limit);
    Ok(Spawned {
        pid,
        pidfd,
        pipes: ours,
    })
}

/// Opens the pidfd of a child that nobody has waited for: the number is its own.
fn pidfd(pid: i32) -> Result<OwnedFd> {
    let child = Pid::from_raw(pid).ok_or(Error::Internal("a child without a number"))?;
    let opened = rustix::process::pidfd_open(child, PidfdFlags::empty());
    opened.map_err(|errno| {
        let _ = sys::kill_group(pid, nix::libc::SIGKILL);
        let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        SystemError::new(errno, "pidfd_open", "").into()
    })
}

/// What chdir(2) would say in the child, where it could not be told from execve(2).
fn check_cwd(cwd: &Path) -> Result<(), SystemError> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(cwd, flags, Mode::empty())
        .and_then(|dir| rustix::fs::accessat(&dir, ".", Access::EXEC_OK, AtFlags::EACCESS))
        .map_err(|errno| SystemError::new(errno, "chdir", cwd.display().to_string()))
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid("spec.process", "must not contain NUL"))
}

/// A pipe: our end, non-blocking (nobody else has that end), and the child's.
fn pipe(child_reads: bool) -> Result<(OwnedFd, OwnedFd)> {
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

/// The file that execvp(3) would execute.
fn lookup(name: &str, env: &BTreeMap<String, String>, cwd: &Path) -> Result<PathBuf, SystemError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let mut errno = Errno::NOENT;
    for dir in path.split(':') {
        // An empty element is the working directory (environ(7)).
        let candidate = cwd.join(dir).join(name);
        if !candidate.is_file() {
            continue;
        }
        match rustix::fs::accessat(CWD, &candidate, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => return Ok(candidate),
            Err(_) => errno = Errno::ACCESS,
        }
    }
    let detail = format!("`{name}` in PATH={path}");
    Err(SystemError::new(errno, "lookup", detail))
}
