//! Describes watches for people: state, target and all values.

use std::fmt::Write as _;

use anstyle::Style;

use super::exit::is_success;
use super::failure::Failure;
use super::json::word;
use super::output;
use super::parse::{by_id, cursor_text};
use super::render::{self, address_or_unnamed, system_error};
use super::style::{BAD, DIM, GOOD, NAME, NOTICE, printable};
use super::table::{Sheet, Table, cell, plain};
use super::target::{Target as _, command};
use super::units::{age, counted, date_and_age, lasted, moment, size, span};
use crate::clock;
use crate::kinds::{WatchKind, with_spec};
use crate::proto::{
    self, CloseReason, DatagramSpec, Exited, LifetimeEnd, Watch, WatchRef, WatchState, exited,
    watch::Status, watch_ref, watch_spec::Spec,
};

mod files;
mod process;

pub(super) use process::tree_usage;

/// Prints watches as a table, or as one line of JSON each.
pub(super) fn table(as_json: bool, watches: &[Watch]) -> Result<(), Failure> {
    if as_json {
        return output::messages(watches);
    }
    let mut table = Table::new(&["ID", "NAME", "KIND", "STATE", "WHAT", "LABELS"]);
    for watch in watches {
        let (state, style) = state_of(watch, true);
        table.row([
            plain(&format!("@{}", watch.watch_id)),
            cell(&watch.name, NAME),
            plain(&watch.watch_kind),
            cell(&state, style),
            plain(&detail(watch)),
            cell(&labels(watch), DIM),
        ]);
    }
    table.print()
}

/// Returns what names the watch on a command line: its name, or `@7` if it has no name.
pub(super) fn reference(watch: &Watch) -> String {
    if watch.name.is_empty() {
        format!("@{}", watch.watch_id)
    } else {
        watch.name.clone()
    }
}

/// Returns what names the watch in a request: its name, or its id if it has no name.
pub(super) fn watch_ref(watch: &Watch) -> WatchRef {
    match watch.name.as_str() {
        "" => by_id(watch.watch_id),
        name => WatchRef {
            r#ref: Some(watch_ref::Ref::Name(name.to_owned())),
        },
    }
}

/// Returns whether the watch is a process.
pub(super) fn is_process(watch: &Watch) -> bool {
    watch.watch_kind == WatchKind::Process.name()
}

/// Returns how the process ended; `None` if the watch is not a process, or that is not known.
pub(super) fn exited(watch: &Watch) -> Option<&Exited> {
    match &watch.status {
        Some(Status::Process(process)) => process.exited.as_ref(),
        _ => None,
    }
}

/// Returns the state of the watch in words, such as `running, paused`, and their style.
pub(super) fn state(watch: &Watch) -> (String, Style) {
    state_of(watch, false)
}

/// As [`state`]; if `brief`, without reasons, for which the column of a table has no room.
fn state_of(watch: &Watch, brief: bool) -> (String, Style) {
    let (state, style) = words_and_style(watch, brief);
    match &watch.source_pause {
        Some(_) => (format!("{state}, paused"), NOTICE),
        None => (state, style),
    }
}

fn words_and_style(watch: &Watch, brief: bool) -> (String, Style) {
    if let Some(exited) = exited(watch) {
        let style = if is_success(exited) { DIM } else { BAD };
        let how = if exited.timed_out {
            "timed out".to_owned()
        } else if brief && matches!(exited.status, Some(exited::Status::Unknown(_))) {
            "exit status unknown".to_owned()
        } else {
            render::exited(exited)
        };
        return (since(how, watch), style);
    }
    let closed = watch
        .closed
        .as_ref()
        .filter(|_| watch.state() == WatchState::Closed);
    if let Some(closed) = closed {
        let (what, style) = match closed.reason() {
            _ if is_process(watch) => ("lost".to_owned(), BAD),
            CloseReason::Error => {
                let error = closed.error.as_ref();
                let error = error.filter(|error| !brief || !error.name.is_empty());
                let told = error.map(|error| match brief {
                    true => printable(&error.name),
                    false => system_error(error),
                });
                (told.unwrap_or_else(|| "failed".to_owned()), BAD)
            }
            reason => (word(reason.as_str_name(), "CLOSE_REASON_"), DIM),
        };
        return (since(what, watch), style);
    }
    if let Some(Status::Process(process)) = &watch.status {
        let (state, style) = match watch.state() {
            _ if process.ended_untold => ("ended, not told yet", NOTICE),
            _ if process.stopped => ("stopped", NOTICE),
            WatchState::Closing => ("ending", NOTICE),
            _ => ("running", GOOD),
        };
        return (state.to_owned(), style);
    }
    let style = if watch.state() == WatchState::Open {
        GOOD
    } else {
        NOTICE
    };
    (word(watch.state().as_str_name(), "WATCH_STATE_"), style)
}

fn since(what: String, watch: &Watch) -> String {
    match age(watch.closed_at) {
        age if age.is_empty() => what,
        age => format!("{what}, {age}"),
    }
}

fn labels(watch: &Watch) -> String {
    let labels = watch.labels.iter().map(|(k, v)| format!("{k}={v}"));
    labels.collect::<Vec<_>>().join(" ")
}

/// Returns what is watched, in a few words, such as a command or an address.
pub(super) fn detail(watch: &Watch) -> String {
    let spec = watch.spec.as_ref().and_then(|spec| spec.spec.as_ref());
    match (&watch.status, spec) {
        (Some(Status::Listener(status)), _) => {
            let all = status.addresses.iter().map(|a| address_or_unnamed(Some(a)));
            all.collect::<Vec<_>>().join(" ")
        }
        (Some(Status::Fd(status)), _) => status.fd_type.clone(),
        (Some(Status::Datagram(status)), _) => {
            let spec = DatagramSpec {
                local: status.local.clone(),
                peer: status.peer.clone(),
                ..DatagramSpec::default()
            };
            spec.target()
        }
        (Some(Status::Transport(status)), spec) if status.connected => match (&status.peer, spec) {
            (None, Some(spec)) => with_spec!(spec, message => message.target()),
            (peer, _) => address_or_unnamed(peer.as_ref()),
        },
        (_, Some(spec)) => with_spec!(spec, message => message.target()),
        (_, None) => String::new(),
    }
}

/// Returns all values of a watch, as labelled lines. `on` is the name of its loop; empty if it is not known.
pub(super) fn sheet(watch: &Watch, on: &str) -> Sheet {
    let (state, style) = state(watch);
    let (name, kind) = (printable(&reference(watch)), &watch.watch_kind);
    let title = format!("{NAME}{name}{NAME:#}  {kind}, {style}{state}{style:#}");
    let mut sheet = Sheet::new(title);
    let spec = watch.spec.as_ref().and_then(|spec| spec.spec.as_ref());
    let spec = match spec {
        Some(Spec::Process(spec)) => Some(spec),
        _ => {
            sheet.line("what", detail(watch));
            None
        }
    };
    if let Some(spec) = spec {
        sheet.line("command", command(spec));
        let cwd = String::from_utf8_lossy(&spec.cwd_bytes);
        sheet.line(
            "directory",
            if spec.cwd.is_empty() {
                &cwd
            } else {
                spec.cwd.as_str()
            },
        );
    }
    let began = if spec.is_some() { "started" } else { "since" };
    sheet.line(began, date_and_age(watch.created));
    if let Some(at) = watch.closed_at {
        let took = lasted(watch.created, Some(at)).map_or_else(String::new, span);
        sheet.line("ended", format!("{}, after {took}", date_and_age(Some(at))));
    }
    status(&mut sheet, watch);
    if let Some(spec) = spec {
        process::options(&mut sheet, spec);
    }
    if let Some(pause) = &watch.source_pause {
        let reason = word(pause.reason().as_str_name(), "SOURCE_PAUSE_REASON_");
        let text = format!("not read since {}: {reason}", date_and_age(pause.since));
        sheet.styled("paused", text, NOTICE);
    }
    sheet.line("labels", labels(watch));
    if watch.user_data > 0 {
        sheet.line("user data", watch.user_data);
    }
    let lifetime = lifetime(
        watch.lifetime(),
        watch.lease,
        watch.lease_left,
        watch.at_lifetime_end(),
    );
    sheet.line(
        "lifetime",
        format!(
            "{lifetime}, survives {}",
            word(watch.survives().as_str_name(), "SURVIVES_")
        ),
    );
    if watch.parent_watch_id > 0 {
        sheet.line("parent", format!("@{}", watch.parent_watch_id));
    }
    let id = format!("@{}", watch.watch_id);
    let on = if on.is_empty() {
        String::new()
    } else {
        format!(" on loop {on}")
    };
    sheet.line("id", format!("{id}{on}"));
    sheet.styled(
        "added",
        watch.added.as_ref().map_or_else(String::new, cursor_text),
        DIM,
    );
    sheet
}

/// Returns a lifetime in words, such as `lease, 28 s of 30 s left, then keep`.
pub(super) fn lifetime(
    lifetime: proto::Lifetime,
    lease: Option<prost_types::Duration>,
    left: Option<prost_types::Duration>,
    at_end: LifetimeEnd,
) -> String {
    let mut text = word(lifetime.as_str_name(), "LIFETIME_");
    let time = |time: Option<prost_types::Duration>| Some(span(clock::span(&time?)?));
    if let (Some(left), Some(lease)) = (time(left), time(lease)) {
        let _ = write!(text, ", {left} of {lease} left");
    }
    if !matches!(at_end, LifetimeEnd::Unspecified | LifetimeEnd::Close) {
        let at_end = word(at_end.as_str_name(), "LIFETIME_END_");
        let _ = write!(text, ", then {at_end}");
    }
    text
}

fn status(sheet: &mut Sheet, watch: &Watch) {
    match &watch.status {
        Some(Status::Process(s)) => {
            process::status(sheet, &reference(watch), s);
        }
        Some(Status::Transport(s)) => {
            let way = |a: &Option<_>| {
                a.as_ref()
                    .map_or_else(String::new, |a| address_or_unnamed(Some(a)))
            };
            sheet.line("local", way(&s.local));
            sheet.line("peer", way(&s.peer));
            if let Some(tls) = &s.tls {
                sheet.line("tls", render::tls_session(tls));
                if let Some(expires) = tls.peer_certificate_expires {
                    certificate(sheet, "peer's certificate", expires);
                }
            }
            sheet.line("received", size(s.received_bytes));
            let unsent = size(s.buffered_bytes);
            sheet.line(
                "sent",
                format!("{} taken, {unsent} of them unsent", size(s.taken_bytes)),
            );
            sheet.line("reading", if s.reading_paused { "paused" } else { "" });
        }
        Some(Status::Datagram(s)) => {
            let way = |a: &Option<_>| {
                a.as_ref()
                    .map_or_else(String::new, |a| address_or_unnamed(Some(a)))
            };
            sheet.line("local", way(&s.local));
            sheet.line("peer", way(&s.peer));
            sheet.line("received", counted(s.received, "datagram", "datagrams"));
            sheet.line("sent", counted(s.sent, "datagram", "datagrams"));
            if s.buffered_bytes > 0 {
                sheet.line("unsent", size(s.buffered_bytes));
            }
            if s.dropped > 0 {
                let mut text = counted(s.dropped, "datagram", "datagrams");
                text.push_str(" by the kernel");
                if s.untold_drops > 0 {
                    let _ = write!(text, ", {} of them not told yet", s.untold_drops);
                }
                sheet.styled("dropped", text, NOTICE);
            }
            for status in &s.groups {
                let (text, style) = render::group_status(status);
                sheet.styled("group", text, style);
            }
            sheet.line("buffer", size(s.receive_buffer));
            sheet.line("reading", if s.reading_paused { "paused" } else { "" });
        }
        Some(Status::Listener(s)) => {
            sheet.line("accepted", counted(s.accepted, "connection", "connections"));
            let most = match spec(watch) {
                Some(Spec::Listener(spec)) if spec.max_connections > 0 => {
                    format!(", at most {}", spec.max_connections)
                }
                _ => String::new(),
            };
            sheet.line("open", format!("{}{most}", s.open_connections));
            if s.handshakes > 0 || s.failed_handshakes > 0 {
                let (now, failed) = (s.handshakes, s.failed_handshakes);
                sheet.line("handshakes", format!("{now} under way, {failed} failed"));
            }
            if let Some(expires) = s.certificate_expires {
                certificate(sheet, "certificate", expires);
            }
        }
        Some(Status::Pid(s)) => {
            sheet.line("pid", s.pid);
            if let Some(exited) = &s.exited {
                sheet.line("exit", render::exited(exited));
            } else if s.ended {
                sheet.line("exit", "not known yet: its parent has not reaped it");
            }
        }
        Some(Status::Timer(s)) => {
            sheet.line("fired", counted(s.fired, "time", "times"));
            let next = if s.paused {
                "paused".to_owned()
            } else {
                date_and_age(s.next)
            };
            sheet.line("next", next);
            sheet.line("time zone", &s.time_zone);
        }
        Some(Status::Path(s)) => files::path(sheet, s),
        Some(Status::File(s)) => files::file(sheet, s),
        Some(Status::Fd(s)) => {
            let armed = [(s.readable_armed, "reading"), (s.writable_armed, "writing")];
            let armed = armed.iter().filter_map(|(set, what)| set.then_some(*what));
            let armed: Vec<_> = armed.collect();
            let text = if armed.is_empty() {
                "nothing".to_owned()
            } else {
                armed.join(" and ")
            };
            sheet.line("armed for", text);
        }
        None => {}
    }
}

/// Appends how long a certificate is valid.
fn certificate(sheet: &mut Sheet, label: &str, expires: prost_types::Timestamp) {
    const DAY: i64 = 24 * 3600;
    /// Fewer days are few.
    const FEW: i64 = 14;

    let left = (expires.seconds - jiff::Timestamp::now().as_second()).div_euclid(DAY);
    let text = match left {
        ..0 => format!("expired on {expires}"),
        days => format!("valid for {days} more days, until {expires}"),
    };
    let style = if left < FEW { NOTICE } else { Style::new() };
    sheet.styled(label, text, style);
}

fn spec(watch: &Watch) -> Option<&Spec> {
    watch.spec.as_ref()?.spec.as_ref()
}

/// Returns how the watch ended, such as `exited with 3, 10 min ago`, if it has. A process on a stopped loop has ended
/// although no event has reported its exit status yet.
pub(super) fn end(watch: &Watch) -> Option<String> {
    let untold = matches!(&watch.status, Some(Status::Process(process)) if process.ended_untold);
    let ended = untold || exited(watch).is_some() || watch.state() == WatchState::Closed;
    (ended || moment(watch.closed_at).is_some()).then(|| state(watch).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ExecCommand, ProcessSpec, ProcessStatus, SourcePause, SourcePauseReason};

    #[test]
    fn a_source_that_is_not_read_shows_beside_the_state() {
        let mut watch = Watch {
            status: Some(Status::Process(ProcessStatus::default())),
            ..Watch::default()
        };
        watch.set_state(WatchState::Open);
        assert_eq!(state(&watch), ("running".to_owned(), GOOD));
        let mut pause = SourcePause::default();
        pause.set_reason(SourcePauseReason::WatchShare);
        watch.source_pause = Some(pause);
        assert_eq!(state(&watch), ("running, paused".to_owned(), NOTICE));
        assert!(sheet(&watch, "").text(None).contains("watch_share"));
    }

    fn process(status: ProcessStatus) -> Watch {
        let mut watch = Watch {
            status: Some(Status::Process(status)),
            ..Watch::default()
        };
        watch.set_state(WatchState::Open);
        watch
    }

    #[test]
    fn a_process_that_is_stopped_or_has_ended_untold_does_not_show_as_running() {
        let shown = |stopped, ended_untold| {
            state(&process(ProcessStatus {
                stopped,
                ended_untold,
                ..ProcessStatus::default()
            }))
            .0
        };
        assert_eq!(shown(false, false), "running");
        assert_eq!(shown(true, false), "stopped");
        assert_eq!(shown(false, true), "ended, not told yet");
        let untold = ProcessStatus {
            ended_untold: true,
            ..ProcessStatus::default()
        };
        assert_eq!(end(&process(untold)).unwrap(), "ended, not told yet");
    }

    #[test]
    fn how_a_process_ended_is_told_in_words_and_when() {
        let ended = |status| {
            let mut watch = process(ProcessStatus {
                exited: Some(Exited {
                    status: Some(status),
                    ..Exited::default()
                }),
                ..ProcessStatus::default()
            });
            assert!(end(&process(ProcessStatus::default())).is_none());
            let three_minutes = std::time::Duration::from_secs(180);
            watch.closed_at = Some((std::time::SystemTime::now() - three_minutes).into());
            end(&watch).unwrap()
        };
        assert_eq!(ended(exited::Status::Code(3)), "exited with 3, 3 min ago");
        assert_eq!(
            ended(exited::Status::Signal(9)),
            "killed by SIGKILL, 3 min ago"
        );
    }

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let argv = ["sh", "-c", "echo 'a'; exit 3", "x=y"];
        let exec = ExecCommand {
            argv: argv.map(str::to_owned).into(),
            ..ExecCommand::default()
        };
        let spec = ProcessSpec {
            command: Some(proto::process_spec::Command::Exec(exec)),
            ..ProcessSpec::default()
        };
        let shown = command(&spec);
        assert_eq!(shlex::split(&shown).unwrap(), argv);
    }
}
