//! The screens of terminals with which a loop goes on.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Api;
use super::processes::{join, place_of};
use crate::error::Result;
use crate::event_loop::{Handle, WatchFilter};
use crate::proto::Watch;

/// How long the daemon waits at its start for the screens. Those that are missing follow.
const WAIT: Duration = Duration::from_secs(1);
/// Watches of one call.
const PAGE: usize = 256;

impl Api {
    /// Makes the screens of processes that earlier lives have started, from their history.
    pub async fn take_up_screens(&self, all: Vec<Handle>) {
        let mut loops = JoinSet::new();
        for on in all {
            let api = self.clone();
            loops.spawn(async move {
                if let Err(error) = api.take_up_screens_of(&on).await {
                    tracing::error!(on = on.full_name(), %error, "screens of the life before are lost");
                }
            });
        }
        let all = async { while loops.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(WAIT, all).await;
        loops.detach_all();
    }

    async fn take_up_screens_of(&self, on: &Handle) -> Result<()> {
        let mut after = 0;
        loop {
            let filter = WatchFilter {
                kinds: ["process".to_owned()].into(),
                ..WatchFilter::default()
            };
            let counted = |_: &[Watch]| Ok(());
            let (page, _) = on.list(after, PAGE, filter, counted).await?;
            for watch in &page.items {
                self.take_up_screen(on, watch)?;
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    fn take_up_screen(&self, on: &Handle, watch: &Watch) -> Result<()> {
        if let Some(place) = place_of(&self.terminals, watch.spec.as_ref())? {
            let answered = on.journal().status().newest;
            let reader = join(on, watch, None)?;
            self.terminals
                .take_up(on, watch.watch_id, place, reader, answered);
        }
        Ok(())
    }
}
