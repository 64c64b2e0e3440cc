//! What a child has of its own beside its program: umask, nice value, OOM score, limits.

use std::collections::BTreeMap;

use crate::config::{Children, Limit, Resource};

/// What is not there is left as it is.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// Permissions that files do not get, at most 0777.
    pub umask: Option<u32>,
    /// Nice value, -20 to 19.
    pub nice: Option<i32>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Of setrlimit(2).
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
    /// Each that is there, and the others as they are below.
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

    /// As far as this process can hand them to a child without a privilege. What somebody only
    /// happens to have must not keep his programs from running.
    #[must_use]
    pub fn within_our_own(mut self) -> Self {
        self.limits.retain(|resource, limit| {
            let own = resource.own();
            *limit = limit.within(own);
            // What we have ourselves a child has anyway.
            *limit != own
        });
        // It cannot fail for the calling process.
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        self.nice = self.nice.map(|nice| nice.max(own));
        self
    }
}
