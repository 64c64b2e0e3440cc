//! The kinds of watch that can be added, and the options of each kind.

use bytes::Bytes;
use clap::{Args, Subcommand};

use super::super::command::Command;
use super::super::failure::{Failure, Outcome};
use super::super::parse;
use super::super::session::Session;
use super::super::timer::{self, InZone, Pace};
use super::super::zone;
use super::add::{self, Made, Registration, hand_over};
use super::datagram::{self, Udp};
use super::files;
use super::pid;
use super::sockets::{self, Connect, Listen, Marks};
use crate::proto::{
    FdSpec, ReadPipeSpec, SignalSpec, Stdio, WritePipeSpec, read_pipe_spec, timer_spec, watch_spec,
    write_pipe_spec,
};

/// Commands that add a watch, one for each kind.
#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum Kind {
    /// Watch a timer
    #[command(after_help = "Example:\n  evloopctl watch timer --at 2030-01-01T00:00:00Z -f")]
    Timer(Timer),
    /// Run a program without a stdin (see also `evloopctl run`)
    #[command(after_help = "Example:\n  evloopctl watch process --name job -- ./job --fast")]
    Process(Box<Process>),
    /// Connect to an address, or watch a connection that you hand over
    #[command(after_help = sockets::CONNECT_EXAMPLES)]
    Connect(Box<Connect>),
    /// Accept connections; each connection becomes a watch of its own
    #[command(after_help = sockets::LISTEN_EXAMPLES)]
    Listen(Box<Listen>),
    /// Send and receive datagrams: UDP, or Unix datagrams
    #[command(after_help = datagram::UDP_EXAMPLES)]
    Udp(Box<Udp>),
    /// Read from a FIFO
    #[command(after_help = "Example:\n  evloopctl watch read-pipe /tmp/fifo -f")]
    ReadPipe(ReadPipe),
    /// Write to a FIFO that another program reads
    #[command(after_help = "Example:\n  evloopctl watch write-pipe /tmp/fifo --name sink")]
    WritePipe(WritePipe),
    /// Watch signals that the daemon process receives
    #[command(after_help = "Example:\n  evloopctl watch signal USR1 USR2 -f")]
    Signal(Signal),
    /// Watch a directory or file for changes
    #[command(after_help = files::PATH_EXAMPLES)]
    Path(files::OfPath),
    /// Read a file, or follow one as it grows and is rotated
    #[command(after_help = files::FILE_EXAMPLES)]
    File(files::OfFile),
    /// Watch for the end of a process that the daemon has not started
    #[command(after_help = pid::EXAMPLES)]
    Pid(pid::Process),
    /// Watch the readiness of a descriptor that you have opened for this command
    #[command(after_help = "Example:\n  evloopctl watch fd 3 --read -f 3< /tmp/fifo")]
    Fd(Fd),
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Timer {
    #[command(flatten)]
    schedule: Schedule,
    #[command(flatten)]
    zone: InZone,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Schedule {
    /// Fire once, after this time; a number alone is seconds
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    after: Option<prost_types::Duration>,
    /// Fire again and again, at this interval; a number alone is seconds
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    every: Option<prost_types::Duration>,
    /// Fire once, at this time, such as 2030-01-31T12:00:00Z or `tomorrow 02:00`
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Fire when this expression of cron or of systemd is due
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Process {
    #[command(flatten)]
    registration: Registration,
    #[command(flatten)]
    command: Command,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct ReadPipe {
    /// Path of a FIFO, or fd:N (inherited)
    path: String,
    /// Read nothing until reading is resumed
    #[arg(long)]
    start_paused: bool,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct WritePipe {
    /// Path of a FIFO, or fd:N (inherited)
    path: String,
    #[command(flatten)]
    marks: Marks,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Signal {
    /// The signals, by name, such as USR1
    #[arg(required = true, value_parser = parse::signal)]
    signals: Vec<String>,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Fd {
    /// The descriptor's number
    #[arg(value_parser = parse::fd_number)]
    fd: i32,
    /// Report when the descriptor can be read
    #[arg(long)]
    read: bool,
    /// Report when the descriptor can be written
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    registration: Registration,
}

/// Adds a watch of that kind.
pub(in crate::ctl) async fn run(session: &Session, kind: Kind) -> Outcome {
    let (spec, registration) = match kind {
        Kind::Timer(args) => (timer(&args)?, args.registration),
        Kind::Process(args) => {
            let args = *args;
            let spec = args.command.spec(Stdio::Null)?;
            (watch_spec::Spec::Process(spec), args.registration)
        }
        Kind::Connect(args) => sockets::connect(session, *args).await?,
        Kind::Listen(args) => sockets::listen(session, *args).await?,
        Kind::Udp(args) => datagram::udp(session, *args).await?,
        Kind::ReadPipe(args) => read_pipe(session, args).await?,
        Kind::WritePipe(args) => write_pipe(session, args).await?,
        Kind::Signal(args) => {
            let spec = SignalSpec {
                signals: args.signals,
            };
            (watch_spec::Spec::Signal(spec), args.registration)
        }
        Kind::Path(args) => files::path(args)?,
        Kind::File(args) => return files::file(session, args).await,
        Kind::Pid(args) => pid::pid(session, args).await?,
        Kind::Fd(args) => {
            let slot = hand_over(session, args.fd).await?;
            let spec = FdSpec {
                slot,
                readable: args.read,
                writable: args.write,
            };
            (watch_spec::Spec::Fd(spec), args.registration)
        }
    };
    add::run(session, spec, &registration).await
}

fn timer(args: &Timer) -> Result<watch_spec::Spec, Failure> {
    let (schedule, zone_name) = (&args.schedule, args.zone.zone.as_deref());
    let after = schedule.after.map(timer_spec::Schedule::After);
    let every = schedule.every.map(timer_spec::Schedule::Every);
    let mut time_zone = String::new();
    let given = match (&schedule.at, &schedule.cron) {
        (Some(text), _) => {
            let zone = zone::zone(zone_name, &zone::zones())?;
            Some(timer::at_realtime(zone::time(text, &zone)?))
        }
        (None, Some(text)) => {
            let (given, zone, _) = timer::calendar(text, zone_name)?;
            time_zone = zone;
            Some(given)
        }
        (None, None) => after.or(every),
    };
    // One of them is there: the command line has been checked.
    let given = given.ok_or_else(|| Failure::plain("a schedule is needed"))?;
    let spec = args.pace.spec(given, time_zone);
    Ok(watch_spec::Spec::Timer(spec))
}

async fn read_pipe(session: &Session, args: ReadPipe) -> Made {
    let source = match pipe(session, &args.path).await? {
        Pipe::Slot(slot) => read_pipe_spec::Source::Slot(slot),
        Pipe::Path(path) => read_pipe_spec::Source::FifoPath(path),
    };
    let spec = ReadPipeSpec {
        source: Some(source),
        start_paused: args.start_paused,
    };
    Ok((watch_spec::Spec::ReadPipe(spec), args.registration))
}

async fn write_pipe(session: &Session, args: WritePipe) -> Made {
    let target = match pipe(session, &args.path).await? {
        Pipe::Slot(slot) => write_pipe_spec::Target::Slot(slot),
        Pipe::Path(path) => write_pipe_spec::Target::FifoPath(path),
    };
    let spec = WritePipeSpec {
        target: Some(target),
        water_marks: args.marks.water_marks(),
    };
    Ok((watch_spec::Spec::WritePipe(spec), args.registration))
}

enum Pipe {
    Slot(Bytes),
    Path(String),
}

async fn pipe(session: &Session, text: &str) -> Result<Pipe, Failure> {
    let usage = |error: String| Failure::new(text, error).code(2);
    if let Some(fd) = text.strip_prefix("fd:") {
        let fd = parse::fd_number(fd).map_err(usage)?;
        return Ok(Pipe::Slot(hand_over(session, fd).await?));
    }
    Ok(Pipe::Path(parse::absolute(text).map_err(usage)?))
}
