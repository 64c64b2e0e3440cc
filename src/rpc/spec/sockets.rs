//! Checks of specifications of connections and listeners.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use super::{Checks, HOUR, Plan, Specification, fitted};
use crate::access::Principal;
use crate::driver::file::Purpose;
use crate::error::{Error, Result};
use crate::proto::{self, connection_spec, listener_spec, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{
    ConnectionOrder, ListenOrder, ListenTarget, Need, Order, Prepare, SOCKETS_MAX, StreamOptions,
    Target,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
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
        };
        let timeout = convert::duration(
            "spec.connection.connect_timeout",
            spec.connect_timeout,
            CONNECT_TIMEOUT,
            Duration::from_millis(1)..=HOUR,
        )?;
        let target = match &mut spec.target {
            None => {
                return Err(Error::invalid(
                    "spec.connection",
                    "must have tcp, unix or slot",
                ));
            }
            Some(Given::Tcp(tcp)) => tcp_target(tcp, &checks.peer.principal)?,
            Some(Given::Unix(unix)) => Target::Unix(checks.unix("spec.connection.unix", unix)?),
            Some(Given::Slot(slot)) => {
                let field = "spec.connection.slot";
                let (claimed, _, lifetime) = checks.claim(field, slot)?;
                slot.clear();
                let order = Order::Now(Box::new(move || {
                    let claim = fitted(claimed, field, Purpose::Connection)?;
                    let target = Target::Adopted(claim);
                    let order = ConnectionOrder {
                        target,
                        options,
                        timeout,
                    };
                    Ok(order.build())
                }));
                return Ok(Plan {
                    need: ConnectionOrder::NEED,
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
            need: ConnectionOrder::NEED,
            order: Order::Now(Box::new(move || Ok(order.build()))),
            claimed_from: None,
            spec: Spec::Connection(spec),
        })
    }
}

impl Specification for proto::ListenerSpec {
    fn slot(&self) -> Option<&Bytes> {
        match self.target.as_ref()? {
            listener_spec::Target::Slot(slot) => Some(slot),
            listener_spec::Target::Tcp(_) | listener_spec::Target::Unix(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        use listener_spec::Target as Given;

        let mut spec = self;
        let options = StreamOptions {
            keep_half_open: spec.keep_half_open,
            paused: spec.start_paused,
        };
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
        let mut claimed_from = None;
        let mut need = Need::sources(1);
        let order = match &mut spec.target {
            None => {
                return Err(Error::invalid(
                    "spec.listener",
                    "must have tcp, unix or slot",
                ));
            }
            Some(Given::Tcp(tcp)) => {
                if tcp.hosts.len() > SOCKETS_MAX {
                    return Err(Error::invalid(
                        "spec.listener.tcp.hosts",
                        "must be at most 16 hosts",
                    ));
                }
                // A name may have many addresses, and they are bound before they are counted: this
                // is the most.
                let sockets = SOCKETS_MAX.min(tcp.hosts.len().max(1) * 2);
                need.sources = u32::try_from(sockets).unwrap_or(u32::MAX);
                let target = ListenTarget::Tcp {
                    hosts: tcp.hosts.clone(),
                    port: port("spec.listener.tcp.port", tcp.port, 0)?,
                    reuse_port: tcp.reuse_port,
                };
                let order = listen(target, backlog, options);
                // Only names need a thread that may wait for name servers.
                let name = |host: &String| host.parse::<IpAddr>().is_err();
                let owner = &checks.peer.principal;
                match tcp.hosts.iter().any(name) {
                    true => Order::Resolved(owner.clone(), order),
                    false => Order::Later(order),
                }
            }
            Some(Given::Unix(unix)) => {
                let name = checks.unix("spec.listener.unix", unix)?;
                Order::Later(listen(ListenTarget::Unix(name), backlog, options))
            }
            Some(Given::Slot(slot)) => {
                let field = "spec.listener.slot";
                let (claimed, _, lifetime) = checks.claim(field, slot)?;
                slot.clear();
                claimed_from = Some(lifetime);
                Order::Now(Box::new(move || {
                    let claim = fitted(claimed, field, Purpose::Listener)?;
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
            need,
            order,
            claimed_from,
            spec: Spec::Listener(spec),
        })
    }
}

fn listen(target: ListenTarget, backlog: i32, options: StreamOptions) -> Prepare {
    Box::new(move |_| {
        let order = ListenOrder {
            target,
            backlog,
            options,
        };
        order.build()
    })
}

fn port(field: &'static str, port: u32, least: u16) -> Result<u16> {
    let checked = u16::try_from(port).ok().filter(|p| *p >= least);
    checked.ok_or_else(|| Error::invalid(field, format!("must be {least} to 65535")))
}

fn tcp_target(tcp: &proto::TcpTarget, owner: &Principal) -> Result<Target> {
    if tcp.host.is_empty() || tcp.host.contains('\0') {
        return Err(Error::invalid(
            "spec.connection.tcp.host",
            "must be the name or the IP address of a host",
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
        owner: owner.clone(),
    })
}
