//! Where files are looked for when nobody says: XDG Base Directory Specification, hier(7).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Server;

const NAME: &str = "evloopd";
/// The system instance's runtime directory.
const SYSTEM_RUNTIME: &str = "/run/evloopd";

/// What the places depend on.
struct Surroundings {
    uid: u32,
    var: fn(&str) -> Option<OsString>,
}

impl Surroundings {
    fn here() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            var: |name| std::env::var_os(name),
        }
    }

    /// An absolute path from a variable; the specification has others ignored.
    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.var)(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    }

    fn config_file(&self) -> Option<PathBuf> {
        let directory = if self.uid == 0 {
            PathBuf::from("/etc")
        } else {
            self.path("XDG_CONFIG_HOME")
                .or_else(|| Some(self.path("HOME")?.join(".config")))?
        };
        Some(directory.join(NAME).join("evloopd.toml"))
    }

    fn runtime_directory(&self) -> PathBuf {
        if self.uid == 0 {
            return PathBuf::from(SYSTEM_RUNTIME);
        }
        let login =
            || Some(PathBuf::from(format!("/run/user/{}", self.uid))).filter(|d| d.is_dir());
        match self.path("XDG_RUNTIME_DIR").or_else(login) {
            Some(directory) => directory.join(NAME),
            None => PathBuf::from(format!("/tmp/{NAME}-{}", self.uid)),
        }
    }
}

/// The file that is read when none is given; it need not exist.
pub(super) fn config_file() -> Option<PathBuf> {
    Surroundings::here().config_file()
}

/// The directory of the sockets: `/run/evloopd` for root, else `$XDG_RUNTIME_DIR/evloopd`
/// (without that variable below `/run/user/UID` if it exists, else `/tmp/evloopd-UID`).
///
/// Whoever creates it gives it mode 0700, and uses none that belongs to another user.
#[must_use]
pub fn runtime_directory() -> PathBuf {
    Surroundings::here().runtime_directory()
}

/// The socket of this user's daemon, where nothing else is configured.
#[must_use]
pub fn user_socket() -> PathBuf {
    runtime_directory().join("evloopd.sock")
}

/// The socket of the system's daemon, where nothing else is configured.
#[must_use]
pub fn system_socket() -> PathBuf {
    Path::new(SYSTEM_RUNTIME).join("evloopd.sock")
}

impl Server {
    /// Where the service's socket is.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(user_socket)
    }

    /// Where the socket for file descriptors is.
    #[must_use]
    pub fn handover_path(&self) -> PathBuf {
        self.handover_socket.clone().unwrap_or_else(|| {
            let mut path = self.socket_path().into_os_string();
            path.push(".handover");
            path.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uid: u32, var: fn(&str) -> Option<OsString>) -> (Option<PathBuf>, PathBuf) {
        let surroundings = Surroundings { uid, var };
        (surroundings.config_file(), surroundings.runtime_directory())
    }

    #[test]
    fn root_has_the_systems_places_whatever_the_environment_says() {
        let (config, runtime) = of(0, |_| Some("/elsewhere".into()));
        assert_eq!(config, Some("/etc/evloopd/evloopd.toml".into()));
        assert_eq!(runtime, Path::new("/run/evloopd"));
    }

    #[test]
    fn a_user_has_places_of_his_own_and_relative_ones_are_ignored() {
        let uid = u32::MAX - 1;
        let (config, runtime) = of(uid, |name| Some(format!("/v/{name}").into()));
        assert_eq!(
            config,
            Some("/v/XDG_CONFIG_HOME/evloopd/evloopd.toml".into())
        );
        assert_eq!(runtime, Path::new("/v/XDG_RUNTIME_DIR/evloopd"));

        let (config, runtime) = of(uid, |name| match name {
            "HOME" => Some("/home/u".into()),
            _ => Some("relative".into()),
        });
        assert_eq!(config, Some("/home/u/.config/evloopd/evloopd.toml".into()));
        assert_eq!(runtime, Path::new("/tmp/evloopd-4294967294"));

        assert_eq!(of(uid, |_| None).0, None);
    }
}
