//! What a daemon with a keeper does because there are lives before and after it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use tokio::io::Interest;

use super::sockets::keep;
use super::{Arguments, Setup};
use crate::access::{is_served, make_parent};
use crate::cgroup;
use crate::clock::{self, Now};
use crate::config::Config;
use crate::driver;
use crate::event::Recovered;
use crate::event_loop::{descriptors, listening};
use crate::faults::{self, Point};
use crate::handover;
use crate::keeper::{Ended, Kept, Life};
use crate::proto::RecoveryReason;
use crate::proto::state::KeptDescriptor;
use crate::rpc::ConfigFiles;
use crate::state::{Arena, Directory, Found, Inherited, Owner, Refusal};
use crate::sys;

/// Returns what the daemon is to be started with. The configuration is that of the life before, or
/// else that of the arguments and files.
///
/// # Errors
/// As [`Arguments::configuration`].
pub fn setup(args: &Arguments, life: Option<Life>) -> Result<Setup, Vec<String>> {
    let mut state = life.as_ref().map(open_state).unwrap_or_default();
    let files = {
        let args = args.clone();
        ConfigFiles::new(move || args.on_disk())
    };
    let kept = life
        .as_ref()
        .and_then(|life| life.take(Kept::Configuration));
    let config = match kept {
        None => args.configuration()?,
        // The life before has made it, so that no file helps if it cannot be read.
        Some(kept) => carried(kept)
            .map_err(|error| vec![format!("the configuration of the life before: {error}")])?,
    };
    if life.is_some() && state.arena.is_none() {
        state = State::in_directory(&config)?;
    }
    Ok(Setup {
        config,
        life,
        state,
        files,
    })
}

/// How long processes may take to end after they were killed.
const DYING: Duration = Duration::from_secs(5);
/// How long a daemon that serves is taken for one that is ending.
const SEEMS_TO_SERVE: Duration = Duration::from_millis(300);
/// The time between two looks whether they have.
const LOOK: Duration = Duration::from_millis(10);

/// The memory that outlives this life, and what the life before has left.
#[derive(Debug, Default)]
pub struct State {
    arena: Option<Arc<Arena>>,
    pub(super) found: Unused,
    pub(super) inherited: Inherited,
    /// What the drivers of the loops need of those before, by the id of the loop.
    pub(super) needed: BTreeMap<Owner, OwnedFd>,
    /// Some memory is missing.
    pub(super) is_partial: bool,
    /// Why nothing outlives the keeper.
    pub(super) trouble: Option<String>,
}

/// Runs of an earlier life that this one does not use yet. If it ends before, a later one finds them.
#[derive(Debug, Default)]
pub(super) struct Unused(ManuallyDrop<Vec<Found>>);

impl Unused {
    const fn new(found: Vec<Found>) -> Self {
        Self(ManuallyDrop::new(found))
    }

    pub(super) fn take(self) -> Vec<Found> {
        ManuallyDrop::into_inner(self.0)
    }
}

/// Takes over the memory of the life before and the descriptors that it names, and closes everything
/// else that earlier lives had open.
fn open_state(life: &Life) -> State {
    let before = life.take(Kept::State);
    let memory = before.as_ref().map(Arena::descriptors);
    let memory = memory.and_then(Result::ok).unwrap_or_default();
    let directory = life.take(Kept::StateDirectory);
    let directory = directory.map(|fd| Arc::new(Directory::of_earlier_life(fd)));
    let recovered = before.map(|table| Arena::recover(table, directory));
    let (arena, found, is_partial) = match recovered {
        Some(Ok(recovered)) => (Some(recovered.arena), recovered.found, !recovered.is_whole),
        // The files are looked at next.
        Some(Err(_)) | None => (None, Vec::new(), false),
    };
    let is_there = |kept: &&KeptDescriptor| {
        sys::keeper::identity_of(kept.number) == Some((kept.device, kept.inode))
    };
    let mut files = descriptors(&found);
    files.extend(handover::descriptors(&found));
    let numbers: Vec<_> = files
        .iter()
        .filter(is_there)
        .map(|kept| kept.number)
        .collect();
    let needed: BTreeMap<_, _> = found
        .iter()
        .filter_map(|one| Some((one.owner, driver::needed(one)?)))
        .filter(|(_, number)| sys::keeper::identity_of(*number).is_some())
        .collect();
    let accepted = listening(&found);
    let accepted = accepted.iter().filter(is_there).map(|kept| kept.number);
    let accepted = sys::keeper::accepted_from(accepted);
    let kept: Vec<_> = numbers
        .into_iter()
        .chain(needed.values().copied())
        .chain(accepted.values().flatten().copied())
        .collect();
    life.close_all_but(memory.into_iter().chain(kept.iter().copied()));
    faults::point(Point::OthersClosed);
    let mut inherited = Inherited::own(kept).with_accepted(accepted);
    let needed = needed.into_iter();
    State {
        arena,
        found: Unused::new(found),
        needed: needed
            .filter_map(|(owner, number)| Some((owner, inherited.take_number(number)?)))
            .collect(),
        inherited,
        is_partial,
        trouble: None,
    }
}

/// Returns the directory of the state of a daemon with this configuration.
fn directory_of(config: &Config) -> PathBuf {
    let mut path = config.server.socket_path().into_os_string();
    path.push(".state");
    path.into()
}

impl State {
    /// Takes up what a daemon has left whose keeper has ended, too.
    fn in_directory(config: &Config) -> Result<Self, Vec<String>> {
        let path = directory_of(config);
        let shown = path.display();
        let opened = make_parent(&path).map_err(|error| error.to_string());
        let opened = opened.and_then(|()| {
            let opened = Directory::open(&path);
            opened
                .map(Arc::new)
                .map_err(|errno| format!("{shown}: {errno}"))
        });
        let found = opened.map(|directory| {
            // Processes that were killed have it until all of their threads have ended.
            let begun = Instant::now();
            loop {
                let found = Arena::in_directory(&directory);
                let most = match is_served(&config.server.socket_path()) {
                    true => SEEMS_TO_SERVE,
                    false => DYING,
                };
                if !matches!(found, Err(Refusal::InUse)) || begun.elapsed() > most {
                    return found;
                }
                std::thread::sleep(LOOK);
            }
        });
        let refused = match found {
            Ok(Ok(recovered)) => {
                let inherited = Inherited::of_dead_keeper(recovered.arena.has_same_pids());
                return Ok(Self {
                    arena: Some(recovered.arena),
                    inherited: match recovered.found.is_empty() {
                        true => Inherited::default(),
                        false => inherited,
                    },
                    found: Unused::new(recovered.found),
                    is_partial: !recovered.is_whole,
                    ..Self::default()
                });
            }
            Ok(Err(Refusal::Unknown)) => {
                return Err(vec![format!(
                    "{shown}: what an evloopd has left there is of another version, or damaged: \
                     start the version that wrote it, or remove the directory and lose what it holds"
                )]);
            }
            Ok(Err(Refusal::InUse)) => format!("{shown}: another daemon uses it"),
            Ok(Err(Refusal::System(errno))) => format!("{shown}: {errno}"),
            Err(error) => error,
        };
        Ok(Self {
            trouble: Some(refused),
            ..Self::default()
        })
    }

    /// Returns the memory, which the next life finds.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn arena(&mut self, life: &Life) -> Result<Arc<Arena>, Errno> {
        if let Some(trouble) = &self.trouble {
            tracing::warn!(trouble, "nothing outlives the keeper");
        }
        let arena = match self.arena.take() {
            Some(arena) => arena,
            None => Arena::new()?,
        };
        keep(Some(life), Kept::State, arena.file().as_fd());
        if let Some(directory) = arena.directory() {
            keep(Some(life), Kept::StateDirectory, directory.file().as_fd());
        }
        Ok(arena)
    }
}

/// Returns whether the life before died by a fault of its own, as far as can be known.
pub(super) fn died_by_fault(life: &Life) -> bool {
    const SIGKILL: u8 = 9;
    let before = life.earlier().next();
    before.is_some_and(|(_, _, ended)| ended != Ended::Killed(SIGKILL))
}

/// Returns whether the life before was killed and the kernel has killed processes of the daemon's cgroup
/// for lack of memory since it started: that it was this one is likely, but cannot be known. Call it once,
/// and after the daemon has moved to its cgroup.
pub(super) fn ran_out_of_memory(life: &Life) -> bool {
    let Some(now) = cgroup::oom_kills() else {
        return false;
    };
    let before = life.replace_oom_kills(now);
    let was_killed = !died_by_fault(life) && life.number() > 1;
    was_killed && before.is_some_and(|before| now > before)
}

/// Returns what the readers of loops are told that go on in this life; `is_alone`: the keeper has ended, too.
pub(super) fn recovered(life: &Life, is_alone: bool) -> Recovered {
    if is_alone {
        return Recovered {
            why: RecoveryReason::Crash.into(),
            detail: "the daemon and its keeper were ended".to_owned(),
            down_for: None,
        };
    }
    let before = life.earlier().next();
    let now = Now::sample().realtime;
    let down_for = before.map(|(_, at, _)| Duration::from_nanos(now.saturating_sub(at)));
    Recovered {
        why: RecoveryReason::Crash.into(),
        detail: before.map_or_else(String::new, |(_, _, ended)| ended.to_string()),
        down_for: down_for.map(clock::duration),
    }
}

fn carried(kept: OwnedFd) -> Result<Config, String> {
    let mut kept = std::fs::File::from(kept);
    let mut text = String::new();
    // The life before has left the offset at the end of what it wrote.
    std::io::Seek::rewind(&mut kept).map_err(|error| error.to_string())?;
    kept.read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    Config::carried(&text)
}

/// Leaves the next life what it needs, and tells of the lives before.
pub(super) fn begin(life: Option<&Life>, config: &Config) {
    let Some(life) = life else { return };
    life.set_restarts(config.server.restarts, config.server.restart_delay);
    match carry(config) {
        // The keeper's table has it; this life needs it no more.
        Ok(file) => {
            keep(Some(life), Kept::Configuration, file.as_fd());
            sys::keeper::leave(file);
        }
        Err(error) => tracing::warn!(error, "the next life will read its configuration again"),
    }
    if let Some((number, _, ended)) = life.earlier().next() {
        tracing::warn!(
            life = number,
            "the life before {ended}; this one takes over"
        );
    }
    if let Err(error) = watch_keeper(life) {
        tracing::warn!(%error, "the end of the keeper would not be noticed");
    }
}

fn carry(config: &Config) -> Result<OwnedFd, String> {
    let text = config.carry()?;
    let system = |errno: Errno| errno.to_string();
    let file = memfd_create("evloopd-configuration", MemfdFlags::CLOEXEC).map_err(system)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(system)?;
        rest = &rest[written..];
    }
    Ok(file)
}

/// Says so when the keeper has ended: nothing starts the daemon again from then on.
fn watch_keeper(life: &Life) -> std::io::Result<()> {
    let keeper = life.keeper().and_then(rustix::process::Pid::from_raw);
    let Some(keeper) = keeper else {
        tracing::error!("the keeper has ended");
        return Ok(());
    };
    let pidfd = rustix::process::pidfd_open(keeper, rustix::process::PidfdFlags::empty())?;
    let pidfd = sys::async_fd(Arc::new(pidfd), Interest::READABLE)?;
    tokio::spawn(async move {
        if pidfd.readable().await.is_ok() {
            tracing::error!("the keeper has ended: nothing starts the daemon again if it dies");
        }
    });
    Ok(())
}
