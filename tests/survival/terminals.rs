//! Terminals through many deaths of the daemon.

use std::io::Write as _;
use std::process::Command;

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use crate::common::{Scene, by_id, in_terminal, shell, within};
use crate::{BACKENDS, murder, murder_amid, resume, start, the_loop};

/// The lines that a terminal shows, of what was written to it.
fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_terminal_is_told_once_through_many_deaths() {
    const LINES: usize = 60_000;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let line = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done; exit 5");
        let id = scene.spawn(in_terminal(shell(&line))).await;
        // Beside it, one whose output the loop reads in another way.
        scene
            .spawn(shell("while sleep 0.01; do echo x; done"))
            .await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        let (mut seen, mut bytes, mut exited) = (0, Vec::new(), None);
        let mut deaths = 0;
        'lives: loop {
            let mut recorder = resume(&scene, &epoch, seen).await;
            let enough = bytes.len() + 20_000;
            while bytes.len() < enough {
                let next = recorder.find("anything", |event| event.seq > seen).await;
                seen = next.seq;
                if next.watch_id != id {
                    continue;
                }
                match next.kind {
                    Some(Kind::Data(data)) => {
                        assert_eq!(data.offset, bytes.len() as u64, "on {backend}");
                        bytes.extend_from_slice(&data.data);
                    }
                    Some(Kind::Exited(exit)) => exited = exit.status,
                    Some(Kind::Closed(_)) => break 'lives,
                    _ => {}
                }
            }
            murder(&scene.daemon).await;
            deaths += 1;
        }
        assert!(deaths > 5, "{deaths}");
        assert_eq!(exited, Some(exited::Status::Code(5)));
        let wanted: Vec<_> = (0..LINES).map(|line| line.to_string()).collect();
        assert!(lines(&bytes) == wanted, "on {backend}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_typed_is_typed_once_through_many_deaths() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        // It neither echoes nor edits, and counts what it gets.
        let line = "stty raw -echo; echo ready; head -c 40000 | cksum; exit 3";
        let id = scene.spawn(in_terminal(shell(line))).await;
        scene.output(id, "ready").await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        let input: Vec<u8> = (0..5000_u64).flat_map(u64::to_be_bytes).collect();
        let (mut taken, mut round) = (0_u64, 0);
        while taken < 40_000 {
            round += 1;
            murder_amid(&scene.daemon, round, async || {
                let at = usize::try_from(taken).unwrap();
                let piece = &input[at..(at + 150).min(input.len())];
                if let Ok(answer) = scene.write_at(id, piece, Some(taken)).await {
                    taken = answer.taken;
                }
            })
            .await;
            // All is typed if nobody reads any more.
            let now = scene.write_at(id, b"", None).await;
            taken = now.map_or(40_000, |now| now.taken);
        }
        let mut recorder = resume(&scene, &epoch, 0).await;
        let Some(Kind::Exited(exited)) = recorder.first(id, "exited").await.kind else {
            panic!("its exit");
        };
        assert_eq!(exited.status, Some(exited::Status::Code(3)));
        recorder.first(id, "closed").await;
        let told = String::from_utf8(recorder.bytes(id, Stream::Stdout)).unwrap();
        let mut sum = Command::new("cksum")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        sum.stdin.take().unwrap().write_all(&input).unwrap();
        let sum = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
        assert!(told.contains(sum.trim()), "{told}, not {sum} on {backend}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_screen_shows_what_was_written_in_earlier_lives() {
    let mut scene = Scene::new(start().await, "", "").await;
    let spec = in_terminal(shell("echo before; read line; echo after; read line"));
    let id = scene.spawn(spec).await;
    scene.output(id, "before").await;
    murder(&scene.daemon).await;
    let screen = shown(&scene, id).await;
    assert!(screen.contains("before"), "{screen}");
    assert!(scene.write(id, b"go\n").await > 0);
    let epoch = the_loop(&scene).await.journal.unwrap().epoch;
    let mut recorder = resume(&scene, &epoch, 0).await;
    while !String::from_utf8_lossy(&recorder.bytes(id, Stream::Stdout)).contains("after") {
        recorder.step().await;
    }
    let screen = shown(&scene, id).await;
    assert!(
        screen.contains("before") && screen.contains("after"),
        "{screen}"
    );
    let size = TerminalSize {
        rows: 30,
        columns: 90,
    };
    scene.resize(id, 30, 90).await.unwrap();
    assert_eq!(scene.terminal(id).await.size, Some(size));
}

/// Returns what restores the screen of a terminal.
async fn shown(scene: &Scene, id: u64) -> String {
    let open = attach_terminal_request::Message::Open(OpenTerminal {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        read_only: true,
        ..OpenTerminal::default()
    });
    let request = AttachTerminalRequest {
        message: Some(open),
    };
    let stream = scene
        .daemon
        .processes()
        .attach_terminal(tokio_stream::iter([request]))
        .await
        .unwrap();
    let mut stream = stream.into_inner();
    loop {
        let message = within("a screen", stream.message()).await.unwrap().unwrap();
        if let Some(attach_terminal_response::Message::Screen(screen)) = message.message {
            return String::from_utf8_lossy(&screen.restore).into_owned();
        }
    }
}
