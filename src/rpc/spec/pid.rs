//! Checks of specifications of processes that the daemon has not started.

use bytes::Bytes;

use super::{Checks, HOUR, Plan, Specification, update};
use crate::driver::FileKind;
use crate::error::{Error, Result};
use crate::proto::{self, pid_spec::Process, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{Change, Order, PidOrder, PidSource};

impl Specification for proto::PidSpec {
    fn changeable(&self) -> &'static [&'static str] {
        &["reap_wait"]
    }

    fn change(self, _: Spec, _: &Checks<'_>) -> Result<update::Prepare> {
        let wait = convert::optional_duration("spec.pid.reap_wait", self.reap_wait, HOUR)?;
        Ok(Box::new(move |_| Ok(Change::ReapWait(wait))))
    }

    fn slot(&self) -> Option<&Bytes> {
        match self.process.as_ref()? {
            Process::Slot(slot) => Some(slot),
            Process::Pid(_) => None,
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut spec = self;
        let start_ticks = spec.start_ticks;
        let reap_wait = convert::optional_duration("spec.pid.reap_wait", spec.reap_wait, HOUR)?;
        let caller = checks.peer.uid;
        let order = move |source| PidOrder {
            source,
            start_ticks,
            reap_wait,
            caller,
        };
        let (order, claimed_from) = match &mut spec.process {
            None => return Err(Error::invalid("spec.pid", "must have pid or slot")),
            Some(Process::Pid(pid)) => {
                let pid = *pid;
                if pid < 1 {
                    return Err(Error::invalid("spec.pid.pid", "must be at least 1"));
                }
                let order = order(PidSource::Pid(pid));
                (
                    Order::Later(Box::new(move |services| order.build(services))),
                    None,
                )
            }
            Some(Process::Slot(slot)) => {
                let field = "spec.pid.slot";
                let (claimed, kind, lifetime) = checks.claim(field, slot)?;
                if kind != FileKind::PidFd {
                    let allowed = format!("must be a pidfd, not a {}", kind.name());
                    return Err(Error::invalid(field, allowed));
                }
                slot.clear();
                let build =
                    move |services: &_| order(PidSource::Fd(claimed.keep().0)).build(services);
                (Order::Later(Box::new(build)), Some(lifetime))
            }
        };
        Ok(Plan {
            need: PidOrder::NEED,
            order,
            claimed_from,
            spec: Spec::Pid(spec),
        })
    }
}
