//! Checks of a request to add a watch. The result is what to register, and how to make it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::Api;
use super::convert;
use crate::access::Peer;
use crate::config::Refusable;
use crate::driver::file::{self, Claim, FileKind, Purpose, Refusal};
use crate::error::{Error, Result};
use crate::event::largest;
use crate::event_loop::{Handle, KEPT, Lifetime, LifetimeEnd, Registration};
use crate::handover::Claimed;
use crate::kinds::{WatchKind, with_spec};
use crate::proto::{self, read_pipe_spec, watch_spec::Spec, write_pipe_spec};
use crate::watch::address::UnixName;
use crate::watch::{
    Change, FdOrder, Need, Order, PipeEnd, PipeOrder, Services, SignalOrder, WaterMarks,
};

mod datagram;
mod ending;
mod path;
mod pid;
mod process;
mod regular_file;
mod revive;
mod sockets;
mod stdio;
mod timer;
pub(super) mod tls;
pub(super) mod update;
mod water;

pub(super) use datagram::group;
pub use revive::Reviver;
pub(super) use stdio::terminal_size;
pub(super) use water::water_marks;

const HOUR: Duration = Duration::from_secs(3600);
/// Most bytes of a specification, which every answer about the watch carries.
const SPEC_MAX: usize = 256 * 1024;
/// Most signals of one watch: as many as Linux has.
const SIGNALS_MAX: usize = 64;
const FINISHED_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The checked part of a request that depends on the kind of watch.
struct Plan {
    need: Need,
    order: Order,
    /// The lifetime of the descriptor that was handed over for the watch, if there is one.
    claimed_from: Option<Lifetime>,
    /// The specification as it is shown and compared.
    spec: Spec,
}

/// The specification of one kind of watch on the wire. Each message of `WatchSpec.spec` implements
/// it.
trait Specification {
    /// Returns the slot that it names, if the kind takes a descriptor that was handed over.
    fn slot(&self) -> Option<&Bytes> {
        None
    }

    /// Returns all slots that it names.
    fn slots(&self) -> Vec<&Bytes> {
        self.slot().into_iter().collect()
    }

    /// Leaves out what has the value that absence means, so that equal specifications are the same.
    fn normalize(&mut self) {}

    /// Checks the specification. An error names the field and what is allowed.
    fn plan(self, checks: &Checks<'_>) -> Result<Plan>;

    /// Returns the names of the fields that UpdateWatch can change.
    fn changeable(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks the specification as that of a watch which had the specification `before`, and returns
    /// how to change the watch.
    fn change(self, _before: Spec, _checks: &Checks<'_>) -> Result<update::Prepare>
    where
        Self: Sized,
    {
        Err(Error::wrong_state("this kind of watch cannot be changed"))
    }
}

/// Checks a request.
pub(super) fn registration(
    api: &Api,
    peer: &Peer,
    on: &Handle,
    request: proto::AddWatchRequest,
) -> Result<(Registration, Order)> {
    let spec = request.spec.and_then(|spec| spec.spec);
    let mut spec =
        spec.ok_or_else(|| Error::invalid("spec", "must be set: it says what to watch"))?;
    with_spec!(&mut spec, message => message.normalize());
    let kind = WatchKind::of(&spec);
    let checks = Checks {
        api,
        peer,
        on,
        name: &request.name,
    };
    checks.allow(Refusable::Kind(kind))?;
    let plan = with_spec!(spec, message => message.plan(&checks))?;
    let lifetime = convert::lifetime(
        request.lifetime,
        request.lease,
        request.at_lifetime_end,
        peer,
        plan.claimed_from,
    )?;
    let need = match lifetime.at_end() {
        LifetimeEnd::Keep => plan.need.and(KEPT),
        LifetimeEnd::Close | LifetimeEnd::KillTree => plan.need,
    };
    let shown = proto::WatchSpec {
        spec: Some(plan.spec),
    };
    if shown.encoded_len() > SPEC_MAX {
        return Err(Error::invalid(
            "spec",
            "must be at most 256 KiB, not counting inherited_env and inherited_attributes",
        ));
    }
    // Its screen is kept from its first byte on.
    let has_terminal =
        matches!(&shown.spec, Some(Spec::Process(process)) if process.terminal.is_some());
    let registration = Registration {
        name: convert::new_watch_name("name", &request.name)?,
        labels: convert::labels("labels", request.labels)?,
        user_data: request.user_data,
        kind,
        spec: Some(Box::new(shown)),
        or_existing: convert::if_exists(request.if_exists)?,
        request_id: convert::short_text("request_id", request.request_id)?,
        lifetime,
        finished_ttl: convert::optional_duration(
            "finished_ttl",
            request.finished_ttl,
            FINISHED_TTL_MAX,
        )?,
        need,
        attached: has_terminal,
        memory: None,
    };
    Ok((registration, plan.order))
}

/// Returns the slots that a specification names.
pub(super) fn slots(spec: &proto::WatchSpec) -> impl Iterator<Item = &[u8]> {
    let slots = match &spec.spec {
        Some(spec) => with_spec!(spec, message => message.slots()),
        None => Vec::new(),
    };
    slots.into_iter().map(|slot| &slot[..])
}

fn refused(field: &'static str, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Unfit { .. } => Error::invalid(field, refusal.to_string()),
        Refusal::System(error) => error.into(),
    }
}

/// Uses a slot up, if its descriptor is fit for the purpose.
fn fitted(claimed: Claimed, field: &'static str, purpose: Purpose) -> Result<Claim> {
    let fit = file::fit(claimed.as_fd(), purpose).map_err(|refusal| refused(field, refusal))?;
    Ok(fit.claim(claimed.keep().0))
}

struct Checks<'a> {
    api: &'a Api,
    peer: &'a Peer,
    on: &'a Handle,
    /// The name of the watch; empty if it has none.
    name: &'a str,
}

impl Checks<'_> {
    fn lacks(&self, capability: &'static str, reason: &str) -> Error {
        Error::NotSupported {
            class: self.on.policy().class.clone().into(),
            backend: format!("policy `{}`", self.on.policy().name).into(),
            capability: capability.into(),
            reason: reason.to_owned().into(),
        }
    }

    /// Returns an error if the loop's policy refuses something.
    fn allow(&self, of: Refusable) -> Result<()> {
        match self.on.policy().refusal(of) {
            Some(reason) => Err(self.lacks(of.name(), reason)),
            None => Ok(()),
        }
    }

    /// Claims a slot provisionally: it is used up when the watch is made.
    fn claim(&self, field: &'static str, slot: &[u8]) -> Result<(Claimed, FileKind, Lifetime)> {
        let claimed = self.api.slots.claim(field, self.peer, slot)?;
        let kind = file::inspect(claimed.as_fd()).map_err(|refusal| refused(field, refusal))?;
        if matches!(
            kind,
            FileKind::Tty | FileKind::PtyMaster | FileKind::CharDevice
        ) {
            self.allow(Refusable::CharacterDevice)?;
        }
        if self.on.policy().sockets_only && !matches!(kind, FileKind::Socket { .. }) {
            return Err(self.lacks(kind.name(), "only sockets are supported"));
        }
        let giver = claimed.giver.clone();
        let lifetime = giver.map_or(Lifetime::Daemon, Lifetime::of_process);
        Ok((claimed, kind, lifetime))
    }

    fn unix(&self, field: &str, address: &proto::UnixAddress) -> Result<UnixName> {
        self.allow(Refusable::UnixSocket)?;
        UnixName::check(field, address)
    }

    /// Checks water marks; `None` means those of the configuration.
    fn water_marks(&self, field: &str, given: Option<&proto::WaterMarks>) -> Result<WaterMarks> {
        water_marks(self.api.registry.services().transport, field, given)
    }

    /// Returns how to change water marks.
    fn change_of_marks(
        &self,
        field: &'static str,
        given: Option<&proto::WaterMarks>,
    ) -> Result<update::Prepare> {
        let marks = self.water_marks(field, given)?;
        Ok(Box::new(move |_| Ok(Change::WaterMarks(marks))))
    }

    fn handed_pipe(
        &self,
        field: &'static str,
        slot: &mut Bytes,
        end: PipeEnd,
    ) -> Result<(Order, Option<Lifetime>)> {
        let (claimed, _, lifetime) = self.claim(field, slot)?;
        slot.clear();
        let order = Order::Now(Box::new(move || {
            let claim = fitted(claimed, field, purpose(end))?;
            Ok(PipeOrder { claim, end }.build())
        }));
        Ok((order, Some(lifetime)))
    }
}

fn purpose(end: PipeEnd) -> Purpose {
    match end {
        PipeEnd::Read { .. } => Purpose::Reader,
        PipeEnd::Write { .. } => Purpose::Writer,
    }
}

fn fifo(field: &'static str, path: &str, end: PipeEnd) -> Result<Order> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid(
            field,
            "must be an absolute path without NUL",
        ));
    }
    let path = PathBuf::from(path);
    Ok(Order::Later(Box::new(move |_| {
        let claim = file::open_fifo(&path, purpose(end));
        let claim = claim.map_err(|refusal| refused(field, refusal))?;
        Ok(PipeOrder { claim, end }.build())
    })))
}

impl Specification for proto::FdSpec {
    fn slot(&self) -> Option<&Bytes> {
        Some(&self.slot)
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut fd = self;
        let (claimed, kind, lifetime) = checks.claim("spec.fd.slot", &fd.slot)?;
        fd.slot.clear();
        let (readable, writable) = (fd.readable, fd.writable);
        let order = Order::Now(Box::new(move || {
            let order = FdOrder {
                fd: claimed.keep().0,
                kind,
                readable,
                writable,
            };
            Ok(order.build())
        }));
        Ok(Plan {
            need: Need::sources(1),
            order,
            claimed_from: Some(lifetime),
            spec: Spec::Fd(fd),
        })
    }
}

impl Specification for proto::ReadPipeSpec {
    fn slot(&self) -> Option<&Bytes> {
        match self.source.as_ref()? {
            read_pipe_spec::Source::Slot(slot) => Some(slot),
            read_pipe_spec::Source::FifoPath(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        use read_pipe_spec::Source;

        let mut spec = self;
        let end = PipeEnd::Read {
            paused: spec.start_paused,
        };
        let (order, claimed_from) = match &mut spec.source {
            None => {
                return Err(Error::invalid(
                    "spec.read_pipe",
                    "must have slot or fifo_path",
                ));
            }
            Some(Source::Slot(slot)) => checks.handed_pipe("spec.read_pipe.slot", slot, end)?,
            Some(Source::FifoPath(path)) => (fifo("spec.read_pipe.fifo_path", path, end)?, None),
        };
        Ok(Plan {
            // The watch also needs room for an `Eof`.
            need: Need::sources(1).and(largest::EOF),
            order,
            claimed_from,
            spec: Spec::ReadPipe(spec),
        })
    }
}

impl Specification for proto::WritePipeSpec {
    fn slot(&self) -> Option<&Bytes> {
        match self.target.as_ref()? {
            write_pipe_spec::Target::Slot(slot) => Some(slot),
            write_pipe_spec::Target::FifoPath(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        use write_pipe_spec::Target;

        let mut spec = self;
        let field = "spec.write_pipe.water_marks";
        let marks = checks.water_marks(field, spec.water_marks.as_ref())?;
        let end = PipeEnd::Write { marks };
        let (order, claimed_from) = match &mut spec.target {
            None => {
                return Err(Error::invalid(
                    "spec.write_pipe",
                    "must have slot or fifo_path",
                ));
            }
            Some(Target::Slot(slot)) => checks.handed_pipe("spec.write_pipe.slot", slot, end)?,
            Some(Target::FifoPath(path)) => (fifo("spec.write_pipe.fifo_path", path, end)?, None),
        };
        Ok(Plan {
            need: Need::sources(1),
            order,
            claimed_from,
            spec: Spec::WritePipe(spec),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &["water_marks"]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        checks.change_of_marks("spec.write_pipe.water_marks", self.water_marks.as_ref())
    }
}

/// Returns the numbers of the signals, each once.
fn signals(names: &[String], services: &Services) -> Result<Vec<i32>> {
    let field = "spec.signal.signals";
    if names.is_empty() || names.len() > SIGNALS_MAX {
        return Err(Error::invalid(field, "must be 1 to 64 signals"));
    }
    let mut numbers = Vec::new();
    for name in names {
        let number = convert::signal(field, name)?;
        if !services.signals.allowed(number) {
            let why = crate::config::unwatchable(number)
                .unwrap_or("it is not in the configuration's [signals] allow");
            return Err(Error::PermissionDenied {
                message: format!("{field}: {name} cannot be watched: {why}"),
            });
        }
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

impl Specification for proto::SignalSpec {
    fn changeable(&self) -> &'static [&'static str] {
        &["signals"]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        let numbers = signals(&self.signals, checks.api.registry.services())?;
        Ok(Box::new(move |_| Ok(Change::Signals(numbers))))
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let numbers = signals(&self.signals, checks.api.registry.services())?;
        Ok(Plan {
            need: Need::sources(0),
            order: Order::Now(Box::new(move || Ok(SignalOrder(numbers).build()))),
            claimed_from: None,
            spec: Spec::Signal(self),
        })
    }
}
