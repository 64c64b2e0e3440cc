//! `backends`: prints the backends by which loops can wait on this host, and the capabilities of each.

use std::fmt::Write as _;

use super::failure::{Failure, Outcome, USAGE};
use super::output;
use super::session::{Session, answer};
use super::style::{BAD, DIM, GOOD, NAME, PLAIN};
use super::table::{Table, cell, plain};
use crate::proto::{Backend, Capability, DocumentedLoop, ListBackendsRequest, Survives};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl backends --json | jq 'select(.available) | .name'
  evloopctl backends --markdown";

/// Options of `backends`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print only the capabilities, as the Markdown table of the README
    #[arg(long)]
    markdown: bool,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    // `conflicts_with` of clap overlooks a global option before the verb.
    if session.json && args.markdown {
        return Err(Failure::plain("--markdown cannot be used with --json").code(USAGE));
    }
    let request = ListBackendsRequest {};
    let list = answer(session.policies().list_backends(request).await)?;
    let (backends, documented) = (list.backends, list.documented_loops);
    if session.json {
        output::messages(&backends)?;
        output::messages(&documented)?;
        return Ok(0);
    }
    let matrix = Matrix::new(&backends, &documented);
    if args.markdown {
        output::print(&matrix.markdown())?;
        return Ok(0);
    }
    let mut table = Table::new(&["BACKEND", "CLASS", "AVAILABLE", "WHY NOT"]);
    for backend in &backends {
        let (available, style) = yes_or_no(backend.available);
        table.row([
            cell(&backend.name, NAME),
            plain(&backend.loop_class),
            cell(&available, style),
            cell(&backend.unavailable_reason, DIM),
        ]);
    }
    table.print()?;
    output::line("")?;
    matrix.print()?;
    Ok(0)
}

const fn yes_or_no(yes: bool) -> (&'static str, anstyle::Style) {
    if yes { ("yes", GOOD) } else { ("no", BAD) }
}

/// A table of capabilities: of the backends, and beside them of asyncio's event loops as Python documents them.
struct Matrix<'a> {
    /// The heads of the columns, and the capabilities of each column.
    columns: Vec<(String, &'a [Capability])>,
    /// The names of the capabilities.
    rows: Vec<&'a str>,
}

impl<'a> Matrix<'a> {
    fn new(backends: &'a [Backend], documented: &'a [DocumentedLoop]) -> Self {
        let ours = backends
            .iter()
            .filter(|backend| !backend.capabilities.is_empty())
            .map(|backend| (backend.name.clone(), &*backend.capabilities));
        let theirs = documented
            .iter()
            .map(|documented| (title(documented), &*documented.capabilities));
        let columns: Vec<_> = ours.chain(theirs).collect();
        let mut rows: Vec<&str> = Vec::new();
        for capability in columns.iter().flat_map(|(_, can)| can.iter()) {
            if !rows.contains(&capability.name.as_str()) {
                rows.push(&capability.name);
            }
        }
        Self { columns, rows }
    }

    fn find(can: &'a [Capability], name: &str) -> Option<&'a Capability> {
        can.iter().find(|capability| capability.name == name)
    }

    /// Returns each reason why a capability is missing once, with the heads of the columns to which it applies.
    fn reasons(&self) -> Vec<(String, String)> {
        let mut reasons: Vec<(String, String)> = Vec::new();
        for row in &self.rows {
            for (column, can) in &self.columns {
                let Some(capability) = Self::find(can, row).filter(|c| !c.reason.is_empty()) else {
                    continue;
                };
                let text = format!("{row}: {}", capability.reason);
                match reasons.iter_mut().find(|(known, _)| *known == text) {
                    Some((_, columns)) => *columns = format!("{columns}, {column}"),
                    None => reasons.push((text, column.clone())),
                }
            }
        }
        reasons
    }

    /// Returns what survives a crash of the daemon on every backend.
    fn survival(&self) -> String {
        let crash = |c: &Capability| c.survives() == Survives::Crash;
        let survives = |row: &&&str| {
            let mut ours = self.columns.iter().filter_map(|(_, can)| {
                let capability = Self::find(can, row)?;
                (capability.survives() != Survives::Unspecified).then_some(capability)
            });
            ours.next().is_some_and(crash) && ours.all(crash)
        };
        let rows: Vec<&str> = self.rows.iter().filter(survives).copied().collect();
        format!("A crash of the daemon is survived by: {}", rows.join(", "))
    }

    fn print(&self) -> Result<(), Failure> {
        let heads = self.columns.iter().map(|(head, _)| head.to_uppercase());
        let heads: Vec<_> = ["CAN".to_owned()].into_iter().chain(heads).collect();
        let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            let cells = self.columns.iter().map(|(_, can)| {
                let capability = Self::find(can, row);
                let style = match capability {
                    None => DIM,
                    Some(c) if c.supported && c.limit > 0 => PLAIN,
                    Some(c) => yes_or_no(c.supported).1,
                };
                cell(&word(capability), style)
            });
            let cells: Vec<_> = [plain(row)].into_iter().chain(cells).collect();
            table.row(cells);
        }
        table.print()?;
        output::line("")?;
        let mut table = Table::new(&["WHY", "WHERE"]);
        for (reason, columns) in self.reasons() {
            table.row([plain(&reason), cell(&columns, DIM)]);
        }
        table.print()?;
        output::line("")?;
        output::line(&self.survival())
    }

    fn markdown(&self) -> String {
        let mut text = String::from("| |");
        for (head, _) in &self.columns {
            let _ = write!(text, " {head} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(self.columns.len()));
        for row in &self.rows {
            let _ = write!(text, "\n| `{row}` |");
            for (_, can) in &self.columns {
                let _ = write!(text, " {} |", word(Self::find(can, row)));
            }
        }
        text.push_str("\n\n");
        for (reason, columns) in self.reasons() {
            let _ = writeln!(text, "- {reason} ({columns})");
        }
        let _ = writeln!(text, "- {}", self.survival());
        text
    }
}

fn title(documented: &DocumentedLoop) -> String {
    let class = documented.name.to_lowercase();
    let class = class.strip_suffix("eventloop").unwrap_or(&class);
    format!("asyncio {} {class}", documented.platform)
}

fn word(capability: Option<&Capability>) -> String {
    match capability {
        None => String::new(),
        Some(c) if c.supported && c.limit > 0 => c.limit.to_string(),
        Some(c) => yes_or_no(c.supported).0.to_owned(),
    }
}
