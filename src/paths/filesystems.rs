//! Which file systems tell of their changes.

use std::os::fd::AsFd;

use rustix::fs::{FsWord, StatFs, fstatfs};
use rustix::io;

/// File systems whose changes come from elsewhere (another host, the kernel, a server process), past
/// the local system calls that inotify reports: a watch is accepted and stays silent.
///
/// Numbers: `linux/magic.h` and coreutils' `stat.c`, whose table also says which are remote; `tail -f`
/// polls the same ones. Not in it: cgroup2 (`cgroup.events` and its like do tell, see the kernel's
/// cgroup-v2.rst), devpts (creation is told), overlayfs, tmpfs, autofs.
///
/// FUSE (virtiofs too) is in it although changes made through the mount are told: what stands behind
/// it, the type does not say, and sshfs and shared folders change by themselves.
const SILENT: &[(u32, &str)] = &[
    (0x6969, "nfs"),
    (0x517b, "smb"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x6165_676c, "pstore"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x564c, "ncp"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x0116_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),
    (0x1983_0326, "beegfs"),
    (0x6173_7673, "panfs"),
    (0xbacb_acbc, "vmhgfs"),
    (0x786f_4256, "vboxsf"),
    (0x7c7c_6673, "prl_fs"),
];

/// The name of the file system of `fd` if it tells nothing.
pub(super) fn silent(fd: impl AsFd) -> io::Result<Option<&'static str>> {
    fstatfs(fd).map(|stat| silent_type(&stat))
}

/// The name of the file system if it tells nothing.
pub(super) fn silent_type(stat: &StatFs) -> Option<&'static str> {
    // The kernel's type is a 32-bit number, in a field that may be wider and signed.
    SILENT
        .iter()
        .find(|(magic, _)| stat.f_type.to_ne_bytes() == FsWord::from(*magic).to_ne_bytes())
        .map(|(_, name)| *name)
}
