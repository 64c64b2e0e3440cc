//! AttachTerminal: a view of a process's terminal.

use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::spec;
use super::stream::EventStream;
use super::wire::{AttachTerminalResponse, Streamed};
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::journal::{Filter, Start};
use crate::proto::attach_terminal_request::Message;
use crate::proto::{self, AttachTerminalRequest, RunHeader};
use crate::terminals::{OpenView, Shot};

/// The messages that wait for the connection.
pub(super) const MESSAGES: usize = 2;
/// The most bytes of one input.
const INPUT_MAX: usize = 64 * 1024;

type Answer = Result<AttachTerminalResponse, Status>;
/// What became of an input; if it was not taken, the number of bytes, and why.
type Typed = Result<(), (usize, Error)>;
type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One AttachTerminal call.
pub(super) struct View {
    pub(super) watch_id: u64,
    pub(super) read_only: bool,
    /// No screen comes before the first event.
    pub(super) from_start: bool,
    pub(super) open: OpenView,
    pub(super) events: EventStream<RunHeader>,
    pub(super) requests: Streaming<AttachTerminalRequest>,
}

/// What comes next in a call.
enum Next {
    Request(Option<AttachTerminalRequest>),
    /// The terminal has taken the input, or not.
    Taken(Typed),
    /// The views have changed.
    Changed,
    Shot(Shot),
    Event(Option<Result<Streamed<RunHeader>, Status>>),
    /// The client has gone.
    Gone,
}

impl View {
    /// Serves the call until it ends.
    pub(super) async fn serve(mut self, answers: mpsc::Sender<Answer>) {
        let mut asks = true;
        // The input that the terminal is taking; the next request waits until it has.
        let mut input: Option<Task<Typed>> = None;
        // The screen that is awaited; the events wait for it.
        let mut shooting: Option<Task<Shot>> = None;
        let mut told = None;
        loop {
            let idle = input.is_none();
            let next = tokio::select! {
                biased;
                () = answers.closed() => Next::Gone,
                taken = some(&mut input) => Next::Taken(taken),
                request = self.requests.message(), if asks && idle => {
                    // A broken stream of requests is noticed by the answers too.
                    Next::Request(request.unwrap_or_default())
                }
                () = self.open.changed(), if told.is_some() => Next::Changed,
                shot = some(&mut shooting) => Next::Shot(shot),
                event = poll_fn(|cx| self.events.poll_item(cx)), if shooting.is_none() => {
                    Next::Event(event)
                }
            };
            let mut out = Vec::new();
            match next {
                Next::Gone => return,
                Next::Request(None) => asks = false,
                Next::Request(Some(request)) => match self.take(request) {
                    Ok(task) => input = task,
                    Err(error) => out.push(Err(error.into())),
                },
                Next::Taken(taken) => {
                    input = None;
                    match taken {
                        // What is typed after the process's end is for nobody.
                        Ok(()) | Err((_, Error::WatchClosed { .. })) => {}
                        Err((bytes, error)) => {
                            let refused = proto::InputRefused {
                                bytes: bytes as u64,
                                reason: error.to_string(),
                            };
                            out.push(Ok(Streamed::Refused(Box::new(refused))));
                        }
                    }
                }
                Next::Changed => {}
                Next::Shot(shot) => {
                    shooting = None;
                    match self.show(shot) {
                        Ok(screen) => out.push(Ok(screen)),
                        Err(error) => out.push(Err(error.into())),
                    }
                }
                Next::Event(None) => return,
                Next::Event(Some(event)) => {
                    let gap = matches!(&event, Ok(Streamed::Batch(read)) if !read.gaps.is_empty());
                    let begins = matches!(event, Ok(Streamed::Header(_))) && !self.from_start;
                    if gap || begins {
                        let terminal = self.open.terminal().clone();
                        shooting = Some(Box::pin(async move { terminal.shot().await }));
                    }
                    out.push(event);
                    told = told.or(Some((false, 0)));
                }
            }
            if told.is_some() {
                let state = self.open.state();
                if told.replace(state) != Some(state) {
                    let (active, views) = state;
                    let views = u32::try_from(views).unwrap_or(u32::MAX);
                    out.push(Ok(Streamed::View(proto::ViewState { active, views })));
                }
            }
            for answer in out {
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        }
    }

    /// Begins to carry out a request. Returns what is left to do, if the next one has to wait.
    fn take(&mut self, request: AttachTerminalRequest) -> Result<Option<Task<Typed>>> {
        match request.message {
            Some(Message::Input(_) | Message::Size(_)) if self.read_only => {
                Err(Error::wrong_state("the view is read-only"))
            }
            Some(Message::Input(input)) => {
                if input.len() > INPUT_MAX {
                    return Err(Error::invalid("input", "must be at most 64 KiB"));
                }
                self.open.typed();
                let terminal = Arc::clone(self.open.terminal());
                Ok(Some(Box::pin(async move { terminal.take(input).await })))
            }
            Some(Message::Size(size)) => {
                self.open.resize(spec::terminal_size("size", size)?);
                Ok(None)
            }
            Some(Message::Open(_)) => {
                let first = "must be set in the first message only";
                Err(Error::invalid("open", first))
            }
            None => Err(Error::invalid("message", "must be input or size")),
        }
    }

    /// Goes on after what the screen shows, and returns the screen.
    fn show(&mut self, shot: Shot) -> Result<AttachTerminalResponse> {
        let on = self.open.terminal().on();
        // What was sent already is older than the screen.
        let seq = shot.shown.max(self.events.sent());
        let cursor = Cursor { epoch: None, seq };
        let start = Start::After { cursor, skip: true };
        let journal = on.journal();
        let reader = journal.reader(start, Filter::life_of(self.watch_id))?;
        let through = Some(journal.cursor(seq).into());
        self.events.go_on_with(reader);
        Ok(Streamed::Screen(Box::new(proto::Screen {
            restore: shot.restore,
            size: Some(shot.size),
            through,
            exited: shot.exited,
        })))
    }
}

async fn some<T>(task: &mut Option<Task<T>>) -> T {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}
