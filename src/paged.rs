//! A slab that grows without copying its entries.

use std::ops::{Index, IndexMut};

use slab::Slab;

/// The number of entries in a page.
const PAGE: usize = 128;

/// A [`Slab`] in pages. A slab that grows copies all of its entries, during which the loop stands
/// still, and leaves a hole in the heap as large as itself; this one adds a page.
#[derive(Debug)]
pub(crate) struct Paged<T> {
    pages: Vec<Slab<T>>,
    /// The pages that have room. The last one takes the next entry.
    open: Vec<usize>,
    len: usize,
}

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            open: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Paged<T> {
    /// Returns the index that the next entry gets.
    pub(crate) fn vacant_key(&self) -> usize {
        match self.open.last() {
            Some(&page) => page * PAGE + self.pages[page].vacant_key(),
            None => self.pages.len() * PAGE,
        }
    }

    /// Adds an entry and returns its index.
    pub(crate) fn insert(&mut self, entry: T) -> usize {
        let page = self.open.last().copied().unwrap_or_else(|| {
            self.pages.push(Slab::with_capacity(PAGE));
            self.open.push(self.pages.len() - 1);
            self.pages.len() - 1
        });
        let index = page * PAGE + self.pages[page].insert(entry);
        if self.pages[page].len() == PAGE {
            self.open.pop();
        }
        self.len += 1;
        index
    }

    /// Removes an entry and returns it.
    ///
    /// # Panics
    /// There is no such entry.
    pub(crate) fn remove(&mut self, index: usize) -> T {
        let page = &mut self.pages[index / PAGE];
        let was_full = page.len() == PAGE;
        let entry = page.remove(index % PAGE);
        if was_full {
            self.open.push(index / PAGE);
        }
        self.len -= 1;
        entry
    }

    /// Removes an entry and returns it; `None` if there is none.
    pub(crate) fn try_remove(&mut self, index: usize) -> Option<T> {
        self.contains(index).then(|| self.remove(index))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index / PAGE)?.get(index % PAGE)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.pages.get_mut(index / PAGE)?.get_mut(index % PAGE)
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.get(index).is_some()
    }

    /// Returns the number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Returns a bound that all indices are below.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }
}

/// # Panics
/// There is no such entry.
impl<T> Index<usize> for Paged<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.pages[index / PAGE][index % PAGE]
    }
}

/// # Panics
/// There is no such entry.
impl<T> IndexMut<usize> for Paged<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pages[index / PAGE][index % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_stay_where_they_are_and_room_is_used_again(
            steps in prop::collection::vec((0..5u8, 0..400usize), 1..900),
        ) {
            let (mut paged, mut model, mut most) = (Paged::default(), BTreeMap::new(), 0);
            for (number, (step, index)) in steps.into_iter().enumerate() {
                if step > 0 {
                    let next = paged.vacant_key();
                    prop_assert_eq!(paged.insert(number), next);
                    prop_assert_eq!(model.insert(next, number), None);
                } else {
                    prop_assert_eq!(paged.try_remove(index), model.remove(&index));
                }
                most = most.max(model.len());
                prop_assert_eq!(paged.len(), model.len());
                prop_assert_eq!(paged.get(index), model.get(&index));
            }
            prop_assert!(model.iter().all(|(index, number)| paged[*index] == *number));
            prop_assert!(paged.capacity() < most + PAGE);
        }
    }
}
