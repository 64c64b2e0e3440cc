//! The table from the domain error to gRPC: status code, reason and metadata.

use std::collections::HashMap;
use std::fmt::Display;

use nix::libc;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, TEXT_MAX};
use crate::proto::{BatchError, Reason};
use crate::text;

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "evloopd";

/// The form of an error on the wire.
#[derive(Debug)]
pub struct Described {
    /// The status code.
    pub code: Code,
    /// The message, on one line.
    pub message: String,
    /// The reason, without the prefix of the enum.
    pub reason: &'static str,
    /// The details for programs.
    pub metadata: HashMap<String, String>,
}

/// Returns the form of an error on the wire.
#[must_use]
pub fn describe(error: &Error) -> Described {
    let (code, reason) = match error {
        Error::InvalidField { .. } => (Code::InvalidArgument, Reason::InvalidField),
        Error::LoopNotFound { .. } => (Code::NotFound, Reason::LoopNotFound),
        Error::WatchNotFound { .. } => (Code::NotFound, Reason::WatchNotFound),
        Error::ConsumerNotFound { .. } => (Code::NotFound, Reason::ConsumerNotFound),
        Error::TakenOver { .. } => (Code::FailedPrecondition, Reason::TakenOver),
        Error::PolicyNotFound { .. } => (Code::NotFound, Reason::PolicyNotFound),
        Error::NoLoopInContext { .. } => (Code::NotFound, Reason::NoLoopInContext),
        Error::SlotNotFound { .. } => (Code::NotFound, Reason::SlotNotFound),
        Error::ProcessNotFound { .. } => (Code::NotFound, Reason::ProcessNotFound),
        Error::NameTaken { .. } => (Code::AlreadyExists, Reason::NameTaken),
        Error::LoopClosed { .. } => (Code::FailedPrecondition, Reason::LoopClosed),
        Error::LoopRunning { .. } => (Code::FailedPrecondition, Reason::LoopRunning),
        Error::WatchClosed { .. } => (Code::FailedPrecondition, Reason::WatchClosed),
        Error::WrongState { .. } => (Code::FailedPrecondition, Reason::WrongState),
        Error::Limit { .. } => (Code::ResourceExhausted, Reason::Limit),
        Error::MailboxFull { .. } => (Code::ResourceExhausted, Reason::MailboxFull),
        Error::JournalFull { .. } => (Code::ResourceExhausted, Reason::JournalFull),
        Error::CursorOutOfRange { .. } => (Code::OutOfRange, Reason::CursorOutOfRange),
        Error::WriteHole { .. } => (Code::OutOfRange, Reason::WriteHole),
        Error::NotSupported { .. } => (Code::Unimplemented, Reason::NotSupported),
        Error::BackendUnavailable { .. } => (Code::FailedPrecondition, Reason::BackendUnavailable),
        Error::PermissionDenied { .. } => (Code::PermissionDenied, Reason::PermissionDenied),
        Error::System(error) => (system_code(error.errno), Reason::System),
        Error::Draining => (Code::Unavailable, Reason::Draining),
        Error::OutcomeUnknown => (Code::Aborted, Reason::OutcomeUnknown),
        Error::Internal(_) => (Code::Internal, Reason::Internal),
    };
    let reason = reason.as_str_name();
    Described {
        code,
        message: text::escaped(error, TEXT_MAX).to_string(),
        reason: reason.strip_prefix("REASON_").unwrap_or(reason),
        metadata: metadata(error),
    }
}

/// Converts an error that is a part of an answer.
#[must_use]
pub fn batch_error(error: &Error) -> BatchError {
    let described = describe(error);
    BatchError {
        code: described.code.into(),
        message: described.message,
        reason: described.reason.to_owned(),
        metadata: described.metadata.into_iter().collect(),
    }
}

fn system_code(errno: i32) -> Code {
    match errno {
        libc::ENOENT | libc::ESRCH => Code::NotFound,
        libc::EACCES | libc::EPERM => Code::PermissionDenied,
        libc::EADDRINUSE | libc::EEXIST => Code::AlreadyExists,
        libc::EMFILE
        | libc::ENFILE
        | libc::ENOMEM
        | libc::ENOBUFS
        | libc::EAGAIN
        | libc::ENOSPC => Code::ResourceExhausted,
        _ => Code::FailedPrecondition,
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let pairs: Vec<(&str, String)> = match error {
        Error::InvalidField { field, .. }
        | Error::SlotNotFound { field }
        | Error::ProcessNotFound { field, .. } => {
            vec![("field", field.to_string())]
        }
        Error::LoopNotFound { name }
        | Error::ConsumerNotFound { name }
        | Error::PolicyNotFound { name, .. } => vec![("name", name.clone())],
        Error::WatchNotFound { on, watch } => vec![("name", watch.clone()), ("loop", on.clone())],
        Error::LoopClosed { name } | Error::LoopRunning { name } => vec![("loop", name.clone())],
        Error::WatchClosed { watch } => vec![("watch", watch.to_string())],
        Error::NameTaken { name, differs, .. } => {
            let mut pairs = vec![("name", name.clone())];
            pairs.extend(differs.iter().map(|field| ("field", field.clone())));
            pairs
        }
        Error::Limit { limit, value, .. } => {
            vec![("limit", (*limit).to_owned()), ("value", value.to_string())]
        }
        Error::JournalFull {
            unit,
            needed,
            available,
        } => vec![
            ("unit", (*unit).to_owned()),
            ("needed", needed.to_string()),
            ("available", available.to_string()),
        ],
        Error::CursorOutOfRange {
            oldest,
            newest,
            epoch,
            ..
        } => vec![
            ("oldest", oldest.to_string()),
            ("newest", newest.to_string()),
            ("epoch", epoch.clone()),
        ],
        Error::WriteHole { taken, .. } => vec![("taken", taken.to_string())],
        Error::NotSupported {
            class,
            backend,
            capability,
            reason,
        } => vec![
            ("class", class.to_string()),
            ("backend", backend.to_string()),
            ("capability", capability.to_string()),
            ("reason", reason.to_string()),
        ],
        Error::BackendUnavailable { backend, reason } => {
            vec![("backend", backend.clone()), ("reason", reason.clone())]
        }
        Error::System(error) => vec![
            ("errno", error.errno.to_string()),
            ("errno_name", error.name()),
            ("step", error.step.to_owned()),
        ],
        _ => Vec::new(),
    };
    let owned = pairs.into_iter().map(|(k, v)| (k.to_owned(), value(v)));
    owned.collect()
}

/// Escapes and cuts a value: a text from a request may have any content and length.
fn value(text: impl Display) -> String {
    text::escaped(text, VALUE_MAX).to_string()
}

/// The longest value of ErrorInfo's metadata, and the longest path of a field, bytes.
const VALUE_MAX: usize = 256;

/// The metadata of ErrorInfo that is sent in trailers too, with the names of the trailers.
const TRAILERS: [(&str, &str); 4] = [
    ("errno_name", "evloopd-errno"),
    ("step", "evloopd-step"),
    ("field", "evloopd-field"),
    ("limit", "evloopd-limit"),
];

/// Returns trailers for clients that cannot read google.rpc details. They repeat the rich status in
/// plain ASCII.
fn trailers(reason: &str, metadata: &HashMap<String, String>) -> MetadataMap {
    let mut trailers = MetadataMap::new();
    let mut put = |key: &'static str, text: &str| {
        let text = text::ascii(text, VALUE_MAX).to_string();
        if let (false, Ok(value)) = (text.is_empty(), text.parse()) {
            trailers.insert(key, value);
        }
    };
    put("evloopd-reason", reason);
    for (key, trailer) in TRAILERS {
        put(trailer, metadata.get(key).map_or("", String::as_str));
    }
    trailers
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let Described {
            code,
            message,
            reason,
            metadata,
        } = describe(&error);
        let trailers = trailers(reason, &metadata);
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        if let Error::InvalidField { field, allowed }
        | Error::ProcessNotFound {
            field,
            why: allowed,
        } = &error
        {
            let allowed = text::escaped(allowed, TEXT_MAX).to_string();
            details.add_bad_request_violation(value(field), allowed);
        }
        Self::with_error_details_and_metadata(code, message, details, trailers)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use super::*;
    use crate::error::SystemError;

    /// Returns the size of the headers as HTTP/2 counts it (RFC 9113, section 6.5.2).
    fn header_bytes(status: Status) -> usize {
        let headers = status.into_http::<()>().into_parts().0.headers;
        let sizes = headers.iter().map(|(k, v)| k.as_str().len() + v.len() + 32);
        sizes.sum()
    }

    #[test]
    fn a_status_fits_where_clients_bound_it_whatever_was_given() {
        for c in ['x', 'é', '\n', '\u{202e}', '\u{1f600}'] {
            let text: String = repeat_n(c, 3 << 20).collect();
            let errors = [
                Error::invalid(text.clone(), text.clone()),
                Error::LoopNotFound { name: text.clone() },
                Error::BackendUnavailable {
                    backend: text.clone(),
                    reason: text.clone(),
                },
                Error::NameTaken {
                    what: "watch",
                    name: text.clone(),
                    differs: Some(text.clone()),
                },
                SystemError::new(rustix::io::Errno::MFILE, "open", text).into(),
            ];
            for error in errors {
                let batch = batch_error(&error);
                let short =
                    |text: &String| text.len() <= TEXT_MAX && !text.contains(text::is_hidden);
                assert!(short(&batch.message) && batch.metadata.values().all(short));
                let status = Status::from(error);
                assert_eq!(status.message(), batch.message);
                let bytes = header_bytes(status);
                assert!(bytes < 8 << 10, "{c:?}: {bytes}");
            }
        }
    }

    #[test]
    fn trailers_say_in_ascii_what_the_rich_status_says() {
        let trailer = |error: Error, key: &str| {
            let status = Status::from(error);
            let value = status.metadata().get(key);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let refused = || SystemError::new(rustix::io::Errno::MFILE, "open", "/é").into();
        let wrong = || Error::invalid("spec.é", "not so");
        for (error, key, value) in [
            (refused(), "evloopd-reason", Some("SYSTEM")),
            (refused(), "evloopd-errno", Some("EMFILE")),
            (refused(), "evloopd-step", Some("open")),
            (refused(), "evloopd-field", None),
            (wrong(), "evloopd-reason", Some("INVALID_FIELD")),
            (wrong(), "evloopd-field", Some("spec.\\u{e9}")),
            (
                Error::limit("limits.loops", 3),
                "evloopd-limit",
                Some("limits.loops"),
            ),
            (Error::Draining, "evloopd-errno", None),
        ] {
            assert_eq!(trailer(error, key).as_deref(), value, "{key}");
        }
    }
}
