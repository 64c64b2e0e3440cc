//! Whether two specifications ask for the same, and if not, which field says so.

use crate::proto::{
    ConnectionSpec, FdSpec, ListenerSpec, ProcessSpec, ReadPipeSpec, WatchSpec, WritePipeSpec,
    watch_spec::Spec,
};

/// Fails over to the name of the first field in which `$a` and `$b` differ.
macro_rules! first_difference {
    ($kind:literal, $a:expr, $b:expr, [$($field:ident),+ $(,)?]) => {{
        // Naming every field here and nowhere else: a new one must be listed.
        $(if $a.$field != $b.$field {
            return Some(concat!("spec.", $kind, ".", stringify!($field)));
        })+
        None
    }};
}

/// The first field in which they differ. Slots and what is inherited are in neither.
pub(super) fn difference(a: &WatchSpec, b: &WatchSpec) -> Option<&'static str> {
    match (&a.spec, &b.spec) {
        (Some(Spec::Fd(a)), Some(Spec::Fd(b))) => fd(a, b),
        (Some(Spec::Timer(a)), Some(Spec::Timer(b))) => {
            first_difference!("timer", a, b, [schedule])
        }
        (Some(Spec::Process(a)), Some(Spec::Process(b))) => process(a, b),
        (Some(Spec::Connection(a)), Some(Spec::Connection(b))) => connection(a, b),
        (Some(Spec::Listener(a)), Some(Spec::Listener(b))) => listener(a, b),
        (Some(Spec::ReadPipe(a)), Some(Spec::ReadPipe(b))) => read_pipe(a, b),
        (Some(Spec::WritePipe(a)), Some(Spec::WritePipe(b))) => write_pipe(a, b),
        (Some(Spec::Signal(a)), Some(Spec::Signal(b))) => {
            first_difference!("signal", a, b, [signals])
        }
        _ => Some("spec"),
    }
}

fn fd(a: &FdSpec, b: &FdSpec) -> Option<&'static str> {
    first_difference!("fd", a, b, [slot, readable, writable])
}

fn process(a: &ProcessSpec, b: &ProcessSpec) -> Option<&'static str> {
    first_difference!(
        "process",
        a,
        b,
        [
            command,
            env,
            inherited_env,
            cwd,
            stdin,
            stdout,
            stderr,
            pipe_grace,
            at_end,
            kill_grace,
            cwd_bytes,
            env_bytes,
            umask,
            limits,
            nice,
            oom_score_adj,
            inherited_attributes,
            after_grace,
            timeout
        ]
    )
}

fn connection(a: &ConnectionSpec, b: &ConnectionSpec) -> Option<&'static str> {
    first_difference!(
        "connection",
        a,
        b,
        [target, keep_half_open, start_paused, connect_timeout]
    )
}

fn listener(a: &ListenerSpec, b: &ListenerSpec) -> Option<&'static str> {
    first_difference!(
        "listener",
        a,
        b,
        [target, backlog, keep_half_open, start_paused]
    )
}

fn read_pipe(a: &ReadPipeSpec, b: &ReadPipeSpec) -> Option<&'static str> {
    first_difference!("read_pipe", a, b, [source, start_paused])
}

fn write_pipe(a: &WritePipeSpec, b: &WritePipeSpec) -> Option<&'static str> {
    first_difference!("write_pipe", a, b, [target])
}
