//! Collects everything that is wrong with a configuration, in the order of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source::{ConfigError, Source};

/// The largest number of findings that are shown. Of further ones only the number is shown.
const SHOWN_MAX: usize = 100;

/// The list of findings. A check that adds one continues with the next value.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
    /// The keys that have a finding, each with the place of its value.
    wrong: BTreeSet<(String, Source)>,
    /// The files, in the order in which they are read.
    files: Vec<PathBuf>,
    /// The places of all values that are not defaults, by key.
    pub(super) sources: BTreeMap<String, Source>,
    /// The keys whose value a policy inherits, and the key of the other policy that sets it.
    pub(super) inherited_from: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Finding {
    source: Source,
    key: String,
    what: String,
}

impl Findings {
    /// Records that a file is read, after all files recorded before.
    pub(super) fn read(&mut self, path: &Path) {
        self.files.push(path.to_owned());
    }

    /// Records that a key's value is wrong. Only the first finding about a value is kept.
    pub(super) fn wrong(&mut self, key: &str, what: impl Into<String>) {
        self.wrong_at(self.source_of(key).clone(), key, what);
    }

    /// Like [`Findings::wrong`], but reports `source` as the place.
    pub(super) fn wrong_at(&mut self, source: Source, key: &str, what: impl Into<String>) {
        if !key.is_empty() && !self.wrong.insert((key.to_owned(), source.clone())) {
            return;
        }
        self.found.push(Finding {
            source,
            key: key.to_owned(),
            what: what.into(),
        });
    }

    /// Like [`Findings::wrong`], for a value that is wrong because of the value of `other`. Records
    /// nothing if `other` is wrong itself.
    pub(super) fn wrong_beside(&mut self, other: &str, key: &str, what: impl Into<String>) {
        if !self.is_wrong(other) {
            self.wrong(key, what);
        }
    }

    /// Whether the key is set in a file or on the command line.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// Whether the key has a finding; the configuration then holds its default.
    pub(super) fn is_wrong(&self, key: &str) -> bool {
        let place = (key.to_owned(), self.source_of(key).clone());
        self.wrong.contains(&place)
    }

    /// Returns the place of a key's value. If the value is a default, this is the place of the
    /// nearest table around it that is set.
    fn source_of(&self, key: &str) -> &Source {
        let ancestors = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
        let mut known = ancestors.filter_map(|key| self.sources.get(key));
        known.next().unwrap_or(&Source::Default)
    }

    /// Returns the places of all values that are not defaults, or an error if there is any finding.
    pub(super) fn into_sources(mut self) -> Result<BTreeMap<String, Source>, ConfigError> {
        if self.found.is_empty() {
            return Ok(self.sources);
        }
        // A wrong value that a policy inherits is reported once, for the policy that sets it.
        self.found.retain(|finding| {
            let from = self.inherited_from.get(&finding.key);
            let told = |of: &String| self.wrong.contains(&(of.clone(), finding.source.clone()));
            !from.is_some_and(told)
        });
        let files = self.files;
        let place = |source: &Source| match source {
            Source::File { path, line } => (files.iter().position(|file| file == path), *line),
            Source::Default | Source::CommandLine => (Some(usize::MAX), 0),
        };
        self.found.sort_by_key(|finding| place(&finding.source));
        let shown = self.found.iter().take(SHOWN_MAX);
        let mut lines: Vec<String> = shown.map(Finding::line).collect();
        let more = self.found.len().saturating_sub(SHOWN_MAX);
        if more > 0 {
            lines.push(format!("… and {more} more"));
        }
        Err(ConfigError::new(lines))
    }
}

impl Finding {
    fn line(&self) -> String {
        let (source, key) = (&self.source, &self.key);
        let what = self.what.lines().collect::<Vec<_>>().join("; ");
        let separator = if key.is_empty() { "" } else { ": " };
        let line = format!("{source}: {key}{separator}{what}");
        // A value of the file, which the text repeats, may have other characters for a terminal.
        let mut shown = String::with_capacity(line.len());
        for character in line.chars() {
            if character.is_control() {
                shown.extend(character.escape_default());
            } else {
                shown.push(character);
            }
        }
        shown
    }
}
