//! Options that name watches. A number alone is a name; an id is written `@7`, or given by `--id`.

use clap::Args;

use super::complete;
use super::parse;
use crate::proto::WatchRef;

/// Names one watch, by its name or its id.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct OneWatch {
    /// The name, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watch: Option<WatchRef>,
    /// The id of the watch, instead of its name
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_id: Option<WatchRef>,
}

impl OneWatch {
    pub(super) fn reference(self) -> WatchRef {
        self.watch.or(self.watch_id).unwrap_or_default()
    }
}

/// Names at least one watch, by names and ids.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Watches {
    /// The names, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watches: Vec<WatchRef>,
    /// The id of a watch, instead of its name; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_ids: Vec<WatchRef>,
}

impl Watches {
    pub(super) fn references(self) -> impl Iterator<Item = WatchRef> {
        self.watches.into_iter().chain(self.watch_ids)
    }
}
