//! skeleton
pub mod proto;
