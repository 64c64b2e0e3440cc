//! Asks the user's service manager for a cgroup. A daemon of a login shell is in the session's, which
//! belongs to root.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the manager may take to answer, and then to move the daemon.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the daemon looks whether it has been moved.
const LOOK: Duration = Duration::from_millis(10);

/// Has the daemon and its keeper moved into a scope of its own that is delegated to it: see
/// systemd.scope(5) and org.freedesktop.systemd1(5). May block.
///
/// # Errors
/// Why it is not.
pub(super) fn ask(instance: &str, keeper: Option<i32>) -> Result<(), String> {
    let has_bus = env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| Path::new(&dir).join("bus").exists());
    if !has_bus {
        return Err("the user has no service manager that could give a scope".to_owned());
    }
    let name = format!("evloopd-{instance}.scope");
    let timeout = PATIENCE.as_secs();
    let own = i32::try_from(std::process::id()).ok();
    let pids: Vec<String> = [own, keeper].iter().flatten().map(i32::to_string).collect();
    let mut call = Command::new("busctl");
    call.args(["--user", &format!("--timeout={timeout}"), "call"]);
    call.args(["org.freedesktop.systemd1", "/org/freedesktop/systemd1"]);
    call.args(["org.freedesktop.systemd1.Manager", "StartTransientUnit"]);
    call.args(["ssa(sv)a(sa(sv))", &name, "fail", "3"]);
    call.args(["Description", "s", "Event loops of the user"]);
    call.args(["PIDs", "au", &pids.len().to_string()])
        .args(&pids);
    call.args(["Delegate", "b", "true", "0"]);
    let failed = |why: &str| format!("the user's service manager gave no scope: {why}");
    let answer = call.stdin(Stdio::null()).output();
    let answer = answer.map_err(|error| failed(&format!("busctl: {error}")))?;
    if !answer.status.success() {
        return Err(failed(String::from_utf8_lossy(&answer.stderr).trim()));
    }
    let begun = Instant::now();
    // The manager moves them one by one, in any order. One that it has not moved yet would later be
    // taken out of the part of the scope to which the daemon moves it.
    let has_moved = |pid: &String| {
        let place = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        place.lines().any(|line| line.ends_with(&name))
    };
    while begun.elapsed() < PATIENCE {
        if pids.iter().all(has_moved) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(failed("it has not moved the daemon in time"))
}
