//! TLS: certificates and keys, who is trusted, and the sessions of connections. It does no I/O on
//! sockets; [`crate::watch`] does.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::config::TlsSection;

mod facts;
mod material;
mod names;
mod pem;
mod section;
pub mod session;
mod setup;
mod trust;
mod words;

pub use section::Section;
pub use session::Session;
pub use setup::{Authority, Identity, Setup, Side};

/// Why a file, or what a request contains, cannot be used: the key or the field that is wrong, and
/// what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// `cert`, `key`, `ca` or `client_ca`.
    pub part: &'static str,
    /// What is wrong.
    pub why: String,
}

impl Unusable {
    fn new(part: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { part, why }
    }
}

/// The cryptography that all sessions use. It is always named, because a process in which another
/// library brings a second one has no default.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The sections `[tls.NAME]` of the configuration, as their files are now.
#[derive(Debug, Default)]
pub struct Sections(BTreeMap<String, Arc<Section>>);

impl Sections {
    /// Reads the files of all sections.
    ///
    /// # Errors
    /// For each section that cannot be used, its name and the reason.
    pub fn load(sections: &BTreeMap<String, TlsSection>) -> Result<Self, Vec<(String, Unusable)>> {
        let mut loaded = BTreeMap::new();
        let mut wrong = Vec::new();
        for (name, section) in sections {
            match Section::load(name, section) {
                Ok(section) => drop(loaded.insert(name.clone(), Arc::new(section))),
                Err(error) => wrong.push((name.clone(), error)),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for (name, section) in sections {
            let others = section.sni.iter().filter_map(|other| loaded.get(other));
            let others: Vec<_> = others.map(Arc::clone).collect();
            if let Some(section) = loaded.get(name) {
                section.add_names_of(&others);
            }
        }
        Ok(Self(loaded))
    }

    /// Returns the section of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Section>> {
        self.0.get(name)
    }

    /// Returns the names of all sections.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Reads the files that have changed. May block.
    pub fn refresh(&self) {
        for section in self.0.values() {
            section.refresh();
        }
    }
}
