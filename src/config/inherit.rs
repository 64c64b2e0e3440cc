//! Policies extend one another: fills in what each leaves to those it extends.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml::{Table, Value};

use super::file::join;
use super::load::{ConfigError, Source};
use super::policy::{Policy, shipped};

/// Keys that belong to one policy alone.
const OWN: [&str; 2] = ["description", "extends"];
/// Keys that go together.
const CLASS: [&str; 2] = ["class", "backends"];

/// Fills in the policies of the files and the shipped ones; the sources follow.
pub(super) fn resolve(
    files: Table,
    sources: &mut BTreeMap<String, Source>,
) -> Result<Table, ConfigError> {
    let defaults = table(&Policy::default())?;
    let mut policies: BTreeMap<String, Table> = BTreeMap::new();
    for policy in shipped() {
        let mut own = table(&policy)?;
        // The class of a shipped policy is what it is for, whatever that of `default` is.
        let kept = |key: &str| policy.extends.is_some() && CLASS.contains(&key);
        own.retain(|key, value| kept(key) || defaults.get(key) != Some(value));
        policies.insert(policy.name, own);
    }
    for (name, value) in files {
        if let Value::Table(keys) = value {
            policies.entry(name).or_default().extend(keys);
        }
    }
    let mut resolved = Table::new();
    let mut inherited = BTreeMap::new();
    for name in policies.keys() {
        let mut whole = defaults.clone();
        for ancestor in lineage(name, &policies, sources)?.into_iter().rev() {
            let heirloom = |key: &str| ancestor == name || !OWN.contains(&key);
            for (key, value) in policies.get(ancestor).into_iter().flatten() {
                if !heirloom(key) {
                    continue;
                }
                whole.insert(key.clone(), value.clone());
                let here = join(&join("policy", name), key);
                match sources.get(&join(&join("policy", ancestor), key)) {
                    Some(source) => inherited.insert(here, source.clone()),
                    None => inherited.remove(&here),
                };
            }
        }
        resolved.insert(name.clone(), Value::Table(whole));
    }
    sources.extend(inherited);
    Ok(resolved)
}

/// A policy and those it extends, itself first.
fn lineage<'a>(
    name: &'a str,
    policies: &'a BTreeMap<String, Table>,
    sources: &BTreeMap<String, Source>,
) -> Result<Vec<&'a str>, ConfigError> {
    let mut line = vec![name];
    let mut seen = BTreeSet::from([name]);
    let mut last = name;
    let base = |name| policies.get(name)?.get("extends")?.as_str();
    while let Some(next) = base(last) {
        let wrong = if !policies.contains_key(next) {
            let known: Vec<&str> = policies.keys().map(String::as_str).collect();
            format!("`{next}` is no policy, there are {}", known.join(", "))
        } else if !seen.insert(next) {
            format!("a circle: {} -> {next}", line.join(" -> "))
        } else {
            line.push(next);
            last = next;
            continue;
        };
        let key = format!("policy.{last}.extends");
        let source = sources.get(&key).unwrap_or(&Source::Default);
        return Err(ConfigError::new(source, &key, wrong));
    }
    Ok(line)
}

/// A value as TOML.
pub(super) fn table(value: &impl Serialize) -> Result<Table, ConfigError> {
    Table::try_from(value)
        .map_err(|error| ConfigError::new(&Source::Default, "", error.to_string()))
}
