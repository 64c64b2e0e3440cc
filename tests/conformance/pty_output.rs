//! What a child writes to its terminal, and when that ends.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AtEnd, ProcessSpec, SignalTarget, Stdio, Stream, StreamEndReason, TerminalOptions,
    exited::Status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tonic::Code;

use crate::common::{Scene, exec, in_terminal, millis, refused, shell, within};

on_each_child_watcher!(
    a_kept_child_is_not_hung_up,
    a_grandchild_that_keeps_the_terminal_is_given_grace,
);

on_each_backend!(
    a_terminal_that_its_child_has_closed_goes_on,
    a_terminal_that_is_hung_up_goes_on,
    large_output_of_a_terminal_is_complete,
    a_terminal_is_the_controlling_one_and_knows_utf8,
    a_signal_reaches_the_foreground,
    term_is_what_the_terminal_is_called,
    streams_may_be_a_terminal_in_part,
);

/// Runs a process with a terminal to its end and returns its output.
async fn output(scene: &mut Scene, spec: ProcessSpec) -> String {
    let id = scene.spawn(in_terminal(spec)).await;
    scene.closed(id).await;
    let end = scene.stream_end(id).await;
    let output = scene.recorder.bytes(id, Stream::Stdout);
    assert_eq!(end.reason(), StreamEndReason::Eof, "{end:?}");
    assert_eq!(end.offset, output.len() as u64);
    String::from_utf8(output).unwrap()
}

/// Makes a FIFO in the daemon's directory.
pub(crate) fn fifo(scene: &Scene, name: &str) -> PathBuf {
    let path = scene.daemon.dir.path().join(name);
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU).unwrap();
    path
}

/// Opens a FIFO for writing once a child has opened it for reading.
pub(crate) async fn met(path: PathBuf) -> OwnedFd {
    within("the child at the FIFO", async {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        loop {
            match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(fifo) => return fifo,
                Err(Errno::NXIO) => tokio::task::yield_now().await,
                Err(errno) => panic!("{errno}"),
            }
        }
    })
    .await
}

/// Closing the master would send SIGHUP.
async fn a_kept_child_is_not_hung_up(scene: &mut Scene) {
    let fifo = fifo(scene, "kept");
    let line = format!("echo up; read x < {}; echo on; sleep 3600", fifo.display());
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..in_terminal(shell(&line))
    };
    let id = scene.spawn(spec).await;
    let pid = Pid::from_raw(scene.started(id).await);
    scene.output(id, "up").await;
    scene.remove(id).await;
    assert_eq!(
        scene.stream_end(id).await.reason(),
        StreamEndReason::Released
    );
    // It writes to the terminal when nobody watches it any more, and lives.
    drop(met(fifo.clone()).await);
    let discarded = |status: &evloopd::proto::GetStatusResponse| status.drained_bytes > 0;
    scene.daemon.until("the drained output", discarded).await;
    kill(pid, Signal::SIGKILL).expect("the kept child runs on");
}

async fn a_grandchild_that_keeps_the_terminal_is_given_grace(scene: &mut Scene) {
    let spec = ProcessSpec {
        pipe_grace: Some(millis(100)),
        ..in_terminal(shell("trap '' HUP; sleep 3600 & echo $!"))
    };
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    let end = scene.stream_end(id).await;
    assert_eq!(end.reason(), StreamEndReason::GraceExpired);
    let pid = String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap());
    kill(pid, Signal::SIGKILL).expect("the grandchild was not killed");
}

/// EIO is no end while the child lives.
async fn a_terminal_that_its_child_has_closed_goes_on(scene: &mut Scene) {
    let fifo = fifo(scene, "closed");
    let line = format!(
        "t=$(tty); echo first; exec </dev/null >/dev/null 2>&1; read x < {}; echo late > $t",
        fifo.display()
    );
    let id = scene.spawn(in_terminal(shell(&line))).await;
    let met = met(fifo).await;
    for _ in 0..3 {
        scene.settle().await;
    }
    drop(met);
    scene.closed(id).await;
    let all = scene.recorder.bytes(id, Stream::Stdout);
    assert_eq!(String::from_utf8_lossy(&all), "first\r\nlate\r\n");
    assert_eq!(scene.stream_end(id).await.reason(), StreamEndReason::Eof);
}

/// As login(1) does it: it hangs its terminal up and opens it again. Needs CAP_SYS_TTY_CONFIG.
async fn a_terminal_that_is_hung_up_goes_on(scene: &mut Scene) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let program = "import ctypes, os, signal, sys
t = os.ttyname(0)
print('first', flush=True)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
assert ctypes.CDLL(None).vhangup() == 0
sys.stdin.readline()
fd = os.open(t, os.O_RDWR)
os.write(fd, b'late\\n')
";
    let id = scene
        .spawn(in_terminal(exec(&["python3", "-c", program])))
        .await;
    scene.output(id, "late").await;
    scene.closed(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
}

async fn large_output_of_a_terminal_is_complete(scene: &mut Scene) {
    const BYTES: usize = 3_000_000;
    let line = format!("head -c {BYTES} /dev/zero");
    assert_eq!(output(scene, shell(&line)).await.len(), BYTES);
}

async fn a_terminal_is_the_controlling_one_and_knows_utf8(scene: &mut Scene) {
    let line = "echo x > /dev/tty; stty -a | grep -o '.iutf8'; stat -Lc %a $(tty)";
    let told = output(scene, shell(line)).await;
    assert_eq!(told, "x\r\n iutf8\r\n600\r\n");
}

/// The shell makes a process group for each job, which gets what the keys would send.
async fn a_signal_reaches_the_foreground(scene: &mut Scene) {
    for (signal, code) in [("SIGTERM", "143"), ("SIGQUIT", "131")] {
        let id = scene
            .spawn(in_terminal(exec(&[
                "bash",
                "-c",
                "set -m; sleep 3600; echo code $?",
            ])))
            .await;
        let pid = scene.started(id).await;
        scene
            .process_until(id, "a job in the foreground", |status| {
                let group = status.terminal.expect("a terminal").foreground_group;
                // Until it executes its program, the shell's child ignores signals.
                let program = std::fs::read_to_string(format!("/proc/{group}/comm"));
                ![0, pid].contains(&group) && program.is_ok_and(|program| program == "sleep\n")
            })
            .await;
        scene
            .send_signal(id, signal, SignalTarget::Foreground)
            .await;
        scene.output(id, &format!("code {code}\r\n")).await;
        scene.closed(id).await;
        assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
    }
}

async fn term_is_what_the_terminal_is_called(scene: &mut Scene) {
    let called = |term: &str| ProcessSpec {
        terminal: Some(TerminalOptions {
            term: term.into(),
            ..TerminalOptions::default()
        }),
        ..shell("echo $TERM")
    };
    assert_eq!(output(scene, called("vt52")).await, "vt52\r\n");
    let mut own = called("vt52");
    own.env.insert("TERM".into(), "vt220".into());
    assert_eq!(output(scene, own).await, "vt220\r\n");
    let spec = ProcessSpec {
        terminal: called("vt52").terminal,
        ..shell("echo $TERM")
    };
    let request = scene.request(Spec::Process(spec));
    let bad = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["spec.process.terminal"]);
}

async fn streams_may_be_a_terminal_in_part(scene: &mut Scene) {
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        stderr: Stdio::Pipe.into(),
        ..in_terminal(shell("cat; echo err >&2; test -t 1 && echo tty"))
    };
    let id = scene.spawn(spec).await;
    scene.write(id, b"in\n").await;
    scene.write_eof(id).await;
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"in\r\ntty\r\n");
    assert_eq!(scene.recorder.bytes(id, Stream::Stderr), b"err\n");
    let spec = ProcessSpec {
        stdout: Stdio::Pipe.into(),
        ..in_terminal(exec(&["true"]))
    };
    let request = scene.request(Spec::Process(spec));
    let bad = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["spec.process.stdout"]);
}
