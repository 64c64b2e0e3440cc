//! The bytes that take back what a program has turned on in a terminal.

use avt::parser::SgrOp;

use super::Screen;
use super::hidden::Hidden;
use super::modes::put;

impl Screen {
    /// The bytes that take back what the program has turned on in the user's terminal and not turned
    /// off: mouse, focus and paste reports, synchronised output, keyboard protocols, keypad, margins,
    /// tab stops, attributes, character sets, cursor shape and visibility, and the alternate screen.
    /// Nothing, if nothing is on.
    ///
    /// The terminal must have seen what this screen has, or [`Screen::restore`]. The text of the
    /// main screen stays, and the cursor where it was there.
    pub fn undo(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let state = &self.state;
        let terminal = &state.terminal;
        let hidden = Hidden::of(terminal);
        if !self.framer.raw().is_empty() {
            // Ends whatever sequence the terminal is in.
            out.extend_from_slice(b"\x1b\\");
        }
        state.modes.undo(&mut out);
        let main = &hidden.saved[0];
        let switches: [(bool, &[u8]); 9] = [
            (!terminal.cursor().visible, b"\x1b[?25h"),
            (hidden.drawing[0], b"\x1b(B"),
            (hidden.drawing[1], b"\x1b)B"),
            (hidden.shifted, b"\x0f"),
            (hidden.insert, b"\x1b[4l"),
            (hidden.newline, b"\x1b[20l"),
            (terminal.cursor_key_app_mode(), b"\x1b[?1l"),
            (!hidden.autowrap, b"\x1b[?7h"),
            (hidden.origin, b"\x1b[?6l"),
        ];
        for (_, sequence) in switches.iter().filter(|(on, _)| *on) {
            out.extend_from_slice(sequence);
        }
        if hidden.margins.is_some() {
            out.extend_from_slice(b"\x1b[r");
        }
        let (columns, _) = terminal.size();
        if hidden.tabs.is_some() {
            out.extend_from_slice(b"\x1b[3g");
            for column in (8..columns).step_by(8) {
                put(&mut out, format_args!("\x1b[{}G\x1bH", column + 1));
            }
        }
        let mut keyboard = Vec::new();
        state.modes.undo_keyboard(true, &mut keyboard);
        let moved = hidden.origin || hidden.margins.is_some() || hidden.tabs.is_some();
        if state.is_alternate() {
            out.append(&mut keyboard);
            put(&mut out, format_args!("\x1b[?{}l", state.alternate_by));
            // Leaving it has brought back the cursor that was saved, with its attributes.
            if main.origin {
                out.extend_from_slice(b"\x1b[?6l");
            }
            if !main.autowrap {
                out.extend_from_slice(b"\x1b[?7h");
            }
        } else if !keyboard.is_empty() {
            out.extend_from_slice(b"\x1b[?1047h");
            out.append(&mut keyboard);
            out.extend_from_slice(b"\x1b[?1047l");
        }
        if !state.is_alternate() && moved {
            let cursor = terminal.cursor();
            let column = (cursor.col + 1).min(columns);
            put(&mut out, format_args!("\x1b[{};{column}H", cursor.row + 1));
        }
        state.modes.undo_keyboard(false, &mut out);
        let is_plain = |pen: &[SgrOp]| pen.iter().all(|op| *op == SgrOp::Reset);
        if !is_plain(&hidden.pen) || state.is_alternate() && !is_plain(&main.pen) {
            out.extend_from_slice(b"\x1b[m");
        }
        out
    }
}
