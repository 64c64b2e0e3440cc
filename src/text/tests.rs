use proptest::prelude::*;

use super::*;

fn seen(c: char) -> bool {
    !is_hidden(c)
}

fn text() -> impl Strategy<Value = String> {
    let hidden = prop::sample::select(
        "\n\r\t\0\x07\x1b\x7f\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200f}\u{2028}\u{2029}\u{202e}\u{2066}\u{feff}\u{e0041}\\\"é"
            .chars()
            .collect::<Vec<_>>(),
    );
    let any = prop_oneof![hidden, any::<char>(), proptest::char::range(' ', '~')];
    prop::collection::vec(any, 0..300).prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #[test]
    fn what_is_shown_is_on_one_line_seen_and_bounded(text in text(), max in 64_usize..400) {
        let shown = escaped(&text, max).to_string();
        prop_assert!(shown.len() <= max, "{} > {max}", shown.len());
        prop_assert!(shown.chars().all(seen), "{shown:?}");
        prop_assert_eq!(escaped(&shown, max).to_string(), shown.as_str(), "escaped twice");
        let plain = ascii(&text, max).to_string();
        prop_assert!(plain.len() <= max && plain.bytes().all(|b| (32..127).contains(&b)));
        // Written character by character, the result is the same.
        let pieces = Pieces(&text);
        prop_assert_eq!(escaped(pieces, max).to_string(), shown);
    }

    #[test]
    fn json_means_the_same_and_is_seen(text in text()) {
        let value = serde_json::json!({ text.as_str(): [text.as_str()] });
        let line = value.to_string();
        let line = json(&line);
        prop_assert!(line.chars().all(seen), "{line:?}");
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }

    #[test]
    fn a_log_line_stays_one(text in text()) {
        prop_assert!(log_line(&text, false).chars().all(seen));
        let coloured = log_line(&text, true);
        prop_assert!(coloured.chars().all(|c| seen(c) || c == '\x1b'));
    }
}

struct Pieces<'a>(&'a str);

impl Display for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| f.write_char(c))
    }
}

#[test]
fn all_that_the_standard_library_calls_unprintable_in_these_blocks_is_hidden() {
    // Blocks without letters of any script: controls, General Punctuation, specials, tags.
    for code in (0..0xa0_u32)
        .chain(0x2000..0x2070)
        .chain(0xfff0..0xfffc)
        .chain(0xe0000..0xe0080)
    {
        let Some(c) = char::from_u32(code) else {
            continue;
        };
        let unprintable = c.escape_debug().len() > 1 && !"\\\"'".contains(c);
        // Spaces of other widths are harmless.
        let space = c.is_whitespace() && !c.is_control() && !matches!(code, 0x2028 | 0x2029);
        if unprintable && !space {
            assert!(is_hidden(c), "{code:x}");
        }
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let long = "x".repeat(3 << 20);
    let shown = escaped(&long, 100).to_string();
    let (head, note) = shown.split_once("... ").unwrap();
    assert!(head.len() >= 60 && head.bytes().all(|b| b == b'x'));
    assert_eq!(note, format!("({} bytes more)", long.len() - head.len()));
    assert_eq!(
        escaped("a\n\u{202e}\u{9b}é", 64).to_string(),
        "a\\n\\u{202e}\\u{9b}é"
    );
    assert_eq!(ascii("é", 64).to_string(), "\\u{e9}");
    assert_eq!(escaped("x".repeat(64), 64).to_string(), "x".repeat(64));
    assert_eq!(cut("\n", 64).to_string(), "\n");
}
