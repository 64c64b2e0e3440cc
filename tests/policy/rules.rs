//! The making of loops: names, inheritance of policies, backends, limits of the Windows policies.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{
    Daemon, Scene, connection, datagrams_at, exec, inet, listener, loop_named, never, read_pipe,
    reader, refused, signals, tcp, tcp_listener, unix_path, unix_socket, write_pipe, writer,
};
use crate::{get, new, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_that_extends_another_takes_its_missing_values() {
    let daemon = start().await;
    let request = ListEventLoopPoliciesRequest {};
    let list = daemon
        .policies()
        .list_event_loop_policies(request)
        .await
        .unwrap();
    let policies = list.into_inner().policies;
    let by_name = |name| policies.iter().find(|policy| policy.name == name).unwrap();
    let (later, base) = (by_name("later"), by_name("default"));
    assert_eq!(later.description, "Loops that wait for RunLoop");
    assert_eq!(
        (later.extends.as_str(), later.on_missing.as_str()),
        ("strict", "error")
    );
    assert_eq!(
        (later.start.as_str(), later.child_watcher.as_str()),
        ("created", "thread")
    );
    assert_eq!(later.backends, ["poll", "select"]);
    assert_eq!(later.finished_ttl.as_ref().unwrap().seconds, 7);
    assert_eq!(later.journal_events, 1000);
    assert_eq!(later.journal_bytes, base.journal_bytes);
    assert_eq!(
        (&later.watch_kinds, &later.context),
        (&base.watch_kinds, &base.context)
    );
    let windows = by_name("windows-selector-compat");
    assert!(windows.sockets_only && windows.max_sources == 512);
}

async fn make(
    daemon: &Daemon,
    request: NewEventLoopRequest,
) -> Result<NewEventLoopResponse, tonic::Status> {
    let answer = daemon.policies().new_event_loop(request).await?;
    Ok(answer.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_name_is_taken_until_its_loop_is_closed() {
    let daemon = start().await;
    let request = |if_exists: IfExists, policy: &str| NewEventLoopRequest {
        name: "mine".into(),
        policy: policy.into(),
        if_exists: if_exists.into(),
        ..NewEventLoopRequest::default()
    };
    let first = make(&daemon, request(IfExists::Unspecified, "later"))
        .await
        .unwrap();
    let first = first.r#loop.unwrap();
    for fail in [IfExists::Unspecified, IfExists::Fail] {
        let taken = make(&daemon, request(fail, "later")).await;
        refused(taken, Code::AlreadyExists, "NAME_TAKEN");
    }
    let same = make(&daemon, request(IfExists::Return, "later"))
        .await
        .unwrap();
    assert!(!same.created);
    assert_eq!(same.r#loop.unwrap().loop_id, first.loop_id);
    let other = make(&daemon, request(IfExists::Return, "strict")).await;
    let other = refused(other, Code::AlreadyExists, "NAME_TAKEN");
    assert_eq!(other.word("field"), "policy");
    let backend = NewEventLoopRequest {
        backend: "select".into(),
        ..request(IfExists::Return, "later")
    };
    let other = refused(
        make(&daemon, backend).await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );
    assert_eq!(other.word("field"), "backend");

    let close = CloseLoopRequest {
        r#loop: Some(loop_named("mine")),
        ..CloseLoopRequest::default()
    };
    daemon.loops().close_loop(close).await.unwrap();
    let second = make(&daemon, request(IfExists::Return, "later"))
        .await
        .unwrap();
    assert!(second.created && second.r#loop.unwrap().loop_id > first.loop_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_backend_outside_the_policy_is_an_error() {
    let daemon = start().await;
    let request = |policy: &str, backend: &str| NewEventLoopRequest {
        policy: policy.into(),
        backend: backend.into(),
        ..NewEventLoopRequest::default()
    };
    for backend in ["epoll", "poll", "select"] {
        let made = make(&daemon, request("", backend)).await.unwrap();
        assert_eq!(made.r#loop.unwrap().backend, backend);
    }
    let not_listed = make(&daemon, request("later", "epoll")).await.unwrap_err();
    assert!([Code::Unimplemented, Code::InvalidArgument].contains(&not_listed.code()));
    let elsewhere = make(&daemon, request("", "kqueue")).await;
    let elsewhere = refused(elsewhere, Code::FailedPrecondition, "BACKEND_UNAVAILABLE");
    assert_eq!(elsewhere.word("backend"), "kqueue");
    assert!(!elsewhere.word("reason").is_empty());
    for proactor in ["io_uring", "iocp"] {
        let refusal = make(&daemon, request("", proactor)).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(
            bad.fields,
            ["backend"],
            "the backend's class differs from the policy's"
        );
    }
    for selector in ["epoll", "kqueue"] {
        let bad = make(&daemon, request("proactor", selector)).await;
        refused(bad, Code::InvalidArgument, "INVALID_FIELD");
    }
    for backend in ["", "io_uring"] {
        let made = make(&daemon, request("proactor", backend)).await.unwrap();
        let made = made.r#loop.unwrap();
        assert_eq!(
            (made.loop_class.as_str(), made.backend.as_str()),
            ("proactor", "io_uring")
        );
    }
    let nonsense = make(&daemon, request("", "nonsense")).await;
    refused(nonsense, Code::InvalidArgument, "INVALID_FIELD");
    for bad in ["Upper", "-x", &"x".repeat(64)] {
        let refusal = new(&daemon, bad, "").await;
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_backend_lists_its_capabilities_and_why_it_is_unavailable() {
    let daemon = start().await;
    let answer = daemon
        .policies()
        .list_backends(ListBackendsRequest {})
        .await
        .unwrap();
    let backends = answer.into_inner().backends;
    let names: Vec<&str> = backends
        .iter()
        .map(|backend| backend.name.as_str())
        .collect();
    for name in ["epoll", "poll", "select", "io_uring", "kqueue", "iocp"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for backend in &backends {
        assert_eq!(
            backend.available,
            backend.unavailable_reason.is_empty(),
            "{backend:?}"
        );
        let silent = |c: &Capability| !c.supported && c.reason.is_empty();
        assert!(!backend.capabilities.iter().any(silent), "{backend:?}");
    }
    let select = backends
        .iter()
        .find(|backend| backend.name == "select")
        .unwrap();
    let fds = select
        .capabilities
        .iter()
        .find(|c| c.name == "watched_fds")
        .unwrap();
    assert!(fds.limit > 0 && fds.limit <= 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn configured_loops_exist_from_start() {
    let daemon =
        Daemon::start("[[loop]]\nname = \"build\"\nbind = true\n[[loop]]\nname = \"spare\"\n")
            .await;
    assert_eq!(get(&daemon).await.unwrap().name, "build");
    let answer = daemon
        .loops()
        .list_loops(ListLoopsRequest::default())
        .await
        .unwrap();
    assert_eq!(answer.into_inner().loops.len(), 2);
}

/// Both of Windows' loops have SSL, the proactor since Python 3.5.
async fn tls_is_allowed(scene: &mut Scene) {
    let listener = ListenerSpec {
        tls: Some(TlsOptions {
            config: "web".into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    };
    scene.add(Spec::Listener(listener)).await;
}

async fn start_with_tls() -> Daemon {
    let config = format!("{}{}", crate::CONFIG, crate::common::tls::sections());
    Daemon::start(&config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn windows_selector_loops_watch_sockets_only() {
    let mut scene = Scene::new(start_with_tls().await, "windows-selector-compat", "").await;
    scene.add(never()).await;
    scene.add(Spec::Listener(tcp_listener())).await;
    scene
        .add(Spec::Datagram(datagrams_at(inet("127.0.0.1", 0))))
        .await;
    let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let (reading, writing) = std::io::pipe().unwrap();
    let handover = scene.daemon.handover().await;
    let path = unix_path(std::path::Path::new("/tmp/some.sock"));
    tls_is_allowed(&mut scene).await;
    for spec in [
        Spec::Process(exec(&["true"])),
        signals(&["SIGUSR1"]),
        read_pipe(handover.give(&reading)),
        write_pipe(handover.give(&writing)),
        reader(handover.give(&reading)),
        Spec::Connection(connection(connection_spec::Target::Unix(path.clone()))),
        Spec::Listener(listener(listener_spec::Target::Unix(path))),
        Spec::Datagram(datagrams_at(unix_socket(std::path::Path::new(
            "/tmp/d.sock",
        )))),
        Spec::Datagram(DatagramSpec {
            slot: handover.give(&unix),
            ..DatagramSpec::default()
        }),
    ] {
        let request = scene.request(spec);
        let lacks = refused(
            scene.try_add(request).await,
            Code::Unimplemented,
            "NOT_SUPPORTED",
        );
        for key in ["class", "backend", "capability", "reason"] {
            assert!(!lacks.word(key).is_empty(), "{key} in {lacks:?}");
        }
    }
    assert_eq!(scene.open_watches().await, 4);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn windows_proactor_loops_watch_no_readers_datagrams_unix_sockets_or_signals() {
    let mut scene = Scene::new(start_with_tls().await, "windows-proactor-compat", "").await;
    let (reading, writing) = std::io::pipe().unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    scene.add(never()).await;
    scene.add(Spec::Listener(tcp_listener())).await;
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let connection_id = scene
        .add(Spec::Connection(tcp("127.0.0.1", port.into())))
        .await;
    scene.recorder.first(connection_id, "connected").await;
    scene.add(read_pipe(handover.give(&reading))).await;
    scene.add(write_pipe(handover.give(&writing))).await;
    let child = scene.add(Spec::Process(exec(&["true"]))).await;
    scene.closed(child).await;

    let path = unix_path(std::path::Path::new("/tmp/some.sock"));
    tls_is_allowed(&mut scene).await;
    for spec in [
        reader(handover.give(&ours)),
        writer(handover.give(&ours)),
        signals(&["SIGUSR1"]),
        Spec::Datagram(datagrams_at(inet("127.0.0.1", 0))),
        Spec::Connection(connection(connection_spec::Target::Unix(path.clone()))),
        Spec::Listener(listener(listener_spec::Target::Unix(path))),
    ] {
        let request = scene.request(spec);
        let lacks = refused(
            scene.try_add(request).await,
            Code::Unimplemented,
            "NOT_SUPPORTED",
        );
        assert_eq!(lacks.word("class"), "proactor");
        for key in ["backend", "capability", "reason"] {
            assert!(!lacks.word(key).is_empty(), "{key} in {lacks:?}");
        }
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn windows_selector_loops_watch_512_sockets() {
    let mut scene = Scene::new(start().await, "windows-selector-compat", "").await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    let mut slots = Vec::new();
    while slots.len() < 513 {
        let most = (513 - slots.len()).min(200);
        slots.extend(handover.give_all(&vec![theirs.as_fd(); most]));
    }
    let last = slots.pop().unwrap();
    let mut first = None;
    for slot in slots {
        let id = scene.add(reader(slot)).await;
        first = first.or(Some(id));
    }
    let request = scene.request(reader(last));
    let full = refused(
        scene.try_add(request).await,
        Code::ResourceExhausted,
        "LIMIT",
    );
    assert_eq!(full.word("value"), "512");
    scene.remove(first.unwrap()).await;
    scene.add(reader(handover.give(&theirs))).await;
    drop(ours);
    scene.finish().await;
}
