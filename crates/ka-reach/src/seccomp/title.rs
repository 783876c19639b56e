//! The name and the title of a process, as ps(1) and top(1) show them.

#![expect(unsafe_code, reason = "prctl(2), and the memory of the command line")]

use std::ffi::CStr;
use std::ptr;

use crate::process::stat_field;

/// Sets /proc/PID/comm of this process. The kernel truncates the name to 15 bytes.
pub(super) fn set_comm(name: &CStr) {
    // SAFETY: the kernel reads a C string, at most 16 bytes of it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// The memory of this process's command line, as ps(1) shows it.
pub(super) struct Title {
    start: usize,
    size: usize,
}

impl Title {
    /// Finds the memory of the arguments and of the environment, which follows them. proc_pid_stat(5)
    pub(super) fn find() -> Option<Self> {
        let stat = std::fs::read("/proc/self/stat").ok()?;
        let field = |number| usize::try_from(stat_field(&stat, number)?).ok();
        let (start, end) = (field(48)?, field(49)?);
        let room_end = field(51).filter(|_| field(50) == Some(end)).unwrap_or(end);
        (start != 0 && start < end && end <= room_end).then(|| Self { start, size: room_end - start })
    }

    /// Overwrites the arguments and the environment with a title. The calling process must not read them any more.
    pub(super) fn set(&self, text: &[u8]) {
        let mut title = text.to_vec();
        title.truncate(self.size.saturating_sub(1));
        title.resize(self.size, 0);
        let place = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: the kernel wrote the strings to this place, which is writable memory of this process. No reference to
        // them exists. Zeros follow the title, so a later read of a string ends there.
        unsafe { ptr::copy_nonoverlapping(title.as_ptr(), place, self.size) };
    }
}
