//! Watching paths with inotify, so that nothing is lost in silence.
//!
//! A [`Hub`] has one inotify instance and one thread. A [`Subscription`] watches a path by name, with
//! all below it if it is recursive, and is read through its bounded [`Inbox`].
//!
//! What holds:
//! - From `Synced` on every change is told, at least once, or a `Rescan` names where to look.
//! - A directory that appears is watched before it is listed, and what the list finds is told.
//! - Events are in the kernel's order. Names are those at the time of the event, as far as the kernel
//!   told of renames; a directory that was renamed is checked to be the one that is watched, and a
//!   `Rescan` is told if it is not.
//! - Two names that are exchanged are told as two renames, each of which loses what it replaces, and
//!   then by a `Rescan` of both.
//! - A directory is told removed after what was in it was; what leaves by a rename leaves at once.
//! - Writes through a memory map and changes on the other side of a network file system are not told by
//!   the kernel. The last are refused or polled.
//! - Mounts are not told by inotify either: a change of the mount table is a reason to look again.
//!
//! How: `way` follows the path, each directory watched before a name is looked up in it. `scan`
//! opens a directory, watches what it has open, and reads it. `events` turns the kernel's events into
//! changes of the `tree` and of what is told. Whatever an event says about a directory's name is
//! checked afterwards: the kernel gives one watch per inode, which is its identity.

mod engine;
mod events;
mod exchange;
mod filesystems;
mod hub;
pub mod ignore;
mod inbox;
mod limits;
mod mounts;
mod poll;
mod refused;
mod root;
mod scan;
mod spec;
mod sub;
mod told;
mod tree;
mod unwatched;
mod watches;
mod way;
mod window;
mod worker;

pub use hub::{Hub, Status, Subscription, SubscriptionStatus};
pub use ignore::Ignore;
pub use inbox::{Inbox, Sink};
pub use limits::{EVENT_BYTES, InboxLimits, KernelLimits, Limits, UserLimit};
pub use refused::{PathFault, Refused};
pub use spec::{Kinds, Spec};
pub use told::{Change, GoneReason, Move, RescanReason, Synced, Told};
