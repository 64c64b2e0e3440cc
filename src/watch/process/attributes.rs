//! The attributes of a child process: umask, nice value, OOM score adjustment, limits.

use std::collections::BTreeMap;

use crate::config::{Children, Limit, Resource};

/// The attributes to set. Absent ones are left as the child inherits them.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// The permissions that new files do not get, at most 0777.
    pub umask: Option<u32>,
    /// The nice value, -20 to 19.
    pub nice: Option<i32>,
    /// The OOM score adjustment, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// The limits for setrlimit(2).
    pub limits: BTreeMap<Resource, Limit>,
}

impl From<&Children> for Attributes {
    fn from(children: &Children) -> Self {
        Self {
            umask: children.umask,
            nice: children.nice,
            oom_score_adj: children.oom_score_adj,
            limits: children.limits.clone(),
        }
    }
}

impl Attributes {
    /// Returns these attributes, with those of `below` where one is absent.
    #[must_use]
    pub fn over(mut self, below: &Self) -> Self {
        for (resource, limit) in &below.limits {
            self.limits.entry(*resource).or_insert(*limit);
        }
        Self {
            umask: self.umask.or(below.umask),
            nice: self.nice.or(below.nice),
            oom_score_adj: self.oom_score_adj.or(below.oom_score_adj),
            limits: self.limits,
        }
    }

    /// Returns the attributes limited to what this process can set for a child without a privilege.
    /// They come from the client's own attributes, and must not keep its programs from starting.
    #[must_use]
    pub fn within_our_own(mut self) -> Self {
        self.limits.retain(|resource, limit| {
            let own = resource.own();
            *limit = limit.within(own);
            // A limit that equals the daemon's own need not be set, because a child inherits it.
            *limit != own
        });
        // It cannot fail for the calling process.
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        self.nice = self.nice.map(|nice| nice.max(own));
        self
    }
}
