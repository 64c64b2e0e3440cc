//! One daemon with a loop of each backend, its loads, and its deaths.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evloopd::proto::*;
use tokio::task::{JoinError, JoinSet};

use crate::client::Site;
use crate::common::{
    Daemon, PATIENCE, command_with_keeper, directory, lives, loop_named, tcp_listener, tls, within,
};
use crate::field::Field;
use crate::figures::Totals;
use crate::killer::{self, Random, Round};
use crate::loads;
use crate::reader::{self, Reader};
use crate::rest::Rest;

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

/// Kills a daemon so often, and adds what the loads have done.
pub(crate) async fn run(deaths: u64, mut random: Random, totals: &mut Totals) {
    let dir = directory();
    let config = format!("{CONFIG}{}", tls::sections());
    let command = command_with_keeper(dir.path(), &config, &[]);
    let daemon = Daemon::start_as(dir, command).await;
    let site = Arc::new(Site::of(&daemon).await);
    let _ending = Ending(Arc::clone(&site));
    // What is there in a second life, without any load.
    killer::kill_all(&site, &[Round::after(Duration::ZERO)]);
    answers(&daemon).await;
    site.answered.store(2, Ordering::Relaxed);
    use_once(&daemon).await;
    let is_idle = |status: &GetStatusResponse| (status.loops, status.journal_bytes) == (0, 0);
    daemon.until("its end", is_idle).await;
    let before = Rest::of(&daemon).await;

    let rounds: Vec<_> = (0..deaths).map(|_| Round::next(&mut random)).collect();
    live(&daemon, &site, rounds, &mut random).await;
    let lives = daemon.status().await.keeper.unwrap().life;
    assert_eq!(lives, deaths + 2, "it has died by itself");
    use_once(&daemon).await;
    before.is_back(&daemon).await;
    site.figures.count("deaths", deaths);
    totals.add(&site.figures);
}

/// Loads a daemon and kills it, until all that was begun has come to its end and is closed.
async fn live(daemon: &Daemon, site: &Arc<Site>, rounds: Vec<Round>, random: &mut Random) {
    let mut fields = Vec::new();
    let mut readers = JoinSet::new();
    let mut tasks = JoinSet::new();
    for (policy, backend) in lives::BACKENDS {
        let field = Arc::new(Field::new(Arc::clone(site), backend));
        let request = NewEventLoopRequest {
            name: field.name(),
            policy: match policy {
                "" => "murders".into(),
                policy => format!("{policy}-murders"),
            },
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        daemon.policies().new_event_loop(request).await.unwrap();
        let reader = Reader::new(field.hand(), Random::new(random.next()));
        readers.spawn(reader.read());
        readers.spawn(reader::poll(field.hand()));
        loads::start(&field, &mut tasks);
        fields.push(field);
    }
    let asking = Arc::clone(site);
    readers.spawn(async move { killer::ask(&asking).await });
    let killed = Arc::clone(site);
    tasks.spawn_blocking(move || {
        killer::kill_all(&killed, &rounds);
        // The loads finish what they have begun.
        killed.end();
    });
    let mut look = tokio::time::interval(Duration::from_secs(1));
    while !tasks.is_empty() {
        tokio::select! {
            Some(done) = tasks.join_next() => whole(done),
            Some(done) = readers.join_next() => whole(done),
            // A load that waits for something says so before.
            _ = look.tick() => assert!(
                site.is_over_since().is_none_or(|since| since < 2 * PATIENCE),
                "these loads do not end: {:?}",
                site.running.lock()
            ),
        }
    }
    for field in &fields {
        nothing_is_left(daemon, field).await;
    }
    site.close();
    while let Some(done) = readers.join_next().await {
        whole(done);
    }
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
async fn answers(daemon: &Daemon) {
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
