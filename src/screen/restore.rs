//! The bytes that show a screen on another terminal.

use avt::{Cell, Line, Pen, Terminal};

use super::clusters::Clusters;
use super::hidden::{Hidden, Saved};
use super::modes::put;
use super::sgr::{write_ops, write_pen};
use super::sink::Kind;
use super::{ALTERNATE_AND_CURSOR, Screen, State};

/// The beginning of an operating system command that does nothing.
const IGNORED: &[u8] = b"\x1b]9999;";

impl Screen {
    /// The bytes that make a terminal of this size, which was reset, show this screen: both
    /// buffers, the cursor, all modes, the title, and the beginning of an unfinished sequence or
    /// character, so that what the program writes next follows on.
    ///
    /// A terminal that shows something else must be cleared before (`CSI m CSI H CSI 2 J` where its
    /// modes are as after a reset). A title that it shows is kept by saving it before
    /// (`CSI 22 ; 2 t`) and taking it back after [`Screen::undo`] (`CSI 23 ; 2 t`).
    ///
    /// About as long as both screens' text, with attributes where these change: at most 60 bytes a
    /// cell.
    pub fn restore(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let state = &self.state;
        let (terminal, clusters) = (&state.terminal, &state.clusters);
        let hidden = Hidden::of(terminal);
        write_lines(
            terminal.primary_screen().visible_lines(),
            clusters,
            &mut out,
        );
        if let Some(tabs) = &hidden.tabs {
            write_tabs(tabs, &mut out);
        }
        state.modes.write_keyboard(false, &mut out);
        if state.is_alternate() {
            let by = state.alternate_by;
            let saves = if by == ALTERNATE_AND_CURSOR {
                ""
            } else {
                "\x1b7"
            };
            write_saved(&hidden.saved[0], saves, by, &mut out);
            out.extend_from_slice(b"\x1b[m\x1b[H\x1b[2J");
            write_lines(terminal.screen().visible_lines(), clusters, &mut out);
            self.write_alternate(&hidden, &mut out);
        } else {
            let mut alternate = Vec::new();
            self.write_alternate(&hidden, &mut alternate);
            if !alternate.is_empty() {
                out.extend_from_slice(b"\x1b[?1047h");
                out.append(&mut alternate);
                out.extend_from_slice(b"\x1b[?1047l");
            }
            // Last, as some terminals save one cursor for both screens.
            if hidden.saved[0] != Saved::default() {
                write_saved(&hidden.saved[0], "\x1b7", 0, &mut out);
            }
        }
        if let Some((top, bottom)) = hidden.margins {
            put(&mut out, format_args!("\x1b[{top};{bottom}r"));
        }
        if hidden.origin {
            out.extend_from_slice(b"\x1b[?6h");
        }
        let saved = &hidden.saved[usize::from(state.is_alternate())];
        write_position(state, &hidden, saved, &mut out);
        write_ops(&hidden.pen, &mut out);
        write_switches(terminal, &hidden, &mut out);
        state.modes.write(&mut out);
        self.write_unfinished(&mut out);
        out
    }

    /// What the alternate screen has of its own besides its cells.
    fn write_alternate(&self, hidden: &Hidden, out: &mut Vec<u8>) {
        self.state.modes.write_keyboard(true, out);
        if hidden.saved[1] != Saved::default() {
            write_saved(&hidden.saved[1], "\x1b7", 0, out);
        }
    }

    /// The beginning of a sequence or of a character.
    fn write_unfinished(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.state.partial);
        let raw = self.framer.raw();
        match self.framer.in_string() {
            // The rest of such a string is of no use without its beginning, and must not be shown.
            Some(Kind::Osc) if self.framer.is_long() || raw.starts_with(IGNORED) => {
                out.extend_from_slice(IGNORED);
            }
            Some(Kind::Dcs | Kind::Other) => out.extend_from_slice(b"\x1bX"),
            // The controls in a sequence have acted already.
            _ => {
                let (first, rest) = raw.split_at(raw.len().min(1));
                out.extend_from_slice(first);
                out.extend(rest.iter().filter(|byte| **byte >= 0x20));
            }
        }
        out.extend_from_slice(self.framer.ending());
    }
}

/// Draws lines from the top left corner on. A line that goes on in the next is filled, so that the
/// terminal knows it too; cells after the last one in use are left alone.
fn write_lines<'a>(lines: impl Iterator<Item = &'a Line>, clusters: &Clusters, out: &mut Vec<u8>) {
    let mut pen = Pen::default();
    let mut newlines = 0;
    let mut continues = false;
    for line in lines {
        let cells = line.cells();
        let blank =
            |cell: &&Cell| cell.char() == ' ' && cell.width() == 1 && cell.pen().is_default();
        let mut used = cells.len();
        if !line.is_wrapped() {
            used -= cells.iter().rev().take_while(blank).count();
            // Only a character brings the cursor to the line that this one continues.
            used = used.max(usize::from(continues));
        }
        for cell in cells[..used].iter().filter(|cell| cell.width() > 0) {
            out.extend(std::iter::repeat_n(b"\r\n", newlines).flatten());
            newlines = 0;
            if *cell.pen() != pen {
                pen = *cell.pen();
                write_pen(&pen, out);
            }
            write_character(cell, clusters, out);
        }
        continues = line.is_wrapped();
        newlines += usize::from(!continues);
    }
    if !pen.is_default() {
        out.extend_from_slice(b"\x1b[m");
    }
}

fn write_character(cell: &Cell, clusters: &Clusters, out: &mut Vec<u8>) {
    match clusters.text(cell.char()) {
        Some(text) => out.extend_from_slice(text.as_bytes()),
        None => put(out, format_args!("{}", cell.char())),
    }
}

fn write_tabs(tabs: &[u16], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x1b[3g");
    for column in tabs {
        put(out, format_args!("\x1b[{}G\x1bH", column + 1));
    }
}

/// Saves a cursor by the sequence `save`, and enters the alternate screen if `alternate` is not 0.
fn write_saved(saved: &Saved, save: &str, alternate: u16, out: &mut Vec<u8>) {
    if saved.origin {
        out.extend_from_slice(b"\x1b[?6h");
    }
    if !saved.autowrap {
        out.extend_from_slice(b"\x1b[?7l");
    }
    put(
        out,
        format_args!("\x1b[{};{}H", saved.row + 1, saved.column + 1),
    );
    write_ops(&saved.pen, out);
    out.extend_from_slice(save.as_bytes());
    if alternate != 0 {
        put(out, format_args!("\x1b[?{alternate}h"));
    }
    if !saved.autowrap {
        out.extend_from_slice(b"\x1b[?7h");
    }
    if saved.origin {
        out.extend_from_slice(b"\x1b[?6l");
    }
    out.extend_from_slice(b"\x1b[m");
}

/// Moves the cursor. If the next character will go to the next line, the last one is written again.
fn write_position(state: &State, hidden: &Hidden, saved: &Saved, out: &mut Vec<u8>) {
    let (terminal, clusters) = (&state.terminal, &state.clusters);
    let cursor = terminal.cursor();
    let (columns, rows) = terminal.size();
    let last = terminal
        .screen()
        .line(cursor.row)
        .and_then(|line| line.cells().last());
    let behind = cursor.col >= columns;
    let width = last.map_or(1, |cell| if cell.width() == 0 { 2 } else { 1 });
    let column = if behind { columns - width } else { cursor.col };
    let (top, bottom) = hidden.margins.map_or((0, rows), |(top, bottom)| {
        (usize::from(top) - 1, usize::from(bottom))
    });
    if hidden.origin && !(top..bottom).contains(&cursor.row) {
        // Only a saved cursor can lie outside the margins then. From there it is moved.
        let from = usize::from(saved.row);
        out.extend_from_slice(b"\x1b8");
        if cursor.row < from {
            put(out, format_args!("\x1b[{}A", from - cursor.row));
        } else if cursor.row > from {
            put(out, format_args!("\x1b[{}B", cursor.row - from));
        }
        put(out, format_args!("\x1b[{}G", column + 1));
    } else {
        let row = cursor.row - if hidden.origin { top } else { 0 };
        put(out, format_args!("\x1b[{};{}H", row + 1, column + 1));
    }
    if behind {
        let cells = terminal.screen().line(cursor.row).map(Line::cells);
        if let Some(cell) = cells.and_then(|cells| cells.get(column)) {
            write_pen(cell.pen(), out);
            write_character(cell, clusters, out);
        }
    }
}

/// The modes that bear on what is drawn, after all was drawn.
fn write_switches(terminal: &Terminal, hidden: &Hidden, out: &mut Vec<u8>) {
    let switches: [(bool, &[u8]); 8] = [
        (!terminal.cursor().visible, b"\x1b[?25l"),
        (hidden.drawing[0], b"\x1b(0"),
        (hidden.drawing[1], b"\x1b)0"),
        (hidden.shifted, b"\x0e"),
        (hidden.insert, b"\x1b[4h"),
        (!hidden.autowrap, b"\x1b[?7l"),
        (hidden.newline, b"\x1b[20h"),
        (terminal.cursor_key_app_mode(), b"\x1b[?1h"),
    ];
    for (_, sequence) in switches.iter().filter(|(on, _)| *on) {
        out.extend_from_slice(sequence);
    }
}
