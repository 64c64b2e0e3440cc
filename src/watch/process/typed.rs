//! What was typed into a terminal: whether the kernel keeps it, and which bytes make it drop output.

use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex, Termios};

/// The largest number of bytes of a line that the kernel keeps while it edits lines (N_TTY_BUF_SIZE,
/// less the end of the line). It drops those that follow, although write(2) takes them.
pub(super) const LINE_MAX: usize = 4095;

/// The modes of a terminal that decide what the kernel does with what is typed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Modes {
    /// Lines are edited (ICANON).
    pub(super) lines: bool,
    /// The bytes of signal keys, if they make signals.
    pub(super) signals: Option<Signals>,
    /// The byte that ends the input.
    pub(super) eof: Option<u8>,
    /// Other bytes that end a line, beside newline.
    ends: [Option<u8>; 2],
    /// The byte that makes the next one an ordinary byte.
    quote: Option<u8>,
    /// The byte that deletes the line.
    kill: Option<u8>,
    /// Carriage return: ignored, or a newline.
    return_is_ignored: bool,
    return_is_newline: bool,
    /// Newline is carriage return.
    newline_is_return: bool,
}

/// The bytes of the keys that make signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signals {
    pub(super) interrupt: Option<u8>,
    pub(super) quit: Option<u8>,
    pub(super) suspend: Option<u8>,
    /// Whether such a key drops what was typed and written, and not read.
    pub(super) drops: bool,
}

impl Signals {
    fn has(&self, byte: u8) -> bool {
        [self.interrupt, self.quit, self.suspend].contains(&Some(byte))
    }
}

impl From<&Termios> for Modes {
    fn from(termios: &Termios) -> Self {
        let local = termios.local_modes;
        let input = termios.input_modes;
        // A byte of 0 means that there is none (_POSIX_VDISABLE).
        let code = |of| Some(termios.special_codes[of]).filter(|byte| *byte != 0);
        let extended = |of| code(of).filter(|_| local.contains(LocalModes::IEXTEN));
        Self {
            lines: local.contains(LocalModes::ICANON),
            signals: local.contains(LocalModes::ISIG).then(|| Signals {
                interrupt: code(SpecialCodeIndex::VINTR),
                quit: code(SpecialCodeIndex::VQUIT),
                suspend: code(SpecialCodeIndex::VSUSP),
                drops: !local.contains(LocalModes::NOFLSH),
            }),
            eof: code(SpecialCodeIndex::VEOF),
            ends: [
                code(SpecialCodeIndex::VEOL),
                extended(SpecialCodeIndex::VEOL2),
            ],
            quote: extended(SpecialCodeIndex::VLNEXT),
            kill: code(SpecialCodeIndex::VKILL),
            return_is_ignored: input.contains(InputModes::IGNCR),
            return_is_newline: input.contains(InputModes::ICRNL),
            newline_is_return: input.contains(InputModes::INLCR),
        }
    }
}

impl Modes {
    /// Returns the index of the first byte that makes the kernel drop output, if there is one.
    pub(super) fn first_drop(&self, bytes: &[u8]) -> Option<usize> {
        let signals = self.signals.filter(|signals| signals.drops)?;
        bytes.iter().position(|byte| signals.has(*byte))
    }

    fn ends_line(&self, byte: u8) -> bool {
        let newline = match byte {
            b'\r' => self.return_is_newline && !self.return_is_ignored,
            b'\n' => !self.newline_is_return,
            _ => false,
        };
        newline || self.eof == Some(byte) || self.ends.contains(&Some(byte))
    }
}

/// The unfinished line of a terminal, as far as the daemon can know it: a program may have changed
/// the modes in between. The line is never longer than this says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Its bytes.
    len: usize,
    /// Whether the next byte is an ordinary one.
    quoted: bool,
}

impl Line {
    /// Returns the line after these bytes; `None` if it became longer than the kernel keeps.
    pub(super) fn after(mut self, modes: &Modes, bytes: &[u8]) -> Option<Self> {
        if !modes.lines {
            // What was typed before is a line of its own once lines are edited again.
            return Some(Self::default());
        }
        for byte in bytes {
            if std::mem::take(&mut self.quoted) {
                self.len += 1;
            } else if modes.quote == Some(*byte) {
                self.quoted = true;
            } else if modes.ends_line(*byte)
                || modes.kill == Some(*byte)
                || modes.first_drop(&[*byte]).is_some()
            {
                self.len = 0;
            } else {
                self.len += 1;
            }
            if self.len > LINE_MAX {
                return None;
            }
        }
        Some(self)
    }

    /// Returns its bytes, and whether the next one is an ordinary one.
    pub(super) const fn parts(self) -> (usize, bool) {
        (self.len, self.quoted)
    }

    /// Returns the line of those parts.
    pub(super) const fn of((len, quoted): (usize, bool)) -> Self {
        Self { len, quoted }
    }

    /// Returns how often the end-of-file byte has to be typed so that a program reads an end of file.
    pub(super) const fn eofs(self) -> u8 {
        match (self.quoted, self.len) {
            // The first one becomes an ordinary byte.
            (true, _) => 3,
            // The first one hands the half line over.
            (false, 1..) => 2,
            (false, 0) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKED: Modes = Modes {
        lines: true,
        signals: Some(Signals {
            interrupt: Some(3),
            quit: Some(28),
            suspend: Some(26),
            drops: true,
        }),
        eof: Some(4),
        ends: [None, None],
        quote: Some(22),
        kill: Some(21),
        return_is_ignored: false,
        return_is_newline: true,
        newline_is_return: false,
    };

    fn after(bytes: &[u8]) -> Option<Line> {
        Line::default().after(&COOKED, bytes)
    }

    #[test]
    fn a_line_may_have_what_the_kernel_keeps_and_no_more() {
        let line = |len, end: &[u8]| [&vec![b'a'; len][..], end].concat();
        for end in [&b""[..], b"\n", b"\r", &[4]] {
            assert!(after(&line(LINE_MAX, end)).is_some(), "{end:?}");
            assert!(after(&line(LINE_MAX + 1, end)).is_none(), "{end:?}");
        }
        let raw = Modes {
            lines: false,
            ..COOKED
        };
        assert!(Line::default().after(&raw, &line(10_000, b"")).is_some());
    }

    #[test]
    fn the_bytes_of_earlier_calls_count_until_the_line_ends() {
        let half = after(&[b'a'; 4000]).unwrap();
        assert!(half.after(&COOKED, &[b'b'; 95]).is_some());
        assert!(half.after(&COOKED, &[b'b'; 96]).is_none());
        for end in [b"\n", b"\x15", b"\x03", b"\x04"] {
            let ended = half.after(&COOKED, end).unwrap();
            assert!(ended.after(&COOKED, &[b'b'; 4095]).is_some(), "{end:?}");
        }
    }

    #[test]
    fn a_quoted_end_of_line_ends_no_line() {
        let line = [&[b'a'; 4000][..], b"\x16\n", &[b'a'; 94]].concat();
        assert!(after(&line).is_some());
        assert!(after(&[&line[..], b"a"].concat()).is_none());
    }

    #[test]
    fn half_a_line_needs_a_second_end_of_file() {
        for (typed, eofs) in [(&b""[..], 1), (b"a\n", 1), (b"a", 2), (b"a\x16", 3)] {
            assert_eq!(after(typed).unwrap().eofs(), eofs, "{typed:?}");
        }
    }

    #[test]
    fn only_signal_keys_that_drop_output_are_found() {
        assert_eq!(COOKED.first_drop(b"ab\x1ac\x03"), Some(2));
        assert_eq!(COOKED.first_drop(b"ab\x04"), None);
        let kept = Signals {
            drops: false,
            ..COOKED.signals.unwrap()
        };
        let kept = Modes {
            signals: Some(kept),
            ..COOKED
        };
        assert_eq!(kept.first_drop(b"\x03"), None);
    }
}
