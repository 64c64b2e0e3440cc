//! The yardstick for posts: a Redis of the host, without persistence, on a Unix socket.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Outcome;

/// The time after which a start has failed.
const PATIENCE: Duration = Duration::from_secs(10);
const STREAM: &str = "events";

/// A running server; it is killed when dropped.
pub(crate) struct Redis {
    process: Child,
    directory: TempDir,
}

impl Redis {
    /// Starts a server. Returns `None` if there is no such program.
    pub(crate) fn start() -> Outcome<Option<Self>> {
        let directory = tempfile::tempdir()?;
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(directory.path().join("socket"))
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let redis = Self { process, directory };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(redis.socket()).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err("redis-server does not start".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(redis))
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Opens another connection.
    pub(crate) async fn connect(&self) -> Outcome<Connection> {
        Ok(Connection {
            stream: UnixStream::connect(self.socket()).await?,
            received: Vec::with_capacity(4096),
        })
    }

    /// Returns the CPU time that all its threads have used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        let process = Pid::from_raw(i32::try_from(self.process.id())?);
        Ok(clock_getcpuclockid(process)?.now()?.into())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // If either call fails, the server has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client's connection. Requests and replies are written and read by hand, as RESP2.
pub(crate) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Connection {
    async fn send(&mut self, words: &[&[u8]]) -> Outcome<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend(*word);
            request.extend(b"\r\n");
        }
        Ok(self.stream.write_all(&request).await?)
    }

    /// Receives one reply whole, and returns its bytes.
    async fn reply(&mut self) -> Outcome<&[u8]> {
        self.received.clear();
        loop {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err("Redis closed the connection".into());
            }
            if self.received.starts_with(b"-") {
                return Err(String::from_utf8_lossy(&self.received).into());
            }
            if length(&self.received) == Some(self.received.len()) {
                return Ok(&self.received);
            }
        }
    }

    /// Appends an event and waits for its id.
    pub(crate) async fn add(&mut self, payload: &[u8]) -> Outcome<()> {
        self.send_add(payload).await?;
        self.added().await
    }

    pub(crate) async fn send_add(&mut self, payload: &[u8]) -> Outcome<()> {
        self.send(&[b"XADD", STREAM.as_bytes(), b"*", b"d", payload])
            .await
    }

    /// Waits for the id of the event that was sent.
    pub(crate) async fn added(&mut self) -> Outcome<()> {
        match self.reply().await?.first() {
            Some(b'$') => Ok(()),
            _ => Err("not the id of an event".into()),
        }
    }

    /// Begins to wait for the next event that anyone appends.
    pub(crate) async fn block(&mut self) -> Outcome<()> {
        let stream = STREAM.as_bytes();
        self.send(&[b"XREAD", b"BLOCK", b"0", b"STREAMS", stream, b"$"])
            .await
    }

    /// Waits for the event after [`Connection::block`].
    pub(crate) async fn unblocked(&mut self, payload: &[u8]) -> Outcome<()> {
        let reply = self.reply().await?;
        let body = reply.strip_suffix(b"\r\n").unwrap_or_default();
        if body.ends_with(payload) {
            return Ok(());
        }
        Err("not the event that was appended".into())
    }

    /// Waits until the server has taken all that was sent before, on any connection.
    pub(crate) async fn settle(&mut self) -> Outcome<()> {
        self.send(&[b"PING"]).await?;
        self.reply().await.map(drop)
    }
}

/// Returns the length of the reply at the beginning of these bytes, if it is there whole.
fn length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).ok()?.parse().ok();
    let mut at = line + 2;
    match bytes[0] {
        b'$' => {
            let len: usize = number()?;
            at += len + 2;
        }
        b'*' => {
            let items: usize = number()?;
            for _ in 0..items {
                at += length(bytes.get(at..)?)?;
            }
        }
        _ => {}
    }
    (bytes.len() >= at).then_some(at)
}
