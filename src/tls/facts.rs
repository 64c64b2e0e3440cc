//! What the certificate itself says: when it is valid, and for which names.

use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// When it begins and ceases to be valid, in seconds since the Unix epoch.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// The DNS names that it is valid for, in lower case.
    pub(super) names: Vec<String>,
    /// It names itself as its issuer.
    pub(super) self_issued: bool,
}

impl Facts {
    /// Reads a certificate. `None` if it is damaged.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let certificate = certificate.tbs_certificate();
        let validity = certificate.validity();
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
        let names = certificate.get_extension::<SubjectAltName>().ok().flatten();
        let names = names.map_or_else(Vec::new, |(_, names)| names.0);
        let names = names.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
            _ => None,
        });
        Some(Self {
            not_before: seconds(&validity.not_before),
            not_after: seconds(&validity.not_after),
            names: names.collect(),
            self_issued: certificate.issuer() == certificate.subject(),
        })
    }

    /// Checks that it is valid at that time.
    pub(super) fn check_date(&self, now: UnixTime) -> Result<(), CertificateError> {
        let time = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        if now.as_secs() < self.not_before {
            return Err(CertificateError::NotValidYetContext {
                time: now,
                not_before: time(self.not_before),
            });
        }
        if now.as_secs() > self.not_after {
            return Err(CertificateError::ExpiredContext {
                time: now,
                not_after: time(self.not_after),
            });
        }
        Ok(())
    }

    /// Returns whether it is valid for a DNS name. A leading `*.` stands for one label.
    pub(super) fn has_name(&self, wanted: &str) -> bool {
        let wanted = wanted.to_ascii_lowercase();
        let parent = wanted.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(rest) => parent == Some(rest),
            None => *name == wanted,
        })
    }
}
