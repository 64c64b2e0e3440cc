//! Listening Unix sockets. Binding replaces the file of a socket that no process listens on any
//! more, and never that of a live socket.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Result, SystemError};

/// The number of connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// A listening socket and its file.
#[derive(Debug)]
pub struct BoundSocket {
    /// The listening socket; close-on-exec, non-blocking.
    pub listener: OwnedFd,
    /// The socket's file, to be kept as long as the socket serves.
    pub file: SocketFile,
}

/// The file of a listening socket. On drop it is removed, unless another file has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    made: Option<(u64, u64)>,
    /// The uid that its directory belonged to, if it was seen.
    owner: Option<u32>,
    /// The locked file `PATH.lock`. The daemon that holds the lock owns the path.
    lock: OwnedFd,
}

impl SocketFile {
    /// Returns the locked file.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Returns whether the file is there, and is still the socket's.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let found = self.path.symlink_metadata().ok();
        self.made.is_some() && found.as_ref().map(identity) == self.made
    }

    /// Binds a new socket of this kind and mode at the path, whose file [is gone](Self::is_there), and
    /// listens. Makes missing directories.
    ///
    /// # Errors
    /// As [`bind_unix`]; `EPERM` also for a directory that belongs to another user than the one before,
    /// root and the caller.
    pub fn bind_again(&mut self, kind: SocketType, mode: u32) -> Result<OwnedFd> {
        let path = self.path.clone();
        let failed = |errno| SystemError::new(errno, "bind", path.display().to_string());
        let address = SocketAddrUnix::new(&*path).map_err(failed)?;
        make_parent(&path)?;
        let own = rustix::process::geteuid().as_raw();
        let owner = owner_above(&path);
        if owner != Some(own) && owner != Some(0) && owner != self.owner {
            let parent = path.parent().unwrap_or(Path::new("/")).display();
            let uid = owner.map_or_else(|| "nobody".to_owned(), |uid| format!("uid {uid}"));
            let detail = format!("{parent}, which was made anew and belongs to {uid}");
            return Err(SystemError::new(Errno::PERM, "bind", detail).into());
        }
        let since = read_note(&self.lock).map_or_else(crate::clock::boot_ticks, |(_, since)| since);
        let named = lock_name(&path).symlink_metadata().ok();
        let held = rustix::fs::fstat(&self.lock).ok();
        let held = held.map(|held| (held.st_dev, held.st_ino));
        if named.as_ref().map(identity) != held {
            self.lock = lock(&path)?;
            write_note(&self.lock, None, since);
        }
        let listener = bind_locked(&path, &address, kind, mode)?;
        self.made = path.symlink_metadata().ok().as_ref().map(identity);
        self.owner = owner;
        write_note(&self.lock, self.made, since);
        Ok(listener)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = self.path.symlink_metadata().ok();
        if self.made.is_some() && found.as_ref().map(identity) == self.made {
            // If this fails, the next start replaces the file.
            let _ = std::fs::remove_file(&self.path);
        }
        // Without this, a child between fork and exec would keep the lock through its copy.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Binds a Unix socket of type `kind` at `path` with the permissions `mode`, and listens.
///
/// Makes missing parent directories, with mode 0700. If the parent is in a directory where every
/// user may create files, such as `/tmp`, it must belong to the caller and be writable by no other
/// user, because any user could have made it. A lock on `PATH.lock` keeps two daemons from using
/// the same path; the lock file is not removed.
///
/// # Errors
/// [`Error::System`](crate::error::Error::System): `EADDRINUSE` if a process listens there,
/// `EEXIST` if the file is not a socket, `EPERM` for a parent that other users may change,
/// `ENAMETOOLONG` for more than 107 bytes, or another error of the system.
pub fn bind_unix(path: &Path, kind: SocketType, mode: u32) -> Result<BoundSocket> {
    let failed = |errno| SystemError::new(errno, "bind", path.display().to_string());
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    make_parent(path)?;
    let lock = lock(path)?;
    let listener = bind_locked(path, &address, kind, mode)?;
    let made = path.symlink_metadata().ok().as_ref().map(identity);
    write_note(&lock, made, crate::clock::boot_ticks());
    let file = SocketFile {
        path: path.to_owned(),
        made,
        owner: owner_above(path),
        lock,
    };
    Ok(BoundSocket { listener, file })
}

fn bind_locked(
    path: &Path,
    address: &SocketAddrUnix,
    kind: SocketType,
    mode: u32,
) -> Result<OwnedFd> {
    let failed = |step: &'static str| {
        move |errno: Errno| SystemError::new(errno, step, path.display().to_string())
    };
    remove_stale(path, address, kind)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener =
        net::socket_with(AddressFamily::UNIX, kind, flags, None).map_err(failed("socket"))?;
    net::bind(&listener, address).map_err(failed("bind"))?;
    // The mode that bind(2) gave the file by the umask does not matter: before listen(2) no client
    // can connect.
    let listens = rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed("chmod"));
    let listens = listens.and_then(|()| net::listen(&listener, BACKLOG).map_err(failed("listen")));
    if let Err(error) = listens {
        let _ = std::fs::remove_file(path);
        return Err(error.into());
    }
    Ok(listener)
}

/// Returns a socket that an earlier life of this daemon bound at `path` by [`bind_unix`], with the lock
/// of its file.
#[must_use]
pub fn adopt_unix(path: &Path, listener: OwnedFd, lock: OwnedFd) -> BoundSocket {
    let file = SocketFile {
        path: path.to_owned(),
        made: read_note(&lock).and_then(|(made, _)| made),
        owner: owner_above(path),
        lock,
    };
    BoundSocket { listener, file }
}

/// Notes in the lock file which file is the socket's, for [`adopt_unix`], and when the daemon that owns
/// the path bound it first, for [`bound_since`].
fn write_note(lock: &OwnedFd, made: Option<(u64, u64)>, since: u64) {
    let (device, inode) = made.unwrap_or_default();
    let text = format!("{device} {inode} {since}\n");
    // Without it the socket's file is not removed at the end; the next start replaces it.
    let _ = rustix::fs::ftruncate(lock, 0);
    let _ = rustix::io::pwrite(lock, text.as_bytes(), 0);
}

/// Returns which file is the socket's, if it is known, and when it was bound.
fn read_note(lock: impl AsFd) -> Option<(Option<(u64, u64)>, u64)> {
    let mut text = [0; 64];
    let len = rustix::io::pread(lock, &mut text, 0).ok()?;
    let mut numbers = std::str::from_utf8(&text[..len]).ok()?.split_whitespace();
    let mut number = || numbers.next()?.parse().ok();
    let made = (number()?, number()?);
    Some(((made != (0, 0)).then_some(made), number()?))
}

/// Returns when the daemon that owns the path bound its socket there first, in clock ticks since the
/// boot: none of its children is older.
#[must_use]
pub fn bound_since(path: &Path) -> Option<u64> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let lock = open(lock_name(path), flags, Mode::empty()).ok()?;
    // Whoever holds no lock is no daemon that lives.
    let is_held = flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    is_held.then(|| Some(read_note(&lock)?.1)).flatten()
}

/// Returns whether a process listens at the path.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (Ok(probe), Ok(address)) = (probe, SocketAddrUnix::new(path)) else {
        return false;
    };
    // AGAIN: its backlog is full.
    matches!(net::connect(&probe, &address), Ok(()) | Err(Errno::AGAIN))
}

fn lock_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Returns the uid that the directory of a path belongs to.
fn owner_above(path: &Path) -> Option<u32> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty())?;
    parent.metadata().ok().map(|found| found.uid())
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Makes the missing parent directories of a path as [`bind_unix`] does.
///
/// # Errors
/// As [`bind_unix`].
pub fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(());
    };
    let failed =
        |error: io::Error| SystemError::from_io(&error, "mkdir", parent.display().to_string());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(failed)?;
    check_parent(parent)
}

/// Checks whether [`bind_unix`] can bind at `path`, as far as that depends on existing files. It
/// makes nothing, and does not report a daemon that already listens there.
///
/// # Errors
/// `ENOTDIR` for a parent that is not a directory; `EPERM` and `EEXIST` as [`bind_unix`].
pub fn can_bind(path: &Path) -> Result<()> {
    let parents = path
        .ancestors()
        .skip(1)
        .filter(|p| !p.as_os_str().is_empty());
    for parent in parents {
        let failed = |errno| SystemError::new(errno, "mkdir", parent.display().to_string());
        match parent.metadata() {
            Ok(found) if found.is_dir() => {
                // A missing parent is not checked: the daemon will make it.
                if Some(parent) == path.parent() {
                    check_parent(parent)?;
                }
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !parent.is_symlink() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(failed(errno).into());
            }
            Ok(_) | Err(_) => return Err(failed(Errno::NOTDIR).into()),
        }
    }
    match path.symlink_metadata() {
        Ok(found) => check_socket(path, &found),
        Err(_) => Ok(()),
    }
}

fn check_socket(path: &Path, found: &Metadata) -> Result<()> {
    if found.file_type().is_socket() {
        return Ok(());
    }
    let detail = format!("{}, which is not a socket", path.display());
    Err(SystemError::new(Errno::EXIST, "bind", detail).into())
}

fn check_parent(parent: &Path) -> Result<()> {
    let failed =
        |error: io::Error| SystemError::from_io(&error, "stat", parent.display().to_string());
    let open_to_all = |directory: &Path| {
        let metadata = directory.metadata();
        metadata.is_ok_and(|m| m.mode() & 0o002 != 0)
    };
    if !parent.parent().is_some_and(open_to_all) {
        return Ok(());
    }
    let found = parent.symlink_metadata().map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let detail = format!(
        "{}: it must be a directory of uid {uid} that no other user can write to",
        parent.display()
    );
    Err(SystemError::new(Errno::PERM, "bind", detail).into())
}

fn lock(path: &Path) -> Result<OwnedFd> {
    let name = lock_name(path);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = open(&name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| SystemError::new(errno, "open", name.display().to_string()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(in_use(path).into()),
        Err(errno) => Err(SystemError::new(errno, "flock", name.display().to_string()).into()),
    }
}

/// Removes a socket file on which no process listens. The check is needed although the lock is
/// held, because programs other than evloopd do not take the lock.
fn remove_stale(path: &Path, address: &SocketAddrUnix, kind: SocketType) -> Result<()> {
    let system = |errno, step| SystemError::new(errno, step, path.display().to_string());
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(SystemError::from_io(&error, "stat", path.display().to_string()).into());
        }
        Ok(found) => check_socket(path, &found)?,
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, kind, flags, None)
        .map_err(|errno| system(errno, "socket"))?;
    match net::connect(&probe, address) {
        // A process listens: PROTOTYPE means on a socket of another type, AGAIN that its backlog is
        // full.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::AGAIN) => Err(in_use(path).into()),
        Err(Errno::CONNREFUSED) => {
            let removed = rustix::fs::unlink(path);
            Ok(removed.map_err(|errno| system(errno, "unlink"))?)
        }
        Err(errno) => Err(system(errno, "connect").into()),
    }
}

fn in_use(path: &Path) -> SystemError {
    let detail = format!("{}: another process listens there", path.display());
    SystemError::new(Errno::ADDRINUSE, "bind", detail)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::error::Error;

    fn refused(result: Result<BoundSocket>) -> Errno {
        match result {
            Err(Error::System(error)) => Errno::from_raw_os_error(error.errno),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/socket");
        let bind = || bind_unix(&path, SocketType::STREAM, 0o600);

        let first = bind().unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(refused(bind()), Errno::ADDRINUSE);
        UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());

        // A bound socket without listen(2) stands for one left by a crash. (A closed listener
        // could stay open for a moment in a child that another test starts.)
        let flags = SocketFlags::CLOEXEC;
        let stale = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        net::bind(&stale, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let replaced = bind().unwrap();
        UnixStream::connect(&path).unwrap();
        drop(replaced);

        // A live socket of a program that takes no lock.
        let _live = UnixListener::bind(&path).unwrap();
        assert_eq!(refused(bind()), Errno::ADDRINUSE);
        let other_type = bind_unix(&path, SocketType::SEQPACKET, 0o600);
        assert_eq!(refused(other_type), Errno::ADDRINUSE);
    }

    #[test]
    fn a_file_that_is_gone_is_bound_again_with_its_directory_and_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/socket");
        let mut bound = bind_unix(&path, SocketType::STREAM, 0o600).unwrap();
        let since = bound_since(&path).unwrap();
        assert!(bound.file.is_there());
        std::fs::remove_file(&path).unwrap();
        assert!(!bound.file.is_there());
        let again = bound.file.bind_again(SocketType::STREAM, 0o640).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let third = bound.file.bind_again(SocketType::STREAM, 0o600).unwrap();
        assert!(bound.file.is_there());
        UnixStream::connect(&path).unwrap();
        assert_eq!(bound_since(&path), Some(since));
        let refused_there = bind_unix(&path, SocketType::STREAM, 0o600);
        assert_eq!(refused(refused_there), Errno::ADDRINUSE);
        // Another socket that lives is left alone.
        std::fs::remove_file(&path).unwrap();
        let live = UnixListener::bind(&path).unwrap();
        let error = bound
            .file
            .bind_again(SocketType::STREAM, 0o600)
            .unwrap_err();
        assert!(matches!(error, Error::System(error) if error.name() == "EADDRINUSE"));
        drop((again, third, live, bound));
        assert!(path.exists() && bound_since(&path).is_none());
    }

    #[test]
    fn only_its_own_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bound = bind_unix(&path, SocketType::STREAM, 0o600).unwrap();
        // It is made before the other file is replaced, so that it cannot get its inode number.
        let newer = UnixListener::bind(directory.path().join("newer")).unwrap();
        std::fs::rename(directory.path().join("newer"), &path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(newer);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        let result = bind_unix(&path, SocketType::STREAM, 0o600);
        assert_eq!(refused(result), Errno::EXIST);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_parent_that_anybody_could_have_made_must_be_private() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o1777)).unwrap();
        let parent = directory.path().join("evloopd-0");
        let path = parent.join("socket");
        drop(bind_unix(&path, SocketType::STREAM, 0o600).unwrap());
        assert_eq!(parent.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&parent, Permissions::from_mode(0o770)).unwrap();
        let result = bind_unix(&path, SocketType::STREAM, 0o600);
        assert_eq!(refused(result), Errno::PERM);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("evloopd-0", &link).unwrap();
        let result = bind_unix(&link.join("socket"), SocketType::STREAM, 0o600);
        assert_eq!(refused(result), Errno::PERM);
    }
}
