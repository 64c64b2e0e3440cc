//! posix_spawn(3). The standard library's children inherit the daemon's blocked signals;
//! these start with none blocked and every action the default.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::libc;
use rustix::io::Errno;

/// Where one of a child's first three descriptors comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stdio<'a> {
    /// `/dev/null`
    Null,
    /// A duplicate of this one.
    Fd(BorrowedFd<'a>),
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The file to execute; not looked up.
    pub(crate) path: &'a CString,
    pub(crate) argv: &'a [CString],
    /// `NAME=value`
    pub(crate) env: &'a [CString],
    pub(crate) cwd: &'a CString,
    pub(crate) stdio: [Stdio<'a>; 3],
}

fn check(errno: libc::c_int) -> Result<(), Errno> {
    match errno {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> Result<Self, Errno> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: valid for writing; initialised by the call if it succeeds.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn stdio(&mut self, number: i32, stdio: Stdio<'_>) -> Result<(), Errno> {
        let actions = self.0.as_mut_ptr();
        check(match stdio {
            // SAFETY: initialised by `new`; the path is copied by the call.
            Stdio::Null => unsafe {
                libc::posix_spawn_file_actions_addopen(
                    actions,
                    number,
                    c"/dev/null".as_ptr(),
                    libc::O_RDWR,
                    0,
                )
            },
            // SAFETY: initialised by `new`; a descriptor is a number.
            Stdio::Fd(fd) => unsafe {
                libc::posix_spawn_file_actions_adddup2(actions, fd.as_raw_fd(), number)
            },
        })
    }

    fn chdir(&mut self, path: &CString) -> Result<(), Errno> {
        // SAFETY: initialised by `new`; the path ends in NUL and is copied by the call.
        check(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), path.as_ptr())
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and not used after.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    /// A process group of its own, no signal blocked, every action the default.
    fn new() -> Result<Self, Errno> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: valid for writing; initialised by the call if it succeeds.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut this = Self(attributes);
        let attributes = this.0.as_mut_ptr();
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let flags = libc::POSIX_SPAWN_SETPGROUP
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF;
        // The flags are small; the C type is a short.
        let flags = libc::c_short::try_from(flags).map_err(|_| Errno::INVAL)?;
        // SAFETY: the attributes are initialised above; the sets are valid for writing, and
        // initialised by their first call before they are read.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setflags(attributes, flags))?;
            check(libc::posix_spawnattr_setpgroup(attributes, 0))?;
            check(libc::posix_spawnattr_setsigmask(attributes, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(
                attributes,
                all.as_ptr(),
            ))?;
        }
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and not used after.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// Starts a child; returns its process id once the program is executed.
///
/// # Errors
/// Of the step that failed in the child, or of starting it. Then there is none.
pub(crate) fn spawn(launch: &Launch<'_>) -> Result<i32, Errno> {
    let mut actions = Actions::new()?;
    for (number, stdio) in (0..).zip(launch.stdio) {
        actions.stdio(number, stdio)?;
    }
    actions.chdir(launch.cwd)?;
    let attributes = Attributes::new()?;
    let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
        let pointers = strings.iter().map(|s| s.as_ptr().cast_mut());
        pointers.chain([ptr::null_mut()]).collect()
    };
    let (argv, env) = (pointers(launch.argv), pointers(launch.env));
    let mut pid = 0;
    // SAFETY: all strings end in NUL and outlive the call, both lists end in null, actions
    // and attributes are initialised. The child writes to none of it.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            launch.path.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(pid)
}
