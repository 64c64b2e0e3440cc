//! One daemon with a loop of each backend, its loads, and its deaths.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::*;
use nix::unistd::Pid;
use tokio::task::{JoinError, JoinSet};

use crate::client::Site;
use crate::common::{
    Daemon, PATIENCE, command_with_keeper, directory, lives, loop_named, tcp_listener, tls, within,
};
use crate::field::Field;
use crate::figures::Figures;
use crate::killer::{self, Random, Round};
use crate::loads;
use crate::reader::{self, Reader};

/// A closed loop is soon forgotten, so that its memory comes back.
const CONFIG: &str = r#"version = 1
[server]
restarts = 1000
restart_delay = "20ms"
[limits]
write_buffer = "64KiB"
[policy.murders]
extends = "default"
journal_bytes = "16MiB"
closed_ttl = "2s"
[policy.proactor-murders]
extends = "proactor"
journal_bytes = "16MiB"
closed_ttl = "2s"
"#;

/// What must be as before once all is closed.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    loops: u32,
    watches: u64,
    children: u32,
    journal_bytes: u64,
    /// Without the answers that are kept.
    memory: u64,
    descriptors: BTreeMap<String, usize>,
    /// Children of the keeper and of the daemon: only the daemon.
    processes: usize,
}

/// Ends the loads, also if a check has failed.
struct Ending(Arc<Site>);

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed after {} deaths", self.0.deaths_so_far());
        }
        self.0.end();
        self.0.close();
    }
}

pub(crate) async fn run(deaths: u64, mut random: Random) -> Figures {
    let dir = directory();
    let config = format!("{CONFIG}{}", tls::sections());
    let command = command_with_keeper(dir.path(), &config, &[]);
    let daemon = Daemon::start_as(Arc::clone(&dir), command).await;
    let handover = daemon.info().await.handover_socket.into();
    let site = Site::new(
        dir.path().to_owned(),
        daemon.socket.clone(),
        handover,
        daemon.pid(),
    );
    let site = Arc::new(site);
    // What is there in a second life, without any load.
    killer::kill_all(&site, &[Round::at(Duration::from_millis(300))]);
    let _ending = Ending(Arc::clone(&site));
    daemon_answers(&daemon).await;
    use_once(&daemon).await;
    daemon
        .until("its end", |status| {
            status.loops == 0 && status.journal_bytes == 0
        })
        .await;
    let before = rest(&daemon).await;
    let keeper_before = private_dirty(&site);
    let regions_before = regions(&site);

    let mut fields = Vec::new();
    let mut readers = JoinSet::new();
    let mut tasks = JoinSet::new();
    for (policy, backend) in lives::BACKENDS {
        let policy = match policy {
            "" => "murders",
            _ => "proactor-murders",
        };
        let field = Arc::new(Field::new(Arc::clone(&site), policy, backend));
        let request = NewEventLoopRequest {
            name: backend.replace('_', "-"),
            policy: policy.into(),
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        daemon.policies().new_event_loop(request).await.unwrap();
        let reader = Reader::new(field.hand().await, Random::new(random.next()));
        readers.spawn(async move {
            reader.read().await;
        });
        readers.spawn(reader::poll(field.hand().await));
        loads::start(&field, &mut tasks).await;
        fields.push(field);
    }
    let asking = Arc::clone(&site);
    readers.spawn(async move { killer::ask(&asking).await });

    let rounds: Vec<_> = (0..deaths).map(|_| Round::next(&mut random)).collect();
    let killed = Arc::clone(&site);
    let mut killer = tokio::task::spawn_blocking(move || killer::kill_all(&killed, &rounds));
    let killed = loop {
        tokio::select! {
            killed = &mut killer => break killed,
            Some(done) = tasks.join_next() => whole(done),
            Some(done) = readers.join_next() => whole(done),
        }
    };
    whole(killed);
    assert!(!site.is_frozen(), "something hangs");
    site.end();
    let ending = async {
        loop {
            tokio::select! {
                done = tasks.join_next() => match done {
                    Some(done) => whole(done),
                    None => break,
                },
                Some(done) = readers.join_next() => whole(done),
            }
        }
    };
    // A load that waits for something says so before.
    if tokio::time::timeout(2 * PATIENCE, ending).await.is_err() {
        panic!("these loads do not end: {:?}", site.running.lock());
    }
    for field in &fields {
        nothing_is_left(&daemon, field).await;
    }
    site.close();
    while let Some(done) = readers.join_next().await {
        whole(done);
    }
    site.figures.count("deaths", deaths);
    let lives = daemon.status().await.keeper.unwrap().life;
    assert_eq!(lives, deaths + 2, "it has died by itself");
    use_once(&daemon).await;
    back_to(&daemon, &before).await;
    let keeper = private_dirty(&site);
    assert!(keeper <= keeper_before + 64, "{keeper} of {keeper_before}");
    // Spare parts are kept: of each size for control state and for histories.
    assert!(regions(&site) <= regions_before + 4);
    drop(daemon);
    drop(fields);
    site.figures.take()
}

/// Passes a failure on.
fn whole(done: Result<(), JoinError>) {
    if let Err(error) = done {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// All watches are removed, and the loop is closed.
async fn nothing_is_left(daemon: &Daemon, field: &Field) {
    let list = ListWatchesRequest {
        r#loop: Some(field.target.clone()),
        ..ListWatchesRequest::default()
    };
    let list = daemon.watches().list_watches(list).await.unwrap();
    let watches = list.into_inner().watches;
    assert!(watches.is_empty(), "on {}: {watches:?}", field.backend);
    close(daemon, Some(field.target.clone())).await;
}

/// Waits until a new life answers. The channel connects again by itself.
async fn daemon_answers(daemon: &Daemon) {
    within("an answer", async {
        while daemon
            .admin()
            .get_status(GetStatusRequest {})
            .await
            .is_err()
        {}
    })
    .await;
}

async fn rest(daemon: &Daemon) -> Rest {
    let status = daemon.status().await;
    let keeper = daemon.pid();
    let life = lives::life(keeper).expect("it lives");
    let mut descriptors = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{life}/fd")).unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        // Without the number of a socket, or pipe.
        let target = target.to_string_lossy().into_owned();
        let kind = match target.split_once(":[") {
            Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
            // In each life another one.
            _ if target.contains("/cgroup/") => "cgroup".to_owned(),
            _ if is_region(&target) => continue,
            _ if target.ends_with("[pidfd]") => format!("pidfd of {}", of_whom(&entry, keeper)),
            _ => target,
        };
        *descriptors.entry(kind).or_default() += 1;
    }
    // A descriptor that was handed over waits for 30 s. Whoever handed it over did so again, because the
    // daemon had died before it answered.
    if let Some(pipes) = descriptors.get_mut("pipe") {
        *pipes -= usize::try_from(status.slots).unwrap();
    }
    descriptors.retain(|_, count| *count > 0);
    let children = |of| {
        let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
        children.unwrap().split_whitespace().count()
    };
    Rest {
        loops: status.loops,
        watches: status.open_watches,
        children: status.children,
        journal_bytes: status.journal_bytes,
        memory: status.memory_used_bytes - status.answer_bytes - status.request_bytes,
        descriptors,
        processes: children(keeper),
    }
}

/// Whose pidfd this is.
fn of_whom(entry: &std::fs::DirEntry, keeper: Pid) -> String {
    let info = entry.path().to_string_lossy().replace("/fd/", "/fdinfo/");
    let info = std::fs::read_to_string(info).unwrap_or_default();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    match pid.and_then(|pid| pid.trim().parse::<i32>().ok()) {
        Some(pid) if pid == keeper.as_raw() => "the keeper".to_owned(),
        Some(pid) if pid == std::process::id().cast_signed() => "a client".to_owned(),
        Some(-1) | None => "one that has ended".to_owned(),
        Some(_) => "another".to_owned(),
    }
}

/// Uses what the daemon begins to have at its first use: threads for TLS. In each life it is another one.
/// Memory that is free is given back then, too.
async fn use_once(daemon: &Daemon) {
    let name = "once";
    let request = NewEventLoopRequest {
        name: name.into(),
        policy: "murders".into(),
        ..NewEventLoopRequest::default()
    };
    daemon.policies().new_event_loop(request).await.unwrap();
    let target = Some(loop_named(name));
    let spec = ListenerSpec {
        tls: Some(TlsOptions {
            config: "web".into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    };
    let request = AddWatchRequest {
        r#loop: target.clone(),
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Listener(spec)),
        }),
        ..AddWatchRequest::default()
    };
    let added = daemon.watches().add_watch(request).await.unwrap();
    let added = added.into_inner().watch.unwrap();
    let Some(watch::Status::Listener(status)) = added.status else {
        panic!("{added:?}");
    };
    let port = loads::port(&status.addresses[0]);
    let shake = move || {
        let socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        tls::shake(socket, tls::client(None), "localhost").unwrap();
    };
    tokio::task::spawn_blocking(shake).await.unwrap();
    close(daemon, target).await;
}

async fn close(daemon: &Daemon, target: Option<LoopRef>) {
    let request = CloseLoopRequest {
        r#loop: target,
        stop: true,
        ..CloseLoopRequest::default()
    };
    daemon.loops().close_loop(request).await.unwrap();
}

/// Waits until all is as it was: what is closed is given back soon, but not at once.
async fn back_to(daemon: &Daemon, before: &Rest) {
    let begun = std::time::Instant::now();
    loop {
        let now = rest(daemon).await;
        if now == *before {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{now:#?}\n, and before the load it was {before:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Private memory of the keeper, KiB.
fn private_dirty(site: &Site) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", site.keeper)).unwrap();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.unwrap().parse().unwrap()
}

/// Whether this is a part of the memory that outlives the daemon. [`regions`] counts them.
fn is_region(target: &str) -> bool {
    let number = target.rsplit_once(".sock.state/").map(|(_, name)| name);
    number.is_some_and(|name| name.parse::<u32>().is_ok())
        || target.starts_with("/memfd:evloopd-memory")
}

/// The number of such parts.
fn regions(site: &Site) -> usize {
    let life = lives::life(site.keeper).expect("it lives");
    let entries = std::fs::read_dir(format!("/proc/{life}/fd")).unwrap();
    let targets = entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let regions = targets.filter(|target| is_region(&target.to_string_lossy()));
    regions.count()
}
