//! Reads and writes sizes and durations with their units, and octal file modes.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

const SIZE: &str = "a size with its unit, such as \"64MiB\", \"256KiB\" or \"1GB\"";
const DURATION: &str = "a duration with its unit, such as \"250ms\", \"5s\" or \"1h 30m\"";
const MODE: &str = "an octal mode in quotes, such as \"0600\"";

/// Reads a size. None for a number without a unit.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    if !text.trim_end().ends_with(['b', 'B']) {
        return None;
    }
    text.parse::<ByteSize>().ok().map(|size| size.as_u64())
}

/// Writes a size in the largest unit that needs no fraction.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    let fits = |unit: u64| bytes != 0 && bytes.is_multiple_of(unit);
    match units.into_iter().find(|(_, unit)| fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// A visitor that reads a string with `parse`; any other value is an error that names `expected`.
pub(super) struct Text<T> {
    pub(super) expected: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// `#[serde(with)]` for sizes in bytes.
pub(super) mod size {
    use super::*;

    pub(crate) fn serialize<S: Serializer, T: Copy + TryInto<u64>>(
        bytes: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = (*bytes).try_into().unwrap_or(u64::MAX);
        to.serialize_str(&show_size(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
        from: D,
    ) -> Result<T, D::Error> {
        from.deserialize_str(Text {
            expected: SIZE,
            parse: |text| T::try_from(parse_size(text)?).ok(),
        })
    }
}

/// `#[serde(with)]` for an optional size; `0B` means none.
pub(super) mod zero_size_is_none {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&show_size(bytes.unwrap_or(0)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        size::deserialize(from).map(|bytes: u64| Some(bytes).filter(|bytes| *bytes != 0))
    }
}

/// `#[serde(with)]` for durations.
pub(super) mod duration {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_str(Text {
            expected: DURATION,
            parse: |text| humantime::parse_duration(text).ok(),
        })
    }
}

/// `#[serde(with)]` for file modes.
pub(super) mod mode {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(mode: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{mode:04o}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        from.deserialize_str(Text {
            expected: MODE,
            parse: |text| u32::from_str_radix(text, 8).ok(),
        })
    }
}

/// `#[serde(with)]` for an optional umask.
pub(super) mod optional_mode {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(mode: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        match mode {
            Some(bits) => mode::serialize(bits, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        mode::deserialize(from).map(Some)
    }
}

/// `#[serde(with)]` for an optional limit; 0 means none.
pub(super) mod zero_is_none {
    use serde::Deserialize as _;

    use super::*;

    pub(crate) fn serialize<S: Serializer>(limit: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(limit.unwrap_or(0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(from)?).filter(|limit| *limit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        for bytes in [0, 1, 1023, 1024, 1536, 64 << 20, 3 << 30, 1_000_000] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(parse_size("1 GB"), Some(1_000_000_000));
        for wrong in ["", "5", "5M", "MiB", "-1B", "1XB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }
}
