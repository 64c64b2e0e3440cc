//! The incoming and the outgoing half of a byte stream, used by connections, pipes and child
//! processes.

pub(super) use incoming::{Ended, Incoming};
pub(super) use outgoing::{Outgoing, fresh};

mod incoming;
mod outgoing;
