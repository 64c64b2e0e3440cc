//! The choice of a loop's backend.

use crate::config::Policy;
use crate::driver::{Backend, LoopClass, backend};
use crate::error::{Error, Result};

/// The word for the most efficient backend that is available on this host.
const AUTO: &str = "auto";

/// Returns the backend `wanted`; if that is empty, the policy's first backend that is available.
///
/// # Errors
/// A backend that the policy does not allow, or that is not available. A named backend is never
/// replaced by another one.
pub(super) fn choose(policy: &Policy, wanted: &str) -> Result<Backend> {
    let class = LoopClass::from_name(&policy.class).unwrap_or(LoopClass::Selector);
    let auto = policy.backends.iter().any(|b| b == AUTO);
    if !wanted.is_empty() {
        let of_class = |b: &Backend| b.class() == class;
        let known = Backend::from_name(wanted);
        let allowed = known.filter(|b| {
            let listed = policy.backends.iter().any(|name| name == b.name());
            listed || (auto && of_class(b))
        });
        let Some(backend) = allowed else {
            let names = class.backends().iter().map(|b| b.name());
            let allowed: Vec<&str> = if auto {
                names.collect()
            } else {
                policy.backends.iter().map(String::as_str).collect()
            };
            let allowed = allowed.join(", ");
            let message = format!(
                "must not be `{wanted}`: policy `{}` allows {allowed}",
                policy.name
            );
            return Err(Error::invalid("backend", message));
        };
        return available(backend);
    }
    let mut last = None;
    for name in &policy.backends {
        let found = if name == AUTO {
            let unavailable = |reason| Error::BackendUnavailable {
                backend: AUTO.to_owned(),
                reason,
            };
            backend::auto(class).map_err(unavailable)
        } else {
            Backend::from_name(name)
                .ok_or(Error::Internal("a policy names an unknown backend"))
                .and_then(available)
        };
        match found {
            Ok(backend) => return Ok(backend),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(Error::Internal("a policy names no backend")))
}

/// Returns the backend that a policy's loops get on this host.
///
/// # Errors
/// None of the policy's backends is available.
pub fn backend_of(policy: &Policy) -> Result<Backend> {
    choose(policy, "")
}

fn available(backend: Backend) -> Result<Backend> {
    match backend::availability(backend) {
        Ok(()) => Ok(backend),
        Err(reason) => Err(Error::BackendUnavailable {
            backend: backend.name().to_owned(),
            reason,
        }),
    }
}
