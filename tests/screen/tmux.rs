//! Panes of a tmux server of one's own.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::captured;

/// A server, which ends with it.
pub(crate) struct Tmux {
    directory: TempDir,
    panes: Cell<u32>,
}

/// What tmux says about a pane besides its text.
const MODES: &str = "alternate_on insert_flag wrap_flag origin_flag keypad_flag keypad_cursor_flag \
    cursor_flag mouse_any_flag mouse_all_flag mouse_button_flag mouse_standard_flag mouse_sgr_flag \
    mouse_utf8_flag scroll_region_upper scroll_region_lower pane_tabs";
const POSITIONS: &str = "cursor_x cursor_y pane_title";

/// Writes what is asked for to the terminal; when tmux has answered what comes behind it, it has
/// taken all.
const WRITER: &str = r#"
stty raw -echo
while [ -p "$1/$2.next" ]; do
    # A process that the tests just started may have held the other end open for a moment.
    read -r file < "$1/$2.next" || continue
    cat "$1/$file"
    printf '\033[6n'
    IFS= read -r -d R
    echo done > "$1/$2.done"
done
"#;

impl Tmux {
    /// `None` where there is no tmux.
    pub(crate) fn start() -> Option<Self> {
        let version = Command::new("tmux")
            .arg("-V")
            .stdout(Stdio::null())
            .status();
        if version.is_err() {
            eprintln!("SKIPPED for want of tmux");
            return None;
        }
        let tmux = Self {
            directory: tempfile::tempdir().expect("a directory"),
            panes: Cell::new(0),
        };
        let settings = "set -g status off\nset -s exit-empty off\nset -g history-limit 0\n\
            set -s extended-keys on\nset -g default-shell /bin/bash\nset -wg automatic-rename off\n";
        fs::write(tmux.path("settings"), settings).expect("settings");
        fs::write(tmux.path("writer"), WRITER).expect("a script");
        tmux.run(&["start-server"]);
        Some(tmux)
    }

    /// A new pane that fills its window.
    pub(crate) fn pane(&self, rows: u16, columns: u16) -> Pane<'_> {
        let number = self.panes.get();
        self.panes.set(number + 1);
        let name = format!("pane{number}");
        for end in ["next", "done"] {
            let fifo = self.path(&format!("{name}.{end}"));
            let made = Command::new("mkfifo").arg(fifo).status().expect("mkfifo");
            assert!(made.success());
        }
        let directory = self.directory.path().display();
        let command = format!("exec bash '{directory}/writer' '{directory}' {name}");
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let size = ["-x", columns.as_str(), "-y", rows.as_str()];
        self.run(&[&["new-session", "-d", "-s", &name][..], &size, &[&command]].concat());
        Pane { tmux: self, name }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.path("socket"))
            .arg("-f")
            .arg(self.path("settings"))
            .args(arguments)
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("tmux");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

/// A terminal in tmux.
pub(crate) struct Pane<'a> {
    tmux: &'a Tmux,
    name: String,
}

impl Pane<'_> {
    /// Writes to the terminal as a program would, and waits until tmux has taken it.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let file = format!("{}.bytes", self.name);
        fs::write(self.tmux.path(&file), bytes).expect("bytes");
        let end = |end: &str| self.tmux.path(&format!("{}.{end}", self.name));
        fs::write(end("next"), format!("{file}\n")).expect("the writer reads");
        wait(&end("done"));
    }

    /// The text of both buffers with its attributes, the cursor and the modes.
    pub(crate) fn shows(&self) -> Vec<String> {
        let values = [MODES, POSITIONS].map(|names| self.values(names)).concat();
        let captures = [&[][..], &["-a", "-q"]];
        let lines = captures.map(|options| self.capture(options)).concat();
        [values, lines].concat()
    }

    /// The text with lines joined that go on in the next.
    pub(crate) fn joined(&self) -> Vec<String> {
        self.capture(&["-J"])
    }

    fn capture(&self, options: &[&str]) -> Vec<String> {
        let command = ["capture-pane", "-p", "-e", "-N", "-t", &self.name];
        captured::lines(&self.tmux.run(&[&command[..], options].concat()))
    }

    pub(crate) fn modes(&self) -> Vec<String> {
        self.values(MODES)
    }

    fn values(&self, names: &str) -> Vec<String> {
        let format = names
            .split_whitespace()
            .map(|name| format!("{name}=#{{{name}}}"));
        let format = format.collect::<Vec<_>>().join("\n");
        let values = self
            .tmux
            .run(&["display-message", "-p", "-t", &self.name, &format]);
        values.lines().map(str::to_owned).collect()
    }
}

impl Drop for Pane<'_> {
    fn drop(&mut self) {
        self.tmux.run(&["kill-session", "-t", &self.name]);
    }
}

fn wait(fifo: &Path) {
    let said = fs::read_to_string(fifo).expect("the writer has written");
    assert_eq!(said, "done\n");
}
