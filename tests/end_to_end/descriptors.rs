//! A daemon without a free file descriptor: it answers with the errno, and no slot is lost.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::pipe::pipe;
use tonic::Code;

use crate::common::{
    Daemon, Handover, Scene, adopted, exec, listener, never, reader, refused, tcp, tcp_listener,
};

const LIMIT: u64 = 64;
const GIVE: &[u8] = b"evloopd1";

/// Hands over copies of a socket until the daemon can open no more descriptors; returns the slots.
fn fill(handover: &Handover, socket: &UnixStream) -> Vec<Bytes> {
    let mut slots = Vec::new();
    loop {
        let (reply, _) = handover.ask(GIVE, &[socket.as_fd()]);
        match reply[0] {
            0 => slots.push(Bytes::copy_from_slice(&reply[1..])),
            2 => return slots,
            _ => panic!("{}", String::from_utf8_lossy(&reply[1..])),
        }
    }
}

fn read_pipe(source: read_pipe_spec::Source) -> Spec {
    Spec::ReadPipe(ReadPipeSpec {
        source: Some(source),
        ..ReadPipeSpec::default()
    })
}

/// A specification of each kind that needs descriptors, with its name.
struct Wanted {
    specs: Vec<(&'static str, Spec)>,
    _ours: Vec<OwnedFd>,
}

impl Wanted {
    fn new(daemon: &Daemon, handover: &Handover) -> Self {
        use read_pipe_spec::Source::{FifoPath, Slot};

        let name = daemon.dir.path().join("fifo");
        mkfifoat(CWD, &name, Mode::RUSR | Mode::WUSR).unwrap();
        let fifo = open(&name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (out, into) = pipe().unwrap();
        let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let unix = |name: &str| {
            let path = daemon.dir.path().join(name).display().to_string();
            let name = Some(unix_address::Name::Path(path));
            listener(listener_spec::Target::Unix(UnixAddress { name }))
        };
        let path = name.display().to_string();
        let specs = vec![
            ("an eventfd", reader(handover.give(&counter))),
            ("a FIFO", read_pipe(Slot(handover.give(&fifo)))),
            ("a pipe", read_pipe(Slot(handover.give(&out)))),
            ("a FIFO by name", read_pipe(FifoPath(path))),
            ("a child", Spec::Process(exec(&["sleep", "3600"]))),
            ("TCP", Spec::Listener(tcp_listener())),
            ("Unix", Spec::Listener(unix("listening"))),
        ];
        Self {
            specs,
            _ours: vec![fifo, into],
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_free_descriptor_calls_fail_with_emfile_and_use_up_no_slot() {
    let limit = format!("--nofile={LIMIT}:{LIMIT}");
    let daemon = Daemon::start_by(&["prlimit", &limit], "").await;
    let mut scene = Scene::new(daemon, "", "").await;
    let handover = scene.daemon.handover().await;
    let empty = scene.daemon.open_fds().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let wanted = Wanted::new(&scene.daemon, &handover);
    let plain = handover.give(&theirs);
    let connected = handover.give(&ours);
    let before = scene.daemon.open_fds().await;
    let filling = fill(&handover, &theirs);

    // More descriptors than the limit may be open, if the daemon has inherited some beyond it.
    let full = scene.daemon.status().await.open_fds.unwrap_or(LIMIT);
    assert!(full >= LIMIT, "{full}");
    for (what, spec) in &wanted.specs {
        let request = scene.request(spec.clone());
        let answer = scene.try_add(request).await;
        let status = answer.expect_err(what);
        let why = refused::<()>(Err(status), Code::ResourceExhausted, "SYSTEM");
        assert_eq!(why.word("errno_name"), "EMFILE", "{what}");
    }
    let id = scene.add(Spec::Connection(tcp("127.0.0.1", 9))).await;
    let closed = scene.closed(id).await;
    assert_eq!(closed.error.expect("why").name, "EMFILE");
    let backends = ["epoll", "poll", "select"].map(|backend| ("default", backend));
    for (policy, backend) in backends.into_iter().chain([("proactor", "io_uring")]) {
        let request = NewEventLoopRequest {
            policy: policy.into(),
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        let made = scene.daemon.policies().new_event_loop(request).await;
        let why = refused(made, Code::ResourceExhausted, "SYSTEM");
        assert_eq!(why.word("errno_name"), "EMFILE", "{backend}");
    }
    // Watches whose descriptors are already in the daemon, or that need none, can be added.
    let mut ids = vec![scene.add(never()).await];
    ids.push(scene.add(reader(plain)).await);
    ids.push(scene.add(Spec::Connection(adopted(connected))).await);

    // One descriptor is free. Handing over takes a second one, which the daemon needs to check the
    // first.
    let mut filling = filling.into_iter();
    drop(handover.take(&filling.next().unwrap()));
    let one = |s: &GetStatusResponse| s.open_fds == Some(full - 1);
    scene.daemon.until("one descriptor to be free", one).await;
    let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (reply, _) = handover.ask(GIVE, &[counter.as_fd()]);
    let text = String::from_utf8_lossy(&reply[1..]).into_owned();
    assert!(reply[0] == 7 && text.contains("EMFILE"), "{text}");

    for slot in filling {
        drop(handover.take(&slot));
    }
    let all = |s: &GetStatusResponse| s.open_fds == Some(before);
    scene.daemon.until("all to be free again", all).await;
    for (_, spec) in wanted.specs {
        ids.push(scene.add(spec).await);
    }
    for id in ids {
        scene.remove(id).await;
        scene.closed(id).await;
    }
    let none = |s: &GetStatusResponse| s.open_fds == Some(empty);
    scene
        .daemon
        .until("as few open descriptors as at the start", none)
        .await;
    scene.finish().await;
}
