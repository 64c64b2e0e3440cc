//! The multicast groups of a datagram socket.
//!
//! The kernel ends a membership without a word when its interface goes away. So the watch keeps the
//! groups that its clients want, and joins again when the interface is back.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{netdevice, sockopt};

use super::{DatagramWatch, names};
use crate::descriptors::Closing;
use crate::error::{Error, Result};
use crate::event::{GroupChanged, Kind, largest};
use crate::paths::Sink as _;
use crate::proto;
use crate::proto::state::KeptGroup;
use crate::sys::datagram;
use crate::watch::Context;
use crate::watch::links::{LinkChange, LinkListener, Links};
use crate::watch::listener::refused;
use crate::watch::wake::WakeUp;

/// The most groups of one watch.
const GROUPS_MAX: usize = 1024;

/// A multicast group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its address.
    pub ip: IpAddr,
    /// The name of the interface to join on; empty if the kernel chooses.
    pub interface: String,
}

/// A change of the groups of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// The socket becomes a member.
    Join,
    /// The socket is no member any more.
    Leave,
}

/// A group that the socket is to be a member of.
#[derive(Debug)]
struct Wanted {
    group: Group,
    /// The index of the interface on which it was joined last; 0 if that is not known.
    index: u32,
    in_effect: bool,
    /// The index of the membership that has ended since the client was told last.
    ended: Option<u32>,
    /// Whether the client believes that it is in effect.
    told_in_effect: bool,
}

impl Wanted {
    fn lapse(&mut self) {
        if self.in_effect {
            self.in_effect = false;
            self.ended.get_or_insert(self.index);
        }
    }

    /// Returns whether the client is to be told something of it.
    const fn has_news(&self) -> bool {
        self.told_in_effect != self.in_effect || (self.told_in_effect && self.ended.is_some())
    }

    /// Returns what the client is to be told next, and records that it is told.
    fn news(&mut self) -> GroupChanged {
        // The end is told before the new beginning.
        let ended = self.ended.take().filter(|_| self.told_in_effect);
        self.told_in_effect = ended.is_none() && self.in_effect;
        GroupChanged {
            ip: self.group.ip.to_string(),
            interface: self.group.interface.clone(),
            in_effect: self.told_in_effect,
            interface_index: ended.unwrap_or(self.index),
        }
    }
}

/// The groups of one socket.
#[derive(Debug)]
pub struct Groups {
    links: Arc<Links>,
    wake: WakeUp,
    /// Held during a change, which may block.
    changing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Vec<Wanted>,
    /// Whether [`Links`] tells what happens to interfaces.
    follows: bool,
    /// Whether the watch was woken and has not looked yet.
    woken: bool,
    /// Whether an interface has come or gone since it was last tried to join again.
    may_rejoin: bool,
    /// Whether a job joins again.
    rejoining: bool,
}

impl State {
    fn find(&mut self, group: &Group) -> Option<&mut Wanted> {
        self.wanted.iter_mut().find(|known| known.group == *group)
    }

    fn has_lapsed(&self) -> bool {
        self.wanted.iter().any(|wanted| !wanted.in_effect)
    }
}

impl LinkListener for Groups {
    fn changed(&self, change: LinkChange) {
        let mut state = self.state.lock();
        for wanted in &mut state.wanted {
            match change {
                LinkChange::Gone(index) if index != wanted.index => {}
                LinkChange::Changed => {}
                LinkChange::Gone(_) | LinkChange::Unknown => wanted.lapse(),
            }
        }
        if state.has_lapsed() {
            state.may_rejoin = true;
            drop(state);
            self.wake();
        }
    }
}

impl Groups {
    pub(super) fn new(links: &Arc<Links>) -> Arc<Self> {
        Arc::new(Self {
            links: Arc::clone(links),
            wake: WakeUp::default(),
            changing: Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// Makes the socket a member of a group, or ends that. May block, because the kernel does one
    /// change of its network setup at a time.
    ///
    /// # Errors
    /// There is no such interface, there are too many groups, or the system refuses.
    pub fn change(
        self: &Arc<Self>,
        socket: BorrowedFd<'_>,
        change: Membership,
        group: &Group,
    ) -> Result<()> {
        let _changing = self.changing.lock();
        match change {
            Membership::Join => self.join(socket, group),
            Membership::Leave => self.leave(socket, group),
        }
    }

    /// Returns what later lives need to know.
    pub(super) fn keep(&self) -> Vec<KeptGroup> {
        let state = self.state.lock();
        let kept = state.wanted.iter().map(|wanted| KeptGroup {
            ip: wanted.group.ip.to_string(),
            interface: wanted.group.interface.clone(),
            interface_index: wanted.index,
            in_effect: wanted.in_effect,
            ended: wanted.ended,
            told_in_effect: wanted.told_in_effect,
        });
        kept.collect()
    }

    /// Goes on with the groups of an earlier life, whose socket this is.
    pub(super) fn go_on(self: &Arc<Self>, socket: BorrowedFd<'_>, kept: Vec<KeptGroup>) {
        if kept.is_empty() {
            return;
        }
        self.follow();
        let wanted = kept.into_iter().filter_map(|kept| {
            let ip: IpAddr = kept.ip.parse().ok()?;
            let mut wanted = Wanted {
                group: Group {
                    ip,
                    interface: kept.interface,
                },
                index: kept.interface_index,
                in_effect: kept.in_effect,
                ended: kept.ended,
                told_in_effect: kept.told_in_effect,
            };
            // Its interface may have gone away when nobody listened.
            if wanted.index != 0 && !datagram::is_member(socket, ip, wanted.index) {
                wanted.lapse();
            }
            Some(wanted)
        });
        let mut state = self.state.lock();
        state.wanted = wanted.collect();
        state.may_rejoin = state.has_lapsed();
    }

    fn join(self: &Arc<Self>, socket: BorrowedFd<'_>, group: &Group) -> Result<()> {
        let lapsed_from = {
            let mut state = self.state.lock();
            let known = state
                .find(group)
                .map(|known| (known.index, known.in_effect));
            if known.is_none() && state.wanted.len() >= GROUPS_MAX {
                return Err(Error::limit("groups of one watch", GROUPS_MAX as u64));
            }
            known.and_then(|(index, in_effect)| (!in_effect).then_some(index))
        };
        self.follow();
        if let Some(before) = lapsed_from {
            let index = join_again(socket, group, before)?;
            self.joined_again(socket, group, index);
            self.wake();
            return Ok(());
        }
        let index = join(socket, group)?;
        let mut wanted = Wanted {
            group: group.clone(),
            index,
            in_effect: true,
            ended: None,
            told_in_effect: true,
        };
        let mut state = self.state.lock();
        // It may have gone away since, when nobody knew that it matters here.
        let stays = is_still(socket, group, index);
        if !stays {
            wanted.lapse();
        }
        state.wanted.push(wanted);
        drop(state);
        if !stays {
            self.changed(LinkChange::Changed);
        }
        Ok(())
    }

    fn leave(&self, socket: BorrowedFd<'_>, group: &Group) -> Result<()> {
        let index = index_of(&group.interface);
        let found = {
            let state = self.state.lock();
            let exact = state.wanted.iter().find(|known| known.group == *group);
            // The interface that the kernel chose may be named.
            let found = exact.or_else(|| {
                let same = |known: &&Wanted| known.group.ip == group.ip && known.index != 0;
                let mut all = state.wanted.iter().filter(same);
                all.find(|known| index.as_ref().ok() == Some(&known.index))
            });
            found.map(|known| (known.group.clone(), known.index, known.in_effect))
        };
        let Some((group, index, in_effect)) = found else {
            // A socket that was handed over may have joined groups before.
            return leave(socket, group, index?);
        };
        match leave(socket, &group, index) {
            Err(error) if in_effect => return Err(error),
            // The kernel may have forgotten it.
            _ => self
                .state
                .lock()
                .wanted
                .retain(|known| known.group != group),
        }
        Ok(())
    }

    /// Joins again what is not in effect, where that is possible. May block.
    fn rejoin_all(&self, socket: BorrowedFd<'_>) {
        let _changing = self.changing.lock();
        let lapsed: Vec<_> = {
            let state = self.state.lock();
            let lapsed = state.wanted.iter().filter(|wanted| !wanted.in_effect);
            lapsed.map(|w| (w.group.clone(), w.index)).collect()
        };
        for (group, before) in lapsed {
            if let Ok(index) = join_again(socket, &group, before) {
                self.joined_again(socket, &group, index);
            }
        }
    }

    fn joined_again(&self, socket: BorrowedFd<'_>, group: &Group, index: u32) {
        let mut state = self.state.lock();
        if let Some(wanted) = state.find(group) {
            wanted.index = index;
            // If it has gone away since, that was told already.
            wanted.in_effect = is_still(socket, group, index);
        }
    }

    /// Listens to what happens to interfaces, if it does not yet.
    fn follow(self: &Arc<Self>) {
        if self.state.lock().follows {
            return;
        }
        let itself: Weak<Self> = Arc::downgrade(self);
        match self.links.listen(itself) {
            Ok(()) => self.state.lock().follows = true,
            Err(error) => {
                tracing::warn!(%error, "memberships of groups may end unnoticed with their interface");
            }
        }
    }

    fn wake(&self) {
        let woken = std::mem::replace(&mut self.state.lock().woken, true);
        if !woken {
            self.wake.woken();
        }
    }

    /// Returns whether a job is to join again now: there is no other, and something to do. The next
    /// one starts after [`Self::rejoined`].
    fn starts_rejoining(&self) -> bool {
        let mut state = self.state.lock();
        if state.rejoining {
            state.may_rejoin = true;
            return false;
        }
        state.rejoining = state.has_lapsed();
        state.rejoining
    }

    fn rejoined(&self) {
        self.state.lock().rejoining = false;
        self.wake();
    }

    /// Returns the groups for clients.
    pub(super) fn status(&self) -> Vec<proto::GroupStatus> {
        let status = |wanted: &Wanted| proto::GroupStatus {
            group: Some(proto::MulticastGroup {
                ip: wanted.group.ip.to_string(),
                interface: wanted.group.interface.clone(),
            }),
            in_effect: wanted.in_effect,
            interface_index: wanted.index,
        };
        self.state.lock().wanted.iter().map(status).collect()
    }

    fn has_news(&self) -> bool {
        self.state.lock().wanted.iter().any(Wanted::has_news)
    }

    fn next_news(&self) -> Option<GroupChanged> {
        let mut state = self.state.lock();
        let wanted = state.wanted.iter_mut().find(|wanted| wanted.has_news())?;
        Some(wanted.news())
    }
}

impl DatagramWatch {
    /// Is woken from now on when groups change.
    pub(super) fn connect_groups(&mut self, cx: &mut Context<'_>) {
        if let Some(groups) = &self.groups {
            groups.wake.connect(cx);
            // Something may have happened before.
            self.groups_changed(cx);
        }
    }

    /// Tells what has happened to groups, and joins again what may be possible again.
    pub(super) fn groups_changed(&mut self, cx: &mut Context<'_>) {
        let Some(groups) = &self.groups else {
            return;
        };
        cx.changed();
        let may_rejoin = {
            let mut state = groups.state.lock();
            state.woken = false;
            std::mem::take(&mut state.may_rejoin)
        };
        self.tell_groups(cx);
        if may_rejoin && !cx.is_closing() {
            self.rejoin(cx);
            self.look_soon(cx);
        }
    }

    /// Tells what has happened to groups, as far as the journal has room for that.
    pub(super) fn tell_groups(&self, cx: &mut Context<'_>) {
        let Some(groups) = &self.groups else {
            return;
        };
        while !(self.held || cx.is_closing())
            && groups.has_news()
            && cx.has_room_for(largest::GROUP_CHANGED)
            && let Some(news) = groups.next_news()
        {
            cx.emit(Kind::GroupChanged(news));
            cx.changed();
        }
    }

    /// Joins the groups again whose membership has ended, on another thread, unless that is being
    /// done. If it is not possible now, it is tried when an interface comes or changes, and at the
    /// looks for drops.
    pub(super) fn rejoin(&self, cx: &Context<'_>) {
        let Some(groups) = &self.groups else {
            return;
        };
        let fd = self.source.and_then(|source| cx.fd(source));
        let Some(fd) = fd.filter(|_| groups.starts_rejoining()) else {
            return;
        };
        let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(fd, 0) else {
            return groups.state.lock().rejoining = false;
        };
        let socket = (socket, Closing);
        let job = Arc::clone(groups);
        groups.links.run(move || {
            job.rejoin_all(socket.0.as_fd());
            drop(socket);
            job.rejoined();
        });
    }
}

/// Returns whether the interface of a group still has that index.
fn is_still(socket: BorrowedFd<'_>, group: &Group, index: u32) -> bool {
    match group.interface.as_str() {
        "" => index == 0 || netdevice::index_to_name(socket, index).is_ok(),
        name => names::interface(name) == Ok(index),
    }
}

fn index_of(interface: &str) -> Result<u32> {
    names::interface(interface).map_err(|errno| refused(errno, "interface", interface))
}

/// Joins a group. Returns the index of the interface; 0 if the kernel chose it and does not tell.
fn join(socket: BorrowedFd<'_>, group: &Group) -> Result<u32> {
    let any = Ipv4Addr::UNSPECIFIED;
    let index = index_of(&group.interface)?;
    let joined = match group.ip {
        IpAddr::V4(ip) => sockopt::set_ip_add_membership_with_ifindex(socket, &ip, &any, index),
        IpAddr::V6(ip) => sockopt::set_ipv6_add_membership(socket, &ip, index),
    };
    joined.map_err(|errno| {
        let mut detail = group.ip.to_string();
        if errno == Errno::NOBUFS && group.ip.is_ipv4() {
            detail.push_str(" (the limit is the sysctl net.ipv4.igmp_max_memberships)");
        }
        refused(errno, "join", detail)
    })?;
    Ok(match index {
        0 => chosen(socket, group.ip),
        index => index,
    })
}

fn leave(socket: BorrowedFd<'_>, group: &Group, index: u32) -> Result<()> {
    let any = Ipv4Addr::UNSPECIFIED;
    let left = match group.ip {
        IpAddr::V4(ip) => sockopt::set_ip_drop_membership_with_ifindex(socket, &ip, &any, index),
        IpAddr::V6(ip) => sockopt::set_ipv6_drop_membership(socket, &ip, index),
    };
    left.map_err(|errno| refused(errno, "leave", group.ip.to_string()))
}

/// Joins a group again that was joined on the interface with the index `before`. Returns the index of
/// the interface now.
fn join_again(socket: BorrowedFd<'_>, group: &Group, before: u32) -> Result<u32> {
    if before != 0 {
        // What the kernel still keeps of the earlier membership counts against its limit, and would
        // be taken for the new one if the index is the same.
        let _ = leave(socket, group, before);
    }
    join(socket, group)
}

/// Returns the index of the interface that the kernel chose for a group; 0 if it does not tell.
fn chosen(socket: BorrowedFd<'_>, group: IpAddr) -> u32 {
    let interfaces = nix::net::if_::if_nameindex();
    let interfaces = interfaces.iter().flat_map(|all| all.iter());
    let mut indexes = interfaces.map(nix::net::if_::Interface::index);
    let found = indexes.find(|index| datagram::is_member(socket, group, *index));
    found.unwrap_or(0)
}
