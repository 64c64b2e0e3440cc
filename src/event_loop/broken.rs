//! Closes a loop whose backend failed.

use std::io;

use rustix::io::Errno;

use super::EventLoop;
use crate::driver;
use crate::event::CloseReason;

impl EventLoop {
    /// Closes the loop after the backend failed to wait. Every watch ends with this error. The
    /// operations in progress will not complete any more.
    pub(super) fn backend_failed(&mut self, error: &io::Error) {
        tracing::error!(on = self.shared.full_name, %error, "the backend failed; the loop closes");
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        self.driver = driver::broken(self.wakeup.eventfd());
        self.realtime.forget();
        self.closes.reason = CloseReason::Error;
        self.begin_close(CloseReason::Error, Some(errno));
    }
}
