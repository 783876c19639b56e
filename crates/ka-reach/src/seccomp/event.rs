//! An event that one thread waits for and other threads set. eventfd(2)

#![expect(unsafe_code, reason = "eventfd(2)")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use crate::sys::owned;

/// An eventfd, which is readable while the event is set. It does not block.
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())?;
        // If standard descriptors are closed, eventfd(2) may return one of their numbers. try_clone returns a number
        // above 2.
        fd.try_clone().map(Self)
    }

    pub(super) fn set(&self) {
        let one = 1_u64;
        // SAFETY: the kernel reads the eight bytes of `one`. The write fails only if the eventfd is readable already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    pub(super) fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: the kernel writes at most the eight bytes of `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
