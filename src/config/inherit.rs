//! Policies extend one another: fills in what each leaves to those it extends.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::file::join;
use super::findings::Findings;
use super::policy::{Policy, shipped};
use super::shape::unknown;

/// Keys that belong to one policy alone.
const OWN: [&str; 2] = ["description", "extends"];
/// Keys that go together.
const CLASS: [&str; 2] = ["class", "backends"];

/// Fills in the policies of the files and the shipped ones; the sources follow.
pub(super) fn resolve(files: Table, findings: &mut Findings) -> Table {
    let defaults = table(&Policy::default());
    let mut policies: BTreeMap<String, Table> = BTreeMap::new();
    for policy in shipped() {
        let mut own = table(&policy);
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
        for ancestor in lineage(name, &policies, findings).into_iter().rev() {
            let is_inherited = |key: &str| ancestor == name || !OWN.contains(&key);
            for (key, value) in policies.get(ancestor).into_iter().flatten() {
                if !is_inherited(key) {
                    continue;
                }
                whole.insert(key.clone(), value.clone());
                let here = join(&join("policy", name), key);
                let there = join(&join("policy", ancestor), key);
                if ancestor != name {
                    findings.inherited_from.insert(here.clone(), there.clone());
                } else {
                    findings.inherited_from.remove(&here);
                }
                match findings.sources.get(&there) {
                    Some(source) => inherited.insert(here, source.clone()),
                    None => inherited.remove(&here),
                };
            }
        }
        resolved.insert(name.clone(), Value::Table(whole));
    }
    findings.sources.extend(inherited);
    resolved
}

/// A policy and those it extends, itself first.
fn lineage<'a>(
    name: &'a str,
    policies: &'a BTreeMap<String, Table>,
    findings: &mut Findings,
) -> Vec<&'a str> {
    let mut line = vec![name];
    let mut last = name;
    let base = |name| policies.get(name)?.get("extends")?.as_str();
    while let Some(next) = base(last) {
        let key = format!("policy.{last}.extends");
        if !policies.contains_key(next) {
            let known = policies.keys().map(String::as_str);
            findings.wrong(&key, unknown("policy", next, known));
            break;
        }
        if line.contains(&next) {
            // Of a circle's policies the first tells.
            if next == name && line.iter().all(|other| name <= *other) {
                findings.wrong(&key, format!("a circle: {} -> {next}", line.join(" -> ")));
            }
            break;
        }
        line.push(next);
        last = next;
    }
    line
}

/// A value as TOML; all that are asked for are tables.
pub(super) fn table(value: &impl Serialize) -> Table {
    Table::try_from(value).unwrap_or_default()
}
