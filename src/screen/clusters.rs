//! Characters without a width, which belong to the one before them.
//!
//! A cell of `avt` holds one character. One with marks is kept as a character that stands for it: from
//! private use where it is narrow, from a plane without characters where it is wide.

use std::collections::HashMap;
use std::ops::Range;

use avt::Terminal;
use unicode_width::UnicodeWidthChar;

/// What stands for narrow and for wide characters with marks.
const NARROW: Range<u32> = 0x10_0000..0x10_0000 + MOST;
const WIDE: Range<u32> = 0x3_f000..0x3_f000 + MOST;

/// The longest character with its marks in bytes; more marks are left out.
const LONGEST: usize = 32;

/// How many of each are kept.
const MOST: u32 = 1024;

/// The characters with marks that are on the screen, and some that were.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    stand_ins: HashMap<String, char>,
    narrow: Pool,
    wide: Pool,
}

/// The characters that stand for others of one width.
#[derive(Debug, Default)]
struct Pool {
    /// By their distance from the first.
    texts: Vec<Option<String>>,
    free: Vec<usize>,
    /// How many found no room since it was sought on the screen.
    missed: u32,
}

impl Clusters {
    /// The character to keep for one that a program writes.
    pub(super) fn kept(character: char) -> char {
        if place(character).is_some() {
            char::REPLACEMENT_CHARACTER
        } else {
            character
        }
    }

    /// The text that a character stands for, if it does.
    pub(super) fn text(&self, character: char) -> Option<&str> {
        let (wide, at) = place(character)?;
        let pool = if wide { &self.wide } else { &self.narrow };
        pool.texts.get(at)?.as_deref()
    }

    /// What stands for a character of the screen with one more mark. `None` if there is no room.
    pub(super) fn with_mark(&mut self, base: char, mark: char, on: &Terminal) -> Option<char> {
        let mut text = self
            .text(base)
            .map_or_else(|| base.to_string(), str::to_owned);
        text.push(mark);
        if text.len() > LONGEST {
            return None;
        }
        if let Some(known) = self.stand_ins.get(&text) {
            return Some(*known);
        }
        let wide = base.width() == Some(2);
        let (pool, codes) = if wide {
            (&mut self.wide, WIDE)
        } else {
            (&mut self.narrow, NARROW)
        };
        if pool.free.is_empty() && pool.texts.len() >= MOST as usize {
            // Seldom, as it looks at every cell.
            pool.missed += 1;
            if pool.missed % MOST != 1 {
                return None;
            }
            self.forget(wide, on);
        }
        let pool = if wide {
            &mut self.wide
        } else {
            &mut self.narrow
        };
        let at = match pool.free.pop() {
            Some(at) => at,
            None if pool.texts.len() < MOST as usize => pool.texts.len(),
            None => return None,
        };
        let stand_in = char::from_u32(codes.start + u32::try_from(at).ok()?)?;
        if at == pool.texts.len() {
            pool.texts.push(Some(text.clone()));
        } else {
            pool.texts[at] = Some(text.clone());
        }
        self.stand_ins.insert(text, stand_in);
        Some(stand_in)
    }

    /// Frees what stands on neither screen any more.
    fn forget(&mut self, wide: bool, on: &Terminal) {
        let pool = if wide {
            &mut self.wide
        } else {
            &mut self.narrow
        };
        let mut used = vec![false; pool.texts.len()];
        for screen in [on.screen(), on.primary_screen()] {
            for cell in screen.visible_lines().flat_map(avt::Line::cells) {
                if let Some((_, at)) = place(cell.char()).filter(|(kind, _)| *kind == wide) {
                    used[at] = true;
                }
            }
        }
        for (at, text) in pool
            .texts
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| !used[*at])
        {
            if let Some(text) = text.take() {
                self.stand_ins.remove(&text);
                pool.free.push(at);
            }
        }
        if !pool.free.is_empty() {
            pool.missed = 0;
        }
    }
}

/// Whether a character stands for a wide one, and at which place; `None` if for none.
fn place(character: char) -> Option<(bool, usize)> {
    let code = u32::from(character);
    [(false, NARROW), (true, WIDE)]
        .into_iter()
        .find_map(|(wide, codes)| {
            let at = codes.contains(&code).then(|| code - codes.start)?;
            Some((wide, usize::try_from(at).ok()?))
        })
}
