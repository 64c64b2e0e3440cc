//! The cost of sources: sockets that the daemon reads into events, compared with programs that read
//! them with tokio, or in a loop of their own, and stream what they got to a client with tonic; and
//! children, compared with tmux and supervisord; and paths and files, compared with inotifywait and tail.
//!
//! `cargo bench --bench sources [-- CASE…]` runs both sides of every case alternately and prints
//! the same lines as the benchmark of delivery. The client is this process, which is also the peer
//! of all sockets. The daemon and each yardstick are processes of their own.

use common::{Case, Outcome, daemon, grpc, report, yardstick};

mod attach;
mod certificates;
#[path = "../common/mod.rs"]
mod common;
mod exits;
mod files;
mod programs;
mod pty;
mod source;
mod tcp;
mod tls_handshakes;
mod tls_read;
mod tmux;
mod udp;

const CASES: [(&str, Case); 11] = [
    ("tcp_accept_read_vs_tokio", tcp::run),
    ("tls_read_vs_tokio_rustls", tls_read::run),
    ("tls_handshakes_vs_tokio_rustls", tls_handshakes::run),
    ("udp_events_vs_recvmmsg_loop", udp::run),
    ("pty_bytes_vs_tmux", pty::run),
    ("attach_screen_vs_tmux", attach::run),
    ("spawn_with_cgroup_vs_without", exits::run_cgroups),
    ("exit_events_vs_supervisord", exits::run_supervisord),
    ("path_events_vs_inotifywait", files::run_paths),
    ("file_follow_vs_tail", files::run_follow),
    ("calendar_arm_us", files::run_calendars),
];

/// More than the descriptors of a thousand connections, both ends.
const OPEN_FILES: u64 = 4096;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [programs::YARDSTICK, socket] => return programs::serve(socket.as_ref()),
        [pty::READER, bytes] => return pty::read_all(bytes),
        _ => {}
    }
    common::run("sources", &CASES, &arguments, OPEN_FILES)
}
