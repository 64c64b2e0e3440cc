//! Accepting while the system fails every accept(2).

use nix::libc;

use super::*;

/// Makes each accept4(2) of this thread fail with ECONNABORTED, for ever.
fn forbid_accepting() {
    let errno = libc::SECCOMP_RET_ERRNO | libc::ECONNABORTED.cast_unsigned();
    let code = |parts: u32| u16::try_from(parts).unwrap();
    let word = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let end = code(libc::BPF_RET | libc::BPF_K);
    let call = u32::try_from(libc::SYS_accept4).unwrap();
    // SAFETY: these only build instructions.
    let mut program = unsafe {
        [
            // The number of the system call is the first word of what a filter sees.
            libc::BPF_STMT(word, 0),
            libc::BPF_JUMP(equal, call, 0, 1),
            libc::BPF_STMT(end, errno),
            libc::BPF_STMT(end, libc::SECCOMP_RET_ALLOW),
        ]
    };
    let filter = libc::sock_fprog {
        len: program.len().try_into().unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program are valid for the calls, which concern this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// An error of one connection is skipped. If it comes every time, the loop must not spin.
pub(super) fn accept_fails_with_an_error_that_stays(rig: &mut Rig) {
    std::thread::scope(|scope| {
        let failing = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let source = rig.attach(listener, Nonblocking::Own);
            forbid_accepting();
            rig.driver.start(id(1), source, Op::Accept { limit: 2 });
            assert_eq!(rig.next(), ["1 failed ECONNABORTED."]);
        };
        scope.spawn(failing).join().unwrap();
    });
}
