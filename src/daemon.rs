//! The daemon: assembles its parts, starts, drains, and notifies systemd.

mod arguments;
mod host;
mod lives;
mod log;
mod sockets;
mod time_zones;
mod tls;
mod vanished;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::access::Access;
use crate::cgroup::Cgroups;
use crate::clock::Now;
use crate::config::{CgroupUse, Config, Limit, Resource, signal_number};
use crate::error::{Error, Result, SystemError};
use crate::event_loop::LoopEnd;
use crate::faults::{self, Point};
use crate::handover::{self, SLOT_TTL, Slots};
use crate::journal::Memory;
use crate::keeper::{Kept, Life};
use crate::poison;
use crate::policy::{Caller, Registry, Revival, Revived};
use crate::rpc::{self, Api, ConfigFiles, Identity, Repeats, Service, Shared};
use crate::signals::{self, Received, SignalHub, Subscription};
use crate::state::{self, Arena, Found, Starts};
use crate::sys;
use crate::terminals::Terminals;
use crate::watch::{
    Attributes, Closer, Count, Drain, DrainLimits, Handshakes, Links, Reaper, Resolver, Services,
    Starters, Strays, TimeZones, TransportLimits, reap_inherited,
};

pub use arguments::{Arguments, Show};
pub use host::{refusals, warnings};
pub use lives::{State, setup};
pub use log::init_log;
use sockets::Sockets;

/// How long connections without a stream may take to close when the daemon ends.
const IDLE_CONNECTIONS: Duration = Duration::from_millis(500);
/// The time between two checks, when the daemon ends, whether any stream is left.
const LOOK: Duration = Duration::from_millis(50);
/// How long the runtime may take to end after all loops are drained.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What a daemon is started with.
#[derive(Debug, Default)]
pub struct Setup {
    /// The configuration in force.
    pub config: Config,
    /// The daemon's present life, if it has a keeper.
    pub life: Option<Life>,
    /// What the life before has left.
    pub state: State,
    /// Tells what the configuration files have by now.
    pub files: ConfigFiles,
}

impl From<Config> for Setup {
    fn from(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }
}

/// Runs a daemon until SIGTERM or SIGINT.
///
/// Must be called before the process has other threads: it blocks the signals that the
/// signal thread takes.
///
/// # Errors
/// The error that keeps the daemon from starting.
pub fn run(setup: Setup) -> Result<()> {
    poison::abort_where_critical();
    sys::keep_freed_memory();
    let config = &setup.config;
    let allowed: Vec<i32> = config
        .signals
        .allow
        .iter()
        .filter_map(|name| signal_number(name))
        .collect();
    let mask = setup.life.as_ref().map(Life::mask);
    signals::block_all(&allowed, mask.as_deref())?;
    if let Err(error) = sys::close_inherited_on_exec() {
        tracing::warn!(%error, "cannot find out which file descriptors were inherited");
    }
    if let Err(error) = rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)) {
        tracing::warn!(%error, "cannot adopt orphans: what escapes from a child is not counted");
    }
    let file_limit = raise_file_limit();
    let slack = rustix::thread::current_timer_slack().unwrap_or_default();
    let slack = std::num::NonZeroU64::new(slack);
    let mut builder = if config.server.worker_threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(config.server.worker_threads);
        builder
    };
    let runtime = builder
        .enable_all()
        .thread_name("rpc")
        // A thread inherits the timer slack of the thread that starts it, and that of a loop's
        // thread is short (prctl(2), PR_SET_TIMERSLACK).
        .on_thread_start(move || {
            let _ = rustix::thread::set_current_timer_slack(slack);
        })
        .build()
        .map_err(|error| SystemError::from_io(&error, "runtime", ""))?;
    let result = runtime.block_on(async {
        let hub = SignalHub::start(&allowed)?;
        tokio::select! {
            ended = serve(setup, Arc::clone(&hub), file_limit) => ended,
            // This has to run on the main thread.
            never = reap_inherited(&hub) => match never {},
        }
    });
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

/// Raises the daemon's limit on open files to the hard limit, since every watched descriptor, child
/// and connection needs file descriptors. Returns the limit before, which children get: many
/// programs (those that use select(2), for example) do not work with a high limit.
fn raise_file_limit() -> Limit {
    let before = Resource::NOFILE.own();
    let raised = Limit {
        soft: before.hard,
        ..before
    };
    if let Err(error) = rustix::process::setrlimit(Resource::NOFILE.kernel(), raised.into()) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    before
}

fn services(
    config: &Config,
    signals: Arc<SignalHub>,
    file_limit: Limit,
    instance: &str,
    life: Option<Life>,
    starts: Option<Arc<Starts>>,
) -> Result<Services> {
    let keeper = life.as_ref().and_then(Life::keeper);
    let (limits, children) = (&config.limits, &config.children);
    let runtime = Handle::current();
    let drain = DrainLimits {
        pipes: children.drained_pipes,
        bytes: children.drain_bytes,
        time: children.drain_time,
    };
    Ok(Services {
        cgroups: match children.cgroups {
            CgroupUse::Auto => {
                let earlier = life.and_then(|life| life.take(Kept::Cgroups));
                let cgroups = Cgroups::open(instance, keeper, earlier, runtime.clone());
                cgroups.with_lock(|lock| sockets::keep(life.as_ref(), Kept::Cgroups, lock));
                cgroups
            }
            CgroupUse::Off => Cgroups::off("[children] cgroups = \"off\"", runtime.clone()),
        },
        starts,
        reaper: Reaper::new(runtime.clone(), limits.children, life),
        drain: Drain::new(runtime.clone(), drain),
        starters: Starters::start(children.spawn_threads, &runtime)?,
        resolver: Resolver::new(limits.resolver_threads),
        links: Links::new(runtime.clone()),
        tls: tls::sections(&config.tls)?,
        handshakes: Handshakes::new(limits.tls_threads),
        closer: Closer::default(),
        runtime,
        signals,
        time_zones: Arc::new(TimeZones::open()),
        transport: TransportLimits {
            read_size: limits.read_size,
            write_buffer: limits.write_buffer,
            high_water: limits.write_high_water,
            close_linger: limits.close_linger,
        },
        pipe_grace: children.pipe_grace,
        kill_grace: children.kill_grace,
        reap_wait: children.reap_wait,
        path_inbox: limits.path_inbox,
        configured: Attributes::from(children),
        own: Attributes {
            limits: [(Resource::NOFILE, file_limit)].into(),
            ..Attributes::default()
        },
        children: Count::new("limits.children", limits.children),
        watches: Count::new("limits.watches", limits.watches),
    })
}

fn identity(
    sockets: &Sockets,
    life: Option<Life>,
    files: ConfigFiles,
    state: (Option<&Arc<Arena>>, Option<String>),
) -> Result<Identity> {
    let (arena, state_trouble) = state;
    let draw = || -> Result<u128> {
        let mut random = [0; 16];
        let filled = getrandom::fill(&mut random);
        filled.map_err(|_| Error::Internal("the system has no random bytes"))?;
        Ok(u128::from_le_bytes(random))
    };
    let instance = match arena {
        Some(arena) => arena.instance(draw)?,
        None => draw()?,
    };
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Ok(Identity {
        instance: format!("{instance:032x}"),
        boot_id: boot_id.unwrap_or_default().trim().to_owned(),
        started: Now::sample().realtime,
        socket: sockets.service_path.clone(),
        handover_socket: sockets.handover_path.clone(),
        life,
        files,
        state_trouble,
        socket_troubles: Arc::default(),
        limit_troubles: Vec::new(),
    })
}

async fn serve(setup: Setup, hub: Arc<SignalHub>, file_limit: Limit) -> Result<()> {
    let life = setup.life;
    let config = Arc::new(setup.config);
    let sockets = Sockets::open(&config, life.as_ref())?;
    lives::begin(life.as_ref(), &config);
    let (mut asked, _control) = control(&hub);
    let memory = Memory::new(config.limits.memory);
    let mut state = setup.state;
    let no_memory = |errno| SystemError::new(errno, "memory", "");
    let arena = match &life {
        Some(life) => Some(state.arena(life).map_err(no_memory)?),
        None => None,
    };
    let mut identity = identity(
        &sockets,
        life,
        setup.files,
        (arena.as_ref(), state.trouble.clone()),
    )?;
    for (key, what) in warnings(&config) {
        tracing::warn!("{key} {what}");
        identity.limit_troubles.push(format!("{key} {what}"));
    }
    let starts = match &arena {
        Some(arena) => Some(Starts::new(arena).map_err(no_memory)?),
        None => None,
    };
    let services = services(&config, hub, file_limit, &identity.instance, life, starts)?;
    let services = Arc::new(services);
    let cgroups = Arc::clone(&services.cgroups);
    let short_of_memory = life.as_ref().is_some_and(lives::ran_out_of_memory);
    let State {
        found,
        mut inherited,
        needed,
        is_partial,
        ..
    } = state;
    let (is_alone, has_same_pids) = (inherited.is_alone(), inherited.has_same_pids());
    let (mut requests, mut slots) = (Vec::new(), Vec::new());
    let of_loops = |found: Found| {
        match found.kind {
            state::Kind::Requests => requests.push(found),
            state::Kind::Slots => slots.push(found),
            _ => return Some(found),
        }
        None
    };
    let found: Vec<_> = found.take().into_iter().filter_map(of_loops).collect();
    let capacity = config.limits.slots;
    let slots = match &arena {
        Some(arena) => {
            let arena = Arc::clone(arena);
            Slots::that_survive(capacity, SLOT_TTL, arena, slots, &mut inherited)
        }
        None => Slots::new(capacity, SLOT_TTL),
    };
    let kept_requests = arena.clone().map(|arena| (arena, requests));
    let unrecorded: Vec<_> = found.iter().flat_map(Starts::abandon).collect();
    let files_of_state = arena.clone();
    faults::point(Point::StartsAbandoned);
    let registry = Registry::new(Arc::clone(&config), Arc::clone(&services), memory, arena)?;
    if is_alone {
        tracing::warn!("the daemon before and its keeper were ended: what they left is taken up");
    }
    if let Some(life) = life.as_ref().filter(|_| !found.is_empty()) {
        registry.take_up(Revived {
            found,
            is_whole: !is_partial,
            needed,
            revival: Revival {
                told: lives::recovered(life, is_alone),
                by_fault: lives::died_by_fault(life),
                short_of_memory,
                revive: rpc::Reviver::new(&registry, inherited),
            },
        });
    }
    let strays = match (is_alone, has_same_pids) {
        (false, _) => Strays::Keepers,
        (true, true) => Strays::Strangers,
        (true, false) => Strays::Unknown,
    };
    faults::point(Point::AllTakenUp);
    services.reaper.settle(&unrecorded, strays);
    faults::point(Point::Settled);
    services.cgroups.remove_unclaimed();
    registry.start_configured()?;
    tokio::spawn(time_zones::follow(Arc::downgrade(&registry)));
    let access = Arc::new(Access::new());
    let Sockets {
        service,
        handover,
        service_path,
        files,
        fresh: [fresh_service, fresh_handover],
        ..
    } = sockets;

    files.follow(life, Arc::clone(&identity.socket_troubles));
    let streams = Count::new("limits.streams", config.limits.streams);
    let (limits, budget) = (&config.limits, registry.memory().budget());
    let repeats = Repeats::new(limits.requests, limits.request_ttl, Arc::clone(budget));
    let repeats = match kept_requests {
        Some((arena, found)) => repeats.that_survive(arena, found),
        None => repeats,
    };
    let api = Api::new(Shared {
        registry: Arc::clone(&registry),
        slots: Arc::clone(&slots),
        streams: Arc::clone(&streams),
        terminals: Arc::new(Terminals::new(limits.screen_threads, Arc::clone(budget))),
        repeats,
        identity,
    });
    api.take_up_screens(registry.list(&everybody(), 0, false))
        .await;
    let (stop, stopped) = watch::channel(false);
    let until_stop = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };
    let handing_over = handover::serve(
        handover,
        fresh_handover,
        Arc::clone(&access),
        slots,
        until_stop(),
    );
    let handing_over = tokio::spawn(handing_over);
    let (routes, health) = api
        .routes()
        .map_err(|_| Error::Internal("the gRPC reflection service cannot be built"))?;
    tell_health(&health, ServingStatus::Serving).await;
    let server = Service {
        listener: service,
        fresh: fresh_service,
        access,
        max_connections: config.server.max_connections,
        max_connections_per_principal: config.server.max_connections_per_principal,
        keepalive: config.server.keepalive,
        handshake: config.server.handshake_timeout,
        receive: config.server.receive_timeout,
        calls: config.limits.connection_calls,
        quotas: rpc::MemoryQuotas::new(registry.memory().budget(), config.server.max_connections),
        routes,
    };
    let server = rpc::serve(server, stopped.clone());
    let mut server = tokio::spawn(server);
    tracing::info!(socket = %service_path.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    match &life {
        Some(life) => life.serving(),
        None => notify(&[NotifyState::Ready]),
    }

    tokio::select! {
        () = terminate(&mut asked) => {}
        ended = &mut server => {
            let why = ended.map_or_else(|e| e.to_string(), |()| "no cause".to_owned());
            return Err(Error::wrong_state(format!("the server ended by itself: {why}")));
        }
    }
    match &life {
        Some(life) => life.ending(),
        None => notify(&[NotifyState::Stopping]),
    }
    tell_health(&health, ServingStatus::NotServing).await;
    let drained = async {
        drain(&registry).await;
        // Sending fails only when no receiver is left that has to stop.
        let _ = stop.send(true);
        tokio::select! {
            _ = server => {}
            () = quiet(&streams) => {}
        }
        let _ = handing_over.await;
    };
    if !within(config.server.drain_timeout, &mut asked, drained).await {
        kill_what_is_left(&registry).await;
    }
    cgroups.close();
    drop(files);
    if let Some(arena) = files_of_state {
        arena.remove_files();
    }
    Ok(())
}

/// Subscribes to the signals that control the daemon: SIGTERM, SIGINT, and SIGHUP, which reloads
/// nothing yet.
fn control(hub: &Arc<SignalHub>) -> (mpsc::Receiver<i32>, Subscription) {
    // A capacity of 1 is enough: what arrives while one waits asks for the same.
    let (sender, receiver) = mpsc::channel(1);
    let sink = move |received: Received| {
        if received.number == libc::SIGHUP {
            tracing::warn!("SIGHUP: this version does not reload; restart to apply changes");
        } else {
            let _ = sender.try_send(received.number);
        }
    };
    let numbers = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    (receiver, hub.subscribe(&numbers, Arc::new(sink)))
}

async fn terminate(asked: &mut mpsc::Receiver<i32>) {
    if let Some(number) = asked.recv().await {
        tracing::info!(number, "a signal asks the daemon to end");
    }
}

fn everybody() -> Caller {
    Caller {
        principal: crate::access::Principal::uid(rustix::process::geteuid().as_raw()),
        administrator: true,
        session: None,
        process: None,
    }
}

/// Closes all loops: their watches end in order, then their journals, and then the streams that
/// read these, each with a Goodbye.
async fn drain(registry: &Arc<Registry>) {
    registry.drain();
    let mut closing = JoinSet::new();
    for handle in registry.list(&everybody(), 0, false) {
        let registry = Arc::clone(registry);
        closing.spawn(async move {
            if let Err(error) = registry.close(&handle, LoopEnd::forced()).await {
                tracing::warn!(on = handle.full_name(), %error, "a loop did not close");
            }
        });
    }
    closing.join_all().await;
    for handle in registry.list(&everybody(), 0, true) {
        handle.journal().rouse();
    }
}

/// Waits until all streams have ended, and then a little longer for connections without a stream.
async fn quiet(streams: &Count) {
    let mut looks = tokio::time::interval(LOOK);
    while streams.used() > 0 {
        looks.tick().await;
    }
    tokio::time::sleep(IDLE_CONNECTIONS).await;
}

/// Waits for an orderly end, at most for `limit` or until a second SIGTERM or SIGINT. Returns
/// whether the daemon ended in order.
async fn within(
    limit: Duration,
    asked: &mut mpsc::Receiver<i32>,
    end: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        () = end => {
            tracing::info!("ended in order");
            return true;
        }
        () = tokio::time::sleep(limit) => {
            tracing::warn!(?limit, "drain_timeout has passed: open loops end with the daemon");
        }
        () = terminate(asked) => {
            tracing::warn!("a second signal asks the daemon to end: open loops end with it");
        }
    }
    false
}

/// Sends SIGKILL to the children of loops that have not closed in time.
async fn kill_what_is_left(registry: &Registry) {
    let mut killing = JoinSet::new();
    for handle in registry.list(&everybody(), 0, false) {
        killing.spawn(async move { handle.kill_children().await });
    }
    // The daemon does not wait for a loop that does not answer this command either.
    let _ = tokio::time::timeout(LAST_WAIT, killing.join_all()).await;
}

async fn tell_health(health: &HealthReporter, status: ServingStatus) {
    for service in rpc::SERVICES {
        health.set_service_status(service, status).await;
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
