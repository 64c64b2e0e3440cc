//! Options that describe a child process to be run.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum, ValueHint};

use super::complete;
use super::failure::{Failure, USAGE};
use super::parse;
use super::streams::{self, Streams};
use crate::config::{Limit, NICE, OOM_SCORE_ADJ, Resource};
use crate::proto::{
    self, AfterGrace, EnvVar, ExecCommand, InheritedAttributes, InheritedEnv, ProcessSpec,
    ResourceLimit, Scheduling, SchedulingPolicy, Stdio, process_spec,
};

/// The number of random characters at the end of a generated name.
const SUFFIX_LEN: usize = 4;
/// The largest number of characters of the program's name in a generated name.
const STEM_MAX: usize = 40;

/// What happens to a process that still runs when its watch is removed or the daemon ends.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum AtEnd {
    /// The process and its group get SIGTERM and, if they do not end in time, SIGKILL.
    #[default]
    Kill,
    /// The process runs on; how it ends will not be known.
    Keep,
}

/// Options for the program to run: its arguments, its environment and its limits.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Set a variable, in addition to your environment; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE",
          value_parser = OsStringValueParser::new().try_map(|text| parse::variable(&text)))]
    env: Vec<(OsString, OsString)>,
    /// Set the variables of this file, KEY=VALUE on each line; -e overrides them; may be repeated
    #[arg(long = "env-file", value_name = "FILE", value_hint = ValueHint::FilePath,
          value_parser = OsStringValueParser::new().try_map(|path| streams::variables(&path)))]
    env_files: Vec<Vec<(OsString, OsString)>>,
    /// Do not pass your environment on: the program has only the variables of -e and --env-file
    #[arg(long)]
    clear_env: bool,
    /// Working directory [default: yours]
    #[arg(short = 'w', long, visible_aliases = ["workdir", "chdir"], value_name = "DIR", value_hint = ValueHint::DirPath)]
    cwd: Option<PathBuf>,
    /// The umask: permissions that new files do not get, in octal [default: the configuration's, else yours]
    #[arg(long, value_name = "MODE", value_parser = parse::umask)]
    umask: Option<u32>,
    /// Limit a resource of prlimit(1), such as nofile=1024:4096; may be repeated [default: the configuration's, else yours]
    #[arg(long = "limit", value_name = "NAME=SOFT[:HARD]", value_parser = parse::limit)]
    limits: Vec<(Resource, Limit)>,
    /// Nice value, -20 to 19 [default: the configuration's, else yours]
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(i64::from(NICE.0)..=i64::from(NICE.1)))]
    nice: Option<i32>,
    /// The higher, the sooner the kernel kills the program when memory runs out, -1000 to 1000 [default: the configuration's,
    /// else the daemon's]
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32)
              .range(i64::from(OOM_SCORE_ADJ.0)..=i64::from(OOM_SCORE_ADJ.1)))]
    oom_score_adj: Option<i32>,
    /// The user that the program runs as, by name or number; another than the daemon's needs a daemon that is root
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// With --user: the program's group, by name or number; further ones are supplementary [default: those of the user]
    #[arg(long = "group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
    /// How the program is scheduled, see sched(7): other, batch, idle, fifo:PRIORITY or rr:PRIORITY [default: as the daemon]
    #[arg(long, value_name = "POLICY", value_parser = scheduling)]
    scheduling: Option<Scheduling>,
    /// The signal that the program gets when the daemon ends, however it ends: it never outlives the daemon
    #[arg(long, value_name = "SIGNAL", value_parser = parse::signal, add = complete::signals())]
    parent_death_signal: Option<String>,
    #[command(flatten)]
    streams: Streams,
    /// End the program after this time, by SIGTERM and then SIGKILL; a number alone is seconds
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<prost_types::Duration>,
    /// The signal that asks the program to end, in place of SIGTERM
    #[arg(long, value_name = "SIGNAL", value_parser = parse::signal, add = complete::signals())]
    stop_signal: Option<String>,
    /// What happens to the program if it still runs when its watch is removed or the daemon ends
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    at_end: AtEnd,
    /// After the program has ended, go on reading its output until all processes that write to it have closed it
    #[arg(long)]
    keep_reading: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    argv: Vec<OsString>,
}

/// Reads `POLICY`, or `POLICY:PRIORITY`.
fn scheduling(text: &str) -> Result<Scheduling, String> {
    use SchedulingPolicy as Policy;
    let (policy, priority) = match text.split_once(':') {
        Some((policy, priority)) => (policy, priority.parse().ok()),
        None => (text, Some(0)),
    };
    let policy = match policy {
        "other" => Some(Policy::Other),
        "batch" => Some(Policy::Batch),
        "idle" => Some(Policy::Idle),
        "fifo" => Some(Policy::Fifo),
        "rr" => Some(Policy::Rr),
        _ => None,
    };
    match (policy, priority) {
        (Some(policy), Some(priority)) => Ok(Scheduling {
            policy: policy.into(),
            priority,
            reset_on_fork: false,
        }),
        _ => Err("other, batch, idle, fifo:PRIORITY or rr:PRIORITY is expected".into()),
    }
}

impl Command {
    /// Returns the request for the process.
    ///
    /// # Errors
    /// The program's name is empty, or the working directory of evloopctl is not known.
    pub(super) fn spec(&self, stdin: Stdio) -> Result<ProcessSpec, Failure> {
        if self.argv.first().is_some_and(|program| program.is_empty()) {
            let advice = "a variable of the shell may be unset";
            let failure = Failure::plain("the name of the program is empty");
            return Err(failure.advice(advice).code(USAGE));
        }
        let words = self
            .argv
            .iter()
            .map(|word| word.to_str().map(str::to_owned));
        let argv = match words.collect() {
            Some(argv) => ExecCommand {
                argv,
                ..ExecCommand::default()
            },
            None => ExecCommand {
                argv_bytes: self.argv.iter().map(|word| bytes(word)).collect(),
                ..ExecCommand::default()
            },
        };
        let (cwd, cwd_bytes) = match self.directory()?.into_string() {
            Ok(text) => (text, Bytes::new()),
            Err(path) => (String::new(), bytes(&path)),
        };
        let env = self.env_files.iter().flatten().chain(&self.env);
        let (env, env_bytes) = variables(&env.cloned().collect());
        let passed_on = env::vars_os().filter(|_| !self.clear_env);
        let (own, own_bytes) = variables(&passed_on.collect());
        let mut groups = self.groups.iter().cloned();
        let mut spec = ProcessSpec {
            command: Some(process_spec::Command::Exec(argv)),
            env,
            env_bytes,
            inherited_env: Some(InheritedEnv {
                variables: own,
                variables_bytes: own_bytes,
            }),
            cwd,
            cwd_bytes,
            stdin: stdin.into(),
            umask: self.umask,
            limits: self.limits.iter().copied().map(limit).collect(),
            nice: self.nice,
            oom_score_adj: self.oom_score_adj,
            inherited_attributes: Some(own_attributes()),
            user: self.user.clone().unwrap_or_default(),
            group: groups.next().unwrap_or_default(),
            groups: groups.collect(),
            scheduling: self.scheduling,
            parent_death_signal: self.parent_death_signal.clone().unwrap_or_default(),
            timeout: self.timeout,
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            at_end: match self.at_end {
                AtEnd::Kill => proto::AtEnd::Unspecified.into(),
                AtEnd::Keep => proto::AtEnd::Keep.into(),
            },
            after_grace: if self.keep_reading {
                AfterGrace::KeepReading.into()
            } else {
                AfterGrace::Unspecified.into()
            },
            ..ProcessSpec::default()
        };
        self.streams.enter(&mut spec)?;
        Ok(spec)
    }

    /// Returns whether any stream of the program goes elsewhere than usual.
    pub(super) const fn has_streams(&self) -> bool {
        self.streams.is_given()
    }

    /// Returns whether the program's stdin is a file.
    pub(super) const fn reads_file(&self) -> bool {
        self.streams.reads_file()
    }

    /// Returns the working directory of the program. If `--cwd` is absolute, the directory of evloopctl need not exist.
    fn directory(&self) -> Result<OsString, Failure> {
        let asked = self.cwd.clone().unwrap_or_default();
        let path = if asked.is_absolute() {
            asked
        } else {
            let failed = |error: io::Error| {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "your working directory was removed".to_owned(),
                    _ => error.to_string(),
                };
                Failure::new(
                    "working directory",
                    format!("{why}; --cwd /DIR names another"),
                )
            };
            env::current_dir().map_err(failed)?.join(asked)
        };
        let mut path = path.into_os_string().into_vec();
        let last = path.iter().rposition(|byte| *byte != b'/');
        path.truncate(last.map_or(0, |last| last + 1));
        Ok(OsString::from_vec(path))
    }

    /// Generates a name of the program's name and random characters. It is almost certainly unused.
    pub(super) fn generated_name(&self) -> Result<String, Failure> {
        let program = self.argv.first().map(Path::new);
        let stem = program
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy();
        let fits = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        let stem: String = stem.chars().filter(fits).take(STEM_MAX).collect();
        let stem = stem.trim_start_matches(['.', '_', '-']);
        let stem = if stem.is_empty() { "cmd" } else { stem };
        let mut random = [0; SUFFIX_LEN];
        getrandom::fill(&mut random).map_err(|error| Failure::new("getrandom", error))?;
        let letters = b"abcdefghijkmnpqrstuvwxyz23456789";
        let letter = |byte: &u8| char::from(letters[usize::from(*byte) % letters.len()]);
        let suffix: String = random.iter().map(letter).collect();
        Ok(format!("{stem}-{suffix}"))
    }
}

fn bytes(text: &OsStr) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Returns variables as text, or all of them as bytes if one is not UTF-8.
fn variables(pairs: &BTreeMap<OsString, OsString>) -> (BTreeMap<String, String>, Vec<EnvVar>) {
    let text = |(name, value): (&OsString, &OsString)| {
        Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))
    };
    if let Some(text) = pairs.iter().map(text).collect() {
        return (text, Vec::new());
    }
    let variable = |(name, value): (&OsString, &OsString)| EnvVar {
        name: bytes(name),
        value: bytes(value),
    };
    (BTreeMap::new(), pairs.iter().map(variable).collect())
}

fn limit((resource, limit): (Resource, Limit)) -> ResourceLimit {
    ResourceLimit {
        resource: resource.name().to_owned(),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    }
}

/// Returns what a program would inherit if evloopctl executed it.
fn own_attributes() -> InheritedAttributes {
    // umask(2) returns the mask only if it sets one; evloopctl creates no file between the two calls.
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    let limits = Resource::all().map(|resource| limit((resource, resource.own())));
    InheritedAttributes {
        umask: Some(umask.bits()),
        limits: limits.collect(),
        nice: rustix::process::getpriority_process(None).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &str) -> Command {
        Command {
            env: vec![],
            env_files: vec![],
            clear_env: false,
            scheduling: None,
            parent_death_signal: None,
            user: None,
            groups: vec![],
            streams: Streams::default(),
            cwd: None,
            umask: None,
            limits: vec![],
            nice: None,
            oom_score_adj: None,
            stop_signal: None,
            timeout: None,
            at_end: AtEnd::Kill,
            keep_reading: false,
            argv: vec![program.into()],
        }
    }

    #[test]
    fn a_made_up_name_begins_with_the_programs() {
        for (program, stem) in [("/usr/bin/make", "make-"), ("./-x", "x-"), ("ü", "cmd-")] {
            let name = command(program).generated_name().unwrap();
            assert!(name.starts_with(stem), "{name}");
            assert_eq!(name.len(), stem.len() + SUFFIX_LEN);
        }
    }

    #[test]
    fn a_relative_directory_is_below_our_own() {
        let here = env::current_dir().unwrap();
        let spec = Command {
            cwd: Some("sub".into()),
            ..command("x")
        }
        .spec(Stdio::Pipe)
        .unwrap();
        assert_eq!(Path::new(&spec.cwd), here.join("sub"));
    }
}
