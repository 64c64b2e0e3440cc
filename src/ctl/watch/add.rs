//! Adds a watch of any kind, and prints its events if asked to.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::super::description;
use super::super::early_end::early_end;
use super::super::explain::differing;
use super::super::failure::{Failure, Outcome};
use super::super::feed::{Feed, Source};
use super::super::inherited;
use super::super::json;
use super::super::lookup;
use super::super::output;
use super::super::parse;
use super::super::printer::{Printer, Until};
use super::super::session::{Session, answer};
use super::super::style::printable;
use crate::handover::Client;
use crate::proto::{
    self, AddWatchRequest, AddWatchResponse, Filter, GetServerInfoRequest, IfExists, OnGap,
    SubscribeRequest, WatchSpec, subscribe_request, watch_spec,
};

/// A specification, and how to register it.
pub(super) type Made = Result<(watch_spec::Spec, Registration), Failure>;

/// How long a watch stays.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(in crate::ctl) enum Lifetime {
    /// The watch stays until it closes or is removed.
    #[default]
    Daemon,
    /// The watch ends when this command ends, or before.
    Process,
}

impl From<Lifetime> for proto::Lifetime {
    fn from(lifetime: Lifetime) -> Self {
        match lifetime {
            Lifetime::Daemon => Self::Daemon,
            Lifetime::Process => Self::Process,
        }
    }
}

/// The lease of a watch or a loop, and the end of its lifetime.
#[derive(Debug, Default, Args)]
pub(in crate::ctl) struct End {
    /// It ends unless `evloopctl keep-alive` renews it at least this often
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, conflicts_with = "lifetime")]
    pub(in crate::ctl) lease: Option<prost_types::Duration>,
    /// What happens when its lease runs out or its process ends [default: close]
    #[arg(long, value_name = "END", value_parser = ["close", "kill-tree", "keep"])]
    at_lifetime_end: Option<String>,
}

impl End {
    /// Returns the lifetime, which is `usual` without a lease.
    pub(in crate::ctl) const fn lifetime(&self, usual: proto::Lifetime) -> proto::Lifetime {
        match self.lease {
            Some(_) => proto::Lifetime::Lease,
            None => usual,
        }
    }

    /// Returns what happens at the end of the lifetime.
    pub(in crate::ctl) fn at_end(&self) -> proto::LifetimeEnd {
        match self.at_lifetime_end.as_deref() {
            Some("close") => proto::LifetimeEnd::Close,
            Some("keep") => proto::LifetimeEnd::Keep,
            Some(_) => proto::LifetimeEnd::KillTree,
            None => proto::LifetimeEnd::Unspecified,
        }
    }
}

/// Options of every command that adds a watch.
#[derive(Debug, Default, Args)]
pub(in crate::ctl) struct Registration {
    /// The watch's name, unique on the loop
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    /// Attach a label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
    /// A number of your own that every event of the watch carries
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    user_data: u64,
    /// Do nothing if the same watch exists under this name; without it, that is an error
    #[arg(long)]
    if_missing: bool,
    /// How long the watch stays [default: daemon; with --follow and without --name: process]
    #[arg(long, value_enum)]
    lifetime: Option<Lifetime>,
    #[command(flatten)]
    end: End,
    /// How long the watch can be looked at after its end [default: as the policy says]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    finished_ttl: Option<prost_types::Duration>,
    /// Print the watch's events until it closes; without --name it ends with this command
    #[arg(short, long)]
    follow: bool,
}

impl Registration {
    /// The same, for a watch whose events are not printed.
    pub(super) fn detached(self) -> Self {
        Self {
            follow: false,
            ..self
        }
    }

    /// How long the watch stays: a watch that nobody can name again ends with the command that prints it.
    fn lifetime(&self) -> proto::Lifetime {
        let usual = match (self.lifetime, &self.name) {
            (Some(lifetime), _) => lifetime,
            (None, None) if self.follow => Lifetime::Process,
            (None, _) => Lifetime::Daemon,
        };
        self.end.lifetime(usual.into())
    }

    /// Whether the watch's events are printed.
    pub(super) const fn follows(&self) -> bool {
        self.follow
    }

    /// Options for a watch whose events a command prints while it runs. With a name, the watch stays when the command ends,
    /// and a watch that exists under the name is joined.
    pub(in crate::ctl) fn in_foreground(name: Option<String>) -> Self {
        Self {
            if_missing: name.is_some(),
            name,
            follow: true,
            ..Self::default()
        }
    }
}

/// Adds a watch, and prints its name, or its events with `--follow`.
pub(super) async fn run(
    session: &Session,
    spec: watch_spec::Spec,
    registration: &Registration,
) -> Outcome {
    let added = request(session, spec, registration).await?;
    if registration.follow {
        return follow(session, &added).await;
    }
    let watch = added.watch.unwrap_or_default();
    if session.json {
        output::messages([&watch])?;
    } else {
        let (name, detail) = (description::reference(&watch), description::detail(&watch));
        let words = [printable(&name), printable(&detail)];
        let words = words.iter().filter(|word| !word.is_empty());
        let words: Vec<_> = words.map(String::as_str).collect();
        output::line(&words.join("  "))?;
    }
    Ok(0)
}

/// Adds a watch. With `--if-missing`, returns the watch that has the name if it is the same.
///
/// # Errors
/// The name is taken, or the daemon refuses the watch.
pub(in crate::ctl) async fn request(
    session: &Session,
    spec: watch_spec::Spec,
    registration: &Registration,
) -> Result<AddWatchResponse, Failure> {
    let if_exists = if registration.if_missing {
        IfExists::Return
    } else {
        IfExists::Fail
    };
    let request = AddWatchRequest {
        r#loop: session.loop_ref.clone(),
        spec: Some(WatchSpec { spec: Some(spec) }),
        name: registration.name.clone().unwrap_or_default(),
        labels: registration.labels.iter().cloned().collect(),
        user_data: registration.user_data,
        if_exists: if_exists.into(),
        request_id: String::new(),
        lifetime: registration.lifetime().into(),
        lease: registration.end.lease,
        at_lifetime_end: registration.end.at_end().into(),
        finished_ttl: registration.finished_ttl,
    };
    match answer(session.watches().add_watch(request.clone()).await) {
        Err(failure) if failure.reason == "NAME_TAKEN" => {
            let name = &request.name;
            let there = parse::watch_ref(name).map_err(Failure::plain)?;
            let Ok(there) = lookup::watch(session, &there).await else {
                return Err(failure);
            };
            let advice =
                format!("`evloopctl rm {name}` ends and forgets it; or choose another name");
            let (there, asked) = (json::of(&there), json::of(&request));
            Err(differing(failure, name, &there, &asked, &advice))
        }
        added => added,
    }
}

/// Prints a watch's events from its first event until it closes.
pub(in crate::ctl) async fn follow(session: &Session, added: &AddWatchResponse) -> Outcome {
    let printer = Printer::new(session).await?;
    print(session, added, printer, String::new()).await
}

/// Prints the bytes of a watch from the first one until it closes. None is missed: the loop keeps them
/// until they are written.
pub(in crate::ctl) async fn follow_bytes(session: &Session, added: &AddWatchResponse) -> Outcome {
    let printer = Printer::new(session).await?.of_bytes();
    let watch_id = added.watch.as_ref().map_or(0, |watch| watch.watch_id);
    let consumer = format!("evloopctl-{}-{watch_id}", std::process::id());
    print(session, added, printer, consumer).await
}

/// How long a consumer that this command made is kept after it has ended.
const CONSUMER_TTL: Duration = Duration::from_secs(10);

async fn print(
    session: &Session,
    added: &AddWatchResponse,
    mut printer: Printer,
    consumer: String,
) -> Outcome {
    let watch_id = added.watch.as_ref().map_or(0, |watch| watch.watch_id);
    let after = added.added.clone().unwrap_or_default();
    let ttl = Duration::try_into(CONSUMER_TTL).ok();
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start: Some(subscribe_request::Start::After(after)),
        on_gap: OnGap::Skip.into(),
        filter: Some(Filter {
            watch_ids: vec![watch_id],
            ..Filter::default()
        }),
        consumer_ttl: ttl.filter(|_| !consumer.is_empty()),
        consumer,
        ..SubscribeRequest::default()
    };
    if let Some(watch) = &added.watch {
        printer.learn(watch_id, &watch.name);
    }
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request)).reporting_standstill();
    let code = printer.run(&mut feed, Until::Closed(watch_id)).await?;
    match (&added.watch, &printer.closed) {
        (Some(watch), Some(closed)) => early_end(watch, closed).map(|()| code),
        _ => Ok(code),
    }
}

/// Hands an inherited descriptor over to the daemon. Returns the slot by which it is claimed.
pub(super) async fn hand_over(session: &Session, number: i32) -> Result<Bytes, Failure> {
    let what = format!("fd {number}");
    let fd = inherited::duplicate(number).map_err(|error| {
        let none = error.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error());
        let failure = match none {
            true => Failure::new(&what, "evloopctl has not inherited this descriptor"),
            false => Failure::new(&what, error),
        };
        failure.advice(format!("open it for this command, as in `{number}< FILE`"))
    })?;
    let info = session
        .admin()
        .get_server_info(GetServerInfoRequest {})
        .await;
    let socket = answer(info)?.handover_socket;
    let slots = Client::connect(Path::new(&socket))
        .and_then(|handover| handover.give(&[std::os::fd::AsFd::as_fd(&fd)]))
        .map_err(|error| Failure::new(&what, error))?;
    Ok(slots.iter().flatten().copied().collect())
}
