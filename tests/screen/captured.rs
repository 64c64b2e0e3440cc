//! What tmux captures, in a form that can be compared: tmux writes attributes as changes from cell to
//! cell, and at the end of a line blanks that were written, but not those that were erased.

use std::collections::BTreeMap;

/// The lines with the attributes of each run of cells in full, without blanks at the end.
pub(crate) fn lines(captured: &str) -> Vec<String> {
    let mut pen = Pen::default();
    captured
        .lines()
        .map(|captured| line(captured, &mut pen))
        .collect()
}

fn line(captured: &str, pen: &mut Pen) -> String {
    let mut line = String::new();
    let mut end = 0;
    let mut shown = BTreeMap::new();
    let mut rest = captured;
    while let Some(character) = rest.chars().next() {
        if let Some(sequence) = rest.strip_prefix("\x1b[") {
            let (parameters, after) = sequence.split_once('m').expect("only attributes");
            pen.change(parameters);
            rest = after;
            continue;
        }
        rest = &rest[character.len_utf8()..];
        if let SHIFT_OUT | SHIFT_IN = character {
            pen.drawing = character == SHIFT_OUT;
            continue;
        }
        // Of a blank nothing is seen but these.
        let mut attributes = pen.attributes.clone();
        if character == ' ' && !attributes.contains_key(&7) {
            attributes.retain(|about, _| matches!(about, 4 | 9 | 49));
        }
        if attributes != shown {
            shown = attributes;
            line.push_str(&format!("{shown:?}"));
        }
        line.push(if pen.drawing {
            drawn(character)
        } else {
            character
        });
        if character != ' ' {
            end = line.len();
        }
    }
    line.truncate(end);
    line
}

/// Between them, line drawing characters are letters.
const SHIFT_OUT: char = '\x0e';
const SHIFT_IN: char = '\x0f';

fn drawn(letter: char) -> char {
    const LETTERS: [char; 11] = ['j', 'k', 'l', 'm', 'n', 'q', 't', 'u', 'v', 'w', 'x'];
    const DRAWN: [char; 11] = ['┘', '┐', '┌', '└', '┼', '─', '├', '┤', '┴', '┬', '│'];
    let at = LETTERS.iter().position(|known| *known == letter);
    at.map_or(letter, |at| DRAWN[at])
}

#[derive(Debug, Default)]
struct Pen {
    /// By what they are about.
    attributes: BTreeMap<u16, String>,
    drawing: bool,
}

impl Pen {
    fn change(&mut self, parameters: &str) {
        let mut parameters = parameters.split(';');
        while let Some(parameter) = parameters.next() {
            let mut value = parameter.to_owned();
            let first = parameter.split(':').next().unwrap_or_default();
            let number: u16 = first.parse().unwrap_or(0);
            if matches!(number, 38 | 48 | 58) && !parameter.contains(':') {
                let form = parameters.next().expect("a form");
                let count = if form == "5" { 1 } else { 3 };
                value = format!("{value};{form}");
                for part in parameters.by_ref().take(count) {
                    value = format!("{value};{part}");
                }
            }
            match number {
                0 => self.attributes.clear(),
                22 => self.attributes.retain(|about, _| *about > 2),
                23..=29 => drop(self.attributes.remove(&(number - 20))),
                39 | 49 => drop(self.attributes.remove(&number)),
                30..=38 | 90..=97 => drop(self.attributes.insert(39, value)),
                40..=48 | 100..=107 => drop(self.attributes.insert(49, value)),
                // The colour of the underline is not kept.
                58 | 59 => {}
                _ => drop(self.attributes.insert(number, value)),
            }
        }
    }
}
