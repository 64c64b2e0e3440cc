//! clone3(2), which the C library does not offer: the only way to start a process in a cgroup.

use std::ffi::{c_int, c_void};

use nix::libc;
use rustix::io::Errno;

/// `CLONE_INTO_CGROUP` of linux/sched.h (Linux 5.7).
pub(super) const INTO_CGROUP: u64 = 1 << 33;

/// `struct clone_args` of linux/sched.h.
#[derive(Debug, Default)]
#[repr(C, align(8))]
pub(super) struct Arguments {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    /// The lowest byte of the child's stack.
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

/// Starts a process that calls `run` with `given`, and ends with what it returns. Returns its pid.
///
/// # Errors
/// Those of clone3(2); ENOSYS on a processor for which this is not written.
///
/// # Safety
/// The arguments name a stack that nothing else uses, with an end that is aligned to 16 bytes. What
/// `run` does to memory that is shared with this process is sound.
pub(super) unsafe fn clone3(
    arguments: &Arguments,
    run: extern "C" fn(*mut c_void) -> c_int,
    given: *mut c_void,
) -> Result<libc::c_long, Errno> {
    let result: libc::c_long;
    // The child begins with a copy of the registers, on its own stack, from which it must not return:
    // so it calls `run` from here, and exits.
    // SAFETY: the caller's. In this process only the registers that are named change.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit_group,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<Arguments>(),
            in("r8") run,
            in("r9") given,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x3",
            "blr x2",
            "mov x8, {exit}",
            "svc 0",
            "brk 1",
            "2:",
            exit = const libc::SYS_exit_group,
            inlateout("x0") std::ptr::from_ref(arguments) => result,
            in("x1") size_of::<Arguments>(),
            in("x2") run,
            in("x3") given,
            in("x8") libc::SYS_clone3,
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = (arguments, run, given);
        result = -libc::c_long::from(libc::ENOSYS);
    }
    if result < 0 {
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(0);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(result)
}
