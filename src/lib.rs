//! evloopd: event loops as a service of the host.
//!
//! The modules, lowest layer first. A module may use those above it in this list.
//!
//! | module | contents |
//! |---|---|
//! | [`proto`] | the messages of the wire contract, generated |
//! | [`words`] | enums whose variants are words; uses no other module |
//! | [`kinds`] | the kinds of watch and of event, generated from [`proto`] |
//! | [`clock`] | the monotonic and the realtime clock, sampled once a turn |
//! | [`text`] | makes text from outside safe to show; uses no other module |
//! | [`calendar`] | when expressions of cron and of systemd are due, in time zones; uses no other module |
//! | `poison` | panics that end the daemon, and those that do not; uses no other module |
//! | [`paths`] | watches paths by inotify, on a thread of its own; uses `poison` only |
//! | [`follow`] | reads a file, or follows one by its name; uses no other module |
//! | [`screen`] | the screen of a terminal, kept from the bytes written to it; uses no other module |
//! | `similar` | finds the known word that a misspelt one resembles; uses no other module |
//! | [`sparing`] | limits the rate of log lines that any client can cause; uses no other module |
//! | `descriptors` | tells who waits for it that a file descriptor was closed; uses no other module |
//! | `id_map` | a map from ids to values; uses no other module |
//! | `paged` | a slab that grows without copying; uses no other module |
//! | [`keeper`] | the first process: starts the daemon, and starts it again when it has died |
//! | [`state`] | memory that outlives a life of the daemon |
//! | [`error`] | the error type of the whole daemon |
//! | [`memory`] | the budget of memory that clients can make the daemon hold |
//! | [`config`] | reads TOML into checked types; uses `similar`, [`words`] and [`kinds`] only |
//! | [`event`] | events and cursors, the types that all modules below use |
//! | [`journal`] | the bounded log of a loop's events, and its readers |
//! | [`driver`] | the contract between watches and backends, and the backends |
//! | [`tls`] | certificates and keys, and the sessions of TLS; no I/O on sockets |
//! | [`access`] | principals, peers, the audit log |
//! | [`cgroup`] | a cgroup for each child, and what the cgroups around the daemon allow |
//! | [`signals`] | the one thread that receives signals |
//! | [`watch`] | one file per kind of watch, written against the driver contract |
//! | [`event_loop`] | the thread of a loop: turns, timers, mailbox, registrations |
//! | [`terminals`] | the screens of processes with terminals, and who views them |
//! | [`handover`] | passes file descriptors between clients and the daemon |
//! | [`policy`] | finds or makes the loop of a context |
//! | [`rpc`] | one file per gRPC service; the only module that uses tonic's server |
//! | [`daemon`] | assembles all modules, starts, drains, notifies systemd |
//!
//! For clients there are also: [`client`], which finds a daemon and connects to it; [`ctl`], the
//! commands of evloopctl; [`history`], which checks recorded events against the promises; and
//! [`demo`], which demonstrates them.

pub mod access;
pub mod calendar;
pub mod cgroup;
pub mod client;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod demo;
mod descriptors;
pub mod driver;
pub mod error;
pub mod event;
pub mod event_loop;
pub mod faults;
pub mod follow;
pub mod handover;
pub mod history;
mod id_map;
pub mod journal;
pub mod keeper;
pub mod kinds;
pub mod memory;
mod paged;
pub mod paths;
mod poison;
pub mod policy;
pub mod proto;
pub mod rpc;
pub mod screen;
pub mod signals;
mod similar;
pub mod sparing;
pub mod state;
mod sync;
#[allow(unsafe_code)]
mod sys;
pub mod terminals;
pub mod text;
pub mod tls;
pub mod watch;
pub mod words;
