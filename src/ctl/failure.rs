//! Failures of verbs: one line on stderr that says what failed, why, and what to do, and the exit code.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use rustix::fs::{FileType, Stat};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::options;
use crate::client::NoDaemon;
use crate::text;

/// The exit codes of all verbs, for `--help`, the manual pages and the README.
pub(super) const EXIT_CODES: &str = "\
Exit codes of run, attach, wait and logs:
  0-255  the program's own exit code; logs: 0
  124    the program ran, or wait waited, longer than --timeout
  125    evloopctl failed, or the exit code is not known; logs: output is gone
  126    the program was found, but cannot be executed
  127    the program was not found
  128+N  signal N ended the program; run, attach: SIGINT ends evloopctl too
Exit codes of all other commands:
  0      success
  1      the command failed, for at least one of the names; with --follow: the watch ended early
  2      the command line, or a file that it names, is wrong
  3      events are missing (events, and watch with --follow)";

/// Exit code if a timeout ended the process or the wait, as of timeout(1).
pub(super) const TIMED_OUT: u8 = 124;
/// Exit code of failures of evloopctl itself, for verbs whose exit code is otherwise that of a process.
pub(super) const OWN_FAILURE: u8 = 125;
/// Exit code if the program was found and cannot be executed, as of env(1).
const NOT_EXECUTABLE: u8 = 126;
/// Exit code if the program was not found, as of env(1).
const NOT_FOUND: u8 = 127;
/// Exit code if events are missing.
pub(super) const GAP_MET: u8 = 3;
/// Exit code if the command line, or a file that it names, is wrong.
pub(super) const USAGE: u8 = 2;
/// Exit code of any other failure.
const FAILED: u8 = 1;

const RED: Style = AnsiColor::Red.on_default();

/// A verb's result: its exit code, or its failure.
pub(super) type Outcome = Result<u8, Failure>;

/// Why stdout or stderr takes no more output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The reader of the pipe has closed it.
    Reader,
    /// The terminal is closed.
    Terminal,
}

/// Why a verb failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The verb as it was typed; empty if the line on stderr should not name it.
    verb: String,
    /// What failed and why; empty if no line is printed.
    message: String,
    /// What to do; may be empty.
    advice: String,
    /// The `reason` of the daemon's google.rpc.ErrorInfo; empty if the daemon sent none.
    pub(super) reason: String,
    /// The metadata of the daemon's ErrorInfo: keys and values.
    metadata: Box<[(String, String)]>,
    /// The connection broke: another attempt may succeed.
    pub(super) lost: bool,
    /// Why output could not be written, if that is the failure.
    pub(super) gone: Option<Gone>,
    /// The exit code.
    pub(super) code: u8,
}

impl Failure {
    /// Returns a failure with the line `what: reason`. The number of an errno at the end of `reason` is left out.
    pub(super) fn new(what: impl fmt::Display, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let words = match reason.rsplit_once(" (os error ") {
            Some((words, number)) if number.ends_with(')') => words,
            _ => &reason,
        };
        Self::plain(format!("{what}: {words}"))
    }

    /// Returns a failure with this line.
    pub(super) fn plain(message: impl Into<String>) -> Self {
        Self {
            verb: String::new(),
            message: message.into(),
            advice: String::new(),
            reason: String::new(),
            metadata: Box::default(),
            lost: false,
            gone: None,
            code: FAILED,
        }
    }

    /// Returns the failure for an error of the daemon or of the connection to it.
    pub(super) fn rpc(status: &Status) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info() else {
            let lost = matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
            );
            if !lost {
                return Self::plain(status.message());
            }
            let what = format!(
                "the connection to the daemon is lost ({})",
                status.message()
            );
            let failure =
                Self::plain(what).advice("`evloopctl status` shows whether the daemon runs");
            return Self { lost, ..failure };
        };
        let violation = details
            .bad_request()
            .and_then(|b| b.field_violations.first());
        let message = match violation {
            Some(v) if !status.message().contains(&v.field) => {
                format!("{}: {}: {}", status.message(), v.field, v.description)
            }
            _ => status.message().to_owned(),
        };
        let message = in_words_of_options(&message);
        let failure = Self {
            reason: info.reason.clone(),
            metadata: info.metadata.clone().into_iter().collect(),
            ..Self::plain(message)
        };
        let advice = advice(&failure);
        failure.with_exec_code().advice(advice)
    }

    /// Returns the failure with the exit code of env(1), if the daemon could not execute a program.
    fn with_exec_code(self) -> Self {
        let code = match (self.detail("step"), self.detail("errno_name")) {
            ("lookup" | "exec", "ENOENT") => NOT_FOUND,
            ("lookup" | "exec", _) => NOT_EXECUTABLE,
            _ => return self,
        };
        self.code(code)
    }

    /// Returns the value of this key in the metadata of the daemon's error; empty if it has none.
    pub(super) fn detail(&self, key: &str) -> &str {
        let mut pairs = self.metadata.iter();
        let found = pairs.find(|(known, _)| known == key);
        found.map_or("", |(_, value)| value)
    }

    /// Returns the failure with another message.
    pub(super) fn with_message(self, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { message, ..self }
    }

    /// Returns the failure with `what` before its message.
    pub(super) fn about(self, what: impl fmt::Display) -> Self {
        if self.is_silent() {
            return self;
        }
        let message = format!("{what}: {}", self.message);
        self.with_message(message)
    }

    /// Returns the failure with the verb that failed.
    pub(super) fn of_verb(self, verb: &str) -> Self {
        let verb = verb.to_owned();
        Self { verb, ..self }
    }

    /// Returns the failure for an error of writing to stdout or stderr. A pipe that its reader has closed is no error: no
    /// line is printed, and the exit code is 0.
    pub(super) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            let gone = Some(Gone::Reader);
            return Self {
                gone,
                ..Self::silent(0)
            };
        }
        // A write to a closed terminal fails with EIO, but so does a write to a broken disk.
        let eio = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        let hung_up = eio && (is_device(io::stdout()) || is_device(io::stderr()));
        let gone = hung_up.then_some(Gone::Terminal);
        Self {
            gone,
            ..Self::new("stdout", error)
        }
    }

    /// Returns a failure that prints no line.
    pub(super) fn silent(code: u8) -> Self {
        Self::plain("").code(code)
    }

    /// Returns whether the failure prints no line.
    pub(super) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// Returns the failure with another exit code.
    pub(super) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Returns the failure with advice: what to do.
    pub(super) fn advice(self, advice: impl Into<String>) -> Self {
        let advice = advice.into();
        Self { advice, ..self }
    }

    /// Returns the failure with an exit code for verbs that otherwise exit with a process's code: [`OWN_FAILURE`], unless it
    /// has a code of timeout(1) or env(1).
    pub(super) fn of_run(self) -> Self {
        let code = match self.code {
            code @ (TIMED_OUT | NOT_EXECUTABLE | NOT_FOUND) => code,
            code if self.is_silent() => code,
            _ => OWN_FAILURE,
        };
        Self { code, ..self }
    }

    /// Writes the failure's line to stderr. Returns its exit code.
    pub(super) fn report(&self) -> u8 {
        if !self.is_silent() {
            complain(self);
        }
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.message.strip_prefix(&self.verb);
        if !self.verb.is_empty() && !said.is_some_and(|rest| rest.starts_with(": ")) {
            write!(f, "{}: ", self.verb)?;
        }
        write!(f, "{}", text::escaped(&self.message, MESSAGE_MAX))?;
        if self.advice.is_empty() {
            return Ok(());
        }
        write!(f, "; {}", self.advice)
    }
}

impl From<NoDaemon> for Failure {
    fn from(error: NoDaemon) -> Self {
        Self::plain(error.reason()).advice(error.advice())
    }
}

/// Returns whether the descriptor is a character device. A terminal is one, even after it was closed.
fn is_device(fd: impl AsFd) -> bool {
    let device = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    rustix::fs::fstat(fd).is_ok_and(device)
}

/// The longest line on stderr, in bytes.
const LINE_MAX: usize = 4096;
/// The longest message of a failure, in bytes. The rest of the line is for the advice.
const MESSAGE_MAX: usize = LINE_MAX - 512;

/// Writes a warning or a failure to stderr, as one line.
pub(super) fn complain(message: impl fmt::Display) {
    say(message, Style::new());
}

/// Writes one line in red to stderr. It is for events and output that are lost.
pub(super) fn complain_loudly(message: impl fmt::Display) {
    say(message, RED);
}

fn say(message: impl fmt::Display, style: Style) {
    let message = text::escaped(message, LINE_MAX);
    let line = format!("{RED}evloopctl:{RED:#} {style}{message}{style:#}\n");
    let line = match AutoStream::choice(&io::stderr()) {
        ColorChoice::Never => strip_str(&line).to_string(),
        _ => line,
    };
    // One write, because other processes may write to stderr too. An error is ignored: stderr is where it would be reported.
    let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
}

/// Rewrites the daemon's message for the command line: leaves out what the advice says too, and names a field as
/// [`options`] does, or else without its path in the request.
fn in_words_of_options(message: &str) -> String {
    if let Some(unset) = message.strip_suffix(": set it again") {
        return unset.to_owned();
    }
    // On the command line, a cursor without an epoch has no colon.
    let message = message.replace("cursor :", "cursor ");
    let message = match message.split_once("; readable is ") {
        Some((why, _)) => why.to_owned(),
        None => message,
    };
    let Some((path, rest)) = message.split_once(": ") else {
        return message;
    };
    if let Some(option) = options::option(path) {
        return format!("{option}: {rest}");
    }
    match path
        .strip_prefix("spec.")
        .and_then(|path| path.rsplit('.').next())
    {
        Some(field) if !path.contains(' ') => format!("{}: {rest}", field.replace('_', "-")),
        _ => message,
    }
}

/// Returns what to do about an error of the daemon, by its reason; may be empty.
fn advice(failure: &Failure) -> String {
    let on = failure
        .detail("loop")
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let fixed = match failure.reason.as_str() {
        "LOOP_NOT_FOUND" => "`evloopctl loop list` lists your loops; an id is written `@7`",
        "WATCH_NOT_FOUND" => {
            "`evloopctl ps` lists processes, `evloopctl watch list` lists all watches"
        }
        "NO_LOOP_IN_CONTEXT" => {
            "set one with `evloopctl loop set NAME`, or name one with --loop NAME"
        }
        "CONSUMER_NOT_FOUND" => "`evloopctl consumer list` lists the consumers of the loop",
        "SLOT_NOT_FOUND" => "hand the descriptor over again",
        "NAME_TAKEN" => "choose another name, or add --if-missing to accept the one that exists",
        "LOOP_CLOSED" => return format!("make another with `evloopctl loop new {on}`"),
        "LOOP_RUNNING" => return format!("close it with `evloopctl loop close {on} --stop`"),
        "LIMIT" => "remove finished watches with `evloopctl rm --all`, or raise the limit",
        "JOURNAL_FULL" => {
            "`evloopctl consumer list` shows which consumer has not acknowledged its events; `evloopctl rm --all` removes finished watches"
        }
        "MAILBOX_FULL" => "the loop is busy: try again",
        "CURSOR_OUT_OF_RANGE" => return range(failure),
        "NOT_SUPPORTED" | "BACKEND_UNAVAILABLE" => {
            "`evloopctl backends` shows what this host supports"
        }
        "PERMISSION_DENIED" if failure.message.contains("not served") => {
            "`evloopd &` starts a daemon of your own"
        }
        "SYSTEM" if failure.detail("step") == "chdir" => {
            "check that the directory exists and may be entered"
        }
        "SYSTEM" if failure.detail("errno_name") == "EADDRINUSE" => {
            "another program listens at this address: `ss -lntup` shows which"
        }
        "SYSTEM"
            if matches!(
                failure.detail("step"),
                "setrlimit" | "nice" | "oom_score_adj"
            ) && matches!(failure.detail("errno_name"), "EPERM" | "EACCES") =>
        {
            "a value beyond the daemon's own needs a privilege that the daemon does not have"
        }
        "DRAINING" => "try again when the daemon runs again",
        "INTERNAL" => "please report this error, with the daemon's log",
        _ => "",
    };
    fixed.to_owned()
}

fn range(failure: &Failure) -> String {
    let [epoch, oldest, newest] = ["epoch", "oldest", "newest"].map(|key| failure.detail(key));
    let first = oldest.parse::<u64>().unwrap_or(1).saturating_sub(1);
    format!(
        "the journal has events --after {epoch}:{first} up to {epoch}:{newest}; --oldest prints all of them"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Failure {
        let metadata: HashMap<_, _> = metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let details = ErrorDetails::with_error_info(reason, "evloopd", metadata);
        Failure::rpc(&Status::with_error_details(code, "refused", details))
    }

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let taken = refused(
            Code::AlreadyExists,
            "NAME_TAKEN",
            &[("field", "spec.process.exec")],
        );
        let taken = taken.about("build").of_verb("run");
        assert_eq!(
            taken.to_string(),
            "run: build: refused; choose another name, or add --if-missing to accept the one that exists"
        );
        assert_eq!(taken.detail("field"), "spec.process.exec");
        assert_eq!((taken.lost, taken.code), (false, 1));
        assert_eq!(taken.of_run().code, OWN_FAILURE);
        let doubled = Failure::plain("every: must be 1 ms").of_verb("every");
        assert_eq!(doubled.to_string(), "every: must be 1 ms");
        let range = [("epoch", "ab"), ("oldest", "7"), ("newest", "9")];
        let old = refused(Code::OutOfRange, "CURSOR_OUT_OF_RANGE", &range);
        assert!(old.to_string().contains("--after ab:6 up to ab:9"), "{old}");
    }

    #[test]
    fn a_program_that_cannot_be_executed_has_the_codes_of_env() {
        for (step, errno, code) in [
            ("lookup", "ENOENT", 127),
            ("exec", "ENOENT", 127),
            ("lookup", "EACCES", 126),
            ("exec", "ENOEXEC", 126),
            ("chdir", "ENOENT", OWN_FAILURE),
            ("fork", "EAGAIN", OWN_FAILURE),
        ] {
            let told = [("step", step), ("errno_name", errno)];
            let failure = refused(Code::NotFound, "SYSTEM", &told);
            assert_eq!(failure.of_run().code, code, "{step} {errno}");
        }
        let timed_out = Failure::plain("x").code(TIMED_OUT);
        assert_eq!(timed_out.of_run().code, TIMED_OUT);
    }

    #[test]
    fn only_what_the_daemon_did_not_say_itself_is_a_lost_connection() {
        assert!(Failure::rpc(&Status::unavailable("broken pipe")).lost);
        assert!(!Failure::rpc(&Status::unimplemented("what")).lost);
        assert!(!refused(Code::Unavailable, "DRAINING", &[]).lost);
    }

    #[test]
    fn a_closed_pipe_ends_quietly_even_where_failures_have_their_own_code() {
        let closed = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((closed.to_string().as_str(), closed.of_run().code), ("", 0));
    }
}
