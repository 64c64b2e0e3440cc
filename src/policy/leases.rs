//! The ends of lifetimes of loops, and the leases that run out.

use std::sync::Arc;

use super::{Inner, Registry};
use crate::event::CloseReason;
use crate::event_loop::{Handle, LifetimeEnd, LoopEnd};

impl Registry {
    /// Waits until the lease of a loop runs out, and then does what it asked for.
    pub(super) fn follow_lease(self: &Arc<Self>, inner: &mut Inner, on: Handle) {
        let (id, registry) = (on.id(), Arc::downgrade(self));
        let waiter = self.services.runtime.spawn(async move {
            // It is looked at again when it would have run out, because it may have been renewed.
            while let Some(left) = on.lifetime().lease().map(crate::event_loop::Lease::left) {
                if left.is_zero() {
                    break;
                }
                tokio::time::sleep(left).await;
            }
            if let Some(registry) = registry.upgrade() {
                // LoopEnd the loop ends this task.
                let over =
                    async move { registry.lifetime_over(&on, CloseReason::LeaseExpired).await };
                tokio::spawn(over);
            }
        });
        inner.leases.insert(id, waiter.abort_handle());
    }

    /// Does to a loop whose lifetime has ended what it asked for.
    pub(super) async fn lifetime_over(self: &Arc<Self>, on: &Handle, reason: CloseReason) {
        let at_end = on.lifetime().at_end();
        let done = if at_end == LifetimeEnd::Keep {
            self.inner.lock().unbind(on.id());
            on.keep(reason).await
        } else {
            let end = LoopEnd {
                force: true,
                reason,
                kill_tree: at_end == LifetimeEnd::KillTree,
            };
            self.close(on, end).await.map(drop)
        };
        if let Err(error) = done {
            tracing::warn!(on = on.full_name(), %error, "cannot act at the end of a loop's lifetime");
        }
    }
}
