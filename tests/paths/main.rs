//! Watching paths: each rule of the module `paths`, on real directories.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod api;
mod field;
mod limits;
mod mounts;
mod support;
