//! Words that users of other tools type, and what to type instead.

/// Words that are no command, with the verb before them, and what to type instead.
const COMMANDS: [Habit; 51] = [
    (
        "",
        "add",
        "`evloopctl run -d -- CMD` starts something and returns",
    ),
    ("", "at", "`evloopctl after 90s && CMD` runs CMD after 90 s"),
    (
        "",
        "cat",
        "`evloopctl show NAME` shows how a process was started, `evloopctl logs NAME` prints its output",
    ),
    (
        "",
        "clean",
        "`evloopctl rm --all` forgets all that has ended",
    ),
    (
        "",
        "container",
        "leave the word out: `evloopctl ps`, `evloopctl rm NAME`",
    ),
    ("", "cp", "processes use the host's files: copy with `cp`"),
    (
        "",
        "create",
        "`evloopctl run -d --name NAME -- CMD` starts CMD",
    ),
    (
        "",
        "cron",
        "`evloopctl every 1h --name NAME` prints a line each time",
    ),
    (
        "",
        "daemon",
        "`evloopd` is the daemon; `evloopctl status` shows its state",
    ),
    (
        "",
        "daemon-reload",
        "the daemon reads its configuration when it starts",
    ),
    (
        "",
        "delete",
        "`evloopctl rm NAME` ends a process if it runs, and forgets it",
    ),
    (
        "",
        "detach",
        "Ctrl-C twice within a second leaves a process that you are attached to",
    ),
    (
        "",
        "down",
        "`evloopctl stop NAME` ends a process, `evloopctl rm --all --force` ends everything",
    ),
    (
        "",
        "enable",
        "the service manager starts programs with the host: see deploy/README.md",
    ),
    (
        "",
        "exec",
        "processes are not in containers: `evloopctl run -- CMD` runs a second one",
    ),
    ("", "follow", "`evloopctl logs -f NAME`"),
    (
        "",
        "has-session",
        "`evloopctl show NAME` fails if nothing has the name",
    ),
    (
        "",
        "images",
        "there are no images: `evloopctl run -- CMD` runs a program of this host",
    ),
    (
        "",
        "is-active",
        "`evloopctl ps -q --running --filter name=NAME` prints the name if the process runs",
    ),
    (
        "",
        "journal",
        "`evloopctl events`, or `evloopctl logs NAME` for one process's output",
    ),
    ("", "kill-session", "`evloopctl stop NAME` ends a process"),
    ("", "list-sessions", "`evloopctl ps` lists processes"),
    ("", "list-timers", "`evloopctl watch list --kind timer`"),
    (
        "",
        "list-units",
        "`evloopctl ps` lists processes, `evloopctl watch list` lists all watches",
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
        "`evloopctl kill -STOP NAME` stops a process, `evloopctl watch pause NAME` reads nothing from a connection",
    ),
    (
        "",
        "port",
        "processes use the host's ports: none are mapped",
    ),
    (
        "",
        "process",
        "leave the word out: `evloopctl ps`, `evloopctl logs NAME`, `evloopctl stop NAME`",
    ),
    (
        "",
        "prune",
        "`evloopctl rm --all` forgets all that has ended",
    ),
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
        "a name cannot be changed: `evloopctl rm NAME`, then run the command under another name",
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
        "`evloopctl run -d --name NAME -- CMD`; to run it again after its end, first `evloopctl rm NAME`",
    ),
    (
        "",
        "stats",
        "`evloopctl show NAME` shows the time and memory that a process used",
    ),
    (
        "",
        "system",
        "`evloopctl status` shows the daemon's state; `evloopctl rm --all` does what `system prune` does",
    ),
    ("", "tail", "`evloopctl logs -f NAME`"),
    (
        "",
        "top",
        "`evloopctl ps --watch` lists processes again whenever one changes",
    ),
    (
        "",
        "resume",
        "`evloopctl kill -CONT NAME` for a process, `evloopctl watch resume NAME` for a connection",
    ),
    (
        "",
        "unpause",
        "`evloopctl kill -CONT NAME` for a process, `evloopctl watch resume NAME` for a connection",
    ),
    (
        "",
        "up",
        "`evloopctl run -d --name NAME -- CMD` starts a process; `evloopd` starts the daemon",
    ),
    (
        "",
        "nohup",
        "`evloopctl run -d -- CMD` starts CMD, which goes on when you log out",
    ),
    ("", "timers", "`evloopctl watch list --kind timer`"),
    (
        "consumer",
        "remove",
        "`evloopctl consumer delete NAME` deletes a consumer",
    ),
    (
        "consumer",
        "rm",
        "`evloopctl consumer delete NAME` deletes a consumer",
    ),
    (
        "loop",
        "delete",
        "`evloopctl loop close NAME --stop` closes a loop",
    ),
    (
        "loop",
        "rm",
        "`evloopctl loop close NAME --stop` closes a loop",
    ),
    (
        "watch",
        "add",
        "the kind comes first, as in `evloopctl watch timer --every 10s --name tick`",
    ),
];

/// Options that do not exist, with their verb, and what to do instead.
const OPTIONS: [Habit; 18] = [
    ("", "-H", "`--socket PATH` names the daemon's socket"),
    (
        "",
        "-v",
        "`evloopctl version`, or -V for the version of evloopctl alone",
    ),
    ("attach", "-t", "`evloopctl attach NAME` needs no option"),
    (
        "events",
        "--format",
        "`--json` prints one object per line, for jq(1)",
    ),
    ("kill", "-t", "`evloopctl kill NAME` needs no option"),
    (
        "ps",
        "--format",
        "`--json` prints one object per line, for jq(1)",
    ),
    (
        "ps",
        "-s",
        "`evloopctl show NAME` shows the time and memory that a process used",
    ),
    (
        "rm",
        "-r",
        "leave the option out: `evloopctl rm -f NAME`, or `evloopctl rm --all`",
    ),
    (
        "run",
        "--cpus",
        "`--limit NAME=SOFT` limits a resource, as prlimit(1) does",
    ),
    (
        "run",
        "--memory",
        "`--limit as=BYTES` limits the address space, as prlimit(1) does",
    ),
    (
        "run",
        "-m",
        "`--limit as=BYTES` limits the address space, as prlimit(1) does",
    ),
    ("run", "--restart", "evloopd does not restart processes"),
    (
        "run",
        "-p",
        "processes use the host's ports: leave the option out",
    ),
    (
        "run",
        "-v",
        "processes use the host's files: leave the option out",
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
            "`evloopctl show {word}` shows one process, `evloopctl ps --filter name={word}` lists those whose names contain it"
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
