//! An event as one line for people: time, sequence number, watch, what.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anstyle::Style;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::json::word;
use super::table::{BAD, DIM, GOOD, NAME, NOTICE, PLAIN, printable};
use crate::config;
use crate::proto::event::Kind;
use crate::proto::{
    self, CloseReason, Event, StreamEndReason, exited, socket_address, unix_address,
};

/// Bytes of data shown in an event's line; `logs` shows all.
const PREVIEW_BYTES: usize = 60;
/// Most names remembered; watches beyond it show by their id.
const NAMES_MAX: usize = 65_536;

/// Turns events into lines. Learns the watches' names as their `Added` events pass.
#[derive(Debug)]
pub(super) struct Renderer {
    names: BTreeMap<u64, String>,
    zone: TimeZone,
}

impl Renderer {
    pub(super) fn new(zone: TimeZone) -> Self {
        let names = BTreeMap::new();
        Self { names, zone }
    }

    /// Remembers a watch's name.
    pub(super) fn learn(&mut self, watch_id: u64, name: &str) {
        if !name.is_empty() && self.names.len() < NAMES_MAX {
            self.names.insert(watch_id, name.to_owned());
        }
    }

    /// An event's line, without the newline.
    pub(super) fn line(&mut self, event: &Event) -> String {
        if let Some(Kind::Added(added)) = &event.kind {
            self.learn(event.watch_id, &added.name);
        }
        let watch = match (event.watch_id, self.names.get(&event.watch_id)) {
            (0, _) => "loop".to_owned(),
            (_, Some(name)) => printable(name),
            (id, None) => format!("@{id}"),
        };
        if matches!(event.kind, Some(Kind::Removed(_))) {
            self.names.remove(&event.watch_id);
        }
        let time = time_of_day(event.realtime_ns, &self.zone);
        let (what, style) = event
            .kind
            .as_ref()
            .map_or(("unknown".to_owned(), PLAIN), what);
        let seq = event.seq;
        format!("{DIM}{time} {seq:>6}{DIM:#}  {NAME}{watch:<14}{NAME:#}  {style}{what}{style:#}")
    }
}

fn time_of_day(realtime_ns: u64, zone: &TimeZone) -> String {
    match Timestamp::from_nanosecond(i128::from(realtime_ns)) {
        Ok(time) => time
            .to_zoned_datetime(zone.clone())
            .strftime("%H:%M:%S%.3f")
            .to_string(),
        Err(_) => realtime_ns.to_string(),
    }
}

fn what(kind: &Kind) -> (String, Style) {
    match kind {
        Kind::Added(e) => (added(e), GOOD),
        Kind::Closed(e) => closed(e),
        Kind::Removed(_) => ("removed".to_owned(), DIM),
        Kind::Ready(e) => (ready(e), PLAIN),
        Kind::TimerFired(e) => (timer_fired(e), PLAIN),
        Kind::Started(e) => (format!("started, pid {}", e.pid), GOOD),
        Kind::Data(e) => (data(e), PLAIN),
        Kind::StreamEnd(e) => stream_end(e),
        Kind::Exited(e) => (exited(e), exit_style(e)),
        Kind::Connected(e) => (connected(e), GOOD),
        Kind::Accepted(e) => {
            let from = address_or_unnamed(e.peer.as_ref());
            (format!("accepted watch {} from {from}", e.watch_id), GOOD)
        }
        Kind::AcceptPaused(e) => (accept_paused(e), NOTICE),
        Kind::Eof(e) => (format!("end of file after {} bytes", e.offset), PLAIN),
        Kind::WritePaused(e) => (
            format!("write paused, {} bytes unsent", e.buffered_bytes),
            NOTICE,
        ),
        Kind::WriteResumed(e) => (
            format!("write resumed, {} bytes unsent", e.buffered_bytes),
            PLAIN,
        ),
        Kind::Signal(e) => (signal(e), PLAIN),
        Kind::Posted(e) => (posted(e), PLAIN),
        Kind::LoopStateChanged(e) => (
            format!("loop {}", word(e.state().as_str_name(), "LOOP_STATE_")),
            NOTICE,
        ),
        Kind::PolicyChanged(e) => {
            let (old, new) = (printable(&e.old_policy), printable(&e.new_policy));
            (format!("policy {old} → {new}"), NOTICE)
        }
    }
}

fn added(e: &proto::Added) -> String {
    match e.parent_watch_id {
        0 => format!("added {}", e.watch_kind),
        parent => format!("added {} of listener {parent}", e.watch_kind),
    }
}

fn closed(e: &proto::Closed) -> (String, Style) {
    let mut text = format!(
        "closed: {}",
        word(e.reason().as_str_name(), "CLOSE_REASON_")
    );
    if let Some(error) = &e.error {
        let _ = write!(text, ", {}", system_error(error));
    }
    if e.unsent_bytes > 0 {
        let _ = write!(text, ", {} bytes unsent", e.unsent_bytes);
    }
    let style = if e.reason() == CloseReason::Error {
        BAD
    } else {
        DIM
    };
    (text, style)
}

/// A system error in one phrase.
pub(super) fn system_error(e: &proto::SystemError) -> String {
    // The message says the other two itself.
    if !e.message.is_empty() {
        return printable(&e.message);
    }
    format!("{}: {}", printable(&e.step), printable(&e.name))
}

fn ready(e: &proto::Ready) -> String {
    let all = [
        (e.readable, "readable"),
        (e.writable, "writable"),
        (e.half_closed, "half-closed"),
        (e.hangup, "hangup"),
        (e.error, "error"),
        // What else is told does not say it.
        (e.read_fired && !e.readable, "(to read)"),
        (e.write_fired && !e.writable, "(to write)"),
    ];
    let set: Vec<_> = all
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
    format!("ready: {}", set.join(" "))
}

fn timer_fired(e: &proto::TimerFired) -> String {
    let late = Duration::from_nanos(e.late_ns).as_secs_f64() * 1e3;
    let mut text = format!("fired, tick {}, {late:.2} ms late", e.tick);
    if e.missed > 0 {
        let _ = write!(text, ", {} missed", e.missed);
    }
    text
}

fn data(e: &proto::Data) -> String {
    let stream = word(e.stream().as_str_name(), "STREAM_");
    format!("{stream} {} bytes: {}", e.data.len(), preview(&e.data))
}

/// The beginning of some bytes, quoted.
fn preview(bytes: &[u8]) -> String {
    let head = bytes.get(..PREVIEW_BYTES).unwrap_or(bytes);
    let dots = if head.len() < bytes.len() { "…" } else { "" };
    format!("\"{}\"{dots}", head.escape_ascii())
}

fn stream_end(e: &proto::StreamEnd) -> (String, Style) {
    let stream = word(e.stream().as_str_name(), "STREAM_");
    let reason = word(e.reason().as_str_name(), "STREAM_END_REASON_");
    let mut text = format!("{stream} ended after {} bytes: {reason}", e.offset);
    if let Some(error) = &e.error {
        let _ = write!(text, ", {}", system_error(error));
    }
    let style = if e.reason() == StreamEndReason::Eof {
        DIM
    } else {
        NOTICE
    };
    (text, style)
}

/// How a child ended, in words.
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

/// Green for success, red for the rest.
pub(super) fn exit_style(e: &proto::Exited) -> Style {
    match &e.status {
        Some(exited::Status::Code(0)) => GOOD,
        _ => BAD,
    }
}

/// `SIGTERM`, or the number of what is no signal here.
fn signal_name(number: i32) -> String {
    config::signal_name(number).unwrap_or_else(|| format!("signal {number}"))
}

fn connected(e: &proto::Connected) -> String {
    let local = address_or_unnamed(e.local.as_ref());
    format!(
        "connected {local} → {}",
        address_or_unnamed(e.peer.as_ref())
    )
}

/// An address in one word.
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

/// A Unix socket's address in one word.
pub(super) fn unix_address(a: &proto::UnixAddress) -> String {
    match &a.name {
        Some(unix_address::Name::Path(path)) => format!("unix:{}", printable(path)),
        Some(unix_address::Name::AbstractName(name)) => format!("unix:@{}", name.escape_ascii()),
        None => "unnamed".to_owned(),
    }
}

fn accept_paused(e: &proto::AcceptPaused) -> String {
    let why = e.error.as_ref().map_or_else(String::new, system_error);
    let again = e.retry_after.unwrap_or_default();
    format!("accepting paused for {again}: {why}")
}

fn signal(e: &proto::Signal) -> String {
    let mut text = signal_name(e.number);
    match e.sender_pid {
        0 => text.push_str(" from the kernel"),
        pid => {
            let _ = write!(text, " from pid {pid} of uid {}", e.sender_uid);
        }
    }
    if e.count > 1 {
        let _ = write!(text, ", {} times", e.count);
    }
    if e.value != 0 {
        let _ = write!(text, ", value {}", e.value);
    }
    text
}

fn posted(e: &proto::Posted) -> String {
    format!("posted {} {}", printable(&e.topic), preview(&e.payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(renderer: &mut Renderer, watch_id: u64, kind: Kind) -> String {
        let event = Event {
            seq: 7,
            realtime_ns: 1_500_000_000,
            watch_id,
            kind: Some(kind),
            ..Event::default()
        };
        anstream::adapter::strip_str(&renderer.line(&event)).to_string()
    }

    #[test]
    fn a_line_is_time_seq_watch_what_and_names_are_learnt_and_forgotten() {
        let mut renderer = Renderer::new(TimeZone::UTC);
        let added = proto::Added {
            name: "build".to_owned(),
            watch_kind: "process".to_owned(),
            ..proto::Added::default()
        };
        let head = "00:00:01.500      7  build           ";
        let text = line(&mut renderer, 3, Kind::Added(added));
        assert_eq!(text, format!("{head}added process"));
        let bytes = proto::Data {
            stream: proto::Stream::Stderr.into(),
            data: bytes::Bytes::from_static(b"a\x1b\n"),
            offset: 0,
        };
        let text = line(&mut renderer, 3, Kind::Data(bytes));
        assert_eq!(text, format!("{head}stderr 3 bytes: \"a\\x1b\\n\""));
        line(&mut renderer, 3, Kind::Removed(proto::Removed::default()));
        let ready = proto::Ready {
            readable: true,
            hangup: true,
            ..proto::Ready::default()
        };
        let text = line(&mut renderer, 3, Kind::Ready(ready));
        assert_eq!(
            text,
            "00:00:01.500      7  @3              ready: readable hangup"
        );
        let state = proto::LoopState::Stopped.into();
        let text = line(
            &mut renderer,
            0,
            Kind::LoopStateChanged(proto::LoopStateChanged { state }),
        );
        assert!(text.ends_with("loop            loop stopped"), "{text}");
    }

    #[test]
    fn an_exit_is_a_code_a_signal_or_unknown_and_never_made_up() {
        let exit = |status| {
            exited(&proto::Exited {
                status,
                ..proto::Exited::default()
            })
        };
        assert_eq!(exit(Some(exited::Status::Code(3))), "exited with 3");
        assert_eq!(exit(Some(exited::Status::Signal(15))), "killed by SIGTERM");
        assert_eq!(
            exit(Some(exited::Status::Signal(99))),
            "killed by signal 99"
        );
        assert_eq!(exit(None), "exit status unknown");
    }

    #[test]
    fn long_data_is_cut() {
        let text = preview(&[b'x'; PREVIEW_BYTES + 1]);
        assert_eq!(text, format!("\"{}\"…", "x".repeat(PREVIEW_BYTES)));
    }
}
