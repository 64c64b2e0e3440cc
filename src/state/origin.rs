//! Which host and which processes state is of.

use std::os::unix::fs::MetadataExt;

/// A boot of the host, and the namespace of the pids in it (pid_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    boot: [u64; 2],
    pids: u64,
}

impl Origin {
    /// How many words it has.
    pub(super) const WORDS: usize = 3;

    /// Returns that of this process. What cannot be found out is 0.
    pub(super) fn here() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).unwrap_or_default();
        let [high, low] = [boot >> 64, boot & u128::from(u64::MAX)];
        Self {
            boot: [high, low].map(|half| u64::try_from(half).unwrap_or_default()),
            pids: std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino()),
        }
    }

    /// Returns whether it is known that the host was not started since.
    pub(super) fn is_of_this_boot(self) -> bool {
        self.boot != [0; 2] && self.boot == Self::here().boot
    }

    pub(super) const fn to_words(self) -> [u64; Self::WORDS] {
        [self.boot[0], self.boot[1], self.pids]
    }

    pub(super) const fn from_words([high, low, pids]: [u64; Self::WORDS]) -> Self {
        Self {
            boot: [high, low],
            pids,
        }
    }
}
