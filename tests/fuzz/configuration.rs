//! Configuration files: from the keys and values that there are, put together at random, damaged,
//! and any other text.

use std::collections::BTreeMap;
use std::path::Path;

use evloopd::config::{Config, Resource};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::fuzz;

/// The most findings that an error tells, and a line that says how many more there are.
const LINES_MAX: usize = 101;

/// A key of the configuration, its section, and a value that it may have.
#[derive(Debug)]
struct Key {
    section: String,
    name: String,
    value: String,
}

/// All keys. Those of named sections are of `policy`, `tls` and `[loop]`.
fn keys() -> Vec<Key> {
    let key = |section: &str, name: &str, value: &str| Key {
        section: section.to_owned(),
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let shown = Config::default().effective();
    let shown = shown.iter().filter_map(|(whole, value, _)| {
        let (section, name) = whole.rsplit_once('.').unwrap_or(("", whole));
        match section.split_once('.') {
            None => Some(key(section, name, value)),
            Some(("policy", "default")) => Some(key("policy", name, value)),
            Some(_) => None,
        }
    });
    let mut keys: Vec<Key> = shown.collect();
    keys.extend(
        Resource::all().map(|resource| key("children.limits", resource.name(), "\"0:1024\"")),
    );
    keys.extend([
        key("", "include", "\"more.toml\""),
        key("children", "umask", "\"0022\""),
        key("children", "nice", "5"),
        key("children", "oom_score_adj", "-1000"),
        key("policy", "extends", "\"default\""),
        key("tls", "cert", "\"/cert.pem\""),
        key("tls", "key", "\"/key.pem\""),
        key("tls", "ca", "\"/ca.pem\""),
        key("tls", "client_ca", "\"/ca.pem\""),
        key("tls", "sni", "[]"),
        key("tls", "strict_sni", "true"),
        key("[loop]", "policy", "\"proactor\""),
        key("[loop]", "principal", "\"uid:1\""),
        key("[loop]", "bind", "true"),
    ]);
    assert!(keys.len() > 80, "{keys:?}");
    keys
}

/// Names of policies, loops and sections of TLS; the last ones are not allowed.
const NAMES: [&str; 12] = [
    "default",
    "proactor",
    "a",
    "b",
    "a.b",
    "a.class",
    "default.class",
    "0-9_",
    "A",
    "a b",
    "",
    "\u{e9}\n\"",
];
const NUMBERS: [&str; 9] = [
    "0",
    "1",
    "16",
    "64",
    "768",
    "10_000",
    "65_536",
    "1_000_000",
    "0x100",
];
const SIZES: [&str; 9] = [
    "\"0B\"",
    "\"4KiB\"",
    "\"64KiB\"",
    "\"65537B\"",
    "\"1MiB\"",
    "\"1.5GB\"",
    "\"1GiB\"",
    "\"1TiB\"",
    "\"1 MB\"",
];
const DURATIONS: [&str; 9] = [
    "\"0s\"",
    "\"1ns\"",
    "\"1s\"",
    "\"1500ms\"",
    "\"59m 59s\"",
    "\"1h\"",
    "\"1day\"",
    "\"1month\"",
    "\"365days\"",
];
/// Values of every kind, most of which suit few keys or none.
const OTHERS: [&str; 66] = [
    "true",
    "false",
    "-1",
    "1.5",
    "nan",
    "inf",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "0o600",
    "2026-01-01T00:00:00Z",
    "12:00:00",
    "[]",
    "[[]]",
    "{}",
    "\"\"",
    "{ a = 1 }",
    "[{ name = \"c\" }]",
    "{ core = \"0\", nofile = \"1:unlimited\" }",
    "[1, \"a\"]",
    "[\"auto\"]",
    "[\"select\", \"epoll\", \"auto\"]",
    "[\"io_uring\"]",
    "[\"all\"]",
    "[\"timer\", \"fd\"]",
    "[\"timer\", \"timer\", \"nope\"]",
    "[\"SIGUSR1\", \"SIGRTMIN+3\", \"SIGRTMAX-1\"]",
    "[\"SIGKILL\", \"SIGNOPE\"]",
    "[\"a\", \"b\"]",
    "\"a\"",
    "\"b\"",
    "\"a.b\"",
    "\"default\"",
    "\"proactor\"",
    "\"windows-selector-compat\"",
    "\"selector\"",
    "\"principal\"",
    "\"session\"",
    "\"process\"",
    "\"error\"",
    "\"created\"",
    "\"thread\"",
    "\"sigchld\"",
    "\"none\"",
    "\"drop_oldest\"",
    "\"json\"",
    "\"off\"",
    "\"info,evloopd::rpc=debug\"",
    "\"[span{a=1}]=trace\"",
    "\"x=\"",
    "\"uid:0\"",
    "\"uid:4294967295\"",
    "\"uid:01\"",
    "\"0777\"",
    "\"+600\"",
    "\"1000\"",
    "\"unlimited\"",
    "\"2:1\"",
    "\"/a\"",
    "\"a/../b\"",
    "\"\\u0000\"",
    "\"\\u001b[31m\\n\"",
    "\"18446744073709551615B\"",
    "\"99999999999999TiB\"",
    "\"99999999999999999999y\"",
    "'''\n'''",
];

/// A value that suits a key of this default value, in most cases.
fn suiting(key: &Key, at: Index) -> &str {
    let own = [key.value.as_str()];
    let inner = key.value.trim_matches('"');
    let unit = inner.trim_start_matches(|c: char| c.is_ascii_digit());
    let like: &[&str] = match (key.value.starts_with('"'), unit) {
        (false, "") => &NUMBERS,
        (true, "B" | "KiB" | "MiB" | "GiB" | "TiB") if unit != inner => &SIZES,
        (true, "s" | "m" | "h" | "day") if unit != inner => &DURATIONS,
        (false, "true" | "false") => &["true", "false"],
        _ => &[],
    };
    let choices: Vec<&str> = own
        .into_iter()
        .chain(own)
        .chain(like.iter().copied())
        .collect();
    choices[at.index(choices.len())]
}

fn quoted(name: &str) -> String {
    toml::Value::from(name).to_string()
}

/// A key with its value: which key, the name of its section if that has one, whether the value is
/// to suit it, and which value.
type Choice = (Index, Index, bool, Index);

/// Writes a file with these keys and loops.
fn written(keys: &[Key], choices: &[Choice], loops: &[Index], names: usize) -> String {
    let name = |at: &Index| quoted(NAMES[at.index(names)]);
    let mut sections: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut of_loops = Vec::new();
    for (at, named, suits, value) in choices {
        let key = &keys[at.index(keys.len())];
        let value = match suits {
            true => suiting(key, *value),
            false => OTHERS[value.index(OTHERS.len())],
        };
        let section = match key.section.as_str() {
            "[loop]" => {
                of_loops.push(format!("{} = {value}\n", key.name));
                continue;
            }
            section @ ("policy" | "tls") => format!("{section}.{}", name(named)),
            section => section.to_owned(),
        };
        sections
            .entry(section)
            .or_default()
            .insert(&key.name, value);
    }
    let mut text = String::from("version = 1\n");
    for (section, keys) in sections {
        if !section.is_empty() {
            text += &format!("[{section}]\n");
        }
        for (key, value) in keys {
            text += &format!("{key} = {value}\n");
        }
    }
    for (place, at) in loops.iter().enumerate() {
        text += &format!("[[loop]]\nname = {}\n", name(at));
        let own = of_loops.iter().skip(place).step_by(loops.len());
        text.extend(own.map(String::as_str));
    }
    text
}

/// A file. Few names and values that suit make most of them valid.
fn file(valid: bool) -> impl Strategy<Value = String> {
    let (names, suits, most) = if valid {
        (8, 0.97, 8)
    } else {
        (NAMES.len(), 0.6, 30)
    };
    let choice = (
        any::<Index>(),
        any::<Index>(),
        prop::bool::weighted(suits),
        any::<Index>(),
    );
    let choices = prop::collection::vec(choice, 0..most);
    let loops = prop::collection::vec(any::<Index>(), 0..3);
    let keys = keys();
    (choices, loops).prop_map(move |(choices, loops)| written(&keys, &choices, &loops, names))
}

/// A file in which some places are replaced, and some lines stand twice.
fn damaged() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(
        &[
            "",
            "=",
            "[",
            "]",
            "[[",
            "{",
            "}",
            "\"",
            "'",
            "\n",
            "#",
            ".",
            ",",
            "\\",
            "\u{1}",
            "\u{e9}",
            "\u{feff}",
            "x",
            "0",
            " ",
            "\n[limits]\n",
            "\n[[policy.a]]\n",
            "\nloop = [{}, { x.y = 1 }]\n",
            "\nversion = 2\n",
        ][..],
    );
    let place = (any::<Index>(), 0..3_usize, pieces);
    let twice = prop::option::of(any::<Index>());
    let parts = (file(false), prop::collection::vec(place, 0..4), twice);
    parts.prop_map(|(text, places, twice)| {
        let mut characters: Vec<String> = text.chars().map(String::from).collect();
        for (at, removed, put) in places {
            let at = at.index(characters.len() + 1);
            let end = (at + removed).min(characters.len());
            characters.splice(at..end, [put.to_owned()]).for_each(drop);
        }
        let mut text = characters.concat();
        if let Some(twice) = twice {
            let lines: Vec<&str> = text.lines().collect();
            let line = lines
                .get(twice.index(lines.len().max(1)))
                .map(|line| format!("\n{line}\n"));
            text += &line.unwrap_or_default();
        }
        text
    })
}

/// What a key begins with.
const SECTIONS: [&str; 9] = [
    "default_policy",
    "include",
    "server",
    "limits",
    "children",
    "signals",
    "log",
    "tls",
    "policy",
];

/// Whether a line of an error names a key, or a line of a file that there is.
fn names_its_place(said: &str, directory: &Path, files: &[(&str, &str)]) -> bool {
    if let Some(rest) = said.strip_prefix("default: ") {
        let key = rest.split_once(": ").map_or("", |(key, _)| key);
        return SECTIONS.contains(&key.split('.').next().unwrap_or(key));
    }
    for (file, text) in files {
        let path = directory.join(file);
        let Some(rest) = said.strip_prefix(&*path.to_string_lossy()) else {
            continue;
        };
        if rest.starts_with(": cannot be read: ") {
            return true;
        }
        let line = rest
            .strip_prefix(':')
            .and_then(|rest| rest.split_once(": "));
        let number = line.and_then(|(number, _)| number.parse::<usize>().ok());
        return number.is_some_and(|number| (1..=text.split('\n').count()).contains(&number));
    }
    said.starts_with("… and ") && said.ends_with(" more")
}

/// Writes down what `evloopctl config` shows: each key with its value on a line of its own. Returns
/// the lines' numbers too.
fn shown(values: &[(String, String, String)]) -> (String, Vec<usize>) {
    let mut lines = vec!["version = 1".to_owned()];
    let mut numbers = Vec::new();
    let mut in_loop = String::new();
    let (loops, others): (Vec<_>, Vec<_>) = values
        .iter()
        .partition(|(key, ..)| key.starts_with("loop["));
    for (key, value, _) in others.into_iter().chain(loops) {
        match key
            .strip_prefix("loop[")
            .and_then(|rest| rest.split_once("]."))
        {
            Some((index, name)) => {
                if index != in_loop {
                    lines.push("[[loop]]".to_owned());
                    index.clone_into(&mut in_loop);
                }
                lines.push(format!("{name} = {value}"));
            }
            None => lines.push(format!("{key} = {value}")),
        }
        numbers.push(lines.len());
    }
    (lines.join("\n"), numbers)
}

/// The keys and values of what is shown, sorted as they are written down.
fn sorted(values: &[(String, String, String)]) -> Vec<&(String, String, String)> {
    let (loops, others): (Vec<_>, Vec<_>) = values
        .iter()
        .partition(|(key, ..)| key.starts_with("loop["));
    others.into_iter().chain(loops).collect()
}

#[test]
fn no_file_breaks_the_configuration_and_what_is_taken_can_be_shown_and_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let main = directory.path().join("evloopd.toml");
    let any = prop_oneof![any::<String>(), "[a-z\\[\\]=\"'.#{}, \n0-9]{0,60}"];
    let text = prop_oneof![6 => file(true), 3 => file(false), 3 => damaged(), 1 => any];
    let taken = std::cell::Cell::new(0);
    fuzz(1_000, &(text, file(true)), |(text, more)| {
        std::fs::write(&main, &text).expect("a written file");
        std::fs::write(directory.path().join("more.toml"), &more).expect("a written file");
        let load = || Config::load(Some(&main), &[], |_| Vec::new());
        let values = match load() {
            Ok(config) => config.effective(),
            Err(error) => {
                let files = [
                    ("evloopd.toml", text.as_str()),
                    ("more.toml", more.as_str()),
                    ("", ""),
                ];
                prop_assert!((1..=LINES_MAX).contains(&error.lines().len()));
                for said in error.lines() {
                    prop_assert!(
                        names_its_place(said, directory.path(), &files),
                        "{:?}\n{}",
                        said,
                        text
                    );
                    prop_assert!(!said.contains(char::is_control), "{:?}\n{}", said, text);
                }
                return Ok(());
            }
        };
        taken.set(taken.get() + 1);
        let (again, numbers) = shown(&values);
        std::fs::write(&main, &again).expect("a written file");
        let read = load();
        prop_assert!(
            read.is_ok(),
            "{}\nof\n{}\n{}",
            read.unwrap_err(),
            text,
            again
        );
        let read = read.map(|config| config.effective()).unwrap_or_default();
        prop_assert_eq!(values.len(), read.len());
        for ((before, after), line) in sorted(&values).iter().zip(sorted(&read)).zip(numbers) {
            prop_assert_eq!((&before.0, &before.1), (&after.0, &after.1), "{}", text);
            prop_assert_eq!(
                &after.2,
                &format!("{}:{line}", main.display()),
                "{}\n{}",
                after.0,
                again
            );
        }
        Ok(())
    });
    assert!(taken.get() > 200, "only {} are taken", taken.get());
}
