//! Renders an event as one line for people: time, sequence number, watch, and what happened.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anstyle::Style;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::json::word;
use super::style::{BAD, DIM, GOOD, NAME, NOTICE, PLAIN, printable};
use super::units::{counted, span};
use crate::config;
use crate::kinds::with_event;
use crate::proto::event::Kind;
use crate::proto::{
    self, CloseReason, Event, StreamEndReason, UpdateCause, exited, socket_address, unix_address,
};

mod network;
mod paths;

pub(super) use network::{group_status, tls_session};

/// The largest number of bytes of data in an event's line; `logs` prints all bytes.
const PREVIEW_BYTES: usize = 60;
/// The largest number of watches whose names are kept; further watches are shown by their ids.
const NAMES_MAX: usize = 65_536;

/// Turns events into lines. It learns the names of watches from their `Added` events.
#[derive(Debug)]
pub(super) struct Renderer {
    names: BTreeMap<u64, String>,
    zone: TimeZone,
    /// The day of the line before; of the first line, today. Lines tell the time without the day.
    day: Date,
}

impl Renderer {
    pub(super) fn new(zone: TimeZone) -> Self {
        let today = Timestamp::now().to_zoned_datetime(zone.clone()).date();
        Self::on(today, zone)
    }

    /// As [`new`](Self::new), as if that day were today.
    fn on(day: Date, zone: TimeZone) -> Self {
        let names = BTreeMap::new();
        Self { names, zone, day }
    }

    /// Remembers a watch's name.
    pub(super) fn learn(&mut self, watch_id: u64, name: &str) {
        if !name.is_empty() && self.names.len() < NAMES_MAX {
            self.names.insert(watch_id, name.to_owned());
        }
    }

    /// Learns from an event that is not shown.
    pub(super) fn skip(&mut self, event: &Event) {
        match &event.kind {
            Some(Kind::Added(added)) => self.learn(event.watch_id, &added.name),
            Some(Kind::Removed(_)) => {
                self.names.remove(&event.watch_id);
            }
            _ => {}
        }
    }

    /// Returns an event's line without a newline. If the event is of another day than the line before, or the first line not
    /// of today, a line with that day comes before it.
    pub(super) fn line(&mut self, event: &Event) -> String {
        if matches!(event.kind, Some(Kind::Added(_))) {
            self.skip(event);
        }
        let watch = match (event.watch_id, self.names.get(&event.watch_id)) {
            (0, _) => "loop".to_owned(),
            (_, Some(name)) => printable(name),
            (id, None) => format!("@{id}"),
        };
        if matches!(event.kind, Some(Kind::Removed(_))) {
            self.skip(event);
        }
        let (day, time) = self.day_and_time(event.realtime_ns);
        let (what, style) = event.kind.as_ref().map_or(
            ("unknown".to_owned(), PLAIN),
            |kind| with_event!(kind, event => event.words()),
        );
        let seq = event.seq;
        format!(
            "{day}{DIM}{time} {seq:>6}{DIM:#}  {NAME}{watch:<14}{NAME:#}  {style}{what}{style:#}"
        )
    }

    /// Returns the line with the day, which is empty if the day is that of the line before, and the time of day.
    fn day_and_time(&mut self, realtime_ns: u64) -> (String, String) {
        let Ok(time) = Timestamp::from_nanosecond(i128::from(realtime_ns)) else {
            return (String::new(), realtime_ns.to_string());
        };
        let time = time.to_zoned_datetime(self.zone.clone());
        let mut day = String::new();
        if time.date() != self.day {
            self.day = time.date();
            day = format!("{DIM}-- {} --{DIM:#}\n", time.strftime("%a %Y-%m-%d"));
        }
        (day, time.strftime("%H:%M:%S%.3f").to_string())
    }
}

/// Describes an event in a few words, with their style. Each message of `Event.kind` has an implementation.
pub(super) trait Words {
    fn words(&self) -> (String, Style);
}

impl Words for proto::Added {
    fn words(&self) -> (String, Style) {
        let kind = &self.watch_kind;
        let text = match self.parent_watch_id {
            0 => format!("added {kind}"),
            parent => format!("added {kind} of listener {parent}"),
        };
        (text, GOOD)
    }
}

/// Returns the error with which a watch closed, and the attempts that have failed.
pub(super) fn closed_with(closed: &proto::Closed) -> String {
    let mut told = Vec::new();
    told.extend(closed.error.as_ref().map(system_error));
    for attempt in &closed.failed_attempts {
        let address = address_or_unnamed(attempt.address.as_ref());
        let why = attempt.error.as_ref().map_or("", |error| &error.name);
        told.push(format!("{address}: {why}"));
    }
    told.join(", ")
}

impl Words for proto::Closed {
    fn words(&self) -> (String, Style) {
        let mut text = format!(
            "closed: {}",
            word(self.reason().as_str_name(), "CLOSE_REASON_")
        );
        let error = closed_with(self);
        if !error.is_empty() {
            let _ = write!(text, ", {error}");
        }
        if self.unsent_bytes > 0 {
            let _ = write!(text, ", {} unsent", bytes(self.unsent_bytes));
        }
        if let Some(waiting @ 1..) = self.unaccepted_connections {
            let s = if waiting == 1 { "" } else { "s" };
            let _ = write!(text, ", {waiting} connection{s} not accepted");
        }
        let style = if self.reason() == CloseReason::Error {
            BAD
        } else {
            DIM
        };
        (text, style)
    }
}

impl Words for proto::Removed {
    fn words(&self) -> (String, Style) {
        ("removed".to_owned(), DIM)
    }
}

impl Words for proto::Ready {
    fn words(&self) -> (String, Style) {
        let all = [
            (self.readable, "readable"),
            (self.writable, "writable"),
            (self.half_closed, "half-closed"),
            (self.hangup, "hangup"),
            (self.error, "error"),
            // The interest that ended with this event, unless a condition above says it too.
            (self.read_fired && !self.readable, "(to read)"),
            (self.write_fired && !self.writable, "(to write)"),
        ];
        let set: Vec<_> = all
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect();
        (format!("ready: {}", set.join(" ")), PLAIN)
    }
}

impl Words for proto::TimerFired {
    fn words(&self) -> (String, Style) {
        let late = Duration::from_nanos(self.late_ns).as_secs_f64() * 1e3;
        let mut text = format!("fired, tick {}, {late:.2} ms late", self.tick);
        if self.missed > 0 {
            let least = if self.missed_at_least {
                "at least "
            } else {
                ""
            };
            let _ = write!(text, ", {least}{} missed", self.missed);
        }
        if self.caught_up {
            text.push_str(", caught up");
        }
        (text, PLAIN)
    }
}

impl Words for proto::Started {
    fn words(&self) -> (String, Style) {
        (format!("started, pid {}", self.pid), GOOD)
    }
}

impl Words for proto::Resized {
    fn words(&self) -> (String, Style) {
        let size = self.size.unwrap_or_default();
        (format!("resized to {}x{}", size.columns, size.rows), DIM)
    }
}

impl Words for proto::Data {
    fn words(&self) -> (String, Style) {
        let stream = word(self.stream().as_str_name(), "STREAM_");
        let length = bytes(self.data.len() as u64);
        let text = format!("{stream} {length}: {}", preview(&self.data));
        (text, PLAIN)
    }
}

impl Words for proto::StreamEnd {
    fn words(&self) -> (String, Style) {
        let stream = word(self.stream().as_str_name(), "STREAM_");
        let reason = word(self.reason().as_str_name(), "STREAM_END_REASON_");
        let mut text = format!("{stream} ended after {}: {reason}", bytes(self.offset));
        if let Some(error) = &self.error {
            let _ = write!(text, ", {}", system_error(error));
        }
        if self.flushes > 0 {
            let times = counted(self.flushes, "time", "times");
            let _ = write!(text, ", output dropped {times}");
        }
        let style = if self.reason() == StreamEndReason::Eof {
            DIM
        } else {
            NOTICE
        };
        (text, style)
    }
}

impl Words for proto::Exited {
    fn words(&self) -> (String, Style) {
        (exited(self), exit_style(self))
    }
}

impl Words for proto::Ended {
    fn words(&self) -> (String, Style) {
        ("ended".to_owned(), PLAIN)
    }
}

impl Words for proto::Updated {
    fn words(&self) -> (String, Style) {
        let fields: Vec<_> = self.fields.iter().map(|field| printable(field)).collect();
        let mut text = format!("updated: {}", fields.join(", "));
        if self.cause() != UpdateCause::Request {
            let cause = word(self.cause().as_str_name(), "UPDATE_CAUSE_");
            let _ = write!(text, " ({cause})");
        }
        if !self.time_zone.is_empty() {
            let _ = write!(text, ", zone {}", printable(&self.time_zone));
        }
        (text, NOTICE)
    }
}

impl Words for proto::LifetimeEnded {
    fn words(&self) -> (String, Style) {
        let reason = word(self.reason().as_str_name(), "CLOSE_REASON_");
        (
            format!("stays after the end of its lifetime: {reason}"),
            NOTICE,
        )
    }
}

impl Words for proto::Recovered {
    fn words(&self) -> (String, Style) {
        let down = self.down_for.and_then(|time| Duration::try_from(time).ok());
        let down = span(down.unwrap_or_default());
        let text = format!(
            "goes on after {down}: the daemon {}",
            printable(&self.detail)
        );
        (text, NOTICE)
    }
}

impl Words for proto::Signal {
    fn words(&self) -> (String, Style) {
        let mut text = signal_name(self.number);
        match self.sender_pid {
            0 => text.push_str(" from the kernel"),
            pid => {
                let _ = write!(text, " from pid {pid} of uid {}", self.sender_uid);
            }
        }
        if self.count > 1 {
            let _ = write!(text, ", {} times", self.count);
        }
        if self.value != 0 {
            let _ = write!(text, ", value {}", self.value);
        }
        (text, PLAIN)
    }
}

impl Words for proto::Posted {
    fn words(&self) -> (String, Style) {
        let (topic, payload) = (printable(&self.topic), preview(&self.payload));
        (format!("posted {topic} {payload}"), PLAIN)
    }
}

impl Words for proto::LoopStateChanged {
    fn words(&self) -> (String, Style) {
        let state = word(self.state().as_str_name(), "LOOP_STATE_");
        let why = match self.reason() {
            CloseReason::Unspecified | CloseReason::LoopClosed => String::new(),
            reason => format!(": {}", word(reason.as_str_name(), "CLOSE_REASON_")),
        };
        (format!("loop {state}{why}"), NOTICE)
    }
}

impl Words for proto::PolicyChanged {
    fn words(&self) -> (String, Style) {
        let (old, new) = (printable(&self.old_policy), printable(&self.new_policy));
        (format!("policy {old} → {new}"), NOTICE)
    }
}

fn bytes(number: u64) -> String {
    counted(number, "byte", "bytes")
}

/// Returns a system error as one phrase.
pub(super) fn system_error(e: &proto::SystemError) -> String {
    // The message holds the step and the name too.
    if !e.message.is_empty() {
        return printable(&e.message);
    }
    format!("{}: {}", printable(&e.step), printable(&e.name))
}

/// Returns the first [`PREVIEW_BYTES`] bytes as quoted and escaped text.
fn preview(bytes: &[u8]) -> String {
    let head = bytes.get(..PREVIEW_BYTES).unwrap_or(bytes);
    let dots = if head.len() < bytes.len() { "…" } else { "" };
    format!("\"{}\"{dots}", head.escape_ascii())
}

/// Says how a process ended, such as `exited with 3`.
pub(super) fn exited(e: &proto::Exited) -> String {
    if e.timed_out {
        let after = proto::Exited {
            timed_out: false,
            ..e.clone()
        };
        return format!("timed out, {}", exited(&after));
    }
    let core = if e.core_dumped { ", core dumped" } else { "" };
    match &e.status {
        Some(exited::Status::Code(code)) => format!("exited with {code}"),
        Some(exited::Status::Signal(number)) => format!("killed by {}{core}", signal_name(*number)),
        Some(exited::Status::Unknown(why)) => format!("exit status unknown: {}", printable(why)),
        None => "exit status unknown".to_owned(),
    }
}

/// Returns green for exit code 0, and red for anything else.
pub(super) fn exit_style(e: &proto::Exited) -> Style {
    match &e.status {
        Some(exited::Status::Code(0)) => GOOD,
        _ => BAD,
    }
}

/// Returns a signal's name, such as `SIGTERM`; `signal 99` if this host has no such signal.
pub(super) fn signal_name(number: i32) -> String {
    config::signal_name(number).unwrap_or_else(|| format!("signal {number}"))
}

/// Returns an address as one word, such as `[::1]:80`; `unnamed` if there is none.
pub(super) fn address_or_unnamed(a: Option<&proto::SocketAddress>) -> String {
    match a.and_then(|a| a.address.as_ref()) {
        Some(socket_address::Address::Inet(a)) if a.ip.contains(':') => {
            format!("[{}]:{}", a.ip, a.port)
        }
        Some(socket_address::Address::Inet(a)) => format!("{}:{}", a.ip, a.port),
        Some(socket_address::Address::Unix(a)) => unix_address(a),
        None => "unnamed".to_owned(),
    }
}

/// Returns the address of a Unix socket as one word, such as `unix:/run/app.sock`; `unnamed` if it has none.
pub(super) fn unix_address(a: &proto::UnixAddress) -> String {
    match &a.name {
        Some(unix_address::Name::Path(path)) => format!("unix:{}", printable(path)),
        Some(unix_address::Name::AbstractName(name)) => format!("unix:@{}", name.escape_ascii()),
        None => "unnamed".to_owned(),
    }
}

#[cfg(test)]
mod tests;
