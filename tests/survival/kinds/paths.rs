//! Watched paths.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Recorder, Scene, directory};
use crate::{BACKENDS, murder, next_life, resume, start, the_loop};

fn spec(at: &Path) -> PathSpec {
    PathSpec {
        path: at.to_str().unwrap().to_owned(),
        recursive: true,
        kinds: vec![
            PathChangeKind::Created.into(),
            PathChangeKind::Deleted.into(),
        ],
        ignore: vec!["*.tmp".into()],
        ..PathSpec::default()
    }
}

/// Waits for the rescan of the next life and for what follows it. Returns the number of the latter.
async fn rescanned(recorder: &mut Recorder, after: u64, id: u64) -> u64 {
    let rescan = recorder.after(after, id, "path_rescan").await;
    let Some(Kind::PathRescan(told)) = &rescan.kind else {
        panic!("a rescan");
    };
    assert_eq!(told.reason(), RescanReason::Recovered);
    assert_eq!(told.path, "", "all of it");
    recorder.after(rescan.seq, id, "path_synced").await.seq
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_path_is_watched_anew_and_what_happened_meanwhile_is_seen_after_the_rescan() {
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/gone"), "").unwrap();
        let mut scene = Scene::new(start().await, policy, backend).await;
        let id = scene.add(Spec::Path(spec(dir.path()))).await;
        scene.recorder.first(id, "path_synced").await;
        let before = scene.get(id).await;
        let told = the_loop(&scene).await.journal.unwrap();
        let life = scene.daemon.status().await.keeper.unwrap().life;
        let daemon = Pid::from_raw(scene.daemon.info().await.pid);
        // Nothing watches meanwhile.
        scene.daemon.signal(Signal::SIGSTOP);
        kill(daemon, Signal::SIGKILL).unwrap();
        fs::remove_file(at("sub/gone")).unwrap();
        fs::write(at("sub/new"), "").unwrap();
        scene.daemon.signal(Signal::SIGCONT);
        next_life(&scene.daemon, life).await;
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        let recovered = recorder.first(0, "recovered").await.seq;
        let synced = rescanned(&mut recorder, recovered, id).await;
        // It has its filters, and the directories that it had.
        fs::write(at("sub/ignored.tmp"), "").unwrap();
        fs::write(at("sub/later"), "content").unwrap();
        let change = recorder.after(synced, id, "path_changed").await;
        let Some(Kind::PathChanged(change)) = change.kind else {
            panic!("a change");
        };
        assert_eq!(change.path, "sub/later");
        assert_eq!(change.kinds, [PathChangeKind::Created as i32]);
        let now = scene.get(id).await;
        assert_eq!(before.spec, now.spec);
        let Some(watch::Status::Path(status)) = now.status else {
            panic!("{now:?}");
        };
        assert_eq!((status.rescans, status.directories), (1, 2));
        // A root that cannot be found is told by the rescan, too, and waited for.
        fs::rename(dir.path(), dir.path().with_extension("away")).unwrap();
        recorder.after(synced, id, "path_root").await;
        murder(&scene.daemon).await;
        let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
        let mut recorder = resume(&scene, &told.epoch, synced).await;
        let recovered = recorder.after(synced, 0, "recovered").await.seq;
        assert!(recovered <= newest);
        let synced = rescanned(&mut recorder, recovered, id).await;
        fs::rename(dir.path().with_extension("away"), dir.path()).unwrap();
        let root = recorder.after(synced, id, "path_root").await;
        assert!(matches!(
            root.kind,
            Some(Kind::PathRoot(PathRoot { present: true, .. }))
        ));
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_is_told_or_is_there_before_the_rescan_is_over_through_many_deaths() {
    const DEATHS: usize = 10;
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let mut scene = Scene::new(start().await, policy, backend).await;
        let id = scene.add(Spec::Path(spec(dir.path()))).await;
        scene.recorder.first(id, "path_synced").await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        let over = Arc::new(AtomicBool::new(false));
        let writer = {
            let (over, root) = (Arc::clone(&over), dir.path().to_owned());
            std::thread::spawn(move || {
                let mut made = Vec::new();
                while !over.load(Ordering::Acquire) {
                    let name = made.len().to_string();
                    fs::write(root.join(&name), "").unwrap();
                    made.push((name, now()));
                    // Some thousand files are enough.
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
                made
            })
        };
        let mut deaths = Vec::new();
        for _ in 0..DEATHS {
            deaths.push(now());
            murder(&scene.daemon).await;
        }
        over.store(true, Ordering::Release);
        let made = writer.join().unwrap();
        let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
        let mut recorder = resume(&scene, &epoch, 0).await;
        recorder.reach(newest).await;
        let events = recorder.recording.events();
        let recovered = events.filter(|e| matches!(e.kind, Some(Kind::Recovered(_))));
        let recovered = recovered.last().unwrap().seq;
        let synced = rescanned(&mut recorder, recovered, id).await;
        fs::write(dir.path().join("last"), "").unwrap();
        let is_last = |event: &Event| match &event.kind {
            Some(Kind::PathChanged(change)) => change.path == "last",
            _ => false,
        };
        let last = recorder.find("the last one", is_last).await;
        assert!(last.seq > synced);
        let (mut told, mut synced, mut rescans) = (BTreeSet::new(), Vec::new(), 0);
        let mut stale = false;
        for event in recorder.recording.events().filter(|e| e.watch_id == id) {
            match &event.kind {
                Some(Kind::PathChanged(change)) => {
                    told.insert(change.path.clone());
                }
                Some(Kind::PathRescan(_)) => (stale, rescans) = (true, rescans + 1),
                Some(Kind::PathSynced(_)) if std::mem::take(&mut stale) => {
                    synced.push(event.realtime_ns);
                }
                _ => {}
            }
        }
        // A life that dies before it has told its rescan leaves that to the next one.
        assert!((1..=DEATHS).contains(&rescans), "{rescans}");
        for (name, at) in &made {
            // Whoever lists at the end of a rescan sees what was made before. What was told right
            // before a death and not committed is made at most a moment before it.
            const MOMENT: u64 = 2_000_000_000;
            let seen = deaths
                .iter()
                .filter_map(|death| {
                    let after = synced.iter().find(|synced| *synced > death)?;
                    Some(death.saturating_sub(MOMENT)..=*after)
                })
                .any(|range| range.contains(at));
            assert!(told.contains(name) || seen, "{name} is missed");
        }
        assert!(made.len() > DEATHS, "{}", made.len());
    }
}
