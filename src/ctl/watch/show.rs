//! A watch, for people and for programs.

use anstyle::Style;
use serde_json::{Map, Value, json};

use super::super::failure::Failure;
use super::super::json::{self as event_json, put_bytes, with, word};
use super::super::loops::{source_pause, survives};
use super::super::output::{self, BAD, DIM, GOOD, NAME, NOTICE, PLAIN, Table, cell, plain};
use super::super::parse::cursor_text;
use super::super::render::{address_or_unnamed, unix_address};
use crate::config::Limit;
use crate::proto::{
    CloseReason, ConnectionSpec, EnvVar, ListenerSpec, ProcessSpec, ResourceLimit, Stdio,
    TimerSpec, Watch, WatchSpec, WatchState, connection_spec, exited, listener_spec, process_spec,
    read_pipe_spec, timer_spec, watch::Status, watch_spec::Spec, write_pipe_spec,
};

/// Watches as a table, or a line of JSON each.
pub(super) fn table(as_json: bool, watches: &[Watch]) -> Result<(), Failure> {
    if as_json {
        let values: Vec<_> = watches.iter().map(json).collect();
        return output::json_lines(&values);
    }
    let mut table = Table::new(&["ID", "NAME", "KIND", "STATE", "WHAT", "LABELS"]);
    for watch in watches {
        let (state, style) = state(watch);
        let labels: Vec<_> = watch
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        table.row([
            plain(&watch.watch_id),
            cell(&reference(watch), NAME),
            plain(&watch.watch_kind),
            cell(&state, style),
            plain(&detail(watch)),
            cell(&labels.join(" "), DIM),
        ]);
    }
    table.print()
}

/// What names it on a command line: its name, or its id.
pub(in crate::ctl) fn reference(watch: &Watch) -> String {
    if watch.name.is_empty() {
        format!("@{}", watch.watch_id)
    } else {
        watch.name.clone()
    }
}

/// Its state in a word, as fine as its kind allows, and whether its source is not read.
pub(in crate::ctl) fn state(watch: &Watch) -> (String, Style) {
    let (state, style) = word_and_style(watch);
    match &watch.source_pause {
        Some(_) => (format!("{state}, paused"), NOTICE),
        None => (state, style),
    }
}

fn word_and_style(watch: &Watch) -> (String, Style) {
    if let Some(Status::Process(process)) = &watch.status {
        let status = process.exited.as_ref().map(|exited| &exited.status);
        return match (status, watch.state()) {
            (None, WatchState::Closed) => ("lost".to_owned(), BAD),
            (None, _) if process.ended_untold => ("ended, not told yet".to_owned(), NOTICE),
            (None, _) if process.stopped => ("stopped".to_owned(), NOTICE),
            (None, WatchState::Closing) => ("ending".to_owned(), NOTICE),
            (None, _) => ("running".to_owned(), GOOD),
            (Some(Some(exited::Status::Code(_))), _) => ("exited".to_owned(), PLAIN),
            (Some(Some(exited::Status::Signal(_))), _) => ("killed".to_owned(), BAD),
            (Some(_), _) => ("unknown".to_owned(), BAD),
        };
    }
    let closed = watch
        .closed
        .as_ref()
        .filter(|_| watch.state() == WatchState::Closed);
    if let Some(closed) = closed {
        let style = if closed.reason() == CloseReason::Error {
            BAD
        } else {
            DIM
        };
        return (word(closed.reason().as_str_name(), "CLOSE_REASON_"), style);
    }
    let style = if watch.state() == WatchState::Open {
        GOOD
    } else {
        NOTICE
    };
    (word(watch.state().as_str_name(), "WATCH_STATE_"), style)
}

/// What it watches, in a few words.
pub(in crate::ctl) fn detail(watch: &Watch) -> String {
    let spec = watch.spec.as_ref().and_then(|spec| spec.spec.as_ref());
    match (&watch.status, spec) {
        (Some(Status::Listener(status)), _) => {
            let all = status.addresses.iter().map(|a| address_or_unnamed(Some(a)));
            all.collect::<Vec<_>>().join(" ")
        }
        (Some(Status::Fd(status)), _) => status.fd_type.clone(),
        (Some(Status::Transport(status)), spec) if status.connected => match (&status.peer, spec) {
            (None, Some(spec)) => of_spec(spec),
            (peer, _) => address_or_unnamed(peer.as_ref()),
        },
        (_, Some(spec)) => of_spec(spec),
        (_, None) => String::new(),
    }
}

fn of_spec(spec: &Spec) -> String {
    match spec {
        Spec::Fd(_) => "descriptor".to_owned(),
        Spec::Timer(timer) => match &timer.schedule {
            Some(timer_spec::Schedule::After(d)) => format!("after {d}"),
            Some(timer_spec::Schedule::Every(d)) => format!("every {d}"),
            Some(timer_spec::Schedule::AtRealtime(t)) => format!("at {t}"),
            Some(timer_spec::Schedule::AtMonotonicNs(ns)) => format!("at {ns} ns monotonic"),
            None => String::new(),
        },
        Spec::Process(process) => match &process.command {
            Some(process_spec::Command::Exec(exec)) => {
                let words = exec.argv_bytes.iter().map(|w| String::from_utf8_lossy(w));
                let words: Vec<_> = exec.argv.iter().map(Into::into).chain(words).collect();
                words.join(" ")
            }
            Some(process_spec::Command::Shell(line)) => line.clone(),
            None => String::new(),
        },
        Spec::Connection(connection) => match &connection.target {
            Some(connection_spec::Target::Tcp(tcp)) => format!("{}:{}", tcp.host, tcp.port),
            Some(connection_spec::Target::Unix(address)) => unix_address(address),
            Some(connection_spec::Target::Slot(_)) | None => "handed over".to_owned(),
        },
        Spec::Listener(listener) => match &listener.target {
            Some(listener_spec::Target::Tcp(tcp)) => {
                format!("{}:{}", tcp.hosts.join(","), tcp.port)
            }
            Some(listener_spec::Target::Unix(address)) => unix_address(address),
            Some(listener_spec::Target::Slot(_)) | None => "handed over".to_owned(),
        },
        Spec::ReadPipe(pipe) => match &pipe.source {
            Some(read_pipe_spec::Source::FifoPath(path)) => path.clone(),
            Some(read_pipe_spec::Source::Slot(_)) | None => "handed over".to_owned(),
        },
        Spec::WritePipe(pipe) => match &pipe.target {
            Some(write_pipe_spec::Target::FifoPath(path)) => path.clone(),
            Some(write_pipe_spec::Target::Slot(_)) | None => "handed over".to_owned(),
        },
        Spec::Signal(signal) => signal.signals.join(" "),
    }
}

/// All about it.
pub(in crate::ctl) fn json(w: &Watch) -> Value {
    let time = |t: Option<prost_types::Timestamp>| t.map(|t| t.to_string().into());
    let value = json!({
        "watch_id": w.watch_id,
        "name": w.name,
        "labels": w.labels,
        "user_data": w.user_data,
        "watch_kind": w.watch_kind,
        "state": word(w.state().as_str_name(), "WATCH_STATE_"),
        "survives": survives(w.survives()),
        "lifetime": word(w.lifetime().as_str_name(), "LIFETIME_"),
        "parent_watch_id": w.parent_watch_id,
    });
    let value = with(value, "created", time(w.created));
    let value = with(
        value,
        "added",
        w.added.as_ref().map(|c| cursor_text(c).into()),
    );
    let value = with(value, "closed", w.closed.as_ref().map(event_json::closed));
    let value = with(value, "closed_at", time(w.closed_at));
    let value = with(
        value,
        "source_pause",
        w.source_pause.as_ref().map(source_pause),
    );
    let value = with(value, "spec", w.spec.as_ref().map(spec));
    match &w.status {
        Some(status) => {
            let (key, status) = status_json(status);
            with(value, key, Some(status))
        }
        None => value,
    }
}

fn status_json(status: &Status) -> (&'static str, Value) {
    match status {
        Status::Process(s) => {
            let value = json!({
                "pid": s.pid,
                "stdin_bytes": s.stdin_bytes,
                "stdout_bytes": s.stdout_bytes,
                "stderr_bytes": s.stderr_bytes,
                "stopped": s.stopped,
                "ended_untold": s.ended_untold,
            });
            (
                "process",
                with(value, "exited", s.exited.as_ref().map(event_json::exited)),
            )
        }
        Status::Transport(s) => {
            let value = json!({
                "connected": s.connected,
                "reading_paused": s.reading_paused,
                "received_bytes": s.received_bytes,
                "taken_bytes": s.taken_bytes,
                "buffered_bytes": s.buffered_bytes,
            });
            let value = with(value, "local", s.local.as_ref().map(event_json::address));
            (
                "transport",
                with(value, "peer", s.peer.as_ref().map(event_json::address)),
            )
        }
        Status::Listener(s) => {
            let addresses: Vec<_> = s.addresses.iter().map(event_json::address).collect();
            (
                "listener",
                json!({"addresses": addresses, "accepted": s.accepted}),
            )
        }
        Status::Timer(s) => ("timer", json!({"next_ns": s.next_ns, "fired": s.fired})),
        Status::Fd(s) => {
            let value = json!({
                "readable_armed": s.readable_armed,
                "writable_armed": s.writable_armed,
                "fd_type": s.fd_type,
            });
            ("fd", value)
        }
    }
}

fn spec(spec: &WatchSpec) -> Value {
    match &spec.spec {
        Some(Spec::Fd(s)) => json!({"fd": {"readable": s.readable, "writable": s.writable}}),
        Some(Spec::Timer(s)) => json!({"timer": timer(s)}),
        Some(Spec::Process(s)) => json!({"process": process(s)}),
        Some(Spec::Connection(s)) => json!({"connection": connection(s)}),
        Some(Spec::Listener(s)) => json!({"listener": listener(s)}),
        Some(Spec::ReadPipe(s)) => {
            let path = match &s.source {
                Some(read_pipe_spec::Source::FifoPath(path)) => Some(path.as_str().into()),
                _ => None,
            };
            let value = json!({"start_paused": s.start_paused});
            json!({"read_pipe": with(value, "fifo_path", path)})
        }
        Some(Spec::WritePipe(s)) => {
            let path = match &s.target {
                Some(write_pipe_spec::Target::FifoPath(path)) => Some(path.as_str().into()),
                _ => None,
            };
            json!({"write_pipe": with(json!({}), "fifo_path", path)})
        }
        Some(Spec::Signal(s)) => json!({"signal": {"signals": s.signals}}),
        None => json!({}),
    }
}

fn timer(s: &TimerSpec) -> Value {
    match &s.schedule {
        Some(timer_spec::Schedule::After(d)) => json!({"after": d.to_string()}),
        Some(timer_spec::Schedule::AtMonotonicNs(ns)) => json!({"at_monotonic_ns": ns}),
        Some(timer_spec::Schedule::AtRealtime(t)) => json!({"at_realtime": t.to_string()}),
        Some(timer_spec::Schedule::Every(d)) => json!({"every": d.to_string()}),
        None => json!({}),
    }
}

fn process(s: &ProcessSpec) -> Value {
    let command = match &s.command {
        Some(process_spec::Command::Exec(exec)) if exec.argv_bytes.is_empty() => {
            json!({"exec": {"argv": exec.argv}})
        }
        Some(process_spec::Command::Exec(exec)) => {
            let words: Vec<_> = exec.argv_bytes.iter().map(|word| bytes(word)).collect();
            json!({"exec": {"argv_bytes": words}})
        }
        Some(process_spec::Command::Shell(line)) => json!({"shell": line}),
        None => json!({}),
    };
    let stdio = |stdio: Stdio| Some(word(stdio.as_str_name(), "STDIO_").into());
    let variable = |v: &EnvVar| json!({"name": bytes(&v.name), "value": bytes(&v.value)});
    let env_bytes: Vec<_> = s.env_bytes.iter().map(variable).collect();
    let env_bytes = Some(env_bytes).filter(|variables| !variables.is_empty());
    let cwd_bytes = Some(&s.cwd_bytes).filter(|path| !path.is_empty());
    let value = with(command, "env", Some(json!(s.env)));
    let value = with(value, "env_bytes", env_bytes.map(Value::from));
    let value = with(value, "cwd", Some(s.cwd.as_str().into()));
    let value = with(value, "cwd_bytes", cwd_bytes.map(|path| bytes(path)));
    let value = with(value, "stdin", stdio(s.stdin()));
    let value = with(value, "stdout", stdio(s.stdout()));
    let value = with(value, "stderr", stdio(s.stderr()));
    let value = with(
        value,
        "pipe_grace",
        s.pipe_grace.map(|d| d.to_string().into()),
    );
    let at_end = word(s.at_end().as_str_name(), "AT_END_");
    let value = with(value, "at_end", Some(at_end.into()));
    let after_grace = word(s.after_grace().as_str_name(), "AFTER_GRACE_");
    let value = with(value, "after_grace", Some(after_grace.into()));
    let value = with(
        value,
        "kill_grace",
        s.kill_grace.map(|d| d.to_string().into()),
    );
    let value = with(
        value,
        "umask",
        s.umask.map(|bits| format!("{bits:04o}").into()),
    );
    let limits = s
        .limits
        .iter()
        .map(|l| (l.resource.clone(), limit(l).into()));
    let limits: Map<_, _> = limits.collect();
    let value = with(
        value,
        "limits",
        Some(limits).filter(|l| !l.is_empty()).map(Value::from),
    );
    let value = with(value, "nice", s.nice.map(Value::from));
    with(value, "oom_score_adj", s.oom_score_adj.map(Value::from))
}

/// As the command line takes it.
fn limit(limit: &ResourceLimit) -> String {
    let [soft, hard] = [limit.soft, limit.hard].map(|value| value.unwrap_or(u64::MAX));
    Limit { soft, hard }.to_string()
}

fn bytes(bytes: &[u8]) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, bytes);
    object.into()
}

fn connection(s: &ConnectionSpec) -> Value {
    let target = match &s.target {
        Some(connection_spec::Target::Tcp(t)) => {
            json!({"tcp": {"host": t.host, "port": t.port, "local_ip": t.local_ip}})
        }
        Some(connection_spec::Target::Unix(a)) => json!({"unix": event_json::unix_address(a)}),
        Some(connection_spec::Target::Slot(_)) | None => json!({}),
    };
    let value = with(target, "keep_half_open", Some(s.keep_half_open.into()));
    let value = with(value, "start_paused", Some(s.start_paused.into()));
    with(
        value,
        "connect_timeout",
        s.connect_timeout.map(|d| d.to_string().into()),
    )
}

fn listener(s: &ListenerSpec) -> Value {
    let target = match &s.target {
        Some(listener_spec::Target::Tcp(t)) => {
            json!({"tcp": {"hosts": t.hosts, "port": t.port, "reuse_port": t.reuse_port}})
        }
        Some(listener_spec::Target::Unix(a)) => json!({"unix": event_json::unix_address(a)}),
        Some(listener_spec::Target::Slot(_)) | None => json!({}),
    };
    let value = with(target, "backlog", Some(s.backlog.into()));
    let value = with(value, "keep_half_open", Some(s.keep_half_open.into()));
    with(value, "start_paused", Some(s.start_paused.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ProcessStatus, SourcePause, SourcePauseReason};

    #[test]
    fn a_source_that_is_not_read_shows_beside_the_state() {
        let mut watch = Watch {
            status: Some(Status::Process(ProcessStatus::default())),
            ..Watch::default()
        };
        watch.set_state(WatchState::Open);
        assert_eq!(state(&watch), ("running".to_owned(), GOOD));
        assert_eq!(json(&watch).get("source_pause"), None);
        let mut pause = SourcePause::default();
        pause.set_reason(SourcePauseReason::WatchShare);
        watch.source_pause = Some(pause);
        assert_eq!(state(&watch), ("running, paused".to_owned(), NOTICE));
        assert_eq!(json(&watch)["source_pause"]["reason"], "watch_share");
    }

    #[test]
    fn a_process_that_is_stopped_or_has_ended_untold_does_not_show_as_running() {
        let shown = |stopped, ended_untold| {
            let mut watch = Watch {
                status: Some(Status::Process(ProcessStatus {
                    stopped,
                    ended_untold,
                    ..ProcessStatus::default()
                })),
                ..Watch::default()
            };
            watch.set_state(WatchState::Open);
            let process = &json(&watch)["process"];
            assert_eq!(process["stopped"], stopped);
            assert_eq!(process["ended_untold"], ended_untold);
            state(&watch).0
        };
        assert_eq!(shown(false, false), "running");
        assert_eq!(shown(true, false), "stopped");
        assert_eq!(shown(false, true), "ended, not told yet");
    }
}
