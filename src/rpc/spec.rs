//! A request to add a watch, checked: what to register, and how to make it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message as _;

use super::Api;
use super::convert;
use crate::access::Peer;
use crate::config::{ChildWatcher, WatchKind};
use crate::driver::file::{self, FileKind, Purpose, Refusal};
use crate::error::{Error, Result, SystemError};
use crate::event_loop::{Handle, Lifetime, Registration};
use crate::handover::Claimed;
use crate::proto::{self, watch_spec::Spec};
use crate::watch::address::UnixName;
use crate::watch::{
    AtEnd, ConnectionOrder, FdOrder, INTERVAL_MIN, ListenOrder, ListenTarget, Need, Order, PipeEnd,
    PipeOrder, ProcessOrder, Program, SOCKETS_MAX, Schedule, SignalOrder, Stdio, StreamOptions,
    Target, TimerOrder,
};

const HOUR: Duration = Duration::from_secs(3600);
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Most bytes of a specification, which every answer about the watch carries.
const SPEC_MAX: usize = 256 * 1024;
/// Most signals of one watch: as many as there are.
const SIGNALS_MAX: usize = 64;
const FINISHED_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const BACKLOG: i32 = 128;
const BACKLOG_MAX: u32 = 4096;
/// Most bytes of a program's arguments and environment together; the kernel takes about 2 MiB.
const ARGUMENTS_MAX: usize = 2 << 20;

/// What the kind-specific part of a request comes to.
struct Plan {
    kind: WatchKind,
    need: Need,
    order: Order,
    /// A descriptor was handed over for it.
    claimed_from: Option<Lifetime>,
    /// As shown and compared.
    spec: Spec,
}

/// Checks a request.
pub(super) fn registration(
    api: &Api,
    peer: &Peer,
    on: &Handle,
    request: proto::AddWatchRequest,
) -> Result<(Registration, Order)> {
    let spec = request.spec.and_then(|spec| spec.spec);
    let spec = spec.ok_or_else(|| Error::invalid("spec", "must be set: what to watch"))?;
    let kind = kind_of(&spec);
    let context = Checks { api, peer, on };
    context.allow(kind)?;
    let plan = context.plan(spec)?;
    let lifetime = match proto::Lifetime::try_from(request.lifetime) {
        Ok(proto::Lifetime::Unspecified) => plan.claimed_from.unwrap_or(Lifetime::Daemon),
        Ok(proto::Lifetime::Daemon) => Lifetime::Daemon,
        Ok(proto::Lifetime::Process) => {
            let process = peer.process.clone().map(Lifetime::Process);
            process.ok_or_else(|| {
                Error::invalid("lifetime", "your process cannot be seen from here")
            })?
        }
        Err(_) => return Err(Error::invalid("lifetime", "must be DAEMON or PROCESS")),
    };
    let shown = proto::WatchSpec {
        spec: Some(plan.spec),
    };
    if shown.encoded_len() > SPEC_MAX {
        return Err(Error::invalid(
            "spec",
            "at most 256 KiB, inherited_env not counted",
        ));
    }
    let registration = Registration {
        name: convert::new_watch_name("name", &request.name)?,
        labels: convert::labels("labels", request.labels)?,
        user_data: request.user_data,
        kind: plan.kind,
        spec: Some(Box::new(shown)),
        or_existing: convert::if_exists(request.if_exists)?,
        request_id: convert::short_text("request_id", request.request_id)?,
        lifetime,
        finished_ttl: convert::optional_duration(
            "finished_ttl",
            request.finished_ttl,
            FINISHED_TTL_MAX,
        )?,
        need: plan.need,
    };
    Ok((registration, plan.order))
}

const fn kind_of(spec: &Spec) -> WatchKind {
    match spec {
        Spec::Fd(_) => WatchKind::Fd,
        Spec::Timer(_) => WatchKind::Timer,
        Spec::Process(_) => WatchKind::Process,
        Spec::Connection(_) => WatchKind::Connection,
        Spec::Listener(_) => WatchKind::Listener,
        Spec::ReadPipe(_) => WatchKind::ReadPipe,
        Spec::WritePipe(_) => WatchKind::WritePipe,
        Spec::Signal(_) => WatchKind::Signal,
    }
}

fn refused(field: &'static str, refusal: &Refusal) -> Error {
    let Refusal { what, reason } = refusal;
    Error::invalid(field, format!("{what}: {reason}"))
}

struct Checks<'a> {
    api: &'a Api,
    peer: &'a Peer,
    on: &'a Handle,
}

impl Checks<'_> {
    fn lacks(&self, capability: &'static str, reason: &'static str) -> Error {
        Error::NotSupported {
            class: self.on.policy().class.clone().into(),
            backend: format!("policy `{}`", self.on.policy().name).into(),
            capability: capability.into(),
            reason: reason.into(),
        }
    }

    fn allow(&self, kind: WatchKind) -> Result<()> {
        if self.on.policy().watch_kinds.contains(&kind) {
            return Ok(());
        }
        Err(self.lacks(kind.name(), "not supported"))
    }

    fn plan(&self, spec: Spec) -> Result<Plan> {
        match spec {
            Spec::Fd(fd) => self.fd(fd),
            Spec::Timer(timer) => timer_plan(timer),
            Spec::Process(process) => self.process(process),
            Spec::Connection(connection) => self.connection(connection),
            Spec::Listener(listener) => self.listener(listener),
            Spec::ReadPipe(pipe) => self.read_pipe(pipe),
            Spec::WritePipe(pipe) => self.write_pipe(pipe),
            Spec::Signal(signal) => self.signal(signal),
        }
    }

    /// Takes a slot on approval: it is used up when the watch is made.
    fn claim(&self, field: &'static str, slot: &[u8]) -> Result<(Claimed, FileKind, Lifetime)> {
        let claimed = self.api.slots.claim(field, &self.peer.principal, slot)?;
        let kind = file::inspect(claimed.as_fd()).map_err(|refusal| refused(field, &refusal))?;
        if self.on.policy().sockets_only && !matches!(kind, FileKind::Socket { .. }) {
            return Err(self.lacks(kind.name(), "only sockets are supported"));
        }
        let giver = claimed.giver.clone();
        let lifetime = giver.map_or(Lifetime::Daemon, Lifetime::Process);
        Ok((claimed, kind, lifetime))
    }

    fn unix(&self, field: &str, address: &proto::UnixAddress) -> Result<UnixName> {
        if !self.on.policy().unix_sockets {
            return Err(self.lacks("unix_socket", "not supported"));
        }
        UnixName::check(field, address)
    }

    fn fd(&self, mut fd: proto::FdSpec) -> Result<Plan> {
        let (claimed, kind, lifetime) = self.claim("spec.fd.slot", &fd.slot)?;
        fd.slot.clear();
        let (readable, writable) = (fd.readable, fd.writable);
        let order = Order::Now(Box::new(move || {
            let order = FdOrder {
                fd: claimed.keep().0,
                kind,
                readable,
                writable,
            };
            Ok(order.build())
        }));
        Ok(Plan {
            kind: WatchKind::Fd,
            need: Need::sources(1),
            order,
            claimed_from: Some(lifetime),
            spec: Spec::Fd(fd),
        })
    }

    fn process(&self, mut process: proto::ProcessSpec) -> Result<Plan> {
        use proto::process_spec::Command;

        let no_nul = |field: &'static str, text: &str| {
            if text.contains('\0') {
                return Err(Error::invalid(field, "must not contain NUL"));
            }
            Ok(())
        };
        let program = match process.command.clone() {
            Some(Command::Exec(exec)) => {
                let field = "spec.process.exec.argv";
                if exec.argv.first().is_none_or(String::is_empty) {
                    return Err(Error::invalid(field, "needs a program"));
                }
                exec.argv.iter().try_for_each(|arg| no_nul(field, arg))?;
                Program::Exec(exec.argv)
            }
            Some(Command::Shell(line)) => {
                no_nul("spec.process.shell", &line)?;
                Program::Shell(line)
            }
            None => return Err(Error::invalid("spec.process", "needs exec or shell")),
        };
        let inherited = process.inherited_env.take();
        let mut env: BTreeMap<String, String> = match inherited {
            Some(inherited) => inherited.variables,
            None => own_environment(),
        };
        env.extend(process.env.clone());
        for (name, value) in &env {
            no_nul("spec.process.env", value)?;
            no_nul("spec.process.env", name)?;
            if name.is_empty() || name.contains('=') {
                let allowed = "names must not be empty nor contain `=`";
                return Err(Error::invalid("spec.process.env", allowed));
            }
        }
        let args: usize = match &program {
            Program::Exec(argv) => argv.iter().map(String::len).sum(),
            Program::Shell(line) => line.len(),
        };
        let vars: usize = env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if args + vars > ARGUMENTS_MAX {
            let error = SystemError::new(rustix::io::Errno::TOOBIG, "exec", "");
            return Err(error.into());
        }
        if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
            return Err(Error::invalid("spec.process.cwd", "must be absolute"));
        }
        no_nul("spec.process.cwd", &process.cwd)?;
        let cwd = if process.cwd.is_empty() {
            "/"
        } else {
            process.cwd.as_str()
        };
        let order = ProcessOrder {
            program,
            env,
            cwd: PathBuf::from(cwd),
            stdio: [
                stdio("spec.process.stdin", process.stdin, Stdio::Null)?,
                stdio("spec.process.stdout", process.stdout, Stdio::Pipe)?,
                stdio("spec.process.stderr", process.stderr, Stdio::Pipe)?,
            ],
            pipe_grace: convert::optional_duration(
                "spec.process.pipe_grace",
                process.pipe_grace,
                HOUR,
            )?,
            kill_grace: convert::optional_duration(
                "spec.process.kill_grace",
                process.kill_grace,
                HOUR,
            )?,
            at_end: match proto::AtEnd::try_from(process.at_end) {
                Ok(proto::AtEnd::Unspecified | proto::AtEnd::KillTree) => AtEnd::KillTree,
                Ok(proto::AtEnd::Keep) => AtEnd::Keep,
                Err(_) => {
                    return Err(Error::invalid(
                        "spec.process.at_end",
                        "must be KILL_TREE or KEEP",
                    ));
                }
            },
            watcher: self.child_watcher(),
        };
        Ok(Plan {
            kind: WatchKind::Process,
            need: order.need(),
            order: Order::Later(Box::new(move |services| order.build(services))),
            claimed_from: None,
            spec: Spec::Process(process),
        })
    }

    fn child_watcher(&self) -> ChildWatcher {
        self.on.policy().child_watcher
    }

    fn connection(&self, mut spec: proto::ConnectionSpec) -> Result<Plan> {
        use proto::connection_spec::Target as Given;

        let options = StreamOptions {
            keep_half_open: spec.keep_half_open,
            paused: spec.start_paused,
        };
        let timeout = convert::duration(
            "spec.connection.connect_timeout",
            spec.connect_timeout,
            CONNECT_TIMEOUT,
            Duration::from_millis(1)..=HOUR,
        )?;
        let target = match &mut spec.target {
            None => return Err(Error::invalid("spec.connection", "needs tcp, unix or slot")),
            Some(Given::Tcp(tcp)) => tcp_target(tcp)?,
            Some(Given::Unix(unix)) => Target::Unix(self.unix("spec.connection.unix", unix)?),
            Some(Given::Slot(slot)) => {
                let field = "spec.connection.slot";
                let (claimed, _, lifetime) = self.claim(field, slot)?;
                slot.clear();
                let order = Order::Now(Box::new(move || {
                    let claim = file::claim(claimed.keep().0, Purpose::Connection);
                    let claim = claim.map_err(|refusal| refused(field, &refusal))?;
                    let target = Target::Adopted(claim);
                    let order = ConnectionOrder {
                        target,
                        options,
                        timeout,
                    };
                    Ok(order.build())
                }));
                return Ok(Plan {
                    kind: WatchKind::Connection,
                    need: ConnectionOrder::need_of(1),
                    order,
                    claimed_from: Some(lifetime),
                    spec: Spec::Connection(spec),
                });
            }
        };
        let order = ConnectionOrder {
            target,
            options,
            timeout,
        };
        Ok(Plan {
            kind: WatchKind::Connection,
            need: order.need(),
            order: Order::Now(Box::new(move || Ok(order.build()))),
            claimed_from: None,
            spec: Spec::Connection(spec),
        })
    }

    fn listener(&self, mut spec: proto::ListenerSpec) -> Result<Plan> {
        use proto::listener_spec::Target as Given;

        let options = StreamOptions {
            keep_half_open: spec.keep_half_open,
            paused: spec.start_paused,
        };
        let backlog = match spec.backlog {
            0 => BACKLOG,
            1..=BACKLOG_MAX => i32::try_from(spec.backlog).unwrap_or(BACKLOG),
            _ => return Err(Error::invalid("spec.listener.backlog", "at most 4096")),
        };
        let mut claimed_from = None;
        let mut need = Need::sources(1);
        let order = match &mut spec.target {
            None => return Err(Error::invalid("spec.listener", "needs tcp, unix or slot")),
            Some(Given::Tcp(tcp)) => {
                if tcp.hosts.len() > SOCKETS_MAX {
                    return Err(Error::invalid("spec.listener.tcp.hosts", "at most 16"));
                }
                // A name may have many addresses; they are bound before they are counted.
                need.sources = SOCKETS_MAX.min(tcp.hosts.len().max(1) * 2);
                let target = ListenTarget::Tcp {
                    hosts: tcp.hosts.clone(),
                    port: port("spec.listener.tcp.port", tcp.port, 0)?,
                    reuse_port: tcp.reuse_port,
                };
                listen(target, backlog, options)
            }
            Some(Given::Unix(unix)) => {
                let name = self.unix("spec.listener.unix", unix)?;
                listen(ListenTarget::Unix(name), backlog, options)
            }
            Some(Given::Slot(slot)) => {
                let field = "spec.listener.slot";
                let (claimed, _, lifetime) = self.claim(field, slot)?;
                slot.clear();
                claimed_from = Some(lifetime);
                Order::Later(Box::new(move |_| {
                    let claim = file::claim(claimed.keep().0, Purpose::Listener);
                    let claim = claim.map_err(|refusal| refused(field, &refusal))?;
                    let order = ListenOrder {
                        target: ListenTarget::Adopted(claim),
                        backlog,
                        options,
                    };
                    order.build()
                }))
            }
        };
        Ok(Plan {
            kind: WatchKind::Listener,
            need,
            order,
            claimed_from,
            spec: Spec::Listener(spec),
        })
    }

    fn read_pipe(&self, mut spec: proto::ReadPipeSpec) -> Result<Plan> {
        use proto::read_pipe_spec::Source;

        let end = PipeEnd::Read {
            paused: spec.start_paused,
        };
        let (order, claimed_from) = match &mut spec.source {
            None => return Err(Error::invalid("spec.read_pipe", "needs slot or fifo_path")),
            Some(Source::Slot(slot)) => self.handed_pipe("spec.read_pipe.slot", slot, end)?,
            Some(Source::FifoPath(path)) => (fifo("spec.read_pipe.fifo_path", path, end)?, None),
        };
        Ok(Plan {
            kind: WatchKind::ReadPipe,
            // And its end of file.
            need: Need::sources(1).and_events(1),
            order,
            claimed_from,
            spec: Spec::ReadPipe(spec),
        })
    }

    fn write_pipe(&self, mut spec: proto::WritePipeSpec) -> Result<Plan> {
        use proto::write_pipe_spec::Target;

        let end = PipeEnd::Write;
        let (order, claimed_from) = match &mut spec.target {
            None => return Err(Error::invalid("spec.write_pipe", "needs slot or fifo_path")),
            Some(Target::Slot(slot)) => self.handed_pipe("spec.write_pipe.slot", slot, end)?,
            Some(Target::FifoPath(path)) => (fifo("spec.write_pipe.fifo_path", path, end)?, None),
        };
        Ok(Plan {
            kind: WatchKind::WritePipe,
            need: Need::sources(1),
            order,
            claimed_from,
            spec: Spec::WritePipe(spec),
        })
    }

    fn handed_pipe(
        &self,
        field: &'static str,
        slot: &mut bytes::Bytes,
        end: PipeEnd,
    ) -> Result<(Order, Option<Lifetime>)> {
        let (claimed, _, lifetime) = self.claim(field, slot)?;
        slot.clear();
        let order = Order::Now(Box::new(move || {
            let claim = file::claim(claimed.keep().0, purpose(end));
            let claim = claim.map_err(|refusal| refused(field, &refusal))?;
            Ok(PipeOrder { claim, end }.build())
        }));
        Ok((order, Some(lifetime)))
    }

    fn signal(&self, spec: proto::SignalSpec) -> Result<Plan> {
        let field = "spec.signal.signals";
        if spec.signals.is_empty() || spec.signals.len() > SIGNALS_MAX {
            return Err(Error::invalid(field, "must be 1 to 64"));
        }
        let mut numbers = Vec::new();
        for name in &spec.signals {
            let number = convert::signal(field, name)?;
            if !self.api.registry.services().signals.allowed(number) {
                let why = crate::config::unwatchable(number)
                    .unwrap_or("it is not in the configuration's [signals] allow");
                return Err(Error::PermissionDenied {
                    message: format!("{field}: {name} cannot be watched: {why}"),
                });
            }
            numbers.push(number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Plan {
            kind: WatchKind::Signal,
            need: Need::sources(0),
            order: Order::Now(Box::new(move || Ok(SignalOrder(numbers).build()))),
            claimed_from: None,
            spec: Spec::Signal(spec),
        })
    }
}

/// The daemon's environment, for children that bring none: what is UTF-8 of it, and
/// nothing that is between the daemon and its service manager.
fn own_environment() -> BTreeMap<String, String> {
    const OWN: [&str; 5] = [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "JOURNAL_STREAM",
    ];
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .collect()
}

fn purpose(end: PipeEnd) -> Purpose {
    match end {
        PipeEnd::Read { .. } => Purpose::Reader,
        PipeEnd::Write => Purpose::Writer,
    }
}

fn listen(target: ListenTarget, backlog: i32, options: StreamOptions) -> Order {
    Order::Later(Box::new(move |_| {
        let order = ListenOrder {
            target,
            backlog,
            options,
        };
        order.build()
    }))
}

fn fifo(field: &'static str, path: &str, end: PipeEnd) -> Result<Order> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid(field, "must be absolute, without NUL"));
    }
    let path = PathBuf::from(path);
    Ok(Order::Later(Box::new(move |_| {
        let claim = file::open_fifo(&path, purpose(end)).map_err(|errno| {
            let detail = path.display().to_string();
            Error::from(SystemError::new(errno, "open", detail))
        })?;
        Ok(PipeOrder { claim, end }.build())
    })))
}

fn stdio(field: &'static str, value: i32, absent: Stdio) -> Result<Stdio> {
    match proto::Stdio::try_from(value) {
        Ok(proto::Stdio::Unspecified) => Ok(absent),
        Ok(proto::Stdio::Null) => Ok(Stdio::Null),
        Ok(proto::Stdio::Pipe) => Ok(Stdio::Pipe),
        Err(_) => Err(Error::invalid(field, "must be NULL or PIPE")),
    }
}

fn port(field: &'static str, port: u32, least: u16) -> Result<u16> {
    let checked = u16::try_from(port).ok().filter(|p| *p >= least);
    checked.ok_or_else(|| Error::invalid(field, format!("must be {least} to 65535")))
}

fn tcp_target(tcp: &proto::TcpTarget) -> Result<Target> {
    if tcp.host.is_empty() || tcp.host.contains('\0') {
        return Err(Error::invalid(
            "spec.connection.tcp.host",
            "needs a name or an address",
        ));
    }
    let local = match tcp.local_ip.as_str() {
        "" => None,
        ip => {
            let parsed = ip.parse::<IpAddr>();
            let field = "spec.connection.tcp.local_ip";
            Some(parsed.map_err(|_| Error::invalid(field, "must be an IP address"))?)
        }
    };
    Ok(Target::Tcp {
        host: tcp.host.clone(),
        port: port("spec.connection.tcp.port", tcp.port, 1)?,
        local,
    })
}

fn timer_plan(timer: proto::TimerSpec) -> Result<Plan> {
    use proto::timer_spec::Schedule as Given;

    let schedule = match timer.schedule {
        None => {
            let allowed = "needs after, at_monotonic_ns, at_realtime or every";
            return Err(Error::invalid("spec.timer", allowed));
        }
        // asyncio's call_later: a negative delay means now.
        Some(Given::After(after)) if after.seconds <= 0 && after.nanos <= 0 => {
            Schedule::After(Duration::ZERO)
        }
        Some(Given::After(after)) => {
            let bounds = Duration::ZERO..=CENTURY;
            let field = "spec.timer.after";
            Schedule::After(convert::duration(field, Some(after), CENTURY, bounds)?)
        }
        Some(Given::AtMonotonicNs(at)) => Schedule::AtMonotonic(at),
        Some(Given::AtRealtime(at)) => {
            let field = "spec.timer.at_realtime";
            let nanos = u64::try_from(at.nanos).ok().filter(|n| *n < 1_000_000_000);
            let nanos =
                nanos.ok_or_else(|| Error::invalid(field, "nanos must be 0 to 999999999"))?;
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            Schedule::AtRealtime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
        }
        Some(Given::Every(every)) => {
            let bounds = INTERVAL_MIN..=CENTURY;
            let field = "spec.timer.every";
            Schedule::Every(convert::duration(field, Some(every), CENTURY, bounds)?)
        }
    };
    Ok(Plan {
        kind: WatchKind::Timer,
        need: TimerOrder(schedule).need(),
        order: Order::Now(Box::new(move || Ok(TimerOrder(schedule).build()))),
        claimed_from: None,
        spec: Spec::Timer(timer),
    })
}
