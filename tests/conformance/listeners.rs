//! Listeners, and the connections they accept.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, ListenerSpec, Stream, TakeFdRequest, TcpListen, listener_spec, socket_address,
    watch,
};
use tonic::Code;

use crate::common::{Scene, by_id, hang_up, listener, refused, tcp_listener, unix_path};

on_each_backend!(
    each_connection_becomes_a_watch,
    a_burst_of_connections_is_all_accepted,
    a_taken_connection_goes_on_in_the_client,
    an_adopted_listener_accepts,
    an_adopted_listener_never_waits_in_accept,
    all_addresses_are_bound_or_none,
    a_stale_socket_file_is_replaced_and_a_live_one_is_not,
    removing_a_listener_keeps_its_connections,
    removing_a_listener_tells_how_many_connections_waited,
);

pub(crate) async fn listen(scene: &mut Scene, spec: ListenerSpec) -> u64 {
    scene.add(Spec::Listener(spec)).await
}

pub(crate) async fn port(scene: &Scene, id: u64) -> u16 {
    let Some(watch::Status::Listener(status)) = scene.get(id).await.status else {
        panic!("a listener has a listener's status");
    };
    match status.addresses[0].address.clone() {
        Some(socket_address::Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Returns the `nth` connection that the listener accepted.
pub(crate) async fn accepted(scene: &mut Scene, id: u64, nth: usize) -> u64 {
    match scene.recorder.nth(id, "accepted", nth).await.kind {
        Some(Kind::Accepted(accepted)) => accepted.watch_id,
        other => panic!("{other:?}"),
    }
}

/// Takes a connection out of the daemon.
pub(crate) async fn take(scene: &mut Scene, id: u64) -> TcpStream {
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let slot = taken.into_inner().slot;
    let fd = scene.daemon.handover().await.take(&slot);
    TcpStream::from(fd)
}

async fn each_connection_becomes_a_watch(scene: &mut Scene) {
    let mut request = scene.request(Spec::Listener(tcp_listener()));
    request.user_data = 77;
    request.labels = [("side".to_owned(), "server".to_owned())].into();
    let answer = scene.try_add(request).await.unwrap();
    let id = answer.watch.unwrap().watch_id;
    let port = port(scene, id).await;
    let mut ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let connection = accepted(scene, id, 1).await;
    let added = scene.recorder.first(connection, "added").await;
    assert_eq!(added.user_data, 77);
    let watch = scene.get(connection).await;
    assert_eq!(
        (watch.parent_watch_id, watch.labels["side"].as_str()),
        (id, "server")
    );

    ours.write_all(b"ping").unwrap();
    scene.recorder.first(connection, "data").await;
    scene.write(connection, b"pong").await;
    let mut pong = [0; 4];
    ours.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"pong");
    drop(ours);
    assert_eq!(
        scene.closed(connection).await.reason(),
        CloseReason::Completed
    );
    assert_eq!(scene.recorder.bytes(connection, Stream::Input), b"ping");
}

async fn a_burst_of_connections_is_all_accepted(scene: &mut Scene) {
    const BURST: usize = 150;
    let id = listen(scene, tcp_listener()).await;
    let port = port(scene, id).await;
    let ours: Vec<TcpStream> = (0..BURST)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    accepted(scene, id, BURST).await;
    drop(ours);
    for nth in 1..=BURST {
        let connection = accepted(scene, id, nth).await;
        scene.closed(connection).await;
    }
}

async fn a_taken_connection_goes_on_in_the_client(scene: &mut Scene) {
    let spec = ListenerSpec {
        start_paused: true,
        ..tcp_listener()
    };
    let id = listen(scene, spec).await;
    let mut ours = TcpStream::connect(("127.0.0.1", port(scene, id).await)).unwrap();
    ours.write_all(b"unread").unwrap();
    let connection = accepted(scene, id, 1).await;
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(connection),
        ..TakeFdRequest::default()
    };
    let taken = scene
        .daemon
        .watches()
        .take_fd(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(taken.received_bytes, 0);
    assert_eq!(
        scene.closed(connection).await.reason(),
        CloseReason::FdTaken
    );
    let fd = scene.daemon.handover().await.take(&taken.slot);
    let mut theirs = TcpStream::from(fd);
    theirs.set_nonblocking(false).unwrap();
    let mut read = [0; 6];
    theirs.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"unread");
}

async fn an_adopted_listener_accepts(scene: &mut Scene) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let handover = scene.daemon.handover().await;
    let adopted = |slot| listener(listener_spec::Target::Slot(slot));
    let request = scene.request(Spec::Listener(adopted(handover.give(&socket))));
    let blocking = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(
        blocking.fields,
        ["spec.listener.slot"],
        "the daemon does not change flags that it shares with the owner"
    );
    socket.set_nonblocking(true).unwrap();
    let id = listen(scene, adopted(handover.give(&socket))).await;
    drop(socket);
    let ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let connection = accepted(scene, id, 1).await;
    drop(ours);
    scene.closed(connection).await;
}

/// The owner shares the flags and the queue of an adopted listener. The loop goes on, whatever the
/// owner does to them.
async fn an_adopted_listener_never_waits_in_accept(scene: &mut Scene) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = socket.local_addr().unwrap().port();
    let slot = scene.daemon.handover().await.give(&socket);
    let id = listen(scene, listener(listener_spec::Target::Slot(slot))).await;
    socket.set_nonblocking(false).unwrap();
    for round in 1..=3 {
        let ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connection = accepted(scene, id, round).await;
        // The loop still serves calls.
        scene.settle().await;
        drop(ours);
        scene.closed(connection).await;
    }
    // The owner accepts some connections itself.
    let taken = std::thread::spawn(move || {
        for _ in 0..50 {
            let ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.accept();
            socket.set_nonblocking(false).unwrap();
            drop(ours);
        }
    });
    while !taken.is_finished() {
        scene.settle().await;
    }
    taken.join().unwrap();
    scene.settle().await;
}

async fn all_addresses_are_bound_or_none(scene: &mut Scene) {
    let taken = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let hosts = vec!["127.0.0.1".into(), "127.0.0.2".into()];
    let spec = listener(listener_spec::Target::Tcp(TcpListen {
        hosts,
        port: port.into(),
        ..TcpListen::default()
    }));
    let request = scene.request(Spec::Listener(spec.clone()));
    let error = scene.try_add(request).await.unwrap_err();
    let refusal = crate::common::refusal(&error);
    assert_eq!(
        (refusal.word("errno_name"), refusal.word("step")),
        ("EADDRINUSE", "bind")
    );
    assert_eq!(scene.open_watches().await, 0);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the address that was bound is released"
    );
    hang_up(&taken);
    drop(taken);
    listen(scene, spec).await;
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    TcpStream::connect(("127.0.0.2", port)).unwrap();
}

async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("listener.sock");
    let spec = listener(listener_spec::Target::Unix(unix_path(&path)));
    let live = UnixListener::bind(&path).unwrap();
    let request = scene.request(Spec::Listener(spec.clone()));
    let error = scene.try_add(request).await.unwrap_err();
    assert_eq!(
        crate::common::refusal(&error).word("errno_name"),
        "EADDRINUSE"
    );
    hang_up(&live);
    drop(live);
    let id = listen(scene, spec).await;
    let ours = UnixStream::connect(&path).unwrap();
    let connection = accepted(scene, id, 1).await;
    drop(ours);
    scene.closed(connection).await;
    scene.remove(id).await;
    // The daemon removes the file on another thread, because that can block.
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    crate::common::within("the removal of the file", gone).await;
}

async fn removing_a_listener_keeps_its_connections(scene: &mut Scene) {
    let id = listen(scene, tcp_listener()).await;
    let port = port(scene, id).await;
    let mut ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let connection = accepted(scene, id, 1).await;
    scene.remove(id).await;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    ours.write_all(b"x").unwrap();
    scene.recorder.first(connection, "data").await;
    let request = scene.request(Spec::Listener(ListenerSpec {
        backlog: 4097,
        ..tcp_listener()
    }));
    let bad = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["spec.listener.backlog"]);
}

async fn removing_a_listener_tells_how_many_connections_waited(scene: &mut Scene) {
    let full = |target| ListenerSpec {
        max_connections: 1,
        ..listener(target)
    };
    let hosts = vec!["127.0.0.1".into(), "127.0.0.2".into()];
    let both = full(listener_spec::Target::Tcp(TcpListen {
        hosts,
        ..TcpListen::default()
    }));
    let id = listen(scene, both).await;
    let port = port(scene, id).await;
    let connect = |host: &str| TcpStream::connect((host, port)).unwrap();
    let _open = connect("127.0.0.1");
    accepted(scene, id, 1).await;
    let _waiting = ["127.0.0.1", "127.0.0.2", "127.0.0.2"].map(connect);
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.unaccepted_connections, Some(3));

    let id = listen(scene, tcp_listener()).await;
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.unaccepted_connections, Some(0));

    let path = scene.daemon.dir.path().join("full.sock");
    let unix = full(listener_spec::Target::Unix(unix_path(&path)));
    let id = listen(scene, unix).await;
    let _open = UnixStream::connect(&path).unwrap();
    accepted(scene, id, 1).await;
    let _waiting = UnixStream::connect(&path).unwrap();
    scene.remove(id).await;
    let unknown = scene.closed(id).await.unaccepted_connections;
    assert_eq!(unknown, None, "the kernel does not tell");
}
