//! A loop whose backend failed.

use std::io;

use rustix::io::Errno;

use super::EventLoop;
use crate::driver;
use crate::event::CloseReason;

impl EventLoop {
    /// Waiting itself failed: the loop closes, and every watch ends with the error. What was under
    /// way has no end of its own any more.
    pub(super) fn broken(&mut self, error: &io::Error) {
        tracing::error!(on = self.shared.full_name, %error, "the backend failed; the loop closes");
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        self.driver = driver::broken(self.bell.eventfd());
        self.realtime.forget();
        self.begin_close(CloseReason::Error, Some(errno));
    }
}
