//! Character attributes: reading what `avt` would misread, writing what all terminals read.

use std::borrow::Cow;

use avt::parser::SgrOp;
use avt::{Color, Pen};

use super::modes::put;
use super::sequence::number;

/// The body of an SGR sequence with the attributes that `avt` does not know left out or replaced:
/// its parameters would be taken for attributes of their own.
pub(super) fn simplified(body: &[u8]) -> Cow<'_, [u8]> {
    let misread = |pair: &[u8]| matches!(pair, b"58" | b"21" | b"4:");
    if !body.windows(2).any(misread) {
        return body.into();
    }
    let body = body.strip_suffix(b"m").unwrap_or(body);
    let mut parameters = body.split(|byte| *byte == b';');
    let mut kept = Vec::new();
    while let Some(parameter) = parameters.next() {
        match parameter {
            // A colour, whose parameters are kept with it.
            b"38" | b"48" => {
                kept.push(parameter);
                for part in colour(&mut parameters) {
                    kept.push(part);
                }
            }
            // The colour of the underline.
            b"58" => drop(colour(&mut parameters)),
            _ if parameter.starts_with(b"58:") => {}
            // Underline styles are all drawn as one line.
            b"21" => kept.push(b"4"),
            _ if parameter.starts_with(b"4:") => {
                kept.push(if number(&parameter[2..]) == 0 {
                    b"24"
                } else {
                    b"4"
                });
            }
            _ => kept.push(parameter),
        }
    }
    if kept.is_empty() {
        // Not an empty sequence, which would be a reset.
        kept.push(b"58");
    }
    let mut body = kept.join(&b';');
    body.push(b'm');
    body.into()
}

/// The parameters of a colour in the form with semicolons.
fn colour<'a>(parameters: &mut impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let Some(form) = parameters.next() else {
        return Vec::new();
    };
    let count = match form {
        b"5" => 1,
        b"2" => 3,
        _ => 0,
    };
    let mut colour = vec![form];
    colour.extend(parameters.take(count));
    colour
}

/// Writes the attributes of a cell, whatever was set before.
pub(super) fn write_pen(pen: &Pen, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x1b[0");
    let attributes = [
        (pen.is_bold(), '1'),
        (pen.is_faint(), '2'),
        (pen.is_italic(), '3'),
        (pen.is_underline(), '4'),
        (pen.is_blink(), '5'),
        (pen.is_inverse(), '7'),
        (pen.is_strikethrough(), '9'),
    ];
    for (_, number) in attributes.iter().filter(|(on, _)| *on) {
        put(out, format_args!(";{number}"));
    }
    if let Some(color) = pen.foreground() {
        write_color(color, 30, out);
    }
    if let Some(color) = pen.background() {
        write_color(color, 40, out);
    }
    out.push(b'm');
}

/// The form with semicolons is the one that all terminals read.
fn write_color(color: Color, base: u8, out: &mut Vec<u8>) {
    match color {
        Color::Indexed(index @ 0..8) => put(out, format_args!(";{}", base + index)),
        Color::Indexed(index @ 8..16) => put(out, format_args!(";{}", base + 52 + index)),
        Color::Indexed(index) => put(out, format_args!(";{};5;{index}", base + 8)),
        Color::RGB(rgb) => {
            let (r, g, b) = (rgb.r, rgb.g, rgb.b);
            put(out, format_args!(";{};2;{r};{g};{b}", base + 8));
        }
    }
}

/// Writes attributes in the order in which they are set.
pub(super) fn write_ops(ops: &[SgrOp], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x1b[0");
    for op in ops {
        match op {
            SgrOp::SetBoldIntensity => out.extend_from_slice(b";1"),
            SgrOp::SetFaintIntensity => out.extend_from_slice(b";2"),
            SgrOp::SetItalic => out.extend_from_slice(b";3"),
            SgrOp::SetUnderline => out.extend_from_slice(b";4"),
            SgrOp::SetBlink => out.extend_from_slice(b";5"),
            SgrOp::SetInverse => out.extend_from_slice(b";7"),
            SgrOp::SetStrikethrough => out.extend_from_slice(b";9"),
            SgrOp::SetForegroundColor(color) => write_color(*color, 30, out),
            SgrOp::SetBackgroundColor(color) => write_color(*color, 40, out),
            // The others take back what is not set.
            _ => {}
        }
    }
    out.push(b'm');
}
