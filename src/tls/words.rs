//! Says what went wrong in words that people know.

use rustix::io::Errno;
use rustls::{
    AlertDescription as Alert, CertificateError, Error, InvalidMessage, PeerIncompatible,
};

use crate::error::SystemError;

/// The step of all errors of TLS.
pub(crate) const STEP: &str = "handshake";
/// Begins the text of an alert that refuses a certificate.
const REFUSED: &str = "the peer refuses the certificate";

/// Returns an error with this text.
pub(super) fn refused(why: impl Into<String>) -> SystemError {
    SystemError::new(Errno::PROTO, STEP, why)
}

/// Translates an error. `first` are the first bytes that the peer sent.
pub(super) fn failed(error: &Error, first: &[u8]) -> SystemError {
    refused(text(error, first))
}

/// Returns whether the error is an alert that refuses a certificate.
pub(super) fn is_refusal(error: &SystemError) -> bool {
    error.detail.starts_with(REFUSED)
}

fn text(error: &Error, first: &[u8]) -> String {
    match error {
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) if is_text(first) => {
            let shown = first.escape_ascii();
            format!("the peer does not speak TLS: it sent `{shown}`")
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS".to_owned()
        }
        Error::NoCertificatesPresented => "the client showed no certificate".to_owned(),
        Error::NoApplicationProtocol => "no protocol in common (ALPN)".to_owned(),
        Error::DecryptError => "a record was damaged on its way".to_owned(),
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
        | Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
        // Clients without TLS 1.2 do not know this extension, and it is looked at first.
        | Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired)
        | Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired) => {
            "the peer speaks neither TLS 1.3 nor TLS 1.2".to_owned()
        }
        Error::General(text) if text == "no server certificate chain resolved" => {
            "no certificate has the name that the client asked for".to_owned()
        }
        other => other.to_string(),
    }
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|b| b.is_ascii_graphic() || b" \r\n\t".contains(b))
}

fn of_alert(alert: Alert) -> String {
    let why = match alert {
        Alert::CertificateRequired => "it requires one",
        Alert::BadCertificate => "it is damaged or not acceptable",
        Alert::UnsupportedCertificate => "it is of a kind that the peer does not support",
        Alert::CertificateRevoked => "it is revoked",
        Alert::CertificateExpired => "it has expired or is not valid yet",
        Alert::CertificateUnknown => "for a reason that it does not tell",
        Alert::UnknownCA => "it does not know the authority",
        Alert::AccessDenied => "access is denied",
        Alert::NoApplicationProtocol => {
            return "the peer has no protocol in common (ALPN)".to_owned();
        }
        Alert::ProtocolVersion => {
            return "the peer speaks neither TLS 1.3 nor TLS 1.2".to_owned();
        }
        Alert::UnrecognisedName => {
            return "the peer has no certificate for this server name".to_owned();
        }
        Alert::HandshakeFailure => {
            return "the peer gave up: nothing in common, or it requires a certificate".to_owned();
        }
        other => return format!("the peer gave up with the alert {other:?}"),
    };
    format!("{REFUSED}: {why}")
}

fn of_certificate(error: &CertificateError) -> String {
    use CertificateError as E;

    match error {
        E::Expired => "the peer's certificate has expired".to_owned(),
        E::ExpiredContext { not_after, .. } => {
            format!(
                "the peer's certificate expired on {}",
                date(not_after.as_secs())
            )
        }
        E::NotValidYet => "the peer's certificate is not valid yet".to_owned(),
        E::NotValidYetContext { not_before, .. } => {
            let from = date(not_before.as_secs());
            format!("the peer's certificate is not valid before {from}")
        }
        E::UnknownIssuer => {
            "no trusted authority has signed the peer's certificate, and it is not itself trusted"
                .to_owned()
        }
        E::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                return format!(
                    "the peer's certificate names no host (subjectAltName), so it is not valid for \
                     {expected}"
                );
            }
            // Each is shown as `DnsName("example.org")`.
            let names = presented.iter().map(|name| {
                let name = name.trim_end_matches(')');
                name.rsplit_once('(').map_or(name, |(_, name)| name)
            });
            let names: Vec<_> = names.map(|name| name.trim_matches('"')).collect();
            let names = names.join(", ");
            format!("the peer's certificate is valid for {names}, not for {expected}")
        }
        E::NotValidForName => "the peer's certificate is valid for other names".to_owned(),
        E::BadEncoding => "the peer's certificate is damaged".to_owned(),
        E::BadSignature => "a signature of the peer's certificates is wrong".to_owned(),
        E::Revoked => "the peer's certificate is revoked".to_owned(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the peer's certificate is not meant for this side of a connection".to_owned()
        }
        E::Other(why) => format!("the peer's certificate is refused: {why}"),
        other => format!("the peer's certificate is refused: {other}"),
    }
}

/// Returns a day as text, given in seconds since the Unix epoch.
fn date(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| seconds.to_string(),
        |time| time.strftime("%Y-%m-%d").to_string(),
    )
}
