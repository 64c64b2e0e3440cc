//! What is known again when the daemon and its keeper were killed at once.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;

use evloopd::proto::event::Kind;
use evloopd::proto::socket_address::Address;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{
    Daemon, Scene, command_with_keeper, directory, loop_named, post, shell, within,
};
use crate::{BACKENDS, CONFIG, murder, resume, seconds, the_loop, timer};

/// A directory whose files are memory, as a runtime directory's are.
fn in_memory() -> Arc<TempDir> {
    Arc::new(TempDir::new_in("/dev/shm").unwrap())
}

async fn start_in(dir: &Arc<TempDir>) -> Daemon {
    let command = command_with_keeper(dir.path(), CONFIG, &[]);
    Daemon::start_as(Arc::clone(dir), command).await
}

/// Kills the keeper and its daemon.
async fn kill_both(daemon: &mut Daemon) {
    let life = Pid::from_raw(daemon.info().await.pid);
    let keeper = daemon.pid();
    // It cannot start another life in between.
    kill(keeper, Signal::SIGSTOP).unwrap();
    kill(life, Signal::SIGKILL).unwrap();
    kill(keeper, Signal::SIGKILL).unwrap();
    daemon.ended().await;
    within("the end of the daemon", async {
        while !has_ended(life) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Returns whether a process has ended, reaped or not.
fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('Z'))
    })
}

/// Kills both, and starts the next daemon in their place.
async fn murder_both(scene: &mut Scene) {
    let dir = Arc::clone(&scene.daemon.dir);
    kill_both(&mut scene.daemon).await;
    scene.daemon = start_in(&dir).await;
}

fn closed(kind: Option<Kind>) -> Closed {
    match kind {
        Some(Kind::Closed(closed)) => closed,
        other => panic!("{other:?}"),
    }
}

fn exited(kind: Option<Kind>) -> Exited {
    match kind {
        Some(Kind::Exited(exited)) => exited,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_that_lives_is_known_again_and_its_exit_is_exact() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start_in(&in_memory()).await, policy, backend).await;
        let line = "trap 'exit 9' USR1; echo first; while :; do sleep 0.02; done";
        let request = AddWatchRequest {
            name: "once".into(),
            if_exists: IfExists::Return.into(),
            ..scene.request(Spec::Process(shell(line)))
        };
        let first = scene.try_add(request.clone()).await.unwrap().watch.unwrap();
        let id = first.watch_id;
        scene.output(id, "first\n").await;
        let gone = scene.spawn(shell("exec sleep 1000")).await;
        let pid = Pid::from_raw(scene.process(id).await.pid);
        let other = Pid::from_raw(scene.process(gone).await.pid);
        let told = the_loop(&scene).await.journal.unwrap();
        // One ends when nobody lives who could see it.
        kill(scene.daemon.pid(), Signal::SIGSTOP).unwrap();
        let life = Pid::from_raw(scene.daemon.info().await.pid);
        kill(life, Signal::SIGSTOP).unwrap();
        kill(other, Signal::SIGKILL).unwrap();
        kill(life, Signal::SIGKILL).unwrap();
        kill(scene.daemon.pid(), Signal::SIGKILL).unwrap();
        scene.daemon.ended().await;
        within("the ends", async {
            while !has_ended(life) || !has_ended(other) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        scene.daemon = start_in(&Arc::clone(&scene.daemon.dir)).await;
        // The epoch is the same: nothing that was told is gone.
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        let Some(Kind::Recovered(recovered)) = recorder.first(0, "recovered").await.kind else {
            panic!("it is told");
        };
        assert_eq!(recovered.detail, "the daemon and its keeper were ended");
        for id in [id, gone] {
            let Some(Kind::StreamEnd(end)) = recorder.first(id, "stream_end").await.kind else {
                panic!("its end");
            };
            assert_eq!(end.reason(), StreamEndReason::Lost);
        }
        // Whoever adopted it may have reaped it before anybody could look.
        let seen = exited(recorder.first(gone, "exited").await.kind).status;
        let number = Signal::SIGKILL as i32;
        assert!(
            matches!(&seen, Some(exited::Status::Unknown(why)) if why.contains("keeper"))
                || seen == Some(exited::Status::Signal(number)),
            "{seen:?}"
        );
        recorder.first(gone, "closed").await;
        let status = scene.process(id).await;
        assert_eq!((status.pid, status.stdout_bytes), (pid.as_raw(), 6));
        // It keeps its name: it does not run twice.
        let again = scene.daemon.watches().add_watch(request).await.unwrap();
        assert_eq!(again.into_inner().watch.unwrap().watch_id, id);
        // The keeper of the next lives is not its parent.
        murder(&scene.daemon).await;
        let request = SendSignalRequest {
            r#loop: Some(scene.target.clone()),
            watch: crate::common::by_id(id),
            signal: "SIGUSR1".into(),
            ..SendSignalRequest::default()
        };
        scene.daemon.processes().send_signal(request).await.unwrap();
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        let exact = exited(recorder.first(id, "exited").await.kind);
        assert_eq!(exact.status, Some(exited::Status::Code(9)), "{backend}");
        let closed = closed(recorder.first(id, "closed").await.kind);
        assert_eq!(closed.reason(), CloseReason::Completed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_a_description_is_set_up_again_and_the_rest_closes_as_lost() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start_in(&in_memory()).await, policy, backend).await;
        let last = scene.post(vec![post("before", b"1")]).await;
        let ack = AckRequest {
            r#loop: Some(scene.target.clone()),
            consumer: "reader".into(),
            cursor: Some(Cursor {
                epoch: String::new(),
                seq: last,
            }),
            ..AckRequest::default()
        };
        scene.daemon.events().ack(ack).await.unwrap();
        let hour = scene
            .add(timer(timer_spec::Schedule::After(seconds(3600))))
            .await;
        let spec = ListenerSpec {
            target: Some(listener_spec::Target::Tcp(TcpListen {
                hosts: vec!["127.0.0.1".into()],
                ..TcpListen::default()
            })),
            ..ListenerSpec::default()
        };
        let listener = scene.add(Spec::Listener(spec)).await;
        let Some(watch::Status::Listener(status)) = scene.get(listener).await.status else {
            panic!("its status");
        };
        let port = port_of(&status.addresses[0]);
        let mut peer = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let Some(Kind::Accepted(accepted)) = scene.recorder.first(listener, "accepted").await.kind
        else {
            panic!("its connection");
        };
        let connection = accepted.watch_id;
        let spec = DatagramSpec {
            local: Some(inet(0)),
            ..DatagramSpec::default()
        };
        let socket = scene.add(Spec::Datagram(spec)).await;
        let Some(watch::Status::Datagram(status)) = scene.get(socket).await.status else {
            panic!("its status");
        };
        let to = port_of(&status.local.unwrap());
        let told = the_loop(&scene).await.journal.unwrap();
        let before = scene.get(hour).await;
        murder_both(&mut scene).await;
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        assert_eq!(scene.get(hour).await, before);
        let closed = closed(recorder.first(connection, "closed").await.kind);
        assert_eq!(closed.reason(), CloseReason::Lost);
        assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0);
        let Some(Kind::DatagramsDropped(dropped)) =
            recorder.first(socket, "datagrams_dropped").await.kind
        else {
            panic!("what may be missing");
        };
        assert!(dropped.queue_lost);
        let mut peer = TcpStream::connect(("127.0.0.1", port)).unwrap();
        peer.write_all(b"again").unwrap();
        recorder.first(listener, "accepted").await;
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"again", ("127.0.0.1", to)).unwrap();
        recorder.first(socket, "datagram").await;
        let request = GetConsumerRequest {
            r#loop: Some(scene.target.clone()),
            name: "reader".into(),
        };
        let consumer = scene.daemon.events().get_consumer(request).await.unwrap();
        let consumer = consumer.into_inner().consumer.unwrap();
        assert_eq!(consumer.acked.unwrap().seq, last);
    }
}

fn port_of(address: &SocketAddress) -> u16 {
    match &address.address {
        Some(Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn inet(port: u32) -> SocketAddress {
    SocketAddress {
        address: Some(Address::Inet(InetAddress {
            ip: "127.0.0.1".into(),
            port,
        })),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn histories_that_are_not_in_files_begin_a_new_epoch() {
    let mut scene = Scene::new(start_in(&directory()).await, "", "").await;
    let keeper = scene.daemon.status().await.keeper.unwrap();
    assert!(!keeper.journals_in_files);
    let spec = shell("while :; do sleep 0.02; done");
    let request = AddWatchRequest {
        name: "once".into(),
        if_exists: IfExists::Return.into(),
        ..scene.request(Spec::Process(spec))
    };
    let id = scene.try_add(request.clone()).await.unwrap();
    let id = id.watch.unwrap().watch_id;
    let before = the_loop(&scene).await;
    murder_both(&mut scene).await;
    let after = the_loop(&scene).await;
    assert_eq!(before.loop_id, after.loop_id);
    let (before, after) = (before.journal.unwrap(), after.journal.unwrap());
    assert_ne!(before.epoch, after.epoch);
    // No number of an event is used twice.
    assert!(after.newest_seq > before.newest_seq);
    let again = scene.daemon.watches().add_watch(request).await.unwrap();
    assert_eq!(again.into_inner().watch.unwrap().watch_id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_orderly_end_leaves_nothing_and_what_is_unknown_is_left_alone() {
    let dir = in_memory();
    let state = dir.path().join("evloopd.sock.state");
    let mut daemon = start_in(&dir).await;
    let told = daemon.status().await.keeper.unwrap();
    assert_eq!(told.state_directory, state.to_str().unwrap());
    assert!(
        told.journals_in_files && told.state_trouble.is_empty(),
        "{told:?}"
    );
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await, Some(0));
    assert!(!state.exists());
    let mut scene = Scene::new(start_in(&dir).await, "", "").await;
    kill_both(&mut scene.daemon).await;
    let table = state.join("table");
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[0] += 1;
    std::fs::write(&table, &bytes).unwrap();
    let refused = command_with_keeper(dir.path(), CONFIG, &[]).output().await;
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let log = String::from_utf8_lossy(&refused.stderr);
    assert!(log.contains("of another version"), "{log}");
    assert!(std::fs::read(&table).unwrap() == bytes);
    bytes[0] -= 1;
    std::fs::write(&table, &bytes).unwrap();
    scene.daemon = start_in(&dir).await;
    let request = GetLoopRequest {
        r#loop: Some(loop_named("scene")),
    };
    scene.daemon.loops().get_loop(request).await.unwrap();
}
