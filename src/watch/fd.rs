//! Watches a client's own file descriptor for readiness, one-shot in each direction.

use std::os::fd::OwnedFd;

use super::{Context, Resumption, Watch};
use crate::driver::{Direction, Done, Driver, FileKind, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result};
use crate::event::{Kind, Ready};
use crate::proto;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptFd, KeptSide};
use crate::state::descriptor;

const READ: Lane = Lane(0);
const WRITE: Lane = Lane(1);

/// The checked order of a reader or writer.
#[derive(Debug)]
pub struct FdOrder {
    /// The daemon's own duplicate of the descriptor.
    pub fd: OwnedFd,
    /// The kind of file that it refers to.
    pub kind: FileKind,
    /// Whether reading is armed from the start.
    pub readable: bool,
    /// Whether writing is armed from the start.
    pub writable: bool,
}

impl FdOrder {
    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        let side = |wanted| Side {
            wanted,
            ..Side::default()
        };
        Box::new(FdWatch {
            fd: Some(self.fd),
            source: None,
            kind: self.kind,
            read: side(self.readable),
            write: side(self.writable),
            fired: [0; 2],
        })
    }
}

#[derive(Debug, Default)]
struct Side {
    /// Whether it is armed, or is to be armed at the start or when there is room.
    wanted: bool,
    /// Whether it waits for room in the journal for its Ready.
    waits: bool,
    /// Whether it was disarmed and its operation has not ended yet. The result of that operation is
    /// ignored.
    ending: bool,
    /// Whether it was disarmed, so that only a rearm that names this direction arms it.
    disarmed: bool,
}

#[derive(Debug)]
struct FdWatch {
    fd: Option<OwnedFd>,
    source: Option<SourceId>,
    kind: FileKind,
    read: Side,
    write: Side,
    /// The sequence number of the last Ready of each lane; 0 if there was none. Not in [`Side`], to
    /// keep the watch small.
    fired: [u64; 2],
}

impl FdWatch {
    fn side(&mut self, lane: Lane) -> &mut Side {
        if lane == WRITE {
            &mut self.write
        } else {
            &mut self.read
        }
    }

    fn arm(&mut self, cx: &mut Context<'_>, lane: Lane) {
        let Some(source) = self.source else { return };
        self.side(lane).wanted = true;
        self.side(lane).disarmed = false;
        if self.side(lane).ending {
            // A new operation starts once this one has ended, because this one may have found
            // readiness that no longer holds.
            return;
        }
        let waits = cx.reserve().is_err();
        self.side(lane).waits = waits;
        if waits {
            return;
        }
        let direction = if lane == WRITE {
            Direction::Write
        } else {
            Direction::Read
        };
        cx.start(lane, source, Op::Ready(direction));
    }

    /// Disarms a direction. Returns whether it was armed.
    fn disarm(&mut self, cx: &mut Context<'_>, lane: Lane) -> bool {
        let live = cx.is_live(lane);
        let side = self.side(lane);
        side.ending = live;
        side.waits = false;
        side.disarmed = true;
        cx.cancel(lane);
        std::mem::take(&mut self.side(lane).wanted)
    }
}

impl Watch for FdWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = self.fd.take() else { return };
        self.source = cx.attach(fd, Nonblocking::ReadinessOnly);
        cx.changed();
        for lane in [READ, WRITE] {
            if self.side(lane).wanted {
                self.arm(cx, lane);
            }
        }
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        let side = |lane: Lane, side: &Side| KeptSide {
            wanted: side.wanted,
            disarmed: side.disarmed,
            fired: self.fired[usize::from(lane.0)],
        };
        Some(Of::Fd(KeptFd {
            descriptor: Some(descriptor(driver.fd(self.source?)?)?),
            read: Some(side(READ, &self.read)),
            write: Some(side(WRITE, &self.write)),
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let (Of::Fd(kept), Some(fd)) = (kept.of, self.fd.take()) else {
            return Err(Error::Internal("what was kept is no file descriptor"));
        };
        self.source = cx.attach(fd, Nonblocking::ReadinessOnly);
        for (lane, side) in [(READ, kept.read), (WRITE, kept.write)] {
            let KeptSide {
                wanted,
                disarmed,
                fired,
            } = side.unwrap_or_default();
            self.fired[usize::from(lane.0)] = fired;
            if wanted {
                self.arm(cx, lane);
            }
            self.side(lane).wanted = wanted;
            self.side(lane).disarmed = disarmed;
        }
        cx.changed();
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        cx.changed();
        if std::mem::take(&mut self.side(lane).ending) {
            cx.unreserve();
            if self.side(lane).wanted && !cx.is_closing() {
                self.arm(cx, lane);
            }
            return;
        }
        self.side(lane).wanted = false;
        match done {
            Done::Ready(ready) => {
                self.fired[usize::from(lane.0)] = cx.emit_reserved(Kind::Ready(Ready {
                    readable: ready.readable,
                    writable: ready.writable,
                    hangup: ready.hangup,
                    error: ready.error,
                    half_closed: ready.half_closed,
                    read_fired: lane == READ,
                    write_fired: lane == WRITE,
                }));
            }
            Done::Failed(errno) => {
                cx.unreserve();
                cx.fail(errno, "watch");
            }
            _ => cx.unreserve(),
        }
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        for lane in [READ, WRITE] {
            if self.side(lane).waits && !hold {
                self.arm(cx, lane);
            }
        }
        self.read.waits || self.write.waits
    }

    fn rearm(&mut self, cx: &mut Context<'_>, item: &proto::RearmItem) -> bool {
        cx.changed();
        let both = !item.readable && !item.writable;
        let mut armed = false;
        for (lane, named) in [(READ, item.readable), (WRITE, item.writable)] {
            if item.disarm {
                armed |= (named || both) && self.disarm(cx, lane);
                continue;
            }
            let fired = self.fired[usize::from(lane.0)];
            let side = self.side(lane);
            let seen = item.seq == 0 || fired <= item.seq;
            let meant = named || (both && fired > 0 && !side.disarmed);
            if meant && seen && !side.wanted {
                self.arm(cx, lane);
                armed = true;
            }
        }
        armed
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        Some(proto::watch::Status::Fd(proto::FdStatus {
            readable_armed: self.read.wanted,
            writable_armed: self.write.wanted,
            fd_type: self.kind.name().to_owned(),
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        let gone = Error::Internal("an open fd watch has no source");
        self.source.ok_or(gone)
    }
}
