//! The options and the terminal of a process, as `show` has them.

use crate::clock;
use crate::config::Limit;
use crate::ctl::json::word;
use crate::ctl::table::Sheet;
use crate::ctl::units::{counted, grouped, size, span};
use crate::proto::{
    CgroupUsage, ChildSession, FileMode, FileStdio, PassedDescriptor, ProcessSpec, ProcessStatus,
    ResourceLimit, Stdio, TerminalSize, TerminalStatus,
};

/// Returns what a process and its descendants have used, if it has a cgroup of its own.
pub(in crate::ctl) fn tree_usage(process: &ProcessStatus) -> Option<&CgroupUsage> {
    let ended = process.exited.as_ref();
    let ended = ended.and_then(|exited| exited.cgroup_usage.as_ref());
    ended.or(process.cgroup_usage.as_ref())
}

/// Appends the state of a process, to which `reference` refers.
pub(super) fn status(sheet: &mut Sheet, reference: &str, s: &ProcessStatus) {
    sheet.line("pid", s.pid);
    let (out, err) = (size(s.stdout_bytes), size(s.stderr_bytes));
    let text = format!("{out} to stdout, {err} to stderr: `evloopctl logs {reference}`");
    sheet.line("wrote", text);
    if s.stdin_bytes > 0 {
        sheet.line("received", format!("{} on stdin", size(s.stdin_bytes)));
    }
    if let Some(terminal) = &s.terminal {
        self::terminal(sheet, terminal);
    }
    let time = |d: Option<prost_types::Duration>| {
        clock::span(&d.unwrap_or_default()).map_or_else(String::new, span)
    };
    if let Some(usage) = s.exited.as_ref().and_then(|exited| exited.usage.as_ref()) {
        let (user, system) = (time(usage.user_time), time(usage.system_time));
        let memory = size(usage.max_rss_kib.saturating_mul(1024));
        let text = format!("{user} user, {system} system, {memory} at most");
        sheet.line("used", text);
    }
    if let Some(usage) = tree_usage(s) {
        let (user, system) = (time(usage.user_time), time(usage.system_time));
        let memory = usage.memory_peak_bytes.map(size);
        let memory = memory.map_or_else(String::new, |peak| format!(", {peak} at most"));
        let killed = match usage.oom_kills {
            None | Some(0) => String::new(),
            Some(kills) => {
                let processes = counted(kills, "process was", "processes were");
                format!("; {processes} killed for lack of memory")
            }
        };
        let text = format!("{user} user, {system} system{memory}{killed}");
        sheet.line("with descendants", text);
    }
    sheet.line("cgroup", &s.cgroup);
}

/// Appends what the terminal of a process is like now.
fn terminal(sheet: &mut Sheet, terminal: &TerminalStatus) {
    let TerminalSize { rows, columns } = terminal.size.unwrap_or_default();
    let mode = if terminal.line_mode { "lines" } else { "raw" };
    let group = match terminal.foreground_group {
        0 => "nothing in the foreground".to_owned(),
        group => format!("process group {group} in the foreground"),
    };
    sheet.line("terminal", format!("{columns}x{rows}, {mode}, {group}"));
    if terminal.flushes > 0 {
        let times = counted(terminal.flushes, "time", "times");
        let at = size(terminal.flushed_at);
        let text = format!("{times} what was written and not read, last after {at}");
        sheet.line("dropped", text);
    }
}

/// Appends where the streams of a process go, if not to the defaults.
fn streams(sheet: &mut Sheet, spec: &ProcessSpec) {
    let kinds = [
        ("stdin", spec.stdin(), &spec.stdin_file),
        ("stdout", spec.stdout(), &spec.stdout_file),
        ("stderr", spec.stderr(), &spec.stderr_file),
    ];
    for (name, kind, file) in kinds {
        let text = match kind {
            Stdio::Pipe | Stdio::Pty if name == "stdin" => {
                let ways = "`evloopctl write`, `evloopctl attach`";
                match kind {
                    Stdio::Pty => format!("terminal: {ways}"),
                    _ => format!("open: {ways}"),
                }
            }
            Stdio::Null if name == "stdin" => continue,
            Stdio::Unspecified | Stdio::Pipe => continue,
            Stdio::Null => "/dev/null".to_owned(),
            Stdio::Pty => "terminal".to_owned(),
            Stdio::File => file.as_ref().map_or_else(String::new, file_target),
            Stdio::Slot => "handed over".to_owned(),
            Stdio::Stdout => "as stdout".to_owned(),
        };
        sheet.line(name, text);
    }
    let number = |passed: &PassedDescriptor| passed.number.to_string();
    let passed: Vec<_> = spec.passed.iter().map(number).collect();
    sheet.line("descriptors", passed.join(" "));
}

fn file_target(file: &FileStdio) -> String {
    let path = match &*file.path {
        "" => String::from_utf8_lossy(&file.path_bytes),
        path => path.into(),
    };
    match file.mode() {
        FileMode::Append => format!("{path}, appended"),
        FileMode::Create => format!("{path}, new"),
        _ => path.into_owned(),
    }
}

/// Appends the options of a process that are not the defaults.
pub(super) fn options(sheet: &mut Sheet, spec: &ProcessSpec) {
    let env = spec
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    sheet.line("env", env.collect::<Vec<_>>().join(" "));
    let env_bytes = u64::try_from(spec.env_bytes.len()).unwrap_or(u64::MAX);
    if env_bytes > 0 {
        sheet.line(
            "env",
            format!("{} that are not all text", grouped(env_bytes)),
        );
    }
    streams(sheet, spec);
    let groups = [&spec.group].into_iter().chain(&spec.groups);
    let groups: Vec<_> = groups.filter(|group| !group.is_empty()).collect();
    let groups = groups.iter().map(|group| format!(", {group}"));
    sheet.line(
        "user",
        format!("{}{}", spec.user, groups.collect::<String>()),
    );
    if spec.session() == ChildSession::NewGroup {
        sheet.line("session", "the daemon's");
    }
    if let Some(scheduling) = &spec.scheduling {
        let policy = word(scheduling.policy().as_str_name(), "SCHEDULING_POLICY_");
        let priority = match scheduling.priority {
            0 => String::new(),
            priority => format!(" {priority}"),
        };
        sheet.line("scheduling", format!("{policy}{priority}"));
    }
    if !spec.parent_death_signal.is_empty() {
        let text = format!(
            "{}: it does not outlive the daemon",
            spec.parent_death_signal
        );
        sheet.line("at death", text);
    }
    let limits = spec.limits.iter().map(limit).collect::<Vec<_>>();
    sheet.line("limits", limits.join(" "));
    if let Some(bits) = spec.umask {
        sheet.line("umask", format!("{bits:04o}"));
    }
    if let Some(nice) = spec.nice {
        sheet.line("nice", nice);
    }
    if let Some(adj) = spec.oom_score_adj {
        sheet.line("oom score", adj);
    }
    let timeout = spec.timeout.as_ref().and_then(clock::span);
    sheet.line("timeout", timeout.map_or_else(String::new, span));
    let at_end = word(spec.at_end().as_str_name(), "AT_END_");
    if at_end == "keep" {
        sheet.line("at end", "keep: it outlives its watch and the daemon");
    }
}

/// Returns a limit as `--limit` takes it.
fn limit(limit: &ResourceLimit) -> String {
    let [soft, hard] = [limit.soft, limit.hard].map(|value| value.unwrap_or(u64::MAX));
    format!("{}={}", limit.resource, Limit { soft, hard })
}
