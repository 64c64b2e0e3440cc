//! The daemon's log on standard error.

use std::borrow::Cow;
use std::io;

use crate::config::{Config, LogFormat};
use crate::text;

/// Sets up the log as configured.
pub fn init_log(config: &Config) {
    use tracing_subscriber::EnvFilter;

    let filter = EnvFilter::try_new(&config.log.filter).unwrap_or_default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // The reader of the log, such as a terminal, may be gone; that must not be an error.
        .log_internal_errors(false);
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let plain = || Lines(|line| text::log_line(line, false));
    match config.log.format {
        LogFormat::Json => builder.json().with_writer(|| Lines(text::json)).init(),
        LogFormat::Journald => builder
            .without_time()
            .with_ansi(false)
            .with_writer(plain)
            .init(),
        LogFormat::Auto if journald => builder
            .without_time()
            .with_ansi(false)
            .with_writer(plain)
            .init(),
        LogFormat::Auto | LogFormat::Text
            if rustix::termios::isatty(io::stderr()) && std::env::var_os("NO_COLOR").is_none() =>
        {
            let coloured = || Lines(|line| text::log_line(line, true));
            builder.with_ansi(true).with_writer(coloured).init();
        }
        LogFormat::Auto | LogFormat::Text => builder.with_ansi(false).with_writer(plain).init(),
    }
}

/// A writer to standard error. Each write is one record of the log. The function turns it into one
/// line in which control characters are escaped.
struct Lines(fn(&str) -> Cow<'_, str>);

impl io::Write for Lines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let line = self.0(text.trim_end_matches('\n'));
        let mut line = line.into_owned();
        line.push('\n');
        io::stderr().write_all(line.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
