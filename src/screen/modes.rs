//! The modes of a terminal that change no cell: what its keys, its mouse and its window report.

use super::sequence::{self, Csi};

/// Private modes that are on or off and depend on no other, with their state after a reset.
const SWITCHES: [(u16, bool); 13] = [
    (5, false),    // DECSCNM, reversed colours
    (8, true),     // DECARM, keys repeat
    (12, false),   // the cursor blinks
    (45, false),   // backspace wraps
    (67, false),   // DECBKM, the backspace key sends BS
    (69, false),   // DECLRMM, left and right margins
    (1004, false), // reports focus
    (2004, false), // brackets pastes
    (2026, false), // synchronised output
    (2027, false), // grapheme clusters
    (2031, false), // reports the colour scheme
    (2048, false), // reports the size in band
    (9001, false), // win32 keys
];

/// The protocols by which the mouse is reported. One is on at most.
const MOUSE: [u16; 5] = [9, 1000, 1001, 1002, 1003];

/// How coordinates of the mouse are written. Terminals follow the one that was set last.
const MOUSE_ENCODINGS: [u16; 4] = [1005, 1006, 1015, 1016];

/// Entries of the stack of keyboard flags, for each screen. The oldest give way.
const KEYBOARD_LIMIT: usize = 16;

/// Saved titles, as in xterm. The oldest give way.
const TITLES_LIMIT: usize = 10;

/// The longest title in bytes; the rest of a longer one is left out.
const TITLE_LIMIT: usize = 1024;

/// Kinds of keys whose modifiers can be reported (XTMODKEYS).
const KEY_KINDS: usize = 8;

/// A title; absent while it is still the one that the terminal had before.
type Title = Option<String>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modes {
    switches: [bool; SWITCHES.len()],
    mouse: Option<u16>,
    /// In the order in which they were set.
    mouse_encodings: Vec<u16>,
    keypad: bool,
    cursor_shape: u16,
    /// Of the main screen and of the alternate one.
    keyboards: [Keyboard; 2],
    /// XTMODKEYS; the fifth is modifyOtherKeys.
    modified_keys: [Option<u16>; KEY_KINDS],
    title: Title,
    saved_titles: Vec<Title>,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            switches: SWITCHES.map(|(_, on)| on),
            mouse: None,
            mouse_encodings: Vec::new(),
            keypad: false,
            cursor_shape: 0,
            keyboards: <[Keyboard; 2]>::default(),
            modified_keys: [None; KEY_KINDS],
            title: None,
            saved_titles: Vec::new(),
        }
    }
}

impl Modes {
    /// RIS: everything but the titles.
    pub(super) fn reset(&mut self) {
        *self = Self {
            title: self.title.take(),
            saved_titles: std::mem::take(&mut self.saved_titles),
            ..Self::default()
        };
    }

    /// DECPAM and DECPNM.
    pub(super) fn set_keypad(&mut self, application: bool) {
        self.keypad = application;
    }

    /// Follows a control sequence, which may be about something else.
    pub(super) fn csi(&mut self, csi: &Csi, alternate: bool) {
        let keyboard = &mut self.keyboards[usize::from(alternate)];
        let flags = csi.number(0).to_le_bytes()[0];
        match csi.function() {
            (b'?', 0, b'h') => csi.numbers().for_each(|mode| self.set(mode, true)),
            (b'?', 0, b'l') => csi.numbers().for_each(|mode| self.set(mode, false)),
            (0, b' ', b'q') => self.cursor_shape = csi.number(0),
            (b'>', 0, b'u') => keyboard.push(flags),
            (b'<', 0, b'u') => keyboard.pop(csi.number(0)),
            (b'=', 0, b'u') => keyboard.change(flags, csi.number(1)),
            (b'>', 0, b'm') => self.modify_keys(csi),
            (b'>', 0, b'n') => self.modified_keys[4] = None,
            (0, b'!', b'p') => self.keypad = false,
            (0, 0, b't') if csi.number(1) != 1 => match csi.number(0) {
                22 => self.save_title(),
                23 => self.title = self.saved_titles.pop().unwrap_or(self.title.take()),
                _ => {}
            },
            _ => {}
        }
    }

    /// Follows the contents of an operating system command.
    pub(super) fn osc(&mut self, contents: &[u8]) {
        let (0 | 2, title) = sequence::command(contents) else {
            return;
        };
        let mut title = String::from_utf8_lossy(title).into_owned();
        title.retain(|character| !character.is_control());
        while title.len() > TITLE_LIMIT {
            title.pop();
        }
        self.title = Some(title);
    }

    fn set(&mut self, mode: u16, on: bool) {
        if let Some(at) = SWITCHES.iter().position(|(number, _)| *number == mode) {
            self.switches[at] = on;
        } else if mode == 66 {
            self.keypad = on;
        } else if MOUSE.contains(&mode) {
            self.mouse = on.then_some(mode);
        } else if MOUSE_ENCODINGS.contains(&mode) {
            self.mouse_encodings.retain(|set| *set != mode);
            if on {
                self.mouse_encodings.push(mode);
            }
        }
    }

    fn modify_keys(&mut self, csi: &Csi) {
        let mut parameters = csi.parameters().split(|byte| *byte == b';');
        let kind = parameters.next().unwrap_or_default();
        if kind.is_empty() {
            self.modified_keys = [None; KEY_KINDS];
        } else if let Some(value) = self.modified_keys.get_mut(csi.number(0) as usize) {
            let digits = parameters.next().unwrap_or_default();
            *value = (!digits.is_empty()).then(|| csi.number(1));
        }
    }

    fn save_title(&mut self) {
        if self.saved_titles.len() == TITLES_LIMIT {
            self.saved_titles.remove(0);
        }
        self.saved_titles.push(self.title.clone());
    }

    /// Writes the flags of the keyboard of one screen, which must be the active one.
    pub(super) fn write_keyboard(&self, alternate: bool, out: &mut Vec<u8>) {
        let keyboard = &self.keyboards[usize::from(alternate)];
        let mut levels = keyboard.saved.iter().chain([&keyboard.flags]);
        if let Some(lowest) = levels.next().filter(|flags| **flags != 0) {
            put(out, format_args!("\x1b[={lowest}u"));
        }
        for flags in levels {
            put(out, format_args!("\x1b[>{flags}u"));
        }
    }

    /// Takes back what [`Modes::write_keyboard`] writes.
    pub(super) fn undo_keyboard(&self, alternate: bool, out: &mut Vec<u8>) {
        let keyboard = &self.keyboards[usize::from(alternate)];
        let lowest = keyboard.saved.first().unwrap_or(&keyboard.flags);
        if !keyboard.saved.is_empty() {
            put(out, format_args!("\x1b[<{}u", keyboard.saved.len()));
        }
        if *lowest != 0 {
            put(out, format_args!("\x1b[=0u"));
        }
    }

    /// Writes all else that differs from a terminal that was reset.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for ((number, _), on) in self.changed() {
            put(
                out,
                format_args!("\x1b[?{number}{}", if on { 'h' } else { 'l' }),
            );
        }
        for number in self.mouse.iter().chain(&self.mouse_encodings) {
            put(out, format_args!("\x1b[?{number}h"));
        }
        if self.keypad {
            put(out, format_args!("\x1b="));
        }
        if self.cursor_shape != 0 {
            put(out, format_args!("\x1b[{} q", self.cursor_shape));
        }
        for (kind, value) in self.modified_keys.iter().enumerate() {
            if let Some(value) = value {
                put(out, format_args!("\x1b[>{kind};{value}m"));
            }
        }
        for title in &self.saved_titles {
            write_title(title, out);
            put(out, format_args!("\x1b[22;2t"));
        }
        write_title(&self.title, out);
    }

    /// Takes back what [`Modes::write`] writes, except a title that has replaced another unsaved.
    pub(super) fn undo(&self, out: &mut Vec<u8>) {
        for ((number, normal), _) in self.changed() {
            put(
                out,
                format_args!("\x1b[?{number}{}", if normal { 'h' } else { 'l' }),
            );
        }
        for number in self.mouse.iter().chain(&self.mouse_encodings) {
            put(out, format_args!("\x1b[?{number}l"));
        }
        if self.keypad {
            put(out, format_args!("\x1b>"));
        }
        if self.cursor_shape != 0 {
            put(out, format_args!("\x1b[0 q"));
        }
        for (kind, value) in self.modified_keys.iter().enumerate() {
            if value.is_some() {
                put(out, format_args!("\x1b[>{kind}m"));
            }
        }
        for _ in &self.saved_titles {
            put(out, format_args!("\x1b[23;2t"));
        }
    }

    fn changed(&self) -> impl Iterator<Item = ((u16, bool), bool)> {
        let states = SWITCHES.into_iter().zip(self.switches);
        states.filter(|((_, normal), on)| normal != on)
    }
}

fn write_title(title: &Title, out: &mut Vec<u8>) {
    if let Some(title) = title {
        put(out, format_args!("\x1b]2;{title}\x1b\\"));
    }
}

/// Appends formatted text.
pub(super) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // Writing into memory cannot fail.
    let _ = out.write_fmt(text);
}

/// The flags of the kitty keyboard protocol, and those that were pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Keyboard {
    flags: u8,
    saved: Vec<u8>,
}

impl Keyboard {
    fn push(&mut self, flags: u8) {
        if self.saved.len() == KEYBOARD_LIMIT {
            self.saved.remove(0);
        }
        self.saved.push(self.flags);
        self.flags = flags;
    }

    fn pop(&mut self, count: u16) {
        for _ in 0..count.max(1) {
            let Some(flags) = self.saved.pop() else {
                self.flags = 0;
                return;
            };
            self.flags = flags;
        }
    }

    fn change(&mut self, flags: u8, how: u16) {
        match how {
            0 | 1 => self.flags = flags,
            2 => self.flags |= flags,
            3 => self.flags &= !flags,
            _ => {}
        }
    }
}
