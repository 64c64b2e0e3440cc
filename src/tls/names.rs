//! Chooses the certificate that a server shows.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::material::Material;

/// The certificates of a server, the default first.
#[derive(Debug)]
pub(super) struct ByName {
    pub(super) certificates: Vec<Arc<Material>>,
    /// Whether a client gets no certificate unless it asks for one of their names.
    pub(super) strict: bool,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| {
            let mut certificates = self.certificates.iter();
            certificates.find(|certificate| certificate.has_name(name))
        });
        let default = self.certificates.first().filter(|_| !self.strict);
        named.or(default)?.certified.clone()
    }
}
