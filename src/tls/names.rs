//! Chooses the certificate that a server shows.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::material::Material;
use super::section::Section;

/// The certificates of a server.
#[derive(Debug)]
pub(super) struct ByName {
    /// The default.
    pub(super) own: Arc<Material>,
    /// The section of the default, which names others.
    pub(super) section: Option<Arc<Section>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let section = self.section.as_ref();
        let named = hello.server_name().and_then(|name| {
            let own = std::iter::once(Arc::clone(&self.own));
            // The others as their files are now: they change without the default.
            let others = section.into_iter().flat_map(|section| section.others());
            own.chain(others)
                .find(|certificate| certificate.has_name(name))
        });
        let is_strict = section.is_some_and(|section| section.is_strict());
        let default = (!is_strict).then(|| Arc::clone(&self.own));
        named.or(default)?.certified.clone()
    }
}
