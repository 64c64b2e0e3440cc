//! The default paths of files: XDG Base Directory Specification, hier(7).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Server;

const NAME: &str = "evloopd";
/// The runtime directory of root's daemon.
const SYSTEM_RUNTIME: &str = "/run/evloopd";

/// The user and the environment variables that the default paths depend on.
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

    /// Returns the absolute path in a variable; as the specification says, a relative path is
    /// ignored.
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

/// Returns the file that is read when none is given; it need not exist.
pub(super) fn config_file() -> Option<PathBuf> {
    Surroundings::here().config_file()
}

/// Returns the directory of the sockets: `/run/evloopd` for root, else `$XDG_RUNTIME_DIR/evloopd`.
/// Without that variable it is `/run/user/UID/evloopd` if `/run/user/UID` exists, else
/// `/tmp/evloopd-UID`.
///
/// A caller that creates the directory must give it mode 0700, and must not use a directory of
/// another user.
#[must_use]
pub fn runtime_directory() -> PathBuf {
    Surroundings::here().runtime_directory()
}

/// Returns the default path of the socket of this user's daemon.
#[must_use]
pub fn user_socket() -> PathBuf {
    runtime_directory().join("evloopd.sock")
}

/// Returns the default path of the socket of root's daemon.
#[must_use]
pub fn system_socket() -> PathBuf {
    Path::new(SYSTEM_RUNTIME).join("evloopd.sock")
}

impl Server {
    /// Returns the path of the service's socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(user_socket)
    }

    /// Returns the path of the socket for file descriptors.
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
