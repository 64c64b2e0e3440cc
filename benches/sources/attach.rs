//! From the start of a client until it has shown the whole screen of a terminal that has written a
//! gigabyte, compared with `tmux attach`.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, GetWatchRequest, ProcessSpec, Stdio, WatchRef, WatchSpec, process_spec, watch,
    watch_ref, watch_spec,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::report::{Report, Target, alternate};
use crate::tmux::{Tmux, build_log};

/// The file, and how often it is written.
const BYTES: usize = 16 << 20;
const TIMES: u64 = 60;
/// The last that is written.
const END: &str = "that was all";
/// The name of the process.
const NAME: &str = "log";
/// The time after which the output is not complete.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long after the output's end the first client comes.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    if !Tmux::is_there() {
        eprintln!("  left out: there is no tmux");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log");
    let shown = build_log(&log, BYTES)?;
    let line = format!(
        "i=0; while [ $i -lt {TIMES} ]; do cat {}; i=$((i+1)); done; echo {END}; exec sleep 3600",
        log.display()
    );
    let daemon = Daemon::start()?;
    runtime.block_on(written(&daemon, &line, shown * TIMES))?;
    let tmux = Tmux::start(&line)?;
    tmux.shows(END)?;
    std::thread::sleep(PAUSE);
    let attach = || {
        let mut client = Command::new("setsid");
        client.args(["-c", env!("CARGO_BIN_EXE_evloopctl"), "attach", NAME]);
        client.env("EVLOOPD_SOCKET", daemon.socket());
        shows(client)
    };
    let theirs = || {
        let mut client = Command::new("setsid");
        client.arg("-c").args(tmux.client()).arg("attach");
        client.env_remove("TMUX");
        shows(client)
    };
    let times = alternate(attach, theirs)?;
    let target = Some(Target::AtMost(1.2));
    report.ratio(("attach_screen_vs_tmux", ""), "ms", target, times);
    Ok(())
}

/// Starts the process, and waits until it has written all.
async fn written(daemon: &Daemon, line: &str, bytes: u64) -> Outcome<()> {
    let mut watches = WatchServiceClient::new(daemon.connect().await?);
    let pty = Stdio::Pty.into();
    let spec = ProcessSpec {
        command: Some(process_spec::Command::Shell(line.to_owned())),
        stdin: pty,
        stdout: pty,
        stderr: pty,
        ..ProcessSpec::default()
    };
    let request = AddWatchRequest {
        name: NAME.into(),
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(spec)),
        }),
        ..AddWatchRequest::default()
    };
    watches.add_watch(request).await?;
    let begun = Instant::now();
    loop {
        let request = GetWatchRequest {
            watch: Some(WatchRef {
                r#ref: Some(watch_ref::Ref::Name(NAME.into())),
            }),
            ..GetWatchRequest::default()
        };
        let answer = watches.get_watch(request).await?.into_inner();
        match answer.watch.and_then(|watch| watch.status) {
            Some(watch::Status::Process(process)) if process.stdout_bytes > bytes => return Ok(()),
            _ if begun.elapsed() > PATIENCE => return Err("the output does not end".into()),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Runs a client in a terminal of its own until it shows the end of the output; the time in ms.
fn shows(mut client: Command) -> Outcome<f64> {
    let (mut master, slave) = terminal()?;
    client.env("TERM", "xterm-256color");
    client
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    let begun = Instant::now();
    let mut client = client.spawn()?;
    let shown = read_until(&mut master, END.as_bytes());
    let taken = begun.elapsed();
    // The client gets a hang-up, and leaves.
    drop(master);
    end(&mut client)?;
    shown?;
    Ok(taken.as_secs_f64() * 1e3)
}

fn end(client: &mut Child) -> Outcome<()> {
    let begun = Instant::now();
    while client.try_wait()?.is_none() {
        if begun.elapsed() > Duration::from_secs(5) {
            client.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn terminal() -> Outcome<(std::fs::File, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master.as_fd(), size)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master.into(), slave))
}

/// Reads until the text has come.
fn read_until(master: &mut std::fs::File, text: &[u8]) -> Outcome<()> {
    let mut all = Vec::new();
    let mut piece = [0; 16 * 1024];
    while !all.windows(text.len()).any(|window| window == text) {
        match master.read(&mut piece)? {
            0 => return Err("the client has ended".into()),
            read => all.extend_from_slice(&piece[..read]),
        }
    }
    Ok(())
}
