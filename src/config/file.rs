//! One file: its text, checked for shape, with the line of every key.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::load::{ConfigError, Source};
use super::{Children, Limits, Log, LoopEntry, Policy, Server, Signals};

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;
/// The version of the file's layout.
const VERSION: i64 = 1;

/// What a file says.
pub(super) struct File {
    pub(super) path: PathBuf,
    /// Without `version` and `include`.
    pub(super) table: Table,
    pub(super) include: Option<String>,
    keys: Vec<Key>,
}

/// Where a key stands, with its value.
struct Key {
    path: String,
    span: Range<usize>,
    line: usize,
}

/// [`super::Config`], and what only a file has. Its values are not used: reading it
/// finds unknown keys and wrong types while their places are known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for the errors alone")]
struct Shape {
    version: Option<i64>,
    include: Option<String>,
    default_policy: Option<String>,
    server: Option<Server>,
    limits: Option<Limits>,
    children: Option<Children>,
    signals: Option<Signals>,
    log: Option<Log>,
    policy: Option<BTreeMap<String, Policy>>,
    r#loop: Option<Vec<LoopEntry>>,
}

impl File {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
        match read {
            Err(error) => Err(ConfigError::of_file(
                path,
                format!("cannot be read: {error}"),
            )),
            Ok(_) if u64::try_from(text.len()).is_ok_and(|len| len > FILE_MAX) => {
                Err(ConfigError::of_file(path, "is larger than 1 MiB"))
            }
            Ok(_) => Self::parse(path, &text),
        }
    }

    /// Takes a file's text apart.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut keys = Vec::new();
        let located = |error: &toml::de::Error, keys: &[Key]| {
            let offset = error.span().map_or(0, |span| span.start);
            let inner = keys
                .iter()
                .filter(|key| key.span.contains(&offset))
                .min_by_key(|key| key.span.len());
            let source = Source::File {
                path: path.to_owned(),
                line: line(text, offset),
            };
            ConfigError::new(&source, inner.map_or("", |key| &key.path), error.message())
        };
        let spanned = DeTable::parse(text).map_err(|error| located(&error, &[]))?;
        collect(spanned.get_ref(), "", text, &mut keys);
        let shape: Shape = toml::from_str(text).map_err(|error| located(&error, &keys))?;
        let mut table: Table = toml::from_str(text).map_err(|error| located(&error, &keys))?;
        table.remove("version");
        table.remove("include");
        let file = Self {
            path: path.to_owned(),
            table,
            include: shape.include,
            keys,
        };
        match shape.version {
            Some(VERSION) => Ok(file),
            None => Err(ConfigError::of_file(
                path,
                format!("version: is missing, write `version = {VERSION}`"),
            )),
            Some(other) => Err(ConfigError::new(
                &file.source("version"),
                "version",
                format!("{other} is not known, allowed is {VERSION}"),
            )),
        }
    }

    /// Where a key stands.
    pub(super) fn source(&self, path: &str) -> Source {
        Source::File {
            path: self.path.clone(),
            line: self
                .keys
                .iter()
                .find(|key| key.path == path)
                .map_or(1, |key| key.line),
        }
    }

    /// Every key and where it stands.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&str, Source)> {
        self.keys.iter().map(|key| {
            let source = Source::File {
                path: self.path.clone(),
                line: key.line,
            };
            (key.path.as_str(), source)
        })
    }
}

/// Walks a table; elements of arrays of tables are `loop[0]`, `loop[1]`, ...
fn collect(table: &DeTable<'_>, prefix: &str, text: &str, keys: &mut Vec<Key>) {
    for (name, value) in table {
        let path = join(prefix, name.get_ref());
        let span = name.span().start..value.span().end.max(name.span().end);
        collect_value(value, path, span, text, keys);
    }
}

fn collect_value(
    value: &Spanned<DeValue<'_>>,
    path: String,
    span: Range<usize>,
    text: &str,
    keys: &mut Vec<Key>,
) {
    match value.get_ref() {
        DeValue::Table(table) => collect(table, &path, text, keys),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if item.get_ref().is_table() {
                    collect_value(item, format!("{path}[{index}]"), item.span(), text, keys);
                }
            }
        }
        _ => {}
    }
    keys.push(Key {
        path,
        line: line(text, span.start),
        span,
    });
}

/// A key below another.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

/// The line, from 1, of a byte of the text.
fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}
