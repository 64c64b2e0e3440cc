//! `watch take-fd`: takes a file descriptor out of the daemon and passes it to a program.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use clap::Args;

use super::super::failure::{Failure, Outcome, USAGE};
use super::super::names::OneWatch;
use super::super::session::{Session, answer};
use crate::handover::{Client, Slot};
use crate::proto::{GetServerInfoRequest, TakeFdRequest};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl watch take-fd @9 -- sh -c 'echo hello >&0'

It works for accepted connections and fd watches. The watch is closed, and the program runs in \
place of evloopctl, with the descriptor as its stdin.";

/// Options of `watch take-fd`.
#[derive(Debug, Args)]
pub(in crate::ctl) struct TakeFd {
    #[command(flatten)]
    watch: OneWatch,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    argv: Vec<String>,
}

pub(super) async fn run(session: &Session, args: TakeFd) -> Outcome {
    let Some((program, arguments)) = args.argv.split_first() else {
        return Err(Failure::plain("a program is needed after `--`").code(USAGE));
    };
    let info = session
        .admin()
        .get_server_info(GetServerInfoRequest {})
        .await;
    let socket = answer(info)?.handover_socket;
    let handover =
        Client::connect(Path::new(&socket)).map_err(|error| Failure::new(&socket, error))?;
    let request = TakeFdRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(args.watch.reference()),
        ..TakeFdRequest::default()
    };
    let taken = answer(session.watches().take_fd(request).await)?;
    let slot = Slot::try_from(&*taken.slot).map_err(|_| {
        Failure::new(
            "watch take-fd",
            "the daemon sent a descriptor slot that is not valid",
        )
    })?;
    let fd = handover
        .take(&slot)
        .map_err(|error| Failure::new("watch take-fd", error))?;
    let error = Command::new(program).args(arguments).stdin(fd).exec();
    Err(Failure::new(program, error).advice("check the program's name, its mode and PATH"))
}
