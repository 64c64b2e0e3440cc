//! How slots are kept for later lives of the daemon.

use std::fmt;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use super::slots::{Slot, Slots};
use super::table::{Giver, Held, Name, Table};
use crate::access::ClientProcess;
use crate::clock::Now;
use crate::proto::state::{KeptDescriptor, KeptProcess, KeptSlot};
use crate::state::{Arena, DAEMON, Entry, Found, Inherited, Kind, Records, descriptor};

/// The kind of the records of slots. The number stands in memory that later versions read.
const SLOT: u8 = 1;

/// Returns the descriptors in what was found of slots.
pub fn descriptors(found: &[Found]) -> Vec<KeptDescriptor> {
    let mut all = Vec::new();
    for found in found.iter().filter(|found| found.kind == Kind::Slots) {
        found.peek(|_, bytes| {
            let slot = KeptSlot::decode(bytes).ok();
            all.extend(slot.and_then(|slot| slot.descriptor));
        });
    }
    all
}

/// The records of the slots that have a descriptor.
pub(super) struct Keeping {
    records: Records,
    /// The id of the newest record; it has no other meaning.
    last_id: u64,
}

impl fmt::Debug for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeping").finish_non_exhaustive()
    }
}

impl Keeping {
    pub(super) fn put(&mut self, name: &Name, held: &Held) -> Option<Entry> {
        let bytes = kept(name, held)?.encode_to_vec();
        self.last_id += 1;
        let put = self.records.put_now(SLOT, self.last_id, &bytes);
        put.inspect_err(|errno| tracing::warn!(%errno, "the next life will not know a slot"))
            .ok()
    }

    pub(super) fn free(&mut self, entry: Entry) {
        self.records.free_now(entry);
    }
}

fn kept(name: &Name, held: &Held) -> Option<KeptSlot> {
    let (Name::Issued(slot) | Name::Own(_, slot)) = name;
    let left = held.deadline.saturating_duration_since(Instant::now());
    let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    Some(KeptSlot {
        slot: slot.to_vec(),
        own: matches!(name, Name::Own(..)),
        principal: held.owner.to_string(),
        giver: held.giver.as_deref().map(|giver| KeptProcess {
            pid: giver.pid(),
            start_time: giver.started(),
        }),
        expires: Now::sample().monotonic.saturating_add(left),
        descriptor: Some(descriptor(held.fd.as_ref()?.as_fd())?),
    })
}

/// Takes up a slot of an earlier life; `None` if it is over, or nobody could claim it.
fn again(kept: &KeptSlot, inherited: &mut Inherited) -> Option<(Name, Held)> {
    let left = kept.expires.checked_sub(Now::sample().monotonic)?;
    let owner: crate::access::Principal = kept.principal.parse().ok()?;
    let giver = kept.giver.as_ref();
    let process = giver.and_then(|of| ClientProcess::again(of.pid, of.start_time).ok()?);
    let slot = Slot::try_from(&kept.slot[..]).ok()?;
    let name = match (kept.own, giver, &process) {
        (false, ..) => Name::Issued(slot),
        (true, None, _) => Name::Own(Giver::Principal(owner.clone()), slot),
        (true, Some(_), Some(process)) => {
            Name::Own(Giver::Process(owner.clone(), process.key()), slot)
        }
        // Only that process could claim it, and has ended.
        (true, Some(_), None) => return None,
    };
    let held = Held {
        owner,
        giver: process.map(Arc::new),
        deadline: Instant::now() + Duration::from_nanos(left),
        fd: Some(inherited.take(kept.descriptor.as_ref()?)?),
        kept: None,
    };
    Some((name, held))
}

impl Slots {
    /// As [`Slots::new`], with the slots that an earlier life has kept, where later lives find them.
    #[must_use]
    pub fn that_survive(
        capacity: usize,
        ttl: Duration,
        arena: Arc<Arena>,
        found: Vec<Found>,
        inherited: &mut Inherited,
    ) -> Arc<Self> {
        let (records, entries, damaged) = Records::recover(arena, DAEMON, Kind::Slots, found, 0);
        if !damaged.is_empty() {
            tracing::error!(damaged = damaged.len(), "slots of the life before are lost");
        }
        let last_id = entries.iter().map(Entry::id).max().unwrap_or(0);
        let mut table = Table::kept_by(Keeping { records, last_id });
        for entry in entries {
            let kept = KeptSlot::decode(entry.bytes()).ok();
            table.take_up(entry, kept.and_then(|kept| again(&kept, inherited)));
        }
        Self::with(capacity, ttl, table)
    }
}
