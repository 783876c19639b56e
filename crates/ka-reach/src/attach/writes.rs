//! Access to the kernel's socket options that records the writes.

use std::cell::RefCell;

use ka_core::{Errno, Kernel, Libc, Settings, SockOpt, Timer};

/// An upper bound on the writes that are needed to apply a policy and, after an error, to undo it.
const MAX_WRITES: usize = 16;

/// Records the options that are written. On a dry run, does not write them.
pub(super) struct Writes {
    written: RefCell<Vec<(SockOpt, libc::c_int)>>,
    dry_run: bool,
}

impl Writes {
    pub(super) fn new(dry_run: bool) -> Self {
        // Allocate now: an allocation between two writes could fail and leave half a policy on the socket.
        Self { written: RefCell::new(Vec::with_capacity(MAX_WRITES)), dry_run }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written.borrow().is_empty()
    }

    /// Returns the settings that a socket with `settings` has after the writes.
    pub(super) fn after(&self, mut settings: Settings) -> Settings {
        for (option, value) in self.written.borrow().iter() {
            match option {
                SockOpt::KeepAlive => settings.enabled = *value != 0,
                SockOpt::Timer(timer) => match timer {
                    Timer::Idle => settings.idle = *value,
                    Timer::Intvl => settings.intvl = *value,
                    Timer::Cnt => settings.cnt = *value,
                    Timer::UserTimeout => settings.user_timeout = Some(*value),
                    Timer::RtoMax => settings.rto_max = Some(*value),
                },
                _ => {}
            }
        }
        settings
    }
}

impl Kernel for Writes {
    fn get(&self, fd: libc::c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        Libc.get(fd, option, value)
    }

    fn set(&self, fd: libc::c_int, option: SockOpt, value: libc::c_int) -> Result<(), Errno> {
        let mut written = self.written.borrow_mut();
        if written.len() < MAX_WRITES {
            written.push((option, value));
        }
        drop(written);
        if self.dry_run { Ok(()) } else { Libc.set(fd, option, value) }
    }
}
