//! What a policy can refuse, and how that is written in TOML: a list of `NAME: REASON`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serializer};

use super::shape::unknown;
use crate::kinds::WatchKind;

/// Most bytes of a reason.
const REASON_MAX: usize = 256;
/// The reason if none is given.
const NO_REASON: &str = "the policy refuses it";

/// What a policy can refuse, by the names that capabilities of backends have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusable {
    /// A kind of watch.
    Kind(WatchKind),
    /// The address of a Unix socket, in connections, listeners and datagram watches.
    UnixSocket,
    /// A terminal, the master side of a pseudoterminal, or another character device: one that a
    /// client hands over, or the terminal of a child.
    CharacterDevice,
}

impl Refusable {
    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.name(),
            Self::UnixSocket => "unix_socket",
            Self::CharacterDevice => "character_device",
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let kinds = WatchKind::ALL.into_iter().map(Self::Kind);
        kinds.chain([Self::UnixSocket, Self::CharacterDevice])
    }
}

impl fmt::Display for Refusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Refusable {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = Self::all().find(|known| known.name() == word);
        known.ok_or_else(|| {
            unknown(
                "thing that can be refused",
                word,
                Self::all().map(Self::name),
            )
        })
    }
}

/// Returns a set of refusals with their reasons.
pub(super) fn of(refusals: &[(Refusable, &str)]) -> BTreeMap<Refusable, String> {
    let owned = refusals.iter().map(|(of, why)| (*of, (*why).to_owned()));
    owned.collect()
}

pub(super) fn serialize<S: Serializer>(
    refusals: &BTreeMap<Refusable, String>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(refusals.iter().map(|(of, why)| format!("{of}: {why}")))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<Refusable, String>, D::Error> {
    let mut refusals = BTreeMap::new();
    for entry in Vec::<String>::deserialize(from)? {
        let (word, reason) = entry.split_once(':').unwrap_or((&entry, NO_REASON));
        let of: Refusable = word.trim().parse().map_err(D::Error::custom)?;
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON_MAX || reason.contains(char::is_control) {
            let what = format!("the reason of `{of}` is not valid");
            return Err(D::Error::custom(format!(
                "{what}, allowed are 1 to {REASON_MAX} bytes on one line"
            )));
        }
        if refusals.insert(of, reason.to_owned()).is_some() {
            let what = format!("`{of}` is refused twice, allowed is once");
            return Err(D::Error::custom(what));
        }
    }
    Ok(refusals)
}
