//! Finds the daemon and connects to it.

mod absent;
mod units;

use std::env;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub use absent::{Cause, NoDaemon};

use crate::config::{system_socket, user_socket};

/// The variable that names the daemon's socket.
pub const SOCKET_ENV: &str = "EVLOOPD_SOCKET";

/// How long a daemon may take to answer a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two attempts to connect while the daemon's backlog is full.
const DIAL_AGAIN: Duration = Duration::from_millis(10);
/// The size of the largest HTTP/2 frame that the daemon may send, bytes: a piece of a stream comes in
/// one frame.
const FRAME: u32 = 64 * 1024;

/// Returns the sockets to try, in order: the named one, else the user's and the system's.
fn candidates(named: Option<PathBuf>, user: PathBuf, system: PathBuf) -> Vec<Candidate> {
    if let Some(path) = named {
        return vec![Candidate { path, named: true }];
    }
    let mut paths = vec![user, system];
    // For root both are the same path.
    paths.dedup();
    let found = |path| Candidate { path, named: false };
    paths.into_iter().map(found).collect()
}

#[derive(Debug, Clone)]
struct Candidate {
    path: PathBuf,
    /// Whether the caller named this path. The owner of a named socket is trusted.
    named: bool,
}

/// A connection to the daemon. It reconnects by itself when the daemon is restarted.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The channel for the clients in [`crate::proto`].
    pub channel: Channel,
    /// The path of the daemon's socket.
    pub socket: PathBuf,
}

/// Connects to the daemon: at `explicit` if given, else at `EVLOOPD_SOCKET` if set, else at
/// the user's socket ([`user_socket`]) or the system's ([`system_socket`]), whichever answers
/// first.
///
/// # Errors
/// [`NoDaemon`] names every path that was tried. A default socket is refused if its daemon
/// belongs neither to the user nor to root, since requests carry the caller's environment.
pub async fn connect(explicit: Option<&Path>) -> Result<Connection, NoDaemon> {
    let mut tried = Vec::new();
    let named = named(explicit);
    let is_named = named.is_some();
    for candidate in candidates(named, user_socket(), system_socket()) {
        let socket = candidate.path.clone();
        match open(candidate).await {
            Ok(channel) => return Ok(Connection { channel, socket }),
            Err(error) => {
                let cause = Cause::of(&socket, error);
                tried.push((socket, cause));
            }
        }
    }
    Err(NoDaemon::new(tried, is_named))
}

fn named(explicit: Option<&Path>) -> Option<PathBuf> {
    let from_env = || env::var_os(SOCKET_ENV).filter(|path| !path.is_empty());
    explicit
        .map(Path::to_owned)
        .or_else(|| from_env().map(PathBuf::from))
}

/// Returns the sockets that [`connect`] tries, in order.
#[must_use]
pub fn sockets(explicit: Option<&Path>) -> Vec<PathBuf> {
    let all = candidates(named(explicit), user_socket(), system_socket());
    all.into_iter().map(|candidate| candidate.path).collect()
}

async fn open(candidate: Candidate) -> io::Result<Channel> {
    let connector = service_fn(move |_: Uri| {
        let Candidate { path, named } = candidate.clone();
        async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial(&path)).await??;
            if !named {
                check_peer(stream.peer_cred()?.uid())?;
            }
            io::Result::Ok(TokioIo::new(stream))
        }
    });
    // An authority that every HTTP/2 implementation accepts; the path of a socket is not valid as
    // one.
    Endpoint::from_static("http://localhost")
        .max_frame_size(FRAME)
        .connect_with_connector(connector)
        .await
        .map_err(|error| io_cause(&error))
}

/// Connects, and waits until the daemon sends its first bytes: an HTTP/2 server sends before its
/// client. Retries while the daemon's backlog is full, since connect(2) of a non-blocking Unix
/// socket fails with EAGAIN then. The caller must bound the time.
async fn dial(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(DIAL_AGAIN).await;
            }
            dialled => {
                let stream = dialled?;
                stream.readable().await?;
                return Ok(stream);
            }
        }
    }
}

fn check_peer(peer: u32) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if peer == own || peer == 0 {
        return Ok(());
    }
    let refused = format!(
        "it belongs to uid {peer}, which is neither you nor root; only a socket that you name is \
         trusted"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, refused))
}

/// Returns the system's error that caused an error of the transport.
fn io_cause(error: &tonic::transport::Error) -> io::Error {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return match io.raw_os_error() {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::new(io.kind(), io.to_string()),
            };
        }
        cause = error.source();
    }
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_socket_is_the_only_one_else_the_users_comes_before_the_systems() {
        let paths = |named: Option<&str>, user: &str| {
            let found = candidates(named.map(PathBuf::from), user.into(), "/system".into());
            let named: Vec<_> = found.iter().map(|c| c.named).collect();
            let paths: Vec<_> = found.into_iter().map(|c| c.path).collect();
            (paths, named)
        };
        let path = PathBuf::from;
        assert_eq!(
            paths(Some("/named"), "/user"),
            (vec![path("/named")], vec![true])
        );
        let both = vec![path("/user"), path("/system")];
        assert_eq!(paths(None, "/user"), (both, vec![false, false]));
        assert_eq!(paths(None, "/system").0, [path("/system")]);
    }

    #[tokio::test]
    async fn a_full_backlog_is_waited_for() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full.sock");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let mut first = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            first.push(stream);
        }
        let mut waits = std::pin::pin!(dial(&path));
        assert!(
            tokio::time::timeout(DIAL_AGAIN * 3, &mut waits)
                .await
                .is_err()
        );
        let mut accepted = Vec::new();
        for _ in 0..=first.len() {
            accepted.push(rustix::net::accept(&listener).unwrap());
            assert!(
                tokio::time::timeout(DIAL_AGAIN * 3, &mut waits)
                    .await
                    .is_err()
            );
        }
        for stream in &accepted {
            rustix::io::write(stream, b"settings").unwrap();
        }
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_listens_and_says_nothing_is_told_from_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("silent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = connect(Some(&path)).await.unwrap_err();
        assert!(matches!(error.tried[..], [(_, Cause::Silent)]), "{error:?}");
        let text = error.to_string();
        let shown = path.display();
        let said = format!("{shown} is open, but nobody answers there within 5 s; ");
        assert!(text.starts_with(&said), "{text}");
    }
}
