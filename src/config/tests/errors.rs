use super::error;

#[test]
fn every_error_names_place_key_and_what_is_allowed() {
    let cases = [
        (
            "[server]\nsokket = \"/s\"",
            "e.toml:3: server.sokket: ",
            "`socket`, `handover_socket`, `mode`",
        ),
        (
            "servre = 1",
            "e.toml:2: servre: ",
            "`default_policy`, `server`",
        ),
        ("[policy.a]\nb = 1", "e.toml:3: policy.a.b: ", "`extends`"),
        (
            "[[loop]]\nname = \"a\"\n[[loop]]\nname = \"b\"\nx = 1",
            "e.toml:6: loop[1].x: ",
            "`principal`",
        ),
        ("[[loop]]\nbind = true", "e.toml:2: loop[0]: ", "name"),
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
            "nofile, nproc",
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
            "expected usize",
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
            "`journald`",
        ),
        (
            "[log]\nfilter = \"a=b=c\"",
            "e.toml:3: log.filter: ",
            "error, warn, info",
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
            "is no signal",
        ),
        (
            "[policy.a]\nclass = \"reactor\"",
            "e.toml:3: policy.a.class: ",
            "selector, proactor",
        ),
        (
            "[policy.a]\nclass = \"proactor\"\nbackends = [\"epoll\"]",
            "e.toml:4: policy.a.backends: `epoll` is of class selector, the policy of proactor",
            "allowed are auto, io_uring",
        ),
        (
            "[policy.a]\nbackends = [\"poll\", \"io_uring\"]",
            "e.toml:3: policy.a.backends: `io_uring` is of class proactor, the policy of selector",
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
            "[policy.a]\nwatch_kinds = [\"path\"]",
            "e.toml:3: policy.a.watch_kinds: ",
            "`read_pipe`",
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
            "default, proactor, windows-proactor-compat, windows-selector-compat",
        ),
        (
            "default_policy = \"b\"",
            "e.toml:2: default_policy: ",
            "default, proactor, windows-proactor-compat, windows-selector-compat",
        ),
        (
            "[[loop]]\nname = \"a\"\npolicy = \"b\"",
            "e.toml:4: loop[0].policy: ",
            "there are default",
        ),
        (
            "[[loop]]\nname = \"a\"\n[[loop]]\nname = \"a\"",
            "e.toml:5: loop[1].name: ",
            "one of a name",
        ),
        (
            "[[loop]]\nname = \"a\"\nprincipal = \"me\"",
            "e.toml:4: loop[0].principal: ",
            "uid:N",
        ),
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
