//! What a daemon with a keeper does because there are lives before and after it.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::Interest;

use super::sockets::keep;
use super::{Arguments, Setup};
use crate::config::Config;
use crate::keeper::{Kept, Life};
use crate::sys;

/// Returns what the daemon is to be started with. The configuration is that of the life before, or
/// else that of the arguments and files.
///
/// # Errors
/// As [`Arguments::configuration`].
pub fn setup(args: &Arguments, life: Option<Life>) -> Result<Setup, Vec<String>> {
    let kept = life
        .as_ref()
        .and_then(|life| life.take(Kept::Configuration));
    let Some(kept) = kept else {
        return Ok(Setup {
            life,
            ..Setup::from(args.configuration()?)
        });
    };
    // The life before has made it, so that no file helps if it cannot be read.
    let config = carried(kept)
        .map_err(|error| vec![format!("the configuration of the life before: {error}")])?;
    let changed_keys = match args.configuration() {
        Ok(there) => there.differences(&config),
        // What is wrong there is of no concern before it is to be applied.
        Err(_) => Vec::new(),
    };
    Ok(Setup {
        config,
        life,
        changed_keys,
    })
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
    let system = |errno: rustix::io::Errno| errno.to_string();
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
