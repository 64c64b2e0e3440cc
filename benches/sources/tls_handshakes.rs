//! Connections with TLS until a client is told that their handshakes are complete, and how late the
//! timer of another loop of the same daemon is meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{
    EventKind, Filter, LoopRef, NewEventLoopRequest, StartAt, SubscribeRequest, TimerSpec, event,
    loop_ref, timer_spec, watch_spec::Spec,
};
use rustix::time::{ClockId, clock_gettime};
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use crate::daemon::{Daemon, Subscription, add_watch};
use crate::report::{Report, Side, in_turns, p99_micros};
use crate::source::{BACKENDS, Clock, Got, Source, Taken, add, listener_with_tls};
use crate::tls_read::{Peer, connect};
use crate::{Outcome, certificates, programs};

const CONNECTIONS: usize = 1000;
/// The threads of the peers, each of which shakes hands one connection after the other.
const THREADS: usize = 4;
/// The interval of the neighbour's timer.
const TICK: Duration = Duration::from_millis(5);
/// The rounds beside which it is measured.
const ROUNDS: usize = 10;
/// A round in which the host does nothing else.
const QUIET: Duration = Duration::from_millis(400);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let section = certificates::make(directory.path())?;
    let config = certificates::client(directory.path())?;
    let mut sources = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_with(&format!("version = 1\n{section}{}", Daemon::on(backend)))?;
        let spec = Spec::Listener(listener_with_tls());
        let watched = Source::watched(daemon, spec, &[EventKind::Accepted, EventKind::Closed]);
        sources.push(runtime.block_on(watched)?);
    }
    sources.push(runtime.block_on(Source::program(programs::HANDSHAKES, directory))?);

    let sides = sources.iter_mut().map(|source| -> Side<'_, Taken> {
        let config = &config;
        Box::new(move || round(runtime, source, config))
    });
    let names = [
        "tls_handshakes_vs_tokio_rustls",
        "tls_handshakes_cpu_vs_tokio_rustls",
    ];
    let taken = in_turns(sides.collect())?;
    add(report, names, ["handshakes/s", "µs"], [0.9; 2], taken);

    // The timers are measured in rounds of their own, so that they cost none of the above anything.
    let (program, daemons) = sources.split_last_mut().ok_or("no sources")?;
    for (backend, daemon) in BACKENDS.into_iter().zip(daemons) {
        let mut timer = Neighbour::start(runtime, daemon)?;
        let beside = timer.beside(runtime, || round(runtime, daemon, &config))?;
        let elsewhere = timer.beside(runtime, || round(runtime, program, &config))?;
        let quiet = timer.beside(runtime, || {
            std::thread::sleep(QUIET);
            Ok(())
        })?;
        for (name, late) in [
            ("timer_late_p99_us_beside_handshakes", beside),
            ("timer_late_p99_us_beside_tokio_rustls", elsewhere),
            ("timer_late_p99_us_quiet", quiet),
        ] {
            report.figure((name, backend), None, vec![late]);
        }
    }
    Ok(())
}

fn round(runtime: &Runtime, source: &mut Source, config: &Arc<ClientConfig>) -> Outcome<Taken> {
    let clock = Clock::start(source)?;
    let port = source.port;
    let shaken = std::thread::scope(|threads| {
        let shake = || {
            let peers = (0..CONNECTIONS / THREADS).map(|_| connect(port, Arc::clone(config)));
            let peers = peers.collect::<Outcome<Vec<Peer>>>();
            peers.map_err(|error| error.to_string())
        };
        let peers: Vec<_> = (0..THREADS).map(|_| threads.spawn(shake)).collect();
        let all = Got {
            accepted: CONNECTIONS,
            ..Got::default()
        };
        runtime.block_on(source.until(all))?;
        let taken = clock.stop(source, 1000.0)?;
        let mut all = Vec::with_capacity(CONNECTIONS);
        for peers in peers {
            all.extend(peers.join().map_err(|_| "a peer has panicked")??);
        }
        Outcome::Ok((taken, all))
    });
    let (taken, peers) = shaken?;
    for mut peer in peers {
        peer.conn.send_close_notify();
        peer.conn.complete_io(&mut peer.sock)?;
    }
    let ends = Got {
        ended: CONNECTIONS,
        ..Got::default()
    };
    runtime.block_on(source.until(ends))?;
    Ok(taken)
}

/// The timer of another loop of a daemon.
struct Neighbour {
    fired: Subscription,
}

impl Neighbour {
    fn start(runtime: &Runtime, source: &Source) -> Outcome<Self> {
        runtime.block_on(async {
            let channel = source.connect().await?;
            let request = NewEventLoopRequest {
                name: "neighbour".into(),
                ..NewEventLoopRequest::default()
            };
            let mut policies = PolicyServiceClient::new(channel.clone());
            policies.new_event_loop(request).await?;
            let neighbour = Some(LoopRef {
                r#ref: Some(loop_ref::Ref::Name("neighbour".into())),
            });
            let request = SubscribeRequest {
                r#loop: neighbour.clone(),
                start: Some(Start::StartAt(StartAt::Now.into())),
                filter: Some(Filter {
                    kinds: vec![EventKind::TimerFired.into()],
                    ..Filter::default()
                }),
                ..SubscribeRequest::default()
            };
            let fired = Subscription::begin(channel.clone(), request).await?;
            let timer = Spec::Timer(TimerSpec {
                schedule: Some(timer_spec::Schedule::Every(TICK.try_into()?)),
                ..TimerSpec::default()
            });
            add_watch(channel, neighbour, timer).await?;
            Ok(Self { fired })
        })
    }

    /// Returns the 99th percentile of how late the timer is during these rounds, in µs.
    fn beside<T>(
        &mut self,
        runtime: &Runtime,
        mut round: impl FnMut() -> Outcome<T>,
    ) -> Outcome<f64> {
        let mut late = Vec::new();
        for _ in 0..ROUNDS {
            let begun = monotonic_nanos()?;
            round()?;
            let ended = monotonic_nanos()?;
            runtime.block_on(self.collect(begun..ended, &mut late))?;
        }
        Ok(p99_micros(late))
    }

    /// Adds how late the timer was that was due in that time.
    async fn collect(&mut self, during: Range<u64>, late: &mut Vec<u64>) -> Outcome<()> {
        loop {
            for event in self.fired.next().await?.events {
                if let Some(event::Kind::TimerFired(fired)) = event.kind {
                    if during.contains(&fired.scheduled_ns) {
                        late.push(fired.late_ns);
                    } else if fired.scheduled_ns >= during.end {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn monotonic_nanos() -> Outcome<u64> {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
    Ok(u64::try_from(now.as_nanos())?)
}
