//! Loops with which no life of the daemon can go on.

use std::io::Read as _;

use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, shell};
use crate::{next_life, start, the_loop};

/// Says in the daemon's memory that many lives have tried in vain to go on with a loop.
fn blame(pid: i32, on: u64) {
    const WORD: usize = 8;
    // The words of a run: its mark, its owner, and the third one after the header.
    let (mark, tries) = ((0x6576_6c70_u64 << 32 | 3).to_ne_bytes(), (8 + 2) * WORD);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        if !target.to_string_lossy().contains("evloopd-memory") {
            continue;
        }
        let file = std::fs::File::options().read(true).write(true).open(&path);
        let file = file.unwrap();
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        for at in (0..bytes.len()).step_by(4096) {
            let run = &bytes[at..];
            if run[..WORD] == mark && run[WORD..2 * WORD] == on.to_ne_bytes() {
                let at = u64::try_from(at + tries).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &7_u64.to_ne_bytes(), at).unwrap();
                return;
            }
        }
    }
    panic!("no memory of the loop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_that_lives_die_of_is_set_aside_and_the_others_serve() {
    let mut bad = Scene::new(start().await, "", "").await;
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..shell("cat")
    };
    let child = bad.spawn(spec).await;
    let child = Pid::from_raw(bad.process(child).await.pid);
    let request = NewEventLoopRequest {
        name: "good".into(),
        ..NewEventLoopRequest::default()
    };
    bad.daemon.policies().new_event_loop(request).await.unwrap();
    let name = format!(
        "{}/{}",
        bad.daemon.info().await.principal,
        the_loop(&bad).await.name
    );
    for _ in 0..2 {
        let pid = bad.daemon.info().await.pid;
        let life = bad.daemon.status().await.keeper.unwrap().life;
        if life == 1 {
            blame(pid, the_loop(&bad).await.loop_id);
        }
        kill(Pid::from_raw(pid), Signal::SIGABRT).unwrap();
        next_life(&bad.daemon, life).await;
        let keeper = bad.daemon.status().await.keeper.unwrap();
        assert_eq!(keeper.set_aside_loops, std::slice::from_ref(&name));
        let good = GetLoopRequest {
            r#loop: Some(LoopRef {
                r#ref: Some(loop_ref::Ref::Name("good".into())),
            }),
        };
        bad.daemon.loops().get_loop(good).await.unwrap();
        kill(child, None).expect("it lives");
    }
}
