//! Links. A link attaches a program to a cgroup for as long as a descriptor or a pin of the link exists.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::{host, sys};

/// The links that attach ka's programs to a cgroup.
///
/// The kernel detaches the program a moment after the last descriptor is closed and the last pin is removed. Use
/// [`Links::detach`] to end the policy at once.
pub struct Links(pub(super) Vec<(&'static str, OwnedFd)>);

impl Links {
    /// Returns whether the cgroup has been removed. If the kernel does not report it, the cgroup is assumed to exist.
    #[must_use]
    pub fn is_cgroup_removed(&self) -> bool {
        self.0.iter().all(|(_, link)| sys::linked_cgroup(link.as_fd()).is_ok_and(|id| id == 0))
    }

    /// Detaches the programs. When this returns, the policy is no longer in force. Linux before 5.9 detaches only a
    /// moment after the links are closed.
    pub fn detach(self) {
        for (_, link) in &self.0 {
            let _ = sys::detach(link.as_fd());
        }
    }
}

/// Returns the ID of the cgroup that a pinned link attaches a program to. The ID is 0 if the cgroup has been removed.
pub(crate) fn pinned_cgroup(path: &Path) -> io::Result<u64> {
    sys::linked_cgroup(sys::pinned(path)?.as_fd())
}

/// Detaches the program of a pinned link. Linux before 5.9 detaches only a moment after the pin is removed.
pub(crate) fn detach_pinned(path: &Path) -> io::Result<()> {
    match sys::pinned(path).and_then(|link| sys::detach(link.as_fd())) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && host::release() < (5, 9) => Ok(()),
        detached => detached,
    }
}
