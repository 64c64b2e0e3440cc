//! Pseudoterminals as pipes: EIO is an end only if nothing can open the terminal again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use evloopd::proto::{CloseReason, Stream, TransportStatus, watch};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tonic::Code;

use crate::common::{Scene, read_pipe, refused, write_pipe};

on_each_backend!(
    a_terminal_that_is_opened_again_goes_on,
    a_locked_terminal_that_nobody_has_open_is_at_its_end,
    a_terminal_whose_master_is_closed_is_at_its_end,
    a_terminal_is_written_as_long_as_it_can_be_opened,
    a_master_that_could_block_is_refused,
);

/// A pseudoterminal whose terminal nobody has opened yet.
pub(crate) struct Pty {
    pub(crate) master: OwnedFd,
    name: std::ffi::CString,
}

impl Pty {
    pub(crate) fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        Self { master, name }
    }

    /// Opens the terminal, as a program would that knows its name.
    pub(crate) fn open(&self) -> File {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        File::from(rustix::fs::open(&self.name, flags, Mode::empty()).unwrap())
    }

    /// Makes the kernel refuse to open the terminal.
    #[allow(unsafe_code)]
    pub(crate) fn lock(&self) {
        let locked: nix::libc::c_int = 1;
        let fd = self.master.as_fd().as_raw_fd();
        // SAFETY: the request reads one int, and `locked` is one.
        let result = unsafe { nix::libc::ioctl(fd, nix::libc::TIOCSPTLCK, &raw const locked) };
        assert_eq!(result, 0);
    }
}

/// Waits until the loop has seen what the test has done: a turn ends with what was posted in it.
async fn turns(scene: &mut Scene) {
    for _ in 0..3 {
        scene.settle().await;
    }
}

async fn a_terminal_that_is_opened_again_goes_on(scene: &mut Scene) {
    let pty = Pty::new();
    let slot = scene.daemon.handover().await.give(&pty.master);
    let mut terminal = pty.open();
    let id = scene.add(read_pipe(slot)).await;
    for (n, word) in [(1, "one"), (2, "two"), (3, "three")] {
        terminal.write_all(word.as_bytes()).unwrap();
        scene.recorder.nth(id, "data", n).await;
        drop(terminal);
        turns(scene).await;
        terminal = pty.open();
    }
    drop(terminal);
    turns(scene).await;
    // Paused and resumed while nobody has it open.
    scene.pause_reading(id, true).await;
    scene.pause_reading(id, false).await;
    let mut terminal = pty.open();
    terminal.write_all(b"four").unwrap();
    scene.recorder.nth(id, "data", 4).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"onetwothreefour");
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "data", "data", "data", "data"]
    );
    drop(terminal);
    turns(scene).await;
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
}

async fn a_locked_terminal_that_nobody_has_open_is_at_its_end(scene: &mut Scene) {
    // Locked before and after nobody has it open any more.
    for locked_first in [true, false] {
        let pty = Pty::new();
        let slot = scene.daemon.handover().await.give(&pty.master);
        let mut terminal = pty.open();
        let id = scene.add(read_pipe(slot)).await;
        terminal.write_all(b"last words").unwrap();
        scene.recorder.first(id, "data").await;
        if locked_first {
            pty.lock();
            turns(scene).await;
        }
        drop(terminal);
        if !locked_first {
            turns(scene).await;
            pty.lock();
        }
        let closed = scene.closed(id).await;
        assert_eq!(
            (closed.reason(), closed.error),
            (CloseReason::Completed, None)
        );
        assert_eq!(scene.recorder.kinds(id), ["added", "data", "eof", "closed"]);
    }
}

async fn a_terminal_whose_master_is_closed_is_at_its_end(scene: &mut Scene) {
    let pty = Pty::new();
    let terminal = pty.open();
    let slot = scene.daemon.handover().await.give(&terminal);
    let id = scene.add(read_pipe(slot)).await;
    File::from(pty.master.try_clone().unwrap())
        .write_all(b"line\n")
        .unwrap();
    scene.recorder.first(id, "data").await;
    drop((pty, terminal));
    let closed = scene.closed(id).await;
    assert_eq!(
        (closed.reason(), closed.error),
        (CloseReason::Completed, None)
    );
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"line\n");
}

async fn written(scene: &Scene, id: u64) -> TransportStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Transport(status)) => status,
        other => panic!("{other:?}"),
    }
}

fn set_echo(terminal: &File, echo: bool) {
    let mut attributes = tcgetattr(terminal).unwrap();
    attributes.local_modes.set(LocalModes::ECHO, echo);
    tcsetattr(terminal, OptionalActions::Now, &attributes).unwrap();
}

async fn a_terminal_is_written_as_long_as_it_can_be_opened(scene: &mut Scene) {
    let pty = Pty::new();
    let slot = scene.daemon.handover().await.give(&pty.master);
    let id = scene.add(write_pipe(slot)).await;
    let mut terminal = pty.open();
    for round in 0..2_u8 {
        // With an echo, the other side of the terminal has something to read too.
        set_echo(&terminal, round == 1);
        let line = [b'a' + round, b'\n'];
        scene.write(id, &line).await;
        let reading = tokio::task::spawn_blocking(move || {
            let mut read = [0; 2];
            terminal.read_exact(&mut read).unwrap();
            read
        });
        assert_eq!(reading.await.unwrap(), line);
        // Nobody has it open now.
        turns(scene).await;
        assert!(written(scene, id).await.connected);
        terminal = pty.open();
    }
    pty.lock();
    drop(terminal);
    let closed = scene.closed(id).await;
    assert_eq!(closed.error.unwrap().name, "EPIPE");
}

async fn a_master_that_could_block_is_refused(scene: &mut Scene) {
    let pty = Pty::new();
    rustix::fs::fcntl_setfl(&pty.master, OFlags::RDWR).unwrap();
    let handover = scene.daemon.handover().await;
    for (spec, field) in [
        (read_pipe(handover.give(&pty.master)), "spec.read_pipe.slot"),
        (
            write_pipe(handover.give(&pty.master)),
            "spec.write_pipe.slot",
        ),
    ] {
        let request = scene.request(spec);
        let blocking = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_eq!(blocking.fields, [field]);
    }
}
