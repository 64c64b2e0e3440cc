//! Says in a few words what a watch watches, for each kind of watch.

use super::render::{address_or_unnamed, unix_address};
use super::units::span;
use crate::clock;
use crate::proto::{
    ConnectionSpec, DatagramSpec, FdSpec, FileSpec, ListenerSpec, PathSpec, PidSpec, ProcessSpec,
    ReadPipeSpec, SignalSpec, TimerSpec, WritePipeSpec, connection_spec, listener_spec, pid_spec,
    process_spec, read_pipe_spec, timer_spec, write_pipe_spec,
};

/// Says what a watch watches. Each message of `WatchSpec.spec` has an implementation.
pub(super) trait Target {
    /// Returns a few words, such as a command or an address.
    fn target(&self) -> String;
}

/// The target of a watch whose descriptor a client has handed over.
const HANDED_OVER: &str = "handed over";

impl Target for FdSpec {
    fn target(&self) -> String {
        "descriptor".to_owned()
    }
}

impl Target for TimerSpec {
    fn target(&self) -> String {
        // A negative time is past.
        let of_time = |time: &prost_types::Duration| span(clock::span(time).unwrap_or_default());
        match &self.schedule {
            Some(timer_spec::Schedule::After(time)) => format!("after {}", of_time(time)),
            Some(timer_spec::Schedule::Every(time)) => format!("every {}", of_time(time)),
            Some(timer_spec::Schedule::Cron(text)) => format!("cron {text}"),
            Some(timer_spec::Schedule::OnCalendar(text)) => format!("calendar {text}"),
            Some(timer_spec::Schedule::AtRealtime(time)) => format!("at {time}"),
            Some(timer_spec::Schedule::AtMonotonicNs(ns)) => format!("at {ns} ns monotonic"),
            None => String::new(),
        }
    }
}

/// Returns a path that is given as text or as bytes.
fn text_of_path(path: &str, bytes: &[u8]) -> String {
    match path {
        "" => bytes.escape_ascii().to_string(),
        path => path.to_owned(),
    }
}

impl Target for PathSpec {
    fn target(&self) -> String {
        let below = if self.recursive { ", all below" } else { "" };
        format!("{}{below}", text_of_path(&self.path, &self.path_bytes))
    }
}

impl Target for FileSpec {
    fn target(&self) -> String {
        let how = if self.follow { "follow" } else { "read" };
        format!("{how} {}", text_of_path(&self.path, &self.path_bytes))
    }
}

impl Target for ProcessSpec {
    fn target(&self) -> String {
        command(self)
    }
}

/// Returns the command line of a process, quoted for a shell.
pub(super) fn command(spec: &ProcessSpec) -> String {
    match &spec.command {
        Some(process_spec::Command::Exec(exec)) => {
            let words = exec.argv_bytes.iter().map(|w| String::from_utf8_lossy(w));
            let words: Vec<_> = exec.argv.iter().map(Into::into).chain(words).collect();
            let words = words.iter().map(AsRef::as_ref);
            shlex::try_join(words.clone()).unwrap_or_else(|_| words.collect::<Vec<_>>().join(" "))
        }
        Some(process_spec::Command::Shell(line)) => line.clone(),
        None => String::new(),
    }
}

impl Target for ConnectionSpec {
    fn target(&self) -> String {
        match &self.target {
            Some(connection_spec::Target::Tcp(tcp)) => format!("{}:{}", tcp.host, tcp.port),
            Some(connection_spec::Target::Unix(address)) => unix_address(address),
            Some(connection_spec::Target::Slot(_)) | None => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for ListenerSpec {
    fn target(&self) -> String {
        match &self.target {
            Some(listener_spec::Target::Tcp(tcp)) => {
                format!("{}:{}", tcp.hosts.join(","), tcp.port)
            }
            Some(listener_spec::Target::Unix(address)) => unix_address(address),
            Some(listener_spec::Target::Slot(_)) | None => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for ReadPipeSpec {
    fn target(&self) -> String {
        match &self.source {
            Some(read_pipe_spec::Source::FifoPath(path)) => path.clone(),
            Some(read_pipe_spec::Source::Slot(_)) | None => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for WritePipeSpec {
    fn target(&self) -> String {
        match &self.target {
            Some(write_pipe_spec::Target::FifoPath(path)) => path.clone(),
            Some(write_pipe_spec::Target::Slot(_)) | None => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for DatagramSpec {
    fn target(&self) -> String {
        let shown = |a: &Option<_>| a.as_ref().map(|a| address_or_unnamed(Some(a)));
        match (shown(&self.local), shown(&self.peer)) {
            (Some(local), Some(peer)) => format!("{local} → {peer}"),
            (Some(local), None) => local,
            (None, Some(peer)) => format!("→ {peer}"),
            (None, None) => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for PidSpec {
    fn target(&self) -> String {
        match &self.process {
            Some(pid_spec::Process::Pid(pid)) => format!("pid {pid}"),
            Some(pid_spec::Process::Slot(_)) | None => HANDED_OVER.to_owned(),
        }
    }
}

impl Target for SignalSpec {
    fn target(&self) -> String {
        self.signals.join(" ")
    }
}
