//! Files that are read and followed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, directory};
use crate::{BACKENDS, Persistent, murder, next_life, resume, start, the_loop};

fn spec(at: &Path, follow: bool) -> FileSpec {
    FileSpec {
        path: at.to_str().unwrap().to_owned(),
        follow,
        ..FileSpec::default()
    }
}

async fn reader(scene: &Scene) -> Persistent {
    Persistent {
        epoch: the_loop(scene).await.journal.unwrap().epoch,
        seen: 0,
        bytes: Vec::new(),
        ended: false,
    }
}

/// Writes numbered lines until it is over, and renames the file again and again. Returns how many
/// lines there are.
fn write_on(log: PathBuf, over: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    const LINES: u64 = 100;
    std::thread::spawn(move || {
        let mut file = File::create(&log).unwrap();
        let mut number = 0_u64;
        while !over.load(Ordering::Acquire) {
            writeln!(file, "{number}").unwrap();
            number += 1;
            if number.is_multiple_of(LINES) {
                let old = format!("{}.{}", log.display(), number / LINES);
                fs::rename(&log, old).unwrap();
                file = File::create(&log).unwrap();
            }
            // Some ten thousand lines are enough.
            std::thread::sleep(Duration::from_micros(100));
        }
        number
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_rotated_file_is_told_once_through_many_deaths() {
    const DEATHS: usize = 10;
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let log = dir.path().join("log");
        let mut scene = Scene::new(start().await, policy, backend).await;
        // While no daemon lives, many files have the name.
        let many = FileSpec {
            keep_generations: 1024,
            ..spec(&log, true)
        };
        let id = scene.add(Spec::File(many)).await;
        let mut reader = reader(&scene).await;
        let over = Arc::new(AtomicBool::new(false));
        let writer = write_on(log, Arc::clone(&over));
        for _ in 0..DEATHS {
            let enough = reader.bytes.len() + 1000;
            reader.read(&scene, id, enough).await;
            murder(&scene.daemon).await;
        }
        over.store(true, Ordering::Release);
        let lines = writer.join().unwrap();
        let wanted: String = (0..lines).map(|number| format!("{number}\n")).collect();
        reader.read(&scene, id, wanted.len()).await;
        assert!(lines > 1000, "{lines}");
        assert_eq!(reader.bytes.len(), wanted.len());
        assert!(reader.bytes == wanted.as_bytes());
    }
}

/// What happened to the file that is followed, in the order of the events.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Bytes(u64, String),
    Changed(FileChangeKind, u64),
}

fn seen<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Seen> {
    let mut all = Vec::new();
    for event in events {
        match &event.kind {
            Some(Kind::Data(data)) => {
                let text = String::from_utf8(data.data.to_vec()).unwrap();
                match all.last_mut() {
                    Some(Seen::Bytes(_, before)) => before.push_str(&text),
                    _ => all.push(Seen::Bytes(data.offset, text)),
                }
            }
            Some(Kind::FileChanged(changed)) => {
                all.push(Seen::Changed(changed.change(), changed.generation));
            }
            _ => {}
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_that_is_removed_while_no_daemon_lives_is_read_to_its_end() {
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let log = dir.path().join("log");
        fs::write(&log, "one\n").unwrap();
        let mut scene = Scene::new(start().await, policy, backend).await;
        let id = scene.add(Spec::File(spec(&log, true))).await;
        scene.recorder.first(id, "data").await;
        let told = the_loop(&scene).await.journal.unwrap();
        let life = scene.daemon.status().await.keeper.unwrap().life;
        let daemon = Pid::from_raw(scene.daemon.info().await.pid);
        scene.daemon.signal(Signal::SIGSTOP);
        kill(daemon, Signal::SIGKILL).unwrap();
        // Nobody but the dead daemon has it open.
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(b"two\n").unwrap();
        drop(file);
        fs::remove_file(&log).unwrap();
        // One that comes and goes by a rename, and one that stays.
        fs::write(&log, "three\n").unwrap();
        fs::rename(&log, dir.path().join("log.1")).unwrap();
        fs::write(&log, "four\n").unwrap();
        scene.daemon.signal(Signal::SIGCONT);
        next_life(&scene.daemon, life).await;
        murder(&scene.daemon).await;
        let mut recorder = resume(&scene, &told.epoch, 0).await;
        let is_last = |event: &Event| match &event.kind {
            Some(Kind::Data(data)) => data.data.ends_with(b"four\n"),
            _ => false,
        };
        recorder.find("the last bytes", is_last).await;
        let events = recorder.recording.events().filter(|e| e.watch_id == id);
        use FileChangeKind::{Appeared, Reading, Rotated};
        let bytes = |offset, text: &str| Seen::Bytes(offset, text.to_owned());
        assert_eq!(
            seen(events),
            [
                Seen::Changed(Appeared, 1),
                Seen::Changed(Reading, 1),
                bytes(0, "one\n"),
                Seen::Changed(Rotated, 2),
                Seen::Changed(Rotated, 3),
                bytes(4, "two\n"),
                Seen::Changed(Reading, 2),
                bytes(8, "three\n"),
                Seen::Changed(Reading, 3),
                bytes(14, "four\n"),
            ]
        );
        let Some(watch::Status::File(status)) = scene.get(id).await.status else {
            panic!("a file");
        };
        assert_eq!((status.generation, status.offset), (3, 19));
        assert!(status.notified);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_read_once_is_read_to_its_end_through_many_deaths() {
    let content: Vec<u8> = (0..1_000_000_u64).flat_map(u64::to_be_bytes).collect();
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let file = dir.path().join("file");
        fs::write(&file, &content).unwrap();
        let mut scene = Scene::new(start().await, policy, backend).await;
        let paused = FileSpec {
            start_paused: true,
            ..spec(&file, false)
        };
        let id = scene.add(Spec::File(paused)).await;
        // Its name is of no interest any more.
        fs::remove_file(&file).unwrap();
        murder(&scene.daemon).await;
        let Some(watch::Status::File(status)) = scene.get(id).await.status else {
            panic!("a file");
        };
        assert!(status.reading_paused);
        assert_eq!(status.offset, 0);
        scene.pause_reading(id, false).await;
        let mut reader = reader(&scene).await;
        while !reader.ended {
            murder(&scene.daemon).await;
            let enough = reader.bytes.len() + 1_500_000;
            reader.read(&scene, id, enough).await;
        }
        assert_eq!(reader.bytes.len(), content.len());
        assert!(reader.bytes == content);
    }
}
