//! What must be as before a load once all of it is closed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::common::{Daemon, PATIENCE, lives};

/// A part of the memory that outlives the daemon, of each size.
const SPARE: u64 = (64 << 16) + (64 << 12);

/// What a daemon has that is not under load.
#[derive(Debug)]
pub(crate) struct Rest {
    exact: Exact,
    /// Bytes of the memory that outlives the daemon.
    memory: u64,
    /// Private memory of the keeper, KiB.
    keeper: u64,
}

/// What must be the same again.
#[derive(Debug, PartialEq, Eq)]
struct Exact {
    loops: u32,
    watches: u64,
    children: u32,
    journal_bytes: u64,
    /// Without the answers that are kept.
    memory: u64,
    descriptors: BTreeMap<String, usize>,
    /// Children of the keeper and of the daemon: the daemon alone.
    processes: usize,
}

impl Rest {
    pub(crate) async fn of(daemon: &Daemon) -> Self {
        Self {
            exact: exact(daemon).await,
            memory: memory(daemon),
            keeper: private_dirty(daemon),
        }
    }

    /// Waits until all is as it was: what is closed is given back soon, but not at once.
    pub(crate) async fn is_back(&self, daemon: &Daemon) {
        let begun = Instant::now();
        loop {
            let now = exact(daemon).await;
            if now == self.exact {
                break;
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(!late, "{now:#?}, before the load {:#?}", self.exact);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let keeper = private_dirty(daemon);
        assert!(keeper <= self.keeper + 64, "{keeper} of {}", self.keeper);
        // Answers are kept, in parts of both sizes, and a spare part of each size is.
        let answers = daemon.status().await.answer_bytes;
        let most = self.memory + 2 * answers + 2 * SPARE;
        let now = memory(daemon);
        assert!(now <= most, "{now} of {most}, answers {answers}");
    }
}

async fn exact(daemon: &Daemon) -> Exact {
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
            _ if is_memory(&target) => continue,
            _ if target.ends_with("[pidfd]") => format!("pidfd of {}", of_whom(&entry, keeper)),
            _ => target,
        };
        *descriptors.entry(kind).or_default() += 1;
    }
    // A descriptor that was handed over waits for 30 s. Whoever handed it over did so again, because the
    // daemon had died before it answered.
    let slots = usize::try_from(status.slots).unwrap();
    if let Some(pipes) = descriptors.get_mut("pipe") {
        *pipes -= slots;
    }
    // The clients are one process.
    if let Some(clients) = descriptors.get_mut("pidfd of a client") {
        *clients -= slots.min(*clients - 1);
    }
    descriptors.retain(|_, count| *count > 0);
    let children = |of| {
        let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
        children.unwrap().split_whitespace().count()
    };
    Exact {
        loops: status.loops,
        watches: status.open_watches,
        children: status.children,
        journal_bytes: status.journal_bytes,
        memory: status.memory_used_bytes - status.answer_bytes - status.request_bytes,
        descriptors,
        processes: children(keeper) + children(life),
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

/// Private memory of the keeper, KiB.
fn private_dirty(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.unwrap().parse().unwrap()
}

/// Whether this is a part of the memory that outlives the daemon, see [`memory`].
fn is_memory(target: &str) -> bool {
    let number = target.rsplit_once(".sock.state/").map(|(_, name)| name);
    number.is_some_and(|name| name.parse::<u32>().is_ok())
        || target.starts_with("/memfd:evloopd-memory")
}

/// Bytes of the memory that outlives the daemon.
fn memory(daemon: &Daemon) -> u64 {
    let life = lives::life(daemon.pid()).expect("it lives");
    let entries = std::fs::read_dir(format!("/proc/{life}/fd")).unwrap();
    let paths = entries.flatten().map(|entry| entry.path());
    let is_memory =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| is_memory(&to.to_string_lossy()));
    let sizes = paths
        .filter(is_memory)
        .map(|path| std::fs::metadata(path).unwrap().len());
    sizes.sum()
}
