//! What the benchmarks share: the daemon and its clients, yardsticks, and the report.

#![allow(dead_code)] // each benchmark uses only some of this

use std::error::Error;

use tokio::runtime::{Builder, Runtime};

pub(crate) mod daemon;
pub(crate) mod grpc;
pub(crate) mod raw;
pub(crate) mod report;
pub(crate) mod spent;
pub(crate) mod yardstick;

pub(crate) type Failure = Box<dyn Error>;
pub(crate) type Outcome<T> = Result<T, Failure>;
pub(crate) type Case = fn(&Runtime, &mut report::Report) -> Outcome<()>;

/// Runs the cases that the arguments choose, all of them if they choose none, and prints the
/// results. A case is chosen by a part of its name. Raises the limit of open files to `open_files`.
pub(crate) fn run(
    bench: &str,
    cases: &[(&str, Case)],
    arguments: &[String],
    open_files: u64,
) -> Outcome<()> {
    // Cargo passes --bench to benchmarks. `cargo test` runs them too, in a build that is useless
    // for measurements.
    if !arguments.iter().any(|a| a == "--bench") {
        println!("run it with `cargo bench --bench {bench}`");
        return Ok(());
    }
    raise_open_files(open_files)?;
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut report = report::Report::default();
    for (name, case) in cases {
        if chosen.is_empty() || chosen.iter().any(|c| name.contains(c.as_str())) {
            eprintln!("{name} ...");
            case(&runtime, &mut report).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    report.print();
    Ok(())
}

/// Raises the limit for this process, and for the daemon, which inherits it.
fn raise_open_files(least: u64) -> Outcome<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < least) {
        limit.current = Some(least);
        setrlimit(Resource::Nofile, limit)
            .map_err(|e| format!("{least} open files are needed: {e}"))?;
    }
    Ok(())
}
