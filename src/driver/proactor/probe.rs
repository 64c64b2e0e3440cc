//! Checks whether this host's io_uring has all that the proactor needs, and explains if not.

use std::io;

use io_uring::register::Restriction;
use io_uring::{Parameters, Probe, opcode, squeue};
use rustix::io::Errno;

/// The sysctl with which the administrator disables io_uring.
const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// The operations that the ring is restricted to.
const OPERATIONS: [(u8, &str); 6] = [
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::RecvMulti::CODE, "RECV"),
    (opcode::Read::CODE, "READ"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];
/// `IORING_REGISTER_PBUF_RING` and `IORING_UNREGISTER_PBUF_RING` of io_uring_register(2): buffers
/// are registered when the first operation receives, and withdrawn when none does.
const REGISTRATIONS: [u8; 2] = [22, 23];
/// An operation that is used only if the kernel has it.
const READ_MANY: u8 = opcode::ReadMulti::CODE;

/// Why a ring could not be created.
#[derive(Debug)]
pub(super) enum Refused {
    /// io_uring is not available on this host, with the reason as text.
    Unavailable(String),
    /// io_uring is available, but a system call failed (such as for lack of descriptors).
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

/// Returns the reason why the ring could not be created.
pub(super) fn no_ring(error: &io::Error) -> Refused {
    let disabled = std::fs::read_to_string(DISABLED);
    refused("setup", error, disabled.as_deref().unwrap_or("").trim())
}

/// Returns the reason why a registration with an existing ring failed.
pub(super) fn no_register(error: &io::Error) -> Refused {
    refused("register", error, "")
}

fn refused(call: &str, error: &io::Error, disabled: &str) -> Refused {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Refused::Unavailable(match (errno, disabled) {
        (Errno::NOSYS, _) => {
            format!("the kernel has no io_uring_{call}, or a seccomp filter answers ENOSYS for it")
        }
        (Errno::PERM | Errno::ACCESS, "2") => {
            "the sysctl kernel.io_uring_disabled is 2: no process may use io_uring".to_owned()
        }
        (Errno::PERM | Errno::ACCESS, "1") => "the sysctl kernel.io_uring_disabled is 1: only \
            members of kernel.io_uring_group and processes with CAP_SYS_ADMIN may use io_uring"
            .to_owned(),
        (Errno::PERM | Errno::ACCESS, _) => {
            format!("a seccomp filter or a security module refuses io_uring_{call}: {errno}")
        }
        (Errno::INVAL, _) if call == "register" => {
            "the kernel does not know an argument of io_uring_register".to_owned()
        }
        (Errno::INVAL, _) => "the kernel is older than Linux 6.1: it lacks \
            IORING_SETUP_DEFER_TASKRUN"
            .to_owned(),
        // Exhaustion of descriptors, of memory, or of memory that may be locked.
        _ => return Refused::System(errno),
    })
}

/// Checks that the ring has the features that the proactor needs.
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

/// Checks that the kernel has all of [`OPERATIONS`].
pub(super) fn check_operations(known: &Probe) -> Result<(), Refused> {
    let mut needed = OPERATIONS.into_iter();
    match needed.find(|(code, _)| !known.is_supported(*code)) {
        None => Ok(()),
        Some((_, operation)) => Err(Refused::Unavailable(format!(
            "the kernel lacks IORING_OP_{operation}"
        ))),
    }
}

/// Returns the restrictions that hold once the ring is enabled, on a kernel with the `known`
/// operations: one that it does not have may not be named either (EINVAL).
pub(super) fn restrictions(known: &Probe) -> Vec<Restriction> {
    let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS;
    OPERATIONS
        .into_iter()
        .map(|(code, _)| code)
        .chain(known.is_supported(READ_MANY).then_some(READ_MANY))
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
        let register = no_register(&Errno::INVAL.into());
        assert!(matches!(register, Refused::Unavailable(why) if why.contains("register")));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN] {
            let refused = refused("setup", &errno.into(), "0");
            assert!(matches!(refused, Refused::System(e) if e == errno));
        }
    }

    #[test]
    fn an_operation_that_the_kernel_lacks_is_not_named_to_it() {
        let named = restrictions(&Probe::new()).len();
        assert_eq!(named, OPERATIONS.len() + REGISTRATIONS.len() + 1);
    }
}
