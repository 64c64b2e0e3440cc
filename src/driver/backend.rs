//! The backends by name, and which of them are available on this host.

use std::fmt;

use rustix::io::Errno;

use super::{proactor, selector};

/// How a loop waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoopClass {
    /// By readiness: the loop waits until an operation would not block, then does it.
    Selector,
    /// By completion: the kernel does the operation and reports the result.
    Proactor,
}

impl LoopClass {
    /// Both classes.
    pub const ALL: [Self; 2] = [Self::Selector, Self::Proactor];

    /// Returns `selector` or `proactor`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Selector => "selector",
            Self::Proactor => "proactor",
        }
    }

    /// Returns the class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Returns the backends of this class, most efficient first: the order in which `auto` tries
    /// them.
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

/// The system interface with which a loop waits.
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
    /// Every backend that evloopd knows, including those that are not available on this host.
    pub const ALL: [Self; 6] = [
        Self::Epoll,
        Self::Poll,
        Self::Select,
        Self::IoUring,
        Self::Kqueue,
        Self::Iocp,
    ];

    /// Returns the name that the configuration uses.
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

    /// Returns the backend of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// Returns the class that the backend belongs to.
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

/// Asks the kernel whether the backend is available on this host.
///
/// Exhaustion (of file descriptors, of memory) does not make a backend unavailable: `auto` must
/// not choose another backend because of it.
///
/// # Errors
/// The reason why the backend is not available, as text.
pub fn availability(backend: Backend) -> Result<(), String> {
    match backend {
        Backend::Epoll | Backend::Poll | Backend::Select => match selector::probe(backend) {
            Err(errno @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS)) => Err(format!(
                "the kernel or a seccomp filter refuses {backend}: {errno}"
            )),
            _ => Ok(()),
        },
        Backend::IoUring => proactor::probe(),
        Backend::Kqueue => Err("BSD and macOS only".to_owned()),
        Backend::Iocp => Err("Windows only".to_owned()),
    }
}

/// Returns the most efficient available backend of the class, as `auto` in a policy does.
///
/// # Errors
/// The reasons why none is available, one for each backend.
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
