//! Reads one configuration file: its text, and the line of every key.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::source::Source;

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The parsed content of a file; its keys and values are not checked yet.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) table: Table,
    /// Every key, and the file and line in which it is set.
    pub(super) keys: Vec<(String, Source)>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// The place at which the file cannot be read or parsed, and why.
    pub(super) fn read(path: &Path) -> Result<Self, (Source, String)> {
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
        let whole = |what: String| Err((Source::whole(path), what));
        match read {
            Err(error) => whole(format!("cannot be read: {error}")),
            Ok(_) if u64::try_from(text.len()).is_ok_and(|len| len > FILE_MAX) => {
                whole("is larger than 1 MiB".to_owned())
            }
            Ok(_) => Self::parse(path, &text),
        }
    }

    /// Parses a file's text.
    ///
    /// # Errors
    /// As [`File::read`].
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, (Source, String)> {
        let at = |line| Source::File {
            path: path.to_owned(),
            line,
        };
        let ends: Vec<usize> = text.match_indices('\n').map(|(end, _)| end).collect();
        let line = |offset| 1 + ends.partition_point(|end| *end < offset);
        let failed = |error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            (at(line(offset)), error.message().to_owned())
        };
        let spanned = DeTable::parse(text).map_err(failed)?;
        let mut keys = Vec::new();
        collect(spanned.get_ref(), "", &mut |key, offset| {
            keys.push((key, at(line(offset))));
        });
        Ok(Self {
            path: path.to_owned(),
            table: toml::from_str(text).map_err(failed)?,
            keys,
        })
    }
}

/// Visits every key of a table. Elements of arrays of tables are called `loop[0]`, `loop[1]`, ...
fn collect(table: &DeTable<'_>, prefix: &str, found: &mut impl FnMut(String, usize)) {
    for (name, value) in table {
        let key = join(prefix, name.get_ref());
        collect_value(value, key, name.span().start, found);
    }
}

fn collect_value(
    value: &Spanned<DeValue<'_>>,
    key: String,
    offset: usize,
    found: &mut impl FnMut(String, usize),
) {
    match value.get_ref() {
        DeValue::Table(table) => collect(table, &key, found),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if item.get_ref().is_table() {
                    collect_value(item, format!("{key}[{index}]"), item.span().start, found);
                }
            }
        }
        _ => {}
    }
    found(key, offset);
}

/// Returns the full key of `name` in the table `prefix`; an empty prefix is the top of the file. As
/// in TOML, a name is quoted unless it consists of letters, digits, `_` and `-`: the policy `a.b`
/// has the key `policy."a.b"`.
#[must_use]
pub fn join(prefix: &str, name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let name = if !name.is_empty() && name.bytes().all(plain) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(quoted(name))
    };
    if prefix.is_empty() {
        name.into_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

/// Returns a text in quotes, as TOML reads it, on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            _ if character.is_control() => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}
