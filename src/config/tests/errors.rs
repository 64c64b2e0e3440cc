use super::error;

#[test]
fn every_error_names_place_key_and_what_is_allowed() {
    let cases = [
        (
            "[server]\nsokket = \"/s\"",
            "e.toml:3: server.sokket: ",
            "(did you mean `socket`?); allowed are socket, handover_socket, mode",
        ),
        ("servre = 1", "e.toml:2: servre: ", "did you mean `server`?"),
        ("[policy.a]\nb = 1", "e.toml:3: policy.a.b: ", "extends"),
        (
            "[[loop]]\nname = \"a\"\n[[loop]]\nname = \"b\"\nx = 1",
            "e.toml:6: loop[1].x: ",
            "principal",
        ),
        (
            "[[loop]]\nbind = true",
            "e.toml:2: loop[0].name: is missing",
            "[a-z0-9]",
        ),
        (
            "[limits]\nmemory = 5",
            "e.toml:3: limits.memory: ",
            "size with its unit, such as \"64MiB\"",
        ),
        (
            "[limits]\nmemory = \"5\"",
            "e.toml:3: limits.memory: ",
            "\"64MiB\"",
        ),
        (
            "[limits]\nmemory = \"5KiB\"",
            "e.toml:3: limits.memory: ",
            "is 5KiB, allowed is 1MiB to 1TiB",
        ),
        (
            "[tls.web]\ncert = \"web.pem\"\nkey = \"/web.key\"",
            "e.toml:3: tls.web.cert: ",
            "must be an absolute path",
        ),
        (
            "[tls.web]\ncert = \"/web.pem\"",
            "e.toml:3: tls.web.cert: ",
            "needs tls.web.key too",
        ),
        (
            "[tls.web]\nclient_ca = \"/ca.pem\"",
            "e.toml:3: tls.web.client_ca: ",
            "is for servers, which need tls.web.cert and tls.web.key",
        ),
        (
            "[tls.web]\ncert = \"/w.pem\"\nkey = \"/w.key\"\nsni = [\"wbe\"]",
            "e.toml:5: tls.web.sni: ",
            "did you mean `web`?",
        ),
        (
            "[tls.Web]\nca = \"/c.pem\"",
            "e.toml:2: tls.Web: ",
            "[a-z0-9]",
        ),
        (
            "[tls.web]\ncertificate = \"/c.pem\"",
            "e.toml:3: tls.web.certificate: ",
            "allowed are cert, key, ca, client_ca, sni, strict_sni",
        ),
        (
            "[children]\nkill_grace = 5",
            "e.toml:3: children.kill_grace: ",
            "duration with its unit, such as \"250ms\"",
        ),
        (
            "[children]\nkill_grace = \"5\"",
            "e.toml:3: children.kill_grace: ",
            "\"5s\"",
        ),
        (
            "[children]\nkill_grace = \"2h\"",
            "e.toml:3: children.kill_grace: ",
            "is 2h, allowed is at most 1h",
        ),
        (
            "[children]\numask = \"1000\"",
            "e.toml:3: children.umask: ",
            "is 1000, allowed is 0000 to 0777",
        ),
        (
            "[children]\numask = 18",
            "e.toml:3: children.umask: ",
            "an octal mode in quotes",
        ),
        (
            "[children]\nnice = 20",
            "e.toml:3: children.nice: ",
            "is 20, allowed is -20 to 19",
        ),
        (
            "[children]\noom_score_adj = -1001",
            "e.toml:3: children.oom_score_adj: ",
            "is -1001, allowed is -1000 to 1000",
        ),
        (
            "[children]\nlimits = { nofil = \"1\" }",
            "e.toml:3: children.limits",
            "(did you mean `nofile`?); allowed are as, core",
        ),
        (
            "[children.limits]\nnofile = \"2:1\"",
            "e.toml:3: children.limits.nofile: ",
            "SOFT or SOFT:HARD",
        ),
        (
            "[children.limits]\ncore = 0",
            "e.toml:3: children.limits.core: ",
            "SOFT or SOFT:HARD",
        ),
        (
            "[limits]\nloops = -1",
            "e.toml:3: limits.loops: ",
            "a whole number from 0 on",
        ),
        (
            "[limits]\nloops = 0",
            "e.toml:3: limits.loops: ",
            "allowed is 1 to 10000",
        ),
        (
            "[limits]\nwrite_high_water = \"2MiB\"",
            "e.toml:3: limits.write_high_water: ",
            "4KiB to 1MiB",
        ),
        (
            "[limits]\nclose_linger = \"61m\"",
            "e.toml:3: limits.close_linger: ",
            "at most 1h",
        ),
        (
            "[server]\nmode = 600",
            "e.toml:3: server.mode: ",
            "\"0600\"",
        ),
        (
            "[server]\nmode = \"0200\"",
            "e.toml:3: server.mode: ",
            "0600 to 0777",
        ),
        (
            "[server]\nsocket = \"s\"",
            "e.toml:3: server.socket: ",
            "absolute path",
        ),
        (
            "[log]\nformat = \"xml\"",
            "e.toml:3: log.format: ",
            "journald",
        ),
        (
            "[log]\nfilter = \"a=b=c\"",
            "e.toml:3: log.filter: ",
            "error, warn, info",
        ),
        (
            "[log]\nfilter = \"debgu\"",
            "e.toml:3: log.filter: `debgu` is not a level (did you mean `debug`?)",
            "off, error, warn",
        ),
        (
            "[log]\nfilter = \"info,evloopd=chatty\"",
            "e.toml:3: log.filter: `chatty` is not a level",
            "target=level",
        ),
        (
            "[signals]\nallow = [\"SIGCHLD\"]",
            "e.toml:3: signals.allow: ",
            "reaps its children",
        ),
        (
            "[signals]\nallow = [\"SIGSEGV\"]",
            "e.toml:3: signals.allow: ",
            "a fault",
        ),
        (
            "[signals]\nallow = [\"SIGRTMIN+99\"]",
            "e.toml:3: signals.allow: ",
            "is not a signal",
        ),
        (
            "[policy.a]\nclass = \"reactor\"",
            "e.toml:3: policy.a.class: ",
            "selector, proactor",
        ),
        (
            "[policy.a]\nclass = \"proactor\"\nbackends = [\"epoll\"]",
            "e.toml:4: policy.a.backends: `epoll` is of class selector, but the policy is of class proactor",
            "allowed are auto, io_uring",
        ),
        (
            "[policy.a]\nbackends = [\"poll\", \"io_uring\"]",
            "e.toml:3: policy.a.backends: `io_uring` is of class proactor, but the policy is of class selector",
            "allowed are auto, epoll, poll, select",
        ),
        (
            "[policy.a]\nbackends = [\"kqueue\"]",
            "e.toml:3: policy.a.backends: ",
            "auto, epoll, poll, select",
        ),
        (
            "[policy.a]\nbackends = []",
            "e.toml:3: policy.a.backends: ",
            "auto, epoll, poll, select",
        ),
        (
            "[policy.a]\nwatch_kinds = [\"nothing\"]",
            "e.toml:3: policy.a.watch_kinds: ",
            "read_pipe",
        ),
        (
            "[policy.a]\nrefuses = [\"timr: too late\"]",
            "e.toml:3: policy.a.refuses: `timr` is not a thing that can be refused (did you mean `timer`?)",
            "unix_socket, character_device",
        ),
        (
            "[policy.a]\nrefuses = [\"timer:\"]",
            "e.toml:3: policy.a.refuses: the reason of `timer` is not valid",
            "allowed are 1 to 256 bytes",
        ),
        (
            "[policy.a]\nrefuses = [\"timer\", \"timer: again\"]",
            "e.toml:3: policy.a.refuses: `timer` is refused twice",
            "allowed is once",
        ),
        (
            "[policy.a]\ntimer_tick = \"2s\"",
            "e.toml:3: policy.a.timer_tick: is 2s",
            "at most 1s",
        ),
        (
            "[policy.a]\njournal_events = 15",
            "e.toml:3: policy.a.journal_events: ",
            "16 to 100000000",
        ),
        ("[policy.A]", "e.toml:2: policy.A: ", "[a-z0-9]"),
        (
            "[policy.a]\nextends = \"b\"",
            "e.toml:3: policy.a.extends: ",
            "default, macos-kqueue-compat, proactor, windows-proactor-compat, windows-selector-compat",
        ),
        (
            "default_policy = \"b\"",
            "e.toml:2: default_policy: ",
            "default, macos-kqueue-compat, proactor, windows-proactor-compat, windows-selector-compat",
        ),
        (
            "[[loop]]\nname = \"a\"\npolicy = \"b\"",
            "e.toml:4: loop[0].policy: ",
            "allowed are default, macos-kqueue-compat",
        ),
        (
            "[[loop]]\nname = \"a\"\n[[loop]]\nname = \"a\"",
            "e.toml:5: loop[1].name: ",
            "one loop of each name",
        ),
        (
            "[[loop]]\nname = \"a\"\nprincipal = \"me\"",
            "e.toml:4: loop[0].principal: ",
            "uid:N",
        ),
        (
            "[[loop]]\nname = \"a\"\nprincipal = \"uid:01\"",
            "e.toml:4: loop[0].principal: ",
            "uid:N",
        ),
        (
            "[server]\nmax_connections = 5\nmax_connections_per_principal = 6",
            "e.toml:4: server.max_connections_per_principal: is 6",
            "at most server.max_connections, 5",
        ),
        (
            "[server]\nsocket = \"/s\"\nhandover_socket = \"//./s\"",
            "e.toml:4: server.handover_socket: `//./s` is the same path as server.socket",
            "any other path",
        ),
        (
            "[server]\nsocket = \"/s\"\nhandover_socket = \"/s.lock\"",
            "e.toml:4: server.handover_socket: `/s.lock` is the path of the lock file of",
            "any other path",
        ),
        (
            "server = 1",
            "e.toml:2: server: is not a table",
            "`[server]`",
        ),
        ("loop = 1", "e.toml:2: loop: is not a list", "`[[loop]]`"),
        ("a = ", "e.toml:2: ", "value"),
        (
            "[server]\nmode = \"0600\"\nmode = \"0600\"",
            "e.toml:4: ",
            "duplicate key",
        ),
    ];
    for (text, start, allowed) in cases {
        let error = error(text);
        assert!(error.starts_with(start), "{text}\ngave {error}");
        assert!(error.contains(allowed), "{text}\ngave {error}");
        assert!(!error.contains('\n'), "{text}\ngave {error}");
    }
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_file() {
    let said = error(
        "default_policy = \"defautl\"
[limits]
lops = 5
memory = \"lots\"
mailbox = 1
[policy.child]
extends = \"base\"
[policy.base]
journal_events = 1
[log]
filter = \"debgu\"
[[loop]]
nam = \"a\"
policy = \"chidl\"",
    );
    let starts = [
        "e.toml:2: default_policy: `defautl` is not a policy (did you mean `default`?)",
        "e.toml:4: limits.lops: `lops` is not a key (did you mean `loops`?)",
        "e.toml:5: limits.memory: invalid value",
        "e.toml:6: limits.mailbox: is 1, allowed is 16 to 65536",
        "e.toml:10: policy.base.journal_events: is 1",
        "e.toml:12: log.filter: ",
        "e.toml:13: loop[0].name: is missing",
        "e.toml:14: loop[0].nam: `nam` is not a key (did you mean `name`?)",
        "e.toml:15: loop[0].policy: `chidl` is not a policy (did you mean `child`?)",
    ];
    assert_eq!(said.lines().count(), starts.len(), "{said}");
    for (line, start) in said.lines().zip(starts) {
        assert!(line.starts_with(start), "{line} is not {start}");
    }
}

#[test]
fn what_follows_from_a_value_that_is_wrong_itself_is_not_told() {
    let said = error("[limits]\nwrite_buffer = \"2MB?\"\nwrite_high_water = \"1500KiB\"");
    assert_eq!(said.lines().count(), 1, "{said}");
    let said = error("[policy.a]\nclass = \"proactro\"\nbackends = [\"io_uring\"]");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn of_very_many_errors_a_hundred_are_told_and_how_many_more_there_are() {
    let keys: Vec<String> = (0..5_000).map(|n| format!("key{n} = 1")).collect();
    let said = error(&keys.join("\n"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 101);
    assert!(lines[0].starts_with("e.toml:2: key0: "), "{}", lines[0]);
    assert!(
        lines[99].starts_with("e.toml:101: key99: "),
        "{}",
        lines[99]
    );
    assert_eq!(lines[100], "… and 4900 more");
}

#[test]
fn a_derived_path_that_does_not_fit_is_told_where_it_comes_from() {
    let fits = |len: usize| {
        let path = format!("/{}", "s".repeat(len - 1));
        super::read(&format!("version = 1\n[server]\nsocket = \"{path}\""))
    };
    // `.handover` is 9 bytes.
    fits(98).unwrap();
    let said = fits(99).unwrap_err();
    let start = "e.toml:3: server.socket: server.handover_socket is derived from it, ";
    assert!(said.starts_with(start), "{said}");
    assert!(said.contains("108 bytes"), "{said}");
    assert!(said.contains("at most 107 bytes"), "{said}");
}

#[test]
fn the_errors_of_included_files_come_with_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("main.toml");
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let first = put(
        "main.toml",
        "version = 1\ninclude = \"*.conf\"\n[limits]\nlops = 1",
    );
    let broken = put("a.conf", "version = 1\nx = = 1");
    let second = put("b.conf", "[limits]\nloops = 0");
    let said = super::load(&main).unwrap_err();
    let starts = [
        format!("{first}:4: limits.lops: "),
        format!("{broken}:2: "),
        format!("{second}:1: version: is missing"),
        format!("{second}:2: limits.loops: is 0"),
    ];
    assert_eq!(said.lines().count(), starts.len(), "{said}");
    for (line, start) in said.lines().zip(&starts) {
        assert!(line.starts_with(start), "{line} is not {start}");
    }
}
