//! The time from the end of a life of the daemon to the first answer of the next, and the memory
//! that the keeper has for itself.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::loop_service_client::LoopServiceClient;
use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    GetEventLoopRequest, GetLoopRequest, GetServerInfoRequest, ListWatchesRequest, Loop, Post,
    PostRequest,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_open, setrlimit,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::pipes::pipes;
use crate::report::{Report, Side, Target, in_turns};

const WATCHES: usize = 10_000;
/// How many are handed over at once: fewer than the slots that one principal may use.
const CHUNK: usize = 1000;
const EVENTS: u64 = 1_000_000;
/// The number of events in one Post.
const POSTS: u64 = 1000;

/// The most milliseconds from a death to the first answer.
const RECOVER_MAX: f64 = 500.0;
/// The most KiB that the keeper may have for itself.
const KEEPER_MAX: f64 = 2048.0;

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// A journal with room for all events. Lives that end soon after their start are followed by the next
/// one without a delay.
fn config(backend: &str) -> String {
    format!(
        "version = 1\n[server]\nrestarts = 1000\nrestart_delay = \"0s\"\n\
         [limits]\nmemory = \"4GiB\"\n{}\
         journal_events = 20000000\njournal_bytes = \"2GiB\"\n",
        Daemon::on(backend)
    )
}

/// A daemon with watches and events.
struct Full {
    daemon: Daemon,
    /// While they are open, no pipe that is watched ends.
    _writers: Vec<OwnedFd>,
}

impl Full {
    fn start(runtime: &Runtime, backend: &str, events: u64) -> Outcome<Self> {
        let daemon = Daemon::start_kept(&config(backend))?;
        let mut all = Vec::new();
        runtime.block_on(async {
            let channel = daemon.connect().await?;
            for _ in 0..WATCHES / CHUNK {
                let (readers, writers) = pipes(CHUNK)?;
                daemon.watch_pipes(channel.clone(), &readers).await?;
                all.extend(writers);
            }
            post(channel, events).await
        })?;
        Ok(Self {
            daemon,
            _writers: all,
        })
    }

    /// Ends the present life, and returns the milliseconds until the loop answers in the next one.
    fn end(&self, runtime: &Runtime, signal: Signal) -> Outcome<f64> {
        let channel = runtime.block_on(self.daemon.connect())?;
        let before = runtime.block_on(ask(channel.clone()))?;
        let asked = AdminServiceClient::new(channel.clone());
        let info = runtime.block_on(async move {
            let mut asked = asked;
            asked.get_server_info(GetServerInfoRequest {}).await
        })?;
        let pid = Pid::from_raw(info.into_inner().pid).ok_or("no pid")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        drop(channel);

        let begun = Instant::now();
        kill_process(pid, signal)?;
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)?;
        let again = runtime.block_on(async { ask(self.daemon.connect().await?).await })?;
        let taken = millis(begun);
        let counts = |of: &Loop| (of.open_watches, newest(of));
        let (was, is) = (counts(&before), counts(&again));
        if was.0 != is.0 || was.1 >= is.1 {
            return Err(format!("it has not gone on: {was:?}, then {is:?}").into());
        }
        Ok(taken)
    }
}

fn newest(of: &Loop) -> u64 {
    of.journal.as_ref().map_or(0, |journal| journal.newest_seq)
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Returns the state of the caller's loop. The loop answers after it has taken up its watches.
async fn ask(channel: Channel) -> Outcome<Loop> {
    let request = ListWatchesRequest {
        page_size: 1,
        ..ListWatchesRequest::default()
    };
    let mut watches = WatchServiceClient::new(channel.clone());
    watches.list_watches(request).await?;
    let mut loops = LoopServiceClient::new(channel);
    let answer = loops.get_loop(GetLoopRequest::default()).await?;
    Ok(answer.into_inner().r#loop.ok_or("no loop in the answer")?)
}

async fn post(channel: Channel, events: u64) -> Outcome<()> {
    let mut client = EventServiceClient::new(channel);
    let posts = vec![
        Post {
            payload: Bytes::from_static(&[b'x'; 32]),
            ..Post::default()
        };
        usize::try_from(POSTS)?
    ];
    for _ in 0..events / POSTS {
        let request = PostRequest {
            posts: posts.clone(),
            ..PostRequest::default()
        };
        client.post(request).await?;
    }
    Ok(())
}

/// Returns the milliseconds from the start of a daemon without loops until a new loop answers.
fn start_empty(runtime: &Runtime, backend: &str) -> Outcome<f64> {
    let begun = Instant::now();
    let daemon = Daemon::start_kept(&config(backend))?;
    runtime.block_on(async {
        let channel = daemon.connect().await?;
        let mut policies = PolicyServiceClient::new(channel.clone());
        policies
            .get_event_loop(GetEventLoopRequest::default())
            .await?;
        ask(channel).await
    })?;
    Ok(millis(begun))
}

/// Has the daemons that are started from now on write cores into their own directories. Returns why
/// there are none.
fn write_cores() -> Outcome<Result<(), String>> {
    let pattern = std::fs::read_to_string(CORE_PATTERN)?;
    if pattern.starts_with('|') || pattern.contains('/') || pattern.trim().is_empty() {
        return Ok(Err(format!("{CORE_PATTERN} is {}", pattern.trim())));
    }
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    Ok(setrlimit(Resource::Core, unlimited).map_err(|error| format!("RLIMIT_CORE: {error}")))
}

/// Removes what was dumped into that directory, and returns its KiB.
fn take_cores(directory: PathBuf) -> Outcome<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut kib = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("core") {
            kib += entry.metadata()?.blocks() / 2;
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(kib)
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let cores = write_cores()?;
    for backend in ["epoll", "io_uring"] {
        let full = Full::start(runtime, backend, EVENTS)?;
        let mut dumped = Vec::new();
        let mut sides: Vec<Side<'_, f64>> = vec![
            Box::new(|| full.end(runtime, Signal::KILL)),
            Box::new(|| start_empty(runtime, backend)),
        ];
        if cores.is_ok() {
            sides.push(Box::new(|| {
                let taken = full.end(runtime, Signal::ABORT)?;
                dumped.push(take_cores(full.daemon.directory().to_owned())?);
                Ok(taken)
            }));
        }
        let mut taken = in_turns(sides)?.into_iter();
        let (killed, started) = (
            taken.next().unwrap_or_default(),
            taken.next().unwrap_or_default(),
        );
        let target = Some(Target::AtMost(RECOVER_MAX));
        report.figure(("recover_ms", backend), target, killed.clone());
        match (&cores, taken.next()) {
            (Ok(()), Some(aborted)) if dumped.iter().all(|kib| *kib > 0) => {
                report.figure(("recover_ms_core_dumped", backend), target, aborted);
                let kib = dumped.into_iter().map(u32::try_from);
                let kib = kib.map(|kib| kib.map_or(f64::NAN, f64::from));
                report.figure(("core_kib", backend), None, kib.collect());
            }
            (Err(why), _) => eprintln!("no core is dumped: {why}"),
            _ => return Err("no core was dumped".into()),
        }
        let name = ("recover_vs_empty_start", backend);
        report.ratio(name, "ms", None, (killed, started));
    }
    Ok(())
}

pub(crate) fn run_keeper(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let full = Full::start(runtime, "epoll", 0)?;
    let mut measured = vec![private_kib(full.daemon.id())?];
    full.end(runtime, Signal::KILL)?;
    measured.push(private_kib(full.daemon.id())?);
    let target = Some(Target::AtMost(KEEPER_MAX));
    report.figure(("keeper_private_kib", ""), target, measured);
    Ok(())
}

/// Returns the memory that a process has changed and shares with no other.
fn private_kib(pid: u32) -> Outcome<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:")?.strip_suffix("kB"))
        .ok_or("no Private_Dirty")?;
    Ok(f64::from(kib.trim().parse::<u32>()?))
}
