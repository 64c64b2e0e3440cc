//! The backends by name, and which of them can be had on this host.

use std::fmt;

use rustix::io::Errno;

use super::{proactor, selector};

/// How a loop learns what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoopClass {
    /// By readiness: wait until an operation would not block, then do it.
    Selector,
    /// By completion: the kernel does the operation and says so.
    Proactor,
}

impl LoopClass {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Selector, Self::Proactor];

    /// `selector` or `proactor`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Selector => "selector",
            Self::Proactor => "proactor",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Its backends, most efficient first: the order in which `auto` tries them.
    #[must_use]
    pub const fn backends(self) -> &'static [Backend] {
        match self {
            Self::Selector => &[
                Backend::Epoll,
                Backend::Poll,
                Backend::Select,
                Backend::Kqueue,
            ],
            Self::Proactor => &[Backend::IoUring, Backend::Iocp],
        }
    }
}

impl fmt::Display for LoopClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a loop waits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// epoll(7)
    Epoll,
    /// poll(2)
    Poll,
    /// select(2)
    Select,
    /// `io_uring`(7)
    IoUring,
    /// kqueue(2) of the BSDs and macOS
    Kqueue,
    /// I/O completion ports of Windows
    Iocp,
}

impl Backend {
    /// Every backend evloopd knows, also those it cannot have here.
    pub const ALL: [Self; 6] = [
        Self::Epoll,
        Self::Poll,
        Self::Select,
        Self::IoUring,
        Self::Kqueue,
        Self::Iocp,
    ];

    /// As in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Poll => "poll",
            Self::Select => "select",
            Self::IoUring => "io_uring",
            Self::Kqueue => "kqueue",
            Self::Iocp => "iocp",
        }
    }

    /// The backend of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// Whose it is.
    #[must_use]
    pub const fn class(self) -> LoopClass {
        match self {
            Self::Epoll | Self::Poll | Self::Select | Self::Kqueue => LoopClass::Selector,
            Self::IoUring | Self::Iocp => LoopClass::Proactor,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the backend can be had on this host; asks the kernel.
///
/// Exhaustion (of file descriptors, of memory) does not make a backend unavailable: it
/// must not make `auto` choose another.
///
/// # Errors
/// Why it cannot be had, in words.
pub fn availability(backend: Backend) -> Result<(), String> {
    match backend {
        Backend::Epoll | Backend::Poll | Backend::Select => match selector::probe(backend) {
            Err(errno @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS)) => Err(format!(
                "the kernel, or a seccomp filter, refuses {backend}: {errno}"
            )),
            _ => Ok(()),
        },
        Backend::IoUring => proactor::probe(),
        Backend::Kqueue => Err("BSD and macOS only".to_owned()),
        Backend::Iocp => Err("Windows only".to_owned()),
    }
}

/// The most efficient backend of the class that can be had here: what `auto` means.
///
/// # Errors
/// Why none can be had, backend by backend.
pub fn auto(class: LoopClass) -> Result<Backend, String> {
    let mut reasons = Vec::new();
    for &backend in class.backends() {
        match availability(backend) {
            Ok(()) => return Ok(backend),
            Err(reason) => reasons.push(format!("{backend}: {reason}")),
        }
    }
    Err(reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_classes_agree() {
        for backend in Backend::ALL {
            assert_eq!(Backend::from_name(backend.name()), Some(backend));
            assert!(backend.class().backends().contains(&backend));
        }
        for class in LoopClass::ALL {
            assert_eq!(LoopClass::from_name(class.name()), Some(class));
            assert!(class.backends().iter().all(|b| b.class() == class));
        }
        assert_eq!(Backend::from_name("auto"), None);
    }

    #[test]
    fn auto_takes_the_first_that_works() {
        for class in LoopClass::ALL {
            let first = class
                .backends()
                .iter()
                .copied()
                .find(|&backend| availability(backend).is_ok());
            assert_eq!(auto(class).ok(), first);
        }
    }
}
