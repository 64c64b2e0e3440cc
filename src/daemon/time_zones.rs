//! Follows the host's time zones.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::policy::Registry;

/// How often the host's time zones are looked at while timers use some.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Tells all loops when the host's database of time zones or its own zone is replaced.
pub(super) async fn follow(registry: Weak<Registry>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(registry) = registry.upgrade() else {
            return;
        };
        let zones = Arc::clone(&registry.services().time_zones);
        let refreshed = tokio::task::spawn_blocking(move || {
            let changed = zones.refresh();
            changed.map(|changed| (changed, zones.facts()))
        });
        if let Ok(Some((changed, now))) = refreshed.await {
            tracing::info!(
                data = changed.data,
                version = now.version,
                local = now.local,
                "the host's time zones were replaced"
            );
            registry.zones_changed();
        }
    }
}
