//! The foreground of a process that has a terminal: keys go to it as they are, and what its screen
//! shows comes back. However evloopctl leaves, the user's terminal is as it was.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::attached::{Foreground, Forget};
use super::exit::{exit_code, is_success};
use super::failure::{Failure, Outcome, complain};
use super::leaving::{Left, Process};
use super::session::Session;
use super::signals::{Signals, die_of};
use super::sink::Sink;
use super::transcript::OutputState;
use crate::proto::attach_terminal_request::Message as Asked;
use crate::proto::attach_terminal_response::Message as Told;
use crate::proto::event::Kind;
use crate::proto::watch::Status;
use crate::proto::watch_spec::Spec;
use crate::proto::{
    AttachTerminalRequest, AttachTerminalResponse, Exited, InputRefused, OpenTerminal, Screen,
    TerminalSize, Watch, exited,
};
use crate::screen::{Quiet, Screen as Tracked};
use keys::Detacher;
use local::Local;
use next::{Next, Writing, keys_of, listen, request, some, told, until};

mod keys;
mod local;
mod next;

pub(super) use keys::DetachKeys;
pub(super) use local::{is_foreground, is_one_terminal, local_size};

/// The input that may wait for the daemon, in reads of at most 4 KiB. More is dropped with a bell,
/// as a terminal drops what nobody reads.
const WAITING: usize = 64;
/// How long a key is held back that may be the first of those that leave the terminal.
const HELD: Duration = Duration::from_millis(500);
/// The most attempts in a row to open a broken view again, and the wait before each.
const ATTEMPTS: u32 = 20;
const AGAIN: Duration = Duration::from_millis(500);

/// The key that stops a job, unless the user has chosen another: Ctrl-Z.
const SUSPEND: u8 = 0x1a;
const BELL: &[u8] = b"\x07";

/// How the terminal of a process is attached.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) foreground: Foreground,
    pub(super) detach_keys: DetachKeys,
    /// Whether the process was started by this call: its output follows what the user's terminal
    /// shows. Otherwise the terminal is painted with the screen of the process's.
    pub(super) started: bool,
}

/// Why the view ends.
#[derive(Debug)]
enum Over {
    /// The process has ended.
    Done,
    /// The user has pressed the detach keys.
    Detached,
    /// The foreground is left for another reason.
    Left(Left),
}

/// Attaches the user's terminal to that of a process, to the process's end or until the user leaves.
/// Returns the process's exit code, or 0 if the user has left.
pub(super) async fn attached(session: &Session, watch: &Watch, options: Options) -> Outcome {
    let mut signals = Signals::new().map_err(|error| Failure::new("receiving signals", error))?;
    let name = shown_name(watch);
    let process = Process {
        session,
        name: &name,
        loop_ref: session.loop_ref.clone().unwrap_or_default(),
        watch_id: watch.watch_id,
    };
    let mut view = View::new(&process, &options)?;
    let state = OutputState::default();
    let over = tokio::select! {
        over = view.run() => over,
        left = process.relay(&mut signals, &state) => Ok(Over::Left(left)),
    };
    view.leave();
    let (exited, refused) = (view.exited.take(), view.refused.take());
    // The user's terminal is as it was before the daemon is told anything.
    drop(view);
    if let Some(InputRefused { bytes, reason }) = refused {
        complain(format_args!(
            "{name}: {bytes} bytes were not typed: {reason}"
        ));
    }
    match over? {
        Over::Detached => {
            complain(format_args!(
                "{name}: left; it runs on: `evloopctl attach {name}` joins it"
            ));
            Ok(0)
        }
        Over::Left(left) => {
            let on_hangup = options.foreground.on_hangup;
            Ok(die_of(process.leave(left, on_hangup).await))
        }
        Over::Done => {
            let unknown = || Failure::new(&name, "its exit status is not known");
            let exited = exited.ok_or_else(unknown)?;
            let forget = options.foreground.forget;
            if forget == Forget::Always || forget == Forget::Success && is_success(&exited) {
                process.forget().await;
            }
            if exited.status == Some(exited::Status::Signal(Signal::SIGINT as i32)) {
                return Ok(die_of(Signal::SIGINT));
            }
            exit_code(&name, &exited)
        }
    }
}

/// Returns whether a watch is a process with a terminal.
pub(super) fn is_of(watch: &Watch) -> bool {
    let spec = watch.spec.as_ref().and_then(|spec| spec.spec.as_ref());
    matches!(spec, Some(Spec::Process(process)) if process.terminal.is_some())
}

fn shown_name(watch: &Watch) -> String {
    match watch.name.as_str() {
        "" => format!("@{}", watch.watch_id),
        name => name.to_owned(),
    }
}

/// The view of a terminal.
struct View<'a> {
    process: &'a Process<'a>,
    options: &'a Options,
    /// The user's terminal; `None` if there is none, or evloopctl is not in its foreground.
    local: Option<Local>,
    stdout_is_terminal: bool,
    detacher: Detacher,
    requests: mpsc::Sender<AttachTerminalRequest>,
    answers: Option<Streaming<AttachTerminalResponse>>,
    /// The output, unless it is being written.
    sink: Option<Sink>,
    /// What the program has turned on in the user's terminal.
    modes: Tracked,
    /// Leaves out the program's questions, while another view answers them.
    quiet: Quiet,
    active: bool,
    painted: bool,
    exited: Option<Exited>,
    /// The last keys that were not typed.
    refused: Option<InputRefused>,
    failures: u32,
}

impl<'a> View<'a> {
    fn new(process: &'a Process<'a>, options: &'a Options) -> Result<Self, Failure> {
        let local = Local::open().ok().filter(Local::is_foreground);
        let sink = Sink::new(io::stdout()).map_err(|error| Failure::new("stdout", error))?;
        let (requests, _) = mpsc::channel(1);
        let modes = tracked(local.as_ref());
        Ok(Self {
            process,
            options,
            local,
            stdout_is_terminal: io::stdout().is_terminal(),
            detacher: Detacher::new(options.detach_keys.clone()),
            requests,
            answers: None,
            sink: Some(sink),
            modes,
            quiet: Quiet::new(),
            active: true,
            painted: options.started,
            exited: None,
            refused: None,
            failures: 0,
        })
    }

    /// Opens the view.
    async fn open(&mut self, from_start: bool) -> Result<(), tonic::Status> {
        let (requests, asked) = mpsc::channel(WAITING);
        let read_only = !self.options.foreground.input || self.local.is_none();
        let size = self.local.as_ref().and_then(Local::size);
        let open = OpenTerminal {
            r#loop: Some(self.process.loop_ref.clone()),
            watch: Some(super::parse::by_id(self.process.watch_id)),
            size: size.filter(|_| !read_only),
            read_only,
            from_start,
            ..OpenTerminal::default()
        };
        // The channel has room for it.
        let _ = requests.try_send(request(Asked::Open(open)));
        let mut processes = self.process.session.processes();
        let answers = processes
            .attach_terminal(ReceiverStream::new(asked))
            .await?;
        (self.requests, self.answers) = (requests, Some(answers.into_inner()));
        Ok(())
    }

    /// Runs until the process ends or the user leaves.
    async fn run(&mut self) -> Result<Over, Failure> {
        let mut window = listen(SignalKind::window_change())?;
        let mut continued = listen(SignalKind::from_raw(Signal::SIGCONT as i32))?;
        if let Err(status) = self.open(self.options.started).await {
            return Err(Failure::rpc(&status));
        }
        if self.options.foreground.input
            && let Some(local) = &mut self.local
        {
            local
                .make_raw()
                .map_err(|error| Failure::new("the terminal", error))?;
        }
        let mut writing: Option<Writing> = None;
        let mut held_until: Option<Instant> = None;
        loop {
            let reads = self.options.foreground.input;
            let next = tokio::select! {
                keys = keys_of(self.local.as_ref()), if reads => Next::Keys(keys),
                () = until(held_until) => Next::Release,
                (sink, written) = some(&mut writing) => Next::Written(sink, written),
                told = told(&mut self.answers), if writing.is_none() => Next::Told(told),
                _ = window.recv() => Next::Resized,
                _ = continued.recv() => Next::Continued,
            };
            match next {
                // The terminal is closed.
                Next::Keys(Err(_)) => return Ok(Over::Left(Left::HungUp)),
                Next::Keys(Ok(keys)) => match self.detacher.feed(&keys) {
                    Ok(keys) => self.typed(keys).await?,
                    Err(before) => {
                        self.send(before);
                        return Ok(Over::Detached);
                    }
                },
                Next::Release => {
                    let held = self.detacher.release();
                    self.send(held);
                }
                Next::Written(sink, written) => {
                    self.sink = Some(sink);
                    writing = None;
                    if let Err(error) = written {
                        let failure = Failure::output(&error);
                        return match failure.gone {
                            Some(gone) => Ok(Over::Left(gone.into())),
                            None => Err(failure),
                        };
                    }
                }
                Next::Told(Ok(Some(answer))) => match answer.message {
                    Some(Told::Goodbye(goodbye)) => {
                        return super::feed::cut_short(&goodbye).map_or(Ok(Over::Done), Err);
                    }
                    Some(told) => writing = self.show(told),
                    None => {}
                },
                Next::Told(Ok(None)) => self.reopen(None).await?,
                Next::Told(Err(status)) => self.reopen(Some(status)).await?,
                Next::Resized => self.resized(),
                Next::Continued => self.continued().await?,
            }
            held_until = match (self.detacher.is_holding(), held_until) {
                (false, _) => None,
                (true, Some(at)) => Some(at),
                (true, None) => Some(Instant::now() + HELD),
            };
        }
    }

    /// Takes an answer, and returns the output that it brings while it is written.
    fn show(&mut self, told: Told) -> Option<Writing> {
        let mut out = Vec::new();
        match told {
            Told::Batch(batch) => {
                for event in batch.events {
                    match event.kind {
                        Some(Kind::Data(data)) => {
                            self.modes.feed(&data.data);
                            if self.active {
                                out.push(data.data);
                            } else {
                                out.push(self.quiet.filter(&data.data).into());
                            }
                        }
                        Some(Kind::Exited(exited)) => self.exited = Some(exited),
                        _ => {}
                    }
                }
            }
            Told::Screen(screen) => {
                out.push(self.painted_with(&screen));
                self.exited = screen.exited.or(self.exited.take());
            }
            Told::State(state) => self.active = state.active,
            Told::Refused(refused) => self.refused(refused),
            Told::Header(_) | Told::Goodbye(_) => {}
        }
        self.failures = 0;
        out.retain(|piece: &Bytes| !piece.is_empty());
        if out.is_empty() {
            return None;
        }
        let mut sink = self.sink.take()?;
        Some(Box::pin(async move {
            let written = sink.write(out, || ()).await;
            (sink, written)
        }))
    }

    /// Returns the bytes that make the user's terminal show the screen.
    fn painted_with(&mut self, screen: &Screen) -> Bytes {
        let mut out = self.modes.undo();
        if !self.painted
            && let Some(size) = self.local.as_ref().and_then(Local::size)
        {
            // What the terminal has shown until now goes to where it scrolls to.
            out.extend((0..size.rows).flat_map(|_| *b"\r\n"));
        }
        out.extend_from_slice(b"\x1b[H\x1b[2J");
        out.extend_from_slice(&screen.restore);
        (self.painted, self.modes) = (true, tracked(self.local.as_ref()));
        self.modes.feed(&screen.restore);
        out.into()
    }

    /// Passes keys on. Ctrl-Z stops evloopctl, where it would stop the program in a shell.
    async fn typed(&mut self, keys: Vec<u8>) -> Result<(), Failure> {
        let Some(at) = keys.iter().position(|key| *key == SUSPEND) else {
            self.send(keys);
            return Ok(());
        };
        let (before, rest) = keys.split_at(at);
        self.send(before.to_vec());
        if self.suspends().await {
            self.leave();
            if let Some(local) = &mut self.local {
                local.restore();
                let _ = local.stop_job();
            }
            return Ok(());
        }
        self.send(rest.to_vec());
        Ok(())
    }

    /// Returns whether Ctrl-Z is to stop evloopctl: the kernel never stops the leader of the
    /// process's session by it, because no shell could continue it.
    async fn suspends(&self) -> bool {
        let Some(watch) = self.process.look_up().await else {
            return false;
        };
        match watch.status {
            Some(Status::Process(process)) => process.terminal.is_some_and(|t| t.suspends_leader),
            _ => false,
        }
    }

    fn send(&mut self, keys: Vec<u8>) {
        if keys.is_empty() {
            return;
        }
        let full = self
            .requests
            .try_send(request(Asked::Input(keys.into())))
            .is_err();
        if full {
            self.bell();
        }
    }

    fn bell(&self) {
        if self.stdout_is_terminal {
            let _ = rustix::io::write(io::stdout(), BELL);
        }
    }

    /// Some keys were not typed. The user hears it at once, and reads it after leaving.
    fn refused(&mut self, refused: InputRefused) {
        if self.exited.is_none() {
            self.bell();
            self.refused = Some(refused);
        }
    }

    fn resized(&mut self) {
        if let Some(size) = self.local.as_ref().and_then(Local::size)
            && self.options.foreground.input
        {
            // If it does not fit into the channel, the daemon does not answer; the view that is
            // opened again has the new size.
            let _ = self.requests.try_send(request(Asked::Size(size)));
            let [rows, columns] =
                [size.rows, size.columns].map(|n| u16::try_from(n).unwrap_or(1000));
            self.modes.resize(rows, columns);
        }
    }

    /// Goes on after evloopctl was stopped: the screen is painted anew.
    async fn continued(&mut self) -> Result<(), Failure> {
        let Some(local) = &mut self.local else {
            return Ok(());
        };
        if local.is_foreground() && self.options.foreground.input {
            local.restore();
            local
                .make_raw()
                .map_err(|error| Failure::new("the terminal", error))?;
        }
        self.painted = false;
        self.reopen(None).await
    }

    /// Opens the view again.
    async fn reopen(&mut self, why: Option<tonic::Status>) -> Result<(), Failure> {
        let mut why = why;
        self.answers = None;
        loop {
            if let Some(status) = &why {
                let failure = Failure::rpc(status);
                if !failure.lost || self.failures >= ATTEMPTS {
                    return Err(failure);
                }
                self.failures += 1;
                sleep(AGAIN).await;
            }
            match self.open(false).await {
                Ok(()) => return Ok(()),
                Err(status) => why = Some(status),
            }
        }
    }

    /// Undoes what the program has turned on in the user's terminal.
    fn leave(&mut self) {
        if self.stdout_is_terminal {
            let undo = self.modes.undo();
            if !undo.is_empty() {
                let _ = rustix::io::write(io::stdout(), &undo);
            }
        }
        self.modes = tracked(self.local.as_ref());
    }
}

/// Returns what follows the modes of the user's terminal.
fn tracked(local: Option<&Local>) -> Tracked {
    let size = local.and_then(Local::size).unwrap_or(TerminalSize {
        rows: 24,
        columns: 80,
    });
    let [rows, columns] = [size.rows, size.columns].map(|n| u16::try_from(n).unwrap_or(u16::MAX));
    Tracked::new(rows, columns)
}
