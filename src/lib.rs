//! skeleton
pub mod clock;
pub mod error;
pub mod event;
pub mod journal;
pub mod proto;
