//! The delivery contract under pressure: consumers, pauses, attached streams, repeats, faults.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod attach;
mod attached;
mod clients;
mod consumers;
mod crowds;
mod faults;
mod memory;
mod pressure;
mod programs;
mod repeats;
mod snapshots;
mod unkept;

/// For the tests that need a client process of its own: see [`clients`].
#[test]
fn another_process() {
    common::another::act();
}

/// The other process of the fault runs.
#[test]
fn client_process() {
    clients::act();
}
