//! `watch`: adds, shows, arms and removes watches. A watch is a source of events that is registered on a loop.

use clap::Subcommand;

use super::description;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::names::OneWatch;
use super::output;
use super::parse;
use super::session::{Session, answer};
use crate::kinds::WatchKind;
use crate::proto::{ListWatchesRequest, RearmItem, RearmRequest};

pub(super) mod add;
pub(super) mod datagram;
mod files;
pub(super) mod kinds;
pub(super) mod pid;
mod reading;
pub(super) mod sockets;
mod take_fd;
mod tls;

pub(super) use files::Only;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl watch timer --every 10s --name tick
  evloopctl watch listen 127.0.0.1:7000 -f
  evloopctl watch fd 3 --read -f 3< /tmp/fifo
  evloopctl watch list";

/// Commands for watches.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    #[command(flatten)]
    Add(Box<kinds::Kind>),
    /// List the watches of the loop
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  evloopctl watch list --kind timer --open"
    )]
    List {
        /// Only watches of this kind; may be repeated
        #[arg(long = "kind")]
        kinds: Vec<String>,
        /// Only watches with this label; may be repeated
        #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
        labels: Vec<(String, String)>,
        /// Only open watches
        #[arg(long)]
        open: bool,
    },
    /// Show one watch
    #[command(
        visible_alias = "show",
        after_help = "Examples:\n  evloopctl watch get tick --json\n  evloopctl watch get @7"
    )]
    Get {
        #[command(flatten)]
        watch: OneWatch,
    },
    /// End and remove watches
    #[command(after_help = "Example:\n  evloopctl watch rm tick")]
    Rm(super::rm::Rm),
    /// Arm an fd watch again after its `ready`, or disarm it
    #[command(
        after_help = "Examples:\n  evloopctl watch rearm @7 --seq 1041\n  evloopctl watch rearm @7 --disarm --write"
    )]
    Rearm {
        #[command(flatten)]
        watch: OneWatch,
        /// Do not arm if there is a `ready` event after this sequence number [default: arm in any case]
        #[arg(
            long,
            default_value_t = 0,
            hide_default_value = true,
            conflicts_with = "disarm"
        )]
        seq: u64,
        /// Disarm instead: no `ready` comes until the watch is armed again
        #[arg(long)]
        disarm: bool,
        /// Arm or disarm for reading
        #[arg(long)]
        read: bool,
        /// Arm or disarm for writing [default, without --read: what has fired; with --disarm: both]
        #[arg(long)]
        write: bool,
    },
    /// Take a descriptor out of the daemon and run a program with it as stdin
    #[command(after_help = take_fd::EXAMPLES)]
    TakeFd(take_fd::TakeFd),
    /// Read nothing from a connection, a pipe, a datagram socket, a file or a process until `resume`
    #[command(after_help = reading::PAUSE_EXAMPLES)]
    Pause {
        #[command(flatten)]
        watch: OneWatch,
    },
    /// Go on reading after `pause` or --start-paused
    #[command(after_help = reading::RESUME_EXAMPLES)]
    Resume {
        #[command(flatten)]
        watch: OneWatch,
    },
    /// Make a datagram socket a member of a multicast group
    #[command(after_help = datagram::JOIN_EXAMPLES)]
    Join(datagram::Membership),
    /// End a membership, also one of `udp --join`
    #[command(after_help = datagram::LEAVE_EXAMPLES)]
    Leave(datagram::Membership),
    /// Begin TLS on a connection that has none yet
    #[command(after_help = tls::EXAMPLES)]
    StartTls(Box<tls::StartTls>),
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    match verb {
        Verb::Add(kind) => kinds::run(session, *kind).await,
        Verb::List {
            kinds,
            labels,
            open,
        } => {
            let request = ListWatchesRequest {
                labels: labels.into_iter().collect(),
                watch_kinds: kinds,
                open_only: open,
                ..ListWatchesRequest::default()
            };
            description::table(
                session.json,
                &lookup::watches_or_note(session, request).await?,
            )?;
            Ok(0)
        }
        Verb::Get { watch } => {
            let found = lookup::watch(session, &watch.reference()).await?;
            super::show::watch(session, &found).await?;
            Ok(0)
        }
        Verb::Rm(args) => super::rm::run(session, args).await,
        Verb::Rearm {
            watch,
            seq,
            disarm,
            read,
            write,
        } => {
            let asked = watch.reference();
            let found = lookup::watch(session, &asked).await?;
            if found.watch_kind != WatchKind::Fd.name() {
                let (name, kind) = (
                    parse::watch_name(&asked),
                    found.watch_kind.replace('_', " "),
                );
                let what = format!("it is a {kind}; only an fd watch can be armed");
                return Err(Failure::new(name, what));
            }
            let watch_id = found.watch_id;
            let item = RearmItem {
                watch_id,
                seq,
                readable: read,
                writable: write,
                disarm,
            };
            let request = RearmRequest {
                r#loop: session.loop_ref.clone(),
                items: vec![item],
                ..RearmRequest::default()
            };
            let done = answer(session.watches().rearm(request).await)?;
            if session.json {
                output::messages([&done])?;
                return Ok(0);
            }
            let changed = done.armed.first().is_some_and(|armed| *armed);
            output::line(match (changed, disarm) {
                (true, false) => "armed",
                (true, true) => "disarmed",
                (false, false) => "not armed: there is a later `ready`, or it was armed before",
                (false, true) => "not disarmed: it was not armed before",
            })?;
            Ok(0)
        }
        Verb::TakeFd(args) => take_fd::run(session, args).await,
        Verb::Pause { watch } => reading::pause(session, watch).await,
        Verb::Resume { watch } => reading::resume(session, watch).await,
        Verb::Join(args) => datagram::join(session, args).await,
        Verb::Leave(args) => datagram::leave(session, args).await,
        Verb::StartTls(args) => tls::start_tls(session, *args).await,
    }
}
