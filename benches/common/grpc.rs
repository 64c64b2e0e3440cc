//! gRPC over Unix sockets: connections of clients, and yardsticks that serve, each in a process of
//! its own.

use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service, service_fn};

use super::Outcome;
use super::yardstick::Process;

const SOCKET: &str = "socket";

/// Connects over a Unix socket, in the same way to the daemon and to a yardstick.
pub(crate) async fn connect(socket: PathBuf) -> Outcome<Channel> {
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// Serves until standard input ends, which happens when the process that started this one ends.
pub(crate) fn serve<S>(socket: &Path, service: S) -> Outcome<()>
where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListenerStream::new(UnixListener::bind(socket)?);
        println!("serving");
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = end.send(());
        });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::select! {
            served = server.serve_with_incoming(listener) => Ok(served?),
            _ = ended => Ok(()),
        }
    })
}

/// A yardstick that serves; its process ends when this is dropped.
pub(crate) struct Server {
    process: Process,
    directory: TempDir,
}

impl Server {
    /// Starts this program with the name of a yardstick and the path of a socket in that directory,
    /// on which it is to [`serve`].
    pub(crate) fn start(yardstick: &str, directory: TempDir) -> Outcome<Self> {
        let socket = directory.path().join(SOCKET);
        let socket = socket.to_str().ok_or("the socket's path is not UTF-8")?;
        let mut process = Process::start(&[yardstick, socket])?;
        process.line()?;
        Ok(Self { process, directory })
    }

    /// Opens another connection.
    pub(crate) async fn connect(&self) -> Outcome<Channel> {
        connect(self.directory.path().join(SOCKET)).await
    }

    /// Returns the CPU time that all its threads have used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        self.process.cpu()
    }
}
