//! What the filter for recorded output leaves out, and what it passes.

use super::Quiet;
use crate::screen::tests::text;

#[test]
fn quiet_leaves_out_questions_clipboard_and_titles() {
    let left_out = [
        "\x1b[c",
        "\x1b[0c",
        "\x1b[>c",
        "\x1b[=c",
        "\x1bZ",
        "\x05",
        "\x1b[5n",
        "\x1b[6n",
        "\x1b[?6n",
        "\x1b[?2026$p",
        "\x1b[4$p",
        "\x1bP$qm\x1b\\",
        "\x1b[>q",
        "\x1b[>0q",
        "\x1b]10;?\x07",
        "\x1b]11;?\x1b\\",
        "\x1b]4;1;?\x07",
        "\x1bP+q544e\x1b\\",
        "\x1b[?u",
        "\x1b]52;c;aGVsbG8=\x07",
        "\x1b]52;c;?\x07",
        "\x1b]052;c;aGk=\x07",
        "\x1b]0;title\x07",
        "\x1b]1;t\x07",
        "\x1b]2;t\x1b\\",
        "\x1b];title\x07",
        "\x1bktitle\x1b\\",
        "\x1b[14t",
        "\x1b[18t",
        "\x1b[21t",
        "\x1b[22;0t",
        "\x1b[23;0t",
        "\x1b[?4m",
        "\x1b[1;1;1;1;1;1*y",
        "\u{9b}6n",
        "\u{9d}0;title\u{9c}",
        "\x1b[6\x00n",
        "\x1b[006n",
        "\x1b\x7f[6n",
        "\x1b_Gi=1,a=q;AAAA\x1b\\",
        "\x1bPtmux;\x1b\x1b]52;c;aGk=\x07\x1b\\",
    ];
    for sequence in left_out {
        let bytes = format!("before{sequence}after");
        let quiet = text(&Quiet::new().filter(bytes.as_bytes()));
        let shown: String = quiet
            .chars()
            .filter(|character| !"\x1b\\\0".contains(*character))
            .collect();
        assert_eq!(shown, "beforeafter", "{sequence:?}");
    }
}

#[test]
fn quiet_passes_all_else_byte_for_byte_however_it_is_cut() {
    let passed = "text \r\n\t日本 \x1b[1;38:5:9m\x1b[?2004h\x1b[>4;2m\x1b[>4n\x1b[>1u\x1b[<u\x1b[8;24;80t\x1b(0\x1b7\x1bc\
        \x1b]8;;http://example.com\x1b\\\x1b]4;1;rgb:00/00/00\x07\x1b]10;#ffffff\x07\x1b]133;A\x07\x1b]7;file:///\x07\
        \x1bPq#0~\x1b\\\x1b_Gf=24;AAAA\x1b\\\x1b[6\x18n\x1b[12\x1b[m\x07\x08\x1b[!p\x1b[4 q\u{85}é";
    assert_eq!(text(&Quiet::new().filter(passed.as_bytes())), passed);
    for size in 1..20 {
        let mut quiet = Quiet::new();
        let pieces = passed
            .as_bytes()
            .chunks(size)
            .flat_map(|chunk| quiet.filter(chunk));
        assert_eq!(
            text(&pieces.collect::<Vec<u8>>()),
            passed,
            "in pieces of {size}"
        );
    }
}

#[test]
fn quiet_holds_no_more_of_a_long_string_than_its_beginning() {
    let mut quiet = Quiet::new();
    let image = [b"\x1bPq".to_vec(), vec![b'~'; 1 << 20]].concat();
    assert_eq!(
        quiet.filter(&image),
        image,
        "an image passes before its end"
    );
    assert_eq!(text(&quiet.filter(b"\x1b\\after")), "\x1b\\after");
    let copied = [b"\x1b]52;c;".to_vec(), vec![b'A'; 1 << 20]].concat();
    assert_eq!(text(&quiet.filter(&copied)), "");
    assert_eq!(text(&quiet.filter(b"\x07after")), "after");
    let colours = [b"\x1b]4;".to_vec(), b"1;#ffffff;".repeat(1_000)].concat();
    assert_eq!(
        text(&quiet.filter(&colours)),
        "",
        "a question may still come"
    );
    assert_eq!(text(&quiet.filter(b"2;?\x07after")), "after");
}

#[test]
fn titles_pass_where_the_output_is_shown_as_it_comes() {
    let titles = [
        "\x1b]0;title\x07",
        "\x1b]2;title\x1b\\",
        "\x1b]ltitle\x1b\\",
        "\x1bktitle\x1b\\",
        "\x1b[22;2t",
        "\x1b[23;0t",
    ];
    for sequence in titles {
        let shown = text(&Quiet::with_titles().filter(sequence.as_bytes()));
        assert_eq!(shown, sequence);
        assert_eq!(text(&Quiet::new().filter(sequence.as_bytes())), "");
    }
    // These are not shown, but answered, or change what is not the window's.
    for sequence in ["\x1b[21t", "\x1b]52;c;aGk=\x07", "\x1b[c"] {
        let shown = text(&Quiet::with_titles().filter(sequence.as_bytes()));
        assert_eq!(shown, "", "{sequence:?}");
    }
}

#[test]
fn quiet_tells_that_it_holds_the_beginning_of_a_sequence() {
    let mut quiet = Quiet::with_titles();
    assert!(!quiet.is_holding());
    assert_eq!(text(&quiet.filter(b"text\x1b[3")), "text");
    assert!(quiet.is_holding());
    assert_eq!(text(&quiet.filter(b"1mred")), "\x1b[31mred");
    assert!(!quiet.is_holding());
}
