//! Starting a child: what can fail, and at which step.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use super::{Program, Stdio};
use crate::error::{Result, SystemError};
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

fn failed(error: &std::io::Error, step: &'static str, detail: &str) -> SystemError {
    SystemError::from_io(error, step, detail)
}

/// Starts it, in a process group of its own.
///
/// # Errors
/// The errno, and the step: `chdir`, `lookup`, `pipe`, `exec`, `fork` or `pidfd_open`. Nothing
/// runs after an error.
pub(super) fn spawn(recipe: &Recipe) -> Result<Spawned> {
    let cwd = recipe.cwd.to_string_lossy();
    // Fails like chdir(2) in the child would, but says at which step.
    let dir = rustix::fs::open(
        &recipe.cwd,
        OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let searchable = dir.and_then(|dir| {
        rustix::fs::accessat(
            &dir,
            ".",
            rustix::fs::Access::EXEC_OK,
            rustix::fs::AtFlags::EACCESS,
        )
    });
    searchable.map_err(|errno| SystemError::new(errno, "chdir", cwd))?;

    let (path, arg0, args): (PathBuf, &str, &[String]) = match &recipe.program {
        Program::Shell(line) => (PathBuf::from("/bin/sh"), "sh", std::slice::from_ref(line)),
        Program::Exec(argv) => {
            let (name, args) = argv
                .split_first()
                .ok_or(crate::error::Error::Internal("empty argv"))?;
            (lookup(name, &recipe.env, &recipe.cwd)?, name, args)
        }
    };
    let mut command = Command::new(&path);
    command.arg0(arg0);
    if matches!(recipe.program, Program::Shell(_)) {
        command.arg("-c");
    }
    command
        .args(args)
        .env_clear()
        .envs(&recipe.env)
        .current_dir(&recipe.cwd)
        .process_group(0);
    let mut pipes = [None, None, None];
    for (index, stdio) in recipe.stdio.iter().enumerate() {
        let theirs = match stdio {
            Stdio::Null => std::process::Stdio::null(),
            Stdio::Pipe => {
                let (ours, theirs) = pipe(index == 0)?;
                pipes[index] = Some(ours);
                theirs.into()
            }
        };
        match index {
            0 => command.stdin(theirs),
            1 => command.stdout(theirs),
            _ => command.stderr(theirs),
        };
    }
    let child = command.spawn().map_err(|error| {
        let step = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => "fork",
            _ => "exec",
        };
        failed(&error, step, &path.to_string_lossy())
    })?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let Some(id) = Pid::from_raw(pid) else {
        return Err(crate::error::Error::Internal("a child without a number"));
    };
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Spawned { pid, pidfd, pipes }),
        Err(errno) => {
            let mut child = child;
            // It is a child that nobody has waited for, so the number is still its own.
            let _ = sys::kill_group(pid, nix::libc::SIGKILL);
            let _ = child.wait();
            Err(SystemError::new(errno, "pidfd_open", "").into())
        }
    }
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
    let mut denied = false;
    for dir in path.split(':') {
        // An empty element is the working directory (environ(7)).
        let candidate = cwd.join(dir).join(name);
        let Ok(meta) = std::fs::metadata(&candidate) else {
            continue;
        };
        if !meta.is_file() {
            continue;
        }
        let executable = rustix::fs::accessat(
            rustix::fs::CWD,
            &candidate,
            rustix::fs::Access::EXEC_OK,
            rustix::fs::AtFlags::EACCESS,
        );
        if executable.is_ok() && meta.permissions().mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        denied = true;
    }
    let errno = if denied { Errno::ACCESS } else { Errno::NOENT };
    let detail = format!("`{name}` in PATH={path}");
    Err(SystemError::new(errno, "lookup", detail))
}
