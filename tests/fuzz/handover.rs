//! Datagrams on the handover socket: any bytes, with any number of descriptors of any kind.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use crate::common::Daemon;
use crate::fuzz;

/// The largest number that a datagram can have (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;
const SLOT: usize = 16;
/// The highest status that a reply can have.
const STATUS_MAX: u8 = 8;

#[derive(Debug, Clone)]
struct Datagram {
    bytes: Vec<u8>,
    /// The kinds of its descriptors.
    fds: Vec<usize>,
}

fn datagram() -> impl Strategy<Value = Datagram> {
    let magic = prop_oneof![
        6 => Just(b"evloopd1".to_vec()),
        1 => Just(b"evloopd2".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ];
    // Whole slots, a few of them the same, or any bytes.
    let rest = prop_oneof![
        2 => Just(Vec::new()),
        3 => prop::collection::vec(0..4u8, 0..6).prop_map(|ids| {
            ids.iter().flat_map(|id| [*id; SLOT]).collect()
        }),
        1 => prop::collection::vec(any::<u8>(), 0..5_000),
    ];
    let count = prop_oneof![6 => 0..6usize, 1 => 0..=FDS_MAX];
    let fds = count.prop_flat_map(|count| prop::collection::vec(0..6usize, count));
    (magic, rest, fds).prop_map(|(mut bytes, rest, fds)| {
        bytes.extend::<Vec<u8>>(rest);
        Datagram { bytes, fds }
    })
}

/// Descriptors of every kind.
fn descriptors() -> Vec<OwnedFd> {
    let (socket, other) = UnixStream::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let file = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
    vec![
        socket.into(),
        other.into(),
        reader,
        writer,
        file("/dev/null"),
        file("/"),
    ]
}

#[test]
fn every_datagram_has_one_reply_and_the_daemon_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let daemon = runtime.block_on(Daemon::start("[limits]\nslots = 512\n"));
    let fds = descriptors();
    fuzz(
        300,
        &prop::collection::vec(datagram(), 1..10),
        |datagrams| {
            let mut connection = runtime.block_on(daemon.handover());
            for Datagram { bytes, fds: kinds } in datagrams {
                // An empty datagram is the end of a connection.
                if bytes.is_empty() {
                    continue;
                }
                let with: Vec<BorrowedFd<'_>> =
                    kinds.iter().map(|kind| fds[*kind].as_fd()).collect();
                let (reply, given) = connection.ask(&bytes, &with);
                let Some((status, text)) = reply.split_first() else {
                    prop_assert!(false, "no reply");
                    continue;
                };
                prop_assert!(*status <= STATUS_MAX);
                let takes = with.is_empty() && bytes.len() == 8 + SLOT;
                prop_assert_eq!(given.is_some(), *status == 0 && takes);
                if *status == 0 {
                    prop_assert!(bytes.starts_with(b"evloopd1"));
                    prop_assert_eq!(text.len(), with.len() * SLOT);
                } else {
                    let text = String::from_utf8(text.to_vec());
                    prop_assert!(
                        text.is_ok_and(|text| !text.is_empty() && !text.contains(char::is_control))
                    );
                }
                if *status == 6 {
                    connection = runtime.block_on(daemon.handover());
                }
            }
            Ok(())
        },
    );
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
