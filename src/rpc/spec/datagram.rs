//! Checks of specifications of datagram sockets.

use std::net::IpAddr;

use bytes::Bytes;
use rustix::net::{AddressFamily, sockopt};

use super::{Checks, Plan, Specification, fitted, update};
use crate::config::Refusable;
use crate::driver::file::Purpose;
use crate::error::{Error, Result};
use crate::event::largest;
use crate::proto::state::KeptDatagrams;
use crate::proto::{self, socket_address::Address, watch_spec::Spec};
use crate::watch::address::UnixName;
use crate::watch::{
    DatagramOptions, DatagramOrder, DatagramSocket, Endpoint, Group, Need, Order, Prepare,
    WaterMarks,
};

/// The size of a datagram that is kept unless the client or the policy says less, bytes.
const MAX_SIZE: u32 = 64 << 10;
/// The most bytes of a datagram and of what its event has beside them.
const EVENT_MAX: u64 = 256 << 10;
/// What the event of a datagram has beside its bytes, at most.
const AROUND: u32 = 1 << 10;
/// The part of a journal, one in so many, that the event of a datagram may take, so that a journal
/// with room for sources to go on has room for it.
const PART: u64 = 8;
const GROUPS_MAX: usize = 64;
const BUFFER_MIN: u32 = 4 << 10;
const BUFFER_MAX: u32 = 1 << 30;
/// Most bytes of the name of an interface, `IFNAMSIZ` without its NUL.
const INTERFACE_MAX: usize = 15;

const _: () = assert!(largest::DATAGRAM < AROUND);

impl Specification for proto::DatagramSpec {
    fn slot(&self) -> Option<&Bytes> {
        (!self.slot.is_empty()).then_some(&self.slot)
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut spec = self;
        let max_size = max_size(spec.max_size, checks.on.policy().journal_bytes)?;
        let paused = spec.start_paused;
        let marks = checks.water_marks("spec.datagram.water_marks", spec.water_marks.as_ref())?;
        // The watch also needs room to tell what was dropped until its end.
        let need = Need::sources(1).and(largest::DATAGRAMS_DROPPED);
        if !spec.slot.is_empty() {
            let field = "spec.datagram.slot";
            let bare = Self {
                slot: spec.slot.clone(),
                start_paused: spec.start_paused,
                max_size: spec.max_size,
                water_marks: spec.water_marks,
                ..Self::default()
            };
            if spec != bare {
                return Err(Error::invalid(
                    field,
                    "must be absent with local, peer or a socket option",
                ));
            }
            let (claimed, _, lifetime) = checks.claim(field, &spec.slot)?;
            let domain = sockopt::socket_domain(std::os::fd::AsFd::as_fd(&claimed));
            if domain == Ok(AddressFamily::UNIX) {
                checks.allow(Refusable::UnixSocket)?;
            }
            spec.slot.clear();
            let services = std::sync::Arc::clone(checks.api.registry.services());
            let order = Order::Now(Box::new(move || {
                let socket = DatagramSocket::Adopted(fitted(claimed, field, Purpose::Datagram)?);
                let order = DatagramOrder {
                    socket,
                    paused,
                    max_size,
                    marks,
                };
                order.build(&services)
            }));
            return Ok(Plan {
                need,
                order,
                claimed_from: Some(lifetime),
                spec: Spec::Datagram(spec),
            });
        }
        let local = endpoint("spec.datagram.local", spec.local.as_ref())?;
        let peer = endpoint("spec.datagram.peer", spec.peer.as_ref())?;
        let unix = |end: &Option<Endpoint>| matches!(end, Some(Endpoint::Unix(_)));
        match (&local, &peer) {
            (None, None) => {
                return Err(Error::invalid(
                    "spec.datagram",
                    "must have local, peer or slot",
                ));
            }
            (Some(_), Some(_)) if unix(&local) != unix(&peer) => {
                return Err(Error::invalid(
                    "spec.datagram.peer",
                    "must be inet if local is, and unix if local is",
                ));
            }
            (_, Some(Endpoint::Ip { host, port })) if host.is_empty() || *port == 0 => {
                let (field, allowed) = match host.is_empty() {
                    true => ("spec.datagram.peer.inet.ip", "must be a host"),
                    false => ("spec.datagram.peer.inet.port", "must be 1 to 65535"),
                };
                return Err(Error::invalid(field, allowed));
            }
            _ => {}
        }
        if unix(&local) || unix(&peer) {
            checks.allow(Refusable::UnixSocket)?;
        }
        let options = options(&spec, unix(&local) || unix(&peer))?;
        let named = local.iter().chain(&peer).any(Endpoint::is_name);
        let socket = DatagramSocket::New {
            local,
            peer,
            options: Box::new(options),
        };
        let order = DatagramOrder {
            socket,
            paused,
            max_size,
            marks,
        };
        let prepare: Prepare = Box::new(move |services| order.build(services));
        Ok(Plan {
            need,
            // Only names need a thread that may wait for name servers.
            order: match named {
                true => Order::Resolved(checks.peer.principal.clone(), prepare),
                false => Order::Later(prepare),
            },
            claimed_from: None,
            spec: Spec::Datagram(spec),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &["water_marks"]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        checks.change_of_marks("spec.datagram.water_marks", self.water_marks.as_ref())
    }
}

fn max_size(asked: u32, journal: u64) -> Result<u32> {
    let most = (journal / PART).min(EVENT_MAX);
    let most = u32::try_from(most).unwrap_or(u32::MAX) - AROUND;
    match asked {
        0 => Ok(MAX_SIZE.min(most)),
        asked if asked <= most => Ok(asked),
        _ => Err(Error::invalid(
            "spec.datagram.max_size",
            format!("must be at most {most} bytes, by the policy's journal_bytes"),
        )),
    }
}

/// Returns the order of a datagram watch whose socket has ended with an earlier life and its keeper. It is
/// bound to the port, and joins the groups that are kept.
pub(super) fn again(
    spec: &proto::DatagramSpec,
    kept: &KeptDatagrams,
    marks: WaterMarks,
) -> Result<DatagramOrder> {
    if spec.local.is_none() && spec.peer.is_none() {
        return Err(Error::wrong_state("its socket is gone"));
    }
    let mut local = endpoint("spec.datagram.local", spec.local.as_ref())?;
    if let Some(Endpoint::Ip { port, .. }) = &mut local {
        *port = u16::try_from(kept.port).unwrap_or(*port);
    }
    let peer = endpoint("spec.datagram.peer", spec.peer.as_ref())?;
    let is_unix = [&local, &peer]
        .into_iter()
        .any(|end| matches!(end, Some(Endpoint::Unix(_))));
    let groups = kept.groups.iter().filter_map(|kept| {
        Some(Group {
            ip: kept.ip.parse().ok()?,
            interface: kept.interface.clone(),
        })
    });
    let options = DatagramOptions {
        groups: groups.collect(),
        ..options(spec, is_unix)?
    };
    Ok(DatagramOrder {
        socket: DatagramSocket::New {
            local,
            peer,
            options: Box::new(options),
        },
        paused: kept.paused,
        max_size: kept.max_size,
        marks,
    })
}

fn endpoint(
    field: &'static str,
    address: Option<&proto::SocketAddress>,
) -> Result<Option<Endpoint>> {
    let Some(address) = address else {
        return Ok(None);
    };
    match &address.address {
        None => Err(Error::invalid(field, "must have inet or unix")),
        Some(Address::Unix(unix)) => {
            let name = UnixName::check(&format!("{field}.unix"), unix)?;
            Ok(Some(Endpoint::Unix(name)))
        }
        Some(Address::Inet(inet)) => {
            if inet.ip.contains('\0') {
                let allowed = "must be the name or the IP address of a host";
                return Err(Error::invalid(format!("{field}.inet.ip"), allowed));
            }
            let wrong = |_| Error::invalid(format!("{field}.inet.port"), "must be 0 to 65535");
            Ok(Some(Endpoint::Ip {
                host: inet.ip.clone(),
                port: u16::try_from(inet.port).map_err(wrong)?,
            }))
        }
    }
}

fn options(spec: &proto::DatagramSpec, unix: bool) -> Result<DatagramOptions> {
    if unix {
        let only_ip = [
            (spec.broadcast, "spec.datagram.broadcast"),
            (spec.reuse_port, "spec.datagram.reuse_port"),
            (spec.reuse_address, "spec.datagram.reuse_address"),
            (spec.ipv6_only, "spec.datagram.ipv6_only"),
            (spec.ttl.is_some(), "spec.datagram.ttl"),
            (spec.multicast_ttl.is_some(), "spec.datagram.multicast_ttl"),
            (
                spec.multicast_loop.is_some(),
                "spec.datagram.multicast_loop",
            ),
            (
                !spec.multicast_interface.is_empty(),
                "spec.datagram.multicast_interface",
            ),
            (!spec.groups.is_empty(), "spec.datagram.groups"),
        ];
        if let Some((_, field)) = only_ip.into_iter().find(|(set, _)| *set) {
            return Err(Error::invalid(field, "must be absent for a Unix socket"));
        }
    }
    let ttl = |field: &'static str, ttl: Option<u32>, least: u8| match ttl {
        None => Ok(None),
        Some(hops) => match u8::try_from(hops) {
            Ok(hops) if hops >= least => Ok(Some(hops)),
            _ => Err(Error::invalid(field, format!("must be {least} to 255"))),
        },
    };
    let receive_buffer = match spec.receive_buffer {
        0 => None,
        BUFFER_MIN..=BUFFER_MAX => Some(spec.receive_buffer as usize),
        _ => {
            return Err(Error::invalid(
                "spec.datagram.receive_buffer",
                "must be 4 KiB to 1 GiB",
            ));
        }
    };
    if spec.groups.len() > GROUPS_MAX {
        return Err(Error::invalid(
            "spec.datagram.groups",
            "must be at most 64 groups",
        ));
    }
    let groups = spec.groups.iter();
    let groups = groups.map(|asked| group("spec.datagram.groups", asked));
    interface(
        "spec.datagram.multicast_interface",
        &spec.multicast_interface,
    )?;
    Ok(DatagramOptions {
        broadcast: spec.broadcast,
        reuse_port: spec.reuse_port,
        reuse_address: spec.reuse_address,
        ipv6_only: spec.ipv6_only,
        ttl: ttl("spec.datagram.ttl", spec.ttl, 1)?,
        multicast_ttl: ttl("spec.datagram.multicast_ttl", spec.multicast_ttl, 0)?,
        multicast_loop: spec.multicast_loop,
        multicast_interface: spec.multicast_interface.clone(),
        groups: groups.collect::<Result<_>>()?,
        receive_buffer,
    })
}

/// Checks a multicast group.
pub(in crate::rpc) fn group(field: &str, group: &proto::MulticastGroup) -> Result<Group> {
    let ip = group.ip.parse::<IpAddr>().ok();
    let ip = ip.filter(IpAddr::is_multicast);
    let wrong = || {
        let allowed = "must be the IP address of a multicast group";
        Error::invalid(format!("{field}.ip"), allowed)
    };
    interface(&format!("{field}.interface"), &group.interface)?;
    Ok(Group {
        ip: ip.ok_or_else(wrong)?,
        interface: group.interface.clone(),
    })
}

fn interface(field: &str, name: &str) -> Result<()> {
    if name.len() > INTERFACE_MAX || name.contains('\0') {
        return Err(Error::invalid(
            field.to_owned(),
            "must be the name of an interface, at most 15 bytes",
        ));
    }
    Ok(())
}
