//! What a program may write, by the part of a terminal that it is about.

pub(crate) const SCRIPTS: [(&str, &str); 28] = [
    ("text", "one\r\ntwo\r\n\r\n  three  \r\n"),
    (
        "colours",
        "\x1b[31mred \x1b[1;44mbold on blue\x1b[0m \x1b[38;5;208morange\x1b[48;2;1;2;3mrgb",
    ),
    (
        "bright colours",
        "\x1b[91;102mbright\x1b[39;49m \x1b[7minverse \x1b[2;3;4;5;9mall",
    ),
    (
        "colours with colons",
        "\x1b[38:5:99mviolet \x1b[48:2::9:8:7mrgb\x1b[0m none",
    ),
    (
        "underline colour is not a blink",
        "\x1b[58;5;1mplain \x1b[0mafter",
    ),
    (
        "many lines",
        "a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\nh\r\ni\r\nj\r\nk\r\nl\r\nm\r\nn\r\no\r\np\r\nq\
        \r\nr\r\ns\r\nt\r\nu\r\nv\r\nw\r\nx\r\ny\r\nz",
    ),
    (
        "line drawing",
        "\x1b(0lqqk\r\nx  x\r\nmqqj\x1b(B\r\nlqk \x1b)0\x0elqk\x0flqk\x1b(0",
    ),
    ("line drawing in G1 goes on", "\x1b)0\x0elqk"),
    (
        "alternate screen",
        "before\r\n\x1b[?1049h\x1b[5;5Hinside\x1b[31m",
    ),
    (
        "alternate screen and back",
        "before\r\n\x1b[32m\x1b7\x1b[?1049h\x1b[5;5H\x1b[33minside\x1b[?1049lafter",
    ),
    (
        "alternate screen with a saved cursor",
        "main\x1b[4;4H\x1b[?1049h\x1b[9;9H\x1b[35m\x1b7\x1b[2;2Hhere",
    ),
    (
        "margins",
        "top\x1b[3;10r\x1b[10;1Ha\r\nb\r\nc\r\nd\x1b[5;5H",
    ),
    (
        "margins and origin mode",
        "\x1b[3;10r\x1b[?6h\x1b[2;2Hinside\x1b[20;1Hlast",
    ),
    ("wide characters", "日本語 and 한국어\r\n\x1b[2;79H日本"),
    (
        "characters with marks",
        "e\u{301}a\u{308} n\u{303}\r\n\x1b[31mo\u{302}\x1b[0m end\x1b[5;80He\u{301}",
    ),
    (
        "wrapped line",
        "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234\r\nend",
    ),
    (
        "wrap pending",
        "\x1b[7;1H01234567890123456789012345678901234567890123456789012345678901234567890123456789",
    ),
    ("no wrapping", "\x1b[?7l\x1b[1;70H0123456789abcdef"),
    ("tabs", "\x1b[3g\x1b[1;5H\x1bH\x1b[1;30H\x1bH\ra\tb\tc\td"),
    (
        "insert and delete",
        "abcdef\x1b[1;3H\x1b[2@\x1b[1;8H\x1b[P\r\nx\r\ny\r\nz\x1b[2;1H\x1b[L\x1b[4;1H\x1b[M\x1b[4h\x1b[1;1Hins",
    ),
    (
        "erased with a colour",
        "\x1b[44m\x1b[2J\x1b[5;5H\x1b[42m\x1b[K\x1b[10;10H\x1b[1K\x1b[5X",
    ),
    (
        "erased while underlined",
        "\x1b[4;9mab\x1b[K\r\n\x1b[7mcd\x1b[J\x1b[24;1He\r\nf\x1b[3;1H\x1b[L",
    ),
    (
        "scrolled while inverse",
        "\x1b[7m\x1b[24;70H0123456789abcdefghi\x1b[0m after",
    ),
    ("alternate screen while inverse", "\x1b[7mx\x1b[?1049hy"),
    ("repeated", "ab\x1b[10b\x1b[31m.\x1b[20b"),
    ("saved cursor", "\x1b[5;6H\x1b[36m\x1b7\x1b[0m\x1b[1;1Hx"),
    (
        "keys and mouse",
        "\x1b[?1h\x1b=\x1b[?1002;1006;2004;1004h\x1b[?25l\x1b[4 q\x1b[>4;2m\x1b[>1u",
    ),
    ("title", "\x1b]2;a title\x1b\\\x1b]0;another\x07text"),
];
