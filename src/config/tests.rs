mod errors;

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::file::File;
use super::findings::Findings;
use super::*;
use crate::kinds::WatchKind;

const SHIPPED: &str = include_str!("../../config/evloopd.toml");

fn with(text: &str, arguments: &[(&str, toml::Value)]) -> Result<Config, String> {
    let path = Path::new("e.toml");
    let mut findings = Findings::default();
    findings.read(path);
    let file = File::parse(path, text).map_err(|(source, what)| format!("{source}: {what}"))?;
    let built = Config::build(Some(file), arguments, findings, |_| Vec::new());
    built.map_err(|error| error.to_string())
}

fn read(text: &str) -> Result<Config, String> {
    with(text, &[])
}

/// Loads the file as the daemon does, on a host that refuses nothing.
fn load(path: &Path) -> Result<Config, String> {
    Config::load(Some(path), &[], |_| Vec::new()).map_err(|error| error.to_string())
}

/// Returns the error of `text` below a version line: the first line of `text` is line 2.
fn error(text: &str) -> String {
    match read(&format!("version = 1\n{text}")) {
        Ok(_) => panic!("was taken:\n{text}"),
        Err(error) => error,
    }
}

fn without_sources(config: Config) -> Config {
    Config {
        sources: BTreeMap::new(),
        ..config
    }
}

#[test]
fn the_shipped_file_is_the_default_made_visible() {
    let config = read(SHIPPED).unwrap();
    let unset = ["server.socket", "server.handover_socket"];
    for (key, _, source) in config.effective() {
        let in_file = source.starts_with("e.toml:");
        assert_eq!(
            in_file,
            !unset.contains(&key.as_str()),
            "{key} from {source}"
        );
    }
    assert_eq!(without_sources(config), Config::default());
    assert_eq!(
        without_sources(read("version = 1").unwrap()),
        Config::default()
    );
}

#[test]
fn a_configuration_is_carried_to_the_next_life_with_the_places_of_its_values() {
    let config = read(SHIPPED).unwrap();
    let carried = Config::carried(&config.carry().unwrap()).unwrap();
    assert_eq!(carried.effective(), config.effective());
    assert_eq!(carried, config);
    assert!(carried.differences(&config).is_empty());
    let other = read("version = 1\n[limits]\nloops = 7").unwrap();
    assert_eq!(other.differences(&Config::default()), ["limits.loops"]);
}

#[test]
fn what_the_shipped_file_shows_commented_out_is_valid() {
    let uncommented: Vec<&str> = SHIPPED
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(code)
                if code.contains(" = ") || code.starts_with("[[") || code.starts_with("[tls.") =>
            {
                code
            }
            _ => line,
        })
        .filter(|line| *line != "extends = \"default\"")
        .collect();
    let config = read(&uncommented.join("\n")).unwrap();
    assert_eq!(
        config.server.handover_path(),
        Path::new("/run/evloopd/evloopd.sock.handover")
    );
    assert_eq!(config.loops.len(), 1);
    assert!(config.loops[0].bind);
}

#[test]
fn the_version_is_required_and_known() {
    assert_eq!(
        read("").unwrap_err(),
        "e.toml:1: version: is missing, write `version = 1`"
    );
    let newer = read("\nversion = 2").unwrap_err();
    assert_eq!(newer, "e.toml:2: version: 2 is not known, allowed is 1");
}

#[test]
fn a_policy_takes_what_it_leaves_out_from_the_one_it_extends() {
    let config = read(
        "version = 1
[policy.default]
journal_events = 100
description = \"mine\"
[policy.child]
extends = \"base\"
max_sources = 0
[policy.base]
extends = \"windows-selector-compat\"
journal_bytes = \"1MiB\"
[policy.alone]",
    )
    .unwrap();
    let child = &config.policies["child"];
    assert_eq!(child.name, "child");
    assert_eq!(child.description, "");
    assert_eq!(child.extends.as_deref(), Some("base"));
    assert_eq!(child.journal_bytes, 1 << 20);
    assert_eq!(child.journal_events, 100);
    assert_eq!(child.backends, ["select"]);
    assert!(child.sockets_only);
    assert_eq!(child.max_sources, None);
    assert_eq!(config.policies["base"].max_sources, Some(512));
    assert_eq!(config.policies[WINDOWS_SELECTOR_COMPAT].journal_events, 100);
    assert_eq!(
        config.policies["alone"].journal_events,
        Policy::default().journal_events
    );

    let source = |wanted: &str| {
        let values = config.effective();
        let found = values.into_iter().find(|(key, ..)| key == wanted);
        found.map(|(_, value, source)| (value, source)).unwrap()
    };
    assert_eq!(
        source("policy.child.journal_events"),
        ("100".into(), "e.toml:3".into())
    );
    assert_eq!(
        source("policy.child.journal_bytes"),
        ("\"1MiB\"".into(), "e.toml:10".into())
    );
    assert_eq!(
        source("policy.child.backends"),
        ("[\"select\"]".into(), "default".into())
    );
    assert_eq!(source("policy.alone.journal_events").1, "default");
}

#[test]
fn a_shipped_policy_keeps_its_own_values_over_those_of_a_changed_base() {
    let config =
        read("version = 1\n[policy.default]\nbackends = [\"poll\"]\nmax_sources = 9").unwrap();
    let windows = &config.policies[WINDOWS_SELECTOR_COMPAT];
    assert_eq!(
        (windows.backends[0].as_str(), windows.max_sources),
        ("select", Some(512))
    );
    let sources: Vec<_> = config
        .effective()
        .into_iter()
        .filter(|(_, _, s)| s != "default")
        .collect();
    // The proactor policies, and that of macOS, inherit every key except the class and its backends.
    assert_eq!(sources.len(), 5, "{sources:?}");
    assert_eq!(config.policies[MACOS_KQUEUE_COMPAT].backends, ["epoll"]);
    assert_eq!(config.policies["proactor"].max_sources, Some(9));
}

#[test]
fn a_shipped_policy_is_of_its_class_whatever_the_class_of_its_base() {
    let config = read("version = 1\n[policy.default]\nclass = \"proactor\"").unwrap();
    let class = |name: &str| {
        let policy = &config.policies[name];
        (policy.class.clone(), policy.backends.join(" "))
    };
    let is = |class: &str, backends: &str| (class.to_owned(), backends.to_owned());
    assert_eq!(class("default"), is("proactor", "auto"));
    assert_eq!(class("windows-selector-compat"), is("selector", "select"));
    let config = read("version = 1\n[policy.default]\nbackends = [\"poll\"]").unwrap();
    for name in ["proactor", "windows-proactor-compat"] {
        let policy = &config.policies[name];
        assert_eq!(
            (policy.class.as_str(), policy.backends[0].as_str()),
            ("proactor", "auto")
        );
    }
}

#[test]
fn what_a_policy_refuses_is_shown_with_its_reasons_and_replaces_that_of_its_base() {
    let text = "version = 1
[policy.a]
extends = \"windows-proactor-compat\"
refuses = [\"timer\", \"unix_socket: not here\"]
timer_tick = \"10ms\"
[policy.b]
extends = \"a\"
refuses = []
watch_kinds = [\"timer\"]";
    let config = read(text).unwrap();
    let [a, b] = ["a", "b"].map(|name| &config.policies[name]);
    let why = |policy: &Policy, of| policy.refusal(of).map(str::to_owned);
    let timer = Refusable::Kind(WatchKind::Timer);
    assert_eq!(why(a, timer).unwrap(), "the policy refuses it");
    assert_eq!(why(a, Refusable::UnixSocket).unwrap(), "not here");
    assert_eq!(why(a, Refusable::Kind(WatchKind::Signal)), None);
    assert_eq!(why(b, timer), None);
    assert_eq!(b.timer_tick, Duration::from_millis(10));
    assert!(b.accepted_kinds().eq([WatchKind::Timer]));
    let left_out = why(b, Refusable::Kind(WatchKind::Fd)).unwrap();
    assert!(left_out.contains("watch_kinds"), "{left_out}");
    let values = config.effective();
    let shown = values.iter().find(|(key, ..)| key == "policy.a.refuses");
    let (_, value, _) = shown.unwrap();
    let expected = r#"["timer: the policy refuses it", "unix_socket: not here"]"#;
    assert_eq!(value, expected);
}

#[test]
fn policies_that_extend_in_a_circle_are_refused() {
    let circle = "[policy.a]\nextends = \"b\"\n[policy.b]\nextends = \"a\"";
    assert_eq!(
        error(circle),
        "e.toml:5: policy.b.extends: a policy must not extend itself: a -> b -> a"
    );
    assert!(error("[policy.default]\nextends = \"default\"").contains("must not extend itself"));
}

#[test]
fn included_files_override_and_add_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("[main].toml");
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join("conf.d").join(name);
        fs::write(&path, format!("version = 1\n{text}")).unwrap();
        path.display().to_string()
    };
    fs::write(&main, "version = 1\ninclude = \"conf.d/*.toml\"\n[limits]\nloops = 1\nslots = 1\n[[loop]]\nname = \"a\"").unwrap();
    put("10-a.toml", "[limits]\nloops = 2\nstreams = 2");
    let last = put(
        "20-b.toml",
        "[limits]\nloops = 3\n[policy.b]\n[[loop]]\nname = \"b\"\npolicy = \"b\"",
    );
    put("30-ignored.txt", "nonsense");

    let config = load(&main).unwrap();
    assert_eq!(
        (
            config.limits.loops,
            config.limits.streams,
            config.limits.slots
        ),
        (3, 2, 1)
    );
    let names: Vec<&str> = config.loops.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let values = config.effective();
    let of = |wanted: &str| {
        values
            .iter()
            .find(|(key, ..)| key == wanted)
            .unwrap()
            .2
            .clone()
    };
    assert_eq!(of("limits.loops"), format!("{last}:3"));
    assert_eq!(of("loop[0].name"), format!("{}:7", main.display()));
    assert_eq!(of("loop[1].name"), format!("{last}:6"));

    let bad = put("40-c.toml", "[[loop]]\nname = \"c\"\npolicy = \"d\"");
    let error = load(&main).unwrap_err();
    assert!(
        error.starts_with(&format!("{bad}:4: loop[2].policy: ")),
        "{error}"
    );
    let nested = put("40-c.toml", "include = \"*\"");
    let error = load(&main).unwrap_err();
    assert_eq!(
        error,
        format!("{nested}:2: include: an included file must not include others")
    );
}

#[test]
fn a_file_that_was_asked_for_must_be_readable() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no.toml");
    let error = load(&missing).unwrap_err();
    assert!(
        error.starts_with(&format!("{}: cannot be read: ", missing.display())),
        "{error}"
    );
    let large = dir.path().join("large.toml");
    fs::write(&large, "#".repeat((1 << 20) + 1)).unwrap();
    let error = load(&large).unwrap_err();
    assert!(error.ends_with("is larger than 1 MiB"), "{error}");
}

#[test]
fn the_command_line_comes_after_the_files_and_passes_the_same_checks() {
    let file = "version = 1\n[log]\nfilter = \"warn\"\n[policy.mine]\njournal_events = 99";
    let arguments = [
        ("server.socket", "/s".into()),
        ("log.filter", "debug".into()),
        ("default_policy", "mine".into()),
    ];
    let config = with(file, &arguments).unwrap();
    assert_eq!(config.server.handover_path(), Path::new("/s.handover"));
    assert_eq!(config.default_policy, "mine");
    let values = config.effective();
    for (key, value, source) in [
        ("server.socket", "\"/s\"", "command line"),
        ("log.filter", "\"debug\"", "command line"),
        ("policy.mine.journal_events", "99", "e.toml:5"),
    ] {
        let expected = (key.to_owned(), value.to_owned(), source.to_owned());
        assert!(values.contains(&expected), "{values:?}");
    }

    let arguments = [
        ("server.socket", "s".into()),
        ("server.drain_timeout", "5".into()),
        ("server.sokket", "/s".into()),
        ("nothing", "x".into()),
    ];
    let errors = with(file, &arguments).unwrap_err();
    let lines: Vec<&str> = errors.lines().collect();
    for start in [
        "command line: server.socket: is `s`, allowed",
        "command line: server.drain_timeout: invalid value",
        "command line: server.sokket: `sokket` is not a key (did you mean `socket`?)",
        "command line: nothing: `nothing` is not a key",
    ] {
        let said = lines.iter().any(|line| line.starts_with(start));
        assert!(said, "{start} is not in {errors}");
    }
    assert_eq!(lines.len(), arguments.len(), "{errors}");
}

#[test]
fn durations_and_sizes_are_kept_exactly() {
    let config =
        read("version = 1\n[children]\nkill_grace = \"1m 1ms\"\n[limits]\nmemory = \"1500KiB\"")
            .unwrap();
    assert_eq!(config.children.kill_grace, Duration::from_millis(60_001));
    let values = config.effective();
    assert!(
        values
            .iter()
            .any(|(key, value, _)| key == "children.kill_grace" && value == "\"1m 1ms\"")
    );
    assert!(
        values
            .iter()
            .any(|(key, value, _)| key == "limits.memory" && value == "\"1500KiB\"")
    );
}

#[test]
fn a_name_with_a_dot_is_quoted_so_that_its_keys_are_not_those_of_another() {
    let text = "version = 1
[policy.a]
class = \"selector\"
[policy.\"a.class\"]
class = \"proactor\"
max_watches = 5";
    let values = read(text).unwrap().effective();
    let source = |key: &str| {
        let found = values.iter().find(|(known, ..)| known == key);
        found.map(|(_, value, source)| (value.as_str(), source.as_str()))
    };
    assert_eq!(source("policy.a.class"), Some(("\"selector\"", "e.toml:3")));
    let key = "policy.\"a.class\".max_watches";
    assert_eq!(source(key), Some(("5", "e.toml:6")));
    let wrong = error("[policy.\"a.b\"]\nmax_watches = 0");
    assert!(
        wrong.starts_with("e.toml:3: policy.\"a.b\".max_watches: "),
        "{wrong}"
    );
    assert_eq!(
        full_key("tls", "\"\\\n\u{1b}"),
        "tls.\"\\\"\\\\\\n\\u001b\""
    );
}

#[test]
fn a_finding_is_one_line_whatever_the_key_and_the_value() {
    let wrong = error("\"a\\nb\\u001b[2J\" = 1\n[policy.a]\nextends = \"\\u001b[2J\\n\\u009b\"");
    let lines: Vec<&str> = wrong.lines().collect();
    assert_eq!(lines.len(), 2, "{wrong}");
    assert!(
        lines[0].starts_with("e.toml:2: \"a\\nb\\u001b[2J\": "),
        "{wrong}"
    );
    assert!(lines[1].starts_with("e.toml:4: policy.a.extends: "));
    assert!(!lines.concat().contains(char::is_control), "{wrong:?}");
}

#[test]
fn what_is_shown_is_on_one_line_and_can_be_read_again() {
    let text = "version = 1
[policy.a]
description = \"\"\"two\nlines \\\\ \\u001b\"\"\"
[server]
max_connections = 5";
    let values = read(text).unwrap().effective();
    let lines = values
        .iter()
        .map(|(key, value, _)| format!("{key} = {value}"));
    let lines: Vec<String> = lines.collect();
    let shown = |line: &str| lines.iter().any(|known| known == line);
    assert!(shown(r#"policy.a.description = "two\nlines \\ \u001b""#));
    // Of so many connections no principal has more.
    assert!(shown("server.max_connections_per_principal = 5"));
    let again = read(&format!("version = 1\n{}", lines.join("\n"))).unwrap();
    let again = again.effective();
    let values_of = |values: &[(String, String, String)]| -> Vec<(String, String)> {
        let values = values
            .iter()
            .map(|(key, value, _)| (key.clone(), value.clone()));
        values.collect()
    };
    assert_eq!(values_of(&again), values_of(&values));
}
