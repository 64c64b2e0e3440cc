//! The commands that a loop carries out on its thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::EventLoop;
use super::commands::{LoopEnd, Part, Posting, WatchFilter, WatchName};
use super::fence::Fence;
use super::mailbox::{Reply, Visit};
use super::record::{Registration, TakenFd};
use super::registration::AddOutcome;
use super::snapshot::{self, Wanted};
use super::sweeps::Sweep;
use super::update::{Update, UpdateOutcome};
use crate::clock::Now;
use crate::error::Result;
use crate::event::{CloseReason, Cursor, PolicyChanged};
use crate::proto::{self, TerminalSize};
use crate::watch::{Groups, Order, Parcel, SignalTarget, StartTls, Taken, Tree, Watch, WaterMarks};

/// A command for the loop's thread, with the channel for its reply.
pub(super) enum Command {
    /// Adds a watch.
    Add {
        registration: Box<Registration>,
        order: Order,
        reply: Reply<AddOutcome>,
    },
    /// Adds a prepared watch, using the room that was reserved under `ticket`.
    Register {
        ticket: u64,
        registration: Box<Registration>,
        watch: Box<dyn Watch>,
        reply: Reply<AddOutcome>,
    },
    /// Releases the room that was reserved under `ticket`.
    Abandon {
        ticket: u64,
    },
    Get {
        name: WatchName,
        visit: Visit<proto::Watch>,
    },
    /// Collects one part of a page of watches.
    List {
        after: u64,
        max: usize,
        bytes: usize,
        filter: Arc<WatchFilter>,
        visit: Visit<Part>,
    },
    Remove {
        name: WatchName,
        request_id: String,
        reply: Reply<Cursor>,
    },
    Rearm {
        items: Vec<proto::RearmItem>,
        reply: Reply<Armed>,
    },
    Write {
        name: WatchName,
        data: Bytes,
        at: Option<u64>,
        reply: Reply<Taken>,
    },
    WriteEof {
        name: WatchName,
        reply: Reply<()>,
    },
    SendTo {
        name: WatchName,
        parcel: Box<Parcel>,
        reply: Reply<u64>,
    },
    StartTls {
        name: WatchName,
        order: StartTls,
        reply: Reply<()>,
    },
    SetWaterMarks {
        name: WatchName,
        marks: WaterMarks,
        reply: Reply<()>,
    },
    GroupSocket {
        name: WatchName,
        reply: Reply<(OwnedFd, Arc<Groups>)>,
    },
    /// Has later lives know the groups as they are.
    KeepGroups {
        name: WatchName,
        reply: Reply<()>,
    },
    PauseReading {
        name: WatchName,
        pause: bool,
        reply: Reply<()>,
    },
    Resize {
        name: WatchName,
        size: TerminalSize,
        reply: Reply<()>,
    },
    Signal {
        name: WatchName,
        number: i32,
        target: SignalTarget,
        reply: Reply<()>,
    },
    Tree {
        name: WatchName,
        reply: Reply<Tree>,
    },
    Abort {
        name: WatchName,
        reply: Reply<Cursor>,
    },
    TakeFd {
        name: WatchName,
        reply: Reply<TakenFd>,
    },
    Post {
        postings: Vec<Posting>,
        reply: Reply<Cursor>,
    },
    Fence {
        reply: Reply<u64>,
    },
    OpenSnapshot {
        visit: Visit<(u64, Cursor)>,
    },
    ReadSnapshot {
        number: u64,
        bytes: usize,
        wanted: Wanted,
        reply: Reply<snapshot::Part>,
    },
    EndSnapshot(snapshot::End),
    PolicyChanged {
        changed: PolicyChanged,
        reply: Reply<()>,
    },
    KillChildren {
        reply: Reply<()>,
    },
    Run {
        reply: Reply<Cursor>,
    },
    Stop {
        reply: Reply<Cursor>,
    },
    Close {
        end: LoopEnd,
        reply: Reply<Cursor>,
    },
    KeepAlive {
        name: WatchName,
        length: Option<Duration>,
        reply: Reply<Duration>,
    },
    KeepLoop {
        reason: CloseReason,
        reply: Reply<()>,
    },
    Update {
        name: WatchName,
        update: Box<Update>,
        reply: Reply<UpdateOutcome>,
    },
}

/// The result of [`Command::Rearm`].
#[derive(Debug)]
pub(super) struct Armed {
    /// The time before the first item, in nanoseconds of the monotonic clock.
    pub(super) at: u64,
    /// For each item, whether the arming of its watch changed.
    pub(super) changed: Vec<bool>,
    /// The cursor of the newest event at that time.
    pub(super) newest: Cursor,
}

impl Command {
    /// Returns the bytes that a client makes this command hold while it waits, beyond its fixed
    /// size.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Rearm { items, .. } => size_of_val(items.as_slice()),
            Self::Write { data, .. } => data.len(),
            Self::SendTo { parcel, .. } => parcel.data.len(),
            Self::Post { postings, .. } => postings.iter().map(Posting::bytes).sum(),
            // Their registrations hold memory of their own.
            Self::Add { .. } | Self::Register { .. } => 0,
            Self::Abandon { .. }
            | Self::Get { .. }
            | Self::List { .. }
            | Self::Remove { .. }
            | Self::WriteEof { .. }
            | Self::StartTls { .. }
            | Self::SetWaterMarks { .. }
            | Self::GroupSocket { .. }
            | Self::KeepGroups { .. }
            | Self::PauseReading { .. }
            | Self::Resize { .. }
            | Self::Signal { .. }
            | Self::Tree { .. }
            | Self::Abort { .. }
            | Self::TakeFd { .. }
            | Self::Fence { .. }
            | Self::OpenSnapshot { .. }
            | Self::ReadSnapshot { .. }
            | Self::EndSnapshot(_)
            | Self::PolicyChanged { .. }
            | Self::KillChildren { .. }
            | Self::Run { .. }
            | Self::Stop { .. }
            | Self::Close { .. }
            | Self::KeepAlive { .. }
            | Self::KeepLoop { .. }
            | Self::Update { .. } => 0,
        }
    }
}

impl EventLoop {
    /// Carries out a command. Replies are sent at the end of the turn, or later.
    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            Command::Add {
                registration,
                order,
                reply,
            } => self.add(*registration, order, reply),
            Command::Register {
                ticket,
                registration,
                watch,
                reply,
            } => {
                let registered = self.register(ticket, *registration, watch);
                self.reply(reply, registered.map(|it| AddOutcome::Exists(it.into())));
            }
            Command::Abandon { ticket } => self.abandon(ticket),
            Command::Get { name, visit } => {
                let result = self.get(&name);
                self.reply_after(visit, result);
            }
            Command::List {
                after,
                max,
                bytes,
                filter,
                visit,
            } => {
                let part = self.list(after, max, bytes, &filter);
                self.reply_after(visit, Ok(part));
            }
            Command::Remove {
                name,
                request_id,
                reply,
            } => self.remove_watch(&name, request_id, reply),
            Command::Rearm { items, reply } => {
                let armed = Armed {
                    at: Now::sample().monotonic,
                    changed: self.rearm(&items),
                    newest: self.newest(),
                };
                self.reply(reply, Ok(armed));
            }
            Command::Write {
                name,
                data,
                at,
                reply,
            } => {
                let result = self.write(&name, data, at);
                self.reply(reply, result);
            }
            Command::WriteEof { name, reply } => {
                let result = self.write_eof(&name);
                self.reply(reply, result);
            }
            Command::SendTo {
                name,
                parcel,
                reply,
            } => {
                let result = self.send_to(&name, *parcel);
                self.reply(reply, result);
            }
            Command::StartTls { name, order, reply } => {
                let result = self.start_tls(&name, order);
                self.reply(reply, result);
            }
            Command::SetWaterMarks { name, marks, reply } => {
                let result = self.set_water_marks(&name, marks);
                self.reply(reply, result);
            }
            Command::GroupSocket { name, reply } => {
                let result = self.group_socket(&name);
                self.reply(reply, result);
            }
            Command::KeepGroups { name, reply } => {
                let result = self.find_open(&name).map(|slot| self.kept_changes(slot));
                self.reply(reply, result);
            }
            Command::PauseReading { name, pause, reply } => {
                let result = self.pause_reading(&name, pause);
                self.reply(reply, result);
            }
            Command::Signal {
                name,
                number,
                target,
                reply,
            } => {
                let result = self.signal(&name, number, target);
                self.reply(reply, result);
            }
            Command::Tree { name, reply } => {
                let result = self.tree(&name);
                self.reply(reply, result);
            }
            Command::Resize { name, size, reply } => {
                let result = self.resize(&name, size);
                self.reply(reply, result);
            }
            Command::Abort { name, reply } => self.abort(&name, reply),
            Command::TakeFd { name, reply } => self.take_fd(&name, reply),
            Command::Post { postings, reply } => {
                let result = self.post(postings);
                self.reply(reply, result);
            }
            Command::Fence { reply } => self.fences.push(Fence::new(reply)),
            Command::OpenSnapshot { visit } => {
                let opened = self.open_snapshot();
                self.reply_after(visit, Ok(opened));
            }
            Command::ReadSnapshot {
                number,
                bytes,
                wanted,
                reply,
            } => {
                let result = self.snapshot_part(number, bytes, &wanted);
                self.reply(reply, result);
            }
            Command::EndSnapshot(end) => self.end_snapshot(end),
            Command::PolicyChanged { changed, reply } => {
                self.policy_changed(changed);
                self.reply(reply, Ok(()));
            }
            Command::KillChildren { reply } => self.sweep(Sweep::Kill(reply)),
            Command::Run { reply } => {
                let result = self.run_loop();
                self.reply(reply, result);
            }
            Command::Stop { reply } => {
                let result = self.stop_loop();
                self.reply(reply, result);
            }
            Command::Close { end, reply } => self.close_loop(end, reply),
            Command::KeepAlive {
                name,
                length,
                reply,
            } => {
                let result = self.keep_alive(&name, length);
                self.reply(reply, result);
            }
            Command::KeepLoop { reason, reply } => {
                let result = self.keep_loop(reason);
                self.reply(reply, result);
            }
            Command::Update {
                name,
                update,
                reply,
            } => {
                let result = self.update(&name, *update);
                self.reply(reply, result);
            }
        }
    }

    /// Sends a result at the end of the turn, when the events it refers to can be read.
    pub(super) fn reply<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T>) {
        self.replies.push(Box::new(move || reply.send(result)));
    }

    /// As [`Self::reply`], for a result that `visit` checks on the loop's thread before it is sent.
    fn reply_after<T>(&mut self, visit: Visit<T>, result: Result<T>) {
        self.replies.push(visit.run(result));
    }
}
