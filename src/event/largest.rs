//! The most bytes that an event of a kind takes in a journal. This much room is set aside for an
//! event that must always fit. Each number is the sum of what the fields of its message can encode
//! to; a test encodes the largest message of every kind and compares.

/// The key of a field and a number of any size. All field numbers here are below 16.
const NUMBER: u32 = 1 + 10;
const FIXED: u32 = 1 + 8;
const FLAG: u32 = 1 + 1;
/// The value of an enum.
const CHOICE: u32 = 1 + 1;
/// A process id, an errno or a port: at most five bytes.
const SMALL: u32 = 1 + 5;

/// Returns the size of a field of `len` bytes. The length itself takes two bytes if it is below 16
/// KiB.
const fn bytes(len: u32) -> u32 {
    1 + 2 + len
}

/// Most bytes of a text that a client chooses: a name or a request id.
pub const TEXT_MAX: u32 = 128;
/// The name of a kind of watch.
const KIND: u32 = bytes(16);
/// The symbol of an errno, or the step that failed.
const WORD: u32 = bytes(16);
/// Most bytes of an error's message without a detail: the step, the system's text for the errno,
/// the errno's symbol.
const PLAIN_MAX: u32 = 80;
/// A path of `sockaddr_un`, the longest address.
const ADDRESS: u32 = bytes(bytes(bytes(110)));
/// An IP address as text.
const IP: u32 = 45;
/// Seconds and nanoseconds.
const DURATION: u32 = bytes(NUMBER + SMALL);

/// The fields that all kinds share: the key and length of the event and of its kind (whose number
/// takes two bytes), `seq`, two times, `watch_id`, `user_data`.
const ENVELOPE: u32 = bytes(0) + NUMBER + 2 * FIXED + 2 * NUMBER + 1 + bytes(0);

/// An error whose message has no detail.
const ERROR: u32 = bytes(SMALL + 2 * WORD + bytes(PLAIN_MAX));

/// Most bytes of an error's message with a detail; a longer one is cut.
pub const MESSAGE_MAX: u32 = 512;
/// The bytes that a detail adds to an error's message at most.
pub const DETAIL: u32 = MESSAGE_MAX - PLAIN_MAX;

/// `Added`.
pub const ADDED: u32 = ENVELOPE + 2 * bytes(TEXT_MAX) + KIND + NUMBER;
/// `Closed`, with an error that has no detail; a detail takes up to [`DETAIL`] more.
pub const CLOSED: u32 = ENVELOPE + CHOICE + ERROR + 2 * NUMBER;
/// What each attempt to connect adds to `Closed`, if none of them succeeds.
pub const FAILED_ATTEMPT: u32 = bytes(ADDRESS + ERROR);
/// `Removed`.
pub const REMOVED: u32 = ENVELOPE + bytes(TEXT_MAX);
/// The events that a watch sets room aside for one at a time: `Ready`, `WritePaused`,
/// `WriteResumed`.
pub const ONE_BY_ONE: u32 = ENVELOPE + 8 * FLAG;
/// `TimerFired` of a timer that fires once: it misses no tick, and its tick is the first.
pub const TIMER_FIRED: u32 = ENVELOPE + 2 * FIXED + 2 * CHOICE + FLAG;
/// `Started`.
pub const STARTED: u32 = ENVELOPE + SMALL;
/// `Ended`.
pub const ENDED: u32 = ENVELOPE;
/// `Resized`.
pub const RESIZED: u32 = ENVELOPE + bytes(2 * SMALL);
/// `StreamEnd`.
pub const STREAM_END: u32 = ENVELOPE + 2 * CHOICE + 2 * NUMBER + ERROR;
/// `Exited`.
pub const EXITED: u32 = ENVELOPE
    + bytes(TEXT_MAX)
    + 2 * FLAG
    + bytes(2 * DURATION + 7 * NUMBER)
    + bytes(2 * DURATION + 2 * NUMBER);
/// `Connected`, without TLS.
pub const CONNECTED: u32 = ENVELOPE + 2 * ADDRESS;
/// Most bytes of the name of a host or protocol in a `TlsSession`.
pub const TLS_NAME_MAX: u32 = 255;
/// What a `TlsSession` without certificates adds to `Connected`.
pub const TLS_SESSION: u32 =
    bytes(bytes(8) + bytes(48) + 2 * bytes(TLS_NAME_MAX) + FLAG + SMALL + DURATION);
/// Most bytes of the certificates in a `TlsSession`. With them an event takes 16 KiB or more, so one
/// byte more for each of its three lengths.
pub const CERTIFICATES_MAX: u32 = 16 * 1024;
/// `TlsStarted`, without certificates.
pub const TLS_STARTED: u32 = ENVELOPE + TLS_SESSION + 2 * NUMBER;
/// `HandshakesFailed`, with an error that has a detail.
pub const HANDSHAKES_FAILED: u32 = ENVELOPE + 2 * NUMBER + ERROR + DETAIL + ADDRESS;
/// `Accepted`.
pub const ACCEPTED: u32 = ENVELOPE + NUMBER + ADDRESS;
/// `Eof`.
pub const EOF: u32 = ENVELOPE + NUMBER;
/// `Datagram` without its data. An event of 16 KiB or more takes one byte more for each of its
/// three lengths.
pub const DATAGRAM: u32 = ENVELOPE + ADDRESS + bytes(0) + 3 + NUMBER + bytes(IP) + SMALL;
/// `DatagramError`.
pub const DATAGRAM_ERROR: u32 = ENVELOPE + ADDRESS + ERROR + bytes(IP);
/// `DatagramsDropped`.
pub const DATAGRAMS_DROPPED: u32 = ENVELOPE + 4 * NUMBER;
/// `GroupChanged`. The name of an interface has at most 15 bytes.
pub const GROUP_CHANGED: u32 = ENVELOPE + bytes(IP) + bytes(15) + FLAG + SMALL;
/// `PathChanged` without its paths.
pub const PATH_CHANGED: u32 = ENVELOPE + bytes(10) + FLAG + NUMBER + 2 * (bytes(0) + 1);
/// `PathRescan` of a root, with an error that has no detail.
pub const PATH_RESCAN: u32 = ENVELOPE + CHOICE + ERROR;
/// `PathSynced`.
pub const PATH_SYNCED: u32 = ENVELOPE + 3 * NUMBER;
/// `PathRoot`.
pub const PATH_ROOT: u32 = ENVELOPE + 2 * FLAG + CHOICE + ERROR;
/// `FileChanged`, with an error that has no detail.
pub const FILE_CHANGED: u32 = ENVELOPE + 2 * CHOICE + 3 * NUMBER + ERROR;
/// `LoopStateChanged`.
pub const LOOP_STATE: u32 = ENVELOPE + 2 * CHOICE;
/// `Updated` or `LifetimeEnded` of an object that stays after the end of its lifetime.
pub const KEPT: u32 = ENVELOPE + CHOICE + bytes(8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SystemError;
    use crate::event::*;
    use crate::proto::TerminalSize;
    use crate::proto::{self, SocketAddress, UnixAddress, exited, socket_address, unix_address};

    fn size(kind: Kind) -> u32 {
        let event = Event {
            seq: u64::MAX,
            monotonic_ns: u64::MAX,
            realtime_ns: u64::MAX,
            watch_id: u64::MAX,
            user_data: u64::MAX,
            kind: Some(kind),
        };
        WholeEvent::new(&event).size().try_into().unwrap()
    }

    fn text() -> String {
        "x".repeat(TEXT_MAX as usize)
    }

    fn address() -> Option<SocketAddress> {
        let name = unix_address::Name::Path("p".repeat(108));
        let unix = UnixAddress { name: Some(name) };
        Some(SocketAddress {
            address: Some(socket_address::Address::Unix(unix)),
        })
    }

    fn closed(error: &SystemError) -> Kind {
        Kind::Closed(Closed {
            reason: i32::from(u8::MAX >> 1),
            error: Some(error.into()),
            unsent_bytes: u64::MAX,
            failed_attempts: Vec::new(),
            unaccepted_connections: Some(u64::MAX),
        })
    }

    /// Returns the errors of all errno values, with the longest step that has no detail.
    fn errors() -> impl Iterator<Item = SystemError> {
        (1..=133).map(|errno| {
            let errno = rustix::io::Errno::from_raw_os_error(errno);
            SystemError::new(errno, "getsockopt", "")
        })
    }

    #[test]
    fn the_largest_event_of_every_kind_fits_into_what_is_set_aside_for_it() {
        let plain = errors().map(|error| size(closed(&error))).max().unwrap();
        assert!(plain <= CLOSED, "{plain}");
        let detailed = SystemError::new(
            rustix::io::Errno::NOTRECOVERABLE,
            "resolve",
            text().repeat(99),
        );
        assert!(size(closed(&detailed)) <= CLOSED + DETAIL);
        let failed = |error: SystemError| {
            size(Kind::Closed(Closed {
                reason: i32::from(u8::MAX >> 1),
                error: Some((&detailed).into()),
                unsent_bytes: u64::MAX,
                unaccepted_connections: Some(u64::MAX),
                failed_attempts: vec![
                    FailedAttempt {
                        address: address(),
                        error: Some((&error).into()),
                    };
                    16
                ],
            }))
        };
        let attempted = errors().map(failed).max().unwrap();
        assert!(attempted <= CLOSED + DETAIL + 16 * FAILED_ATTEMPT);
        let error = errors()
            .max_by_key(|error| error.to_string().len())
            .unwrap();
        let time = Some(prost_types::Duration {
            seconds: i64::MAX,
            nanos: 999_999_999,
        });
        let usage = proto::ResourceUsage {
            user_time: time,
            system_time: time,
            max_rss_kib: u64::MAX,
            minor_faults: u64::MAX,
            major_faults: u64::MAX,
            block_inputs: u64::MAX,
            block_outputs: u64::MAX,
            voluntary_switches: u64::MAX,
            involuntary_switches: u64::MAX,
        };
        let name = || "n".repeat(TLS_NAME_MAX as usize);
        let tls = |peer_certificates| TlsSession {
            version: "TLSv1.3".to_owned(),
            cipher_suite: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256".to_owned(),
            alpn: name(),
            server_name: name(),
            resumed: true,
            peer_certificates,
            omitted_certificates: u32::MAX,
            peer_certificate_expires: Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: 999_999_999,
            }),
        };
        // The key of the field and the length take up to 4 bytes.
        let certificates = vec![vec![0; CERTIFICATES_MAX as usize / 2 - 4].into(); 2];
        let ip = std::net::Ipv6Addr::from([0xff; 16]);
        let sizes = [
            (
                ADDED,
                Kind::Added(Added {
                    request_id: text(),
                    name: text(),
                    watch_kind: "connection".to_owned(),
                    parent_watch_id: u64::MAX,
                }),
            ),
            (REMOVED, Kind::Removed(Removed { request_id: text() })),
            (
                ONE_BY_ONE,
                Kind::Ready(Ready {
                    readable: true,
                    writable: true,
                    hangup: true,
                    error: true,
                    half_closed: true,
                    read_fired: true,
                    write_fired: true,
                }),
            ),
            (
                ONE_BY_ONE,
                Kind::WritePaused(WritePaused {
                    buffered_bytes: u64::MAX,
                }),
            ),
            (
                TIMER_FIRED,
                Kind::TimerFired(TimerFired {
                    scheduled_ns: u64::MAX,
                    late_ns: u64::MAX,
                    missed: 0,
                    tick: 1,
                    missed_at_least: false,
                    caught_up: true,
                    clock: 3,
                }),
            ),
            (ENDED, Kind::Ended(Ended {})),
            (STARTED, Kind::Started(Started { pid: i32::MAX })),
            (
                STREAM_END,
                Kind::StreamEnd(StreamEnd {
                    stream: 3,
                    offset: u64::MAX,
                    reason: 4,
                    error: Some((&error).into()),
                    flushes: u64::MAX,
                }),
            ),
            (
                EXITED,
                Kind::Exited(Exited {
                    status: Some(exited::Status::Unknown(text())),
                    core_dumped: true,
                    usage: Some(usage),
                    timed_out: true,
                    cgroup_usage: Some(proto::CgroupUsage {
                        user_time: time,
                        system_time: time,
                        memory_peak_bytes: Some(u64::MAX),
                        oom_kills: Some(u64::MAX),
                    }),
                }),
            ),
            (
                CONNECTED,
                Kind::Connected(Connected {
                    local: address(),
                    peer: address(),
                    tls: None,
                }),
            ),
            (
                CONNECTED + TLS_SESSION,
                Kind::Connected(Connected {
                    local: address(),
                    peer: address(),
                    tls: Some(tls(Vec::new())),
                }),
            ),
            (
                CONNECTED + TLS_SESSION + CERTIFICATES_MAX,
                Kind::Connected(Connected {
                    local: address(),
                    peer: address(),
                    tls: Some(tls(certificates.clone())),
                }),
            ),
            (
                TLS_STARTED + CERTIFICATES_MAX,
                Kind::TlsStarted(TlsStarted {
                    tls: Some(tls(certificates)),
                    input_offset: u64::MAX,
                    output_offset: u64::MAX,
                }),
            ),
            (
                HANDSHAKES_FAILED,
                Kind::HandshakesFailed(HandshakesFailed {
                    count: u64::MAX,
                    total: u64::MAX,
                    error: Some((&detailed).into()),
                    peer: address(),
                }),
            ),
            (
                ACCEPTED,
                Kind::Accepted(Accepted {
                    watch_id: u64::MAX,
                    peer: address(),
                }),
            ),
            (EOF, Kind::Eof(Eof { offset: u64::MAX })),
            (
                RESIZED,
                Kind::Resized(Resized {
                    size: Some(TerminalSize {
                        rows: 1000,
                        columns: 1000,
                    }),
                }),
            ),
            (
                DATAGRAM + (256 << 10),
                Kind::Datagram(Datagram {
                    peer: address(),
                    data: vec![0; 256 << 10].into(),
                    full_length: u64::MAX,
                    local_ip: ip.to_string(),
                    interface_index: u32::MAX,
                }),
            ),
            (
                DATAGRAM_ERROR,
                Kind::DatagramError(DatagramError {
                    peer: address(),
                    error: Some((&error).into()),
                    reporter_ip: ip.to_string(),
                }),
            ),
            (
                DATAGRAMS_DROPPED,
                Kind::DatagramsDropped(DatagramsDropped {
                    count: u64::MAX,
                    total: u64::MAX,
                    in_doubt: u64::MAX,
                    unsent: u64::MAX,
                    queue_lost: true,
                }),
            ),
            (
                GROUP_CHANGED,
                Kind::GroupChanged(GroupChanged {
                    ip: ip.to_string(),
                    interface: "i".repeat(15),
                    in_effect: true,
                    interface_index: u32::MAX,
                }),
            ),
            (
                LOOP_STATE,
                Kind::LoopStateChanged(LoopStateChanged {
                    state: 4,
                    reason: 9,
                }),
            ),
            (
                PATH_CHANGED + 2 * 4095,
                Kind::PathChanged(PathChanged {
                    path: "p".repeat(4095),
                    kinds: (1..=10).collect(),
                    is_directory: true,
                    count: u64::MAX,
                    from_path_bytes: vec![0xff; 4095].into(),
                    ..PathChanged::default()
                }),
            ),
            (
                PATH_RESCAN,
                Kind::PathRescan(PathRescan {
                    reason: 9,
                    error: Some((&error).into()),
                    ..PathRescan::default()
                }),
            ),
            (
                PATH_SYNCED,
                Kind::PathSynced(PathSynced {
                    directories: u64::MAX,
                    entries: u64::MAX,
                    unwatched: u64::MAX,
                }),
            ),
            (
                PATH_ROOT,
                Kind::PathRoot(PathRoot {
                    present: true,
                    is_directory: true,
                    reason: 3,
                    error: Some((&error).into()),
                }),
            ),
            (
                FILE_CHANGED,
                Kind::FileChanged(FileChanged {
                    change: 8,
                    generation: u64::MAX,
                    offset: u64::MAX,
                    length: u64::MAX,
                    give_up: 5,
                    error: Some((&error).into()),
                }),
            ),
            (
                KEPT,
                Kind::Updated(Updated {
                    cause: 4,
                    fields: vec!["lifetime".to_owned()],
                    ..Updated::default()
                }),
            ),
            (KEPT, Kind::LifetimeEnded(LifetimeEnded { reason: 9 })),
        ];
        for (set_aside, kind) in sizes {
            let name = crate::kinds::event_kind_name(&kind);
            let size = size(kind);
            assert!(size <= set_aside, "{size} of {set_aside}: {name}");
            assert!(set_aside < size + 64, "{size} of {set_aside}: {name}");
        }
    }
}
