//! Who views a terminal, and which size it has for them.

use crate::proto::TerminalSize;

/// How the size of a terminal follows the sizes of its views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SizeOf {
    /// The view that was typed into last.
    #[default]
    Latest,
    /// The fewest rows and the fewest columns of all views.
    Smallest,
}

/// One view of a terminal.
#[derive(Debug)]
struct View {
    id: u64,
    /// `None` if the view has no part in the size.
    size: Option<TerminalSize>,
    /// Whether it only looks.
    read_only: bool,
}

/// The views of a terminal, in the order in which they were opened.
#[derive(Debug, Default)]
pub(super) struct Views {
    next: u64,
    open: Vec<View>,
    /// The view that was typed into last or, until one is, that was opened last. Only it is asked
    /// what the program asks its terminal.
    active: Option<u64>,
}

impl Views {
    /// Opens a view and returns its id.
    pub(super) fn open(&mut self, size: Option<TerminalSize>, read_only: bool) -> u64 {
        self.next += 1;
        let id = self.next;
        self.open.push(View {
            id,
            size,
            read_only,
        });
        if !read_only {
            self.active = Some(id);
        }
        id
    }

    /// Closes a view. If it was the active one, the one that was opened last among the others is
    /// active.
    pub(super) fn close(&mut self, id: u64) {
        self.open.retain(|view| view.id != id);
        if self.active == Some(id) {
            let others = self.open.iter().filter(|view| !view.read_only);
            self.active = others.map(|view| view.id).max();
        }
    }

    /// Records that a view was typed into. Returns whether that makes it the active one.
    pub(super) fn typed(&mut self, id: u64) -> bool {
        self.active.replace(id) != Some(id)
    }

    /// Changes the size of a view.
    pub(super) fn resize(&mut self, id: u64, size: TerminalSize) {
        if let Some(view) = self.open.iter_mut().find(|view| view.id == id) {
            view.size = Some(size);
        }
    }

    /// Returns how many views are open.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Returns whether the program's questions are for this view.
    pub(super) fn is_active(&self, id: u64) -> bool {
        self.active == Some(id)
    }

    /// Returns whether some view answers the program's questions.
    pub(super) const fn has_active(&self) -> bool {
        self.active.is_some()
    }

    /// Returns the size that the terminal is to have; `None` if no view has a part in it.
    pub(super) fn size(&self, of: SizeOf) -> Option<TerminalSize> {
        let mut sizes = self.open.iter().filter(|view| !view.read_only);
        match of {
            SizeOf::Latest => {
                let active = self.open.iter().find(|view| Some(view.id) == self.active);
                let sized = || sizes.rfind(|view| view.size.is_some());
                active
                    .filter(|view| view.size.is_some())
                    .or_else(sized)?
                    .size
            }
            SizeOf::Smallest => {
                let smaller = |a: TerminalSize, b: TerminalSize| TerminalSize {
                    rows: a.rows.min(b.rows),
                    columns: a.columns.min(b.columns),
                };
                sizes.filter_map(|view| view.size).reduce(smaller)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn size(rows: u32, columns: u32) -> Option<TerminalSize> {
        Some(TerminalSize { rows, columns })
    }

    #[test]
    fn the_size_follows_the_last_input_and_not_the_last_resize() {
        let mut views = Views::default();
        let (first, second) = (
            views.open(size(24, 80), false),
            views.open(size(50, 100), false),
        );
        let watcher = views.open(size(10, 10), true);
        assert_eq!(views.size(SizeOf::Latest), size(50, 100));
        assert!(views.typed(first));
        assert!(!views.typed(first));
        views.resize(
            second,
            TerminalSize {
                rows: 60,
                columns: 60,
            },
        );
        assert_eq!(views.size(SizeOf::Latest), size(24, 80));
        assert_eq!(views.size(SizeOf::Smallest), size(24, 60));
        assert!(views.is_active(first) && !views.is_active(watcher));
        views.close(first);
        assert!(views.is_active(second));
        assert_eq!(views.size(SizeOf::Latest), size(60, 60));
        views.close(second);
        assert!(!views.has_active());
        assert_eq!((views.size(SizeOf::Latest), views.count()), (None, 1));
    }
}
