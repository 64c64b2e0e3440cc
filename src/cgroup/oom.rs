//! What the kernel has killed for lack of memory.

use std::fs;

use super::{place, value};

/// Returns how many processes of the daemon's own cgroup the kernel has killed for lack of memory, its
/// own or that of the host. `None` if the kernel does not tell. Processes of cgroups below it do not
/// count, where the kernel tells them apart (Linux 5.2).
#[must_use]
pub fn oom_kills() -> Option<u64> {
    let unified = place::present().ok().map(|own| own.path);
    let unified = unified.iter().flat_map(|path| {
        let files = ["memory.events.local", "memory.events"];
        files.map(|file| path.join(file))
    });
    let single = place::of_memory().map(|path| path.join("memory.oom_control"));
    let mut files = unified.chain(single);
    files.find_map(|file| value(&fs::read_to_string(file).ok()?, "oom_kill"))
}
