//! What a child writes to its terminal until a client has it, compared with tmux, which also keeps
//! a screen, and with script(1), which keeps none.
//!
//! The child is the same: it waits at a FIFO, then copies a file to its terminal. The client of tmux
//! is what `pipe-pane` starts, this program, which reads the bytes and drops them. All rates count
//! from the moment at which the child may go on.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio as Stream};
use std::time::Instant;

use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::{
    ProcessSpec, RunRequest, RunResponse, Stdio, event, process_spec, run_response,
};
use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::report::{Report, Side, Target, in_turns};
use crate::source::BACKENDS;
use crate::tmux::{Tmux, build_log};

/// The first argument of the process that reads what tmux copies; the second is the number of bytes.
pub(crate) const READER: &str = "pty-reader";

/// The bytes of a round.
const BYTES: usize = 16 << 20;
/// Bytes of one read, as of cat(1).
const PIECE: usize = 128 * 1024;

/// The file and the FIFOs of the children.
struct Place {
    directory: TempDir,
    /// What the terminal makes of the file.
    shown: u64,
}

impl Place {
    fn new() -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let shown = build_log(&directory.path().join("log"), BYTES)?;
        for fifo in ["go", "done"] {
            mkfifoat(CWD, directory.path().join(fifo), Mode::RWXU)?;
        }
        Ok(Self { directory, shown })
    }

    /// Returns the child's command line.
    fn line(&self) -> String {
        let at = self.directory.path().display();
        format!("read go < {at}/go; exec cat {at}/log")
    }

    /// Lets the child go on, once it waits, and returns the moment.
    fn go(&self) -> Outcome<Instant> {
        let mut fifo = std::fs::OpenOptions::new()
            .write(true)
            .open(self.directory.path().join("go"))?;
        let begun = Instant::now();
        fifo.write_all(b"go\n")?;
        Ok(begun)
    }

    fn rate(&self, begun: Instant) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let bytes = self.shown as f64;
        bytes / begun.elapsed().as_secs_f64() / 1e6
    }
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    if !Tmux::is_there() {
        eprintln!("  left out: there is no tmux");
        return Ok(());
    }
    let place = Place::new()?;
    let mut daemons = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let channel = runtime.block_on(daemon.connect())?;
        daemons.push((channel, daemon));
    }
    let mut sides: Vec<Side<'_, f64>> = Vec::new();
    for (channel, _) in &daemons {
        let round = || runtime.block_on(ours(channel.clone(), &place));
        sides.push(Box::new(round));
    }
    sides.push(Box::new(|| by_tmux(&place)));
    sides.push(Box::new(|| by_script(&place)));
    let mut taken = in_turns(sides)?;
    let (script, tmux) = (taken.pop(), taken.pop());
    let (script, tmux) = (script.unwrap_or_default(), tmux.unwrap_or_default());
    for (backend, ours) in BACKENDS.into_iter().zip(taken) {
        report.ratio(
            ("pty_bytes_vs_tmux", backend),
            "MB/s",
            Some(Target::AtLeast(1.0)),
            (ours.clone(), tmux.clone()),
        );
        let both = (ours, script.clone());
        report.ratio(("pty_bytes_vs_script", backend), "MB/s", None, both);
    }
    Ok(())
}

async fn ours(channel: Channel, place: &Place) -> Outcome<f64> {
    let pty = Stdio::Pty.into();
    let request = RunRequest {
        spec: Some(ProcessSpec {
            command: Some(process_spec::Command::Shell(place.line())),
            stdout: pty,
            stderr: pty,
            ..ProcessSpec::default()
        }),
        finished_ttl: Some(prost_types::Duration::default()),
        ..RunRequest::default()
    };
    let run = ProcessServiceClient::new(channel).run(request).await?;
    let mut stream = run.into_inner();
    // The header says that it runs.
    stream.message().await?;
    let begun = place.go()?;
    let mut left = place.shown;
    while left > 0 {
        let bytes = next(&mut stream).await?;
        left = left.checked_sub(bytes).ok_or("too many bytes")?;
    }
    let rate = place.rate(begun);
    while stream.message().await?.is_some() {}
    Ok(rate)
}

/// Returns the number of bytes in the next message.
async fn next(stream: &mut Streaming<RunResponse>) -> Outcome<u64> {
    let message = stream.message().await?.and_then(|answer| answer.message);
    let Some(run_response::Message::Batch(batch)) = message else {
        return Err(format!("not a batch: {message:?}").into());
    };
    let data = batch.events.into_iter().map(|event| match event.kind {
        Some(event::Kind::Data(data)) => data.data.len() as u64,
        _ => 0,
    });
    Ok(data.sum())
}

fn by_tmux(place: &Place) -> Outcome<f64> {
    let tmux = Tmux::start(&place.line())?;
    let (reader, at) = (std::env::current_exe()?, place.directory.path());
    let (reader, at) = (reader.display(), at.display());
    let shown = place.shown;
    tmux.run([
        "pipe-pane",
        "-O",
        &format!("exec {reader} {READER} {shown} > {at}/done"),
    ])?;
    let mut done = std::fs::File::open(place.directory.path().join("done"))?;
    let begun = place.go()?;
    done.read_exact(&mut [0])?;
    Ok(place.rate(begun))
}

/// Reads so many bytes, and says so.
pub(crate) fn read_all(bytes: &str) -> Outcome<()> {
    take(&mut std::io::stdin().lock(), bytes.parse()?)?;
    println!("done");
    Ok(())
}

fn by_script(place: &Place) -> Outcome<f64> {
    let mut script = Command::new("script")
        .args(["-q", "-c", &place.line(), "/dev/null"])
        .stdin(Stream::piped())
        .stdout(Stream::piped())
        .spawn()?;
    let rate = read_script(&mut script, place);
    if rate.is_err() {
        // If it fails, it has ended.
        let _ = script.kill();
    }
    script.wait()?;
    rate
}

fn read_script(script: &mut Child, place: &Place) -> Outcome<f64> {
    let mut output = script.stdout.take().ok_or("no pipe")?;
    let begun = place.go()?;
    take(&mut output, place.shown)?;
    Ok(place.rate(begun))
}

fn take(from: &mut impl Read, bytes: u64) -> Outcome<()> {
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        match from.read(&mut piece)? {
            0 => return Err(format!("{left} bytes are missing").into()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    Ok(())
}
