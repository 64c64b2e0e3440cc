//! Verifies the certificates of peers.
//!
//! A certificate passes if a trusted authority has signed it, as RFC 5280 has it, or if it is itself
//! one of the trusted certificates, byte for byte. The latter is what people mean who generate a
//! self-signed certificate and give it to both sides; as an authority it would be refused, because
//! most such certificates are marked as those of an authority and are used as a server's own.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::facts::Facts;
use super::{Unusable, provider};

/// The number of servers whose sessions are remembered.
const SESSIONS: usize = 256;

/// The trusted certificates.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    /// The certificates that pass as the peer's own.
    own: Arc<Vec<CertificateDer<'static>>>,
    /// The verifier of servers, made when it is first needed. It is one and the same for all
    /// sessions, because a session is resumed only under the verifier that it began with.
    servers: Arc<OnceLock<Arc<dyn ServerCertVerifier>>>,
    /// The sessions with these servers that are remembered to be resumed.
    sessions: Arc<OnceLock<Resumption>>,
}

impl Trust {
    /// Trusts these certificates, at least one, as authorities and as the peer's own.
    pub(super) fn of(
        part: &'static str,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Unusable> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            let added = roots.add(certificate.clone());
            if added.is_err() || Facts::of(certificate).is_none() {
                let why = format!("its certificate {} is damaged", index + 1);
                return Err(Unusable::new(part, why));
            }
        }
        Ok(Self {
            roots: Arc::new(roots),
            own: Arc::new(certificates),
            servers: Arc::default(),
            sessions: Arc::default(),
        })
    }

    /// Trusts the authorities that this host trusts. May block.
    pub(super) fn of_host() -> Result<Self, Unusable> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = match found.errors.first() {
                Some(error) => format!("the host's trusted authorities cannot be read: {error}"),
                None => "the host trusts no authorities (package ca-certificates)".to_owned(),
            };
            return Err(Unusable::new("ca", why));
        }
        Ok(Self {
            roots: Arc::new(roots),
            own: Arc::default(),
            servers: Arc::default(),
            sessions: Arc::default(),
        })
    }

    /// Returns the verifier of servers.
    pub(super) fn servers(&self) -> Result<Arc<dyn ServerCertVerifier>, Unusable> {
        if let Some(made) = self.servers.get() {
            return Ok(Arc::clone(made));
        }
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider());
        let inner = inner.build();
        let inner = inner.map_err(|error| Unusable::new("ca", error.to_string()))?;
        let made = Servers {
            inner,
            own: Arc::clone(&self.own),
        };
        let made = self.servers.get_or_init(|| Arc::new(made));
        Ok(Arc::clone(made))
    }

    /// Returns the sessions with servers that this trust has verified. They must not be used with a
    /// certificate of the client: the session would be resumed without it.
    pub(super) fn sessions(&self) -> Resumption {
        let made = || Resumption::in_memory_sessions(SESSIONS);
        self.sessions.get_or_init(made).clone()
    }

    /// Returns the verifier of clients.
    pub(super) fn clients(&self) -> Result<Arc<dyn ClientCertVerifier>, Unusable> {
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider());
        let inner = inner.build();
        let inner = inner.map_err(|error| Unusable::new("client_ca", error.to_string()))?;
        Ok(Arc::new(Clients {
            inner,
            own: Arc::clone(&self.own),
        }))
    }
}

/// Returns whether the certificate is one of the trusted ones. If it is, checks its date.
fn is_own(
    own: &[CertificateDer<'_>],
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<bool, Error> {
    if !own.iter().any(|trusted| trusted == certificate) {
        return Ok(false);
    }
    let facts = Facts::of(certificate).ok_or(CertificateError::BadEncoding)?;
    facts.check_date(now)?;
    Ok(true)
}

/// Says why a certificate is refused that its owner has signed. Most of these are marked as an
/// authority's, and the library tells only that; but they would pass if they were trusted.
fn explain(certificate: &CertificateDer<'_>, error: Error) -> Error {
    let is_other = matches!(error, Error::InvalidCertificate(CertificateError::Other(_)));
    match Facts::of(certificate) {
        Some(facts) if is_other && facts.self_issued => CertificateError::UnknownIssuer.into(),
        _ => error,
    }
}

#[derive(Debug)]
struct Servers {
    inner: Arc<WebPkiServerVerifier>,
    own: Arc<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if is_own(&self.own, end_entity, now)? {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        verified.map_err(|error| explain(end_entity, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    own: Arc<Vec<CertificateDer<'static>>>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if is_own(&self.own, end_entity, now)? {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now);
        verified.map_err(|error| explain(end_entity, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
