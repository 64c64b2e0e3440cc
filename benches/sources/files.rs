//! Changes of paths and bytes of a growing file until a client has them, compared with inotifywait and
//! with `tail -F`; and the arming of calendar timers.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{
    EventKind, FileSpec, Filter, PathChangeKind, PathSpec, StartAt, SubscribeRequest, TimerSpec,
    event, timer_spec, watch_spec::Spec,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription, add_watch, add_watches};
use crate::report::{Report, Target, alternate};
use crate::source::BACKENDS;

/// The files of a round that are made, written and deleted, and how many until all is received: with
/// four events each they fit the kernel's queue.
const FILES: usize = 20_000;
const AT_ONCE: usize = 500;
const EVENTS_EACH: usize = 4;
/// The bytes of a round of a growing file, and of one write.
const BYTES: u64 = 256 << 20;
const WRITE: usize = 64 << 10;
/// What the client lets the daemon send ahead, bytes.
const IN_FLIGHT: u32 = 1 << 20;
const TIMERS: u32 = 1_000;

/// A program that is ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn touch(directory: &Path, number: usize) -> Outcome<()> {
    let file = directory.join(format!("file-{number}"));
    File::create(&file)?.write_all(b"x")?;
    Ok(fs::remove_file(&file)?)
}

/// Touches files in batches; `wait` waits until that many more events are there. Returns events/s.
fn storm(directory: &Path, mut wait: impl FnMut(usize) -> Outcome<()>) -> Outcome<f64> {
    let begun = Instant::now();
    for batch in 0..FILES / AT_ONCE {
        for number in 0..AT_ONCE {
            touch(directory, batch * AT_ONCE + number)?;
        }
        wait(AT_ONCE * EVENTS_EACH)?;
    }
    let events = f64::from(u32::try_from(FILES * EVENTS_EACH)?);
    Ok(events / begun.elapsed().as_secs_f64())
}

pub(crate) fn run_paths(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let directory = tempfile::tempdir()?;
        let daemon = Daemon::start_on(backend)?;
        let kinds = [
            PathChangeKind::Created,
            PathChangeKind::Modified,
            PathChangeKind::WriteEnded,
            PathChangeKind::Deleted,
        ];
        let spec = Spec::Path(PathSpec {
            path: directory.path().to_string_lossy().into_owned(),
            kinds: kinds.map(i32::from).to_vec(),
            ..PathSpec::default()
        });
        let mut stream = runtime.block_on(async {
            let channel = daemon.connect().await?;
            let mut synced = Subscription::open(channel.clone(), EventKind::PathSynced).await?;
            add_watch(channel.clone(), None, spec).await?;
            synced.next().await?;
            Subscription::open(channel, EventKind::PathChanged).await
        })?;
        let theirs = tempfile::tempdir()?;
        let mut command = Command::new("inotifywait");
        command.args(["-m", "-e", "create,modify,close_write,delete"]);
        command.args(["--format", "%e %f"]).arg(theirs.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let Ok(child) = command.spawn() else {
            eprintln!("  left out: there is no inotifywait");
            return Ok(());
        };
        let mut program = Ended(child);
        let ready = program.0.stderr.take().ok_or("no stderr")?;
        let mut ready = BufReader::new(ready).lines();
        while !ready
            .next()
            .ok_or("inotifywait ended")??
            .contains("established")
        {}
        let lines = program.0.stdout.take().ok_or("no stdout")?;
        let mut lines = BufReader::with_capacity(1 << 16, lines);
        let mut line = String::new();
        let rates = alternate(
            || {
                storm(directory.path(), |count| {
                    runtime.block_on(async {
                        let mut left = count;
                        while left > 0 {
                            left = left.saturating_sub(stream.next().await?.events.len());
                        }
                        Ok(())
                    })
                })
            },
            || {
                storm(theirs.path(), |count| {
                    for _ in 0..count {
                        line.clear();
                        lines.read_line(&mut line)?;
                    }
                    Ok(())
                })
            },
        )?;
        let name = ("path_events_vs_inotifywait", backend);
        report.ratio(name, "events/s", Some(Target::AtLeast(0.7)), rates);
    }
    Ok(())
}

/// Appends to a file as fast as it can, on another thread, while `read` reads until it has all bytes.
/// Returns bytes/s.
fn grow(at: &Path, read: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let mut file = OpenOptions::new().append(true).open(at)?;
    let begun = Instant::now();
    let writer = thread::spawn(move || -> std::io::Result<()> {
        let bytes = vec![b'x'; WRITE];
        for _ in 0..BYTES / WRITE as u64 {
            file.write_all(&bytes)?;
        }
        Ok(())
    });
    read()?;
    let taken = begun.elapsed().as_secs_f64();
    writer.join().map_err(|_| "the writer panicked")??;
    Ok(f64::from(u32::try_from(BYTES)?) / taken)
}

/// A new, empty file, followed by a daemon into a stream that loses nothing.
async fn followed(channel: Channel, at: &Path, round: u32) -> Outcome<Subscription> {
    let request = SubscribeRequest {
        start: Some(Start::StartAt(StartAt::Now.into())),
        filter: Some(Filter {
            kinds: vec![EventKind::Data.into()],
            ..Filter::default()
        }),
        consumer: format!("round-{round}"),
        auto_ack: true,
        max_in_flight_bytes: IN_FLIGHT,
        ..SubscribeRequest::default()
    };
    let stream = Subscription::begin(channel.clone(), request).await?;
    let spec = Spec::File(FileSpec {
        path: at.to_string_lossy().into_owned(),
        follow: true,
        ..FileSpec::default()
    });
    add_watch(channel, None, spec).await?;
    Ok(stream)
}

async fn receive(mut stream: Subscription) -> Outcome<()> {
    let mut received = 0;
    while received < BYTES {
        for event in stream.next().await?.events {
            if let Some(event::Kind::Data(data)) = event.kind {
                received += data.data.len() as u64;
            }
        }
    }
    Ok(())
}

fn new_file(directory: &TempDir) -> Outcome<std::path::PathBuf> {
    let at = directory.path().join("log");
    let _ = fs::remove_file(&at);
    File::create(&at)?;
    Ok(at)
}

pub(crate) fn run_follow(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut round = 0;
        let rates = alternate(
            || {
                // A daemon of its own: an earlier round's file is not followed any more.
                let daemon = Daemon::start_on(backend)?;
                let at = new_file(&ours)?;
                round += 1;
                let stream = runtime
                    .block_on(async { followed(daemon.connect().await?, &at, round).await })?;
                grow(&at, || runtime.block_on(receive(stream)))
            },
            || {
                let at = new_file(&theirs)?;
                let mut command = Command::new("tail");
                command
                    .args(["-F", "-c", "+1"])
                    .arg(&at)
                    .stdout(Stdio::piped());
                let mut tail = Ended(command.spawn()?);
                let mut output = tail.0.stdout.take().ok_or("no stdout")?;
                // It has begun once it has read what was there.
                OpenOptions::new().append(true).open(&at)?.write_all(b"x")?;
                output.read_exact(&mut [0])?;
                grow(&at, || {
                    let (mut left, mut buffer) = (BYTES, vec![0; 1 << 20]);
                    while left > 0 {
                        left = left.saturating_sub(output.read(&mut buffer)? as u64);
                    }
                    Ok(())
                })
            },
        )?;
        let name = ("file_follow_vs_tail", backend);
        report.ratio(name, "bytes/s", Some(Target::AtLeast(0.6)), rates);
    }
    Ok(())
}

/// An expression that is different for each number, in one of many zones.
fn calendar(number: u32) -> TimerSpec {
    const ZONES: [&str; 8] = [
        "Europe/Berlin",
        "America/New_York",
        "Asia/Tokyo",
        "Australia/Lord_Howe",
        "Africa/Cairo",
        "America/Santiago",
        "Pacific/Apia",
        "Asia/Kolkata",
    ];
    // A generator of the MMIX kind: the numbers only have to differ.
    let mut seed = u64::from(number)
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    let mut below = |most: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    };
    let (minute, hour, day) = (below(60), below(24), 1 + below(28));
    let text = match below(5) {
        0 => format!("{minute} {hour} * * *"),
        1 => format!("{minute} {hour} {day} * *"),
        2 => format!("{minute} {hour} * {} 1-5", 1 + below(12)),
        3 => format!("*/{} * * * {}", 1 + below(30), below(7)),
        _ => format!("{minute} {hour} {day} {} *", 1 + below(12)),
    };
    TimerSpec {
        schedule: Some(timer_spec::Schedule::Cron(text)),
        time_zone: ZONES[number as usize % ZONES.len()].to_owned(),
        ..TimerSpec::default()
    }
}

pub(crate) fn run_calendars(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let (mut each, mut late) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let daemon = Daemon::start_on(backend)?;
            let (micros, longest) = runtime.block_on(async {
                let channel = daemon.connect().await?;
                let mut ticks = Subscription::open(channel.clone(), EventKind::TimerFired).await?;
                let every = TimerSpec {
                    schedule: Some(timer_spec::Schedule::Every(
                        Duration::from_millis(1).try_into()?,
                    )),
                    ..TimerSpec::default()
                };
                let ticker = add_watch(channel.clone(), None, Spec::Timer(every)).await?;
                ticks.next().await?;
                let begun = Instant::now();
                let specs: Vec<Spec> = (0..TIMERS).map(|n| Spec::Timer(calendar(n))).collect();
                add_watches(channel.clone(), specs).await?;
                let taken = begun.elapsed();
                let mut lateness = BTreeSet::new();
                let until = Instant::now() + Duration::from_millis(20);
                while Instant::now() < until {
                    for event in ticks.next().await?.events {
                        if let Some(event::Kind::TimerFired(fired)) = event.kind
                            && event.watch_id == ticker.watch_id
                        {
                            lateness.insert(fired.late_ns);
                        }
                    }
                }
                let longest = lateness.last().copied().unwrap_or_default();
                Outcome::Ok((taken.as_secs_f64() * 1e6 / f64::from(TIMERS), longest))
            })?;
            each.push(micros);
            late.push(Duration::from_nanos(longest).as_secs_f64() * 1e3);
        }
        report.figure(("calendar_arm_us", backend), None, each);
        let most = Some(Target::AtMost(10.0));
        report.figure(("calendar_arm_longest_turn_ms", backend), most, late);
    }
    Ok(())
}
