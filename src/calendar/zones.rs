//! Time zones by name: the newer of the host's database and the bundled one.

mod local;
mod version;

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::tz::{TimeZone, TimeZoneDatabase};

use self::local::Local;
use self::version::{Stamp, Version};
use super::error::{ZoneError, excerpt};

/// The longest name of a zone, in bytes. The longest of the database has 32.
const NAME_MAX: usize = 64;
/// The name that stands for the host's own zone.
const LOCAL: &str = "local";
/// Where the host's own zone is.
const LOCALTIME: &str = "/etc/localtime";

/// Which database a zone is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The host's, of the directory that was opened.
    Host,
    /// The one within this program.
    Bundled,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Bundled => "bundled",
        })
    }
}

/// A time zone.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    time_zone: TimeZone,
    follows_host: bool,
}

impl Zone {
    /// Returns the name in the IANA database, in its own spelling. For the host's own zone it is
    /// the path of its file if that is no link into the database.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was asked for as `local`: after [`Zones::reload`] it may be another.
    #[must_use]
    pub const fn follows_host(&self) -> bool {
        self.follows_host
    }

    /// Returns the rules.
    #[must_use]
    pub const fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }
}

/// The time zones that are known.
#[derive(Debug)]
pub struct Zones {
    directory: PathBuf,
    localtime: PathBuf,
    host: TimeZoneDatabase,
    host_version: Option<Version>,
    data: Stamp,
    local: Local,
}

/// What [`Zones::reload`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// Whether the host's database was replaced.
    pub data: bool,
    /// The names of the host's own zone before and now, if they differ.
    pub local: Option<(String, String)>,
}

impl Zones {
    /// Opens the host's database, which usually is `/usr/share/zoneinfo`. Without one, all zones
    /// are from the bundled one.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self::open_with(directory, Path::new(LOCALTIME))
    }

    /// Like [`open`](Self::open), with another path instead of `/etc/localtime`.
    #[must_use]
    pub fn open_with(directory: &Path, localtime: &Path) -> Self {
        let data = Stamp::of_data(directory);
        Self {
            directory: directory.to_owned(),
            localtime: localtime.to_owned(),
            host: TimeZoneDatabase::from_dir(directory)
                .unwrap_or_else(|_| TimeZoneDatabase::none()),
            host_version: Version::of_host(directory),
            data,
            local: Local::read(localtime),
        }
    }

    /// Returns which database is asked first: the newer one; of equal ones, and of a host's whose
    /// version is not known, the bundled one.
    #[must_use]
    pub fn source(&self) -> Source {
        match &self.host_version {
            Some(host) if *host > Version::bundled() => Source::Host,
            _ => Source::Bundled,
        }
    }

    /// Returns the version of the database that is asked first, such as `2026a`.
    #[must_use]
    pub fn version(&self) -> String {
        match (self.source(), &self.host_version) {
            (Source::Host, Some(host)) => host.to_string(),
            _ => Version::bundled().to_string(),
        }
    }

    /// Returns the version of the host's database, if it tells one.
    #[must_use]
    pub fn host_version(&self) -> Option<String> {
        self.host_version.as_ref().map(Version::to_string)
    }

    /// Returns a zone by its name in the IANA database, in any case of letters, or the host's own
    /// one by the name `local`. A name that the newer database does not have is looked up in the
    /// other one: hosts leave out old names, and add their own.
    ///
    /// # Errors
    /// If no database has the name, or the host's own zone cannot be read.
    pub fn get(&self, name: &str) -> Result<Zone, ZoneError> {
        if name == LOCAL {
            return self.local();
        }
        let (time_zone, _) = self.find(name).ok_or_else(|| ZoneError::Unknown {
            name: excerpt(name),
        })?;
        Ok(Zone {
            name: time_zone.iana_name().unwrap_or(name).to_owned(),
            time_zone,
            follows_host: false,
        })
    }

    /// Returns which database a name is found in.
    #[must_use]
    pub fn source_of(&self, name: &str) -> Option<Source> {
        self.find(name).map(|(_, source)| source)
    }

    /// Returns the zone of the variable `TZ`, as tzset(3) reads it, for a caller who has set it:
    /// a name, or a path in the database, both after a colon or not. Empty is UTC.
    ///
    /// # Errors
    /// If it is no name of the database; a rule such as `CET-1CEST` is none.
    pub fn from_variable(&self, value: &str) -> Result<Zone, ZoneError> {
        let value = value.strip_prefix(':').unwrap_or(value);
        if value.is_empty() {
            return self.get("UTC");
        }
        if value == LOCALTIME {
            return self.local();
        }
        self.get(local::name_in_path(Path::new(value)).unwrap_or(value))
    }

    fn find(&self, name: &str) -> Option<(TimeZone, Source)> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(known) {
            return None;
        }
        let first = self.source();
        let second = match first {
            Source::Host => Source::Bundled,
            Source::Bundled => Source::Host,
        };
        [first, second].into_iter().find_map(|source| {
            let zone = match source {
                Source::Host => self.host.get(name),
                Source::Bundled => TimeZoneDatabase::bundled().get(name),
            };
            // `Etc/Unknown` is known to the library, as UTC.
            Some((zone.ok().filter(|zone| !zone.is_unknown())?, source))
        })
    }

    fn local(&self) -> Result<Zone, ZoneError> {
        let mut zone = match &self.local {
            Local::Named(name) => self.get(name).map_err(|_| ZoneError::Local {
                path: self.localtime.display().to_string(),
                reason: format!(
                    "it is a link to the zone {}, which is unknown",
                    excerpt(name)
                ),
            })?,
            // localtime(5): without the file it is UTC.
            Local::Absent => self.get("UTC")?,
            Local::File(time_zone) => Zone {
                name: self.localtime.display().to_string(),
                time_zone: time_zone.clone(),
                follows_host: true,
            },
            Local::Unreadable(reason) => {
                return Err(ZoneError::Local {
                    path: self.localtime.display().to_string(),
                    reason: reason.clone(),
                });
            }
        };
        zone.follows_host = true;
        Ok(zone)
    }

    /// Whether the host's database or its own zone was replaced since they were read. Looks at the
    /// entries of the directory, and reads the own zone if it is no link. A file that is replaced in
    /// a directory within a directory is not seen; packages replace more.
    #[must_use]
    pub fn changed(&self) -> bool {
        Stamp::of_data(&self.directory) != self.data || Local::read(&self.localtime) != self.local
    }

    /// Reads all again. Zones that were given out before keep their rules: get them again.
    pub fn reload(&mut self) -> Reloaded {
        let new = Self::open_with(&self.directory, &self.localtime);
        let local = (new.local != self.local).then(|| (self.local_name(), new.local_name()));
        let data = new.data != self.data;
        *self = new;
        Reloaded { data, local }
    }

    /// Returns the name of the host's own zone; if it cannot be used, the path of its file.
    #[must_use]
    pub fn local_name(&self) -> String {
        match self.local() {
            Ok(zone) => zone.name,
            Err(_) => self.localtime.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
