//! How much memory the cgroups around the daemon allow it.

use std::fs;
use std::path::{Path, PathBuf};

use super::place;

/// The limit of a cgroup of version 2, and of version 1.
const FILES: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];

/// Returns the least limit of memory, bytes, of this process's cgroup and those above it that are
/// visible here, and the file that has it. `None` if there is none.
#[must_use]
pub fn memory_limit() -> Option<(u64, PathBuf)> {
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let [second, first] = place::with_memory(&cgroup, &mounts);
    let of = |path: Option<PathBuf>, file| least(&path?, file);
    of(second, FILES[0]).or_else(|| of(first, FILES[1]))
}

/// Returns the least number in files of that name in a cgroup and those above it.
fn least(path: &Path, name: &str) -> Option<(u64, PathBuf)> {
    path.ancestors()
        .take_while(|above| above.join("cgroup.procs").exists())
        .filter_map(|above| {
            let file = above.join(name);
            // `max`: it has none.
            let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
            Some((bytes, file))
        })
        .min_by_key(|(bytes, _)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_is_that_of_any_cgroup_above() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("a/b/c");
        fs::create_dir_all(&own).unwrap();
        // What lies above the mount is no cgroup.
        fs::write(root.path().join("memory.max"), "1\n").unwrap();
        let limits = [("a", "5000\n"), ("a/b", "4000\n"), ("a/b/c", "max\n")];
        for (cgroup, limit) in limits {
            let cgroup = root.path().join(cgroup);
            fs::write(cgroup.join("cgroup.procs"), "").unwrap();
            fs::write(cgroup.join("memory.max"), limit).unwrap();
        }
        let file = root.path().join("a/b/memory.max");
        assert_eq!(least(&own, "memory.max"), Some((4000, file)));
        assert_eq!(least(&own, "memory.limit_in_bytes"), None);
        assert_eq!(least(&root.path().join("a"), "memory.max").unwrap().0, 5000);
    }
}
