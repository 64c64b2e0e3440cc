//! Words that users of other tools type, and what to type instead.

/// Words that are no command, with the verb before them, and what to type instead.
const COMMANDS: [Habit; 50] = [
    (
        "",
        "add",
        "`evloopctl run -d -- CMD` starts something and returns",
    ),
    ("", "at", "`evloopctl after 90s && CMD` waits first"),
    (
        "",
        "cat",
        "`evloopctl show NAME` tells how it was started, `evloopctl logs NAME` what it wrote",
    ),
    ("", "clean", "`evloopctl rm --all` forgets what has ended"),
    (
        "",
        "container",
        "leave it out: `evloopctl ps`, `evloopctl rm NAME`",
    ),
    ("", "cp", "a process has its files where the host has them"),
    (
        "",
        "create",
        "`evloopctl run -d --name NAME -- CMD` makes and starts it",
    ),
    (
        "",
        "cron",
        "`evloopctl every 1h --name NAME` prints a line each time",
    ),
    (
        "",
        "daemon",
        "`evloopd` is the daemon; `evloopctl status` tells how it is",
    ),
    (
        "",
        "daemon-reload",
        "the daemon reads its configuration when it starts",
    ),
    (
        "",
        "delete",
        "`evloopctl rm NAME` forgets it, and ends it before that if it runs",
    ),
    (
        "",
        "detach",
        "Ctrl-C twice within a second leaves a process that you are attached to",
    ),
    (
        "",
        "down",
        "`evloopctl stop NAME` ends a process, `evloopctl rm --all --force` everything",
    ),
    (
        "",
        "enable",
        "what starts with the host is up to the service manager: see deploy/README.md",
    ),
    (
        "",
        "exec",
        "a process is no container: run a second one beside it with `evloopctl run -- CMD`",
    ),
    ("", "follow", "`evloopctl logs -f NAME`"),
    (
        "",
        "has-session",
        "`evloopctl show NAME` fails if there is none",
    ),
    (
        "",
        "images",
        "there are no images: `evloopctl run -- CMD` runs a program of this host",
    ),
    (
        "",
        "is-active",
        "`evloopctl ps -q --running --filter name=NAME` prints it if it runs",
    ),
    (
        "",
        "journal",
        "`evloopctl events`, or `evloopctl logs NAME` for one process's output",
    ),
    ("", "kill-session", "`evloopctl stop NAME` ends it"),
    ("", "list-sessions", "`evloopctl ps` lists processes"),
    ("", "list-timers", "`evloopctl watch list --kind timer`"),
    (
        "",
        "list-units",
        "`evloopctl ps` lists processes, `evloopctl watch list` everything",
    ),
    (
        "",
        "new",
        "`evloopctl run --name NAME -- CMD`, or `evloopctl loop new NAME`",
    ),
    ("", "new-session", "`evloopctl run -d --name NAME -- CMD`"),
    (
        "",
        "pause",
        "`evloopctl kill -STOP NAME`, and `evloopctl kill -CONT NAME` to go on",
    ),
    (
        "",
        "port",
        "a process listens where it wants to; nothing is mapped",
    ),
    (
        "",
        "process",
        "leave it out: `evloopctl ps`, `evloopctl logs NAME`, `evloopctl stop NAME`",
    ),
    ("", "prune", "`evloopctl rm --all` forgets what has ended"),
    (
        "",
        "pull",
        "there are no images: `evloopctl run -- CMD` runs a program of this host",
    ),
    (
        "",
        "reload",
        "`evloopctl kill -HUP NAME` tells a process to read its configuration again",
    ),
    (
        "",
        "rename",
        "a name is for good: `evloopctl rm NAME`, and run it under another",
    ),
    (
        "",
        "reset",
        "`evloopctl rm --all --force` ends and forgets everything on the loop",
    ),
    (
        "",
        "restart",
        "`evloopctl rm NAME`, then `evloopctl run -d --name NAME -- CMD` again",
    ),
    (
        "",
        "send-keys",
        "`evloopctl write NAME TEXT`, for a process that was started with -i",
    ),
    (
        "",
        "start",
        "`evloopctl run -d --name NAME -- CMD`; what has ended runs again after `evloopctl rm NAME`",
    ),
    ("", "stats", "`evloopctl show NAME` tells what it used"),
    (
        "",
        "system",
        "`evloopctl status`, or `evloopctl rm --all` for what `system prune` does",
    ),
    ("", "tail", "`evloopctl logs -f NAME`"),
    (
        "",
        "top",
        "`evloopctl ps --watch` shows processes as they come and go",
    ),
    ("", "unpause", "`evloopctl kill -CONT NAME`"),
    (
        "",
        "up",
        "`evloopctl run -d --name NAME -- CMD` for each; `evloopd` starts the daemon",
    ),
    (
        "",
        "nohup",
        "`evloopctl run -d -- CMD` goes on when you log out",
    ),
    ("", "timers", "`evloopctl watch list --kind timer`"),
    (
        "consumer",
        "remove",
        "`evloopctl consumer delete NAME` forgets it",
    ),
    (
        "consumer",
        "rm",
        "`evloopctl consumer delete NAME` forgets it",
    ),
    (
        "loop",
        "delete",
        "`evloopctl loop close NAME --stop` ends it",
    ),
    ("loop", "rm", "`evloopctl loop close NAME --stop` ends it"),
    (
        "watch",
        "add",
        "the kind comes first, as in `evloopctl watch timer --every 10s --name tick`",
    ),
];

/// Options that do not exist, with their verb, and what to do instead.
const OPTIONS: [Habit; 23] = [
    ("", "-H", "`--socket PATH` names the daemon's socket"),
    (
        "",
        "-v",
        "`evloopctl version`, or -V for this program's alone",
    ),
    (
        "attach",
        "-t",
        "the name alone is enough: `evloopctl attach NAME`",
    ),
    (
        "events",
        "--format",
        "`--json` prints an object a line, for jq(1)",
    ),
    (
        "kill",
        "-t",
        "the name alone is enough: `evloopctl kill NAME`",
    ),
    (
        "ps",
        "--format",
        "`--json` prints an object a line, for jq(1)",
    ),
    ("ps", "-s", "`evloopctl show NAME` tells what it used"),
    (
        "rm",
        "-r",
        "leave it out: `evloopctl rm -f NAME`, or `evloopctl rm --all`",
    ),
    (
        "run",
        "--cpus",
        "`--limit NAME=SOFT` bounds a resource, as prlimit(1) does",
    ),
    ("run", "--env-file", "give each variable with -e KEY=VALUE"),
    (
        "run",
        "--memory",
        "`--limit as=BYTES` bounds its address space, as prlimit(1) does",
    ),
    (
        "run",
        "-m",
        "`--limit as=BYTES` bounds its address space, as prlimit(1) does",
    ),
    ("run", "--restart", "nothing is started again by itself"),
    (
        "run",
        "--tty",
        "a program gets pipes, no terminal: leave it out",
    ),
    (
        "run",
        "-p",
        "a process listens where it wants to: leave it out",
    ),
    (
        "run",
        "-t",
        "a program gets pipes, no terminal: leave it out",
    ),
    ("run", "--user", "a process runs as the daemon's user"),
    ("run", "-u", "a process runs as the daemon's user"),
    (
        "run",
        "-v",
        "a process sees the host's own files: leave it out",
    ),
    ("show", "--format", "`--json` prints an object, for jq(1)"),
    ("show", "-f", "`--json` prints an object, for jq(1)"),
    (
        "stop",
        "--all",
        "`evloopctl stop $(evloopctl ps -q --running)` ends all that run",
    ),
    (
        "wait",
        "--all",
        "`evloopctl wait $(evloopctl ps -q --running)` waits for all that run",
    ),
];

/// The verb before it, what was typed, what to type or do instead.
type Habit = (&'static str, &'static str, &'static str);

/// Returns what to type in place of a command that does not exist.
pub(super) fn instead(verb: &str, word: &str) -> Option<&'static str> {
    find(&COMMANDS, verb, word)
}

/// Returns what to do in place of an argument that a verb does not take.
pub(super) fn argument(verb: &str, word: &str) -> Option<String> {
    match verb {
        "ps" => Some(format!(
            "`evloopctl show {word}` shows one, `evloopctl ps --filter name={word}` those like it"
        )),
        _ => None,
    }
}

/// Returns what to do in place of an option that does not exist.
pub(super) fn option(verb: &str, word: &str) -> Option<&'static str> {
    find(&OPTIONS, verb, word)
}

fn find(habits: &'static [(&str, &str, &str)], verb: &str, word: &str) -> Option<&'static str> {
    let found = habits
        .iter()
        .find(|(of, typed, _)| (*of, *typed) == (verb, word));
    found.map(|(_, _, instead)| *instead)
}
