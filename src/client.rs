//! Finds the daemon and connects to it.

use std::env;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::config::{system_socket, user_socket};

/// The variable that names the daemon's socket.
pub const SOCKET_ENV: &str = "EVLOOPD_SOCKET";

/// The command that starts a daemon, for error texts.
pub const START_COMMAND: &str = "evloopd";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts while the daemon's backlog is full.
const DIAL_AGAIN: Duration = Duration::from_millis(10);

/// What to try, in order: the socket that was named, else the user's and the system's.
fn candidates(named: Option<PathBuf>, user: PathBuf, system: PathBuf) -> Vec<Candidate> {
    if let Some(path) = named {
        return vec![Candidate { path, named: true }];
    }
    let mut paths = vec![user, system];
    // Root's own is the system's.
    paths.dedup();
    let found = |path| Candidate { path, named: false };
    paths.into_iter().map(found).collect()
}

#[derive(Debug, Clone)]
struct Candidate {
    path: PathBuf,
    /// Somebody asked for this very path, so whoever listens there is trusted.
    named: bool,
}

/// A connection to the daemon. It comes back by itself after the daemon did.
#[derive(Debug, Clone)]
pub struct Connection {
    /// For the clients in [`crate::proto`].
    pub channel: Channel,
    /// The socket it goes to.
    pub socket: PathBuf,
}

/// No daemon answered.
#[derive(Debug)]
pub struct NoDaemon {
    /// Each path that was tried, and why it failed.
    pub tried: Vec<(PathBuf, io::Error)>,
}

impl fmt::Display for NoDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no daemon answers at ")?;
        for (i, (path, error)) in self.tried.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", nor at " };
            write!(f, "{separator}{} ({error})", path.display())?;
        }
        write!(f, "; start one with `{START_COMMAND}`")
    }
}

impl std::error::Error for NoDaemon {}

/// Connects to the daemon: at `explicit` if given, else at `EVLOOPD_SOCKET` if set, else at
/// the user's socket ([`user_socket`]) or the system's ([`system_socket`]), whichever answers
/// first.
///
/// # Errors
/// [`NoDaemon`] names every path that was tried. A socket that nobody asked for by
/// name and that is neither the user's own nor root's is refused, since requests carry
/// the caller's environment.
pub async fn connect(explicit: Option<&Path>) -> Result<Connection, NoDaemon> {
    let mut tried = Vec::new();
    let from_env = || env::var_os(SOCKET_ENV).filter(|path| !path.is_empty());
    let named = explicit
        .map(Path::to_owned)
        .or_else(|| from_env().map(PathBuf::from));
    for candidate in candidates(named, user_socket(), system_socket()) {
        let socket = candidate.path.clone();
        match open(candidate).await {
            Ok(channel) => return Ok(Connection { channel, socket }),
            Err(error) => tried.push((socket, error)),
        }
    }
    Err(NoDaemon { tried })
}

async fn open(candidate: Candidate) -> io::Result<Channel> {
    let connector = service_fn(move |_: Uri| {
        let Candidate { path, named } = candidate.clone();
        async move {
            let stream = dial(&path).await?;
            if !named {
                check_peer(stream.peer_cred()?.uid())?;
            }
            io::Result::Ok(TokioIo::new(stream))
        }
    });
    // The authority every HTTP/2 implementation accepts; a socket's path is none.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| io_cause(&error))
}

/// Connects, waiting while the daemon's backlog is full: connect(2) of a non-blocking Unix socket
/// does not wait for that. [`CONNECT_TIMEOUT`] bounds it.
async fn dial(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(DIAL_AGAIN).await;
            }
            dialled => return dialled,
        }
    }
}

fn check_peer(peer: u32) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if peer == own || peer == 0 {
        return Ok(());
    }
    let refused = format!("it belongs to uid {peer}; name it with --socket to trust it");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, refused))
}

/// The system's error below the transport's.
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
        for _ in &first {
            rustix::net::accept(&listener).unwrap();
        }
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn the_error_names_what_was_tried_why_it_failed_and_what_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.sock");
        let error = connect(Some(&missing)).await.unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()), "{error}");
        assert!(error.contains("No such file"), "{error}");
        assert!(error.ends_with("start one with `evloopd`"), "{error}");
    }
}
