//! The verb that adds a watch of a datagram socket.

use clap::Args;

use super::super::complete;
use super::super::failure::{Failure, Outcome};
use super::super::output;
use super::super::parse::{self, Address};
use super::super::session::{Session, answer};
use super::add::{Made, Registration, hand_over};
use crate::proto::{
    DatagramSpec, JoinGroupRequest, LeaveGroupRequest, MulticastGroup, SocketAddress, WatchRef,
    watch_spec,
};

pub(in crate::ctl) const UDP_EXAMPLES: &str = "Examples:
  evloopctl udp 127.0.0.1:7000 -f
  evloopctl udp --to 192.0.2.1:53 --name dns
  evloopctl udp :5353 --join 224.0.0.251 --reuse-address -f
  evloopctl udp unix:/run/log.sock -f";

#[derive(Debug, Args)]
pub(in crate::ctl) struct Udp {
    /// Bind to HOST:PORT, :PORT, unix:PATH or unix:@NAME (abstract), or watch fd:N (inherited)
    #[arg(value_parser = parse::address, required_unless_present = "to")]
    local: Option<Address>,
    /// Connect to HOST:PORT, unix:PATH or unix:@NAME: only its datagrams arrive
    #[arg(long, value_name = "ADDRESS", value_parser = parse::peer)]
    to: Option<SocketAddress>,
    /// Be a member of this multicast group, GROUP or GROUP%INTERFACE; may be repeated
    #[arg(long = "join", value_name = "GROUP", value_parser = multicast_group)]
    groups: Vec<MulticastGroup>,
    /// Send to multicast groups on this interface
    #[arg(
        long,
        value_name = "INTERFACE",
        default_value = "",
        hide_default_value = true
    )]
    multicast_interface: String,
    /// How many hops datagrams to a multicast group go [default: 1]
    #[arg(long, value_name = "HOPS")]
    multicast_ttl: Option<u32>,
    /// Whether datagrams to a multicast group also reach the sockets of this host [default: true]
    #[arg(long, value_name = "BOOL")]
    multicast_loop: Option<bool>,
    /// How many hops other datagrams go [default: the system's]
    #[arg(long, value_name = "HOPS")]
    ttl: Option<u32>,
    /// Allow datagrams to broadcast addresses
    #[arg(long)]
    broadcast: bool,
    /// Share the port; each datagram goes to one of the sockets (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,
    /// Share the address; each socket gets what is sent to a group (SO_REUSEADDR)
    #[arg(long)]
    reuse_address: bool,
    /// Serve only IPv6 where the address would serve IPv4 too
    #[arg(long)]
    ipv6_only: bool,
    /// Keep at most this many bytes of a datagram [default: 65536]
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true
    )]
    max_size: u32,
    /// Ask the kernel for a receive buffer of this many bytes [default: the system's]
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true
    )]
    receive_buffer: u32,
    /// Read nothing until reading is resumed
    #[arg(long)]
    start_paused: bool,
    #[command(flatten)]
    registration: Registration,
}

pub(super) async fn udp(session: &Session, args: Udp) -> Made {
    let mut spec = DatagramSpec {
        peer: args.to,
        start_paused: args.start_paused,
        max_size: args.max_size,
        broadcast: args.broadcast,
        reuse_port: args.reuse_port,
        reuse_address: args.reuse_address,
        ipv6_only: args.ipv6_only,
        ttl: args.ttl,
        multicast_ttl: args.multicast_ttl,
        multicast_loop: args.multicast_loop,
        multicast_interface: args.multicast_interface,
        groups: args.groups,
        receive_buffer: args.receive_buffer,
        ..DatagramSpec::default()
    };
    match args.local {
        Some(Address::Fd(fd)) => spec.slot = hand_over(session, fd).await?,
        local => {
            let local = local.map(parse::endpoint).transpose();
            spec.local = local.map_err(Failure::plain)?;
        }
    }
    Ok((watch_spec::Spec::Datagram(spec), args.registration))
}

pub(in crate::ctl) const JOIN_EXAMPLES: &str = "Examples:
  evloopctl watch join mdns 224.0.0.251
  evloopctl watch join mdns ff02::fb%eth0";

pub(in crate::ctl) const LEAVE_EXAMPLES: &str = "Example:
  evloopctl watch leave mdns 224.0.0.251";

/// A membership of a datagram watch.
#[derive(Debug, Args)]
pub(in crate::ctl) struct Membership {
    /// The watch: its name, or `@7` for the id 7
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watch: WatchRef,
    /// The multicast group, GROUP or GROUP%INTERFACE
    #[arg(value_name = "GROUP", value_parser = multicast_group)]
    group: MulticastGroup,
}

pub(super) async fn join(session: &Session, args: Membership) -> Outcome {
    let request = JoinGroupRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(args.watch),
        group: Some(args.group),
        request_id: String::new(),
    };
    let joined = answer(session.transports().join_group(request).await)?;
    if session.json {
        output::messages([&joined])?;
    }
    Ok(0)
}

pub(super) async fn leave(session: &Session, args: Membership) -> Outcome {
    let request = LeaveGroupRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(args.watch),
        group: Some(args.group),
        request_id: String::new(),
    };
    let left = answer(session.transports().leave_group(request).await)?;
    if session.json {
        output::messages([&left])?;
    }
    Ok(0)
}

/// Reads a multicast group and the interface to join it on: `GROUP` or `GROUP%INTERFACE`.
fn multicast_group(text: &str) -> Result<MulticastGroup, String> {
    let (ip, interface) = text.split_once('%').unwrap_or((text, ""));
    let group = ip.parse::<std::net::IpAddr>();
    if !group.is_ok_and(|group| group.is_multicast()) {
        return Err("the address of a multicast group is expected, such as 224.0.0.251".to_owned());
    }
    Ok(MulticastGroup {
        ip: ip.to_owned(),
        interface: interface.to_owned(),
    })
}
