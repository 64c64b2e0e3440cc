//! Checks of specifications of connections and listeners.

use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;

use super::tls::{self, Role};
use super::{Checks, HOUR, Plan, Specification, fitted, update, water_marks};
use crate::access::Principal;
use crate::driver::file::Purpose;
use crate::error::{Error, Result};
use crate::policy::Registry;
use crate::proto::{self, connection_spec, listener_spec, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::address::{HostAddress, UnixName};
use crate::watch::{
    Change, ConnectionOrder, Dialling, KeepAlive, ListenOrder, ListenTarget, Need, Order, Prepare,
    SOCKETS_MAX, StreamOptions, Target, TcpOptions, TlsOrder, TransportLimits,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPT_DELAY_MIN: Duration = Duration::from_millis(10);
const INTERLEAVE_MAX: usize = 16;
const USER_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
/// The kernel's limits of TCP_KEEPIDLE and TCP_KEEPINTVL are 1 s to 32,767 s.
const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(9 * 3600);
const KEEP_ALIVE_COUNT_MAX: u32 = 127;
const BACKLOG: i32 = 128;
const BACKLOG_MAX: u32 = 4096;

impl Specification for proto::ConnectionSpec {
    fn slot(&self) -> Option<&Bytes> {
        match self.target.as_ref()? {
            connection_spec::Target::Slot(slot) => Some(slot),
            connection_spec::Target::Tcp(_) | connection_spec::Target::Unix(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        use connection_spec::Target as Given;

        let mut spec = self;
        let options = StreamOptions {
            keep_half_open: spec.keep_half_open,
            paused: spec.start_paused,
            marks: checks.water_marks("spec.connection.water_marks", spec.water_marks.as_ref())?,
        };
        let timeout = convert::duration(
            "spec.connection.connect_timeout",
            spec.connect_timeout,
            CONNECT_TIMEOUT,
            Duration::from_millis(1)..=HOUR,
        )?;
        let tcp_field = "spec.connection.tcp_options";
        let tcp = tcp_options(tcp_field, spec.tcp_options.as_ref())?;
        let mut host = None;
        let target = match &mut spec.target {
            None => {
                return Err(Error::invalid(
                    "spec.connection",
                    "must have tcp, unix or slot",
                ));
            }
            Some(Given::Tcp(given)) => {
                host = Some(given.host.clone());
                tcp_target(given, by_default(tcp), &checks.peer.principal)?
            }
            Some(Given::Unix(unix)) => {
                not_with_unix(tcp_field, spec.tcp_options.as_ref())?;
                Target::Unix(checks.unix("spec.connection.unix", unix)?)
            }
            Some(Given::Slot(slot)) => {
                let field = "spec.connection.slot";
                let (claimed, _, lifetime) = checks.claim(field, slot)?;
                slot.clear();
                let tls = checks.connection_tls(spec.tls.as_mut(), None)?;
                let need = ConnectionOrder::adopted_need(tls.is_some());
                let order = Order::Now(Box::new(move || {
                    let claim = fitted(claimed, field, Purpose::Connection)?;
                    tcp.set(claim.fd.as_fd())?;
                    let target = Target::Adopted(claim);
                    let order = ConnectionOrder {
                        target,
                        options,
                        timeout,
                        tls,
                    };
                    Ok(order.build())
                }));
                return Ok(Plan {
                    need,
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
            tls: checks.connection_tls(spec.tls.as_mut(), host.as_deref())?,
        };
        Ok(Plan {
            need: order.need(),
            order: Order::Now(Box::new(move || Ok(order.build()))),
            claimed_from: None,
            spec: Spec::Connection(spec),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &["water_marks"]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        checks.change_of_marks("spec.connection.water_marks", self.water_marks.as_ref())
    }
}

/// Returns the options of the connections that a listener accepts, and their limit.
pub(super) fn accepting(
    spec: &proto::ListenerSpec,
    limits: TransportLimits,
) -> Result<(StreamOptions, u32)> {
    let field = "spec.listener.water_marks";
    let options = StreamOptions {
        keep_half_open: spec.keep_half_open,
        paused: spec.start_paused,
        marks: water_marks(limits, field, spec.water_marks.as_ref())?,
    };
    let most = match spec.max_connections {
        0 => u32::MAX,
        most => most,
    };
    Ok((options, most))
}

impl Specification for proto::ListenerSpec {
    fn changeable(&self) -> &'static [&'static str] {
        &[
            "max_connections",
            "keep_half_open",
            "start_paused",
            "water_marks",
        ]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        let (options, most) = accepting(&self, checks.api.registry.services().transport)?;
        Ok(Box::new(move |_| Ok(Change::Accepting(options, most))))
    }

    fn slot(&self) -> Option<&Bytes> {
        match self.target.as_ref()? {
            listener_spec::Target::Slot(slot) => Some(slot),
            listener_spec::Target::Tcp(_) | listener_spec::Target::Unix(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        use listener_spec::Target as Given;

        let mut spec = self;
        let order = listening(&checks.api.registry, &mut spec)?;
        let later = |order: ListenOrder| -> Prepare { Box::new(move |_| order.build()) };
        let mut claimed_from = None;
        let mut need = Need::sources(1);
        let order = match &mut spec.target {
            None => {
                return Err(Error::invalid(
                    "spec.listener",
                    "must have tcp, unix or slot",
                ));
            }
            Some(Given::Tcp(given)) => {
                let target = tcp_listen(given, given.port)?;
                // A name may have many addresses, and they are bound before they are counted: this
                // is the most.
                let sockets = SOCKETS_MAX.min(given.hosts.len().max(1) * 2);
                need.sources = u32::try_from(sockets).unwrap_or(u32::MAX);
                let prepare = later(order(target));
                // Only names need a thread that may wait for name servers.
                let name = |host: &String| HostAddress::parse(host).is_none();
                match given.hosts.iter().any(name) {
                    true => Order::Resolved(checks.peer.principal.clone(), prepare),
                    false => Order::Later(prepare),
                }
            }
            Some(Given::Unix(unix)) => {
                not_with_unix("spec.listener.tcp_options", spec.tcp_options.as_ref())?;
                let name = checks.unix("spec.listener.unix", unix)?;
                Order::Later(later(order(ListenTarget::Unix(name))))
            }
            Some(Given::Slot(slot)) => {
                let field = "spec.listener.slot";
                let (claimed, _, lifetime) = checks.claim(field, slot)?;
                slot.clear();
                claimed_from = Some(lifetime);
                Order::Now(Box::new(move || {
                    let claim = fitted(claimed, field, Purpose::Listener)?;
                    order(ListenTarget::Adopted(claim)).build()
                }))
            }
        };
        Ok(Plan {
            need,
            order,
            claimed_from,
            spec: Spec::Listener(spec),
        })
    }
}

impl Checks<'_> {
    fn connection_tls(
        &self,
        given: Option<&mut proto::TlsOptions>,
        host: Option<&str>,
    ) -> Result<Option<TlsOrder>> {
        let registry = &self.api.registry;
        let check = |given| {
            let role = Role::Client { host };
            tls::order(registry, "spec.connection.tls", given, role)
        };
        given.map(check).transpose()
    }
}

/// Checks all of a listener but for where it listens, and returns what makes its order.
fn listening(
    registry: &Registry,
    spec: &mut proto::ListenerSpec,
) -> Result<impl FnOnce(ListenTarget) -> ListenOrder + Send + use<>> {
    let (options, max_connections) = accepting(spec, registry.services().transport)?;
    let backlog = match spec.backlog {
        0 => BACKLOG,
        1..=BACKLOG_MAX => i32::try_from(spec.backlog).unwrap_or(BACKLOG),
        _ => {
            return Err(Error::invalid(
                "spec.listener.backlog",
                "must be at most 4096",
            ));
        }
    };
    let tcp = tcp_options("spec.listener.tcp_options", spec.tcp_options.as_ref())?;
    let tls = match &mut spec.tls {
        None => None,
        Some(given) => {
            let order = tls::order(registry, "spec.listener.tls", given, Role::Server)?;
            Some((order, registry.config().limits.tls_handshakes))
        }
    };
    Ok(move |target| ListenOrder {
        tcp: match target {
            ListenTarget::Tcp { .. } => by_default(tcp),
            ListenTarget::Unix(_) | ListenTarget::Adopted(_) => tcp,
        },
        target,
        backlog,
        options,
        max_connections,
        tls,
    })
}

/// Returns the order of a listener whose sockets have ended with an earlier life and its keeper. `port` is
/// that of its TCP sockets.
pub(super) fn listening_again(
    registry: &Registry,
    mut spec: proto::ListenerSpec,
    port: u32,
) -> Result<ListenOrder> {
    use listener_spec::Target as Given;

    let order = listening(registry, &mut spec)?;
    match &spec.target {
        Some(Given::Tcp(given)) => Ok(order(tcp_listen(given, port)?)),
        Some(Given::Unix(unix)) => {
            let name = UnixName::check("spec.listener.unix", unix)?;
            Ok(order(ListenTarget::Unix(name)))
        }
        Some(Given::Slot(_)) | None => Err(Error::wrong_state("its socket is gone")),
    }
}

fn tcp_listen(tcp: &proto::TcpListen, on: u32) -> Result<ListenTarget> {
    if tcp.hosts.len() > SOCKETS_MAX {
        return Err(Error::invalid(
            "spec.listener.tcp.hosts",
            "must be at most 16 hosts",
        ));
    }
    Ok(ListenTarget::Tcp {
        hosts: tcp.hosts.clone(),
        port: port("spec.listener.tcp.port", on, 0)?,
        reuse_port: tcp.reuse_port,
        ipv6_only: tcp.ipv6_only.unwrap_or(true),
    })
}

fn port(field: &'static str, port: u32, least: u16) -> Result<u16> {
    let checked = u16::try_from(port).ok().filter(|p| *p >= least);
    checked.ok_or_else(|| Error::invalid(field, format!("must be {least} to 65535")))
}

/// Returns what an established or a new connection goes to.
pub(super) fn target_of(spec: &proto::ConnectionSpec, owner: &Principal) -> Result<Target> {
    use connection_spec::Target as Given;

    match &spec.target {
        Some(Given::Tcp(given)) => {
            let tcp = tcp_options("spec.connection.tcp_options", spec.tcp_options.as_ref())?;
            tcp_target(given, by_default(tcp), owner)
        }
        Some(Given::Unix(unix)) => Ok(Target::Unix(UnixName::check("spec.connection.unix", unix)?)),
        Some(Given::Slot(_)) | None => Err(Error::wrong_state("its socket is gone")),
    }
}

fn tcp_target(tcp: &proto::TcpTarget, options: TcpOptions, owner: &Principal) -> Result<Target> {
    if tcp.host.is_empty() || tcp.host.contains('\0') {
        return Err(Error::invalid(
            "spec.connection.tcp.host",
            "must be the name or the IP address of a host",
        ));
    }
    let local = match tcp.local_ip.as_str() {
        "" => None,
        ip => {
            let parsed = HostAddress::parse(ip);
            let field = "spec.connection.tcp.local_ip";
            Some(parsed.ok_or_else(|| Error::invalid(field, "must be an IP address"))?)
        }
    };
    let dialling = Dialling::default();
    let interleave = match tcp.interleave {
        None => dialling.interleave,
        Some(count) => usize::try_from(count)
            .ok()
            .filter(|count| *count <= INTERLEAVE_MAX)
            .ok_or_else(|| {
                Error::invalid("spec.connection.tcp.interleave", "must be at most 16")
            })?,
    };
    let delay = convert::duration(
        "spec.connection.tcp.attempt_delay",
        tcp.attempt_delay,
        dialling.delay,
        ATTEMPT_DELAY_MIN..=HOUR,
    )?;
    Ok(Target::Tcp {
        host: tcp.host.clone(),
        port: port("spec.connection.tcp.port", tcp.port, 1)?,
        dialling: Box::new(Dialling {
            local,
            local_port: port("spec.connection.tcp.local_port", tcp.local_port, 0)?,
            delay,
            interleave,
            options,
        }),
        owner: owner.clone(),
    })
}

fn tcp_options(field: &str, options: Option<&proto::TcpOptions>) -> Result<TcpOptions> {
    let Some(options) = options else {
        return Ok(TcpOptions::default());
    };
    let keep_alive = options.keep_alive.as_ref();
    let keep_alive = keep_alive.map(|given| keep_alive_options(field, given));
    let user_timeout = optional(&options.user_timeout, |given| {
        let field = format!("{field}.user_timeout");
        convert::within(field, given, USER_TIMEOUT)
    })?;
    Ok(TcpOptions {
        nodelay: options.nodelay,
        keep_alive: keep_alive.transpose()?,
        user_timeout: user_timeout.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
    })
}

fn keep_alive_options(field: &str, given: &proto::TcpKeepAlive) -> Result<KeepAlive> {
    let seconds = |name, time: &Option<prost_types::Duration>| {
        optional(time, |time| {
            let field = format!("{field}.keep_alive.{name}");
            let checked = convert::within(field.clone(), time, KEEP_ALIVE)?;
            match checked.subsec_nanos() {
                0 => Ok(checked),
                _ => Err(Error::invalid(field, "must be whole seconds, 1 s to 9 h")),
            }
        })
    };
    if given.count > KEEP_ALIVE_COUNT_MAX {
        let field = format!("{field}.keep_alive.count");
        return Err(Error::invalid(field, "must be at most 127"));
    }
    Ok(KeepAlive {
        idle: seconds("idle", &given.idle)?,
        interval: seconds("interval", &given.interval)?,
        count: Some(given.count).filter(|count| *count > 0),
    })
}

fn optional<T, U>(value: &Option<T>, check: impl FnOnce(&T) -> Result<U>) -> Result<Option<U>> {
    value.as_ref().map(check).transpose()
}

/// Returns the options of a socket that the daemon makes: small writes are sent at once, as in
/// asyncio since 3.6, unless the request says otherwise.
fn by_default(mut options: TcpOptions) -> TcpOptions {
    options.nodelay = options.nodelay.or(Some(true));
    options
}

fn not_with_unix(field: &'static str, options: Option<&proto::TcpOptions>) -> Result<()> {
    match options {
        None => Ok(()),
        Some(_) => Err(Error::invalid(field, "must be absent for a Unix socket")),
    }
}
