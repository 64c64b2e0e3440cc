//! A child is started once, however many calls wait for the loop.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::cancellation::cancelled_after;
use crate::common::{Daemon, Scene, never, reader, refusal, shell, within};

/// A mailbox that is nearly always full: it has few places, calls wait for one only briefly, and
/// callers keep making the loop look at all of its watches.
const CONFIG: &str = "[limits]\nmailbox = 16\nmailbox_wait = \"20ms\"\n";
const WATCHES: usize = 5000;
const CALLERS: usize = 100;

struct Load {
    over: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    callers: JoinSet<()>,
}

impl Load {
    async fn start(scene: &Scene) -> Self {
        for _ in 0..WATCHES / 1000 {
            let one = AddWatchRequest {
                spec: Some(WatchSpec {
                    spec: Some(never()),
                }),
                ..AddWatchRequest::default()
            };
            let request = BatchAddWatchesRequest {
                r#loop: Some(scene.target.clone()),
                requests: vec![one; 1000],
                ..BatchAddWatchesRequest::default()
            };
            scene
                .daemon
                .watches()
                .batch_add_watches(request)
                .await
                .unwrap();
        }
        let over = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let mut watches = scene.daemon.watches();
            let (over, refused) = (Arc::clone(&over), Arc::clone(&refused));
            let request = ListWatchesRequest {
                r#loop: Some(scene.target.clone()),
                labels: [("no".to_owned(), "such".to_owned())].into(),
                ..ListWatchesRequest::default()
            };
            callers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match watches.list_watches(request.clone()).await {
                        Ok(_) => {}
                        Err(status) if refusal(&status).reason == "MAILBOX_FULL" => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // The call fails because the daemon ends.
                        Err(_) => break,
                    }
                }
            });
        }
        let load = Self {
            over,
            refused,
            callers,
        };
        within("the mailbox to be full", async {
            while load.refused.load(Ordering::Relaxed) < CALLERS {
                tokio::task::yield_now().await;
            }
        })
        .await;
        load
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
    }
}

/// Repeats a call, as a client does, for as long as the mailbox is full.
async fn insist<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    let calls = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(status) => {
                    assert_eq!(refusal(&status).reason, "MAILBOX_FULL", "{status:?}");
                    assert_eq!(status.code(), Code::ResourceExhausted);
                }
            }
        }
    };
    within("a call to get through", calls).await
}

/// A child that first writes its name to a file, to show that it was started.
fn told_in(file: &Path, name: &str) -> ProcessSpec {
    shell(&format!("echo {name} >> {}", file.display()))
}

fn starts(file: &Path) -> BTreeMap<String, usize> {
    let mut starts = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        *starts.entry(line.to_owned()).or_default() += 1;
    }
    starts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn runs_and_repeats_under_load_start_each_child_once() {
    const EACH: usize = 20;
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "", "").await;
    let load = Load::start(&scene).await;
    let file = scene.daemon.dir.path().join("starts");
    let mut names = Vec::new();
    let mut calls = JoinSet::new();
    for n in 0..EACH {
        // By name: each call after the first joins the process that another has started.
        let name = format!("run-{n}");
        let processes = scene.daemon.processes();
        let run = RunRequest {
            r#loop: Some(scene.target.clone()),
            name: name.clone(),
            spec: Some(told_in(&file, &name)),
            ..RunRequest::default()
        };
        names.push(name);
        calls.spawn(async move {
            for _life in 0..2 {
                insist(|| {
                    let (mut processes, run) = (processes.clone(), run.clone());
                    async move { processes.run(run).await }
                })
                .await;
            }
        });

        // By request_id, without a name; the first call is cancelled, at another step each time.
        let name = format!("add-{n}");
        let mut watches = scene.daemon.watches();
        let add = AddWatchRequest {
            request_id: name.clone(),
            ..scene.request(Spec::Process(told_in(&file, &name)))
        };
        names.push(name);
        calls.spawn(async move {
            cancelled_after(n % 10, watches.add_watch(add.clone())).await;
            insist(|| {
                let (mut watches, add) = (watches.clone(), add.clone());
                async move { watches.add_watch(add).await }
            })
            .await;
        });
    }
    // A slot is used up only by the watch that is made, not by a call that was refused.
    let (_ours, theirs) = UnixStream::pair().unwrap();
    for slot in scene
        .daemon
        .handover()
        .await
        .give_all(&[theirs.as_fd(); EACH])
    {
        let (watches, add) = (scene.daemon.watches(), scene.request(reader(slot)));
        calls.spawn(async move {
            insist(|| {
                let (mut watches, add) = (watches.clone(), add.clone());
                async move { watches.add_watch(add).await }
            })
            .await;
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    load.end().await;
    scene.settle().await;
    let started = |e: &&Event| matches!(e.kind, Some(Kind::Started(_)));
    let ids: Vec<u64> = scene
        .recorder
        .recording
        .events()
        .filter(started)
        .map(|e| e.watch_id)
        .collect();
    assert_eq!(ids.len(), names.len());
    for id in ids {
        scene.closed(id).await;
    }
    let once: BTreeMap<String, usize> = names.into_iter().map(|name| (name, 1)).collect();
    assert_eq!(starts(&file), once);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_switch_under_load_is_an_event() {
    let config = format!("{CONFIG}[policy.other]\nextends = \"default\"\n");
    let mut scene = Scene::new(Daemon::start(&config).await, "", "").await;
    let load = Load::start(&scene).await;
    for name in ["other", "default", "other", "default"] {
        let request = SetEventLoopPolicyRequest {
            policy_name: Some(name.into()),
            ..SetEventLoopPolicyRequest::default()
        };
        let mut policies = scene.daemon.policies();
        policies.set_event_loop_policy(request).await.unwrap();
    }
    load.end().await;
    scene.settle().await;
    let told = |e: &&Event| matches!(e.kind, Some(Kind::PolicyChanged(_)));
    assert_eq!(scene.recorder.recording.events().filter(told).count(), 4);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_under_load_closes_with_the_daemon() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "", "").await;
    let load = Load::start(&scene).await;
    scene.daemon.signal(Signal::SIGTERM);
    assert_eq!(scene.daemon.ended().await, Some(0));
    load.end().await;
    assert!(!scene.daemon.log().contains("did not close"));
}
