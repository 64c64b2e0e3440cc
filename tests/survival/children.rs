//! Children through many deaths of the daemon: their exits, and that none is unknown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use crate::common::{Scene, exec, shell};
use crate::{BACKENDS, murder, resume, start, the_loop};

/// A number that a child exits with.
fn code(number: u64) -> i32 {
    i32::try_from(number % 200).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exit_is_told_once_and_exactly_through_many_deaths() {
    const ROUNDS: u64 = 25;
    const CHILDREN: u64 = 12;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        let mut wanted = std::collections::BTreeMap::new();
        for round in 0..ROUNDS {
            for number in 0..CHILDREN {
                let exit = code(round * CHILDREN + number);
                // Some end before the daemon is killed, some at the same time, some after it.
                let line = format!("sleep 0.0{number}; exit {exit}");
                wanted.insert(scene.spawn(shell(&line)).await, exit);
            }
            murder(&scene.daemon).await;
        }
        let mut recorder = resume(&scene, &epoch, 0).await;
        for (id, exit) in wanted {
            let closed = recorder.first(id, "closed").await;
            let Some(Kind::Closed(closed)) = closed.kind else {
                panic!("its end");
            };
            assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
            let exits = recorder.recording.events();
            let exits: Vec<_> = exits
                .filter(|event| event.watch_id == id)
                .filter_map(|event| match &event.kind {
                    Some(Kind::Exited(exited)) => exited.status.clone(),
                    _ => None,
                })
                .collect();
            assert_eq!(exits, [exited::Status::Code(exit)], "watch {id}");
        }
    }
}

/// The pids of the processes that have this word in their command line.
fn running(word: &str) -> BTreeSet<i32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            // Not what tells the shell to execute it.
            words.next() == Some(b"sleep") && words.any(|one| one == word.as_bytes())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_child_that_runs_is_known_after_many_deaths() {
    const TASKS: usize = 4;
    const DEATHS: usize = 40;
    // The test's own: no other process sleeps so long.
    let word = format!("7{}", std::process::id());
    let scene = Scene::new(start().await, "", "").await;
    let over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (mut watches, over) = (scene.daemon.watches(), Arc::clone(&over));
            let request = scene.request(watch_spec::Spec::Process(exec(&["sleep", &word])));
            tokio::spawn(async move {
                let mut names = Vec::new();
                while !over.load(Ordering::Acquire) {
                    let name = format!("child-{task}-{}", names.len());
                    let request = AddWatchRequest {
                        name: name.clone(),
                        ..request.clone()
                    };
                    match watches.add_watch(request).await {
                        Ok(_) => names.push(name),
                        // It was made, and the answer was lost.
                        Err(status) if status.code() == tonic::Code::AlreadyExists => {
                            names.push(name);
                        }
                        // The daemon is dead. The channel connects again by itself.
                        Err(_) => {}
                    }
                }
                names
            })
        })
        .collect();
    for _ in 0..DEATHS {
        murder(&scene.daemon).await;
    }
    over.store(true, Ordering::Release);
    let mut names = BTreeSet::new();
    for task in tasks {
        names.extend(task.await.unwrap());
    }
    let list = ListWatchesRequest {
        r#loop: Some(scene.target.clone()),
        page_size: 1000,
        ..ListWatchesRequest::default()
    };
    let list = scene.daemon.watches().list_watches(list).await.unwrap();
    let watches = list.into_inner().watches;
    assert_eq!(watches.len(), names.len(), "each name once");
    let mut pids = BTreeSet::new();
    for watch in &watches {
        assert!(names.contains(&watch.name), "{}", watch.name);
        let Some(watch::Status::Process(process)) = &watch.status else {
            panic!("{watch:?}");
        };
        assert!(process.exited.is_none(), "{watch:?}");
        pids.insert(process.pid);
    }
    assert!(!names.is_empty());
    assert_eq!(running(&word), pids);
}
