//! How watches are named on the command line. A number is a name too; an id is written `@7`, or given by `--id`.

use clap::Args;

use super::complete;
use super::parse;
use crate::proto::WatchRef;

/// One watch.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct OneWatch {
    /// The name, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watch: Option<WatchRef>,
    /// The id, instead of a name
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_id: Option<WatchRef>,
}

impl OneWatch {
    pub(super) fn reference(self) -> WatchRef {
        self.watch.or(self.watch_id).unwrap_or_default()
    }
}

/// At least one watch.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Watches {
    /// The names, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watches: Vec<WatchRef>,
    /// An id, instead of a name; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_ids: Vec<WatchRef>,
}

impl Watches {
    pub(super) fn references(self) -> impl Iterator<Item = WatchRef> {
        self.watches.into_iter().chain(self.watch_ids)
    }
}
