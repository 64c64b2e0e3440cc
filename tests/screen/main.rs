//! The screen of a terminal against tmux: a pane that was given all bytes of a program shows the same
//! as one that was given the restored screen.
//!
//! Needs tmux; without it the tests say that they are skipped. `tests/system/run` installs it.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod captured;
mod scripts;
mod tmux;

use evloopd::screen::Screen;

use tmux::Tmux;

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// What programs wrote, recorded in terminals of 24 by 80: an editor with colours and a split
/// window, a pager, a monitor, a shell's line editor, a terminal multiplexer.
const RECORDINGS: [(&str, &[u8]); 5] = [
    ("vim", include_bytes!("vim.bytes")),
    ("less", include_bytes!("less.bytes")),
    ("htop", include_bytes!("htop.bytes")),
    ("bash", include_bytes!("bash.bytes")),
    ("tmux", include_bytes!("tmux.bytes")),
];

/// Written to both panes at last, it shows what was not seen yet: the pen, the character sets, the
/// tab stops, the margins, the saved cursors, the main screen.
const PROBES: [&[u8]; 3] = [b"qx", b"\t1\t2\r\n\n\n3", b"\x1b8q4"];

/// Comes last where the alternate screen is shown.
const LEAVE: &[u8] = b"\x1b[?1049l\x0f5\r\n6";

/// Compares the panes after `bytes`, and after the probes that follow.
fn judge(tmux: &Tmux, what: &str, bytes: &[u8]) {
    let mut screen = Screen::new(ROWS, COLUMNS);
    screen.feed(bytes);
    let all = tmux.pane(ROWS, COLUMNS);
    let restored = tmux.pane(ROWS, COLUMNS);
    all.write(bytes);
    restored.write(&screen.restore());
    assert_same(&all.shows(), &restored.shows(), what);
    let alternate = all.modes().contains(&"alternate_on=1".to_owned());
    let frame = frame();
    let probes = PROBES.into_iter().chain([frame.as_bytes()]);
    let last = [LEAVE, frame.as_bytes()];
    let last = last.into_iter().filter(|_| alternate);
    for probe in probes.chain(last) {
        all.write(probe);
        restored.write(probe);
        let what = format!("{what}, then {}", probe.escape_ascii());
        assert_same(&all.shows(), &restored.shows(), &what);
    }
}

/// Marks the end of each line, so that tmux captures the blanks before it.
fn frame() -> String {
    let lines = (1..=ROWS).map(|row| format!("\x1b[{row};{COLUMNS}H|"));
    format!("\x1b[?6l\x1b[m{}", lines.collect::<String>())
}

fn assert_same(all: &[String], restored: &[String], what: &str) {
    for (all, restored) in all.iter().zip(restored) {
        assert_eq!(all, restored, "{what}");
    }
    assert_eq!(all.len(), restored.len(), "{what}");
}

#[test]
fn scripts_are_restored_as_tmux_shows_them() {
    let Some(tmux) = Tmux::start() else {
        return;
    };
    for (what, script) in scripts::SCRIPTS {
        judge(&tmux, what, script.as_bytes());
    }
}

#[test]
fn lines_that_go_on_in_the_next_still_do() {
    let Some(tmux) = Tmux::start() else {
        return;
    };
    let script = "\x1b[1;75Hfrom here to the next\r\nand\x1b[8;79Hab\x1b[1;31m c";
    let mut screen = Screen::new(ROWS, COLUMNS);
    screen.feed(script.as_bytes());
    let all = tmux.pane(ROWS, COLUMNS);
    let restored = tmux.pane(ROWS, COLUMNS);
    all.write(script.as_bytes());
    restored.write(&screen.restore());
    assert_same(&all.joined(), &restored.joined(), script);
}

#[test]
fn programs_are_restored_as_tmux_shows_them_wherever_they_are_cut() {
    const PARTS: usize = 7;
    let Some(tmux) = Tmux::start() else {
        return;
    };
    for (what, recording) in RECORDINGS {
        for part in 1..=PARTS {
            let cut = recording.len() * part / PARTS;
            let bytes = &recording[..cut];
            judge(&tmux, &format!("{what}, the first {cut} bytes"), bytes);
        }
    }
}

#[test]
fn undoing_leaves_no_mode_on() {
    let Some(tmux) = Tmux::start() else {
        return;
    };
    let fresh = tmux.pane(ROWS, COLUMNS);
    let modes = fresh.modes();
    let scripts = scripts::SCRIPTS
        .iter()
        .map(|(what, script)| (*what, script.as_bytes()));
    for (what, bytes) in scripts.chain(RECORDINGS) {
        for cut in [bytes.len() / 3, bytes.len() / 2, bytes.len()] {
            let mut screen = Screen::new(ROWS, COLUMNS);
            screen.feed(&bytes[..cut]);
            let pane = tmux.pane(ROWS, COLUMNS);
            pane.write(&bytes[..cut]);
            pane.write(&screen.undo());
            assert_eq!(modes, pane.modes(), "{what}, the first {cut} bytes");
        }
    }
}
