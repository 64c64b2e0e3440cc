//! Loads files into one checked [`Config`], which records the place of each value.

use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::file::{File, join, quoted};
use super::findings::Findings;
use super::source::{ConfigError, Source};
use super::{Config, check, inherit, paths, shape};

/// The largest number of files that `include` may name.
const INCLUDES_MAX: usize = 256;

/// A key, and a text that says what is wrong with its value and what is allowed.
pub type Refusal = (String, String);

impl Config {
    /// Reads the configuration: the given file, else the user's
    /// (`$XDG_CONFIG_HOME/evloopd/evloopd.toml`; for root `/etc/evloopd/evloopd.toml`) if there is
    /// one, else the defaults. `arguments` are values of the command line by key, such as
    /// `server.socket`; they replace those of the files. `host` returns the values that are allowed
    /// but that this host refuses.
    ///
    /// # Errors
    /// All findings. Of a file that is not valid TOML, only the first syntax error is reported.
    pub fn load(
        path: Option<&Path>,
        arguments: &[(&str, Value)],
        host: impl FnOnce(&Self) -> Vec<Refusal>,
    ) -> Result<Self, ConfigError> {
        let found = || paths::config_file().filter(|path| path.exists());
        let mut findings = Findings::default();
        let main = path.map(Path::to_owned).or_else(found);
        let main = main.and_then(|path| {
            findings.read(&path);
            let file = File::read(&path);
            file.map_err(|(source, what)| findings.wrong_at(source, "", what))
                .ok()
        });
        Self::build(main, arguments, findings, host)
    }

    /// Returns every value in force: its key and the value, as TOML on one line, and its place.
    #[must_use]
    pub fn effective(&self) -> Vec<(String, String, String)> {
        let resolved = Self {
            server: super::Server {
                socket: Some(self.server.socket_path()),
                handover_socket: Some(self.server.handover_path()),
                // The default is for the default of `max_connections`.
                max_connections_per_principal: self
                    .server
                    .max_connections_per_principal
                    .min(self.server.max_connections),
                ..self.server.clone()
            },
            ..self.clone()
        };
        let mut values = Vec::new();
        let table = inherit::table(&resolved);
        flatten(&Value::Table(table), "", &mut values);
        let with_source = |(key, value): (String, String)| {
            let source = self.sources.get(&key).unwrap_or(&Source::Default);
            let source = source.to_string();
            (key, value, source)
        };
        values.into_iter().map(with_source).collect()
    }

    /// Overrides the defaults by the main file, then by the files it includes, then by the
    /// arguments.
    pub(super) fn build(
        main: Option<File>,
        arguments: &[(&str, Value)],
        mut findings: Findings,
        host: impl FnOnce(&Self) -> Vec<Refusal>,
    ) -> Result<Self, ConfigError> {
        let mut table = Table::new();
        if let Some(main) = main {
            let directory = main.path.parent().unwrap_or(Path::new("")).to_owned();
            let include = add_file(&mut table, main, &mut findings);
            for file in included(&directory, include.as_deref(), &mut findings) {
                if add_file(&mut table, file, &mut findings).is_some() {
                    findings.wrong("include", "an included file must not include others");
                }
            }
        }
        for (key, value) in arguments {
            let below =
                |inner, name: &str| Value::Table([(name.to_owned(), inner)].into_iter().collect());
            let layer = key.rsplit('.').fold(value.clone(), below);
            let Value::Table(layer) = layer else { continue };
            let sources = [((*key).to_owned(), Source::CommandLine)];
            lay_over(&mut table, layer, sources, &mut findings);
        }
        let policies = match table.remove("policy") {
            Some(Value::Table(policies)) => policies,
            _ => Table::new(),
        };
        let policies = inherit::resolve(policies, &mut findings);
        table.insert("policy".to_owned(), Value::Table(policies));
        let read = Self::deserialize(table);
        let mut config = read.unwrap_or_else(|error| {
            findings.wrong("", error.message());
            Self::default()
        });
        for (name, policy) in &mut config.policies {
            policy.name.clone_from(name);
        }
        check::check(&config, &mut findings);
        for (key, what) in host(&config) {
            findings.wrong(&key, what);
        }
        config.sources = findings.into_sources()?;
        Ok(config)
    }
}

/// Reads the files that a file's `include` names, sorted by name.
fn included(directory: &Path, pattern: Option<&str>, findings: &mut Findings) -> Vec<File> {
    let Some(pattern) = pattern else {
        return Vec::new();
    };
    let escaped = glob::Pattern::escape(&directory.to_string_lossy());
    let whole = Path::new(&escaped).join(pattern);
    let paths = match glob::glob(&whole.to_string_lossy()) {
        Ok(paths) => paths,
        Err(error) => {
            let what = format!("`{pattern}` is not a valid pattern: {error}");
            findings.wrong("include", what);
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for (index, path) in paths.enumerate() {
        if index == INCLUDES_MAX {
            let what =
                format!("`{pattern}` names too many files, allowed are at most {INCLUDES_MAX}");
            findings.wrong("include", what);
            break;
        }
        let path = match path {
            Ok(path) => path,
            Err(error) => {
                findings.wrong("include", error.to_string());
                continue;
            }
        };
        findings.read(&path);
        match File::read(&path) {
            Ok(file) => files.push(file),
            Err((source, what)) => findings.wrong_at(source, "", what),
        }
    }
    files
}

/// Checks the keys and types of a file, and lays its values over those of earlier files. Returns
/// its `include`.
fn add_file(onto: &mut Table, file: File, findings: &mut Findings) -> Option<String> {
    if !file.table.contains_key("version") {
        let source = Source::File {
            path: file.path.clone(),
            line: 1,
        };
        findings.wrong_at(source, "version", "is missing, write `version = 1`");
    }
    lay_over(onto, file.table, file.keys, findings);
    onto.remove("version");
    match onto.remove("include") {
        Some(Value::String(pattern)) => Some(pattern),
        _ => None,
    }
}

/// Lays the values of `table` over those of `onto`: keys replace equal keys, loops are appended.
/// Values of an unknown key or a wrong type are left out.
fn lay_over(
    onto: &mut Table,
    mut table: Table,
    sources: impl IntoIterator<Item = (String, Source)>,
    findings: &mut Findings,
) {
    let loops = onto
        .get("loop")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    for (key, source) in sources {
        let loop_at = key
            .strip_prefix("loop[")
            .and_then(|rest| rest.split_once(']'));
        let index = loop_at.and_then(|(index, rest)| Some((index.parse::<usize>().ok()?, rest)));
        let key = match index {
            Some((index, rest)) => format!("loop[{}]{rest}", loops + index),
            None => key,
        };
        findings.sources.insert(key, source);
    }
    shape::check(&mut table, loops, findings);
    overlay(onto, table);
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
        // An empty list of loops is not shown.
        Value::Array(items) if items.is_empty() && key == "loop" => {}
        value => values.push((key.to_owned(), on_one_line(value))),
    }
}

/// Writes a value as TOML; the library would write a text of several lines as such.
fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(on_one_line).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}
