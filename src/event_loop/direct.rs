//! Posts that the caller's thread appends itself, while the loop's thread waits: waking that thread,
//! and being woken by it, takes several times as long as everything else that a post needs.
//!
//! The loop's thread holds the lock of the outbox except while it waits. A post is appended
//! directly only if nothing is in the mailbox, so it never overtakes a command that came before it.
//! The effect is the same as that of a turn in which the loop carries out only this post.

use parking_lot::{ArcMutexGuard, RawMutex};

use super::Handle;
use super::commands::Posting;
use crate::clock::Now;
use crate::event::Cursor;
use crate::journal::Outbox;
use crate::poison::Critical;

/// The outbox, locked by the loop's thread.
pub(super) type Held = ArcMutexGuard<RawMutex, Outbox>;

/// Most bytes that are appended directly. More would keep the caller's thread from its other calls.
const BYTES_MAX: u64 = 16 * 1024;

impl Handle {
    /// Appends the events that a client posts on the caller's thread, and returns the cursor of the
    /// last one. Readers can read the events then. If only the loop's thread can append them,
    /// because it does not wait, has commands to carry out first, or has to make room, returns the
    /// postings.
    ///
    /// # Errors
    /// The postings, unchanged.
    pub fn post_at_once(&self, postings: Vec<Posting>) -> Result<Cursor, Vec<Posting>> {
        let room = Posting::room(&postings);
        if room.bytes > BYTES_MAX {
            return Err(postings);
        }
        let Some(mut outbox) = self.shared().outbox.try_lock() else {
            return Err(postings);
        };
        let _critical = Critical::new();
        if !self.mailbox.is_idle() || !outbox.borrow_room(room) {
            return Err(postings);
        }
        Posting::push(postings, Now::sample(), &mut outbox);
        let newest = outbox.newest();
        let calls = outbox.commit_lent();
        drop(outbox);
        if calls {
            self.mailbox.waker.kick();
        }
        Ok(self.journal().cursor(newest))
    }
}
