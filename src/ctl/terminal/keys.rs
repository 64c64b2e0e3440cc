//! The keys that leave a terminal. They are recognised however the user's terminal encodes them.

use std::str::FromStr;

/// The most keys of a sequence.
const KEYS_MAX: usize = 8;
/// The longest encoding of a key, in bytes. A longer one is passed on as it comes.
const ENCODING_MAX: usize = 64;

/// `Ctrl`, in the number of modifiers of a key: CSI u and modifyOtherKeys send it plus 1.
const CTRL: u32 = 4;
/// Caps lock and num lock, which change no key here.
const LOCKS: u32 = 64 | 128;
/// The event of a released key, in kitty's protocol.
const RELEASE: u32 = 3;
/// The numbers of keys that are only modifiers, in kitty's protocol.
const MODIFIERS: std::ops::RangeInclusive<u32> = 57_441..=57_454;

const ESC: u8 = 0x1b;

/// A key as the user names it: a character, with Ctrl or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    character: u8,
    ctrl: bool,
}

impl Key {
    /// Returns the byte that a terminal sends for it, unless a program has asked for more.
    const fn byte(self) -> u8 {
        if self.ctrl {
            self.character.to_ascii_uppercase() & 0x1f
        } else {
            self.character
        }
    }
}

/// A sequence of keys that leaves the terminal; empty if none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ctl) struct DetachKeys(Vec<Key>);

impl Default for DetachKeys {
    fn default() -> Self {
        let ctrl = |character| Key {
            character,
            ctrl: true,
        };
        Self(vec![ctrl(b'p'), ctrl(b'q')])
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    /// Reads keys as docker takes them: `ctrl-p,ctrl-q`, `ctrl-a,d`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let keys = text.split(',').map(|word| {
            let (ctrl, word) = match word.strip_prefix("ctrl-") {
                Some(word) => (true, word),
                None => (false, word),
            };
            match *word.as_bytes() {
                [character @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] if ctrl => {
                    Ok(Key { character, ctrl })
                }
                [character @ b' '..=b'~'] if !ctrl => Ok(Key { character, ctrl }),
                _ => Err(format!(
                    "`{word}`: a key is a character, or `ctrl-` with one of a-z, @, [, \\, ], ^ or _"
                )),
            }
        });
        let keys = keys.collect::<Result<Vec<Key>, String>>()?;
        if keys.len() > KEYS_MAX {
            return Err(format!("there may be at most {KEYS_MAX} keys"));
        }
        Ok(Self(keys))
    }
}

impl std::fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (nth, key) in self.0.iter().enumerate() {
            let space = if nth == 0 { "" } else { " " };
            let (ctrl, shown) = match key.ctrl {
                true => ("Ctrl-", key.character.to_ascii_uppercase()),
                false => ("", key.character),
            };
            write!(f, "{space}{ctrl}{}", char::from(shown))?;
        }
        Ok(())
    }
}

/// What some input means for the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// This key was pressed.
    Key(Key),
    /// Nothing: a key was released, or a modifier pressed.
    Nothing,
    /// Something else.
    Other,
    /// More input will tell.
    Incomplete,
}

/// Finds the keys in the input of a terminal, and holds those back that may be a part of them.
#[derive(Debug)]
pub(in crate::ctl) struct Detacher {
    keys: DetachKeys,
    /// How many of the keys were pressed.
    pressed: usize,
    /// The input that is held back.
    held: Vec<u8>,
    /// How many bytes of it have been understood.
    read: usize,
    /// Whether the last byte that was passed on is an ESC, with which an encoding may begin.
    after_escape: bool,
}

impl Detacher {
    pub(in crate::ctl) const fn new(keys: DetachKeys) -> Self {
        Self {
            keys,
            pressed: 0,
            held: Vec::new(),
            read: 0,
            after_escape: false,
        }
    }

    /// Takes input, and returns what to pass on; an error holds what was to be passed on before the
    /// keys, if they are complete. What is held back comes with later input or by
    /// [`Detacher::release`].
    pub(in crate::ctl) fn feed(&mut self, input: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        if self.keys.0.is_empty() {
            return Ok(input.to_vec());
        }
        let mut pass = Vec::with_capacity(input.len());
        for byte in input {
            self.held.push(*byte);
            match self.token() {
                Token::Incomplete => continue,
                Token::Nothing => {}
                Token::Key(key) if self.keys.0.get(self.pressed) == Some(&key) => {
                    self.pressed += 1;
                    if self.pressed == self.keys.0.len() {
                        self.forget();
                        return Err(pass);
                    }
                }
                // The keys before it were not the sequence, but it may begin it.
                Token::Key(key) if self.keys.0.first() == Some(&key) => {
                    pass.extend(self.held.drain(..self.read));
                    (self.pressed, self.read) = (1, 0);
                }
                Token::Key(_) | Token::Other => {
                    pass.append(&mut self.held);
                    self.pressed = 0;
                }
            }
            self.read = self.held.len();
            if self.pressed == 0 {
                pass.append(&mut self.held);
                self.read = 0;
                self.after_escape = false;
            } else {
                self.after_escape = false;
            }
        }
        // An ESC alone is a key too, and must not wait.
        if self.held == [ESC] {
            pass.append(&mut self.held);
            self.after_escape = true;
        }
        Ok(pass)
    }

    /// Returns what the input that was not understood yet means.
    fn token(&self) -> Token {
        let new = self.held.get(self.read..).unwrap_or_default();
        let sequence = match new {
            [b'[', rest @ ..] if self.after_escape => rest,
            [ESC] => return Token::Incomplete,
            [ESC, b'[', rest @ ..] => rest,
            [byte] => {
                let keys = self.keys.0.iter();
                let key = keys.copied().find(|key| key.byte() == *byte);
                return key.map_or(Token::Other, Token::Key);
            }
            _ => return Token::Other,
        };
        match sequence.split_last() {
            None => Token::Incomplete,
            Some((b'0'..=b'9' | b';' | b':', _)) if sequence.len() < ENCODING_MAX => {
                Token::Incomplete
            }
            Some((last, parameters)) => encoded(*last, parameters),
        }
    }

    /// Returns whether input is held back.
    pub(in crate::ctl) const fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Gives up on the keys that were pressed, and returns the input that is held back.
    pub(in crate::ctl) fn release(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.forget();
        held
    }

    fn forget(&mut self) {
        self.held.clear();
        (self.pressed, self.read, self.after_escape) = (0, 0, false);
    }
}

/// Reads a key as kitty's protocol (`CSI CODE ; MODIFIERS : EVENT u`) or xterm's modifyOtherKeys
/// (`CSI 27 ; MODIFIERS ; CODE ~`) encodes it.
fn encoded(last: u8, parameters: &[u8]) -> Token {
    let fields: Vec<Vec<u32>> = parameters
        .split(|byte| *byte == b';')
        .map(|field| {
            let numbers = field.split(|byte| *byte == b':').map(|number| {
                let text = std::str::from_utf8(number).unwrap_or_default();
                text.parse().unwrap_or(0)
            });
            numbers.collect()
        })
        .collect();
    let at = |field: usize, number: usize| -> u32 {
        let found = fields.get(field).and_then(|numbers| numbers.get(number));
        found.copied().unwrap_or(0)
    };
    let (code, modifiers, event) = match last {
        b'u' => (at(0, 0), at(1, 0), at(1, 1)),
        b'~' if at(0, 0) == 27 && fields.len() == 3 => (at(2, 0), at(1, 0), 0),
        _ => return Token::Other,
    };
    if event == RELEASE || MODIFIERS.contains(&code) {
        return Token::Nothing;
    }
    let ctrl = match modifiers.saturating_sub(1) & !LOCKS {
        0 => false,
        CTRL => true,
        _ => return Token::Other,
    };
    match u8::try_from(code) {
        Ok(character @ b' '..=b'~') => Token::Key(Key { character, ctrl }),
        _ => Token::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detacher(keys: &str) -> Detacher {
        Detacher::new(keys.parse().unwrap())
    }

    /// Feeds all, in pieces of one byte too, and checks that nothing of it leaves.
    fn passes(keys: &str, input: &[u8]) {
        for size in [1, 2, input.len()] {
            let mut detacher = detacher(keys);
            let mut passed = Vec::new();
            for piece in input.chunks(size) {
                passed.extend(detacher.feed(piece).unwrap());
            }
            passed.extend(detacher.release());
            assert_eq!(passed, input, "in pieces of {size}");
            assert!(!detacher.is_holding());
        }
    }

    fn leaves(keys: &str, before: &[u8], pressed: &[u8]) {
        let input = [before, pressed, b"rest"].concat();
        for size in [1, 3, input.len()] {
            let mut detacher = detacher(keys);
            let mut passed = Vec::new();
            let mut left = false;
            for piece in input.chunks(size) {
                match detacher.feed(piece) {
                    Ok(more) => passed.extend(more),
                    Err(more) => {
                        passed.extend(more);
                        left = true;
                        break;
                    }
                }
            }
            assert!(left, "{pressed:?} in pieces of {size}");
            // The ESC of an encoding that comes alone has been passed on already.
            let alone = passed.strip_suffix(b"\x1b").filter(|_| size < 4);
            let passed = alone.unwrap_or(&passed);
            assert_eq!(passed, before, "in pieces of {size}");
        }
    }

    #[test]
    fn the_keys_leave_in_every_encoding() {
        leaves("ctrl-p,ctrl-q", b"ls\r", b"\x10\x11");
        leaves("ctrl-p,ctrl-q", b"", b"\x1b[112;5u\x1b[113;5u");
        leaves("ctrl-p,ctrl-q", b"\x10x", b"\x1b[27;5;112~\x1b[27;5;113~");
        // Num lock is on, and what was released or is only a modifier is told too.
        let kitty = b"\x1b[57442;133u\x1b[112;133u\x1b[112;133:3u\x1b[113;133:1u";
        leaves("ctrl-p,ctrl-q", b"", &kitty[b"\x1b[57442;133u".len()..]);
        leaves("ctrl-p,ctrl-q", b"", b"\x10\x1b[113;5u");
        leaves("ctrl-a,d", b"\x01\x01"[..1].as_ref(), b"\x01d");
        leaves("ctrl-\\", b"x", b"\x1c");
    }

    #[test]
    fn everything_else_arrives_unchanged() {
        passes("ctrl-p,ctrl-q", b"\x10");
        passes("ctrl-p,ctrl-q", b"\x10\x10\x10a\x11");
        passes(
            "ctrl-p,ctrl-q",
            b"\x1b[A\x1bOP\x1b\x1b[200~paste\x10 q\x1b[201~",
        );
        passes("ctrl-p,ctrl-q", b"\x1b[112;6u\x1b[113;5u\x1b[<35;1;2M");
        passes("ctrl-p,ctrl-q", b"\x10\x1b[112;5:3ux");
        passes(
            "ctrl-p,ctrl-q",
            &[b"\x1b[".as_slice(), &[b'1'; 500]].concat(),
        );
        passes("", b"\x10\x11");
    }

    #[test]
    fn a_lone_escape_is_not_held() {
        assert_eq!(detacher("ctrl-p,ctrl-q").feed(b"\x1b").unwrap(), b"\x1b");
        let mut held = detacher("ctrl-p,ctrl-q");
        assert!(held.feed(b"\x10").unwrap().is_empty());
        assert!(held.is_holding());
        assert_eq!(held.release(), b"\x10");
    }

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!(DetachKeys::default().to_string(), "Ctrl-P Ctrl-Q");
        assert_eq!(
            "ctrl-a,d".parse::<DetachKeys>().unwrap().to_string(),
            "Ctrl-A d"
        );
        for wrong in ["ctrl-", "ctrl-1", "strg-a", "a,,b", "ä"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
        assert!("a,a,a,a,a,a,a,a,a".parse::<DetachKeys>().is_err());
    }
}
