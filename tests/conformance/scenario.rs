//! One script has the same history on every backend.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, Datagram, DatagramSpec, Event, FileChangeKind, ListenerSpec, PathChangeKind,
    PathSpec, PidSpec, ProcessSpec, ProcessStatus, RearmItem, SignalTarget, Stdio, Stream,
    TimerSpec, TlsOptions, WaterMarks, pid_spec, socket_address, watch,
};
use nix::sys::signal::Signal;
use tokio::net::TcpSocket;

use crate::CONFIG;
use crate::common::{
    Daemon, Scene, adopted, after, datagrams_at, exec, hang_up, in_terminal, inet, millis, post,
    read_pipe, reader, shell, signals, tcp, tcp_listener, tls, unix_socket,
};
use crate::datagrams::{port, socket};
use crate::terminals::Pty;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_same_script_gives_the_same_history_on_every_backend() {
    // The port stays taken, so that nobody else listens there.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let silent = socket.local_addr().unwrap().port();
    let epoll = history("", "epoll", silent).await;
    assert!(epoll.len() >= 11);
    for (policy, backend) in [
        ("", "poll"),
        ("", "select"),
        ("proactor", "io_uring"),
        ("sigchld", "epoll"),
        ("thread", "epoll"),
    ] {
        assert_eq!(
            history(policy, backend, silent).await,
            epoll,
            "{backend} with {policy:?} differs from epoll"
        );
    }
}

/// Returns the events of each named watch, without values that differ between runs. Nobody listens at
/// the port `silent`.
async fn history(policy: &str, backend: &str, silent: u16) -> BTreeMap<String, Vec<String>> {
    let config = format!("{CONFIG}{}", tls::sections());
    let daemon = Daemon::start(&config).await;
    let mut scene = Scene::new(daemon, policy, backend).await;
    timers(&mut scene).await;
    descriptors(&mut scene).await;
    streams(&mut scene).await;
    dialled(&mut scene, silent).await;
    encrypted(&mut scene).await;
    child(&mut scene).await;
    ended_on_a_stopped_loop(&mut scene).await;
    stranger(&mut scene).await;
    datagrams(&mut scene).await;
    terminal(&mut scene).await;
    paths_and_files(&mut scene).await;
    changed_in_place(&mut scene).await;
    let typed = child_with_a_terminal(&mut scene).await;
    let usr1 = add(&mut scene, "signal", signals(&["SIGUSR1"])).await;
    scene.daemon.signal(Signal::SIGUSR1);
    scene.recorder.first(usr1, "signal").await;
    scene
        .post(vec![post("topic", b"one"), post("topic", b"two")])
        .await;
    scene.settle().await;
    let mut normal = normalised(&scene);
    for lines in normal.values_mut() {
        lines.retain(|line| line != "named");
    }
    // The kernel hands its output over in any pieces.
    let output = scene.recorder.bytes(typed, Stream::Stdout);
    let lines = normal.entry("typed".to_owned()).or_default();
    lines.retain(|line| !line.starts_with("Stdout"));
    lines.push(String::from_utf8_lossy(&output).into_owned());
    scene.finish().await;
    normal
}

async fn add(scene: &mut Scene, name: &str, spec: Spec) -> u64 {
    let request = AddWatchRequest {
        name: name.into(),
        ..scene.request(spec)
    };
    let answer = scene.try_add(request).await.unwrap();
    answer.watch.unwrap().watch_id
}

async fn timers(scene: &mut Scene) {
    let once = add(scene, "once", after(Duration::from_millis(1))).await;
    scene.closed(once).await;
    let past = Spec::Timer(TimerSpec {
        schedule: Some(Schedule::AtMonotonicNs(1)),
        ..TimerSpec::default()
    });
    let past = add(scene, "past", past).await;
    scene.closed(past).await;
}

async fn descriptors(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = add(scene, "fd", reader(slot)).await;
    ours.write_all(b"x").unwrap();
    let ready = scene.recorder.first(id, "ready").await;
    hang_up(&ours);
    drop(ours);
    let item = RearmItem {
        watch_id: id,
        seq: ready.seq,
        readable: true,
        ..RearmItem::default()
    };
    assert!(scene.rearm(item).await);
    scene.recorder.nth(id, "ready", 2).await;
    scene.remove(id).await;

    let (reading, mut writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&reading);
    let id = add(scene, "pipe", read_pipe(slot)).await;
    for (n, piece) in [(1, "one"), (2, "two")] {
        writing.write_all(piece.as_bytes()).unwrap();
        scene.recorder.nth(id, "data", n).await;
    }
    drop(writing);
    scene.closed(id).await;
}

async fn streams(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    drop(theirs);
    let id = add(scene, "adopted", Spec::Connection(adopted(slot))).await;
    ours.write_all(b"hello").unwrap();
    scene.recorder.first(id, "data").await;
    let taken = scene.write(id, &[b'x'; 1 << 20]).await;
    scene.recorder.first(id, "write_paused").await;
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = vec![0; usize::try_from(taken).unwrap()];
        std::io::Read::read_exact(&mut ours, &mut all).unwrap();
        ours
    });
    scene.recorder.first(id, "write_resumed").await;
    drop(reading.await.unwrap());
    scene.closed(id).await;

    let listener = add(scene, "listener", Spec::Listener(tcp_listener())).await;
    let Some(watch::Status::Listener(status)) = scene.get(listener).await.status else {
        panic!("a listener has a listener's status");
    };
    let Some(socket_address::Address::Inet(address)) = status.addresses[0].address.clone() else {
        panic!("TCP has IP addresses");
    };
    let port = u16::try_from(address.port).unwrap();
    let mut ours = TcpStream::connect((address.ip.as_str(), port)).unwrap();
    let Some(Kind::Accepted(accepted)) = scene.recorder.first(listener, "accepted").await.kind
    else {
        panic!("accepted");
    };
    ours.write_all(b"over tcp").unwrap();
    scene.recorder.first(accepted.watch_id, "data").await;
    drop(ours);
    scene.closed(accepted.watch_id).await;
    scene.remove(listener).await;
}

/// A connection that the daemon opens, and on which TLS begins in mid-stream.
async fn dialled(scene: &mut Scene, silent: u16) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let id = add(
        scene,
        "dialled",
        Spec::Connection(tcp("127.0.0.1", port.into())),
    )
    .await;
    let mut peer = server.accept().unwrap().0;
    peer.write_all(b"go").unwrap();
    scene.recorder.first(id, "data").await;
    crate::start_tls::start(scene, id, 2, false).await.unwrap();
    let mut peer = tls::serve(peer, tls::server("web", false)).unwrap();
    scene.recorder.first(id, "tls_started").await;
    peer.write_all(b"secret").unwrap();
    scene.recorder.nth(id, "data", 2).await;
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    scene.closed(id).await;
    let refused = tcp("127.0.0.1", silent.into());
    let id = add(scene, "refused", Spec::Connection(refused)).await;
    scene.closed(id).await;
}

/// Two clients of a listener that has one connection at a time; the second cuts its stream.
async fn encrypted(scene: &mut Scene) {
    let spec = ListenerSpec {
        max_connections: 1,
        tls: Some(TlsOptions {
            config: "web".into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    };
    let listener = add(scene, "secure", Spec::Listener(spec)).await;
    let port = crate::listeners::port(scene, listener).await;
    let sockets = [(); 2].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
    for (nth, socket) in (1..).zip(sockets) {
        let mut peer = tls::shake(socket, tls::client(None), "localhost").unwrap();
        let connection = crate::listeners::accepted(scene, listener, nth).await;
        peer.write_all(b"secret").unwrap();
        scene.recorder.first(connection, "data").await;
        if nth == 1 {
            peer.conn.send_close_notify();
            peer.flush().unwrap();
        } else {
            peer.sock.shutdown(Shutdown::Write).unwrap();
        }
        scene.closed(connection).await;
    }
    scene.remove(listener).await;
}

async fn datagrams(scene: &mut Scene) {
    let spec = DatagramSpec {
        multicast_interface: "lo".into(),
        max_size: 8,
        ..datagrams_at(inet("0.0.0.0", 0))
    };
    let udp = add(scene, "udp", Spec::Datagram(spec)).await;
    let port = port(scene, udp).await;
    scene.join(udp, "239.1.2.7").await.unwrap();
    for (n, (ip, text)) in [
        ("127.0.0.1", "one"),
        ("239.1.2.7", "two"),
        ("127.0.0.1", ""),
        ("127.0.0.1", "much too long"),
    ]
    .into_iter()
    .enumerate()
    {
        let to = Some(inet(ip, port));
        scene.send_to(udp, text.as_bytes(), to).await.unwrap();
        scene.datagram_at(udp, n).await;
    }
    scene.leave(udp, "239.1.2.7").await.unwrap();
    let gone = socket().1;
    let to = Some(inet("127.0.0.1", gone));
    scene.send_to(udp, b"to nobody", to).await.unwrap();
    scene.recorder.first(udp, "datagram_error").await;
    scene.remove(udp).await;

    let path = scene.daemon.dir.path().join("receiver");
    let ours = UnixDatagram::bind(&path).unwrap();
    let spec = DatagramSpec {
        peer: Some(unix_socket(&path)),
        water_marks: Some(WaterMarks {
            high_bytes: Some(100),
            low_bytes: None,
        }),
        ..DatagramSpec::default()
    };
    let unix = add(scene, "unix", Spec::Datagram(spec)).await;
    scene.stop().await;
    for _ in 0..2 {
        scene.send_to(unix, b"waits", None).await.unwrap();
    }
    let high = WaterMarks {
        high_bytes: Some(1000),
        low_bytes: Some(200),
    };
    scene.set_water_marks(unix, Some(high)).await.unwrap();
    scene.run().await;
    for _ in 0..2 {
        let mut read = [0; 9];
        ours.set_read_timeout(Some(crate::common::PATIENCE))
            .unwrap();
        assert_eq!(ours.recv(&mut read).unwrap(), 5);
    }
    scene.remove(unix).await;
}

async fn terminal(scene: &mut Scene) {
    let pty = Pty::new();
    let slot = scene.daemon.handover().await.give(&pty.master);
    let id = add(scene, "terminal", read_pipe(slot)).await;
    for (n, word) in [(1, "once"), (2, "again")] {
        let mut terminal = pty.open();
        terminal.write_all(word.as_bytes()).unwrap();
        scene.recorder.nth(id, "data", n).await;
        drop(terminal);
        scene.settle().await;
    }
    pty.lock();
    scene.closed(id).await;
}

async fn child(scene: &mut Scene) {
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        stdin_water_marks: Some(WaterMarks {
            high_bytes: Some(0),
            low_bytes: None,
        }),
        ..shell("read word; echo $word; read word; echo $word >&2; read word; exit 3")
    };
    let id = add(scene, "child", Spec::Process(spec)).await;
    for (n, word) in [(1, "out\n"), (2, "err\n")] {
        scene.write(id, word.as_bytes()).await;
        scene.recorder.nth(id, "data", n).await;
    }
    scene.write(id, b"end\n").await;
    scene.closed(id).await;
}

/// A child that has ended, and whose time is over, when its loop first looks.
async fn ended_on_a_stopped_loop(scene: &mut Scene) {
    scene.stop().await;
    let spec = ProcessSpec {
        timeout: Some(millis(1)),
        ..shell("exit 5")
    };
    let began = std::time::Instant::now();
    let id = add(scene, "late", Spec::Process(spec)).await;
    let ended = |process: &ProcessStatus| {
        process.ended_untold && began.elapsed() > Duration::from_millis(100)
    };
    scene.process_until(id, "its end", ended).await;
    scene.run().await;
    scene.closed(id).await;
}

/// A process that is not the daemon's child.
async fn stranger(scene: &mut Scene) {
    let mut child = std::process::Command::new("sh")
        .args(["-c", "read word; exit 7"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let spec = PidSpec {
        process: Some(pid_spec::Process::Pid(child.id().try_into().unwrap())),
        ..PidSpec::default()
    };
    let id = add(scene, "stranger", Spec::Pid(spec)).await;
    child.wait().unwrap();
    scene.closed(id).await;
}

async fn paths_and_files(scene: &mut Scene) {
    let dir = scene.daemon.dir.path().join("watched");
    let log = dir.join("sub/log");
    std::fs::create_dir(&dir).unwrap();
    let spec = PathSpec {
        recursive: true,
        kinds: vec![
            PathChangeKind::Created.into(),
            PathChangeKind::Deleted.into(),
            PathChangeKind::Moved.into(),
        ],
        ..crate::paths::path(&dir)
    };
    let path = add(scene, "path", Spec::Path(spec)).await;
    scene.recorder.first(path, "path_synced").await;
    std::fs::create_dir(dir.join("sub")).unwrap();
    scene.recorder.nth(path, "path_changed", 1).await;
    let file = add(scene, "file", Spec::File(crate::files::file(&log, true))).await;
    crate::files::append(&log, "one");
    scene.recorder.first(file, "data").await;
    scene.recorder.nth(path, "path_changed", 2).await;
    std::fs::rename(&log, dir.join("log.1")).unwrap();
    scene.recorder.nth(path, "path_changed", 3).await;
    crate::files::append(&log, "two");
    scene.recorder.nth(file, "data", 2).await;
    scene.recorder.nth(path, "path_changed", 4).await;
    let whole = add(scene, "whole", Spec::File(crate::files::file(&log, false))).await;
    scene.closed(whole).await;
    scene.remove(path).await;
    scene.remove(file).await;
}

async fn changed_in_place(scene: &mut Scene) {
    let id = add(scene, "changed", crate::common::never()).await;
    let soon = Spec::Timer(TimerSpec {
        schedule: Some(Schedule::After(millis(1))),
        ..TimerSpec::default()
    });
    let path = "spec.timer.after";
    crate::updates::update(scene, id, Some(soon), &[path])
        .await
        .unwrap();
    scene.closed(id).await;
    let request = AddWatchRequest {
        name: "leased".into(),
        ..crate::lifetimes::leased(scene.request(crate::common::never()), millis(100))
    };
    let leased = scene
        .try_add(request)
        .await
        .unwrap()
        .watch
        .unwrap()
        .watch_id;
    scene.closed(leased).await;
}

async fn child_with_a_terminal(scene: &mut Scene) -> u64 {
    let line = "trap 'stty size' WINCH; trap 'echo interrupted' INT; stty -echo; echo up; \
                while read word; do echo got $word; done; echo end; exit 3";
    let spec = in_terminal(exec(&["bash", "-c", line]));
    let id = add(scene, "typed", Spec::Process(spec)).await;
    scene.output(id, "up\r\n").await;
    scene.write(id, b"one\n").await;
    scene.output(id, "got one\r\n").await;
    scene.resize(id, 33, 99).await.unwrap();
    scene.write(id, b"two\n").await;
    scene.output(id, "got two\r\n").await;
    let foreground = SignalTarget::Foreground;
    scene.send_signal(id, "SIGINT", foreground).await;
    scene.output(id, "interrupted\r\n").await;
    scene.write_eof(id).await;
    scene.closed(id).await;
    id
}

fn normalised(scene: &Scene) -> BTreeMap<String, Vec<String>> {
    let mut names = BTreeMap::from([(0, "loop".to_owned())]);
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in scene.recorder.recording.events() {
        if let Some(Kind::Added(added)) = &event.kind {
            let accepted = format!("accepted by {}", added.parent_watch_id);
            let unnamed = added.name.is_empty();
            let name = if unnamed {
                accepted
            } else {
                added.name.clone()
            };
            names.insert(event.watch_id, name);
        }
        let name = names[&event.watch_id].clone();
        all.entry(name).or_default().push(line(event));
    }
    // The daemon learns of the child's end and of the ends of its pipes in any order.
    for name in ["child", "late"] {
        if let Some(child) = all.get_mut(name) {
            let last = child.len() - 1;
            child[last - 3..last].sort();
        }
    }
    all
}

fn line(event: &Event) -> String {
    match event.kind.as_ref().unwrap() {
        Kind::Data(data) => format!("{:?} {} {:?}", data.stream(), data.offset, data.data),
        Kind::StreamEnd(end) => format!("end {:?} {} {:?}", end.stream(), end.offset, end.reason()),
        Kind::Exited(exited) => format!("exited {:?} {}", exited.status, exited.timed_out),
        Kind::Ready(ready) => format!("{ready:?}"),
        Kind::Closed(closed) => format!("closed {:?} {:?}", closed.reason(), closed.error),
        Kind::Posted(posted) => format!("{} {:?}", posted.topic, posted.payload),
        Kind::Signal(signal) => format!("signal {} {}", signal.number, signal.count),
        Kind::Connected(connected) => format!("connected with {:?}", connected.tls),
        Kind::Datagram(datagram) => {
            let Datagram {
                data, full_length, ..
            } = datagram;
            format!("datagram {data:?} of {full_length}")
        }
        Kind::DatagramError(error) => format!("{:?} by {}", error.error, error.reporter_ip),
        Kind::WritePaused(paused) if paused.buffered_bytes < 1000 => format!("{paused:?}"),
        Kind::Eof(eof) => format!("eof {}", eof.offset),
        Kind::TimerFired(fired) => format!("tick {} missed {}", fired.tick, fired.missed),
        Kind::PathChanged(changed) => {
            let kinds: Vec<_> = changed.kinds().collect();
            format!("{kinds:?} {} from {}", changed.path, changed.from_path)
        }
        Kind::PathRoot(root) => format!("root {} {}", root.present, root.is_directory),
        // A look may fall between a rename and what takes the name, or not.
        Kind::FileChanged(changed)
            if matches!(
                changed.change(),
                FileChangeKind::Rotated | FileChangeKind::Removed | FileChangeKind::Appeared
            ) =>
        {
            "named".to_owned()
        }
        Kind::FileChanged(changed) => {
            format!(
                "{:?} of {} at {}",
                changed.change(),
                changed.generation,
                changed.offset
            )
        }
        Kind::Updated(updated) => format!("updated {:?}", updated.fields),
        Kind::LoopStateChanged(change) => format!("{:?}", change.state()),
        other => evloopd::kinds::event_kind_name(other).to_owned(),
    }
}
