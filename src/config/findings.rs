//! All that is wrong with a configuration, in the order of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::load::{ConfigError, Source};

/// Most findings that are shown; of those beyond, the number is.
const SHOWN_MAX: usize = 100;

/// Collects what is wrong; whoever checks goes on.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
    /// Where something is wrong, by key.
    wrong: BTreeSet<(String, Source)>,
    /// In the order in which they are read.
    files: Vec<PathBuf>,
    /// Where the values came from that are not defaults, by key.
    pub(super) sources: BTreeMap<String, Source>,
    /// Keys whose value is another policy's, and that policy's key.
    pub(super) inherited_from: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Finding {
    source: Source,
    key: String,
    what: String,
}

impl Findings {
    /// A file is read, after those before.
    pub(super) fn read(&mut self, path: &Path) {
        self.files.push(path.to_owned());
    }

    /// A key's value is wrong. Only the first thing that is wrong with a value is kept.
    pub(super) fn wrong(&mut self, key: &str, what: impl Into<String>) {
        self.wrong_at(self.source_of(key).clone(), key, what);
    }

    /// As [`Findings::wrong`], at another place than the key's.
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

    /// As [`Findings::wrong`], where that follows from another key too: not if that is wrong itself.
    pub(super) fn wrong_beside(&mut self, other: &str, key: &str, what: impl Into<String>) {
        if !self.is_wrong(other) {
            self.wrong(key, what);
        }
    }

    /// The key stands in a file or was given.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// Something is wrong with that key's value, so that its default stands there.
    pub(super) fn is_wrong(&self, key: &str) -> bool {
        let place = (key.to_owned(), self.source_of(key).clone());
        self.wrong.contains(&place)
    }

    /// Where a key came from; where the table it is in did, if its value is a default.
    fn source_of(&self, key: &str) -> &Source {
        let ancestors = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
        let mut known = ancestors.filter_map(|key| self.sources.get(key));
        known.next().unwrap_or(&Source::Default)
    }

    /// Where the values came from, if nothing is wrong.
    pub(super) fn into_sources(mut self) -> Result<BTreeMap<String, Source>, ConfigError> {
        if self.found.is_empty() {
            return Ok(self.sources);
        }
        // What a policy has from another is told once, of the other.
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
        format!("{source}: {key}{separator}{what}")
    }
}
