//! Whether there is an io_uring here that does what the proactor needs, and if not, why.

use std::io;

use io_uring::register::Restriction;
use io_uring::{Parameters, Probe, opcode, squeue};
use rustix::io::Errno;

/// Where the system's administrator turns io_uring off.
const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// What is asked of the ring, and nothing else is possible.
const OPERATIONS: [(u8, &str); 6] = [
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::RecvMulti::CODE, "RECV"),
    (opcode::Read::CODE, "READ"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];
/// `IORING_REGISTER_PBUF_RING` and `IORING_UNREGISTER_PBUF_RING` of io_uring_register(2):
/// buffers come, and go when nobody receives.
const REGISTRATIONS: [u8; 2] = [22, 23];
/// As well, if the kernel has it.
const READ_MANY: u8 = opcode::ReadMulti::CODE;

/// Why there is no ring.
#[derive(Debug)]
pub(super) enum Refused {
    /// It cannot be had here: why, in words.
    Unavailable(String),
    /// It can be had, but not now.
    System(Errno),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unavailable(reason) => Self::new(io::ErrorKind::Unsupported, reason),
            Refused::System(errno) => errno.into(),
        }
    }
}

/// Why the ring could not be made.
pub(super) fn no_ring(error: &io::Error) -> Refused {
    let disabled = std::fs::read_to_string(DISABLED);
    refused("setup", error, disabled.as_deref().unwrap_or("").trim())
}

/// Why something could not be registered with a ring that was made.
pub(super) fn no_register(error: &io::Error) -> Refused {
    refused("register", error, "")
}

fn refused(call: &str, error: &io::Error, disabled: &str) -> Refused {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Refused::Unavailable(match (errno, disabled) {
        (Errno::NOSYS, _) => {
            format!("the kernel has no io_uring_{call}, or a seccomp filter hides it")
        }
        (Errno::PERM | Errno::ACCESS, "2") => {
            "kernel.io_uring_disabled is 2: for nobody".to_owned()
        }
        (Errno::PERM | Errno::ACCESS, "1") => "kernel.io_uring_disabled is 1: for members of \
            kernel.io_uring_group and CAP_SYS_ADMIN only"
            .to_owned(),
        (Errno::PERM | Errno::ACCESS, _) => {
            format!("a seccomp filter, or another rule, refuses io_uring_{call}: {errno}")
        }
        (Errno::INVAL, _) => "the kernel is older than Linux 6.1: it lacks \
            IORING_SETUP_DEFER_TASKRUN"
            .to_owned(),
        // Of descriptors, of memory, of memory that may be locked.
        _ => return Refused::System(errno),
    })
}

/// Whether the ring itself is as it must be.
pub(super) fn check_features(parameters: &Parameters) -> Result<(), Refused> {
    let needed = [
        (parameters.is_feature_nodrop(), "NODROP"),
        (parameters.is_feature_ext_arg(), "EXT_ARG"),
        (parameters.is_feature_fast_poll(), "FAST_POLL"),
        (parameters.is_feature_skip_cqe_on_success(), "CQE_SKIP"),
    ];
    match needed.into_iter().find(|(has, _)| !has) {
        None => Ok(()),
        Some((_, feature)) => Err(Refused::Unavailable(format!(
            "the kernel lacks IORING_FEAT_{feature}"
        ))),
    }
}

/// Whether the kernel does what is asked of it.
pub(super) fn check_operations(known: &Probe) -> Result<(), Refused> {
    let mut needed = OPERATIONS.into_iter();
    match needed.find(|(code, _)| !known.is_supported(*code)) {
        None => Ok(()),
        Some((_, operation)) => Err(Refused::Unavailable(format!(
            "the kernel lacks IORING_OP_{operation}"
        ))),
    }
}

/// What the ring is restricted to, once it is enabled.
pub(super) fn restrictions() -> Vec<Restriction> {
    let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS;
    OPERATIONS
        .into_iter()
        .map(|(code, _)| code)
        .chain([READ_MANY])
        .map(Restriction::sqe_op)
        .chain(REGISTRATIONS.map(Restriction::register_op))
        .chain([Restriction::sqe_flags_allowed(flags.bits())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_named_and_exhaustion_is_none() {
        let reason = |errno: Errno, disabled| match refused("setup", &errno.into(), disabled) {
            Refused::Unavailable(reason) => reason,
            Refused::System(errno) => errno.to_string(),
        };
        let causes = [
            (Errno::NOSYS, "0", "the kernel has no io_uring_setup"),
            (Errno::PERM, "2", "kernel.io_uring_disabled is 2"),
            (Errno::PERM, "1", "kernel.io_uring_group"),
            (Errno::PERM, "0", "seccomp"),
            (Errno::ACCESS, "", "seccomp"),
            (Errno::INVAL, "0", "IORING_SETUP_DEFER_TASKRUN"),
        ];
        for (errno, disabled, cause) in causes {
            let reason = reason(errno, disabled);
            assert!(reason.contains(cause), "{errno}: {reason}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN] {
            let refused = refused("setup", &errno.into(), "0");
            assert!(matches!(refused, Refused::System(e) if e == errno));
        }
    }
}
