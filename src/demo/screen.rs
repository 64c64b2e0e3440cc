//! The demo's output: rows of a time, a name and a text.

use std::collections::HashMap;
use std::io::Write as _;

use anstyle::{AnsiColor, Effects, Style};

use super::{During as _, Failure};
use crate::config::signal_name;
use crate::proto::event::Kind;
use crate::proto::{
    CloseReason, Closed, Event, GetServerInfoResponse, LoopState, Ready, SocketAddress,
    socket_address,
};
use crate::text;

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().effects(Effects::BOLD);
pub(super) const DIM: Style = Style::new().effects(Effects::DIMMED);
pub(super) const GOOD: Style = AnsiColor::Green.on_default().effects(Effects::BOLD);
pub(super) const BAD: Style = AnsiColor::Red.on_default();
const NAME: Style = AnsiColor::Cyan.on_default();

/// The column at which a row of several events is broken.
const COLUMNS: usize = 100;
/// The longest text of other processes that is shown, in bytes.
const SHOWN_MAX: usize = 512;
/// The columns before the first event of a row.
const MARGIN: usize = 30;

/// The terminal. All rows show the time on the monotonic clock, as the events do.
#[derive(Debug)]
pub(super) struct Screen {
    start_ns: u64,
}

impl Screen {
    /// Makes a screen on which now is second 0.
    pub(super) fn new() -> Self {
        Self {
            start_ns: monotonic_ns(),
        }
    }

    pub(super) fn opening(&self, info: &GetServerInfoResponse) -> Result<(), Failure> {
        let (version, pid, socket) = (&info.version, info.pid, &info.socket);
        line(&format!(
            "{BOLD}evloopd {version}{BOLD:#}, pid {pid}, for this demo only: {DIM}{socket}{DIM:#}"
        ))
    }

    /// Shows a headline and an explanation.
    pub(super) fn act(&self, headline: &str, about: &[&str]) -> Result<(), Failure> {
        let mut text = format!("\n{BOLD}{headline}{BOLD:#}\n");
        for about in about {
            text += &format!("{DIM}{about}{DIM:#}\n");
        }
        line(&text)
    }

    /// Shows a row with the present time.
    pub(super) fn row(&self, who: &str, style: Style, what: &str) -> Result<(), Failure> {
        let time = self.time(monotonic_ns());
        let what = text::escaped(what, SHOWN_MAX);
        line(&format!(
            "{time}  {NAME}{who:8}{NAME:#} {style}{what}{style:#}"
        ))
    }

    fn time(&self, monotonic_ns: u64) -> String {
        let millis = monotonic_ns.saturating_sub(self.start_ns) / 1_000_000;
        let time = format!("{:3}.{:03}", millis / 1000, millis % 1000);
        format!("{DIM}{time} s{DIM:#}")
    }
}

/// The rows of one loop's events. Consecutive events of one watch share a row.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    screen: &'a Screen,
    names: HashMap<u64, String>,
    watch: Option<u64>,
    column: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(screen: &'a Screen, title: &str) -> Result<Self, Failure> {
        let heads = format!("{:9}  {:>3}  {:11}", title, "seq", "watch");
        line(&format!("{BOLD}{heads}{BOLD:#}{BOLD}what{BOLD:#}"))?;
        Ok(Self {
            screen,
            names: HashMap::from([(0, "(loop)".to_owned())]),
            watch: None,
            column: 0,
        })
    }

    /// Shows an event.
    pub(super) fn event(&mut self, event: &Event) -> Result<(), Failure> {
        let id = event.watch_id;
        if let Some(Kind::Added(added)) = &event.kind {
            let name = match added.name.as_str() {
                "" => "accepted",
                name => name,
            };
            let name = text::escaped(name, SHOWN_MAX).to_string();
            self.names.insert(id, name);
        }
        let (what, style) = describe(event);
        let what = text::escaped(what, SHOWN_MAX).to_string();
        let fits = self.column + what.chars().count() < COLUMNS;
        if self.watch == Some(id) && fits {
            print(&format!("{DIM}, {DIM:#}{style}{what}{style:#}"))?;
        } else {
            self.end()?;
            let time = self.screen.time(event.monotonic_ns);
            let name = self.names.get(&id).map_or("?", String::as_str);
            let seq = event.seq;
            print(&format!(
                "{time}  {DIM}{seq:3}{DIM:#}  {NAME}{name:11}{NAME:#}{style}{what}{style:#}"
            ))?;
            self.column = MARGIN;
        }
        self.watch = Some(id);
        self.column += what.chars().count() + 2;
        Ok(())
    }

    /// Ends the present row, if there is one.
    fn end(&mut self) -> Result<(), Failure> {
        match self.watch.take() {
            Some(_) => line(""),
            None => Ok(()),
        }
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        // The row is ended, so that the text of a failure begins on a new line.
        let _ = self.end();
    }
}

/// Prints one line of text.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .during("write")
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Describes an event in a few words. Events that report no activity of a source are dimmed.
fn describe(event: &Event) -> (String, Style) {
    let Some(kind) = &event.kind else {
        return ("?".to_owned(), DIM);
    };
    let books = |text: &str| (text.to_owned(), DIM);
    let fact = |text: String| (text, PLAIN);
    match kind {
        Kind::Added(_) => books("added"),
        Kind::Removed(_) => books("removed"),
        Kind::Closed(closed) => (ending(closed), DIM),
        Kind::LoopStateChanged(change) => books(match change.state() {
            LoopState::Running => "running",
            LoopState::Stopped => "stopped",
            LoopState::Closed => "closed",
            _ => "created",
        }),
        Kind::Ready(ready) => fact(directions(*ready)),
        Kind::TimerFired(fired) => fact(format!("fired {} µs late", fired.late_ns / 1000)),
        Kind::Data(data) => fact(format!("{:?}", String::from_utf8_lossy(&data.data))),
        Kind::Eof(eof) => fact(format!("end after {} bytes", eof.offset)),
        Kind::Connected(_) => fact("connected".to_owned()),
        Kind::Accepted(accepted) => fact(format!("accepted {}", address(accepted.peer.as_ref()))),
        Kind::Signal(signal) => {
            let name = signal_name(signal.number).unwrap_or_default();
            fact(format!("{name} from pid {}", signal.sender_pid))
        }
        Kind::Posted(posted) => {
            let payload = String::from_utf8_lossy(&posted.payload);
            fact(format!("posted {}: {payload:?}", posted.topic))
        }
        other => fact(crate::kinds::event_kind_name(other).to_owned()),
    }
}

fn ending(closed: &Closed) -> String {
    match closed.reason() {
        CloseReason::Completed | CloseReason::Removed => "closed".to_owned(),
        reason => format!("closed: {reason:?}"),
    }
}

fn directions(ready: Ready) -> String {
    let words = [
        (ready.readable, "readable"),
        (ready.writable, "writable"),
        (ready.half_closed && !ready.hangup, "half-closed"),
        (ready.hangup, "hung up"),
        (ready.error, "failed"),
    ];
    let words = words
        .into_iter()
        .filter_map(|(is, word)| is.then_some(word));
    words.collect::<Vec<_>>().join(" ")
}

fn address(address: Option<&SocketAddress>) -> String {
    match address.and_then(|a| a.address.as_ref()) {
        Some(socket_address::Address::Inet(inet)) => format!("{}:{}", inet.ip, inet.port),
        _ => "a peer".to_owned(),
    }
}
