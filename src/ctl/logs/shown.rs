//! Writes lines to stdout and stderr, with the names of processes and times before them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};

use anstream::adapter::strip_str;
use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::super::failure::Failure;
use super::lines::Line;
use crate::proto::{Stream, Watch};
use crate::screen::Quiet;

/// The number of bytes from which lines are written at once; fewer wait for [`Shown::flush`].
const PIECE: usize = 64 * 1024;

/// The options for writing lines, and the lines that are not written yet.
#[derive(Debug)]
pub(super) struct Shown {
    /// The text before each line of a process, for stdout and for stderr; may be empty.
    prefixes: Vec<[String; 2]>,
    /// For stdout and stderr of each process, what leaves out what a terminal would answer; `None` if
    /// all is written.
    quiet: Vec<[Option<Quiet>; 2]>,
    timestamps: bool,
    /// Lines that are not written yet, all of one stream.
    waiting: Vec<u8>,
    /// The stream of the waiting lines.
    stream: Stream,
}

impl Shown {
    pub(super) fn new(processes: &[&Watch], timestamps: bool, no_prefix: bool, raw: bool) -> Self {
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
            [
                for_stream(&io::stdout(), &prefix),
                for_stream(&io::stderr(), &prefix),
            ]
        };
        let prefixes = if no_prefix {
            vec![Default::default(); processes.len()]
        } else {
            let colours = COLOURS.iter().cycle();
            processes.iter().zip(colours).map(prefix).collect()
        };
        let terminals = [io::stdout().is_terminal(), io::stderr().is_terminal()];
        let quiet = || terminals.map(|is_terminal| (is_terminal && !raw).then(Quiet::new));
        Self {
            quiet: processes.iter().map(|_| quiet()).collect(),
            prefixes,
            timestamps,
            waiting: Vec::new(),
            stream: Stream::Unspecified,
        }
    }

    /// Appends a line of the process with this index. It may be written later, with other lines.
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
        let quiet = self.quiet.get_mut(index);
        match quiet.map(|both| &mut both[usize::from(line.stream == Stream::Stderr)]) {
            Some(Some(quiet)) => self.waiting.extend(quiet.filter(&line.bytes)),
            _ => self.waiting.extend_from_slice(&line.bytes),
        }
        // A fragment gets a newline if a prefix or a time could follow it on the same line.
        if line.whole || self.timestamps || !prefix.is_empty() {
            self.waiting.push(b'\n');
        }
        if self.waiting.len() < PIECE {
            return Ok(());
        }
        self.flush()
    }

    /// Writes all waiting lines.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let written = match self.stream {
            Stream::Stderr => put(io::stderr(), &self.waiting),
            _ => put(io::stdout(), &self.waiting),
        };
        self.waiting.clear();
        written.map_err(|error| Failure::output(&error))
    }
}

/// Returns the text without colours if the stream takes none.
fn for_stream(stream: &impl RawStream, text: &str) -> String {
    match AutoStream::choice(stream) {
        ColorChoice::Never => strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// Writes bytes unchanged.
fn put(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
