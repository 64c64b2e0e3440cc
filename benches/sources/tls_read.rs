//! The bytes of a connection with TLS until a client has them in the clear.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

use evloopd::proto::{EventKind, watch_spec::Spec};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::runtime::Runtime;

use crate::daemon::Daemon;
use crate::report::{Report, Side, in_turns};
use crate::source::{BACKENDS, Clock, Got, Source, Taken, add, listener_with_tls};
use crate::{Outcome, certificates, programs};

/// What one round sends, and one write of it.
const BYTES: usize = 128 << 20;
const WRITE: usize = 256 * 1024;

/// A client of either side.
pub(crate) type Peer = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let section = certificates::make(directory.path())?;
    let config = certificates::client(directory.path())?;
    let mut sources = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_with(&format!("version = 1\n{section}{}", Daemon::on(backend)))?;
        let spec = Spec::Listener(listener_with_tls());
        let watched = Source::watched(daemon, spec, &[EventKind::Data]);
        sources.push(runtime.block_on(watched)?);
    }
    sources.push(runtime.block_on(Source::program(programs::TLS, directory))?);
    let mut sides: Vec<Side<'_, Taken>> = Vec::new();
    for mut source in sources {
        let mut peer = connect(source.port, Arc::clone(&config))?;
        sides.push(Box::new(move || round(runtime, &mut source, &mut peer)));
    }
    let names = ["tls_read_vs_tokio_rustls", "tls_read_cpu_vs_tokio_rustls"];
    let taken = in_turns(sides)?;
    add(report, names, ["MB/s", "µs/MB"], [0.8; 2], taken);
    Ok(())
}

/// Connects and shakes hands.
pub(crate) fn connect(port: u16, config: Arc<ClientConfig>) -> Outcome<Peer> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut peer = StreamOwned::new(ClientConnection::new(config, name)?, socket);
    while peer.conn.is_handshaking() {
        peer.conn.complete_io(&mut peer.sock)?;
    }
    peer.flush()?;
    Ok(peer)
}

fn round(runtime: &Runtime, source: &mut Source, peer: &mut Peer) -> Outcome<Taken> {
    let clock = Clock::start(source)?;
    std::thread::scope(|threads| {
        let writing = threads.spawn(|| {
            let bytes = vec![b'x'; WRITE];
            for _ in 0..BYTES / WRITE {
                peer.write_all(&bytes)?;
            }
            peer.flush()
        });
        let all = Got {
            bytes: BYTES,
            ..Got::default()
        };
        runtime.block_on(source.until(all))?;
        let written = writing.join().map_err(|_| "the peer has panicked")?;
        Outcome::Ok(written?)
    })?;
    clock.stop(source, f64::from(u32::try_from(BYTES)?) / 1e6)
}
