//! Events of connections, listeners, pipes and datagram sockets in words.

use std::fmt::Write as _;

use anstyle::Style;

use super::{Words, address_or_unnamed, bytes, preview, system_error};
use crate::ctl::style::{BAD, GOOD, NOTICE, PLAIN, printable};
use crate::ctl::units::counted;
use crate::proto;

impl Words for proto::Connected {
    fn words(&self) -> (String, Style) {
        let local = address_or_unnamed(self.local.as_ref());
        let peer = address_or_unnamed(self.peer.as_ref());
        let mut text = format!("connected {local} → {peer}");
        if let Some(tls) = &self.tls {
            let _ = write!(text, ", {}", tls_session(tls));
        }
        (text, GOOD)
    }
}

impl Words for proto::Accepted {
    fn words(&self) -> (String, Style) {
        let from = address_or_unnamed(self.peer.as_ref());
        (
            format!("accepted watch {} from {from}", self.watch_id),
            GOOD,
        )
    }
}

impl Words for proto::AcceptPaused {
    fn words(&self) -> (String, Style) {
        let why = self.error.as_ref().map_or_else(String::new, system_error);
        let again = self.retry_after.unwrap_or_default();
        let text = format!("accepting paused, tried again within {again}: {why}");
        (text, NOTICE)
    }
}

impl Words for proto::Eof {
    fn words(&self) -> (String, Style) {
        (format!("end of file after {}", bytes(self.offset)), PLAIN)
    }
}

impl Words for proto::WritePaused {
    fn words(&self) -> (String, Style) {
        let text = format!("write paused, {} unsent", bytes(self.buffered_bytes));
        (text, NOTICE)
    }
}

impl Words for proto::WriteResumed {
    fn words(&self) -> (String, Style) {
        let text = format!("write resumed, {} unsent", bytes(self.buffered_bytes));
        (text, PLAIN)
    }
}

impl Words for proto::Datagram {
    fn words(&self) -> (String, Style) {
        let peer = address_or_unnamed(self.peer.as_ref());
        let len = self.data.len() as u64;
        let (length, style) = match self.full_length {
            0 => (bytes(len), PLAIN),
            full => (format!("{len} of {}", bytes(full)), NOTICE),
        };
        let text = format!("from {peer} {length}: {}", preview(&self.data));
        (text, style)
    }
}

impl Words for proto::DatagramError {
    fn words(&self) -> (String, Style) {
        let error = self.error.as_ref().map_or_else(String::new, system_error);
        let mut text = match &self.peer {
            Some(peer) => format!("to {}: {error}", address_or_unnamed(Some(peer))),
            None => error,
        };
        if !self.reporter_ip.is_empty() {
            let _ = write!(text, ", says {}", printable(&self.reporter_ip));
        }
        (text, BAD)
    }
}

impl Words for proto::DatagramsDropped {
    fn words(&self) -> (String, Style) {
        let datagrams = |count| counted(count, "datagram", "datagrams");
        let mut parts = Vec::new();
        if self.count > 0 {
            let count = datagrams(self.count);
            parts.push(format!("the kernel dropped {count}, {} in all", self.total));
        }
        if self.in_doubt > 0 {
            let most = datagrams(self.in_doubt);
            parts.push(format!("the daemon died: at most {most} may be missing"));
        }
        if self.unsent > 0 {
            let lost = datagrams(self.unsent);
            parts.push(format!(
                "the daemon died: {lost} that waited may not be sent"
            ));
        }
        if self.queue_lost {
            let lost = "the daemon and its keeper were ended: what waited in the socket is gone";
            parts.push(lost.to_owned());
        }
        (parts.join("; "), NOTICE)
    }
}

impl Words for proto::GroupChanged {
    fn words(&self) -> (String, Style) {
        let group = group(&self.ip, &self.interface);
        match self.in_effect {
            true => (format!("joined {group} again"), GOOD),
            false => (format!("no member of {group}: the interface is gone"), BAD),
        }
    }
}

/// Returns a group as `watch udp --group` takes it.
fn group(ip: &str, interface: &str) -> String {
    match interface {
        "" => printable(ip).to_string(),
        interface => format!("{}%{}", printable(ip), printable(interface)),
    }
}

/// Returns a group of a watch and whether the watch is a member, in words.
pub(in crate::ctl) fn group_status(status: &proto::GroupStatus) -> (String, Style) {
    let (ip, interface) = match &status.group {
        Some(group) => (group.ip.as_str(), group.interface.as_str()),
        None => ("", ""),
    };
    let group = group(ip, interface);
    match (status.in_effect, interface, status.interface_index) {
        (false, ..) => (format!("{group}, no member: the interface is gone"), BAD),
        (true, "", index @ 1..) => (format!("{group} on interface {index}"), Style::new()),
        (true, ..) => (group, Style::new()),
    }
}

/// Returns what TLS has negotiated, in words.
pub(in crate::ctl) fn tls_session(tls: &proto::TlsSession) -> String {
    let mut text = format!("{}, {}", tls.version, tls.cipher_suite);
    if !tls.alpn.is_empty() {
        let _ = write!(text, ", {}", printable(&tls.alpn));
    }
    if !tls.server_name.is_empty() {
        let _ = write!(text, ", for {}", printable(&tls.server_name));
    }
    if tls.resumed {
        text.push_str(", resumed");
    }
    text
}

impl Words for proto::TlsStarted {
    fn words(&self) -> (String, Style) {
        let tls = self.tls.as_ref().map_or_else(String::new, tls_session);
        (format!("TLS started: {tls}"), GOOD)
    }
}

impl Words for proto::HandshakesFailed {
    fn words(&self) -> (String, Style) {
        let count = counted(self.count, "handshake", "handshakes");
        let (total, peer) = (self.total, address_or_unnamed(self.peer.as_ref()));
        let why = self.error.as_ref().map_or_else(String::new, system_error);
        let text = format!("{count} failed, {total} in all; last {peer}: {why}");
        (text, NOTICE)
    }
}
