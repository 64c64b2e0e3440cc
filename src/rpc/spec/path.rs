//! Checks of specifications of paths.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::process::{either, utf8};
use super::{Checks, Plan, Specification, update};
use crate::error::{Error, Result};
use crate::paths::{self, Kinds};
use crate::proto::{self, PathChangeKind, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{Change, Order, PathOrder};

const WINDOW_MAX: Duration = Duration::from_secs(60);
const POLL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Returns a path that was given as text or as bytes. Bytes that are UTF-8 become text.
pub(super) fn absolute(
    (field, bytes_field): (&'static str, &'static str),
    path: &mut String,
    path_bytes: &mut Bytes,
) -> Result<OsString> {
    either(bytes_field, path_bytes.is_empty() || path.is_empty())?;
    if let Some(text) = utf8(path_bytes).filter(|text| !text.is_empty()) {
        *path = text;
        path_bytes.clear();
    }
    let bytes = if path_bytes.is_empty() {
        path.as_bytes().to_vec()
    } else {
        path_bytes.to_vec()
    };
    if !bytes.starts_with(b"/") || bytes.contains(&0) {
        return Err(Error::invalid(
            field,
            "must be an absolute path without NUL",
        ));
    }
    Ok(OsString::from_vec(bytes))
}

fn kinds(given: &[i32]) -> Result<Kinds> {
    if given.is_empty() {
        return Ok(Kinds::USUAL);
    }
    let field = "spec.path.kinds";
    let kind = |kind: &i32| {
        Ok(match PathChangeKind::try_from(*kind) {
            Ok(PathChangeKind::Created) => Kinds::CREATED,
            Ok(PathChangeKind::Deleted) => Kinds::DELETED,
            Ok(PathChangeKind::Modified) => Kinds::MODIFIED,
            Ok(PathChangeKind::WriteEnded) => Kinds::WRITE_ENDED,
            Ok(PathChangeKind::Attributes) => Kinds::ATTRIBUTES,
            Ok(PathChangeKind::Moved | PathChangeKind::MovedAway | PathChangeKind::MovedHere) => {
                Kinds::MOVED
            }
            Ok(PathChangeKind::Opened) => Kinds::OPENED,
            Ok(PathChangeKind::Accessed) => Kinds::ACCESSED,
            Ok(PathChangeKind::ClosedUnwritten) => Kinds::CLOSED_UNWRITTEN,
            Ok(PathChangeKind::Unspecified) | Err(_) => {
                return Err(Error::invalid(field, "must be values of PathChangeKind"));
            }
        })
    };
    given
        .iter()
        .map(kind)
        .try_fold(Kinds::empty(), |all, kind| Ok(all | kind?))
}

/// Checks the specification of a path. `inbox` is the configured size of what waits for its reader.
pub(super) fn checked(spec: &mut proto::PathSpec, inbox: usize) -> Result<paths::Spec> {
    let fields = ("spec.path.path", "spec.path.path_bytes");
    let path = absolute(fields, &mut spec.path, &mut spec.path_bytes)?;
    let window = convert::optional_duration("spec.path.window", spec.window, WINDOW_MAX)?;
    let poll = convert::optional_duration("spec.path.poll", spec.poll, POLL_MAX)?;
    let mut checked = paths::Spec::new(path);
    checked.recursive = spec.recursive;
    checked.kinds = kinds(&spec.kinds)?;
    checked.ignore.clone_from(&spec.ignore);
    checked.window = window.unwrap_or_default();
    checked.poll = poll;
    checked.inbox.bytes = inbox;
    checked.inbox.entries = (inbox / paths::EVENT_BYTES).max(1);
    Ok(checked)
}

impl Specification for proto::PathSpec {
    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut spec = self;
        let checked = checked(&mut spec, checks.api.registry.services().path_inbox)?;
        let hub = checks.on.paths()?;
        Ok(Plan {
            need: PathOrder::NEED,
            order: Order::Later(Box::new(move |_| {
                Ok(PathOrder::begin(&hub, checked)?.build())
            })),
            claimed_from: None,
            spec: Spec::Path(spec),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &["recursive", "kinds", "ignore", "window", "poll"]
    }

    fn change(self, _: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        let mut spec = self;
        let checked = checked(&mut spec, checks.api.registry.services().path_inbox)?;
        let hub = checks.on.paths()?;
        Ok(Box::new(move |_| {
            let order = PathOrder::begin(&Arc::clone(&hub), checked)?;
            Ok(Change::Path(Box::new(order)))
        }))
    }
}
