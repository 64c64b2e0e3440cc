//! The primitives of the few hand-offs between threads that are tested in every
//! interleaving: `tests/interleavings.rs` compiles those files against loom's.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

pub(crate) use parking_lot::Mutex;
