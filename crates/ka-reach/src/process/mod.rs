//! Running processes, as /proc shows them.
//!
//! The kernel reuses the PID of a process that has ended. So /proc/PID may describe a new process instead of the
//! process that ka opened. A [`Process`] has a pidfd, which always refers to the same process. If that process is still
//! alive after ka has read /proc/PID, the PID cannot have been reused, and the facts are about that process.

mod status;
mod table;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::escape::visible;
use crate::sys;

use status::stat;
pub use status::{StatusFields, stat_field};
pub use table::{DescriptorTable, HeldSocket, socket_inode, sockets};
pub(crate) use table::{PIDFD_THREAD, has_task_pidfds};

/// Returns the PIDs of all processes, in ascending order.
///
/// # Errors
///
/// The error of reading /proc.
pub fn all() -> io::Result<Vec<i32>> {
    let mut pids = sys::numbers(File::open("/proc")?.as_fd())?;
    pids.sort_unstable();
    Ok(pids)
}

/// Returns the tasks of a process, the leader first.
pub(crate) fn tasks(pid: i32) -> io::Result<Vec<i32>> {
    let mut tasks = sys::numbers(File::open(format!("/proc/{pid}/task"))?.as_fd())?;
    tasks.sort_unstable_by_key(|task| (*task != pid, *task));
    Ok(tasks)
}

/// Returns a process's name: at most 15 bytes, which the program can choose freely. proc_pid_comm(5)
pub(crate) fn comm(pid: i32) -> Option<Vec<u8>> {
    let mut name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|byte| *byte == b'\n');
    Some(name)
}

/// Returns a process's name, safe to print to a terminal. `?` if the name is unknown.
pub(crate) fn name(pid: i32) -> String {
    comm(pid).map_or_else(|| "?".to_owned(), |name| visible(&name).into_owned())
}

/// Formats a process for messages: `process 1234 (nginx)`.
pub fn title(pid: i32) -> String {
    format!("process {pid} ({})", name(pid))
}

/// Returns whether this is a thread of the kernel, which has no descriptors.
pub fn is_kernel_thread(pid: i32) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    stat(pid, 9).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Returns the PID of this process.
pub(crate) fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// Returns whether an errno of a call on a process or of its files in /proc says that the process has ended.
pub(crate) fn is_gone(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ESRCH | libc::ENOENT))
}

/// Returns the PID of a process's parent. `None` for the first process, and if there is no such process.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    stat(pid, 4)?.try_into().ok().filter(|parent| *parent > 0)
}

/// Returns the start time of a process, in clock ticks since boot. The time distinguishes the process from a later one
/// with the same PID. 0 if there is no such process.
pub fn started(pid: i32) -> u64 {
    stat(pid, 22).unwrap_or(0)
}

/// A process, with a pidfd. Its PID is not reused as long as [`Process::is_alive`] returns true.
#[derive(Clone)]
pub struct Process {
    /// The PID.
    pub pid: i32,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    /// Opens a process.
    ///
    /// # Errors
    ///
    /// The errno of pidfd_open(2): ESRCH if there is no such process. [`crate::privilege::explain`] explains it.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: Arc::new(sys::pidfd_open(pid, 0)?) })
    }

    /// Returns whether the process has not ended. If it has not, everything that ka has read from /proc/PID is about
    /// this process.
    pub fn is_alive(&self) -> bool {
        // A pidfd is readable when its process has ended.
        !sys::is_readable(self.as_fd())
    }

    /// Returns the process's name, safe to print to a terminal.
    pub fn name(&self) -> String {
        name(self.pid)
    }

    /// Returns the descriptor table of the leader. In nearly all processes, the other threads share it.
    pub(crate) fn leader_table(&self) -> DescriptorTable {
        DescriptorTable { pid: self.pid, task: self.pid, pidfd: Arc::clone(&self.pidfd) }
    }

    /// Checks whether ka may duplicate the process's descriptors. Tries a descriptor that cannot exist: EBADF means
    /// that the kernel has granted access.
    ///
    /// # Errors
    ///
    /// The errno of pidfd_getfd(2). [`crate::privilege::explain`] explains it.
    pub fn check_access(&self) -> io::Result<()> {
        match sys::pidfd_getfd(self.as_fd(), i32::MAX) {
            Err(error) if error.raw_os_error() != Some(libc::EBADF) => Err(error),
            _ => Ok(()),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use super::{Process, all, is_kernel_thread, own_pid, parent, sockets};

    #[test]
    fn this_process_is_found_with_its_sockets() {
        let pid = own_pid();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        let found = sockets("/proc/self/fd").unwrap();
        let inode = crate::sys::inode(listener.as_fd()).unwrap();
        assert!(found.contains(&(listener.as_raw_fd(), u32::try_from(inode).unwrap())));
        assert!(!found.iter().any(|(fd, _)| *fd == file.as_raw_fd()));
        assert!(all().unwrap().contains(&pid));
        let process = Process::open(pid).unwrap();
        assert!(process.is_alive());
        // The tests run in threads that share one descriptor table. A thread that is about to end has already released
        // the table, so a single count may be wrong.
        let tables = || {
            let mut count = 0;
            process.each_table(|table| count += usize::from(table.is_ok())).unwrap();
            count
        };
        assert!((0..1000).any(|_| tables() == 1));
        assert!(!is_kernel_thread(pid));
        assert_eq!(parent(pid), i32::try_from(std::os::unix::process::parent_id()).ok());
    }
}
