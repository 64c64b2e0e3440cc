//! A terminal's screen, from whatever a program may write to it.

use evloopd::screen::{Quiet, Screen};
use proptest::prelude::*;
use unicode_width::UnicodeWidthChar;

use crate::fuzz;

/// Sequences that bear on one another, which random bytes would hardly bring together.
const PARTS: [&str; 64] = [
    "a",
    "bc",
    " ",
    "日",
    "本語",
    "é",
    "e\u{301}",
    "😀",
    "👩\u{200d}💻",
    "─┐",
    "\r\n",
    "\n",
    "\r",
    "\t",
    "\x08",
    "\x0e",
    "\x0f",
    "\x0b",
    "\x7f",
    "\x1b(0qqx",
    "\x1b)0",
    "\x1b(B",
    "\x1b7",
    "\x1b8",
    "\x1bc",
    "\x1bM",
    "\x1bD",
    "\x1bE",
    "\x1bH",
    "\x1b=",
    "\x1b>",
    "\x1b#8",
    "\x1bZ",
    "\u{9b}",
    "\u{9d}",
    "\x18",
    "\x1b",
    "\x1b[?6h\x1b[2;4r",
    "\x1b[!p",
    "\x1b[?1049h",
    "\x1b[?1049l",
    "\x1b[?1047h",
    "\x1b[?47l",
    "\x1b[?7l",
    "\x1b[?7h",
    "\x1b[4h",
    "\x1b[4l",
    "\x1b[20h",
    "\x1b[?25l",
    "\x1b[3g",
    "\x1b[?1000;1006;2004h",
    "\x1b[?1003l",
    "\x1b[4 q",
    "\x1b[>1u",
    "\x1b[<u",
    "\x1b[=5;2u",
    "\x1b[>4;2m",
    "\x1b[6n\x1b[5n\x1b[c",
    "\x1b]0;title\x07",
    "\x1b]2;other\x1b\\",
    "\x1b[22;0t",
    "\x1b[23;0t",
    "\x1bPq#1",
    "\x1b\\",
];

/// What a program may write.
pub(crate) fn written() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::sample::select(&PARTS[..]).prop_map(|part| part.as_bytes().to_vec());
    let numbers = prop::collection::vec(prop_oneof![4 => 0..12_u16, 1 => any::<u16>()], 0..4);
    let last = prop::sample::select(&b"@ABCDEFGHIJKLMPSTXZ`abdefghlmrsu"[..]);
    let sequence = (
        prop::sample::select(&["", "", "", "?", ">"][..]),
        numbers,
        last,
    );
    let sequence = sequence.prop_map(|(marker, numbers, last)| {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        format!("\x1b[{marker}{}{}", numbers.join(";"), char::from(last)).into_bytes()
    });
    let attributes = prop::sample::select(&[30_u16, 44, 1, 4, 7, 38, 48, 58, 5, 2, 21, 0, 200][..]);
    let attributes = prop::collection::vec(attributes, 0..6).prop_map(|numbers| {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        format!("\x1b[{}m", numbers.join(";")).into_bytes()
    });
    let noise = prop::collection::vec(any::<u8>(), 0..8);
    let line = prop::sample::select(
        &[
            "line\r\n",
            "\r\n",
            "\n",
            "a\tb\x08\r\n",
            "日本\r\n",
            "over the edge of it\r\n",
            "\x0e\r\n",
        ][..],
    );
    let lines = (line.clone(), line, 1..60_usize);
    let lines =
        lines.prop_map(|(one, other, count)| [one.repeat(count), other.repeat(count)].concat());
    let lines = lines.prop_map(String::into_bytes);
    let long = (1..6_000_usize).prop_map(|count| {
        let mut long = b"\x1b]2;".to_vec();
        long.resize(count + 4, b'x');
        long
    });
    let parameters = (
        0..300_usize,
        prop::sample::select(&["m", "6n", "\x0eH", ""][..]),
    );
    let parameters = parameters
        .prop_map(|(count, last)| format!("\x1b[{}{last}", "0".repeat(count)).into_bytes());
    let piece = prop_oneof![
        30 => part,
        20 => sequence,
        6 => attributes,
        3 => noise,
        4 => lines,
        1 => long,
        1 => parameters,
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn size() -> impl Strategy<Value = (u16, u16)> {
    (1..8_u16, prop_oneof![1..4_u16, 1..20_u16])
}

/// What of a screen can be told apart.
fn shown(screen: &Screen) -> String {
    format!("{screen:?} {}", screen.restore().escape_ascii())
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..8)
}

#[test]
fn how_bytes_are_cut_makes_no_difference() {
    fuzz(
        2_000,
        &(size(), written(), cuts()),
        |((rows, columns), bytes, cuts)| {
            let mut whole = Screen::new(rows, columns);
            whole.feed(&bytes);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut cut = Screen::new(rows, columns);
            for range in cuts.windows(2) {
                cut.feed(&bytes[range[0]..range[1]]);
            }
            let answers = whole.take_answers();
            prop_assert_eq!(shown(&whole), shown(&cut));
            prop_assert_eq!(&answers, &cut.take_answers());
            let mut bytewise = Screen::new(rows, columns);
            for byte in &bytes {
                bytewise.feed(&[*byte]);
            }
            prop_assert_eq!(shown(&whole), shown(&bytewise));
            prop_assert_eq!(answers, bytewise.take_answers());
            Ok(())
        },
    );
}

#[test]
fn a_restored_screen_is_the_same_screen() {
    let resized = prop::option::of(size());
    fuzz(
        2_000,
        &(size(), written(), resized, written()),
        |(size, bytes, resized, more)| {
            let (mut rows, mut columns) = size;
            let mut screen = Screen::new(rows, columns);
            screen.feed(&bytes);
            if let Some(size) = resized {
                (rows, columns) = size;
                screen.resize(rows, columns);
                screen.feed(&more);
            }
            let mut again = Screen::new(rows, columns);
            again.feed(&screen.restore());
            prop_assert_eq!(shown(&screen), shown(&again));
            prop_assert!(again.take_answers().is_empty());
            Ok(())
        },
    );
}

/// Whether a character without a width comes next. It belongs to the one before, which a restored screen
/// cannot tell from others.
fn goes_on_with_a_mark(bytes: &[u8], more: &[u8]) -> bool {
    let mut tail = bytes
        .utf8_chunks()
        .last()
        .map_or(&[][..], |chunk| chunk.invalid())
        .to_vec();
    tail.extend_from_slice(more);
    let next = String::from_utf8_lossy(&tail).chars().next();
    next.is_some_and(|next| next.width() == Some(0))
}

#[test]
fn what_follows_a_restored_screen_does_the_same() {
    fuzz(
        2_000,
        &(size(), written(), written()),
        |((rows, columns), bytes, more)| {
            prop_assume!(!goes_on_with_a_mark(&bytes, &more));
            let mut screen = Screen::new(rows, columns);
            screen.feed(&bytes);
            let mut again = Screen::new(rows, columns);
            again.feed(&screen.restore());
            screen.take_answers();
            screen.feed(&more);
            again.feed(&more);
            prop_assert_eq!(shown(&screen), shown(&again));
            prop_assert_eq!(screen.take_answers(), again.take_answers());
            Ok(())
        },
    );
}

#[test]
fn quiet_output_asks_nothing_and_shows_the_same() {
    fuzz(2_000, &(written(), cuts()), |(mut bytes, cuts)| {
        // Ends what is unfinished, of which nothing has passed yet.
        bytes.extend_from_slice(b"\x18\x1b\\");
        let quiet = Quiet::new().filter(&bytes);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut filter = Quiet::new();
        let ranges = cuts.windows(2).map(|range| &bytes[range[0]..range[1]]);
        let cut: Vec<u8> = ranges.flat_map(|range| filter.filter(range)).collect();
        prop_assert_eq!(
            quiet.escape_ascii().to_string(),
            cut.escape_ascii().to_string()
        );
        let again = Quiet::new().filter(&quiet);
        prop_assert_eq!(
            quiet.escape_ascii().to_string(),
            again.escape_ascii().to_string()
        );

        let mut screen = Screen::new(5, 12);
        screen.feed(&bytes);
        let mut quiet_screen = Screen::new(5, 12);
        quiet_screen.feed(&quiet);
        prop_assert!(quiet_screen.take_answers().is_empty());
        let without_titles = |screen: &Screen| {
            let shown = Quiet::new().filter(&screen.restore());
            shown.escape_ascii().to_string()
        };
        prop_assert_eq!(
            without_titles(&screen),
            without_titles(&quiet_screen),
            "{}",
            bytes.escape_ascii()
        );
        Ok(())
    });
}
