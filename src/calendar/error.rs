//! The errors of calendar expressions, zones and times.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;

use super::civil::YEAR_MAX;

/// A part of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The seconds of a minute.
    Second,
    /// The minutes of an hour.
    Minute,
    /// The hours of a day.
    Hour,
    /// The days of a month.
    DayOfMonth,
    /// The months.
    Month,
    /// The days of the week.
    DayOfWeek,
    /// The years.
    Year,
    /// Year, month and day together.
    Date,
    /// Hour, minute and second together.
    Time,
    /// A length of time.
    Duration,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
            Self::Year => "year",
            Self::Date => "date",
            Self::Time => "time",
            Self::Duration => "duration",
        })
    }
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// The text is longer than its bound.
    #[error("the expression has {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// The length of the text.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The text is empty.
    #[error("the expression is empty; expected is such as `{example}`")]
    Empty {
        /// A valid expression.
        example: &'static str,
    },
    /// A cron expression has too few or too many fields.
    #[error(
        "the expression has {found} fields; allowed are 5 (minute, hour, day of month, month, day \
         of week), or 6 with the second first"
    )]
    FieldCount {
        /// The number of fields.
        found: usize,
    },
    /// The text of one field is not allowed.
    #[error("{field}: `{text}` is refused: {allowed}")]
    Field {
        /// The field.
        field: Field,
        /// The offending text, escaped and cut.
        text: String,
        /// What is allowed.
        allowed: Cow<'static, str>,
    },
    /// A word stands for no expression.
    #[error("the expression `{word}` is not known; known words are {known}")]
    Word {
        /// The word, escaped and cut.
        word: String,
        /// The known words.
        known: Cow<'static, str>,
    },
    /// `@reboot` is no time.
    #[error(
        "the expression `@reboot` is refused: it is no time of the calendar; start the command with \
         the daemon instead"
    )]
    Reboot,
    /// No date up to [`YEAR_MAX`] matches, as for 30 February.
    #[error("the expression `{text}` never comes: no date until the end of {YEAR_MAX} matches")]
    NeverComes {
        /// The expression, escaped and cut.
        text: String,
    },
    /// The expression is never due again in its zone.
    #[error(
        "the expression `{text}` never comes after {after} in the zone {zone}, until the end of \
         {YEAR_MAX}"
    )]
    NeverComesAgain {
        /// The expression, escaped and cut.
        text: String,
        /// From when on it was searched.
        after: Timestamp,
        /// The name of the zone.
        zone: String,
    },
    /// The zone of the expression cannot be used.
    #[error(transparent)]
    Zone(#[from] ZoneError),
}

impl ExpressionError {
    /// Returns the error of a field.
    pub(super) fn field(field: Field, text: &str, allowed: impl Into<Cow<'static, str>>) -> Self {
        Self::Field {
            field,
            text: excerpt(text),
            allowed: allowed.into(),
        }
    }
}

/// Why a zone cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZoneError {
    /// The name is in neither the host's nor the bundled database.
    #[error(
        "zone: `{name}` is unknown; allowed are `local` and the names of the IANA database, such as \
         `Europe/Berlin` or `UTC`"
    )]
    Unknown {
        /// The name, escaped and cut.
        name: String,
    },
    /// The host's own zone cannot be read.
    #[error("zone: the host's own, {path}, cannot be used: {reason}")]
    Local {
        /// The path of the file or link.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a time is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimeError {
    /// The text is longer than its bound.
    #[error("the time has {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// The length of the text.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A part of the text is not allowed.
    #[error("{field}: `{text}` is refused: {allowed}")]
    Field {
        /// The part.
        field: Field,
        /// The offending text, escaped and cut.
        text: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The time has passed.
    #[error("time: `{text}` is {instant}, which is not after now, {now}")]
    Past {
        /// The text, escaped and cut.
        text: String,
        /// The time that it means.
        instant: Timestamp,
        /// The time at which it was read.
        now: Timestamp,
    },
    /// The time is after [`YEAR_MAX`].
    #[error("time: `{text}` is refused: it is after the end of {YEAR_MAX}")]
    TooFar {
        /// The text, escaped and cut.
        text: String,
    },
}

/// The largest number of characters of an offending text that an error repeats.
const EXCERPT_MAX: usize = 48;

/// Returns text from outside for an error: on one line, of bounded length.
pub(super) fn excerpt(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(EXCERPT_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(EXCERPT_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}
