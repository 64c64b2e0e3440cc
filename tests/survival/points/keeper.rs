//! Deaths of the keeper.

use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Client, within};
use super::scenario::{end_daemon, start_daemon};
use super::{KEEPER, block_on};

/// Ends the keeper at a point where it reaps a child of a dead life.
async fn ends(point: &str) {
    let daemon = start_daemon(&format!("{point}:1:kill:0")).await;
    let mut client = Client::new(daemon, ("", "epoll")).await;
    let line = "read x; echo $x; exit";
    let mut children = Vec::new();
    for (name, code) in [("before", 4), ("after", 5)] {
        let child = client.start(name, &format!("{line} {code}"), false).await;
        children.push((name, code, child));
    }
    kill(Pid::from_raw(client.pid().await), Signal::SIGKILL).unwrap();
    client
        .until("the next life", |seen| seen.recovered == 1)
        .await;
    let pid = client.pid().await;
    for (name, code, (id, pid)) in children {
        client.write(id, b"word\n", &mut 0, 5).await;
        client
            .until(name, |seen| seen.closed.contains_key(&id))
            .await;
        assert_eq!(client.seen.of(id, Stream::Stdout), b"word\n");
        client.check_started(name, pid);
        match client.exit_of(id) {
            Some(exited::Status::Code(told)) => assert_eq!(told, code, "{name}"),
            // Older kernels tell nobody but the parent.
            Some(exited::Status::Unknown(why)) => assert!(why.contains("keeper"), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
        // The first one's end was that of the keeper.
        within("the keeper's end", async {
            while client.status().await.keeper.is_some_and(|k| k.pid != 0) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    // The daemon serves as before.
    assert_eq!(client.pid().await, pid);
    let (short, pid) = client.start("short", "exit 3", false).await;
    client
        .until("its end", |seen| seen.closed.contains_key(&short))
        .await;
    assert_eq!(client.exit_of(short), Some(exited::Status::Code(3)));
    client.check_started("short", pid);
    client.post(1).await;
    client.acknowledge().await;
    assert_eq!(client.posted, [1]);
    end_daemon(&client).await;
}

#[test]
fn the_daemon_goes_on_when_the_keeper_dies() {
    std::thread::scope(|scope| {
        for point in KEEPER {
            scope.spawn(|| block_on(ends(point)));
        }
    });
}
