//! The user and groups that a child runs as.

use nix::unistd::{Group, User};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{Error, Result};
use crate::sys::Credentials;

/// The user and groups that a client asks for: names or numbers.
#[derive(Debug, Clone, Default)]
pub struct UserOrder {
    /// The user; empty: the daemon's.
    pub user: String,
    /// The group; empty: the user's own.
    pub group: String,
    /// The supplementary groups; empty: those of the host's user database.
    pub groups: Vec<String>,
}

const USER: &str = "spec.process.user";
const GROUP: &str = "spec.process.group";
const GROUPS: &str = "spec.process.groups";

impl UserOrder {
    /// Looks the names up. `None`: the child runs as the daemon does. May block, because the host's
    /// user database may be on another host.
    ///
    /// # Errors
    /// A name is not known, or the daemon may not start processes as another user.
    pub(super) fn resolve(&self) -> Result<Option<Credentials>> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let (uid, entry) = self.find_user()?;
        let own = rustix::process::geteuid();
        if uid == own && self.group.is_empty() && self.groups.is_empty() {
            return Ok(None);
        }
        may_change(uid, own)?;
        let gid = match (&*self.group, &entry) {
            ("", Some(entry)) => gid(entry.gid),
            ("", None) => {
                let allowed = format!("must be set: the host knows no user {}", self.user);
                return Err(Error::invalid(GROUP, allowed));
            }
            (group, _) => find_group(GROUP, group)?,
        };
        let groups = match &entry {
            _ if !self.groups.is_empty() => {
                let groups = self.groups.iter().map(|group| find_group(GROUPS, group));
                groups.collect::<Result<_>>()?
            }
            Some(entry) => of_database(entry, gid)?,
            None => vec![gid],
        };
        Ok(Some(Credentials { uid, gid, groups }))
    }

    /// Returns the user, and what the host knows about it.
    fn find_user(&self) -> Result<(Uid, Option<User>)> {
        let failed =
            |errno| Error::invalid(USER, format!("the lookup of {} failed: {errno}", self.user));
        if let Some(number) = number(&self.user) {
            let entry = User::from_uid(number.into()).map_err(failed)?;
            return Ok((Uid::from_raw(number), entry));
        }
        let entry = User::from_name(&self.user).map_err(failed)?;
        let entry = entry
            .ok_or_else(|| Error::invalid(USER, format!("the host has no user `{}`", self.user)))?;
        Ok((Uid::from_raw(entry.uid.as_raw()), Some(entry)))
    }
}

/// Fails unless the daemon may start a process as that user.
fn may_change(uid: Uid, own: Uid) -> Result<()> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    if capabilities(None).is_ok_and(|sets| sets.effective.contains(needed)) {
        return Ok(());
    }
    Err(Error::PermissionDenied {
        message: format!(
            "{USER}: this daemon runs as uid {own}, without CAP_SETUID and CAP_SETGID, and can start \
             no process as uid {uid} or with other groups"
        ),
    })
}

/// Returns a number that is no special value: -1 means "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}

fn gid(of: nix::unistd::Gid) -> Gid {
    Gid::from_raw(of.as_raw())
}

fn find_group(field: &'static str, name: &str) -> Result<Gid> {
    if let Some(number) = number(name) {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(gid(group.gid)),
        Ok(None) => Err(Error::invalid(
            field,
            format!("the host has no group `{name}`"),
        )),
        Err(errno) => Err(Error::invalid(
            field,
            format!("the lookup of {name} failed: {errno}"),
        )),
    }
}

/// Returns the groups that the host's database gives the user.
fn of_database(entry: &User, own: Gid) -> Result<Vec<Gid>> {
    let name = std::ffi::CString::new(entry.name.as_str());
    let name = name.map_err(|_| Error::invalid(USER, "must not contain NUL"))?;
    let groups = nix::unistd::getgrouplist(&name, own.as_raw().into());
    let groups = groups.map_err(|errno| {
        Error::invalid(
            GROUPS,
            format!("the lookup for {} failed: {errno}", entry.name),
        )
    })?;
    Ok(groups.into_iter().map(gid).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(user: &str, group: &str) -> UserOrder {
        UserOrder {
            user: user.to_owned(),
            group: group.to_owned(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn the_own_user_changes_nothing() {
        let own = rustix::process::geteuid().as_raw().to_string();
        assert!(order(&own, "").resolve().unwrap().is_none());
        assert!(order("", "").resolve().unwrap().is_none());
    }

    #[test]
    fn what_the_host_does_not_know_is_named() {
        for (user, group, field) in [
            ("no-such-user", "", USER),
            ("4294967295", "", USER),
            ("0", "no-such-group", GROUP),
        ] {
            match order(user, group).resolve().unwrap_err() {
                Error::InvalidField { field: told, .. } => assert_eq!(told, field),
                // Without privileges, that comes first.
                Error::PermissionDenied { .. } if field == GROUP => {}
                other => panic!("{other}"),
            }
        }
    }
}
