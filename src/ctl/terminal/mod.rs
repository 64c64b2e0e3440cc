//! The foreground of a process that has a terminal: keys go to it as they are, and what its screen
//! shows comes back. However evloopctl leaves, the user's terminal is as it was.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
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
use super::units::counted;
use crate::proto::attach_terminal_request::Message as Asked;
use crate::proto::attach_terminal_response::Message as Told;
use crate::proto::event::Kind;
use crate::proto::watch::Status;
use crate::proto::watch_spec::Spec;
use crate::proto::{
    AttachTerminalRequest, AttachTerminalResponse, Exited, InputRefused, OpenTerminal, Watch,
    exited,
};
use display::Display;
use keys::Detacher;
use local::Local;
use next::{Next, Opening, Writing, keys_of, listen, request, some, told, until};

mod display;
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

/// How long Ctrl-Z waits for the daemon to say what it means; after that the program gets it.
const LOOK_UP: Duration = Duration::from_millis(500);

/// How long a terminal may take for the output that is under way when evloopctl leaves it.
const WRITE: Duration = Duration::from_secs(1);

/// The key that stops a job, unless the user has chosen another: Ctrl-Z.
const SUSPEND: u8 = 0x1a;
/// Ctrl-C, which leaves if no key is for the program.
const INTERRUPT: u8 = 0x03;

/// How the terminal of a process is attached.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) foreground: Foreground,
    pub(super) detach_keys: DetachKeys,
    /// Whether the process was started by this call: its output follows what the user's terminal
    /// shows. Otherwise the terminal is painted with the screen of the process's.
    pub(super) started: bool,
    /// Whether the user only looks: keys leave, and none is passed on.
    pub(super) looks: bool,
}

impl Options {
    /// Whether the user's keys are read.
    const fn reads(&self) -> bool {
        self.foreground.input || self.looks
    }
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
    view.finish_writing().await;
    view.display.leave();
    if !matches!(over, Ok(Over::Done)) {
        view.display.end_line();
    }
    let (exited, connected) = (view.exited.take(), view.answers.is_some());
    let refused = view.refused.take();
    // The user's terminal is as it was before the daemon is told anything.
    drop(view);
    if let Some(InputRefused { bytes, reason }) = refused {
        complain(format_args!(
            "{name}: {} not typed: {reason}",
            counted(bytes, "byte was", "bytes were")
        ));
    }
    match over? {
        Over::Detached => {
            let what = match connected {
                true => "left; it runs on",
                false => "left; the daemon is not there, and whether it runs on is not known",
            };
            complain(format_args!(
                "{name}: {what}: `evloopctl attach {name}` joins it"
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
    display: Display,
    detacher: Detacher,
    requests: mpsc::Sender<AttachTerminalRequest>,
    answers: Option<Streaming<AttachTerminalResponse>>,
    /// The output, unless it is being written.
    sink: Option<Sink>,
    writing: Option<Writing>,
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
        let display = Display::new(local.as_ref().and_then(Local::size), options.started);
        Ok(Self {
            process,
            options,
            local,
            display,
            detacher: Detacher::new(options.detach_keys.clone()),
            requests,
            answers: None,
            sink: Some(sink),
            writing: None,
            exited: None,
            refused: None,
            failures: 0,
        })
    }

    /// Opens the view, after that time. Until it is open, what is sent waits.
    fn open(&mut self, from_start: bool, after: Duration) -> Opening {
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
        (self.requests, self.answers) = (requests, None);
        let mut processes = self.process.session.processes();
        Box::pin(async move {
            sleep(after).await;
            let answers = processes.attach_terminal(ReceiverStream::new(asked));
            Ok(answers.await?.into_inner())
        })
    }

    /// Opens the view again, if that can help.
    fn reopen(&mut self, status: &tonic::Status) -> Result<Opening, Failure> {
        let failure = Failure::rpc(status);
        if !failure.lost || self.failures >= ATTEMPTS {
            return Err(failure);
        }
        self.failures += 1;
        Ok(self.open(false, AGAIN))
    }

    /// Runs until the process ends or the user leaves.
    async fn run(&mut self) -> Result<Over, Failure> {
        let mut window = listen(SignalKind::window_change())?;
        let mut continued = listen(SignalKind::from_raw(Signal::SIGCONT as i32))?;
        let first = self.open(self.options.started, Duration::ZERO).await;
        self.answers = Some(first.map_err(|status| Failure::rpc(&status))?);
        if self.options.reads()
            && let Some(local) = &mut self.local
        {
            local
                .make_raw()
                .map_err(|error| Failure::new("the terminal", error))?;
        }
        self.display.enter();
        let mut opening: Option<Opening> = None;
        let mut held_until: Option<Instant> = None;
        loop {
            let reads = self.options.reads();
            let next = tokio::select! {
                keys = keys_of(self.local.as_ref()), if reads => Next::Keys(keys),
                () = until(held_until) => Next::Release,
                (sink, written) = some(&mut self.writing) => Next::Written(sink, written),
                opened = some(&mut opening) => Next::Opened(opened),
                told = told(&mut self.answers), if self.writing.is_none() => Next::Told(told),
                _ = window.recv() => Next::Resized,
                _ = continued.recv() => Next::Continued,
            };
            match next {
                // The terminal is closed.
                Next::Keys(Err(_)) => return Ok(Over::Left(Left::HungUp)),
                Next::Keys(Ok(keys)) if self.options.looks && keys.contains(&INTERRUPT) => {
                    return Ok(Over::Detached);
                }
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
                    Some(told) => self.writing = self.show(told),
                    None => {}
                },
                Next::Opened(Ok(answers)) => self.answers = Some(answers),
                Next::Told(Ok(None)) => opening = Some(self.open(false, Duration::ZERO)),
                Next::Told(Err(status)) | Next::Opened(Err(status)) => {
                    opening = Some(self.reopen(&status)?);
                }
                Next::Resized => self.resized(),
                Next::Continued => opening = self.continued()?.or(opening),
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
                        Some(Kind::Data(data)) => out.push(self.display.output(data.data)),
                        Some(Kind::Exited(exited)) => self.exited = Some(exited),
                        _ => {}
                    }
                }
            }
            Told::Screen(screen) => {
                let size = self.local.as_ref().and_then(Local::size);
                out.push(self.display.paint(&screen.restore, size));
                self.exited = screen.exited.or(self.exited.take());
            }
            Told::State(state) => self.display.set_active(state.active),
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

    /// Waits until what was to be shown has been written: what undoes it must come after it.
    async fn finish_writing(&mut self) {
        if self.writing.is_some()
            && let Ok((sink, _)) = timeout(WRITE, some(&mut self.writing)).await
        {
            self.sink = Some(sink);
        }
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
            self.finish_writing().await;
            self.display.leave();
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
        if self.options.looks {
            return true;
        }
        // Until then no key is read, not even those that leave.
        let Ok(Some(watch)) = timeout(LOOK_UP, self.process.look_up()).await else {
            return false;
        };
        match watch.status {
            Some(Status::Process(process)) => process.terminal.is_some_and(|t| t.suspends_leader),
            _ => false,
        }
    }

    fn send(&mut self, keys: Vec<u8>) {
        if keys.is_empty() || self.options.looks {
            return;
        }
        let full = self
            .requests
            .try_send(request(Asked::Input(keys.into())))
            .is_err();
        if full {
            self.display.ring();
        }
    }

    /// Some keys were not typed. The user hears it at once, and reads it after leaving.
    fn refused(&mut self, refused: InputRefused) {
        if self.exited.is_none() {
            self.display.ring();
            self.refused = Some(refused);
        }
    }

    fn resized(&mut self) {
        if let Some(size) = self.local.as_ref().and_then(Local::size) {
            if self.options.foreground.input {
                // If it does not fit into the channel, the daemon does not answer; the view that is
                // opened again has the new size.
                let _ = self.requests.try_send(request(Asked::Size(size)));
            }
            self.display.resize(size);
        }
    }

    /// Goes on after evloopctl was stopped: the screen is painted anew.
    fn continued(&mut self) -> Result<Option<Opening>, Failure> {
        let Some(local) = &mut self.local else {
            return Ok(None);
        };
        if local.is_foreground() && self.options.reads() {
            local.restore();
            local
                .make_raw()
                .map_err(|error| Failure::new("the terminal", error))?;
        }
        let size = self.local.as_ref().and_then(Local::size);
        self.display = Display::new(size, false);
        self.display.enter();
        Ok(Some(self.open(false, Duration::ZERO)))
    }
}
