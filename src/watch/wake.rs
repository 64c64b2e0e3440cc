//! Wakes a watch from another thread.

use std::sync::{Arc, OnceLock};

use super::{Context, Notice, Notifier};
use crate::driver::Key;
use crate::paths;

/// Sends a watch [`Notice::Woken`]. Before the watch has started it does nothing: the watch looks for
/// itself once it is connected.
#[derive(Debug, Default)]
pub(super) struct WakeUp(OnceLock<(Key, Arc<dyn Notifier>)>);

impl WakeUp {
    pub(super) fn connect(&self, cx: &Context<'_>) {
        // It is connected once.
        let _ = self.0.set((cx.key(), Arc::clone(cx.notifier)));
    }
}

impl paths::Sink for WakeUp {
    fn woken(&self) {
        if let Some((key, notifier)) = self.0.get() {
            notifier.notify(*key, Notice::Woken);
        }
    }
}
