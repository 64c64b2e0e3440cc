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
mod posting;
mod pressure;
mod programs;
mod repeats;
mod snapshots;
mod unkept;
mod views;

/// The entry of the client process that some tests start: see [`common::another`].
#[test]
fn another_process() {
    common::another::act();
}

/// The entry of the client process of the tests in [`faults`].
#[test]
fn client_process() {
    clients::act();
}
