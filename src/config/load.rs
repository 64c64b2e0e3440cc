//! From files to one checked [`Config`] that knows where its values came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::file::{File, join};
use super::{Config, check, inherit, paths};

/// Most files that `include` may name.
const INCLUDES_MAX: usize = 256;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// An argument of `evloopd`.
    CommandLine,
    /// A line of a file.
    File {
        /// Its path.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::CommandLine => f.write_str("command line"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// What is wrong with the configuration, in one line: `FILE:LINE: KEY: what is wrong, what is allowed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(source: &Source, key: &str, what: impl AsRef<str>) -> Self {
        let what = what.as_ref().lines().collect::<Vec<_>>().join("; ");
        if key.is_empty() {
            Self(format!("{source}: {what}"))
        } else {
            Self(format!("{source}: {key}: {what}"))
        }
    }

    pub(super) fn of_file(path: &Path, what: impl fmt::Display) -> Self {
        Self(format!("{}: {what}", path.display()))
    }
}

impl Config {
    /// Reads the configuration: the given file, else the user's
    /// (`$XDG_CONFIG_HOME/evloopd/evloopd.toml`; for root `/etc/evloopd/evloopd.toml`)
    /// if there is one, else the defaults.
    ///
    /// # Errors
    /// One line that says where, which key, what is wrong and what is allowed.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let found = || paths::config_file().filter(|path| path.exists());
        match path.map(Path::to_owned).or_else(found) {
            Some(path) => Self::from_files(File::read(&path)?),
            None => Ok(Self::default()),
        }
    }

    /// Changes one value, such as `server.socket`, for the command line or the environment.
    ///
    /// # Errors
    /// As [`Config::load`]. Nothing is changed then. Policies and loops are not within reach.
    pub fn set(
        &mut self,
        key: &str,
        value: impl Into<Value>,
        source: Source,
    ) -> Result<(), ConfigError> {
        let mut table = inherit::table(self)?;
        let place = match key.split_once('.') {
            None => Some((&mut table, key)),
            Some((section, name)) if section != "policy" => table
                .get_mut(section)
                .and_then(Value::as_table_mut)
                .map(|section| (section, name)),
            Some(_) => None,
        };
        let Some((section, name)) = place else {
            return Err(ConfigError::new(&source, key, "there is no such key here"));
        };
        section.insert(name.to_owned(), value.into());
        let mut sources = self.sources.clone();
        sources.insert(key.to_owned(), source);
        *self = Self::build(table, sources, key)?;
        Ok(())
    }

    /// Every value in force: its key, itself as TOML, and where it came from.
    #[must_use]
    pub fn effective(&self) -> Vec<(String, String, String)> {
        let resolved = Self {
            server: super::Server {
                socket: Some(self.server.socket_path()),
                handover_socket: Some(self.server.handover_path()),
                ..self.server.clone()
            },
            ..self.clone()
        };
        let mut values = Vec::new();
        let table = inherit::table(&resolved).unwrap_or_default();
        flatten(&Value::Table(table), "", &mut values);
        let with_source = |(key, value): (String, String)| {
            let source = self.sources.get(&key).unwrap_or(&Source::Default);
            let source = source.to_string();
            (key, value, source)
        };
        values.into_iter().map(with_source).collect()
    }

    /// Puts a file and those it includes over the defaults.
    pub(super) fn from_files(main: File) -> Result<Self, ConfigError> {
        let included = included(&main)?;
        let mut table = Table::new();
        let mut sources = BTreeMap::new();
        for file in std::iter::once(main).chain(included) {
            merge(&mut table, file, &mut sources);
        }
        let policies = match table.remove("policy") {
            Some(Value::Table(policies)) => policies,
            _ => Table::new(),
        };
        let policies = inherit::resolve(policies, &mut sources)?;
        table.insert("policy".to_owned(), Value::Table(policies));
        Self::build(table, sources, "")
    }

    /// The last step of all: types, then ranges. A wrong type is in `last`, the key set last:
    /// those of files are checked already.
    fn build(
        table: Table,
        sources: BTreeMap<String, Source>,
        last: &str,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::deserialize(table)
            .map_err(|error| ConfigError::new(source_of(&sources, last), last, error.message()))?;
        for (name, policy) in &mut config.policies {
            policy.name.clone_from(name);
        }
        check::check(&config)
            .map_err(|(key, what)| ConfigError::new(source_of(&sources, &key), &key, what))?;
        config.sources = sources;
        Ok(config)
    }
}

/// Where a key came from; where the table it is in did, if its value is a default.
fn source_of<'a>(sources: &'a BTreeMap<String, Source>, key: &str) -> &'a Source {
    let ancestors = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
    let mut known = ancestors.filter_map(|key| sources.get(key));
    known.next().unwrap_or(&Source::Default)
}

/// The files that a file's `include` names, sorted by name.
fn included(main: &File) -> Result<Vec<File>, ConfigError> {
    let Some(pattern) = &main.include else {
        return Ok(Vec::new());
    };
    let wrong = |what: String| ConfigError::new(&main.source("include"), "include", what);
    let directory = main.path.parent().unwrap_or(Path::new(""));
    let escaped = glob::Pattern::escape(&directory.to_string_lossy());
    let whole = Path::new(&escaped).join(pattern);
    let paths = glob::glob(&whole.to_string_lossy())
        .map_err(|error| wrong(format!("`{pattern}` is no pattern: {error}")))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| wrong(error.to_string()))?;
        if files.len() == INCLUDES_MAX {
            return Err(wrong(format!(
                "`{pattern}` names too many files, allowed are {INCLUDES_MAX}"
            )));
        }
        let file = File::read(&path)?;
        if file.include.is_some() {
            let what = "an included file includes no others";
            return Err(ConfigError::new(&file.source("include"), "include", what));
        }
        files.push(file);
    }
    Ok(files)
}

/// Puts a file over those before: its keys replace theirs, its loops come after theirs.
fn merge(onto: &mut Table, file: File, sources: &mut BTreeMap<String, Source>) {
    let loops = onto
        .get("loop")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    for (key, source) in file.sources() {
        let loop_at = key
            .strip_prefix("loop[")
            .and_then(|rest| rest.split_once(']'));
        let index = loop_at.and_then(|(index, rest)| Some((index.parse::<usize>().ok()?, rest)));
        let key = match index {
            Some((index, rest)) => format!("loop[{}]{rest}", loops + index),
            None => key.to_owned(),
        };
        sources.insert(key, source);
    }
    overlay(onto, file.table);
}

fn overlay(onto: &mut Table, table: Table) {
    for (key, value) in table {
        match (onto.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (Some(Value::Array(below)), Value::Array(above)) if key == "loop" => {
                below.extend(above);
            }
            (_, value) => {
                onto.insert(key, value);
            }
        }
    }
}

fn flatten(value: &Value, key: &str, values: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                flatten(value, &join(key, name), values);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            for (index, item) in items.iter().enumerate() {
                flatten(item, &format!("{key}[{index}]"), values);
            }
        }
        // An empty list of tables is no value.
        Value::Array(items) if items.is_empty() && key == "loop" => {}
        value => values.push((key.to_owned(), value.to_string())),
    }
}
