//! The cost of delivery: the daemon compared with the least that could do the same work.
//!
//! `cargo bench --bench delivery [-- CASE…]` runs both sides of every case alternately, round by
//! round, so that other load on the host affects both. It prints a table for people, and for
//! scripts a line `ratio NAME VALUE` or `figure NAME VALUE` for each result. A ratio is the median
//! of the ratios of all rounds.
//!
//! The client is this process. The daemon is a process of its own, and so is each yardstick that
//! consists of more than system calls.

use std::error::Error;

use tokio::runtime::{Builder, Runtime};

mod cpu;
mod daemon;
mod grpc;
mod latency;
mod peers;
mod pipes;
mod posts;
mod raw;
mod redis;
mod replay;
mod report;
mod run_output;
mod scale;
mod spawn;
mod spent;
mod stdout;
mod throughput;
mod yardstick;

use report::Report;

type Failure = Box<dyn Error>;
type Outcome<T> = Result<T, Failure>;
type Case = fn(&Runtime, &mut Report) -> Outcome<()>;

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
    // Cargo passes --bench to benchmarks. `cargo test` runs them too, in a build that is useless
    // for measurements.
    if !arguments.iter().any(|a| a == "--bench") {
        println!("run it with `cargo bench --bench delivery`");
        return Ok(());
    }
    raise_open_files()?;
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    for (name, case) in CASES {
        if chosen.is_empty() || chosen.iter().any(|c| name.contains(c.as_str())) {
            eprintln!("{name} ...");
            case(&runtime, &mut report).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    report.print();
    Ok(())
}

/// Raises the limit for this process, and for the daemon, which inherits it.
fn raise_open_files() -> Outcome<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < OPEN_FILES) {
        limit.current = Some(OPEN_FILES);
        setrlimit(Resource::Nofile, limit)
            .map_err(|e| format!("{OPEN_FILES} open files are needed: {e}"))?;
    }
    Ok(())
}
