//! Memory that outlives a life of the daemon: what it holds is there when the next one begins.
//!
//! The [`Arena`] hands out *runs* of shared memory. Each has a header that says what it is and whose,
//! so that the next life finds all of them without any index. Three things are kept in runs:
//! - [`Writer`]: bytes that are appended, such as encoded events. What was committed is whole.
//! - [`Records`]: small pieces by kind and id, such as the specification of a watch.
//! - [`Cell`]: a few numbers that change often, such as the offset of a stream.
//!
//! All that is done in one of a loop's [`Turns`] counts together, or not at all.
//!
//! All of it is written by plain stores in the order in which it must be found: a process that is
//! killed at any instant has done some first part of its stores. The memory does not outlive the
//! host, so nothing here waits for a disk.

use std::sync::Arc;

mod ahead;
mod arena;
mod arrivals;
mod cell;
mod directory;
mod inherited;
#[allow(unsafe_code)]
mod memory;
mod origin;
mod receipts;
mod records;
mod starts;
#[cfg(test)]
pub(crate) mod tests;
mod turns;
mod uncommitted;
mod writer;

pub use arena::{Arena, DAEMON, Found, Kind, Owner, Recovered, Refusal};
pub use arrivals::{Arrival, Arrivals, Buffer, Completed};
pub use cell::Cell;
pub use directory::Directory;
pub use inherited::{Inherited, descriptor};
pub use receipts::{Place, Receipts, Sending};
pub use records::{Entry, Records};
pub use starts::{Start, Starts, Stray, has_started};
pub use turns::Turns;
pub use uncommitted::{Sent, Uncommitted, Unrecorded};
pub use writer::{Piece, Writer};

/// Where something of a loop is kept.
#[derive(Debug, Clone)]
pub enum Keep {
    /// In memory that ends with the daemon.
    Own,
    /// In memory that later lives find under this owner.
    Kept(Arc<Arena>, Owner),
}
