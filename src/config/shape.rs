//! Checks the keys and the types of a file. Each value is read by itself, so that a wrong value
//! does not hide another wrong one.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use toml::{Table, Value};

use super::file::join;
use super::findings::Findings;
use super::{Children, Limits, Log, LoopEntry, Policy, Resource, Server, Signals, TlsSection};
use crate::similar::did_you_mean;

/// The version of the files' layout.
const VERSION: i64 = 1;

/// The keys at the top of a file; the sections are read separately.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for the errors alone")]
struct Top {
    version: Option<i64>,
    include: Option<String>,
    default_policy: Option<String>,
    server: Option<IgnoredAny>,
    limits: Option<IgnoredAny>,
    children: Option<IgnoredAny>,
    signals: Option<IgnoredAny>,
    log: Option<IgnoredAny>,
    tls: Option<IgnoredAny>,
    policy: Option<IgnoredAny>,
    r#loop: Option<IgnoredAny>,
}

/// Finds the unknown keys and the values of a wrong type, and removes them from `table`. Its loops
/// are numbered from `loops` on.
pub(super) fn check(table: &mut Table, loops: usize, found: &mut Findings) {
    keys::<Top>(table, "", found);
    match table.get("version") {
        Some(Value::Integer(VERSION)) | None => {}
        Some(other) => {
            let what = format!("{other} is not known, allowed is {VERSION}");
            found.wrong("version", what);
        }
    }
    section::<Server>(table, "server", found);
    section::<Limits>(table, "limits", found);
    if let Some(children) = section::<Children>(table, "children", found)
        && let Some(Value::Table(limits)) = children.get_mut("limits")
    {
        resources(limits, found);
    }
    section::<Signals>(table, "signals", found);
    section::<Log>(table, "log", found);
    named_sections::<TlsSection>(table, "tls", found);
    named_sections::<Policy>(table, "policy", found);
    match table.get_mut("loop") {
        None => {}
        Some(Value::Array(entries)) if entries.iter().all(Value::is_table) => {
            let tables = entries.iter_mut().filter_map(Value::as_table_mut);
            for (index, entry) in tables.enumerate() {
                keys::<LoopEntry>(entry, &format!("loop[{}]", loops + index), found);
            }
        }
        Some(_) => {
            table.remove("loop");
            found.wrong("loop", "is not a list of tables, write `[[loop]]` for each");
        }
    }
}

/// Returns the table `name` in `table`. A value that is not a table is removed.
fn inner<'a>(
    table: &'a mut Table,
    name: &str,
    key: &str,
    found: &mut Findings,
) -> Option<&'a mut Table> {
    if !table.get(name)?.is_table() {
        table.remove(name);
        found.wrong(key, format!("is not a table, write `[{key}]`"));
    }
    table.get_mut(name)?.as_table_mut()
}

/// Checks the tables `[SECTION.NAME]`.
fn named_sections<T: DeserializeOwned>(table: &mut Table, section: &str, found: &mut Findings) {
    if let Some(named) = inner(table, section, section, found) {
        let names: Vec<String> = named.keys().cloned().collect();
        for name in names {
            let key = join(section, &name);
            if let Some(one) = inner(named, &name, &key, found) {
                keys::<T>(one, &key, found);
            }
        }
    }
}

fn section<'a, T: DeserializeOwned>(
    table: &'a mut Table,
    name: &str,
    found: &mut Findings,
) -> Option<&'a mut Table> {
    let section = inner(table, name, name, found)?;
    keys::<T>(section, name, found);
    Some(section)
}

/// Reads each key of a table as if it were the only one, and removes the wrong ones.
fn keys<T: DeserializeOwned>(table: &mut Table, prefix: &str, found: &mut Findings) {
    table.retain(|name, value| {
        // `resources` checks its entries one by one.
        if prefix == "children" && name == "limits" && value.is_table() {
            return true;
        }
        let alone = Table::from_iter([(name.to_owned(), value.clone())]);
        let read = T::deserialize(Value::Table(alone));
        if let Err(error) = &read {
            found.wrong(&join(prefix, name), in_words(error.message()));
        }
        read.is_ok()
    });
}

fn resources(limits: &mut Table, found: &mut Findings) {
    limits.retain(|name, value| {
        let key = join("children.limits", name);
        let wrong = match name.parse::<Resource>() {
            Err(_) => unknown("key", name, Resource::all().map(Resource::name)),
            Ok(_) => match super::Limit::deserialize(value.clone()) {
                Err(error) => in_words(error.message()),
                Ok(_) => return true,
            },
        };
        found.wrong(&key, wrong);
        false
    });
}

/// Returns the error text of an unknown word: the word, a known word like it if any, and all known
/// words.
pub(super) fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let near = meant(word, known.iter().copied());
    format!(
        "`{word}` is not a {what}{near}; allowed are {}",
        known.join(", ")
    )
}

/// Returns ` (did you mean ...?)` if a known word is like `word`, else nothing.
pub(super) fn meant<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    did_you_mean(word, known).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// Translates an error text of serde into the words of the configuration file.
fn in_words(message: &str) -> String {
    // "unknown field `a`, expected one of `b`, `c`"
    let quoted = || message.split('`').skip(1).step_by(2);
    let kind = [("unknown field `", "key"), ("unknown variant `", "word")]
        .into_iter()
        .find(|(start, _)| message.starts_with(start));
    if let (Some((_, what)), Some(word)) = (kind, quoted().next()) {
        return unknown(what, word, quoted().skip(1));
    }
    let Some((start, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "usize" | "u32" | "u64" => "a whole number from 0 on",
        "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "a list in brackets",
        "a string" | "path string" => "a text in quotes",
        other => other,
    };
    format!("{start}, allowed is {expected}")
}
