//! evloopd: event loops as a service of the host.
//!
//! The house, from the ground up; each room may use those above it in this list.
//!
//! | room | what it is |
//! |---|---|
//! | [`proto`] | the messages of the wire contract, generated |
//! | [`words`] | enums whose variants are words; knows nobody |
//! | [`kinds`] | the kinds of watch and of event, read off [`proto`] |
//! | [`clock`] | both clocks, sampled once a turn |
//! | [`text`] | text from outside, made fit to be shown; knows nobody |
//! | `similar` | what an unknown word may have meant; knows nobody |
//! | [`sparing`] | log lines that anybody can cause, bounded by rate; knows nobody |
//! | [`error`] | the one domain error |
//! | [`memory`] | the budget of memory that clients can make the daemon hold |
//! | [`config`] | TOML to checked types; knows `similar`, [`words`] and [`kinds`] alone |
//! | [`event`] | events and cursors: the vocabulary all others speak |
//! | [`journal`] | the bounded log of a loop's events and its readers |
//! | [`driver`] | the contract between watches and backends, and the backends |
//! | [`access`] | principals, peers, the audit log |
//! | [`signals`] | the one thread that takes signals |
//! | [`watch`] | one file per kind of watch, written against the driver contract |
//! | [`event_loop`] | the loop's thread: turns, timers, mailbox, registrations |
//! | [`handover`] | file descriptors in and out |
//! | [`policy`] | contexts to loops |
//! | [`rpc`] | one file per service; the only room that knows tonic's server |
//! | [`daemon`] | assembles all, starts, drains, tells systemd |
//!
//! Beside them, for clients: [`client`] finds and connects to a daemon, [`ctl`] has
//! evloopctl's verbs, [`history`] checks recorded events against the promises, and
//! [`demo`] shows them at work.

pub mod access;
pub mod client;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod demo;
pub mod driver;
pub mod error;
pub mod event;
pub mod event_loop;
pub mod handover;
pub mod history;
pub mod journal;
pub mod kinds;
pub mod memory;
pub mod policy;
pub mod proto;
pub mod rpc;
pub mod signals;
mod similar;
pub mod sparing;
mod sync;
#[allow(unsafe_code)]
mod sys;
pub mod text;
pub mod watch;
pub mod words;
