//! Attributes that a process hands to its children: limits of setrlimit(2), written as a resource's
//! name and `SOFT:HARD`, and the allowed ranges of the umask, the nice value and oom_score_adj.

use std::fmt;
use std::str::FromStr;

use rustix::process::{Resource as Kernel, Rlimit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::Text;

/// All permissions, umask(2).
pub const UMASK_MAX: u32 = 0o777;
/// The lowest and the highest nice value, setpriority(2).
pub const NICE: (i32, i32) = (-20, 19);
/// The lowest and the highest value of proc_pid_oom_score_adj(5).
pub const OOM_SCORE_ADJ: (i32, i32) = (-1000, 1000);

/// All resources, sorted by name.
const RESOURCES: [(&str, Kernel); 16] = [
    ("as", Kernel::As),
    ("core", Kernel::Core),
    ("cpu", Kernel::Cpu),
    ("data", Kernel::Data),
    ("fsize", Kernel::Fsize),
    ("locks", Kernel::Locks),
    ("memlock", Kernel::Memlock),
    ("msgqueue", Kernel::Msgqueue),
    ("nice", Kernel::Nice),
    ("nofile", Kernel::Nofile),
    ("nproc", Kernel::Nproc),
    ("rss", Kernel::Rss),
    ("rtprio", Kernel::Rtprio),
    ("rttime", Kernel::Rttime),
    ("sigpending", Kernel::Sigpending),
    ("stack", Kernel::Stack),
];
const NAMES: &str = "as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, \
                     rss, rtprio, rttime, sigpending, stack";
const LIMIT: &str = "SOFT or SOFT:HARD, each a number or `unlimited`, SOFT at most HARD";
const UNLIMITED: &str = "unlimited";

/// A resource of setrlimit(2). Its name is that of the constant in lower case, without `RLIMIT_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource(usize);

impl Resource {
    /// File descriptors.
    pub const NOFILE: Self = Self(9);

    /// Returns all resources, sorted by name.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..RESOURCES.len()).map(Self)
    }

    /// Returns its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        RESOURCES[self.0].0
    }

    /// Returns the resource as the system calls take it.
    #[must_use]
    pub const fn kernel(self) -> Kernel {
        RESOURCES[self.0].1
    }

    /// Returns the calling process's own limit.
    #[must_use]
    pub fn own(self) -> Limit {
        rustix::process::getrlimit(self.kernel()).into()
    }
}

impl FromStr for Resource {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::all().find(|resource| resource.name() == name);
        found.ok_or_else(|| format!("`{name}` is not a resource; allowed are {NAMES}"))
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            expected: NAMES,
            parse: |name| name.parse().ok(),
        })
    }
}

/// A limit: `u64::MAX`, which is RLIM_INFINITY, means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit in force.
    pub soft: u64,
    /// The value up to which the process may raise `soft`; at least `soft`.
    pub hard: u64,
}

impl Limit {
    /// Lowers the limit to what a process whose own limit is `own` may set without a privilege.
    #[must_use]
    pub fn within(self, own: Self) -> Self {
        let hard = self.hard.min(own.hard);
        Self {
            soft: self.soft.min(hard),
            hard,
        }
    }
}

impl From<Rlimit> for Limit {
    fn from(limit: Rlimit) -> Self {
        Self {
            soft: limit.current.unwrap_or(u64::MAX),
            hard: limit.maximum.unwrap_or(u64::MAX),
        }
    }
}

impl From<Limit> for Rlimit {
    fn from(limit: Limit) -> Self {
        let bounded = |value| Some(value).filter(|value| *value != u64::MAX);
        Self {
            current: bounded(limit.soft),
            maximum: bounded(limit.hard),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    /// Reads `SOFT:HARD`, or one value for both.
    fn from_str(text: &str) -> Result<Self, String> {
        let value = |text: &str| match text {
            UNLIMITED => Some(u64::MAX),
            number => number.parse().ok(),
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        match (value(soft), value(hard)) {
            (Some(soft), Some(hard)) if soft <= hard => Ok(Self { soft, hard }),
            _ => Err(format!("`{text}` is not a limit, allowed is {LIMIT}")),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: u64| match value {
            u64::MAX => UNLIMITED.to_owned(),
            value => value.to_string(),
        };
        write!(f, "{}:{}", value(self.soft), value(self.hard))
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            expected: LIMIT,
            parse: |text| text.parse().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_shown() {
        let limit = |soft, hard| Limit { soft, hard };
        for (text, expected) in [
            ("0", limit(0, 0)),
            ("1024:4096", limit(1024, 4096)),
            ("1024:unlimited", limit(1024, u64::MAX)),
            ("unlimited", limit(u64::MAX, u64::MAX)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
            assert_eq!(expected.to_string().parse(), Ok(expected));
        }
        for wrong in [
            "",
            ":",
            "1:",
            ":1",
            "2:1",
            "unlimited:1",
            "-1",
            "1:2:3",
            "1k",
        ] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_resource_has_its_name() {
        let names: Vec<&str> = Resource::all().map(Resource::name).collect();
        assert_eq!(names.join(", "), NAMES);
        for resource in Resource::all() {
            assert_eq!(resource.name().parse(), Ok(resource));
            let kernel = format!("{:?}", resource.kernel()).to_ascii_lowercase();
            assert_eq!(kernel, resource.name());
        }
        assert_eq!(Resource::NOFILE.name(), "nofile");
        assert!("NOFILE".parse::<Resource>().is_err());
    }

    #[test]
    fn no_limit_goes_beyond_the_hard_one_of_who_sets_it() {
        let own = Limit { soft: 5, hard: 10 };
        let within = |soft, hard| Limit { soft, hard }.within(own).to_string();
        assert_eq!(within(7, 9), "7:9");
        assert_eq!(within(7, 20), "7:10");
        assert_eq!(within(20, u64::MAX), "10:10");
    }
}
