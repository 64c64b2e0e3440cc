//! Finds out whether systemd has a unit for the daemon, systemd.unit(5).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directories of system units.
const SYSTEM: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];
/// The directories of user units for all users.
const ALL_USERS: [&str; 4] = [
    "/etc/systemd/user",
    "/run/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
];

/// Returns the command that starts a daemon for the caller: of an installed unit, else `evloopd &`.
pub(super) fn start_command() -> String {
    let root = rustix::process::geteuid().is_root();
    command(root, &|name| std::env::var_os(name), &Path::is_file)
}

fn command(
    root: bool,
    var: &dyn Fn(&str) -> Option<OsString>,
    is_file: &dyn Fn(&Path) -> bool,
) -> String {
    let has = |directories: &[PathBuf], unit: &str| {
        let mut paths = directories.iter().map(|directory| directory.join(unit));
        paths.any(|path| is_file(&path))
    };
    if root && has(&SYSTEM.map(PathBuf::from), "evloopd.service") {
        return "systemctl start evloopd".to_owned();
    }
    let absolute = |name| var(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = |below| Some(absolute("HOME")?.join(below));
    let own = [
        absolute("XDG_CONFIG_HOME").or_else(|| home(".config")),
        absolute("XDG_DATA_HOME").or_else(|| home(".local/share")),
    ];
    let own = own
        .into_iter()
        .flatten()
        .map(|path| path.join("systemd/user"));
    let user: Vec<PathBuf> = own.chain(ALL_USERS.map(PathBuf::from)).collect();
    let mut units = ["evloopd.socket", "evloopd.service"].into_iter();
    match units.find(|unit| has(&user, unit)) {
        Some(unit) => format!("systemctl --user start {unit}"),
        None => "evloopd &".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started_by(root: bool, installed: &[&str]) -> String {
        let var = |name: &str| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_DATA_HOME" => Some("/data".into()),
            _ => None,
        };
        command(root, &var, &|path| {
            installed.iter().any(|p| Path::new(p) == path)
        })
    }

    #[test]
    fn an_installed_unit_is_what_starts_the_daemon() {
        let socket = "systemctl --user start evloopd.socket";
        let service = "systemctl --user start evloopd.service";
        let own = "/home/u/.config/systemd/user/evloopd.socket";
        let data = "/data/systemd/user/evloopd.service";
        let system = "/etc/systemd/system/evloopd.service";
        assert_eq!(started_by(false, &[]), "evloopd &");
        assert_eq!(started_by(false, &[own, data]), socket);
        assert_eq!(started_by(false, &[data]), service);
        assert_eq!(
            started_by(false, &["/usr/lib/systemd/user/evloopd.socket"]),
            socket
        );
        assert_eq!(started_by(false, &[system]), "evloopd &");
        assert_eq!(started_by(true, &[own, system]), "systemctl start evloopd");
        assert_eq!(started_by(true, &[own]), socket);
    }
}
