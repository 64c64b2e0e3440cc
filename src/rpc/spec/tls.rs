//! Checks how a connection is to speak TLS.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::HOUR;
use crate::error::{Error, Result};
use crate::policy::Registry;
use crate::proto::{StartTlsRequest, TlsOptions};
use crate::rpc::convert;
use crate::tls::{Authority, Identity, Setup, Side, Unusable};
use crate::watch::{StartTls, TlsOrder};

const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
const SERVER_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=HOUR;
const PROTOCOLS_MAX: usize = 16;
const PROTOCOL_MAX: usize = 64;
const PEM_MAX: usize = 64 * 1024;

/// The side of the daemon.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role<'a> {
    /// The client; `host` is the host that it connects to, if it has a name or an IP address.
    Client {
        host: Option<&'a str>,
    },
    Server,
}

/// Checks the options at `field`. They are cleared of what is not shown.
pub(super) fn order(
    registry: &Registry,
    field: &str,
    options: &mut TlsOptions,
    role: Role<'_>,
) -> Result<TlsOrder> {
    let at = |name: &str| format!("{field}.{name}");
    let side = side(field, options, role)?;
    let identity = identity(registry, field, options)?;
    if matches!(role, Role::Server) {
        let has_certificate = match &identity {
            Identity::Nobody => false,
            Identity::Section(section) => section.has_certificate(),
            Identity::Given(_) => true,
        };
        if !has_certificate {
            return Err(Error::invalid(
                at("config"),
                "must name a section [tls.NAME] of the configuration with cert and key: a server \
                 needs a certificate",
            ));
        }
    }
    let authority = match options.ca_pem.as_ref() {
        [] => None,
        pem if pem.len() > PEM_MAX => return Err(too_large(at("ca_pem"))),
        pem => Some(Authority::given(pem).map_err(|error| unusable(field, &error))?),
    };
    if options.alpn.len() > PROTOCOLS_MAX {
        return Err(Error::invalid(at("alpn"), "must be at most 16 protocols"));
    }
    let protocol = |protocol: &String| match protocol.len() {
        1..=PROTOCOL_MAX => Ok(protocol.clone().into_bytes()),
        _ => Err(Error::invalid(at("alpn"), "each must have 1 to 64 bytes")),
    };
    let alpn: Result<Vec<_>> = options.alpn.iter().map(protocol).collect();
    let default = match role {
        Role::Client { .. } => CLIENT_TIMEOUT,
        Role::Server => SERVER_TIMEOUT,
    };
    let timeout = match &options.handshake_timeout {
        None => default,
        Some(given) => convert::within(at("handshake_timeout"), given, TIMEOUT)?,
    };
    let setup = Setup::new(side, identity, authority, alpn?, options.allow_truncation);
    Ok(TlsOrder {
        setup: Arc::new(setup),
        timeout,
    })
}

fn side(field: &str, options: &TlsOptions, role: Role<'_>) -> Result<Side> {
    let field = format!("{field}.server_name");
    let name = match (role, options.server_name.as_str()) {
        (Role::Server, "") => return Ok(Side::Server),
        (Role::Server, _) => {
            return Err(Error::invalid(field, "must be empty: it is for clients"));
        }
        (Role::Client { host: Some(host) }, "") => {
            // The interface of a link-local address is no part of the name.
            host.split_once('%').map_or(host, |(ip, _)| ip)
        }
        (Role::Client { host: None }, "") => {
            let allowed = "must be set: the name or IP address that the server's certificate must \
                           be valid for";
            return Err(Error::invalid(field, allowed));
        }
        (Role::Client { .. }, name) => name,
    };
    let unbracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let name = unbracketed.unwrap_or(name).trim_end_matches('.');
    let name = ServerName::try_from(name.to_owned());
    let name = name.map_err(|_| Error::invalid(field, "must be the DNS name or IP of a host"))?;
    Ok(Side::Client(name))
}

fn identity(registry: &Registry, field: &str, options: &mut TlsOptions) -> Result<Identity> {
    let at = |name: &str| format!("{field}.{name}");
    let certificates = std::mem::take(&mut options.certificate_pem);
    let key = std::mem::take(&mut options.key_pem);
    if certificates.is_empty() && key.is_empty() {
        let sections = &registry.services().tls;
        return match options.config.as_str() {
            "" => Ok(Identity::Nobody),
            name => match sections.get(name) {
                Some(section) => Ok(Identity::Section(Arc::clone(section))),
                None => {
                    let known: Vec<&str> = sections.names().collect();
                    let known = match known.as_slice() {
                        [] => "none is configured".to_owned(),
                        names => format!("there are: {}", names.join(", ")),
                    };
                    let what = format!("there is no section [tls.{name}]; {known}");
                    Err(Error::invalid(at("config"), what))
                }
            },
        };
    }
    if !registry.config().server.tls_keys_in_requests {
        return Err(Error::invalid(
            at("key_pem"),
            "must be empty, unless the configuration has [server] tls_keys_in_requests = true: use \
             a section [tls.NAME]",
        ));
    }
    if !options.config.is_empty() {
        let allowed = "must be empty if certificate_pem and key_pem are set";
        return Err(Error::invalid(at("config"), allowed));
    }
    for (name, pem) in [("certificate_pem", &certificates), ("key_pem", &key)] {
        if pem.is_empty() {
            return Err(Error::invalid(at(name), "must be set if the other one is"));
        }
        if pem.len() > PEM_MAX {
            return Err(too_large(at(name)));
        }
    }
    Identity::given(&certificates, &key).map_err(|error| unusable(field, &error))
}

fn too_large(field: String) -> Error {
    Error::invalid(field, "must be at most 64 KiB")
}

fn unusable(field: &str, error: &Unusable) -> Error {
    let name = match error.part {
        "cert" => "certificate_pem",
        "key" => "key_pem",
        _ => "ca_pem",
    };
    Error::invalid(format!("{field}.{name}"), error.why.clone())
}

/// Checks a request to begin TLS in mid-stream.
pub(in crate::rpc) fn start(
    registry: &Registry,
    request: &mut StartTlsRequest,
) -> Result<StartTls> {
    let role = match request.server {
        true => Role::Server,
        false => Role::Client { host: None },
    };
    let allowed = "must be set: the bytes of the incoming stream that are plaintext";
    let offset = request.offset;
    let offset = offset.ok_or_else(|| Error::invalid("offset", allowed))?;
    let options = request.tls.get_or_insert_default();
    let tls = order(registry, "tls", options, role)?;
    Ok(StartTls { tls, offset })
}
