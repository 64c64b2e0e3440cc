//! What ends a verb early: one line of what, why and what to do, and an exit code.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use rustix::fs::{FileType, Stat};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::client::NoDaemon;
use crate::text;

/// What every verb exits with, for `--help`, the manual pages and the README.
pub(super) const EXIT_CODES: &str = "\
Exit codes of run, attach, wait and logs:
  0-255  the program's own; of logs 0
  124    its time was over: --timeout of run or of wait
  125    evloopctl failed, or the code is not known; of logs: part of it is gone
  126    the program was found and cannot be executed
  127    the program was not found
  128+N  signal N ended it; of run and attach, SIGINT ends evloopctl too
of all others:
  0      it is done
  1      it could not be done, or not for all that were named
  2      the command line, or a file on it, is wrong
  3      events were missing (events, and watches with --follow)";

/// Exit code where a process ran out of its time, as of timeout(1).
pub(super) const TIMED_OUT: u8 = 124;
/// Exit code of failures of evloopctl itself where a child's own code is returned otherwise.
pub(super) const OWN_FAILURE: u8 = 125;
/// Exit code if the program was found and cannot be executed, as of env(1).
const NOT_EXECUTABLE: u8 = 126;
/// Exit code if the program was not found, as of env(1).
const NOT_FOUND: u8 = 127;
/// Exit code when events were missed.
pub(super) const GAP_MET: u8 = 3;
/// Exit code of a wrong command line, wrong files on it included.
pub(super) const USAGE: u8 = 2;
const FAILED: u8 = 1;

const RED: Style = AnsiColor::Red.on_default();

/// A verb's result; the number is the exit code.
pub(super) type Outcome = Result<u8, Failure>;

/// Who took our output is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The pipe that it went to is closed at the other end.
    Reader,
    /// The terminal hung up.
    Terminal,
}

/// Why a verb failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The verb as it was typed; empty if that does not matter.
    verb: String,
    /// Empty: nothing is printed.
    message: String,
    advice: String,
    /// The `reason` of google.rpc.ErrorInfo; empty if the daemon did not say.
    pub(super) reason: String,
    /// What else it said, by key.
    metadata: Box<[(String, String)]>,
    /// The connection broke: worth another attempt.
    pub(super) lost: bool,
    /// It is our output that nobody takes any more.
    pub(super) gone: Option<Gone>,
    pub(super) code: u8,
}

impl Failure {
    /// A failure at `what`, in words; without the errno's number that [`io::Error`] puts behind them.
    pub(super) fn new(what: impl fmt::Display, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let words = match reason.rsplit_once(" (os error ") {
            Some((words, number)) if number.ends_with(')') => words,
            _ => &reason,
        };
        Self::plain(format!("{what}: {words}"))
    }

    /// A failure in words.
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

    /// What the daemon, or the connection to it, answered.
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
            let failure = Self::plain(what).advice("`evloopctl status` tells whether it runs");
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
        let message = in_the_words_of_the_line(&message);
        let failure = Self {
            reason: info.reason.clone(),
            metadata: info.metadata.clone().into_iter().collect(),
            ..Self::plain(message)
        };
        let advice = advice(&failure);
        failure.executing().advice(advice)
    }

    /// One of a program that could not be executed has the code that env(1) has for it.
    fn executing(self) -> Self {
        let code = match (self.told("step"), self.told("errno_name")) {
            ("lookup" | "exec", "ENOENT") => NOT_FOUND,
            ("lookup" | "exec", _) => NOT_EXECUTABLE,
            _ => return self,
        };
        self.code(code)
    }

    /// What the daemon's error says under this key; empty if it does not.
    pub(super) fn told(&self, key: &str) -> &str {
        let mut pairs = self.metadata.iter();
        let found = pairs.find(|(known, _)| known == key);
        found.map_or("", |(_, value)| value)
    }

    /// In other words, all else as it is.
    pub(super) fn saying(self, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { message, ..self }
    }

    /// With what it is about before it.
    pub(super) fn about(self, what: impl fmt::Display) -> Self {
        if self.is_silent() {
            return self;
        }
        let message = format!("{what}: {}", self.message);
        self.saying(message)
    }

    /// With the verb that it ended.
    pub(super) fn of_verb(self, verb: &str) -> Self {
        let verb = verb.to_owned();
        Self { verb, ..self }
    }

    /// Writing to stdout or stderr failed. A closed pipe is the reader's choice, not a failure.
    pub(super) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            let gone = Some(Gone::Reader);
            return Self {
                gone,
                ..Self::silent(0)
            };
        }
        // What a write to a terminal that hung up fails with, but also one to a broken disk.
        let eio = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        let hung_up = eio && (is_device(io::stdout()) || is_device(io::stderr()));
        let gone = hung_up.then_some(Gone::Terminal);
        Self {
            gone,
            ..Self::new("stdout", error)
        }
    }

    /// Ends without a word.
    pub(super) fn silent(code: u8) -> Self {
        Self::plain("").code(code)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// With another exit code.
    pub(super) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// With something to do about it.
    pub(super) fn advice(self, advice: impl Into<String>) -> Self {
        let advice = advice.into();
        Self { advice, ..self }
    }

    /// For verbs whose exit code is a child's: one that no child's code is taken for.
    pub(super) fn of_run(self) -> Self {
        let code = match self.code {
            code @ (TIMED_OUT | NOT_EXECUTABLE | NOT_FOUND) => code,
            code if self.is_silent() => code,
            _ => OWN_FAILURE,
        };
        Self { code, ..self }
    }

    /// The failure's line on stderr; its exit code.
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

/// A terminal is a character device, and stays one when it hangs up.
fn is_device(fd: impl AsFd) -> bool {
    let device = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    rustix::fs::fstat(fd).is_ok_and(device)
}

/// Longest line on stderr, bytes.
const LINE_MAX: usize = 4096;
/// Longest of a failure's messages, bytes, so that there is room for the advice.
const MESSAGE_MAX: usize = LINE_MAX - 512;

/// A warning's or failure's line on stderr.
pub(super) fn complain(message: impl fmt::Display) {
    say(message, Style::new());
}

/// Says something in red, as what is lost deserves.
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
    // In one piece, for others may write there too. With stderr gone there is nobody left to tell.
    let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
}

/// Leaves out what the advice says too, and the path of a field in the request: its own name is kept.
fn in_the_words_of_the_line(message: &str) -> String {
    if let Some(unset) = message.strip_suffix(": set it again") {
        return unset.to_owned();
    }
    // A cursor without an epoch is typed without the colon.
    let message = message.replace("cursor :", "cursor ");
    let message = match message.split_once("; readable is ") {
        Some((why, _)) => why.to_owned(),
        None => message,
    };
    let Some((path, rest)) = message.split_once(": ") else {
        return message;
    };
    match path
        .strip_prefix("spec.")
        .and_then(|path| path.rsplit('.').next())
    {
        Some(field) if !path.contains(' ') => format!("{}: {rest}", field.replace('_', "-")),
        _ => message,
    }
}

/// What to do about a refusal, by its reason.
fn advice(failure: &Failure) -> String {
    let on = failure.told("loop").rsplit('/').next().unwrap_or_default();
    let fixed = match failure.reason.as_str() {
        "LOOP_NOT_FOUND" => "`evloopctl loop list` shows those that exist; an id is written `@7`",
        "WATCH_NOT_FOUND" => "`evloopctl ps` and `evloopctl watch list` show what is there",
        "NO_LOOP_IN_CONTEXT" => {
            "set one with `evloopctl loop set NAME`, or name one with --loop NAME"
        }
        "CONSUMER_NOT_FOUND" => "`evloopctl consumer list` shows those that exist",
        "SLOT_NOT_FOUND" => "hand the descriptor over again",
        "NAME_TAKEN" => "choose another name, or be content with it by --if-missing",
        "LOOP_CLOSED" => return format!("make another with `evloopctl loop new {on}`"),
        "LOOP_RUNNING" => return format!("close it with `evloopctl loop close {on} --stop`"),
        "LIMIT" => "remove what is finished with `evloopctl rm --all`, or raise the limit",
        "JOURNAL_FULL" => {
            "`evloopctl consumer list` shows who holds it; remove what is finished with `evloopctl rm --all`"
        }
        "MAILBOX_FULL" => "the loop is busy: try again",
        "CURSOR_OUT_OF_RANGE" => return range(failure),
        "NOT_SUPPORTED" | "BACKEND_UNAVAILABLE" => "`evloopctl backends` shows what works here",
        "PERMISSION_DENIED" if failure.message.contains("not served") => {
            "`evloopd &` starts a daemon of your own"
        }
        "SYSTEM" if failure.told("step") == "chdir" => {
            "check that the directory exists and may be entered"
        }
        "SYSTEM" if failure.told("errno_name") == "EADDRINUSE" => {
            "something else listens there: `ss -lntp` shows what"
        }
        "SYSTEM"
            if matches!(failure.told("step"), "setrlimit" | "nice" | "oom_score_adj")
                && matches!(failure.told("errno_name"), "EPERM" | "EACCES") =>
        {
            "beyond what the daemon itself has it takes a privilege"
        }
        "DRAINING" => "try again when it is back",
        "INTERNAL" => "please report it, with the daemon's log",
        _ => "",
    };
    fixed.to_owned()
}

fn range(failure: &Failure) -> String {
    let [epoch, oldest, newest] = ["epoch", "oldest", "newest"].map(|key| failure.told(key));
    let first = oldest.parse::<u64>().unwrap_or(1).saturating_sub(1);
    format!(
        "readable is --after {epoch}:{first} up to {epoch}:{newest}, or all of it with --oldest"
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
            "run: build: refused; choose another name, or be content with it by --if-missing"
        );
        assert_eq!(taken.told("field"), "spec.process.exec");
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
