//! The parts of a finished control sequence or string.

use std::borrow::Cow;

/// The most parameters that are looked at.
const PARAMETERS: usize = 32;

/// A control sequence: an optional private marker, parameters, intermediates, a final byte.
#[derive(Debug)]
pub(super) struct Csi<'a> {
    /// Everything after the introducer.
    body: Cow<'a, [u8]>,
    /// How many bytes of `body` are parameters, after the marker.
    parameters: usize,
}

impl<'a> Csi<'a> {
    /// Of the bytes of a sequence from its introducer to its final byte; controls and other bytes
    /// that came between them are left out. `None` if its parts are out of order: terminals ignore
    /// such a sequence.
    pub(super) fn new(raw: &'a [u8]) -> Option<Self> {
        let is_part = |byte: &u8| (0x20..0x7f).contains(byte);
        let inside = after_introducer(raw);
        let body: Cow<[u8]> = if inside.iter().all(is_part) {
            inside.into()
        } else {
            inside.iter().copied().filter(is_part).collect()
        };
        let (_, rest) = body.split_last()?;
        let rest = rest.strip_prefix(&[marker(&body)]).unwrap_or(rest);
        let is_parameter = |byte: &&u8| (b'0'..=b';').contains(*byte);
        let parameters = rest.iter().take_while(is_parameter).count();
        let are_intermediates = rest[parameters..].iter().all(is_intermediate);
        are_intermediates.then_some(Self { body, parameters })
    }

    /// The private marker (`<`, `=`, `>` or `?`) or 0, the last intermediate or 0, and the final
    /// byte.
    pub(super) fn function(&self) -> (u8, u8, u8) {
        let marker = self.marker();
        let rest = &self.body[usize::from(marker != 0) + self.parameters..];
        match rest {
            [.., intermediate, last] => (marker, *intermediate, *last),
            [last] => (marker, 0, *last),
            [] => (marker, 0, 0),
        }
    }

    fn marker(&self) -> u8 {
        marker(&self.body)
    }

    /// Everything after the introducer.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The parameters as text.
    pub(super) fn parameters(&self) -> &[u8] {
        let start = usize::from(self.marker() != 0);
        &self.body[start..start + self.parameters]
    }

    /// The parameters as numbers, empty ones as 0.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u16> {
        let parts = self.parameters().split(|byte| *byte == b';');
        parts.take(PARAMETERS).map(number)
    }

    /// The parameter at `at`, or 0.
    pub(super) fn number(&self, at: usize) -> u16 {
        self.numbers().nth(at).unwrap_or(0)
    }
}

fn marker(body: &[u8]) -> u8 {
    let first = body.first().copied().unwrap_or(0);
    if (b'<'..=b'?').contains(&first) {
        first
    } else {
        0
    }
}

/// The bytes of a sequence after its introducer.
fn after_introducer(raw: &[u8]) -> &[u8] {
    match raw {
        // Controls and bytes that count for nothing may stand between ESC and the next byte.
        [0x1b, rest @ ..] => {
            let second = rest.iter().position(|byte| (0x30..0x7f).contains(byte));
            &rest[second.map_or(rest.len(), |at| at + 1)..]
        }
        [0xc2, _, rest @ ..] => rest,
        _ => &[],
    }
}

/// What stands between the introducer of a string and its terminator, without controls.
pub(super) fn contents(raw: &[u8]) -> Vec<u8> {
    let terminated = raw.strip_suffix(b"\x1b\\");
    let terminated = terminated.or_else(|| raw.strip_suffix(b"\xc2\x9c"));
    let is_shown = |byte: &u8| *byte >= 0x20 && *byte != 0x7f;
    let inside = after_introducer(terminated.unwrap_or(raw)).iter().copied();
    inside.filter(is_shown).collect()
}

/// The number that `digits` begin with; too large ones are the largest.
pub(super) fn number(digits: &[u8]) -> u16 {
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0_u16, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u16::from(digit - b'0'))
    })
}

/// The number of an operating system command, and what comes after its `;`. As in xterm, one without
/// a number has the number 0.
pub(super) fn command(contents: &[u8]) -> (u16, &[u8]) {
    let mut parts = contents.splitn(2, |byte| *byte == b';');
    let digits = parts.next().unwrap_or_default();
    (number(digits), parts.next().unwrap_or_default())
}

/// An escape sequence without its ESC and without controls.
pub(super) fn escape(raw: &[u8]) -> Vec<u8> {
    match raw {
        [0xc2, c1] => vec![c1.wrapping_sub(0x40)],
        _ => raw
            .iter()
            .copied()
            .filter(|byte| (0x20..0x7f).contains(byte))
            .collect(),
    }
}

/// Whether a string is a title in the form of GNU screen, `ESC k`.
pub(super) fn is_title(raw: &[u8]) -> bool {
    raw.iter().find(|byte| (0x30..0x7f).contains(*byte)) == Some(&b'k')
}

/// Whether a string has a terminator.
pub(super) fn is_terminated(raw: &[u8]) -> bool {
    [&b"\x1b\\"[..], b"\xc2\x9c", b"\x07"]
        .iter()
        .any(|end| raw.ends_with(end))
}

/// Whether a byte stands between the parameters and the final byte of a sequence.
pub(super) fn is_intermediate(byte: &u8) -> bool {
    (0x20..0x30).contains(byte)
}
