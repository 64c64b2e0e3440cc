//! Runs of `evloopctl`, to the end or line by line, and a proxy whose connections can be cut.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::common::within;

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Returns the stdout of a run that succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Returns the lines of its stdout, parsed as JSON.
    pub(crate) fn values(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Asserts that it failed with this code and one line on stderr with all of these words.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word} is not in {self:?}");
        }
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_evloopctl");

/// Gives the signals that tests send their default actions, in this process and so in all that it starts: nohup(1), and
/// a shell that starts the tests in the background, has them ignored.
#[allow(unsafe_code)]
pub(crate) fn heed_signals() {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: it replaces no handler that anything here relies on.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.unwrap();
    }
}

fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args);
    surrounded(command, socket)
}

fn surrounded(mut command: Command, socket: &Path) -> Command {
    heed_signals();
    command
        .env("EVLOOPD_SOCKET", socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs evloopctl to its end, through another program such as `["env", "A=b"]`.
pub(crate) async fn ctl_from(socket: &Path, launcher: &[&OsStr], args: &[&OsStr]) -> Ended {
    let words = [launcher, &[OsStr::new(PROGRAM)], args].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    run(surrounded(command, socket)).await
}

/// Runs evloopctl to its end.
pub(crate) async fn ctl(socket: &Path, args: &[&str]) -> Ended {
    run(command(socket, args)).await
}

/// Runs evloopctl to its end with that stdin.
pub(crate) async fn fed(socket: &Path, args: &[&str], stdin: impl Into<Stdio>) -> Ended {
    let mut command = command(socket, args);
    command.stdin(stdin);
    run(command).await
}

/// Runs evloopctl to its end, with colours although the output is no terminal.
pub(crate) async fn coloured(socket: &Path, args: &[&str]) -> Ended {
    let mut command = command(socket, args);
    command.env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
    run(command).await
}

async fn run(mut command: Command) -> Ended {
    let output = within("the end of evloopctl", command.output()).await;
    let output = output.unwrap();
    Ended {
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run whose output is read line by line.
pub(crate) struct Following {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Following {
    pub(crate) fn start(socket: &Path, args: &[&str]) -> Self {
        let mut child = command(socket, args).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let lines = Some(BufReader::new(stdout).lines());
        Self { child, lines }
    }

    /// Returns the next line.
    pub(crate) async fn line(&mut self) -> String {
        match self.line_or_end().await {
            Some(line) => line,
            None => panic!("evloopctl ended: {:?}", self.stderr().await),
        }
    }

    /// Returns the next line, or `None` at the end.
    pub(crate) async fn line_or_end(&mut self) -> Option<String> {
        let lines = self.lines.as_mut().expect("stdout is not closed");
        within("a line", lines.next_line()).await.unwrap()
    }

    /// Returns the next line of its stderr.
    pub(crate) async fn complaint(&mut self) -> String {
        let stderr = self.child.stderr.as_mut().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let byte = within("a line of stderr", stderr.read_u8()).await;
            line.push(byte.unwrap_or_else(|_| panic!("evloopctl ended after {line:?}")));
        }
        String::from_utf8(line).unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Reads lines of JSON up to the sequence number `through`, and returns their sequence numbers.
    pub(crate) async fn seqs(&mut self, through: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.last() < Some(&through) {
            let value: Value = serde_json::from_str(&self.line().await).unwrap();
            seqs.push(value["seq"].as_u64().unwrap_or_else(|| panic!("{value}")));
        }
        seqs
    }

    /// Closes the reading end of its stdout.
    pub(crate) fn stop_reading(&mut self) {
        self.lines = None;
    }

    /// Kills it, whatever it is doing.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn stderr(&mut self) -> String {
        let mut text = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        let read = within("its stderr", stderr.read_to_string(&mut text));
        read.await.unwrap();
        text
    }

    /// Waits for its end, and returns its code and the output that was not read yet.
    pub(crate) async fn ended(mut self) -> Ended {
        let mut stdout = String::new();
        while let Some(lines) = &mut self.lines
            && let Some(line) = within("a line", lines.next_line()).await.unwrap()
        {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        let stderr = self.stderr().await;
        let status = within("the end of evloopctl", self.child.wait()).await;
        let status = status.unwrap();
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
        }
    }
}

/// A socket in front of a daemon's, whose connections can be cut.
pub(crate) struct Proxy {
    pub(crate) socket: PathBuf,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    pub(crate) fn before(daemon: &Path) -> Self {
        let socket = daemon.with_extension("proxy");
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (all, daemon) = (Arc::clone(&connections), daemon.to_owned());
        let acceptor = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = UnixStream::connect(&daemon).await.unwrap();
                let connection = tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
                all.lock().unwrap().push(connection);
            }
        });
        Self {
            socket,
            connections,
            acceptor,
        }
    }

    /// Cuts all present connections and returns their number. New connections are accepted.
    pub(crate) async fn cut(&self) -> usize {
        let cut = std::mem::take(&mut *self.connections.lock().unwrap());
        let mut count = 0;
        for connection in cut {
            count += usize::from(!connection.is_finished());
            connection.abort();
            let _ = connection.await;
        }
        count
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}
