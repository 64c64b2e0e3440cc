//! Connections that are accepted and read until a client has their bytes.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};

use evloopd::proto::{EventKind, watch_spec::Spec};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::programs;
use crate::report::{Report, Side, in_turns};
use crate::source::{BACKENDS, Clock, Got, Source, Taken, add, listener};

const CONNECTIONS: usize = 1000;
/// What each connection's peer writes.
const BYTES: [u8; 1024] = [b'x'; 1024];

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut sources = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let spec = Spec::Listener(listener());
        let kinds = [EventKind::Data, EventKind::Closed];
        sources.push(runtime.block_on(Source::watched(daemon, spec, &kinds))?);
    }
    let program = Source::program(programs::TCP, tempfile::tempdir()?);
    sources.push(runtime.block_on(program)?);
    let taken = in_turns(
        sources
            .into_iter()
            .map(|mut source| -> Side<'_, Taken> { Box::new(move || round(runtime, &mut source)) })
            .collect(),
    )?;
    let names = ["tcp_accept_read_vs_tokio", "tcp_accept_read_cpu_vs_tokio"];
    add(report, names, ["connections/s", "µs"], [0.9; 2], taken);
    Ok(())
}

fn round(runtime: &Runtime, source: &mut Source) -> Outcome<Taken> {
    let clock = Clock::start(source)?;
    let mut peers = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, source.port))?;
        peer.write_all(&BYTES)?;
        peers.push(peer);
    }
    let all = Got {
        bytes: CONNECTIONS * BYTES.len(),
        ..Got::default()
    };
    runtime.block_on(source.until(all))?;
    let taken = clock.stop(source, 1000.0)?;
    drop(peers);
    let ends = Got {
        ended: CONNECTIONS,
        ..Got::default()
    };
    runtime.block_on(source.until(ends))?;
    Ok(taken)
}
