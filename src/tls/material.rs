//! A certificate with its key, and what goes with them.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

use super::facts::Facts;
use super::trust::Trust;
use super::{Unusable, provider};

/// The content of the files of a section, or of a request.
#[derive(Debug)]
pub(super) struct Material {
    /// The certificate with its chain and key.
    pub(super) certified: Option<Arc<CertifiedKey>>,
    facts: Option<Facts>,
    /// By which servers are verified; `None` means by the host's authorities.
    pub(super) servers: Option<Trust>,
    /// By which clients are verified; `None` means that they are not.
    pub(super) clients: Option<Trust>,
    /// The keys of session tickets of a server. A resumed session has the certificates of the
    /// session before, so a change of these files makes new keys.
    pub(super) tickets: Arc<dyn ProducesTickets>,
}

impl Material {
    pub(super) fn new(
        pair: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        servers: Option<Trust>,
        clients: Option<Trust>,
    ) -> Result<Self, Unusable> {
        let (certified, facts) = match pair {
            None => (None, None),
            Some((chain, key)) => {
                let (certified, facts) = certify(chain, key)?;
                (Some(Arc::new(certified)), Some(facts))
            }
        };
        let tickets = rustls::crypto::ring::Ticketer::new();
        let tickets = tickets.map_err(|error| Unusable::new("key", error.to_string()))?;
        Ok(Self {
            certified,
            facts,
            servers,
            clients,
            tickets,
        })
    }

    /// Returns whether the certificate is valid for a DNS name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.facts
            .as_ref()
            .is_some_and(|facts| facts.has_name(name))
    }

    /// Returns when the certificate expires, in seconds since the Unix epoch.
    pub(super) fn expires(&self) -> Option<u64> {
        self.facts.as_ref().map(|facts| facts.not_after)
    }
}

/// Checks that a certificate and a key are usable and belong together.
fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(CertifiedKey, Facts), Unusable> {
    let facts = chain.first().and_then(|first| Facts::of(first));
    let facts = facts.ok_or_else(|| Unusable::new("cert", "its first certificate is damaged"))?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    let certified = certified.map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            Unusable::new("key", "is not the key of the first certificate in cert")
        }
        Error::InvalidCertificate(_) => Unusable::new("cert", "its first certificate is damaged"),
        _ => Unusable::new(
            "key",
            "is of a kind that is not supported: it must be RSA of 2048 to 8192 bits, ECDSA P-256 \
             or P-384, or Ed25519",
        ),
    })?;
    Ok((certified, facts))
}
