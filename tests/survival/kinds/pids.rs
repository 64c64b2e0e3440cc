//! Processes that are not the daemon's children.

use std::process::{Child, Command, Stdio};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Recorder, Scene, millis};
use crate::{BACKENDS, murder, next_life, resume, start, the_loop};

/// A process of this test, which ends when its stdin does.
fn stranger(line: &str) -> Child {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(line).stdin(Stdio::piped());
    shell.spawn().unwrap()
}

fn of(child: &Child) -> PidSpec {
    PidSpec {
        process: Some(pid_spec::Process::Pid(child.id().try_into().unwrap())),
        ..PidSpec::default()
    }
}

async fn status(scene: &Scene, id: u64) -> PidStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Pid(status)) => status,
        other => panic!("{other:?}"),
    }
}

async fn exit(recorder: &mut Recorder, id: u64) -> Option<exited::Status> {
    let Some(Kind::Exited(exited)) = recorder.first(id, "exited").await.kind else {
        panic!("its exit");
    };
    exited.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stranger_is_watched_in_the_next_life_and_its_exit_is_exact() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        // One ends after the deaths, one in between, and one is reaped while no daemon lives.
        let mut late = stranger("read x; exit 7");
        let mut zombie = stranger("read x; exit 8");
        let mut early = stranger("read x; exit 9");
        let ids = [
            scene.add(Spec::Pid(of(&late))).await,
            scene.add(Spec::Pid(of(&zombie))).await,
            scene.add(Spec::Pid(of(&early))).await,
        ];
        let before = status(&scene, ids[0]).await;
        drop(zombie.stdin.take());
        scene.recorder.first(ids[1], "ended").await;
        let life = scene.daemon.status().await.keeper.unwrap().life;
        let daemon = Pid::from_raw(scene.daemon.info().await.pid);
        // The keeper starts nothing meanwhile.
        scene.daemon.signal(Signal::SIGSTOP);
        kill(daemon, Signal::SIGKILL).unwrap();
        drop(early.stdin.take());
        early.wait().unwrap();
        scene.daemon.signal(Signal::SIGCONT);
        next_life(&scene.daemon, life).await;
        assert_eq!(status(&scene, ids[0]).await, before);
        assert!(status(&scene, ids[1]).await.ended);
        murder(&scene.daemon).await;
        drop(late.stdin.take());
        late.wait().unwrap();
        zombie.wait().unwrap();
        let mut recorder = resume(&scene, &epoch, 0).await;
        for (id, code) in ids.into_iter().zip([7, 8, 9]) {
            let exit = exit(&mut recorder, id).await;
            assert_eq!(exit, Some(exited::Status::Code(code)));
            let Some(Kind::Closed(closed)) = recorder.first(id, "closed").await.kind else {
                panic!("its end");
            };
            assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
            let whole = ["added", "ended", "exited", "closed"];
            assert_eq!(recorder.kinds(id), whole);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_wait_for_a_reaper_goes_on_from_when_it_began() {
    let mut scene = Scene::new(start().await, "", "").await;
    let epoch = the_loop(&scene).await.journal.unwrap().epoch;
    let mut child = stranger("read x; exit 7");
    let spec = PidSpec {
        reap_wait: Some(millis(1500)),
        ..of(&child)
    };
    let id = scene.add(Spec::Pid(spec)).await;
    drop(child.stdin.take());
    let ended = scene.recorder.first(id, "ended").await;
    // Each life would wait anew.
    for _ in 0..3 {
        murder(&scene.daemon).await;
    }
    let mut recorder = resume(&scene, &epoch, 0).await;
    let exited = recorder.first(id, "exited").await;
    let Some(Kind::Exited(told)) = &exited.kind else {
        panic!("its exit");
    };
    let Some(exited::Status::Unknown(why)) = &told.status else {
        panic!("{told:?}");
    };
    assert!(why.contains("has not reaped it within 1s 500ms"), "{why}");
    assert!(exited.monotonic_ns >= ended.monotonic_ns + 1_500_000_000);
    let recovered = recorder.recording.events();
    let recovered = recovered.filter(|event| matches!(event.kind, Some(Kind::Recovered(_))));
    let last = recovered.last().unwrap().monotonic_ns;
    assert!(exited.monotonic_ns < last + 1_500_000_000, "it waited anew");
    child.wait().unwrap();
}
