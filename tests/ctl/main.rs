//! The real `evloopctl` program against a real daemon.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod absent;
mod backends;
mod calendar;
mod children;
mod completions;
mod consumers;
mod datagrams;
mod descriptors;
mod events;
mod following;
mod foreground;
mod leaving;
mod logs;
mod names;
mod program;
mod readers;
mod recordings;
mod refusals;
mod shapes;
mod sockets;
mod standstill;
mod terminal;
mod texts;
mod trees;
mod updates;
mod verbs;
mod views;
mod waits;
