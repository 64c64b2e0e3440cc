//! The whole daemon from outside: delivery across lives of clients, ends of all sorts, limits,
//! hostile clients.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bytes;
mod cancellation;
mod cgroups;
#[allow(unsafe_code)]
mod children;
mod config;
mod delivery;
mod descriptors;
mod exhaustion;
mod fences;
mod hostile;
mod inherited;
mod life;
mod loops;
mod neighbours;
mod own_slots;
mod polling;
mod runs;
mod small_frames;
mod starts;
mod streams;
mod texts;
mod tls_files;
mod unread;

/// The entry of the client process that some tests start: see [`common::another`].
#[test]
fn another_process() {
    common::another::act();
}
