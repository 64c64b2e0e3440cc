//! The time zones of calendar timers, as the host's and the bundled database have them now.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::calendar::{Reloaded, Zone, ZoneError, Zones, splay};

/// The host's database of zones, tzset(3).
const DATABASE: &str = "/usr/share/zoneinfo";
/// What distinguishes this host from others, machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";

/// The time zones that timers use. A zone stays known here once it was used: there are fewer than
/// 700 in all.
#[derive(Debug)]
pub struct TimeZones {
    zones: Mutex<Zones>,
    /// The zones in use, by the names that timers use.
    used: RwLock<BTreeMap<String, Zone>>,
    /// What [`splay`] hashes beside the name of a timer.
    host_id: Vec<u8>,
}

/// Which data the zones are from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZoneFacts {
    /// The version of the database in use, such as `2026a`.
    pub version: String,
    /// Whether that is the host's, and not the bundled one.
    pub from_host: bool,
    /// The version of the host's database, if it tells one.
    pub host_version: Option<String>,
    /// The name of the host's own zone, or the path of its file.
    pub local: String,
}

impl TimeZones {
    /// Opens the host's database. Blocks: it reads files.
    #[must_use]
    pub fn open() -> Self {
        let host_id = std::fs::read(MACHINE_ID);
        let host_id = host_id.unwrap_or_else(|_| {
            let system = rustix::system::uname();
            system.nodename().to_bytes().to_vec()
        });
        Self::new(Zones::open(Path::new(DATABASE)), &host_id)
    }

    fn new(zones: Zones, host_id: &[u8]) -> Self {
        Self {
            zones: Mutex::new(zones),
            used: RwLock::default(),
            host_id: host_id.trim_ascii().to_vec(),
        }
    }

    /// Returns a zone for a timer, which is found again by the same name with
    /// [`current`](Self::current). Blocks: it reads files.
    ///
    /// # Errors
    /// The zone is unknown.
    pub fn zone(&self, name: &str) -> Result<Zone, ZoneError> {
        let zones = self.zones.lock();
        let zone = zones.get(name)?;
        self.used.write().insert(name.to_owned(), zone.clone());
        Ok(zone)
    }

    /// Returns a zone that was used before, with its rules as they are now. Does not block.
    #[must_use]
    pub fn current(&self, name: &str) -> Option<Zone> {
        self.used.read().get(name).cloned()
    }

    /// Reads the databases again if they were replaced, and returns what changed. Does nothing while
    /// no zone is in use. Blocks: it reads files.
    pub fn refresh(&self) -> Option<Reloaded> {
        let names: Vec<String> = self.used.read().keys().cloned().collect();
        let mut zones = self.zones.lock();
        if names.is_empty() || !zones.changed() {
            return None;
        }
        let reloaded = zones.reload();
        for name in names {
            match zones.get(&name) {
                Ok(zone) => drop(self.used.write().insert(name, zone)),
                Err(error) => tracing::warn!(%error, "a time zone in use keeps its old rules"),
            }
        }
        Some(reloaded)
    }

    /// Returns which data the zones are from.
    #[must_use]
    pub fn facts(&self) -> ZoneFacts {
        let zones = self.zones.lock();
        ZoneFacts {
            version: zones.version(),
            from_host: zones.source() == crate::calendar::Source::Host,
            host_version: zones.host_version(),
            local: zones.local_name(),
        }
    }

    /// Returns the part of a splay that a timer of this name has on this host.
    #[must_use]
    pub fn splay(&self, name: &str, max: Duration) -> Duration {
        splay(&self.host_id, name, max)
    }
}
