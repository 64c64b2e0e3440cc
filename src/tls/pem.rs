//! Reads certificates and keys as PEM.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Unusable;

/// What stands before a key that is encrypted with a passphrase.
const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];

/// Reads the certificates of a PEM text, at least one.
pub(super) fn certificates(
    part: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if found.is_empty() => Err(Unusable::new(
            part,
            "contains no `BEGIN CERTIFICATE`: it must be PEM",
        )),
        Ok(found) => Ok(found),
        Err(error) => Err(Unusable::new(part, format!("is not valid PEM: {error}"))),
    }
}

/// Reads the first private key of a PEM text.
pub(super) fn key(part: &'static str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Unusable> {
    let contains = |what: &[u8]| pem.windows(what.len()).any(|at| at == what);
    if ENCRYPTED.into_iter().any(contains) {
        let why = "is encrypted with a passphrase, for which nobody can be asked: decrypt it, for \
                   example with `openssl pkey`";
        return Err(Unusable::new(part, why));
    }
    // A file of `openssl ecparam -genkey` has `EC PARAMETERS` before its key; they are skipped.
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => Unusable::new(
            part,
            "contains no private key: it must be PEM, PKCS #8, PKCS #1 or SEC 1",
        ),
        other => Unusable::new(part, format!("is not valid PEM: {other}")),
    })
}
