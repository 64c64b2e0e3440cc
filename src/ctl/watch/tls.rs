//! Options of TLS, with the names that openssl and curl use, and the verb that begins it in
//! mid-stream.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;

use super::super::failure::{Failure, Outcome};
use super::super::names::OneWatch;
use super::super::parse;
use super::super::session::{Session, answer};
use crate::proto::{StartTlsRequest, TlsOptions};

/// How the daemon speaks TLS.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of TLS")]
pub(super) struct Tls {
    /// Speak TLS, with the certificates of the section [tls.NAME] of the daemon's configuration if NAME is given
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    tls: Option<String>,
    /// The protocols to offer or accept, the preferred one first (ALPN)
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', requires = "tls")]
    alpn: Vec<String>,
    /// Trust the certificates of this PEM file [default: those of NAME, or of the daemon's host]
    #[arg(long, value_name = "FILE", requires = "tls")]
    cacert: Option<PathBuf>,
    /// Show the certificate of this PEM file; the daemon must allow it
    #[arg(long, value_name = "FILE", requires_all = ["tls", "key"])]
    cert: Option<PathBuf>,
    /// The private key of --cert, a PEM file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// How long the handshake may take [default: 60s; of a listener 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "tls")]
    handshake_timeout: Option<prost_types::Duration>,
    /// Take a connection that ends without close_notify as complete
    #[arg(long, requires = "tls")]
    allow_truncation: bool,
}

impl Tls {
    /// Returns the options; `None` if TLS is not wanted. Reads the files that they name.
    pub(super) fn options(self) -> Result<Option<TlsOptions>, Failure> {
        let Some(config) = self.tls else {
            return Ok(None);
        };
        Ok(Some(TlsOptions {
            config,
            server_name: String::new(),
            alpn: self.alpn,
            handshake_timeout: self.handshake_timeout,
            allow_truncation: self.allow_truncation,
            ca_pem: content(self.cacert.as_deref())?,
            certificate_pem: content(self.cert.as_deref())?,
            key_pem: content(self.key.as_deref())?,
        }))
    }
}

fn content(path: Option<&Path>) -> Result<Bytes, Failure> {
    let Some(path) = path else {
        return Ok(Bytes::new());
    };
    let read = std::fs::read(path);
    let read = read.map_err(|error| Failure::new(path.display().to_string(), error))?;
    Ok(read.into())
}

pub(in crate::ctl) const EXAMPLES: &str = "Examples:
  evloopctl watch start-tls mail --offset 152 --servername mail.example.org
  evloopctl watch start-tls @9 --offset 24 --server --tls=mail";

/// Begins TLS on a connection in mid-stream.
#[derive(Debug, Args)]
pub(in crate::ctl) struct StartTls {
    #[command(flatten)]
    watch: OneWatch,
    /// How many received bytes are plaintext; what was received after them belongs to TLS
    #[arg(long, value_name = "BYTES")]
    offset: u64,
    /// The daemon is the server of the handshake [default: it is the client]
    #[arg(long, conflicts_with = "servername")]
    server: bool,
    /// The name that the server's certificate must be valid for
    #[arg(long, value_name = "NAME", value_parser = parse::host, required_unless_present = "server")]
    servername: Option<String>,
    #[command(flatten)]
    tls: Tls,
}

pub(super) async fn start_tls(session: &Session, args: StartTls) -> Outcome {
    let tls = TlsOptions {
        server_name: args.servername.unwrap_or_default(),
        ..args.tls.options()?.unwrap_or_default()
    };
    let request = StartTlsRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(args.watch.reference()),
        server: args.server,
        tls: Some(tls),
        offset: Some(args.offset),
        request_id: String::new(),
    };
    answer(session.transports().start_tls(request).await)?;
    Ok(0)
}
