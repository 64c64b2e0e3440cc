//! `watch pid`: watches for the end of a process that the daemon has not started.

use clap::Args;

use super::super::failure::Failure;
use super::super::parse;
use super::super::session::Session;
use super::add::{Made, Registration, hand_over};
use crate::proto::{PidSpec, pid_spec, watch_spec};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl watch pid 4711 -f
  evloopctl watch pid 4711 --start-ticks 420106 --name editor

The watch ends with the process, once its parent has reaped it: only then the exit status is known.";

/// Options of `watch pid`.
#[derive(Debug, Args)]
pub(in crate::ctl) struct Process {
    /// The process id, or fd:N for a pidfd (inherited)
    #[arg(value_name = "PID", value_parser = source)]
    process: Source,
    /// When the process was started, in clock ticks since boot: it is an error if another process has the pid by now
    #[arg(long, value_name = "TICKS")]
    start_ticks: Option<u64>,
    /// How long to wait for its parent to reap it, once it has ended [default: as the configuration says]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    reap_wait: Option<prost_types::Duration>,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Pid(i32),
    Fd(i32),
}

fn source(text: &str) -> Result<Source, String> {
    if let Some(fd) = text.strip_prefix("fd:") {
        return parse::fd_number(fd).map(Source::Fd);
    }
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(Source::Pid(pid)),
        _ => Err("must be a process id, such as 4711, or fd:N".to_owned()),
    }
}

pub(super) async fn pid(session: &Session, args: Process) -> Made {
    let process = match args.process {
        Source::Pid(pid) => pid_spec::Process::Pid(pid),
        Source::Fd(fd) => pid_spec::Process::Slot(hand_over(session, fd).await?),
    };
    let spec = PidSpec {
        process: Some(process),
        start_ticks: args.start_ticks,
        reap_wait: args.reap_wait,
    };
    Ok::<_, Failure>((watch_spec::Spec::Pid(spec), args.registration))
}
