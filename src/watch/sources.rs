//! The sources of one watch and their live operations.

use thin_vec::ThinVec;

use crate::driver::{Direction, Lane, SourceId};

/// The sources that a watch has attached, and the live operation of each in either direction.
///
/// A loop may have very many watches, and most of them have one source or none, so this is a
/// pointer: to one allocation without spare room, or to none.
#[derive(Debug, Default)]
pub struct Sources(ThinVec<Attached>);

#[derive(Debug)]
struct Attached {
    source: SourceId,
    read: Option<Lane>,
    write: Option<Lane>,
}

impl Attached {
    /// Returns the live operations.
    fn live(&self) -> impl Iterator<Item = (Lane, SourceId)> {
        let source = self.source;
        let lanes = [self.read, self.write].into_iter().flatten();
        lanes.map(move |lane| (lane, source))
    }
}

impl Sources {
    /// Adds a source.
    pub fn attach(&mut self, source: SourceId) {
        if self.0.capacity() == 0 {
            self.0.reserve_exact(1);
        }
        self.0.push(Attached {
            source,
            read: None,
            write: None,
        });
    }

    /// Removes a source, which has no live operation.
    pub fn detach(&mut self, source: SourceId) {
        self.0.retain(|attached| attached.source != source);
    }

    /// Returns the number of sources.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Removes all sources and returns them. They have no live operations.
    pub fn take(&mut self) -> impl Iterator<Item = SourceId> + use<> {
        let sources = std::mem::take(&mut self.0);
        sources.into_iter().map(|attached| attached.source)
    }

    /// Records that an operation is live. Its source has no other in that direction.
    pub fn start(&mut self, lane: Lane, source: SourceId, direction: Direction) {
        let mut sources = self.0.iter_mut();
        let Some(attached) = sources.find(|attached| attached.source == source) else {
            debug_assert!(false, "{source:?} is not attached");
            return;
        };
        let slot = match direction {
            Direction::Read => &mut attached.read,
            Direction::Write => &mut attached.write,
        };
        debug_assert!(slot.is_none(), "{source:?} is busy");
        *slot = Some(lane);
    }

    /// Records that the lane's operation has ended.
    pub fn end(&mut self, lane: Lane) {
        for attached in &mut self.0 {
            for slot in [&mut attached.read, &mut attached.write] {
                if *slot == Some(lane) {
                    *slot = None;
                }
            }
        }
    }

    /// Returns the live operations and their sources.
    pub fn live(&self) -> impl Iterator<Item = (Lane, SourceId)> {
        self.0.iter().flat_map(Attached::live)
    }

    /// Returns the source of the lane's operation; `None` if it has no live operation.
    #[must_use]
    pub fn of_lane(&self, lane: Lane) -> Option<SourceId> {
        self.live()
            .find(|(live, _)| *live == lane)
            .map(|(_, source)| source)
    }
}
