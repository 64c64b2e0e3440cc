//! A map from ids to values that is small when the ids are dense.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The number of neighbouring ids whose values are stored together. A single id takes the memory of
/// a whole page if it has no neighbours, so a page is small.
const PAGE: usize = 16;

/// A map from ids to values, in ascending order of the ids.
///
/// Ids that a counter gives out have neighbours, so a map stores the values of 16 neighbouring ids
/// beside each other: a value takes about 2 bytes beside its own, where a hash map takes its key
/// and spare capacity.
#[derive(Debug, Default)]
pub(crate) struct IdMap<T>(BTreeMap<u64, Box<Page<T>>>);

#[derive(Debug, Default)]
struct Page<T> {
    /// One bit for each id that has a value.
    present: u16,
    /// The values; a default for an id that has none.
    values: [T; PAGE],
}

/// Returns the key of the page of an id, its index there, and its bit.
const fn place(id: u64) -> (u64, usize, u16) {
    // The index is the id's lowest bits.
    let index = id.to_le_bytes()[0] as usize % PAGE;
    (id / PAGE as u64, index, 1 << index)
}

impl<T: Default> IdMap<T> {
    /// Returns the value of an id.
    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let (page, index, bit) = place(id);
        let page = self.0.get(&page)?;
        (page.present & bit != 0).then(|| &page.values[index])
    }

    /// Returns the value of an id, to change it.
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (page, index, bit) = place(id);
        let page = self.0.get_mut(&page)?;
        (page.present & bit != 0).then(|| &mut page.values[index])
    }

    /// Returns the value of an id, which becomes what `new` returns if the id has none.
    pub(crate) fn get_or_insert_with(&mut self, id: u64, new: impl FnOnce() -> T) -> &mut T {
        let (page, index, bit) = place(id);
        let page = self.0.entry(page).or_default();
        if page.present & bit == 0 {
            page.present |= bit;
            page.values[index] = new();
        }
        &mut page.values[index]
    }

    /// Sets the value of an id.
    pub(crate) fn insert(&mut self, id: u64, value: T) {
        *self.get_or_insert_with(id, T::default) = value;
    }

    /// Removes an id and returns its value.
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let (page, index, bit) = place(id);
        let Entry::Occupied(mut entry) = self.0.entry(page) else {
            return None;
        };
        let page = entry.get_mut();
        if page.present & bit == 0 {
            return None;
        }
        page.present &= !bit;
        let value = std::mem::take(&mut page.values[index]);
        if page.present == 0 {
            entry.remove();
        }
        Some(value)
    }

    /// Returns the lowest id above `id`.
    pub(crate) fn next_after(&self, id: u64) -> Option<u64> {
        let (first, _, bit) = place(id.checked_add(1)?);
        self.0.range(first..).find_map(|(key, page)| {
            // In its own page, only ids above it count.
            let below = if *key == first { bit - 1 } else { 0 };
            let above = page.present & !below;
            (above != 0).then(|| key * PAGE as u64 + u64::from(above.trailing_zeros()))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_in_ascending_order(
            steps in prop::collection::vec((0..3u8, 1..300u64), 1..200),
        ) {
            let (mut map, mut model) = (IdMap::default(), BTreeMap::new());
            for (number, (step, id)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        map.insert(id, number);
                        model.insert(id, number);
                    }
                    1 => {
                        let kept = *map.get_or_insert_with(id, || number);
                        prop_assert_eq!(kept, *model.entry(id).or_insert(number));
                    }
                    _ => prop_assert_eq!(map.remove(id), model.remove(&id)),
                }
                prop_assert_eq!(map.get(id), model.get(&id));
                prop_assert_eq!(map.get_mut(id), model.get_mut(&id));
            }
            let next = |after: &u64| map.next_after(*after);
            let ids: Vec<u64> = std::iter::successors(next(&0), next).collect();
            prop_assert_eq!(ids, model.into_keys().collect::<Vec<u64>>());
            prop_assert!(map.0.values().all(|page| page.present != 0));
        }
    }
}
