//! `man`: makes manual pages from the texts of `--help`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;

use super::failure::{EXIT_CODES, Failure, Outcome};
use super::output;
use crate::daemon::Arguments;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl man | man -l -
  evloopctl man --dir ~/.local/share/man

With --dir, all pages are written: evloopctl(1) and a page for each of its verbs to DIR/man1/, \
evloopd(8) to DIR/man8/.";

const FILES: &str = ".SH FILES
.TP
$XDG_RUNTIME_DIR/evloopd/evloopd.sock
Socket of a user's daemon.
.TP
/run/evloopd/evloopd.sock
Socket of the system's daemon.
.TP
~/.config/evloopd/evloopd.toml, /etc/evloopd/evloopd.toml
Configuration of a user's daemon, and of the system's.
";

const ENVIRONMENT: &str = ".SH ENVIRONMENT
.TP
EVLOOPD_SOCKET
The daemon's socket to which evloopctl connects.
.TP
XDG_RUNTIME_DIR
The directory of the socket of a user's daemon.
.TP
NO_COLOR
If it is set and not empty, output has no colours.
";

/// Options of `man`.
#[derive(Debug, Args)]
pub(super) struct ManPages {
    /// Write all pages below this directory [default: print evloopctl(1)]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Prints or writes the pages; `evloopctl` is its whole command line.
pub(super) fn run(args: &ManPages, evloopctl: Command) -> Outcome {
    let Some(dir) = &args.dir else {
        output::raw(&page(&full(evloopctl, "evloopctl"), "1")?)?;
        return Ok(0);
    };
    let mut pages = Vec::new();
    of_all(&full(evloopctl, "evloopctl"), &mut pages);
    for command in &pages {
        write(dir, command, "1")?;
    }
    write(dir, &full(Arguments::command(), "evloopd"), "8")?;
    Ok(0)
}

/// Returns the command with the options that clap adds, such as `--help`, and with its full name.
fn full(mut command: Command, name: &str) -> Command {
    command = command.disable_help_subcommand(true);
    command.build();
    command.display_name(name.to_owned())
}

/// Appends the command and all its subcommands to `pages`.
fn of_all(command: &Command, pages: &mut Vec<Command>) {
    pages.push(command.clone());
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let whole = format!("{name}-{}", verb.get_name());
        of_all(&verb.clone().display_name(whole), pages);
    }
}

fn write(dir: &Path, command: &Command, section: &str) -> Result<(), Failure> {
    let dir = dir.join(format!("man{section}"));
    let failed = |error: io::Error| Failure::new(dir.display(), error);
    fs::create_dir_all(&dir).map_err(failed)?;
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let file = dir.join(format!("{name}.{section}"));
    let text = page(command, section)?;
    fs::write(&file, text).map_err(|error| Failure::new(file.display(), error))
}

fn page(command: &Command, section: &str) -> Result<String, Failure> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("evloopd ", env!("CARGO_PKG_VERSION")))
        .manual("evloopd");
    let mut page = Vec::new();
    rendered(&man, command, &mut page).map_err(|error| Failure::new("man", error))?;
    let mut page = String::from_utf8(page).map_err(|error| Failure::new("man", error))?;
    let help = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let (examples, notes) = parts(&help);
    if !notes.is_empty() {
        let _ = writeln!(page, ".SH NOTES\n{}", paragraphs(notes));
    }
    if section == "1" {
        let _ = writeln!(page, ".SH \"EXIT STATUS\"\n{}", preformatted(EXIT_CODES));
    }
    page.push_str(FILES);
    page.push_str(ENVIRONMENT);
    let _ = writeln!(page, ".SH EXAMPLES\n{}", preformatted(examples));
    let others = match name {
        "evloopd" => ".BR evloopctl (1)",
        "evloopctl" => ".BR evloopd (8)",
        _ => ".BR evloopctl (1),\n.BR evloopd (8)",
    };
    let _ = writeln!(page, ".SH \"SEE ALSO\"\n{others}");
    Ok(page)
}

fn rendered(man: &Man, command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(page)?;
    }
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(page)?;
    }
    Ok(())
}

/// Splits the text after a verb's options: returns the lines of the examples, and the rest.
fn parts(help: &str) -> (&str, &str) {
    let (examples, notes) = help.split_once("\n\n").unwrap_or((help, ""));
    let examples = examples.split_once('\n').map_or("", |(_, lines)| lines);
    let notes = match notes.split_once(EXIT_CODES) {
        Some((before, _)) => before,
        None => notes,
    };
    (examples, notes.trim())
}

/// Returns text that roff does not fill: each line stays as it is.
fn preformatted(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(escaped).collect();
    format!(".nf\n{}\n.fi", lines.join("\n"))
}

fn paragraphs(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(escaped).collect();
    lines.join("\n").replace("\n\n", "\n.PP\n")
}

/// Escapes a line of text, so that roff finds no request and no escape in it.
fn escaped(line: &str) -> String {
    let line = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    if line.starts_with('.') {
        format!("\\&{line}")
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_with_examples() {
        let mut pages = Vec::new();
        of_all(
            &full(super::super::Args::command(), "evloopctl"),
            &mut pages,
        );
        assert!(pages.len() > 40, "{}", pages.len());
        for command in &pages {
            let text = page(command, "1").unwrap();
            let (_, examples) = text.split_once(".SH EXAMPLES\n.nf\n").unwrap();
            assert!(
                examples.starts_with("  ") && examples.contains("evloopctl"),
                "{text}"
            );
            assert!(
                text.contains(".SH \"EXIT STATUS\"\n.nf\nExit codes of run"),
                "{text}"
            );
        }
        let names: Vec<_> = pages.iter().filter_map(Command::get_display_name).collect();
        assert!(names.contains(&"evloopctl-run") && names.contains(&"evloopctl-loop-new"));
        let daemon = page(&full(Arguments::command(), "evloopd"), "8").unwrap();
        assert!(
            daemon.contains("\\-\\-check\\-config") && daemon.contains("EVLOOPD 8"),
            "{daemon}"
        );
    }

    #[test]
    fn text_is_no_request() {
        assert_eq!(escaped(".x 'a\\n' -b"), "\\&.x \\(aqa\\en\\(aq \\-b");
        assert_eq!(
            parts("Examples:\n  a\n  b\n\nMore.\n\nEnd."),
            ("  a\n  b", "More.\n\nEnd.")
        );
    }
}
