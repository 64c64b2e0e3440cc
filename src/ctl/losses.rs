//! What each kind of end of the daemon would lose, counted by what its loops and watches survive.

use std::iter::repeat;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::description;
use super::failure::Failure;
use super::lookup;
use super::session::Session;
use super::units::{counted, grouped};
use crate::proto::watch_spec::Spec;
use crate::proto::{
    AtEnd, GetStatusResponse, ListWatchesRequest, Loop, LoopRef, Survives, Watch, listener_spec,
    loop_ref,
};

/// Watches are not counted one by one if there are more of them.
const WATCHES_MAX: u64 = 10_000;
/// How long the loops may take to tell their watches.
const PATIENCE: Duration = Duration::from_secs(2);

/// Loops, open watches and running processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    loops: u64,
    watches: u64,
    processes: u64,
}

/// The kinds of end of a daemon, each with what it loses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    all: Count,
    /// Lost when the daemon dies. `None` if the next one finds nothing, or if the watches are not
    /// counted.
    crash: Option<Count>,
    /// Lost when both die. `None` as above.
    both: Option<Count>,
    has_keeper: bool,
    /// All processes of its namespace end with the daemon.
    is_init: bool,
    /// Of the processes, those that are to run on when the daemon ends in order.
    staying: u64,
}

impl Losses {
    /// Counts what the caller may see.
    pub(super) async fn of(session: &Session, status: &GetStatusResponse, loops: &[Loop]) -> Self {
        let open: u64 = loops.iter().map(|found| found.open_watches).sum();
        // The daemon's state has to be shown also if one of its loops hangs.
        let watches = match open <= WATCHES_MAX {
            true => timeout(PATIENCE, watches(session, loops)).await.ok(),
            false => None,
        };
        let watches = watches.and_then(Result::ok);
        Self::count(status, loops, open, watches.as_deref())
    }

    fn count(
        status: &GetStatusResponse,
        loops: &[Loop],
        open: u64,
        watches: Option<&[(Survives, Watch)]>,
    ) -> Self {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let keeper = status.keeper.as_ref().map_or(0, |keeper| keeper.pid);
        let all = Count {
            loops: number(loops.len()),
            watches: watches.map_or(open, |watches| number(watches.len())),
            processes: status.children.into(),
        };
        let is_lost = |survives: Survives| survives != Survives::Crash;
        let runs =
            |watch: &Watch| description::is_process(watch) && description::end(watch).is_none();
        let lost = |of: Survives, watch: &Watch| is_lost(of) || is_lost(watch.survives());
        let count = |is_lost_too: fn(&Watch) -> bool| {
            let watches = watches?;
            let lost = watches
                .iter()
                .filter(|(of, watch)| lost(*of, watch) || is_lost_too(watch));
            let lost: Vec<_> = lost.collect();
            Some(Count {
                loops: number(loops.iter().filter(|one| is_lost(one.survives())).count()),
                watches: number(lost.len()),
                processes: number(lost.iter().filter(|(_, watch)| runs(watch)).count()),
            })
        };
        let has_files = status
            .keeper
            .as_ref()
            .is_some_and(|k| !k.state_directory.is_empty());
        let both = match has_files {
            true => count(needs_descriptors),
            false => None,
        };
        let crash = match keeper {
            0 => both,
            _ => count(|_| false),
        };
        let stays = |watch: &Watch| match watch.spec.as_ref().and_then(|spec| spec.spec.as_ref()) {
            Some(Spec::Process(spec)) => runs(watch) && spec.at_end() == AtEnd::Keep,
            _ => false,
        };
        let staying = watches.into_iter().flatten();
        let staying = number(staying.filter(|(_, watch)| stays(watch)).count());
        Self {
            all,
            crash,
            both,
            has_keeper: keeper != 0,
            is_init: keeper == 1,
            staying: staying + u64::from(status.children_kept),
        }
    }

    /// Says what the daemon survives.
    pub(super) const fn level(&self) -> &'static str {
        if self.has_keeper {
            "crash: its keeper starts the next life, and what survives a crash goes on"
        } else {
            "none: there is no keeper that starts it again"
        }
    }

    /// Returns each kind of end and what it loses.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let things = |lost: Count| {
            let all = [
                (lost.loops, "loop", "loops"),
                (lost.watches, "watch", "watches"),
            ];
            let some = all.into_iter().filter(|(number, ..)| *number > 0);
            let some: Vec<_> = some
                .map(|(number, one, many)| counted(number, one, many))
                .collect();
            match some.is_empty() {
                true => "nothing".to_owned(),
                false => some.join(", "),
            }
        };
        let processes = |number: u64, one: &str, many: &str| match number {
            0 => String::new(),
            1 => format!("; 1 process {one}"),
            number => format!("; {} processes {many}", grouped(number)),
        };
        let left = |number: u64| {
            let (one, many) = ("runs on alone", "run on alone");
            processes(number, one, many)
        };
        let alone = left(self.all.processes);
        let all = things(self.all);
        let ends = self.all.processes.saturating_sub(self.staying);
        let ending = processes(ends, "ends", "end");
        let without_output = |lost: &Count| {
            let (one, many) = ("goes on without its output", "go on without their output");
            let rest = processes(self.all.processes - lost.processes, one, many);
            format!("{}{}{rest}", things(*lost), left(lost.processes))
        };
        let crash = match (&self.crash, self.has_keeper) {
            (Some(lost), true) => format!("{}{}", things(*lost), left(lost.processes)),
            (Some(lost), false) => without_output(lost),
            (None, true) => {
                "not counted: there are too many watches, or a loop does not answer".to_owned()
            }
            (None, false) => format!("{all}{alone}"),
        };
        let mut lines = vec![("a crash loses", crash)];
        if self.has_keeper {
            let lost = match (self.is_init, &self.both) {
                (true, _) => format!("{all}; all processes of its namespace end"),
                (false, Some(lost)) => without_output(lost),
                (false, None) => format!("{all}{alone}"),
            };
            lines.push(("with its keeper", lost));
        }
        lines.push(("a restart", format!("{all}{ending}")));
        let ending = processes(self.all.processes, "ends", "end");
        lines.push(("a reboot", format!("{all}{ending}")));
        lines
    }

    /// Returns the same for programs.
    pub(super) fn json(&self) -> Value {
        let lost = |lost: Count| json!({"loops": lost.loops, "open_watches": lost.watches});
        let crash = match (self.crash, self.has_keeper) {
            (Some(count), _) => lost(count),
            (None, true) => Value::Null,
            (None, false) => lost(self.all),
        };
        json!({
            "crash": crash,
            "crash_with_keeper": lost(self.both.unwrap_or(self.all)),
            "restart": lost(self.all),
            "reboot": lost(self.all),
        })
    }
}

/// Returns whether a watch ends with the last process that has its descriptors: it is no description from
/// which they can be made again, and no process.
fn needs_descriptors(watch: &Watch) -> bool {
    let spec = watch.spec.as_ref().and_then(|spec| spec.spec.as_ref());
    match spec {
        Some(
            Spec::Timer(_)
            | Spec::Signal(_)
            | Spec::Path(_)
            | Spec::File(_)
            | Spec::Pid(_)
            | Spec::Process(_),
        ) => false,
        Some(Spec::Listener(spec)) => !matches!(
            spec.target,
            Some(listener_spec::Target::Tcp(_) | listener_spec::Target::Unix(_))
        ),
        Some(Spec::Datagram(spec)) => spec.local.is_none() && spec.peer.is_none(),
        _ => true,
    }
}

/// Returns all open watches, each with what its loop survives.
async fn watches(session: &Session, loops: &[Loop]) -> Result<Vec<(Survives, Watch)>, Failure> {
    let mut all = Vec::new();
    for found in loops {
        let mut on = session.clone();
        on.loop_ref = Some(LoopRef {
            r#ref: Some(loop_ref::Ref::LoopId(found.loop_id)),
        });
        let request = ListWatchesRequest {
            open_only: true,
            ..ListWatchesRequest::default()
        };
        match lookup::watches(&on, request).await {
            Ok(more) => all.extend(repeat(found.survives()).zip(more)),
            // It was closed in between.
            Err(failure) if failure.reason == "LOOP_NOT_FOUND" => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Keeper, ProcessSpec, WatchSpec};

    fn watch(kind: &str, survives: Survives, spec: Option<Spec>) -> Watch {
        let mut watch = Watch {
            watch_kind: kind.to_owned(),
            spec: Some(WatchSpec { spec }),
            ..Watch::default()
        };
        watch.set_survives(survives);
        watch
    }

    #[test]
    fn each_end_loses_what_does_not_survive_it() {
        let (kept, lost) = (Survives::Crash, Survives::Nothing);
        let loops = [kept, lost].map(|survives| {
            let mut found = Loop::default();
            found.set_survives(survives);
            found
        });
        let staying = Spec::Process(ProcessSpec {
            at_end: AtEnd::Keep.into(),
            ..ProcessSpec::default()
        });
        let watches = [
            (kept, watch("timer", kept, None)),
            (kept, watch("connection", lost, None)),
            (kept, watch("process", kept, Some(staying))),
            (lost, watch("timer", lost, None)),
        ];
        let keeper = |pid| Keeper {
            pid,
            ..Keeper::default()
        };
        let status = |keeper| GetStatusResponse {
            children: 2,
            keeper,
            ..GetStatusResponse::default()
        };
        let lines = |status: &GetStatusResponse| {
            let losses = Losses::count(status, &loops, 4, Some(&watches));
            losses
                .lines()
                .into_iter()
                .map(|(_, text)| text)
                .collect::<Vec<_>>()
        };
        let alone = "2 loops, 4 watches; 2 processes run on alone";
        let ordered = "2 loops, 4 watches; 1 process ends";
        let reboot = "2 loops, 4 watches; 2 processes end";
        let told = lines(&status(Some(keeper(7))));
        assert_eq!(told, ["1 loop, 2 watches", alone, ordered, reboot]);
        let told = lines(&status(Some(keeper(1))));
        assert_eq!(
            told[1],
            "2 loops, 4 watches; all processes of its namespace end"
        );
        for none in [None, Some(keeper(0))] {
            assert_eq!(lines(&status(none)), [alone, ordered, reboot]);
        }
        let empty = Losses::count(&status(Some(keeper(7))), &[], 0, Some(&[]));
        assert_eq!(empty.lines()[0].1, "nothing");
        let many = Losses::count(&status(Some(keeper(7))), &loops, 20_000, None);
        assert!(many.lines()[0].1.contains("not counted"));
    }
}
