//! The client processes: `evloopd demo-client ROLE SOCKET [ARGUMENT]`.
//!
//! | role | function |
//! |---|---|
//! | `run` | runs the numbering child through evloopd, or joins it after a cursor |
//! | `plain` | runs the same child as a plain subprocess of its own |
//! | `plain-again` | asks for the status of such a child, whose process id it is given |
//! | `tour` | adds one watch of each kind on a loop with the named backend |
//!
//! `run` and `tour` write the daemon's messages to stdout; the others write lines of text.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::numbers::command_line;
use super::process::pass_on;
use super::{Answer as _, During as _, Failure, script};
use crate::client;
use crate::event::Cursor;
use crate::proto::process_service_client::ProcessServiceClient;
use crate::proto::{self, ProcessSpec, RunRequest, process_spec};

/// The name of the numbering child on its loop.
pub(super) const CHILD_NAME: &str = "numbers";

/// Exit code of `plain-again` if it cannot get the child's status.
pub(super) const LOST: u8 = 3;

/// Runs the client that `args` name.
pub(super) async fn play(args: &[String]) -> Result<ExitCode, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["run", socket] => run(Path::new(socket), None).await,
        ["run", socket, after] => run(Path::new(socket), Some(cursor(after)?)).await,
        ["plain", _] => plain(),
        ["plain-again", _, child] => plain_again(child),
        ["tour", socket, backend, policy] => script::play(Path::new(socket), backend, policy).await,
        _ => Err(Failure::Missing("no such role".to_owned())),
    }
}

fn cursor(text: &str) -> Result<proto::Cursor, Failure> {
    let cursor: Cursor = text
        .parse()
        .map_err(|why| Failure::Missing(format!("{text}: {why}")))?;
    Ok(proto::Cursor {
        epoch: cursor
            .epoch
            .map(|epoch| epoch.to_string())
            .unwrap_or_default(),
        seq: cursor.seq,
    })
}

/// Runs the child, or joins it if it exists. The first client and the later one differ only in
/// `after`.
async fn run(socket: &Path, after: Option<proto::Cursor>) -> Result<ExitCode, Failure> {
    let connected = client::connect(Some(socket)).await;
    let channel = connected
        .map_err(|error| Failure::Missing(error.to_string()))?
        .channel;
    let request = RunRequest {
        name: CHILD_NAME.to_owned(),
        spec: Some(ProcessSpec {
            command: Some(process_spec::Command::Shell(command_line())),
            ..ProcessSpec::default()
        }),
        after,
        ..RunRequest::default()
    };
    let mut answers = ProcessServiceClient::new(channel)
        .run(request)
        .await
        .answer("Run")?;
    while let Some(answer) = answers
        .message()
        .await
        .map_err(|s| Failure::refused("Run", s))?
    {
        pass_on(&answer)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plain() -> Result<ExitCode, Failure> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &command_line()])
        .stdout(Stdio::piped())
        .spawn()
        .during("start the child")?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", child.id()).during("write")?;
    if let Some(mut lines) = child.stdout.take() {
        let mut buffer = [0; 4096];
        loop {
            let len = lines.read(&mut buffer).during("read")?;
            if len == 0 {
                break;
            }
            out.write_all(&buffer[..len])
                .and_then(|()| out.flush())
                .during("write")?;
        }
    }
    let status = child.wait().during("wait for the child")?;
    writeln!(out, "{status}").during("write")?;
    Ok(ExitCode::SUCCESS)
}

fn plain_again(child: &str) -> Result<ExitCode, Failure> {
    let number = child
        .parse()
        .map_err(|_| io::ErrorKind::InvalidInput)
        .during("read the number")?;
    let (finding, code) = match waitpid(Pid::from_raw(number), Some(WaitPidFlag::WNOHANG)) {
        Err(errno @ Errno::ECHILD) => {
            let why = errno.desc();
            (format!("{why}: lost, its status unknown"), LOST)
        }
        other => (format!("{other:?}"), 0),
    };
    writeln!(io::stdout(), "waitpid({child}): {finding}").during("write")?;
    Ok(ExitCode::from(code))
}
