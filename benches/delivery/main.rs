//! The cost of delivery: the daemon compared with the least that could do the same work.
//!
//! `cargo bench --bench delivery [-- CASE…]` runs both sides of every case alternately, round by
//! round, so that other load on the host affects both. It prints a table for people, and for
//! scripts a line `ratio NAME VALUE` or `figure NAME VALUE` for each result. A ratio is the median
//! of the ratios of all rounds.
//!
//! The client is this process. The daemon is a process of its own, and so is each yardstick that
//! consists of more than system calls.

use common::{Case, Failure, Outcome, daemon, raw, report, spent, yardstick};

#[path = "../common/mod.rs"]
mod common;
mod cpu;
mod grpc;
mod latency;
mod peers;
mod pipes;
mod posts;
mod redis;
mod replay;
mod run_output;
mod scale;
mod spawn;
mod stdout;
mod throughput;

const CASES: [(&str, Case); 17] = [
    ("throughput", throughput::run),
    ("latency", latency::run),
    ("daemon_cpu", cpu::run),
    ("fanout", replay::run_fanout),
    ("neighbour", throughput::run_neighbour),
    ("replay", replay::run),
    ("post_unary", posts::run_unary),
    ("post_attach", posts::run_attach),
    ("post_to_receive", posts::run_to_receive),
    ("spawn", spawn::run),
    ("spawn_to_exit", spawn::run_one_by_one),
    ("stdout", stdout::run),
    ("run_output", run_output::run),
    ("footprint", scale::run_footprint),
    ("scale_fds", scale::run_fds),
    ("scale_loops", scale::run_loops),
    ("scale_timers", scale::run_timers),
];

/// A little more than the most descriptors that the daemon of any case has open.
const OPEN_FILES: u64 = 19_000;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [grpc::YARDSTICK, socket] => return grpc::serve(socket.as_ref()),
        [peers::YARDSTICK, which] => return peers::measure(which),
        _ => {}
    }
    common::run("delivery", &CASES, &arguments, OPEN_FILES)
}
