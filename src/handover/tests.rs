//! Tests of the handover socket with a running server.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};

use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{FdFlags, fcntl_getfd};
use tokio::sync::oneshot;

use super::*;
use crate::access::Principal;

struct Served {
    client: Client,
    slots: Arc<Slots>,
    owner: Peer,
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    stop: Option<oneshot::Sender<()>>,
    ended: Receiver<()>,
}

impl Served {
    fn start(access: Access, capacity: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        let BoundSocket { listener, file } = bind(&path).unwrap();
        let slots = Slots::new(capacity, SLOT_TTL);
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = sync_channel(1);
        let table = Arc::clone(&slots);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let shutdown = async move { drop(stopped.await) };
            let (_sender, fresh) = mpsc::channel(1);
            let served = serve(listener, fresh, Arc::new(access), table, shutdown);
            runtime.block_on(served).unwrap();
            drop(file);
            end.send(()).unwrap();
        });
        Self {
            client: Client::connect(&path).unwrap(),
            slots,
            owner: Peer {
                principal: Principal::uid(rustix::process::geteuid().as_raw()),
                uid: 0,
                gid: 0,
                pid: 0,
                process: None,
                administrator: false,
            },
            _directory: directory,
            path,
            stop: Some(stop),
            ended,
        }
    }

    fn claim(&self, slot: &Slot) -> Claimed {
        self.slots.claim("slot", &self.owner, slot).unwrap()
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        self.ended.recv().unwrap();
    }
}

#[test]
fn as_many_as_fit_in_a_datagram_arrive_in_order() {
    let served = Served::start(Access::new(), 2 * FDS_MAX);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (0..FDS_MAX).map(|_| UnixStream::pair().unwrap()).unzip();
    let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    let slots = served.client.give(&fds).unwrap();
    drop(theirs);
    assert_eq!(slots.len(), FDS_MAX);
    for (mut ours, (slot, number)) in ours.into_iter().zip(slots.iter().zip(0_u16..)) {
        let (fd, giver) = served.claim(slot).keep();
        assert_eq!(fcntl_getfd(&fd), Ok(FdFlags::CLOEXEC));
        assert_eq!(giver.unwrap().pid(), rustix::process::getpid().as_raw_pid());
        UnixStream::from(fd)
            .write_all(&number.to_le_bytes())
            .unwrap();
        let mut read = Vec::new();
        ours.read_to_end(&mut read).unwrap();
        assert_eq!(read, number.to_le_bytes());
    }
    assert!(served.slots.is_empty());
}

#[test]
fn one_refused_descriptor_refuses_all_and_closes_them() {
    let served = Served::start(Access::new(), 8);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (path, kind) in [
        ("/proc/self/exe", "a regular file"),
        ("/proc/self/mountinfo", "a regular file"),
        ("/dev/null", "a character device"),
        (directory.path().to_str().unwrap(), "a directory"),
    ] {
        let file = File::open(path).unwrap();
        let refused = served.client.give(&[theirs.as_fd(), file.as_fd()]);
        let message = refused.unwrap_err().to_string();
        assert!(
            message.starts_with("file descriptor 2 of 2 is"),
            "{message}"
        );
        assert!(message.contains(kind), "{message}");
    }
    assert!(served.slots.is_empty());
    drop(theirs);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_epoll_watches_is_taken() {
    let (stream, _other) = UnixStream::pair().unwrap();
    let (pipe, _writer) = io::pipe().unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let terminal = File::open("/dev/ptmx").unwrap();
    let own = rustix::process::getpid();
    let process = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    let scratch = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for fd in [
        stream.as_fd(),
        pipe.as_fd(),
        event.as_fd(),
        terminal.as_fd(),
        process.as_fd(),
        scratch.as_fd(),
    ] {
        assert!(file::inspect(fd).is_ok());
    }
    let path = rustix::fs::OFlags::PATH;
    let opened = rustix::fs::open("/dev/ptmx", path, rustix::fs::Mode::empty()).unwrap();
    let refusal = check_kinds(&[opened]).unwrap_err();
    let refusal = format!("{refusal:?}");
    assert!(refusal.contains("O_PATH"), "{refusal}");
}

#[test]
fn a_connection_survives_what_it_is_refused() {
    let served = Served::start(Access::new(), 1);
    let (mut ours, theirs) = UnixStream::pair().unwrap();

    let malformed = served.client.give(&[]).unwrap_err();
    assert!(
        malformed
            .to_string()
            .starts_with("the datagram has 8 bytes and 0 file descriptors")
    );
    let unknown = served.client.take(&[7; SLOT_BYTES]).unwrap_err();
    assert!(unknown.to_string().contains("there is no such slot"));
    let too_many = served
        .client
        .give(&[theirs.as_fd(), theirs.as_fd()])
        .unwrap_err();
    assert!(too_many.to_string().contains("limits.slots = 1"));

    let slot = served.client.give(&[theirs.as_fd()]).unwrap()[0];
    drop(theirs);
    let mut back = UnixStream::from(served.client.take(&slot).unwrap());
    back.write_all(b"there and back").unwrap();
    drop(back);
    let mut read = String::new();
    // This ends only if the daemon has kept no copy of the descriptor.
    ours.read_to_string(&mut read).unwrap();
    assert_eq!(read, "there and back");
    served.client.take(&slot).unwrap_err();
}

#[test]
fn who_is_not_served_is_told_so() {
    let served = Served::start(Access::nobody(), 8);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    for _ in 0..100 {
        let client = Client::connect(&served.path).unwrap();
        let refused = client.give(&[theirs.as_fd()]).unwrap_err().to_string();
        assert!(refused.contains("is not served here"), "{refused}");
    }
    drop(theirs);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_end_closes_connections_and_removes_the_socket() {
    let mut served = Served::start(Access::new(), 8);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    served.client.give(&[theirs.as_fd()]).unwrap();
    served.stop();
    assert!(served.client.give(&[theirs.as_fd()]).is_err());
    assert!(!served.path.exists());
}
