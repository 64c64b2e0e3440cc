//! A certificate for `localhost`, the authority that signed it, and both sides' use of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Outcome;

/// PEM files in a directory.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(directory: &Path) -> Self {
        Self {
            authority: directory.join("ca.pem"),
            certificate: directory.join("host.pem"),
            key: directory.join("host.key"),
        }
    }
}

/// Makes the certificates. Returns a section of the daemon's configuration, `[tls.host]`.
pub(crate) fn make(directory: &Path) -> Outcome<String> {
    use std::os::unix::fs::PermissionsExt;

    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let params = CertificateParams::new(vec!["localhost".to_owned()])?;
    let files = Files::of(directory);
    std::fs::write(&files.authority, authority.pem())?;
    std::fs::write(
        &files.certificate,
        params.signed_by(&key, &authority)?.pem(),
    )?;
    std::fs::write(&files.key, key.serialize_pem())?;
    std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600))?;
    Ok(format!(
        "[tls.host]\ncert = {:?}\nkey = {:?}\n",
        files.certificate, files.key
    ))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns the configuration of a client that trusts the authority and resumes no session.
pub(crate) fn client(directory: &Path) -> Outcome<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(
        Files::of(directory).authority,
    )?)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Returns the configuration of a server that gives out tickets, as the daemon does.
pub(crate) fn server(directory: &Path) -> Outcome<Arc<ServerConfig>> {
    let files = Files::of(directory);
    let chain = CertificateDer::pem_file_iter(files.certificate)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(files.key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}
