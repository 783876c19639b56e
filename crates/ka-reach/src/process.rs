//! Running processes and their descriptors, as /proc shows them, held by a pidfd so that a number that is used again
//! is never taken for the process that was looked at.

use std::cmp;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::parallel;
use crate::sys;
use crate::text;

/// Pidfds of tasks that are no leader of their process: Linux 6.9. pidfd_open(2)
pub const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// What is said of a task that needs one.
pub const ONLY_LEADERS: &str =
    "a thread of it has descriptors of its own, which only Linux 6.9 and later lets others reach";

/// Reads a process's number, as it is typed.
pub fn number(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "a process is a number, as 1234 (pidof NAME finds it)".to_owned())
}

/// All processes, by number.
pub fn all() -> io::Result<Vec<i32>> {
    let mut pids = sys::numbers(File::open("/proc")?.as_fd())?;
    pids.sort_unstable();
    Ok(pids)
}

/// A process's name as the kernel has it, at most 15 bytes. It may be anything.
pub fn comm(pid: i32) -> Option<Vec<u8>> {
    let mut name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|byte| *byte == b'\n');
    Some(name)
}

/// What /proc/PID/status says of a process.
#[derive(Debug, Default)]
pub struct Status(BTreeMap<String, String>);

impl Status {
    pub fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/status"))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        // The name comes first and can hold no newline, so it cannot pass for another field.
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    fn number(&self, name: &str, place: usize, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.0.get(name)?.split_whitespace().nth(place)?, radix).ok()
    }

    /// The effective user.
    pub fn user(&self) -> Option<u32> {
        self.number("Uid", 1, 10).and_then(|uid| uid.try_into().ok())
    }

    /// Real, effective and saved user are all this one.
    pub fn is_wholly(&self, user: u32) -> bool {
        (0..3).all(|place| self.number("Uid", place, 10) == Some(user.into()))
    }

    /// Whether the process has a capability in force. capabilities(7)
    pub fn has_capability(&self, number: u32) -> bool {
        self.number("CapEff", 0, 16).is_some_and(|set| set & 1 << number != 0)
    }

    /// The process that the task belongs to.
    pub fn leader(&self) -> Option<i32> {
        self.number("Tgid", 0, 10).and_then(|pid| pid.try_into().ok())
    }

    pub fn threads(&self) -> u64 {
        self.number("Threads", 0, 10).unwrap_or(1)
    }

    /// Whether a seccomp filter is over the process.
    pub fn is_filtered(&self) -> bool {
        self.number("Seccomp", 0, 10) == Some(libc::SECCOMP_MODE_FILTER.into())
    }

    /// Whether the process has ended, with all its threads.
    pub fn is_ended(&self) -> bool {
        self.is_zombie() && self.threads() <= 1
    }

    pub fn is_zombie(&self) -> bool {
        self.0.get("State").is_some_and(|state| state.starts_with('Z'))
    }
}

/// A number of /proc/PID/stat, which everybody may read, by its place in proc_pid_stat(5), from 3 on.
fn stat(pid: i32, field: usize) -> Option<u64> {
    stat_field(&fs::read(format!("/proc/{pid}/stat")).ok()?, field)
}

pub fn stat_field(stat: &[u8], field: usize) -> Option<u64> {
    // The name, in parentheses, may have anything in it, parentheses too.
    let behind = stat.rsplit(|byte| *byte == b')').next()?;
    std::str::from_utf8(behind).ok()?.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Whether this is a thread of the kernel's own, which has no descriptors.
pub fn is_kernel_thread(pid: i32) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    stat(pid, 9).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// The process that started it, or adopted it; `None` for the first of all, and where there is none.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid, 4)?.try_into().ok().filter(|parent| *parent > 0)
}

/// When a process was started, which tells it from another of the same number; 0 where there is none.
pub fn started(pid: i32) -> u64 {
    stat(pid, 22).unwrap_or(0)
}

/// A process that is held: its number stays its own as long as [`Process::is_alive`] says so.
#[derive(Clone)]
pub struct Process {
    pub pid: i32,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: Arc::new(sys::pidfd_open(pid, 0)?) })
    }

    /// What was read of /proc/PID before was of this process if this says that it has not ended.
    pub fn is_alive(&self) -> bool {
        let ended = sys::poll(&[self.pidfd.as_fd()], Duration::ZERO);
        !ended.is_ok_and(|ended| ended.contains(&true))
    }

    /// Its name, fit for a terminal.
    pub fn name(&self) -> String {
        comm(self.pid).map_or_else(|| "?".to_owned(), |name| text::visible(&name).into_owned())
    }

    /// The descriptors of its first task, which nearly always are those of all.
    pub fn leader_table(&self) -> Table {
        Table { pid: self.pid, task: self.pid, pidfd: Arc::clone(&self.pidfd) }
    }

    /// Calls `look` for each descriptor table of the process, with the table's sockets. If a table cannot be read,
    /// `look` gets the error instead.
    ///
    /// Most processes have one table. A task that was made without `CLONE_FILES`, or that called unshare(2), has its
    /// own. A leader that has ended while other tasks continue has none.
    ///
    /// Each table is listed just before its call. The first one is always listed completely: the kernel bounds its size
    /// (fs.nr_open). The others share a budget, because a process may have thousands of tables.
    pub fn each_table(&self, mut look: impl FnMut(io::Result<(Table, Vec<(i32, u32)>)>)) -> io::Result<()> {
        let pid = self.pid;
        let status = Status::read(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) if self.is_alive() => io::Error::other(
                "/proc does not show it: it hides others' processes (hidepid), or is not mounted",
            ),
            _ => error,
        })?;
        let tasks = if status.threads() <= 1 && !status.is_zombie() {
            Tasks { own: vec![pid], unordered: Vec::new() }
        } else {
            let mut tasks = sys::numbers(File::open(format!("/proc/{pid}/task"))?.as_fd())?;
            tasks.retain(|task| *task != pid || !status.is_zombie());
            // The leader comes first: its pidfd works on older kernels too.
            tasks.sort_unstable_by_key(|task| (*task != pid, *task));
            Tasks::of(pid, &tasks)
        };
        let mut lists = HashSet::new();
        let mut budget = None;
        for task in tasks.own.iter().chain(&tasks.unordered) {
            let folder = format!("/proc/{pid}/task/{task}/fd");
            let listed = match &budget {
                None => sockets(&folder).map(|sockets| (sockets, true)),
                Some(budget) => sockets_within(&folder, budget),
            };
            let budget = budget.get_or_insert_with(Budget::new);
            let (sockets, is_whole) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    look(Err(error));
                    continue;
                }
            };
            // If the kernel cannot compare tables, tables with the same sockets are treated as one.
            let is_new = tasks.unordered.is_empty() || lists.insert(sockets.clone());
            if is_new {
                match self.table(*task) {
                    // This task has ended meanwhile, so it has no descriptors.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) && *task != pid => {}
                    table => look(table.map(|table| (table, sockets))),
                }
            }
            if !is_whole || budget.is_spent() && tasks.last() != Some(*task) {
                look(Err(io::Error::other(OVER_BUDGET)));
                break;
            }
        }
        Ok(())
    }

    /// Opens a task, to access its table.
    fn table(&self, task: i32) -> io::Result<Table> {
        if task == self.pid {
            return Ok(self.leader_table());
        }
        match sys::pidfd_open(task, PIDFD_THREAD) {
            Ok(pidfd) => Ok(Table { pid: self.pid, task, pidfd: Arc::new(pidfd) }),
            // Kernels that support the flag also return EINVAL for a task that is just ending.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && has_task_pidfds() => {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                Err(io::Error::other(format!("task {task}: {ONLY_LEADERS}")))
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns whether this kernel supports pidfds of tasks. Tries the calling task, which certainly exists.
pub fn has_task_pidfds() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let opened = sys::pidfd_open(sys::thread_id(), PIDFD_THREAD);
        // Other errors, such as a lack of descriptors, prove nothing.
        !matches!(opened, Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)))
    })
}

/// The tasks of a process, one for each different descriptor table.
struct Tasks {
    own: Vec<i32>,
    /// Tasks whose table the kernel cannot compare with others.
    unordered: Vec<i32>,
}

impl Tasks {
    /// kcmp(2) orders tables, so a binary search finds each one: n log n comparisons for n tasks.
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
        // Moves the leader to the front again.
        ordered.sort_unstable_by_key(|task| (*task != pid, *task));
        Self { own: ordered, unordered }
    }

    fn last(&self) -> Option<i32> {
        self.unordered.last().or(self.own.last()).copied()
    }
}

/// The error for a process whose descriptors were not all read.
pub const OVER_BUDGET: &str = "its threads have more descriptors than ka reads in 2 s of processor time: \
     ka has handled the sockets that it reached, and left the others";

/// The limit on processor time for the descriptors of one process, so that one process cannot keep ka from the others.
struct Budget {
    start: Duration,
}

impl Budget {
    const TIME: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self { start: sys::processor_time() }
    }

    fn is_spent(&self) -> bool {
        sys::processor_time().saturating_sub(self.start) >= Self::TIME
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A table of descriptors: a task's, which others may share.
#[derive(Clone)]
pub struct Table {
    pub pid: i32,
    task: i32,
    pidfd: Arc<OwnedFd>,
}

impl Table {
    pub const fn is_leaders(&self) -> bool {
        self.task == self.pid
    }

    pub const fn task(&self) -> i32 {
        self.task
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether one of the descriptors is an io_uring, which does what is asked of it without the C library.
    pub fn has_ring(&self) -> bool {
        let folder = format!("/proc/{}/task/{}/fd", self.pid, self.task);
        let links = std::fs::read_dir(folder).into_iter().flatten().flatten();
        links
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|link| link.as_os_str() == "anon_inode:[io_uring]")
    }

    /// A duplicate of a descriptor, which need not be what it was when it was listed.
    pub fn duplicate(&self, fd: i32) -> io::Result<OwnedFd> {
        sys::pidfd_getfd(self.pidfd.as_fd(), fd)
    }
}

/// Whether the process's descriptors may be had, asked for one that it cannot have.
pub fn probe(process: &Process) -> io::Result<()> {
    match sys::pidfd_getfd(process.as_fd(), i32::MAX) {
        Err(error) if error.raw_os_error() != Some(libc::EBADF) => Err(error),
        _ => Ok(()),
    }
}

/// A socket of a process, at the time when its table was listed.
#[derive(Clone)]
pub struct Target {
    pub table: Table,
    pub fd: i32,
    pub inode: u32,
}

impl Target {
    /// Returns the descriptor's path in /proc.
    pub fn path(&self) -> String {
        format!("/proc/{}/task/{}/fd/{}", self.table.pid, self.table.task, self.fd)
    }
}

/// Returns the descriptors in a folder of /proc that are sockets, and the inode of each.
pub fn sockets(folder: &str) -> io::Result<Vec<(i32, u32)>> {
    let folder = File::open(folder)?;
    let descriptors = sys::numbers(folder.as_fd())?;
    sockets_among(&folder, &descriptors)
}

/// Reads the same list as [`sockets`], but stops when the budget is spent. The flag is true if the list is complete.
fn sockets_within(folder: &str, budget: &Budget) -> io::Result<(Vec<(i32, u32)>, bool)> {
    /// How many links are read between two checks of the budget.
    const PIECE: usize = 1 << 14;
    let folder = File::open(folder)?;
    let descriptors = sys::numbers(folder.as_fd())?;
    let mut sockets = Vec::new();
    for piece in descriptors.chunks(PIECE) {
        if budget.is_spent() {
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
            // One that is gone meanwhile has no link.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let mut sockets: Vec<_> = sockets.into_iter().filter_map(Result::transpose).collect::<io::Result<_>>()?;
    sockets.sort_unstable();
    Ok(sockets)
}

/// The inode of a descriptor whose link in /proc says that it is a socket.
pub fn socket_inode(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use super::{Process, Status, all, is_kernel_thread, parent, sockets};

    #[test]
    fn this_process_is_found_with_its_sockets() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        let found = sockets("/proc/self/fd").unwrap();
        let inode = crate::sys::inode(listener.as_fd()).unwrap();
        assert!(found.contains(&(listener.as_raw_fd(), u32::try_from(inode).unwrap())));
        assert!(!found.iter().any(|(fd, _)| *fd == file.as_raw_fd()));
        assert!(all().unwrap().contains(&pid));
        let process = Process::open(pid).unwrap();
        assert!(process.is_alive());
        // The tests run in threads, which share their descriptors; one that is just ending has let go of them.
        let tables = || {
            let mut count = 0;
            process.each_table(|table| count += usize::from(table.is_ok())).unwrap();
            count
        };
        assert!((0..1000).any(|_| tables() == 1));
        assert!(!is_kernel_thread(pid));
        assert_eq!(parent(pid), i32::try_from(std::os::unix::process::parent_id()).ok());
    }

    #[test]
    fn a_status_is_read_field_by_field() {
        let status =
            Status::parse("Name:\tUid: 0\nState:\tZ (zombie)\nUid:\t1\t2\t3\t4\nCapEff:\t0000000000080000\n");
        assert_eq!(status.user(), Some(2));
        assert!(status.is_zombie() && status.has_capability(19) && !status.has_capability(18));
        assert!(!status.is_wholly(1));
    }
}
