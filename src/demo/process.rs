//! The demo's processes and its directory, which are all ended or removed with the demo.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, BufReader, Interest};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;

use super::{During as _, Failure, require};
use crate::sys::async_fd;

/// How long the daemon may take to be ready.
const START_MAX: Duration = Duration::from_secs(10);

/// How long the daemon may take to end before it is killed, in seconds.
const STOP_MAX_SECS: i64 = 5;

/// The longest message that a client passes on, in bytes: more than the limit of gRPC.
const FRAME_MAX: u32 = 16 * 1024 * 1024;

/// The number of log lines that are shown when the daemon fails.
const LAST_WORDS: usize = 10;

/// A directory for the demo, removed with its content when dropped.
#[derive(Debug)]
struct PrivateDir(PathBuf);

impl PrivateDir {
    fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("evloopd-demo-{:016x}", u64::from_le_bytes(random));
        let path = env::temp_dir().join(name);
        // This fails if the path exists.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Returns the path of the daemon's log.
    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // There is nothing to do about files that cannot be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process, killed when dropped.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if the child was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child process whose end can be awaited.
#[derive(Debug)]
struct Process {
    pidfd: AsyncFd<Arc<OwnedFd>>,
    child: Owned,
}

impl Process {
    fn start(command: &mut Command) -> io::Result<Self> {
        // A process group of its own: Ctrl-C reaches only the demo, which ends the others in order.
        let child = Owned(command.process_group(0).spawn()?);
        let pid = Pid::from_child(&child.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let pidfd = async_fd(Arc::new(pidfd), Interest::READABLE)?;
        Ok(Self { pidfd, child })
    }

    fn pid(&self) -> u32 {
        self.child.0.id()
    }

    async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await?.retain_ready();
        Ok(())
    }

    async fn status(&mut self) -> io::Result<ExitStatus> {
        self.ended().await?;
        self.child.0.wait()
    }
}

/// The daemon of the demo, ended when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    process: Process,
    socket: PathBuf,
    /// The last field, so that it is dropped after the daemon has ended.
    dir: PrivateDir,
}

impl Daemon {
    /// Starts the daemon on a socket of its own with the default configuration, and waits until it
    /// is ready.
    pub(super) async fn start() -> Result<Self, Failure> {
        let dir = PrivateDir::new().during("make a temporary directory")?;
        let [socket, config, notify] =
            ["evloopd.sock", "evloopd.toml", "notify.sock"].map(|name| dir.0.join(name));
        let notified = UnixDatagram::bind(&notify).during("bind")?;
        // A separate file, so that the user's configuration is not read.
        fs::write(&config, "version = 1\n").during("write")?;
        let stderr = File::create(dir.log()).during("create")?;
        let process = Process::start(
            this_program()?
                .arg("--no-keeper")
                .arg("--config")
                .arg(&config)
                .arg("--socket")
                .arg(&socket)
                .env("NOTIFY_SOCKET", &notify)
                .stdout(Stdio::null())
                .stderr(stderr),
        )
        .during("start the daemon")?;
        let daemon = Self {
            process,
            socket,
            dir,
        };
        tokio::select! {
            ready = ready(&notified) => ready.during("wait for the daemon")?,
            failure = daemon.failure() => return Err(failure),
            () = tokio::time::sleep(START_MAX) => {
                let late = format!("the daemon is not ready after {START_MAX:?}");
                return Err(Failure::Missing(late));
            }
        }
        Ok(daemon)
    }

    /// Returns the path of the daemon's socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the daemon ends by itself, which is a failure.
    pub(super) async fn failure(&self) -> Failure {
        match self.process.ended().await.during("wait for the daemon") {
            Ok(()) => self.last_words(),
            Err(failure) => failure,
        }
    }

    fn last_words(&self) -> Failure {
        let log = fs::read(self.dir.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        Failure::DaemonEnded(last.join("\n"))
    }

    /// Ends the daemon in order.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.terminate().during("stop the daemon")?;
        let status = self.process.status().await.during("stop the daemon")?;
        if status.success() {
            return Ok(());
        }
        Err(self.last_words())
    }

    fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(
            self.process.pidfd.get_ref(),
            Signal::TERM,
        )?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.terminate().is_ok() {
            let patience = Timespec {
                tv_sec: STOP_MAX_SECS,
                tv_nsec: 0,
            };
            let mut end = [PollFd::new(
                self.process.pidfd.get_ref().as_ref(),
                PollFlags::IN,
            )];
            // The result does not matter: if the daemon still runs, `Owned` kills it.
            let _ = poll(&mut end, Some(&patience));
        }
    }
}

/// Waits for `READY=1`, as in `sd_notify(3)`.
async fn ready(notified: &UnixDatagram) -> io::Result<()> {
    let mut message = [0; 4096];
    loop {
        let len = notified.recv(&mut message).await?;
        let mut lines = message[..len].split(|byte| *byte == b'\n');
        if lines.any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

/// A client process, with or without a connection to the daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct Client {
    process: Process,
    /// The reading end of its stdout.
    pub(super) out: BufReader<pipe::Receiver>,
}

impl Client {
    /// Starts a client in the role `role`; see [`clients`](super::clients).
    pub(super) fn start(role: &str, socket: &Path, args: &[&str]) -> Result<Self, Failure> {
        let mut process = Process::start(
            this_program()?
                .arg("demo-client")
                .arg(role)
                .arg(socket)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )
        .during("start a client")?;
        let stdout = process
            .child
            .0
            .stdout
            .take()
            .ok_or(io::ErrorKind::BrokenPipe);
        let out = stdout
            .and_then(|stdout| pipe::Receiver::from_owned_fd(stdout.into()).map_err(|e| e.kind()))
            .during("read from a client")?;
        Ok(Self {
            process,
            out: BufReader::new(out),
        })
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Reads the next message that the client passes on; `None` when its stdout has ended.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Failure> {
        let frame = read_frame(&mut self.out)
            .await
            .during("read from a client")?;
        let message = frame.map(|frame| M::decode(frame.as_slice())).transpose();
        message.map_err(|error| Failure::Missing(format!("a client's message is broken: {error}")))
    }

    /// Kills the client with SIGKILL. Output that was not read yet is lost.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        use std::os::unix::process::ExitStatusExt as _;

        self.process.child.0.kill().during("kill a client")?;
        let status = self.ended().await?;
        require(status.signal() == Some(Signal::KILL.as_raw()), || {
            format!("a client ended by itself before it was killed: {status}")
        })
    }

    /// Waits until the client ends.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.process.status().await.during("wait for a client")
    }
}

async fn read_frame(from: &mut BufReader<pipe::Receiver>) -> io::Result<Option<Vec<u8>>> {
    let len = match from.read_u32().await {
        Ok(len) if len <= FRAME_MAX => len,
        Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut frame = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    from.read_exact(&mut frame).await?;
    Ok(Some(frame))
}

/// Writes a message to stdout, for the process that started this client: first its length in four
/// bytes, big-endian, then the message.
pub(super) fn pass_on(message: &impl Message) -> Result<(), Failure> {
    use io::Write as _;

    let bytes = message.encode_to_vec();
    let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge);
    let frame = [len.during("write")?.to_be_bytes().as_slice(), &bytes].concat();
    let mut out = io::stdout().lock();
    out.write_all(&frame)
        .and_then(|()| out.flush())
        .during("write")
}

fn this_program() -> Result<Command, Failure> {
    Ok(Command::new(
        env::current_exe().during("find this program")?,
    ))
}
