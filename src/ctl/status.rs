//! `status`: prints the state of the daemon, its identity and its use of resources.

use clap::Args;
use serde_json::json;

use super::complete;
use super::failure::Outcome;
use super::holder::{Holder, is_held};
use super::json::{self, joined};
use super::lookup;
use super::losses::Losses;
use super::output;
use super::parse;
use super::render::signal_name;
use super::session::{Session, answer};
use super::show;
use super::style::{BAD, DIM, GOOD, NOTICE};
use super::table::Sheet;
use super::units::{counted, date_and_age, grouped, size};
use crate::proto::ended_life::How;
use crate::proto::{
    GetServerInfoRequest, GetServerInfoResponse, GetStatusRequest, GetStatusResponse, Keeper, Loop,
    LoopRef, LoopState, WatchRef, loop_ref,
};

/// The number of earlier lives that are shown; `--json` has all that are known.
const LIVES_SHOWN: usize = 3;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl status
  evloopctl status build          # the same as `evloopctl show build`
  evloopctl status --json | jq .open_watches";

/// Options of `status`.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Show these processes or watches instead of the daemon
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    names: Vec<WatchRef>,
}

pub(super) async fn run(session: &Session, args: Status) -> Outcome {
    if !args.names.is_empty() {
        return show::watches(session, &args.names).await;
    }
    let mut admin = session.admin();
    let info = answer(admin.get_server_info(GetServerInfoRequest {}).await)?;
    let status = answer(admin.get_status(GetStatusRequest {}).await)?;
    let loops = lookup::loops(session, false).await?;
    let losses = Losses::of(session, &status, &loops).await;
    if session.json {
        let socket = session.socket.to_string_lossy();
        let more = json!({"connected_to": socket, "losses": losses.json()});
        let value = joined(joined(json::of(&info), json::of(&status)), more);
        output::json_lines([&value])?;
        return Ok(0);
    }
    let mut sheet = sheet(&info, &status, &loops, &losses);
    for found in loops.iter().filter(|found| is_held_up(found)) {
        let by_name = loop_ref::Ref::Name(found.full_name.clone());
        let mut on = session.clone();
        on.loop_ref = Some(LoopRef {
            r#ref: Some(by_name),
        });
        if let Some(holder) = Holder::find(&on).await {
            sheet.styled("held up by", holder, NOTICE);
        }
    }
    sheet.print()?;
    Ok(0)
}

/// Returns whether the loop does not read a source because a consumer has not acknowledged its events.
fn is_held_up(found: &Loop) -> bool {
    let mut sources = found.journal.iter().flat_map(|j| &j.paused_sources);
    sources.any(|source| source.pause.as_ref().is_some_and(is_held))
}

/// Returns whether at least nine tenths of a limit are used.
const fn nearly(used: u64, of: u64) -> bool {
    used >= of - of / 10
}

/// Returns what is wrong with the daemon or its loops; empty if all is well.
fn troubles(status: &GetStatusResponse, loops: &[Loop]) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.draining {
        troubles.push("it is shutting down".to_owned());
    }
    if nearly(status.memory_used_bytes, status.memory_limit_bytes) {
        troubles.push("its memory is nearly used up".to_owned());
    }
    if let (Some(open), Some(most)) = (status.open_fds, status.max_fds)
        && nearly(open, most)
    {
        troubles.push("its file descriptors are nearly used up".to_owned());
    }
    if status.keeper.as_ref().is_some_and(|keeper| keeper.pid == 0) {
        troubles.push("its keeper has ended, so that nothing starts it again".to_owned());
    }
    for name in status
        .keeper
        .iter()
        .flat_map(|keeper| &keeper.set_aside_loops)
    {
        troubles.push(format!(
            "{name} is set aside, because the daemon died of it"
        ));
    }
    let trouble = status.keeper.iter().map(|keeper| &keeper.state_trouble);
    let trouble = trouble.filter(|trouble| !trouble.is_empty());
    troubles.extend(trouble.map(|why| format!("nothing outlives its keeper: {why}")));
    troubles.extend(status.socket_troubles.iter().cloned());
    troubles.extend(status.limit_troubles.iter().cloned());
    let stopped = loops
        .iter()
        .filter(|l| l.state() == LoopState::Stopped)
        .count();
    if stopped > 0 {
        let stopped = u64::try_from(stopped).unwrap_or(u64::MAX);
        troubles.push(format!(
            "{} stopped",
            counted(stopped, "loop is", "loops are")
        ));
    }
    let paused = loops.iter().filter_map(|l| l.journal.as_ref());
    let paused: u64 = paused.map(|journal| journal.paused_source_count).sum();
    if paused > 0 {
        let sources = counted(paused, "source waits", "sources wait");
        troubles.push(format!(
            "{sources} for room in a journal (`evloopctl loop show`)"
        ));
    }
    troubles
}

/// Adds what is known of the keeper and of earlier lives.
fn keeper(sheet: &mut Sheet, keeper: &Keeper) {
    if keeper.pid != 0 {
        let life = match keeper.life {
            0 | 1 => String::new(),
            life => format!(", in the daemon's life {life}"),
        };
        sheet.line("keeper", format!("pid {}{life}", keeper.pid));
    }
    for ended in keeper.ended_lives.iter().take(LIVES_SHOWN) {
        let how = match ended.how {
            Some(How::ExitCode(code)) => format!("exited with {code}"),
            Some(How::Signal(number)) => format!("was killed by {}", signal_name(number)),
            None => "ended".to_owned(),
        };
        let (life, when) = (ended.life, date_and_age(ended.ended));
        sheet.line("earlier life", format!("{life} {how}, {when}"));
    }
    if !keeper.state_directory.is_empty() {
        let journals = match keeper.journals_in_files {
            true => "",
            false => "; histories are not in it",
        };
        sheet.line("state", format!("{}{journals}", keeper.state_directory));
    }
    if !keeper.set_aside_loops.is_empty() {
        sheet.line("set aside", keeper.set_aside_loops.join(", "));
    }
    if !keeper.changed_keys.is_empty() {
        let keys = keeper.changed_keys.join(", ");
        sheet.line(
            "configuration",
            format!("other values in the files: {keys}"),
        );
    }
    for error in &keeper.config_errors {
        sheet.line("configuration", format!("wrong in the files: {error}"));
    }
}

fn sheet(
    info: &GetServerInfoResponse,
    status: &GetStatusResponse,
    loops: &[Loop],
    losses: &Losses,
) -> Sheet {
    let troubles = troubles(status, loops);
    let title = match troubles.is_empty() {
        true => format!("{GOOD}evloopd is well{GOOD:#}"),
        false => {
            let style = if status.draining { BAD } else { NOTICE };
            format!("{style}evloopd: {}{style:#}", troubles.join("; "))
        }
    };
    let mut sheet = Sheet::new(title);
    let running = counted(status.children.into(), "process", "processes");
    let watches = counted(status.open_watches, "watch", "watches");
    let loops = counted(status.loops.into(), "loop", "loops");
    sheet.line("runs", format!("{running}; {watches} on {loops}"));
    sheet.line("since", date_and_age(info.started));
    let (used, limit) = (
        size(status.memory_used_bytes),
        size(status.memory_limit_bytes),
    );
    let journals = size(status.journal_bytes);
    sheet.line(
        "memory",
        format!("{used} of {limit} is used, {journals} of it by journals"),
    );
    let resident = status.rss_bytes.map(size).unwrap_or_default();
    sheet.line("resident", resident);
    if let Some(open) = status.open_fds {
        let of = status.max_fds.map(|most| format!(" of {}", grouped(most)));
        let of = of.unwrap_or_default();
        sheet.line("descriptors", format!("{}{of} are open", grouped(open)));
    }
    sheet.line("streams", status.streams);
    for (label, bytes) in [
        ("requests", status.request_bytes),
        ("kept answers", status.answer_bytes),
        ("snapshots", status.snapshot_bytes),
        ("polls", status.poll_bytes),
        ("commands", status.command_bytes),
        ("screens", status.screen_bytes),
    ] {
        sheet.line(
            label,
            if bytes > 0 {
                size(bytes)
            } else {
                String::new()
            },
        );
    }
    sheet.line("level", losses.level());
    if let Some(keeper) = &status.keeper {
        self::keeper(&mut sheet, keeper);
    }
    if info.pid == 1 || status.keeper.as_ref().is_some_and(|keeper| keeper.pid == 1) {
        let what = "of a container: when it ends, all processes there end with it";
        sheet.line("process 1", what);
    }
    for (end, lost) in losses.lines() {
        sheet.line(end, lost);
    }
    if status.slots > 0 {
        let slots = counted(status.slots.into(), "descriptor", "descriptors");
        sheet.line("handed over", format!("{slots}, not claimed yet"));
    }
    if status.children_kept > 0 {
        let kept = counted(status.children_kept.into(), "process", "processes");
        sheet.line("outlived", format!("{kept} whose watch has ended"));
    }
    if status.drained_pipes > 0 || status.drained_bytes > 0 {
        let pipes = counted(status.drained_pipes.into(), "pipe", "pipes");
        let bytes = size(status.drained_bytes);
        sheet.line("discarded", format!("{bytes}, by {pipes} now"));
    }
    if status.cgroups.is_empty() {
        let why = &status.cgroups_missing;
        if !why.is_empty() {
            sheet.line("cgroups", format!("none for each process: {why}"));
        }
    } else {
        sheet.line(
            "cgroups",
            format!("one for each process, below {}", status.cgroups),
        );
    }
    if !status.tzdata_version.is_empty() {
        let of = match status.tzdata_from_host {
            true => "the host's",
            false => "evloopd's own",
        };
        let zone = &status.time_zone;
        let version = &status.tzdata_version;
        sheet.line("time zones", format!("{version}, {of}; local is {zone}"));
    }
    let role = if info.administrator {
        ", an administrator"
    } else {
        ""
    };
    sheet.line("you are", format!("{}{role}", info.principal));
    let directory = std::path::Path::new(&info.socket).parent();
    sheet.line(
        "directory",
        directory.map_or_else(String::new, |path| path.display().to_string()),
    );
    sheet.line("socket", &info.socket);
    sheet.line("handover", &info.handover_socket);
    let (version, pid, uid) = (&info.version, info.pid, info.uid);
    sheet.line("version", format!("{version}, pid {pid} of uid {uid}"));
    sheet.styled("instance", &info.instance, DIM);
    sheet.styled("boot", &info.boot_id, DIM);
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_line(status: &GetStatusResponse, loops: &[Loop]) -> String {
        let (info, losses) = (GetServerInfoResponse::default(), Losses::default());
        let text = sheet(&info, status, loops, &losses).text(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        text.lines().next().unwrap().to_owned()
    }

    #[test]
    fn it_begins_with_whether_all_is_well() {
        let well = GetStatusResponse {
            memory_limit_bytes: 1000,
            memory_used_bytes: 100,
            open_fds: Some(30),
            max_fds: Some(1000),
            ..GetStatusResponse::default()
        };
        assert_eq!(first_line(&well, &[]), "evloopd is well");
        let short = GetStatusResponse {
            memory_used_bytes: 900,
            open_fds: Some(950),
            ..well.clone()
        };
        let line = first_line(&short, &[]);
        assert!(
            line.contains("memory") && line.contains("descriptors"),
            "{line}"
        );
        let mut stopped = Loop::default();
        stopped.set_state(LoopState::Stopped);
        let line = first_line(&well, &[stopped]);
        assert_eq!(line, "evloopd: 1 loop is stopped");
        let ending = GetStatusResponse {
            draining: true,
            ..well
        };
        assert_eq!(first_line(&ending, &[]), "evloopd: it is shutting down");
    }
}
