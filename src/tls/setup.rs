//! How one side of a connection speaks TLS.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, SignatureScheme,
};

use super::material::Material;
use super::names::ByName;
use super::section::Section;
use super::session::Session;
use super::trust::Trust;
use super::{Unusable, pem, provider, words};
use crate::error::SystemError;

/// How long the host's trusted authorities are used before they are read again.
const HOST_TRUST_AGE: Duration = Duration::from_secs(600);

/// The side of a handshake.
#[derive(Debug, Clone)]
pub enum Side {
    /// The client, and the name for which the server's certificate must be valid.
    Client(ServerName<'static>),
    /// The server.
    Server,
}

/// The daemon's own certificate and key.
#[derive(Debug, Clone)]
pub enum Identity {
    /// None; only for a client.
    Nobody,
    /// Those of a section of the configuration.
    Section(Arc<Section>),
    /// Those of a request.
    Given(Given),
}

/// A certificate with its key that came with a request.
#[derive(Debug, Clone)]
pub struct Given(Arc<Material>);

impl Identity {
    /// Returns the identity of a certificate with its chain, and its key, as PEM.
    ///
    /// # Errors
    /// They cannot be used, alone or together.
    pub fn given(certificates: &[u8], key: &[u8]) -> Result<Self, Unusable> {
        let chain = pem::certificates("cert", certificates)?;
        let key = pem::key("key", key)?;
        let material = Material::new(Some((chain, key)), None, None)?;
        Ok(Self::Given(Given(Arc::new(material))))
    }

    fn material(&self) -> Option<Arc<Material>> {
        match self {
            Self::Nobody => None,
            Self::Section(section) => Some(section.current()),
            Self::Given(Given(material)) => Some(Arc::clone(material)),
        }
    }

    /// Returns when its certificate expires, in seconds since the Unix epoch.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.material()?.expires()
    }
}

/// Trusted certificates that came with a request.
#[derive(Debug, Clone)]
pub struct Authority(Trust);

impl Authority {
    /// Reads trusted certificates as PEM.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn given(certificates: &[u8]) -> Result<Self, Unusable> {
        let certificates = pem::certificates("ca", certificates)?;
        Trust::of("ca", certificates).map(Self)
    }
}

/// How one side of a connection speaks TLS. Sessions are made from it one after the other, each by
/// the files as they are then.
#[derive(Debug)]
pub struct Setup {
    side: Side,
    identity: Identity,
    authority: Option<Authority>,
    alpn: Vec<Vec<u8>>,
    allow_truncation: bool,
    /// The configuration of the server's side made last, and the content that it was made from.
    server: Mutex<Option<(Arc<Material>, Arc<ServerConfig>)>>,
}

impl Setup {
    /// Makes a setup. `authority` replaces the trusted certificates of the section; `alpn` are the
    /// protocols, the preferred one first.
    #[must_use]
    pub const fn new(
        side: Side,
        identity: Identity,
        authority: Option<Authority>,
        alpn: Vec<Vec<u8>>,
        allow_truncation: bool,
    ) -> Self {
        Self {
            side,
            identity,
            authority,
            alpn,
            allow_truncation,
            server: Mutex::new(None),
        }
    }

    /// Returns whether the daemon is the server.
    #[must_use]
    pub const fn is_server(&self) -> bool {
        matches!(self.side, Side::Server)
    }

    /// Returns when the daemon's own certificate expires, in seconds since the Unix epoch.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.identity.expires()
    }

    /// Begins a session. May block.
    ///
    /// # Errors
    /// The host's trusted authorities cannot be read.
    pub fn session(&self) -> Result<Session, SystemError> {
        let connection = match &self.side {
            Side::Server => self.accept().map(Connection::Server),
            Side::Client(name) => self.connect(name.clone()).map(Connection::Client),
        };
        let connection = connection.map_err(|error| words::refused(error.why))?;
        Ok(Session::new(connection, self.allow_truncation))
    }

    fn connect(&self, name: ServerName<'static>) -> Result<ClientConnection, Unusable> {
        let material = self.identity.material();
        let given = self.authority.as_ref().map(|authority| &authority.0);
        let own = material
            .as_ref()
            .and_then(|material| material.servers.as_ref());
        let trust = match given.or(own) {
            Some(trust) => trust.clone(),
            None => host_trust()?,
        };
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Unusable::new("tls", error.to_string()))?;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(trust.servers()?);
        let certified = material.as_ref().and_then(|m| m.certified.as_ref());
        let mut config = match certified {
            Some(certified) => {
                let resolver = SingleCertAndKey::from(Arc::clone(certified));
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
            None => builder.with_client_cert_resolver(no_certificate()),
        };
        // A resumed session is not verified again, so it is resumed only under the same trust. That of
        // a request has no second session.
        config.resumption = match (certified, given) {
            (None, None) => trust.sessions(),
            _ => Resumption::disabled(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        ClientConnection::new(Arc::new(config), name)
            .map_err(|error| Unusable::new("tls", error.to_string()))
    }

    fn accept(&self) -> Result<ServerConnection, Unusable> {
        let material = self.identity.material();
        let none = || Unusable::new("cert", "a server needs a certificate");
        let material = material.ok_or_else(none)?;
        let known = self.server.lock().clone();
        let config = match known {
            Some((from, config)) if Arc::ptr_eq(&from, &material) => config,
            _ => {
                let config = Arc::new(self.server_config(&material)?);
                *self.server.lock() = Some((material, Arc::clone(&config)));
                config
            }
        };
        ServerConnection::new(config).map_err(|error| Unusable::new("tls", error.to_string()))
    }

    fn server_config(&self, material: &Arc<Material>) -> Result<ServerConfig, Unusable> {
        let given = self.authority.as_ref().map(|authority| &authority.0);
        let clients = given.or(material.clients.as_ref());
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Unusable::new("tls", error.to_string()))?;
        let builder = match clients {
            Some(trust) => builder.with_client_cert_verifier(trust.clients()?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName {
            own: Arc::clone(material),
            section: match &self.identity {
                Identity::Section(section) => Some(Arc::clone(section)),
                Identity::Nobody | Identity::Given(_) => None,
            },
        }));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match clients {
            // A resumed session would skip the verification of the client's certificate.
            Some(_) => config.send_tls13_tickets = 0,
            None => config.ticketer = Arc::clone(&material.tickets),
        }
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }
}

/// Shows no certificate to a server.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Returns what shows no certificate: always the same object, because a session is resumed only
/// with the one that it began with.
fn no_certificate() -> Arc<dyn ResolvesClientCert> {
    static NO_CERTIFICATE: LazyLock<Arc<dyn ResolvesClientCert>> =
        LazyLock::new(|| Arc::new(NoCertificate));
    Arc::clone(&NO_CERTIFICATE)
}

/// Returns the host's trusted authorities, read at most [`HOST_TRUST_AGE`] ago.
fn host_trust() -> Result<Trust, Unusable> {
    static KNOWN: Mutex<Option<(Instant, Trust)>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    match &*known {
        Some((read, trust)) if read.elapsed() < HOST_TRUST_AGE => Ok(trust.clone()),
        _ => {
            let trust = Trust::of_host()?;
            *known = Some((Instant::now(), trust.clone()));
            Ok(trust)
        }
    }
}
