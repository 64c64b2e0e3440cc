//! Certificates, and peers that speak TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use tempfile::TempDir;

/// Files that all tests of a process share, in PEM: `NAME.pem` and `NAME.key`.
///
/// `ca` is an authority; it has signed `web`, `other`, `expired` and `client`. `foreign` is another
/// authority, which has signed `stranger`. `self` has signed itself.
pub(crate) static FILES: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    let ca = authority(dir.path(), "ca");
    let foreign = authority(dir.path(), "foreign");
    signed(
        dir.path(),
        &ca,
        "web",
        &["localhost", "*.example.org", "127.0.0.1"],
        false,
    );
    signed(dir.path(), &ca, "other", &["other.test"], false);
    signed(dir.path(), &ca, "expired", &["localhost"], true);
    signed(dir.path(), &ca, "client", &["client"], false);
    signed(dir.path(), &foreign, "stranger", &["localhost"], false);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    save(dir.path(), "self", &certificate.pem(), &key);
    dir
});

fn authority(dir: &Path, name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    save(dir, name, &issuer.pem(), issuer.key());
    issuer
}

/// Makes a certificate for these names.
pub(crate) fn signed(
    dir: &Path,
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    names: &[&str],
    expired: bool,
) {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    if expired {
        params.not_after = date_time_ymd(2020, 5, 17);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    save(dir, name, &certificate.pem(), &key);
}

fn save(dir: &Path, name: &str, certificate: &str, key: &KeyPair) {
    use std::os::unix::fs::OpenOptionsExt;

    std::fs::write(dir.join(format!("{name}.pem")), certificate).unwrap();
    let file = dir.join(format!("{name}.key"));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .unwrap();
    file.write_all(key.serialize_pem().as_bytes()).unwrap();
}

pub(crate) fn file(name: &str) -> PathBuf {
    FILES.path().join(name)
}

pub(crate) fn pem(name: &str) -> bytes::Bytes {
    std::fs::read(file(name)).unwrap().into()
}

/// The sections of a daemon that uses these files.
pub(crate) fn sections() -> String {
    let dir = FILES.path().display();
    format!(
        r#"
[tls.web]
cert = "{dir}/web.pem"
key = "{dir}/web.key"
ca = "{dir}/ca.pem"
[tls.named]
cert = "{dir}/web.pem"
key = "{dir}/web.key"
sni = ["other"]
[tls.strict]
cert = "{dir}/web.pem"
key = "{dir}/web.key"
sni = ["other"]
strict_sni = true
[tls.other]
cert = "{dir}/other.pem"
key = "{dir}/other.key"
[tls.mutual]
cert = "{dir}/web.pem"
key = "{dir}/web.key"
client_ca = "{dir}/ca.pem"
[tls.client]
cert = "{dir}/client.pem"
key = "{dir}/client.key"
ca = "{dir}/ca.pem"
[tls.stranger]
cert = "{dir}/stranger.pem"
key = "{dir}/stranger.key"
ca = "{dir}/ca.pem"
[tls.trusting]
ca = "{dir}/ca.pem"
"#
    )
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn identity(name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(file(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
    (chain.map(Result::unwrap).collect(), key)
}

pub(crate) fn certificate(name: &str) -> CertificateDer<'static> {
    identity(name).0.remove(0)
}

fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca")).unwrap();
    Arc::new(roots)
}

/// A server with this certificate; `mutual`: clients must have one of `ca`.
pub(crate) fn server(name: &str, mutual: bool) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = if mutual {
        let clients = WebPkiClientVerifier::builder_with_provider(roots(), provider());
        builder.with_client_cert_verifier(clients.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let (chain, key) = identity(name);
    builder.with_single_cert(chain, key).unwrap()
}

/// A client that trusts `ca`, with or without a certificate of its own.
pub(crate) fn client(name: Option<&str>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots());
    match name {
        Some(name) => {
            let (chain, key) = identity(name);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    }
}

pub(crate) type Served = StreamOwned<ServerConnection, TcpStream>;
pub(crate) type Client = StreamOwned<ClientConnection, TcpStream>;

/// Does the server's side of a handshake on a connected socket.
pub(crate) fn serve(socket: TcpStream, config: ServerConfig) -> std::io::Result<Served> {
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let connection = ServerConnection::new(Arc::new(config)).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.flush()?;
    Ok(stream)
}

/// Does the client's side of a handshake on a connected socket.
pub(crate) fn shake(
    socket: TcpStream,
    config: impl Into<Arc<ClientConfig>>,
    name: &str,
) -> std::io::Result<Client> {
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(config.into(), name).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.flush()?;
    Ok(stream)
}

/// Reads until the end, which must come with close_notify.
pub(crate) fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
