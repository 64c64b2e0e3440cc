//! What a child writes, through `evloopctl run` into a pipe, compared with the same child writing
//! into the same pipe itself. The reader of the pipe is this process.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::report::{Report, Target, alternate};
use crate::spent::with_children;

const BYTES: u32 = 200_000_000;
const BACKENDS: [&str; 2] = ["epoll", "io_uring"];
/// Bytes of one read, as of cat(1).
const PIECE: usize = 128 * 1024;

pub(crate) fn run(_: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let mut spent = Vec::new();
        let rates = alternate(
            || {
                let before = daemon.cpu_with_children()? + with_children("self")?;
                let rate = read(&mut run_of(&daemon.socket()))?;
                let seconds = daemon.cpu_with_children()? + with_children("self")? - before;
                spent.push(seconds / (f64::from(BYTES) / 1e9));
                Ok(rate)
            },
            || read(&mut child()),
        )?;
        // The first round does not count.
        let spent = spent.split_off(1);
        let target = |target| (backend == "epoll").then_some(target);
        report.ratio(
            ("run_output_vs_pipe", backend),
            "MB/s",
            target(Target::AtLeast(0.6)),
            rates,
        );
        report.figure(
            ("run_output_cpu_s_per_gb", backend),
            target(Target::AtMost(1.5)),
            spent,
        );
    }
    Ok(())
}

fn run_of(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evloopctl"));
    command.env("EVLOOPD_SOCKET", socket);
    command.args(["run", "--no-stdin", "--"]).args(line());
    command
}

fn child() -> Command {
    let [program, arguments @ ..] = line();
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn line() -> [String; 4] {
    ["head", "-c", &BYTES.to_string(), "/dev/zero"].map(str::to_owned)
}

/// Reads all that the command writes; its rate.
fn read(command: &mut Command) -> Outcome<f64> {
    let begun = Instant::now();
    let mut running = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = running.stdout.take().ok_or("no pipe")?;
    let mut piece = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        match output.read(&mut piece)? {
            0 => break,
            read => bytes += read,
        }
    }
    let status = running.wait()?;
    if !status.success() || bytes != usize::try_from(BYTES)? {
        return Err(format!("{bytes} bytes, {status}").into());
    }
    Ok(f64::from(BYTES) / begun.elapsed().as_secs_f64() / 1e6)
}
