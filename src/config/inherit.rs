//! Inheritance of policies: fills in the keys that each policy leaves to the policies it extends.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::file::join;
use super::findings::Findings;
use super::policy::{Policy, shipped};
use super::shape::unknown;

/// The keys that are not inherited.
const OWN: [&str; 2] = ["description", "extends"];
/// The keys that are inherited from the shipped policy as a pair.
const CLASS: [&str; 2] = ["class", "backends"];

/// Fills in the policies of the files and the shipped ones, and records the places of inherited
/// values.
pub(super) fn resolve(files: Table, findings: &mut Findings) -> Table {
    let defaults = table(&Policy::default());
    let mut policies: BTreeMap<String, Table> = BTreeMap::new();
    for policy in shipped() {
        let mut own = table(&policy);
        // A shipped policy keeps its class, even if a file gives `default` another one.
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

/// Returns a policy and all policies that it extends, directly or indirectly, itself first.
fn lineage<'a>(
    name: &'a str,
    policies: &'a BTreeMap<String, Table>,
    findings: &mut Findings,
) -> Vec<&'a str> {
    let mut line = vec![name];
    let mut last = name;
    let base = |name| policies.get(name)?.get("extends")?.as_str();
    while let Some(next) = base(last) {
        let key = join(&join("policy", last), "extends");
        if !policies.contains_key(next) {
            let known = policies.keys().map(String::as_str);
            findings.wrong(&key, unknown("policy", next, known));
            break;
        }
        if line.contains(&next) {
            // A circle is reported once, for the first of its policies by name.
            if next == name && line.iter().all(|other| name <= *other) {
                let circle = line.join(" -> ");
                let what = format!("a policy must not extend itself: {circle} -> {next}");
                findings.wrong(&key, what);
            }
            break;
        }
        line.push(next);
        last = next;
    }
    line
}

/// Converts a value to a TOML table; an empty table if it is not one.
pub(super) fn table(value: &impl Serialize) -> Table {
    Table::try_from(value).unwrap_or_default()
}
