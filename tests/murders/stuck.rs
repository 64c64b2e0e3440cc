//! A look at the daemon and at the client when a call gets no answer.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use evloopd::proto::GetStatusRequest;
use evloopd::proto::admin_service_client::AdminServiceClient;

use crate::client::Site;
use crate::common::{connect_later, lives};

/// A call without an answer for so long is stuck, if others get answers meanwhile.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Writes what can be seen to standard error.
pub(crate) async fn tell(site: &Site, what: &str) {
    eprintln!("=== {what}: no answer for {LIMIT:?}");
    let deaths = site.deaths.lock().clone();
    let since = deaths.last().map(Instant::elapsed);
    eprintln!("deaths: {}, the last {since:?} ago", deaths.len());
    for connection in ["first", "second"] {
        let mut admin = AdminServiceClient::new(connect_later(&site.socket));
        let answer = admin.get_status(GetStatusRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        eprintln!("a new connection, the {connection}: {answer:?}");
    }
    let socket = site.socket.display();
    run(&format!("ss -xlp | grep -F {socket}"));
    run(&format!("ss -xap | grep -F {socket}"));
    run(&format!("ss -xap | grep -F pid={},", std::process::id()));
    match lives::life(site.keeper) {
        Some(life) => threads(life.as_raw()),
        None => eprintln!("no life"),
    }
    threads(site.keeper.as_raw());
    run(&format!("tail -n 60 {}/log", site.dir.display()));
}

/// What the threads of a process do.
fn threads(pid: i32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        eprintln!("no process {pid}");
        return;
    };
    for task in tasks.flatten() {
        let of = |file: &str| read(&task.path().join(file));
        eprintln!(
            "thread {:?} {}: {} in {}\n{}",
            task.file_name(),
            of("comm"),
            of("syscall"),
            of("wchan"),
            of("stack")
        );
    }
    run(&format!("ls -l /proc/{pid}/fd | head -n 400"));
    run(&format!(
        "timeout 60 gdb -p {pid} -batch -ex 'thread apply all bt 30' 2>&1 | tail -n 1500"
    ));
}

fn read(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim_end().to_owned()
}

fn run(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output();
    let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    eprintln!("--- {line}\n{}", output.unwrap_or_default());
}
