//! Finds the cgroup that the daemon is in.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The cgroup in which the daemon makes others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// Its directory.
    pub(super) path: PathBuf,
    /// Its name in /proc/PID/cgroup.
    pub(super) name: String,
    /// Whether it is delegated to the daemon and has no processes itself, so that controllers can be
    /// enabled in it.
    pub(super) is_delegated: bool,
}

/// Finds the daemon's own cgroup, which is its keeper's, too.
///
/// # Errors
/// Why there is none.
pub(super) fn own(keeper: Option<i32>) -> Result<Own, String> {
    let own = present()?;
    let divided = || {
        is_delegated(&own.path)
            .then(|| own.divided(keeper))
            .flatten()
    };
    Ok(own.above().or_else(divided).unwrap_or(own))
}

/// As [`own`], for a cgroup that is known to be delegated: a service manager of a user may not mark it.
pub(super) fn delegated(keeper: Option<i32>) -> Result<Own, String> {
    let own = present()?;
    Ok(own.divided(keeper).unwrap_or(own))
}

/// Returns the cgroup that the daemon is in.
pub(super) fn present() -> Result<Own, String> {
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))
    };
    of(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
}

impl Own {
    /// Returns the cgroup above.
    pub(super) fn parent(&self) -> Option<Self> {
        let path = self.path.parent()?;
        let (name, _) = self.name.rsplit_once('/')?;
        Some(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            is_delegated: is_delegated(path),
        })
    }

    /// Returns the cgroup above, if that is delegated and this one is a part of it.
    fn above(&self) -> Option<Self> {
        let above = self.parent()?;
        (above.is_delegated && !is_delegated(&self.path)).then_some(above)
    }

    /// Moves the daemon and its keeper to a part of this cgroup, which is delegated, if it could count
    /// memory.
    fn divided(&self, keeper: Option<i32>) -> Option<Self> {
        if !has_memory(&self.path) {
            return None;
        }
        let part = self.path.join(PART);
        // It may be there from an earlier daemon.
        let _ = fs::create_dir(&part);
        let procs = part.join("cgroup.procs");
        // A cgroup with processes gives none of its controllers to those below it.
        if let Some(keeper) = keeper {
            fs::write(&procs, keeper.to_string()).ok()?;
        }
        fs::write(&procs, "0").ok()?;
        Some(Self {
            path: self.path.clone(),
            name: self.name.clone(),
            is_delegated: true,
        })
    }
}

/// Returns whether a cgroup has the memory controller.
pub(super) fn has_memory(path: &Path) -> bool {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    controllers
        .split_ascii_whitespace()
        .any(|of| of == "memory")
}

/// The part of a delegated cgroup that the daemon moves to.
const PART: &str = "daemon";

/// Returns whether systemd has delegated a cgroup, which it marks with an attribute.
fn is_delegated(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"]
        .into_iter()
        .any(|name| {
            let mut value = [0; 8];
            let read = rustix::fs::getxattr(path, name, &mut value[..]);
            read.is_ok_and(|len| value.get(..len) == Some(b"1"))
        })
}

fn of(cgroup: &str, mounts: &str) -> Result<Own, String> {
    let name = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let name = name.ok_or("the kernel has no cgroups of version 2")?;
    let path = mounts.lines().find_map(|line| place(line, name));
    let path = path.ok_or("no file system of cgroups of version 2 is mounted here")?;
    Ok(Own {
        path,
        name: name.to_owned(),
        is_delegated: false,
    })
}

/// Returns the directories of a process's cgroup of version 2, and of that of version 1 which limits
/// memory, from its cgroups and mounts, as in /proc/self. `None` where it has none or shows none.
pub(super) fn with_memory(cgroup: &str, mounts: &str) -> [Option<PathBuf>; 2] {
    let first = cgroup.lines().find_map(|line| {
        let (controllers, name) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(is_memory).then_some(name)
    });
    let limits_memory = |system: &str| {
        let options = system.rsplit(' ').next();
        system.starts_with("cgroup ") && options.is_some_and(|all| all.split(',').any(is_memory))
    };
    let first = first.and_then(|name| {
        let mut lines = mounts.lines();
        lines.find_map(|line| place_on(line, name, limits_memory))
    });
    [of(cgroup, mounts).ok().map(|own| own.path), first]
}

/// Returns the directory of the daemon's cgroup of version 1 whose memory is limited.
pub(super) fn of_memory() -> Option<PathBuf> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let [_, first] = with_memory(&cgroups, &mounts);
    first
}

/// Returns whether a file system, as in proc_pid_mountinfo(5), is that of cgroups of version 2.
fn is_unified(system: &str) -> bool {
    system.starts_with("cgroup2 ")
}

fn is_memory(word: &str) -> bool {
    word == "memory"
}

/// Returns the directory of a cgroup below that mount, a line of proc_pid_mountinfo(5). `None` if it
/// is no mount of cgroups of version 2, or does not show this one.
fn place(line: &str, name: &str) -> Option<PathBuf> {
    place_on(line, name, is_unified)
}

/// As [`place`], for mounts of those file systems: the type, the source and the options.
fn place_on(line: &str, name: &str, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let (mount, system) = line.split_once(" - ")?;
    if !is_wanted(system) {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let rest = match root {
        "/" => name,
        root => name.strip_prefix(root)?,
    };
    (rest.is_empty() || rest.starts_with('/'))
        .then(|| Path::new(&unescaped(point)).join(rest.trim_start_matches('/')))
}

/// Undoes the escapes of mountinfo: `\040` for a space.
fn unescaped(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_wherever_version_2_is_mounted() {
        let hybrid = "9:name=systemd:/x\n4:memory:/y\n0::/a/b\n";
        let mounts = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let own = of(hybrid, mounts).unwrap();
        assert_eq!(own.path, Path::new("/sys/fs/cgroup/uni fied/a/b"));
        assert_eq!(own.name, "/a/b");
        // A mount that shows a part: of a container without a namespace of its own.
        let part = "41 31 0:38 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            of("0::/a/b", part).unwrap().path,
            Path::new("/sys/fs/cgroup/b")
        );
        assert_eq!(
            of("0::/a", part).unwrap().path,
            Path::new("/sys/fs/cgroup/")
        );
        assert_eq!(
            with_memory(hybrid, mounts),
            ["/sys/fs/cgroup/uni fied/a/b", "/sys/fs/cgroup/memory/y"].map(|p| Some(p.into()))
        );
        assert_eq!(with_memory("0::/a\n", ""), [None, None]);
        for (cgroup, mounts, why) in [
            ("0::/ab", part, "mounted here"),
            ("0::/", "", "mounted here"),
            ("4:memory:/y\n", mounts, "no cgroups of version 2"),
        ] {
            let error = of(cgroup, mounts).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
