//! Reads the files of TLS when the daemon starts, and again when they change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::config::TlsSection;
use crate::error::{Error, Result, SystemError};
use crate::tls::Sections;

/// How often the files of TLS are looked at: a change is noticed within a second.
const INTERVAL: Duration = Duration::from_millis(500);

/// Reads the files of TLS, and starts the thread that notices when they change.
pub(super) fn sections(configured: &BTreeMap<String, TlsSection>) -> Result<Arc<Sections>> {
    let sections = Sections::load(configured).map_err(|wrong| {
        let lines = wrong.into_iter();
        let lines = lines.map(|(name, error)| format!("tls.{name}.{}: {}", error.part, error.why));
        Error::wrong_state(lines.collect::<Vec<_>>().join("; "))
    })?;
    let sections = Arc::new(sections);
    if sections.names().next().is_some() {
        let watched = Arc::downgrade(&sections);
        let refresh = move || {
            while let Some(sections) = watched.upgrade() {
                sections.refresh();
                drop(sections);
                thread::sleep(INTERVAL);
            }
        };
        thread::Builder::new()
            .name("tls-files".to_owned())
            .spawn(refresh)
            .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
    }
    Ok(sections)
}
