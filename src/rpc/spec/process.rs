//! Checks of specifications of child processes.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Checks, Plan, Specification, ending, stdio, update};
use crate::config::{Limit, NICE, OOM_SCORE_ADJ, Refusable, Resource, UMASK_MAX};
use crate::error::{Error, Result, SystemError};
use crate::proto::{self, process_spec::Command, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{
    AfterGrace, Attributes, Change, Order, ProcessOrder, Program, Scheduling, Stdio, UserOrder,
};

/// Most bytes of a program's arguments and environment together; the kernel takes about 2 MiB.
const ARGUMENTS_MAX: usize = 2 << 20;

/// Variables: names and values.
type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

impl Specification for proto::ProcessSpec {
    fn slots(&self) -> Vec<&Bytes> {
        stdio::slots(self).collect()
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut process = self;
        let program = match &mut process.command {
            Some(command) => program(command)?,
            None => return Err(Error::invalid("spec.process", "must have exec or shell")),
        };
        let env = environment(&mut process)?;
        check_size(&program, &env)?;
        let descriptors = stdio::descriptors(checks, &mut process)?;
        let [stdin, stdout, _] = &descriptors.stdio;
        let has_terminal = *stdout == Stdio::Pty;
        if has_terminal {
            // Its loop reads and writes the master side of a pseudoterminal, as a client of asyncio
            // would that gives one to its child. What the child itself is given is not watched.
            checks.allow(Refusable::CharacterDevice)?;
        }
        let field = "spec.process.stdin_water_marks";
        let given = process.stdin_water_marks.as_ref();
        if given.is_some() && *stdin != Stdio::Pipe {
            return Err(Error::invalid(field, "must be absent: stdin is not a pipe"));
        }
        let stdin_marks = checks.water_marks(field, given)?;
        let terminal = stdio::terminal(has_terminal, &mut process.terminal)?;
        // What asks a child to end depends on whether it has a terminal.
        let ending = ending::checked(&process)?;
        let order = ProcessOrder {
            program,
            env,
            cwd: cwd(&mut process)?,
            stdio: descriptors.stdio,
            passed: descriptors.passed,
            terminal,
            user: user(&process)?,
            scheduling: process.scheduling.as_ref().map(scheduling).transpose()?,
            new_session: new_session(process.session, has_terminal)?,
            death_signal: match &*process.parent_death_signal {
                "" => None,
                name => Some(convert::signal("spec.process.parent_death_signal", name)?),
            },
            stdin_marks,
            attributes: asked(&mut process)?,
            inherited: inherited(process.inherited_attributes.take())?,
            pipe_grace: ending.pipe_grace,
            kill_grace: ending.kill_grace,
            timeout: ending.timeout,
            at_end: ending.at_end,
            after_grace: match proto::AfterGrace::try_from(process.after_grace) {
                Ok(proto::AfterGrace::Unspecified | proto::AfterGrace::Drain) => AfterGrace::Drain,
                Ok(proto::AfterGrace::KeepReading) => AfterGrace::KeepReading,
                Err(_) => {
                    return Err(Error::invalid(
                        "spec.process.after_grace",
                        "must be DRAIN or KEEP_READING",
                    ));
                }
            },
            watcher: checks.on.policy().child_watcher,
            signals: ending.signals,
        };
        let claimed = descriptors.claimed;
        Ok(Plan {
            need: order.need(),
            order: Order::Later(Box::new(move |services| {
                let given: Vec<_> = claimed.iter().map(AsFd::as_fd).collect();
                let watch = order.build(services, &given)?;
                // The child has them now, and the slots are used up.
                claimed.into_iter().for_each(|claimed| drop(claimed.keep()));
                Ok(watch)
            })),
            claimed_from: None,
            spec: Spec::Process(process),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &[
            "at_end",
            "kill_grace",
            "pipe_grace",
            "stop_signal",
            "timeout",
        ]
    }

    fn change(self, _: Spec, _: &Checks<'_>) -> Result<update::Prepare> {
        let ending = ending::checked(&self)?;
        Ok(Box::new(move |_| Ok(Change::Process(Box::new(ending)))))
    }
}

/// Returns the whole environment, as `NAME=value`.
fn environment(process: &mut proto::ProcessSpec) -> Result<Arc<[CString]>> {
    let terminal = process.terminal.as_ref();
    let adds = !process.env.is_empty()
        || !process.env_bytes.is_empty()
        || terminal.is_some_and(|terminal| !terminal.term.is_empty());
    if process.inherited_env.is_none() && !adds {
        static OWN: OnceLock<Arc<[CString]>> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(Arc::clone(own));
        }
        // The daemon does not change its environment once it has other threads.
        let own = assignments(&own_environment())?;
        return Ok(Arc::clone(OWN.get_or_init(|| own)));
    }
    let mut whole = match process.inherited_env.take() {
        Some(mut inherited) => variables(
            "spec.process.inherited_env.variables",
            &mut inherited.variables,
            "spec.process.inherited_env.variables_bytes",
            &mut inherited.variables_bytes,
        )?,
        None => own_environment(),
    };
    if let Some(terminal) = &process.terminal
        && !terminal.term.is_empty()
    {
        whole.insert("TERM".into(), terminal.term.clone().into());
    }
    whole.extend(variables(
        "spec.process.env",
        &mut process.env,
        "spec.process.env_bytes",
        &mut process.env_bytes,
    )?);
    assignments(&whole)
}

fn assignments(variables: &Environment) -> Result<Arc<[CString]>> {
    let assignments = variables.iter().map(|(name, value)| {
        let variable = [name, &b"="[..], value].concat();
        c_string("spec.process.env", variable)
    });
    assignments.collect()
}

fn check_size(program: &Program, env: &[CString]) -> Result<()> {
    let size = |strings: &[CString]| -> usize {
        let sizes = strings.iter().map(|text| text.as_bytes_with_nul().len());
        sizes.sum()
    };
    let arguments = match program {
        Program::Exec(argv) => size(argv),
        Program::Shell(line) => size(std::slice::from_ref(line)),
    };
    if arguments + size(env) > ARGUMENTS_MAX {
        return Err(SystemError::new(rustix::io::Errno::TOOBIG, "exec", "").into());
    }
    Ok(())
}

/// Returns the program to execute. If all words are given as bytes and are UTF-8, they become text,
/// so that a specification in bytes compares as equal to the same one as text. Variables and the
/// working directory are treated in the same way.
fn program(command: &mut Command) -> Result<Program> {
    let exec = match command {
        Command::Exec(exec) => exec,
        Command::Shell(line) => {
            let line = c_string("spec.process.shell", line.as_bytes());
            return line.map(Program::Shell);
        }
    };
    let (text, bytes) = ("spec.process.exec.argv", "spec.process.exec.argv_bytes");
    either(bytes, exec.argv_bytes.is_empty() || exec.argv.is_empty())?;
    let argv = if exec.argv_bytes.is_empty() {
        c_strings(text, &exec.argv)?
    } else {
        c_strings(bytes, &exec.argv_bytes)?
    };
    if argv.first().is_none_or(|program| program.is_empty()) {
        return Err(Error::invalid(
            text,
            "must begin with the name of a program",
        ));
    }
    if let Some(words) = exec.argv_bytes.iter().map(utf8).collect::<Option<Vec<_>>>()
        && exec.argv.is_empty()
    {
        exec.argv = words;
        exec.argv_bytes.clear();
    }
    Ok(Program::Exec(argv))
}

/// Returns the variables that were given as text or as bytes.
fn variables(
    text_field: &'static str,
    text: &mut BTreeMap<String, String>,
    bytes_field: &'static str,
    bytes: &mut Vec<proto::EnvVar>,
) -> Result<Environment> {
    either(bytes_field, bytes.is_empty() || text.is_empty())?;
    let field = if bytes.is_empty() {
        text_field
    } else {
        bytes_field
    };
    let mut variables = Environment::new();
    for (name, value) in &*text {
        variables.insert(name.clone().into(), value.clone().into());
    }
    for variable in &*bytes {
        let (name, value) = (variable.name.to_vec(), variable.value.to_vec());
        if variables.insert(name, value).is_some() {
            return Err(Error::invalid(field, "must have each name only once"));
        }
    }
    for (name, value) in &variables {
        if name.is_empty() || name.contains(&b'=') {
            let allowed = "must have names that are not empty and do not contain `=`";
            return Err(Error::invalid(field, allowed));
        }
        if name.contains(&0) || value.contains(&0) {
            return Err(Error::invalid(field, "must not contain NUL"));
        }
    }
    let pairs = bytes
        .iter()
        .map(|v| Some((utf8(&v.name)?, utf8(&v.value)?)));
    match pairs.collect::<Option<Vec<_>>>() {
        Some(pairs) => {
            text.extend(pairs);
            bytes.clear();
        }
        None => bytes.sort_by(|a, b| a.name.cmp(&b.name)),
    }
    Ok(variables)
}

fn cwd(process: &mut proto::ProcessSpec) -> Result<CString> {
    let field = "spec.process.cwd_bytes";
    either(
        field,
        process.cwd_bytes.is_empty() || process.cwd.is_empty(),
    )?;
    let (field, path) = if process.cwd_bytes.is_empty() {
        ("spec.process.cwd", process.cwd.as_bytes())
    } else {
        (field, &process.cwd_bytes[..])
    };
    let cwd = match path {
        [] => c"/".to_owned(),
        [b'/', ..] => c_string(field, path)?,
        _ => return Err(Error::invalid(field, "must be an absolute path")),
    };
    if let Some(text) = utf8(&process.cwd_bytes).filter(|text| !text.is_empty()) {
        process.cwd = text;
        process.cwd_bytes.clear();
    }
    Ok(cwd)
}

/// Returns the requested umask, limits and similar attributes. Limits are shown by name, with both
/// values.
fn asked(process: &mut proto::ProcessSpec) -> Result<Attributes> {
    let limits = limits("spec.process.limits", &process.limits)?;
    for limit in &mut process.limits {
        (limit.soft, limit.hard) = (limit.soft.or(limit.hard), limit.hard.or(limit.soft));
    }
    process.limits.sort_by(|a, b| a.resource.cmp(&b.resource));
    Ok(Attributes {
        umask: umask("spec.process.umask", process.umask)?,
        nice: number("spec.process.nice", process.nice, NICE)?,
        oom_score_adj: number(
            "spec.process.oom_score_adj",
            process.oom_score_adj,
            OOM_SCORE_ADJ,
        )?,
        limits,
    })
}

fn inherited(attributes: Option<proto::InheritedAttributes>) -> Result<Attributes> {
    let attributes = attributes.unwrap_or_default();
    let field = "spec.process.inherited_attributes.limits";
    let limits = limits(field, &attributes.limits)?;
    Ok(Attributes {
        umask: umask("spec.process.inherited_attributes.umask", attributes.umask)?,
        nice: number(
            "spec.process.inherited_attributes.nice",
            attributes.nice,
            NICE,
        )?,
        oom_score_adj: None,
        limits,
    })
}

fn limits(
    field: &'static str,
    given: &[proto::ResourceLimit],
) -> Result<BTreeMap<Resource, Limit>> {
    let mut limits = BTreeMap::new();
    for proto::ResourceLimit {
        resource,
        soft,
        hard,
    } in given
    {
        let wrong = |what| Error::invalid(field, format!("{resource}: {what}"));
        let parsed = resource
            .parse()
            .map_err(|why: String| Error::invalid(field, why));
        let limit = match (soft.or(*hard), hard.or(*soft)) {
            (Some(soft), Some(hard)) if soft <= hard => Limit { soft, hard },
            (Some(_), Some(_)) => return Err(wrong("soft must be at most hard")),
            _ => return Err(wrong("soft or hard must be set")),
        };
        if limits.insert(parsed?, limit).is_some() {
            return Err(wrong("the resource must be there only once"));
        }
    }
    Ok(limits)
}

fn umask(field: &'static str, umask: Option<u32>) -> Result<Option<u32>> {
    match umask {
        Some(bits) if bits > UMASK_MAX => Err(Error::invalid(field, "must be 0 to 0777 (octal)")),
        umask => Ok(umask),
    }
}

fn number(
    field: &'static str,
    given: Option<i32>,
    (least, most): (i32, i32),
) -> Result<Option<i32>> {
    match given {
        Some(number) if !(least..=most).contains(&number) => {
            Err(Error::invalid(field, format!("must be {least} to {most}")))
        }
        given => Ok(given),
    }
}

/// Fails unless `fine`: a field in bytes and the same field as text must not both be set.
pub(super) fn either(bytes_field: &'static str, fine: bool) -> Result<()> {
    if fine {
        return Ok(());
    }
    Err(Error::invalid(
        bytes_field,
        "must not be set if the field of the same name without _bytes is set",
    ))
}

pub(super) fn utf8(bytes: &Bytes) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

pub(super) fn c_string(field: &'static str, bytes: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid(field, "must not contain NUL"))
}

fn c_strings(field: &'static str, strings: &[impl AsRef<[u8]>]) -> Result<Vec<CString>> {
    let strings = strings
        .iter()
        .map(|string| c_string(field, string.as_ref()));
    strings.collect()
}

/// Returns the daemon's environment, for children whose specification has none. It leaves out the
/// variables that concern only the daemon and its service manager.
fn own_environment() -> Environment {
    const OWN: [&str; 5] = [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "JOURNAL_STREAM",
    ];
    std::env::vars_os()
        .filter(|(name, _)| !OWN.iter().any(|own| name == own))
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}

/// Most supplementary groups.
const GROUPS_MAX: usize = 256;

fn user(process: &proto::ProcessSpec) -> Result<UserOrder> {
    let order = UserOrder {
        user: process.user.clone(),
        group: process.group.clone(),
        groups: process.groups.clone(),
    };
    if order.user.is_empty() && !order.group.is_empty() {
        let allowed = "must be empty without user";
        return Err(Error::invalid("spec.process.group", allowed));
    }
    if order.user.is_empty() && !order.groups.is_empty() {
        let allowed = "must be empty without user";
        return Err(Error::invalid("spec.process.groups", allowed));
    }
    if order.groups.len() > GROUPS_MAX {
        let allowed = "must be at most 256 groups";
        return Err(Error::invalid("spec.process.groups", allowed));
    }
    Ok(order)
}

fn new_session(session: i32, has_terminal: bool) -> Result<bool> {
    let field = "spec.process.session";
    match proto::ChildSession::try_from(session) {
        Ok(proto::ChildSession::Unspecified | proto::ChildSession::NewSession) => Ok(true),
        Ok(proto::ChildSession::NewGroup) if has_terminal => Err(Error::invalid(
            field,
            "must be NEW_SESSION: a terminal needs a session of its own",
        )),
        Ok(proto::ChildSession::NewGroup) => Ok(false),
        Err(_) => Err(Error::invalid(field, "must be NEW_SESSION or NEW_GROUP")),
    }
}

fn scheduling(given: &proto::Scheduling) -> Result<Scheduling> {
    use nix::libc;
    use proto::SchedulingPolicy as Policy;
    let (policy, priorities) = match Policy::try_from(given.policy) {
        Ok(Policy::Other) => (libc::SCHED_OTHER, 0..=0),
        Ok(Policy::Batch) => (libc::SCHED_BATCH, 0..=0),
        Ok(Policy::Idle) => (libc::SCHED_IDLE, 0..=0),
        Ok(Policy::Fifo) => (libc::SCHED_FIFO, 1..=99),
        Ok(Policy::Rr) => (libc::SCHED_RR, 1..=99),
        Ok(Policy::Unspecified) | Err(_) => {
            let allowed = "must be OTHER, BATCH, IDLE, FIFO or RR";
            return Err(Error::invalid("spec.process.scheduling.policy", allowed));
        }
    };
    let priority = i32::try_from(given.priority).ok();
    let priority = priority.filter(|priority| priorities.contains(priority));
    let priority = priority.ok_or_else(|| {
        let allowed = "must be 1 to 99 for FIFO and RR, and 0 for the other policies";
        Error::invalid("spec.process.scheduling.priority", allowed)
    })?;
    let reset = match given.reset_on_fork {
        true => libc::SCHED_RESET_ON_FORK,
        false => 0,
    };
    Ok(Scheduling {
        policy: policy | reset,
        priority,
    })
}
