//! Datagrams of a UDP socket until a client has them.

use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use evloopd::proto::socket_address::Address;
use evloopd::proto::{DatagramSpec, EventKind, InetAddress, SocketAddress, watch_spec::Spec};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};
use tokio::runtime::Runtime;

use crate::daemon::Daemon;
use crate::report::{Report, Side, in_turns};
use crate::source::{BACKENDS, Clock, Source, Taken, add};
use crate::{Outcome, programs};

/// The datagrams of a round, and those that may be on their way at once.
const DATAGRAMS: usize = 100_000;
const WINDOW: usize = 512;
const BYTES: [u8; 100] = [b'x'; 100];
/// What both sides ask for, so that the window has room; see socket(7). Without it the kernel would
/// drop datagrams.
pub(crate) const RECEIVE_BUFFER: usize = 1 << 20;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut sources = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let local = SocketAddress {
            address: Some(Address::Inet(InetAddress {
                ip: "127.0.0.1".into(),
                port: 0,
            })),
        };
        let spec = Spec::Datagram(DatagramSpec {
            local: Some(local),
            receive_buffer: RECEIVE_BUFFER.try_into()?,
            ..DatagramSpec::default()
        });
        let watched = Source::watched(daemon, spec, &[EventKind::Datagram]);
        sources.push(runtime.block_on(watched)?);
    }
    let program = Source::program(programs::UDP, tempfile::tempdir()?);
    sources.push(runtime.block_on(program)?);
    let mut sides: Vec<Side<'_, Taken>> = Vec::new();
    for mut source in sources {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, source.port))?;
        sides.push(Box::new(move || {
            runtime.block_on(round(&mut source, &socket))
        }));
    }
    let names = [
        "udp_events_vs_recvmmsg_loop",
        "udp_events_cpu_vs_recvmmsg_loop",
    ];
    let taken = in_turns(sides)?;
    add(report, names, ["datagrams/s", "µs"], [0.8, 0.9], taken);
    Ok(())
}

async fn round(source: &mut Source, socket: &UdpSocket) -> Outcome<Taken> {
    let clock = Clock::start(source)?;
    let (mut sent, mut received) = (0, 0);
    while received < DATAGRAMS {
        while sent < DATAGRAMS.min(received + WINDOW) {
            sent += send(socket, DATAGRAMS.min(received + WINDOW) - sent)?;
        }
        received += source.datagrams().await?;
    }
    clock.stop(source, f64::from(u32::try_from(DATAGRAMS)?))
}

/// Sends so many datagrams, and returns how many the kernel has taken.
fn send(socket: &UdpSocket, count: usize) -> Outcome<usize> {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(count, None);
    let parts = vec![[IoSlice::new(&BYTES)]; count];
    let to = vec![None; count];
    let flags = MsgFlags::empty();
    let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &parts, to, [], flags)?;
    Ok(sent.count())
}
