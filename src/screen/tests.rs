//! What a screen keeps, one part at a time. That a restored screen is the same screen, whatever came
//! before, is a fuzz target; how it looks is judged by tmux in `tests/screen`.

use super::Screen;

fn screen(bytes: &[u8]) -> Screen {
    let mut screen = Screen::new(10, 20);
    screen.feed(bytes);
    screen
}

pub(in crate::screen) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What turns on something, and what takes it back.
const TURNED_ON: [(&str, &str); 24] = [
    ("\x1b[?1000h", "\x1b[?1000l"),
    ("\x1b[?1002h", "\x1b[?1002l"),
    ("\x1b[?1003h", "\x1b[?1003l"),
    ("\x1b[?1006h", "\x1b[?1006l"),
    ("\x1b[?1015h", "\x1b[?1015l"),
    ("\x1b[?1004h", "\x1b[?1004l"),
    ("\x1b[?2004h", "\x1b[?2004l"),
    ("\x1b[?2026h", "\x1b[?2026l"),
    ("\x1b[?2048h", "\x1b[?2048l"),
    ("\x1b[?8l", "\x1b[?8h"),
    ("\x1b=", "\x1b>"),
    ("\x1b[4 q", "\x1b[0 q"),
    ("\x1b[>4;2m", "\x1b[>4m"),
    ("\x1b[>5u", "\x1b[<1u"),
    ("\x1b[=3u", "\x1b[=0u"),
    ("\x1b[22;2t", "\x1b[23;2t"),
    ("\x1b[?1h", "\x1b[?1l"),
    ("\x1b[?7l", "\x1b[?7h"),
    ("\x1b[?25l", "\x1b[?25h"),
    ("\x1b[4h", "\x1b[4l"),
    ("\x1b[20h", "\x1b[20l"),
    ("\x1b(0", "\x1b(B"),
    ("\x1b[2;5r", "\x1b[r"),
    ("\x1b[?1049h", "\x1b[?1049l"),
];

#[test]
fn what_was_turned_on_is_restored_and_undone() {
    for (on, off) in TURNED_ON {
        let screen = screen(on.as_bytes());
        let (restored, undone) = (text(&screen.restore()), text(&screen.undo()));
        assert!(restored.contains(on), "{on:?} is not in {restored:?}");
        assert!(undone.contains(off), "{off:?} is not in {undone:?}");
    }
}

#[test]
fn what_was_taken_back_by_the_program_is_neither_restored_nor_undone() {
    for (on, off) in TURNED_ON {
        let screen = screen(&[on, off].concat().into_bytes());
        let (restored, undone) = (text(&screen.restore()), text(&screen.undo()));
        assert!(!restored.contains(on), "{on:?} is in {restored:?}");
        assert_eq!(undone, "", "after {on:?} and {off:?}");
    }
}

#[test]
fn a_reset_takes_back_all_but_the_titles() {
    for (on, _) in TURNED_ON {
        let screen = screen(&[on, "\x1bc"].concat().into_bytes());
        let titles = if on == "\x1b[22;2t" { "\x1b[23;2t" } else { "" };
        assert_eq!(text(&screen.undo()), titles, "after {on:?}");
    }
}

#[test]
fn mouse_protocols_replace_one_another_and_the_last_encoding_counts() {
    let restored =
        text(&screen(b"\x1b[?1000h\x1b[?1003;1015;1006h\x1b[?1015l\x1b[?1015h").restore());
    assert!(
        restored.contains("\x1b[?1003h\x1b[?1006h\x1b[?1015h"),
        "{restored:?}"
    );
    assert!(!restored.contains("?1000"), "{restored:?}");
}

#[test]
fn a_sequence_that_died_halfway_does_not_swallow_what_is_undone() {
    let undone = text(&screen(b"\x1b[?2004h\x1b]0;half a title").undo());
    assert_eq!(undone, "\x1b\\\x1b[?2004l");
}

#[test]
fn positions_are_answered_as_they_were_then() {
    let mut screen = screen(b"ab\x1b[6n\r\n\x1b[6nx");
    assert_eq!(text(&screen.take_answers()), "\x1b[1;3R\x1b[2;1R");
    screen.feed(b"\x1b[3;8r\x1b[?6h\x1b[2;4H\x1b[6n");
    assert_eq!(text(&screen.take_answers()), "\x1b[2;4R", "in origin mode");
    screen.feed(b"\x1b[?6l\x1b[1;20Hx\x1b[6n");
    assert_eq!(
        text(&screen.take_answers()),
        "\x1b[1;20R",
        "behind the last column"
    );
    screen.feed(b"\x1b[5n\x1b[c\x1b[0c\x1bZ");
    let attributes = "\x1b[?62;22c".repeat(3);
    assert_eq!(text(&screen.take_answers()), format!("\x1b[0n{attributes}"));
}

#[test]
fn what_is_no_question_is_not_answered() {
    let mut screen =
        screen(b"\x1b]0;[6n\x07\x1b[>c\x1b[=c\x1b[1c\x1b[?6n\x1b[6\x18n\x1b[6?n\x1b[6 n");
    assert_eq!(text(&screen.take_answers()), "");
}

#[test]
fn answers_are_bounded() {
    let mut screen = screen(&b"\x1b[6n".repeat(100_000));
    let answers = screen.take_answers();
    assert!(
        (4_000..=4_096).contains(&answers.len()),
        "{}",
        answers.len()
    );
    assert!(text(&answers).ends_with('R'), "the last one is whole");
    screen.feed(b"\x1b[6n");
    assert_eq!(text(&screen.take_answers()), "\x1b[1;1R");
}

#[test]
fn nothing_that_a_program_repeats_makes_the_screen_larger() {
    let floods = [
        "\x1b[>1u",
        "\x1b[22;0t",
        "\x1b]0;x",
        "\x1b[?1006h",
        "\x1b[1;",
        "\x1b[>1m",
        "\x1bP",
        "\x1b7",
    ];
    for flood in floods {
        let screen = screen(&flood.repeat(20_000).into_bytes());
        assert!(screen.restore().len() < 10_000, "{flood:?}");
    }
    for begun in ["\x1b[", "\x1b ", "\x1b]2;", "\x1bP", "\x1b_"] {
        let screen = screen(&[begun, &"1;".repeat(20_000)].concat().into_bytes());
        assert!(screen.restore().len() < 5_000, "{begun:?}");
    }
    let title = [&b"\x1b]2;"[..], "é".repeat(1_500).as_bytes(), b"\x07"].concat();
    let restored = text(&screen(&title).restore());
    assert_eq!(restored.matches('é').count(), 512);
}

#[test]
fn a_flood_of_repetitions_ends_with_the_line() {
    let mut screen = screen(b"a\x1b[65535b\x1b[6n");
    assert_eq!(text(&screen.take_answers()), "\x1b[2;2R");
}

#[test]
fn attributes_are_written_in_the_form_that_every_terminal_reads() {
    let restored = text(&screen(b"\x1b[38:5:208;48:2::1:2:3;58;5;1;21mx").restore());
    assert!(
        restored.contains("\x1b[0;4;38;5;208;48;2;1;2;3mx"),
        "{restored:?}"
    );
}

#[test]
fn blanks_behind_the_text_are_not_written() {
    assert_eq!(
        text(&screen(b"a\x1b[3;3Hb\x1b[1;1H").restore()),
        "a\r\n\r\n  b\x1b[1;1H\x1b[0m"
    );
}

#[test]
fn long_runs_of_lines_leave_the_same_screen_as_line_by_line() {
    let lines: String = (0..1_000)
        .map(|line| format!("{line} of 1000\t日本\r\n"))
        .collect();
    for before in [
        "",
        "\x1b[3;8r\x1b[5;5H",
        "\x1b[3;8r\x1b[10;1H",
        "\x1b[44;7m",
        "\x1b[?7l\x1b[4h",
        "\x1b[20h",
    ] {
        let mut at_once = screen(before.as_bytes());
        at_once.feed(lines.as_bytes());
        let mut apart = screen(before.as_bytes());
        lines
            .as_bytes()
            .chunks(7)
            .for_each(|chunk| apart.feed(chunk));
        assert_eq!(
            text(&at_once.restore()),
            text(&apart.restore()),
            "after {before:?}"
        );
    }
}

#[test]
fn a_thousand_by_a_thousand_is_kept_and_restored() {
    let mut screen = Screen::new(1_000, 1_000);
    screen.feed(&b"0123456789".repeat(5_000));
    let mut again = Screen::new(1_000, 1_000);
    again.feed(&screen.restore());
    assert_eq!(screen.restore(), again.restore());
    screen.resize(1, 1);
    screen.resize(1_000, 1_000);
    assert!(screen.restore().len() < 10_000);
}

#[test]
fn marks_stay_with_their_characters() {
    let texts = [
        "e\u{301}x",
        "\u{65e5}\u{302}x",
        "a\u{301}\u{302}\u{303}x",
        "\u{2764}\u{fe0f}x",
        "क\u{94d}x",
    ];
    for written in texts {
        let mut screen = screen(format!("{written}\x1b[6n\r").as_bytes());
        let restored = text(&screen.restore());
        assert!(restored.starts_with(written), "{written:?} in {restored:?}");
        let column = if written.starts_with('\u{65e5}') {
            4
        } else {
            3
        };
        assert_eq!(
            text(&screen.take_answers()),
            format!("\x1b[1;{column}R"),
            "{written:?}"
        );
    }
    let drawn = text(&screen("\x1b(0q\u{302}".as_bytes()).restore());
    assert!(drawn.starts_with("─\u{302}"), "{drawn:?}");
    let at_the_edge = format!("{}e\u{301}", "-".repeat(19));
    let restored = text(&screen(format!("{at_the_edge}x").as_bytes()).restore());
    assert!(
        restored.starts_with(&format!("{at_the_edge}x")),
        "{restored:?}"
    );
}

#[test]
fn marks_without_a_character_are_left_out() {
    for written in [
        "\u{301}",
        "a\r\u{301}",
        "a\x1b[m\u{301}",
        "\u{100000}",
        "\u{3f000}",
    ] {
        let restored = text(&screen(written.as_bytes()).restore());
        let unknown = |character| matches!(character, '\u{301}' | '\u{100000}' | '\u{3f000}');
        assert!(!restored.contains(unknown), "{written:?} in {restored:?}");
    }
    let many = format!("a{}b", "\u{301}".repeat(1_000));
    assert!(screen(many.as_bytes()).restore().len() < 60);
}

#[test]
fn marks_find_room_again_when_others_have_left_the_screen() {
    let mut screen = Screen::new(4, 20);
    for base in '\u{4e00}'..'\u{6000}' {
        screen.feed(format!("{base}\u{302}\r\n").as_bytes());
    }
    let bases: String = ('a'..='z').map(|base| format!("{base}\u{302}")).collect();
    screen.feed(bases.as_bytes());
    let restored = text(&screen.restore());
    assert_eq!(restored.matches('\u{302}').count(), 28, "{restored:?}");
}
