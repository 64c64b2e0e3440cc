//! Lines on stdout and stderr, with their names and times before them.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstream::adapter::strip_str;
use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::super::failure::Failure;
use super::lines::Line;
use crate::proto::{Stream, Watch};

/// Bytes that are written at a time, as far as no one waits for them.
const PIECE: usize = 64 * 1024;

/// How lines are shown, and those that are not written yet.
#[derive(Debug)]
pub(super) struct Shown {
    /// Before each line of a process, for stdout and for stderr; empty if nothing is.
    prefixes: Vec<[String; 2]>,
    timestamps: bool,
    /// Lines that wait, all of one stream.
    waiting: Vec<u8>,
    stream: Stream,
}

impl Shown {
    pub(super) fn new(processes: &[&Watch], timestamps: bool, no_prefix: bool) -> Self {
        const COLOURS: [AnsiColor; 5] = [
            AnsiColor::Cyan,
            AnsiColor::Yellow,
            AnsiColor::Green,
            AnsiColor::Magenta,
            AnsiColor::Blue,
        ];
        let width = processes.iter().map(|p| p.name.len()).max().unwrap_or(0);
        let prefix = |(process, colour): (&&Watch, &AnsiColor)| {
            let style: Style = colour.on_default();
            // Names are ASCII.
            let prefix = format!("{style}{:width$} |{style:#} ", process.name);
            [of(&io::stdout(), &prefix), of(&io::stderr(), &prefix)]
        };
        let prefixes = if no_prefix {
            vec![Default::default(); processes.len()]
        } else {
            let colours = COLOURS.iter().cycle();
            processes.iter().zip(colours).map(prefix).collect()
        };
        Self {
            prefixes,
            timestamps,
            waiting: Vec::new(),
            stream: Stream::Unspecified,
        }
    }

    /// Takes a line of the process with that index.
    pub(super) fn line(&mut self, index: usize, line: &Line) -> Result<(), Failure> {
        if line.stream != self.stream {
            self.flush()?;
            self.stream = line.stream;
        }
        let [stdout, stderr] = self
            .prefixes
            .get(index)
            .map_or([""; 2], |both| both.each_ref().map(String::as_str));
        let prefix = if line.stream == Stream::Stderr {
            stderr
        } else {
            stdout
        };
        self.waiting.extend_from_slice(prefix.as_bytes());
        if self.timestamps {
            let time = Timestamp::from_nanosecond(i128::from(line.realtime_ns));
            let mut text =
                time.map_or_else(|_| line.realtime_ns.to_string(), |t| format!("{t:.3}"));
            let _ = write!(text, " ");
            self.waiting.extend_from_slice(text.as_bytes());
        }
        self.waiting.extend_from_slice(&line.bytes);
        // One that others may follow ends, so that they begin on a line of their own.
        if line.whole || self.timestamps || !prefix.is_empty() {
            self.waiting.push(b'\n');
        }
        if self.waiting.len() < PIECE {
            return Ok(());
        }
        self.flush()
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let written = match self.stream {
            Stream::Stderr => put(io::stderr(), &self.waiting),
            _ => put(io::stdout(), &self.waiting),
        };
        self.waiting.clear();
        written.map_err(|error| Failure::output(&error))
    }
}

/// With colours, if they are wanted there.
fn of(stream: &impl RawStream, text: &str) -> String {
    match AutoStream::choice(stream) {
        ColorChoice::Never => strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// In one piece, for others may write there too; what a process wrote goes as it is.
fn put(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
