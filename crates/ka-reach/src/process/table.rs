//! The descriptor tables of a process, and the sockets in them.
//!
//! A descriptor table belongs to tasks, not to a process. Most processes have one table. But a task that was created
//! without `CLONE_FILES`, or that called unshare(2), has another table. /proc/PID/fd shows only the leader's table. So
//! ka compares the tables of all tasks (kcmp(2)), and reads each different one through one of its tasks.
//!
//! A hostile process can have thousands of tables with a million descriptors each. So all tables but the first share a
//! budget of processor time.

use std::cmp;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Process, StatusFields};
use crate::parallel;
use crate::sys;
use crate::{Error, Result};

/// The flag of pidfd_open(2) to open a task that is not the leader of its process. Linux 6.9
pub(crate) const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// The descriptor table of a task. Other tasks may share it.
#[derive(Clone)]
pub struct DescriptorTable {
    /// The PID of the process.
    pub pid: i32,
    pub(super) task: i32,
    pub(super) pidfd: Arc<OwnedFd>,
}

impl DescriptorTable {
    /// Returns whether this is the table of the process's first thread, the leader.
    pub(crate) const fn belongs_to_leader(&self) -> bool {
        self.task == self.pid
    }

    /// Returns the task ID.
    pub(crate) const fn task(&self) -> i32 {
        self.task
    }

    /// Returns the pidfd of the task.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns whether one of the descriptors is an io_uring. A program can use its sockets through it without the C
    /// library.
    pub fn has_ring(&self) -> bool {
        let folder = format!("/proc/{}/task/{}/fd", self.pid, self.task);
        let links = fs::read_dir(folder).into_iter().flatten().flatten();
        links
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|link| link.as_os_str() == "anon_inode:[io_uring]")
    }

    /// Duplicates a descriptor. It may by now refer to another file than when it was listed.
    ///
    /// # Errors
    ///
    /// The errno of pidfd_getfd(2).
    pub fn duplicate(&self, fd: i32) -> io::Result<OwnedFd> {
        sys::pidfd_getfd(self.pidfd.as_fd(), fd)
    }
}

/// A socket of a process, at the time when its table was listed.
#[derive(Clone)]
pub struct HeldSocket {
    /// The table that has the socket.
    pub table: DescriptorTable,
    /// The descriptor in the table.
    pub fd: i32,
    /// The inode of the socket.
    pub inode: u32,
}

impl HeldSocket {
    /// Returns the descriptor's path in /proc.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/task/{}/fd/{}", self.table.pid, self.table.task, self.fd)
    }
}

impl Process {
    /// Calls `look` for each descriptor table of the process, with the table's sockets. If a table cannot be read,
    /// `look` gets the error instead.
    ///
    /// If the leader has ended and other tasks continue, the leader has no table.
    ///
    /// Each table is listed just before its call. The first one is always listed completely, because the kernel limits
    /// its size (fs.nr_open). The others share a budget.
    ///
    /// # Errors
    ///
    /// The process has ended, or /proc does not show it. `look` gets [`Error::OverBudget`] last if descriptors were
    /// left out, and [`Error::ThreadDescriptors`] for a table that this kernel does not let ka reach.
    pub fn each_table(&self, mut look: impl FnMut(Result<(DescriptorTable, Vec<(i32, u32)>)>)) -> Result<()> {
        let pid = self.pid;
        let status = StatusFields::read(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) if self.is_alive() => Error::ProcessNotShown,
            _ => error.into(),
        })?;
        let tasks = if status.threads() <= 1 && !status.is_zombie() {
            Tasks { distinct: vec![pid], unordered: Vec::new() }
        } else {
            let mut tasks = super::tasks(pid)?;
            tasks.retain(|task| *task != pid || !status.is_zombie());
            // The leader comes first: its pidfd works on older kernels too.
            Tasks::of(pid, &tasks)
        };
        let mut lists = HashSet::new();
        let mut budget = None;
        for task in tasks.distinct.iter().chain(&tasks.unordered) {
            let folder = format!("/proc/{pid}/task/{task}/fd");
            let listed = match &budget {
                None => sockets(&folder).map(|sockets| (sockets, true)),
                Some(budget) => sockets_within(&folder, budget),
            };
            let budget = budget.get_or_insert_with(Budget::new);
            let (sockets, is_whole) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    look(Err(error.into()));
                    continue;
                }
            };
            // If the kernel cannot compare the tables, tables with the same sockets are treated as one.
            let is_new = tasks.unordered.is_empty() || lists.insert(sockets.clone());
            if is_new {
                match self.table(*task) {
                    // This task has ended in the meantime, so it has no descriptors.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) && *task != pid => {}
                    table => look(table.map(|table| (table, sockets))),
                }
            }
            if !is_whole || budget.is_used_up() && tasks.last() != Some(*task) {
                look(Err(Error::OverBudget));
                break;
            }
        }
        Ok(())
    }

    /// Opens a task, to access its table.
    fn table(&self, task: i32) -> Result<DescriptorTable> {
        if task == self.pid {
            return Ok(self.leader_table());
        }
        match sys::pidfd_open(task, PIDFD_THREAD) {
            Ok(pidfd) => Ok(DescriptorTable { pid: self.pid, task, pidfd: Arc::new(pidfd) }),
            // Kernels that support the flag return EINVAL too, for a task that is about to end.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && has_task_pidfds() => {
                Err(io::Error::from_raw_os_error(libc::ESRCH).into())
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                Err(Error::ThreadDescriptors { task: Some(task) })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns whether this kernel supports [`PIDFD_THREAD`]. Tries it with the calling task, which certainly exists.
pub(crate) fn has_task_pidfds() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let opened = sys::pidfd_open(sys::thread_id(), PIDFD_THREAD);
        // Other errors, such as a lack of descriptors, prove nothing.
        !matches!(opened, Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)))
    })
}

/// The tasks of a process through which ka reads its descriptor tables.
struct Tasks {
    /// One task for each different table, the leader first.
    distinct: Vec<i32>,
    /// Tasks whose table the kernel cannot compare with others.
    unordered: Vec<i32>,
}

impl Tasks {
    /// Selects tasks with different tables. kcmp(2) orders tables, so a binary search among the known ones takes n
    /// log n comparisons for n tasks.
    fn of(pid: i32, tasks: &[i32]) -> Self {
        let mut ordered: Vec<i32> = Vec::new();
        let mut unordered = Vec::new();
        for task in tasks {
            let (mut low, mut high) = (0, ordered.len());
            while low < high {
                let middle = low.midpoint(high);
                let Some(other) = ordered.get(middle) else { break };
                match sys::compare_descriptors(*other, *task) {
                    Ok(cmp::Ordering::Less) => low = middle + 1,
                    Ok(cmp::Ordering::Greater) => high = middle,
                    Ok(cmp::Ordering::Equal) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                        if fs::metadata(format!("/proc/{pid}/task/{task}")).is_err() {
                            break;
                        }
                        // The other task has ended.
                        ordered.remove(middle);
                        high -= 1;
                    }
                    Err(_) => {
                        unordered.push(*task);
                        break;
                    }
                }
            }
            if low >= high {
                ordered.insert(low.min(ordered.len()), *task);
            }
        }
        // Move the leader to the front again.
        ordered.sort_unstable_by_key(|task| (*task != pid, *task));
        Self { distinct: ordered, unordered }
    }

    fn last(&self) -> Option<i32> {
        self.unordered.last().or(self.distinct.last()).copied()
    }
}

/// The processor time that ka spends on the descriptors of one process. Without a limit, one process could keep ka from
/// all others.
struct Budget {
    start: Duration,
}

impl Budget {
    const TIME: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self { start: sys::processor_time() }
    }

    fn is_used_up(&self) -> bool {
        sys::processor_time().saturating_sub(self.start) >= Self::TIME
    }
}

/// Returns the descriptors in a folder such as /proc/PID/fd that are sockets, and the inode of each.
///
/// # Errors
///
/// The error of reading the folder: EACCES if ka may not inspect the process.
pub fn sockets(folder: &str) -> io::Result<Vec<(i32, u32)>> {
    let folder = File::open(folder)?;
    let descriptors = sys::numbers(folder.as_fd())?;
    sockets_among(&folder, &descriptors)
}

/// Reads the same list as [`sockets`], but stops when the budget is spent. Also returns whether the list is complete.
fn sockets_within(folder: &str, budget: &Budget) -> io::Result<(Vec<(i32, u32)>, bool)> {
    /// The number of links that are read between two checks of the budget.
    const PIECE: usize = 1 << 14;
    let folder = File::open(folder)?;
    let descriptors = sys::numbers(folder.as_fd())?;
    let mut sockets = Vec::new();
    for piece in descriptors.chunks(PIECE) {
        if budget.is_used_up() {
            return Ok((sockets, false));
        }
        sockets.extend(sockets_among(&folder, piece)?);
    }
    sockets.sort_unstable();
    Ok((sockets, true))
}

fn sockets_among(folder: &File, descriptors: &[i32]) -> io::Result<Vec<(i32, u32)>> {
    let sockets = parallel::map(descriptors, |fd| {
        let mut buffer = [0; 64];
        match sys::read_link(folder.as_fd(), *fd, &mut buffer) {
            Ok(link) => Ok(socket_inode(link).map(|inode| (*fd, inode))),
            // The process has closed the descriptor since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let mut sockets: Vec<_> =
        sockets.into_iter().filter_map(io::Result::transpose).collect::<io::Result<_>>()?;
    sockets.sort_unstable();
    Ok(sockets)
}

/// Returns the inode from the target of a descriptor's link in /proc, such as `socket:[1234]`. `None` if it is not a
/// socket.
pub fn socket_inode(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
