use super::*;

fn line(renderer: &mut Renderer, watch_id: u64, kind: Kind) -> String {
    let event = Event {
        seq: 7,
        realtime_ns: 1_500_000_000,
        watch_id,
        kind: Some(kind),
        ..Event::default()
    };
    anstream::adapter::strip_str(&renderer.line(&event)).to_string()
}

#[test]
fn a_line_is_time_seq_watch_what_and_names_are_learnt_and_forgotten() {
    let mut renderer = Renderer::on(jiff::civil::date(1970, 1, 1), TimeZone::UTC);
    let added = proto::Added {
        name: "build".to_owned(),
        watch_kind: "process".to_owned(),
        ..proto::Added::default()
    };
    let head = "00:00:01.500      7  build           ";
    let text = line(&mut renderer, 3, Kind::Added(added));
    assert_eq!(text, format!("{head}added process"));
    let bytes = proto::Data {
        stream: proto::Stream::Stderr.into(),
        data: bytes::Bytes::from_static(b"a\x1b\n"),
        offset: 0,
    };
    let text = line(&mut renderer, 3, Kind::Data(bytes));
    assert_eq!(text, format!("{head}stderr 3 bytes: \"a\\x1b\\n\""));
    line(&mut renderer, 3, Kind::Removed(proto::Removed::default()));
    let ready = proto::Ready {
        readable: true,
        hangup: true,
        ..proto::Ready::default()
    };
    let text = line(&mut renderer, 3, Kind::Ready(ready));
    assert_eq!(
        text,
        "00:00:01.500      7  @3              ready: readable hangup"
    );
    let state = proto::LoopState::Stopped.into();
    let text = line(
        &mut renderer,
        0,
        Kind::LoopStateChanged(proto::LoopStateChanged {
            state,
            ..proto::LoopStateChanged::default()
        }),
    );
    assert!(text.ends_with("loop            loop stopped"), "{text}");
}

#[test]
fn an_exit_is_a_code_a_signal_or_unknown_and_never_made_up() {
    let exit = |status| {
        exited(&proto::Exited {
            status,
            ..proto::Exited::default()
        })
    };
    assert_eq!(exit(Some(exited::Status::Code(3))), "exited with 3");
    assert_eq!(exit(Some(exited::Status::Signal(15))), "killed by SIGTERM");
    assert_eq!(
        exit(Some(exited::Status::Signal(99))),
        "killed by signal 99"
    );
    assert_eq!(exit(None), "exit status unknown");
}

#[test]
fn a_closed_listener_tells_how_many_connections_it_left() {
    let text = |waiting| {
        let closed = proto::Closed {
            reason: CloseReason::Removed.into(),
            unaccepted_connections: waiting,
            ..proto::Closed::default()
        };
        closed.words().0
    };
    assert_eq!(text(None), "closed: removed");
    assert_eq!(text(Some(0)), "closed: removed");
    assert_eq!(text(Some(1)), "closed: removed, 1 connection not accepted");
    assert_eq!(text(Some(2)), "closed: removed, 2 connections not accepted");
}

#[test]
fn a_datagram_tells_its_peer_and_what_was_cut() {
    let ip = "::1".to_owned();
    let inet = proto::InetAddress { ip, port: 9 };
    let peer = proto::SocketAddress {
        address: Some(socket_address::Address::Inet(inet)),
    };
    let mut datagram = proto::Datagram {
        peer: Some(peer.clone()),
        data: bytes::Bytes::from_static(b"ab"),
        ..proto::Datagram::default()
    };
    assert_eq!(
        datagram.words(),
        ("from [::1]:9 2 bytes: \"ab\"".to_owned(), PLAIN)
    );
    datagram.full_length = 5;
    let cut = "from [::1]:9 2 of 5 bytes: \"ab\"".to_owned();
    assert_eq!(datagram.words(), (cut, NOTICE));
    let error = proto::DatagramError {
        peer: Some(peer),
        error: Some(proto::SystemError {
            message: "deliver: refused".to_owned(),
            ..proto::SystemError::default()
        }),
        reporter_ip: "::2".to_owned(),
    };
    assert_eq!(error.words().0, "to [::1]:9: deliver: refused, says ::2");
    let dropped = proto::DatagramsDropped {
        count: 2,
        total: 3,
        ..Default::default()
    };
    assert_eq!(
        dropped.words().0,
        "the kernel dropped 2 datagrams, 3 in all"
    );
    let mut group = proto::GroupChanged {
        ip: "ff02::5".to_owned(),
        interface: "eth0".to_owned(),
        ..proto::GroupChanged::default()
    };
    let gone = "no member of ff02::5%eth0: the interface is gone";
    assert_eq!(group.words(), (gone.to_owned(), BAD));
    (group.in_effect, group.interface) = (true, String::new());
    assert_eq!(group.words(), ("joined ff02::5 again".to_owned(), GOOD));
}

#[test]
fn a_group_shows_where_it_is_joined_and_whether_it_is_in_effect() {
    let shown = |interface: &str, in_effect| {
        let status = proto::GroupStatus {
            group: Some(proto::MulticastGroup {
                ip: "239.1.2.3".to_owned(),
                interface: interface.to_owned(),
            }),
            in_effect,
            interface_index: 7,
        };
        group_status(&status)
    };
    assert_eq!(shown("", true).0, "239.1.2.3 on interface 7");
    assert_eq!(shown("eth0", true).0, "239.1.2.3%eth0");
    let gone = "239.1.2.3%eth0, no member: the interface is gone";
    assert_eq!(shown("eth0", false), (gone.to_owned(), BAD));
}

#[test]
fn long_data_is_cut() {
    let text = preview(&[b'x'; PREVIEW_BYTES + 1]);
    assert_eq!(text, format!("\"{}\"…", "x".repeat(PREVIEW_BYTES)));
}

#[test]
fn a_day_comes_before_its_first_line_unless_it_is_today() {
    const DAY: u64 = 86_400_000_000_000;
    let mut renderer = Renderer::on(jiff::civil::date(1970, 1, 2), TimeZone::UTC);
    let mut at = |day: u64, kind: Kind| {
        let event = Event {
            realtime_ns: day * DAY,
            kind: Some(kind),
            ..Event::default()
        };
        let line = anstream::adapter::strip_str(&renderer.line(&event)).to_string();
        let lines: Vec<_> = line.lines().map(str::to_owned).collect();
        assert!(lines.last().unwrap().starts_with("00:00:00.000"), "{line}");
        lines[..lines.len() - 1].to_vec()
    };
    let ended = || Kind::Ended(proto::Ended::default());
    assert_eq!(at(1, ended()), [""; 0]);
    assert_eq!(at(0, ended()), ["-- Thu 1970-01-01 --"]);
    assert_eq!(at(0, ended()), [""; 0]);
    assert_eq!(at(1, ended()), ["-- Fri 1970-01-02 --"]);
    assert_eq!(at(3, ended()), ["-- Sun 1970-01-04 --"]);
}

#[test]
fn one_is_not_told_as_many() {
    let failed = proto::HandshakesFailed {
        count: 1,
        total: 1,
        ..proto::HandshakesFailed::default()
    };
    let text = failed.words().0;
    assert!(text.starts_with("1 handshake failed, 1 in all"), "{text}");
    let dropped = proto::DatagramsDropped {
        count: 1,
        total: 1,
        ..Default::default()
    };
    let text = dropped.words().0;
    assert_eq!(text, "the kernel dropped 1 datagram, 1 in all");
    let eof = proto::Eof { offset: 1 };
    assert_eq!(eof.words().0, "end of file after 1 byte");
    let data = proto::Data {
        data: bytes::Bytes::from_static(b"a"),
        ..proto::Data::default()
    };
    assert!(data.words().0.ends_with(" 1 byte: \"a\""), "{data:?}");
}
