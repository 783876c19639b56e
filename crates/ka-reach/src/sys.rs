//! System calls that have no safe wrapper elsewhere.

#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use libc::{c_int, c_long};

/// Raises the soft limit on descriptors to the hard limit, since each process that ka looks at takes a descriptor.
/// Returns the limit.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes an rlimit. If setrlimit fails, the limit is unchanged.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
                limit = raised;
            }
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// The result of a call, or its errno.
pub fn check<T: Copy + PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that a system call has just made.
pub fn owned(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: it is new, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A process, or a task of one, that stays the same however numbers are used again. pidfd_open(2)
pub fn pidfd_open(pid: i32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// A duplicate of a process's descriptor, closed on exec. pidfd_getfd(2)
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Gives the calling thread a table of descriptors of its own, a copy. What it opens from then on is its own, and the
/// kernel need not guard each call against the other threads.
pub fn unshare_descriptors() {
    // SAFETY: takes no pointer. Where it fails the table stays shared, which is slower and nothing else.
    unsafe { libc::unshare(libc::CLONE_FILES) };
}

/// Compares the descriptor tables of two tasks. The kernel orders tables by their obfuscated addresses. Two tasks that
/// share a table compare equal. kcmp(2)
pub fn compare_descriptors(one: i32, other: i32) -> io::Result<std::cmp::Ordering> {
    const KCMP_FILES: c_int = 2;
    // SAFETY: takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) }).map(|order| match order {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// Returns whether two tasks share a descriptor table.
pub fn share_descriptors(one: i32, other: i32) -> io::Result<bool> {
    compare_descriptors(one, other).map(std::cmp::Ordering::is_eq)
}

/// Returns the ID of the calling thread. gettid(2)
pub fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Returns the processor time that this process has used. clock_gettime(2), `CLOCK_PROCESS_CPUTIME_ID`
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec. If the call fails, the time stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// An array of words, initially 0, that this process shares with its forked children.
pub struct SharedWords {
    place: ptr::NonNull<AtomicU64>,
    count: usize,
}

impl SharedWords {
    pub fn new(count: usize) -> io::Result<Self> {
        let count = count.max(1);
        let size = count.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses the address; on failure it returns MAP_FAILED.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let place = ptr::NonNull::new(place.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { place, count })
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped this many words, aligned to a page, and zero is valid for each. They stay mapped until
        // `drop`. Other processes access them only as atomics.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.count) }
    }
}

// SAFETY: it only hands out references to atomics.
unsafe impl Sync for SharedWords {}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and no reference outlives `self`. Forked processes keep their own mapping.
        unsafe { libc::munmap(self.place.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

/// Forks a process that runs `work` and exits. Returns its PID, and the read end of the pipe that `work` writes to.
///
/// The child keeps only the descriptors in `keep`, so a child that hangs holds no pipe, terminal or folder of the
/// caller. The kernel kills it when this process ends.
pub fn fork_worker(keep: &[RawFd], work: impl FnOnce(File)) -> io::Result<(i32, File)> {
    let (answers, says) = pipe().map(|(read, write)| (File::from(read), File::from(write)))?;
    // SAFETY: takes no pointer, and there is no other thread. If SIGCHLD were ignored, a child's PID could be reused as
    // soon as the child ends, and `kill_worker` could kill another process.
    let parent = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::getpid()
    };
    // SAFETY: there is no other thread, so the child may do whatever this process may.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        return Ok((child, answers));
    }
    let kept = [keep, &[says.as_raw_fd()]].concat();
    // SAFETY: C strings, and descriptors that the child does not use. The child ends with _exit, so no destructor of
    // the parent runs twice.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        let is_apart = (0..=2).all(|standard| libc::dup2(null, standard) == standard);
        // The parent may have ended before PR_SET_PDEATHSIG took effect.
        if !is_apart || libc::getppid() != parent {
            libc::_exit(1);
        }
        libc::chdir(c"/".as_ptr());
        close_all_but(&kept);
    }
    work(says);
    // SAFETY: takes no pointer.
    unsafe { libc::_exit(0) }
}

/// Closes all descriptors except the standard ones and these.
///
/// # Safety
///
/// This process must not use the other descriptors.
unsafe fn close_all_but(keep: &[RawFd]) {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.cast_unsigned()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    // SAFETY: takes no pointer. The caller promises that this process does not use the closed descriptors.
    unsafe {
        for fd in kept {
            close_range(first, fd.saturating_sub(1));
            first = fd.saturating_add(1);
        }
        close_range(first, u32::MAX);
    }
}

/// Enlarges a pipe to 1 MiB, the default limit for ordinary users. If the kernel refuses, the size is unchanged.
/// fcntl(2)
pub fn widen_pipe(pipe: BorrowedFd<'_>) {
    // SAFETY: takes no pointer.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
}

/// Kills a worker. A worker that waits for a lock dies only when it gets the lock, so the caller must not wait for it.
pub fn kill_worker(worker: i32) {
    // SAFETY: takes no pointer. The worker has not been waited for, so its PID is not reused.
    unsafe { libc::kill(worker, libc::SIGKILL) };
}

/// Waits for a worker that has closed all its descriptors, and therefore is about to end.
pub fn wait_for(worker: i32) {
    // SAFETY: a null pointer is allowed: no status is requested.
    unsafe { libc::waitpid(worker, ptr::null_mut(), 0) };
}

/// Returns whether a worker has ended. After that, its PID may be reused.
pub fn has_ended(worker: i32) -> bool {
    // SAFETY: a null pointer is allowed: no status is requested. `WNOHANG` never waits.
    unsafe { libc::waitpid(worker, ptr::null_mut(), libc::WNOHANG) != 0 }
}

/// Waits until one of the descriptors can be read: which can. A pidfd can be read when its process has ended. A part of a
/// millisecond counts as one.
pub fn poll(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut set: Vec<_> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let timeout = c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX);
    // SAFETY: `set` has as many entries as it is said to have.
    match check(unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(set.iter().map(|entry| entry.revents != 0).collect()),
    }
}

/// A descriptor that can be read when SIGINT or SIGTERM has come, which from now on do nothing else. signalfd(2)
pub fn termination() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset makes a set of it, and the others read and change that set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))?;
        owned(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC).into())
    }
}

/// The numbers that name entries of an open folder, as those of /proc and /proc/PID/fd.
pub fn numbers(folder: BorrowedFd<'_>) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    entries(folder, |entries| found.extend(numbers_in(entries)))?;
    Ok(found)
}

/// Returns the names of the folders in an open folder, without "." and "..".
pub fn folders(folder: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut found = Vec::new();
    entries(folder, |entries| {
        let folders = names_in(entries).filter(|(kind, name)| {
            // Some filesystems do not report the type. The caller's open fails for an entry that is not a folder.
            [libc::DT_DIR, libc::DT_UNKNOWN].contains(kind) && ![&b"."[..], b".."].contains(name)
        });
        found.extend(folders.map(|(_, name)| OsStr::from_bytes(name).to_owned()));
    })?;
    Ok(found)
}

/// Opens an entry of an open folder for reading. Fails if the entry is a symbolic link. openat(2)
pub fn open_at(folder: BorrowedFd<'_>, name: &OsStr, flags: c_int) -> io::Result<File> {
    let name = c_path(name.as_ref())?;
    let flags = flags | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a C string.
    owned(unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) }.into()).map(File::from)
}

/// Calls `each` with each piece of an open folder's listing by getdents64(2).
fn entries(folder: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let size = check(unsafe {
            libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        })?;
        let entries = buffer.get(..usize::try_from(size).unwrap_or(0)).unwrap_or_default();
        if entries.is_empty() {
            return Ok(());
        }
        each(entries);
    }
}

/// Returns the names in the output of getdents64(2) that are numbers.
pub fn numbers_in(entries: &[u8]) -> impl Iterator<Item = i32> {
    names_in(entries).filter_map(|(_, digits)| std::str::from_utf8(digits).ok()?.parse().ok())
}

/// Returns the type and the name of each entry in the output of getdents64(2).
fn names_in(entries: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    /// struct linux_dirent64: inode, offset, length of the entry, type, then the name.
    const LENGTH: usize = 16;
    const KIND: usize = 18;
    const NAME: usize = 19;
    let mut rest = entries;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.get(LENGTH..)?.first_chunk()?));
        let kind = *rest.get(KIND)?;
        let name = rest.get(NAME..length).unwrap_or_default();
        rest = rest.get(length.max(NAME)..).unwrap_or_default();
        Some((kind, name.split(|byte| *byte == 0).next()?))
    })
}

/// What a symbolic link in an open folder says, as much of it as there is room for.
pub fn read_link<'a>(folder: BorrowedFd<'_>, name: i32, buffer: &'a mut [u8; 64]) -> io::Result<&'a [u8]> {
    let mut text = [0_u8; 12];
    let digits = digits(name.unsigned_abs(), &mut text);
    // SAFETY: `digits` ends with a NUL; the kernel writes at most as many bytes as the buffer has.
    let size = check(unsafe {
        libc::readlinkat(folder.as_raw_fd(), digits.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len())
    })?;
    Ok(buffer.get(..usize::try_from(size).unwrap_or(0)).unwrap_or_default())
}

/// The digits of a number, and a NUL behind them: made for each descriptor of the machine, so without a heap.
fn digits(mut value: u32, text: &mut [u8; 12]) -> &[u8] {
    let mut start = text.len() - 1;
    loop {
        start -= 1;
        if let Some(slot) = text.get_mut(start) {
            *slot = b'0' + (value % 10) as u8;
        }
        value /= 10;
        if value == 0 || start == 0 {
            return text.get(start..).unwrap_or_default();
        }
    }
}

/// The inode of an open file.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills it in where it answers 0.
    check(unsafe { libc::fstat(fd.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: as above.
    Ok(unsafe { status.assume_init() }.st_ino)
}

/// Waits until nobody else has locked the file, and does. It ends when the descriptor is closed. flock(2)
pub fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}

/// Moves this program into a network namespace. setns(2)
pub fn enter_network(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointer. There is no other thread.
    check(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) }).map(|_| ())
}

/// A path as the kernel takes it.
fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Whether this program may execute the file, with its effective rights.
pub fn may_execute(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a C string.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) }).map(|_| ())
}

/// Whether the file's filesystem ignores setuid bits and file capabilities.
pub fn is_nosuid(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    let mut status = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a C string, and what the call fills in where it answers 0.
    unsafe {
        libc::statvfs(path.as_ptr(), status.as_mut_ptr()) == 0
            && status.assume_init().f_flag & libc::ST_NOSUID != 0
    }
}

/// Whether the file has capabilities. capabilities(7), "File capabilities"
pub fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    // SAFETY: two C strings; a size of 0 asks for the length alone.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0) > 0 }
}

/// Whether setuid bits and file capabilities count for nothing here. prctl(2), `PR_SET_NO_NEW_PRIVS`
pub fn has_no_new_privileges() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}

/// Whether the kernel says that we have more rights than the user who started us: setuid, or a file's capabilities.
/// getauxval(3), `AT_SECURE`
pub fn has_more_rights() -> bool {
    // SAFETY: takes a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Makes setuid bits and file capabilities have no effect, for this process and all that it starts. prctl(2)
pub fn renounce_privileges() -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Permanently drops all capabilities except these. A program that this process starts cannot gain others, even as root.
/// capset(2), and `cap_bprm_creds_from_file` in security/commoncap.c
pub fn keep_capabilities(keep: &[u32]) -> io::Result<()> {
    /// `struct __user_cap_header_struct`, `struct __user_cap_data_struct`
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: a header, and the two data structs that its version requires.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    for (half, first) in data.iter_mut().zip([0, 32]) {
        let bits = keep.iter().filter_map(|number| 1_u32.checked_shl(number.checked_sub(first)?));
        half.permitted &= bits.fold(0, std::ops::BitOr::bitor);
        half.effective = half.permitted;
        half.inheritable = 0;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    renounce_privileges()
}

/// Makes the kernel reap ended children, including orphans that this process adopts as PID 1 of a namespace. From then
/// on no child can be waited for.
pub fn forget_children() {
    // SAFETY: takes a number and a constant. There is no other thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Real and effective user.
pub fn users() -> (u32, u32) {
    // SAFETY: they take nothing and cannot fail.
    unsafe { (libc::getuid(), libc::geteuid()) }
}

/// Real and effective group.
pub fn groups() -> (u32, u32) {
    // SAFETY: they take nothing and cannot fail.
    unsafe { (libc::getgid(), libc::getegid()) }
}

/// The number of the user of this name.
pub fn user_named(name: &OsStr) -> Option<u32> {
    let name = CString::new(name.as_bytes()).ok()?;
    // SAFETY: a C string; what it points to is read before the next such call, and there is no other thread.
    unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|entry| entry.pw_uid)
}

/// A pipe, both ends closed on exec: what is read, and what is written.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let [read, write] = ends;
    Ok((owned(read.into())?, owned(write.into())?))
}

/// Does some work in a process that is not a child of this one. It has its own session, the root folder as working
/// directory, and only these descriptors of this process. It ends when the work ends. When this returns, the process
/// exists, or the error says why not.
pub fn detached(keep: &[RawFd], work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // The process in between says what has become of it by no status: of children whose SIGCHLD is ignored, as we may have
    // inherited it, the kernel keeps none. So an errno comes through a pipe, or a 0.
    let (answer, says) = pipe().map(|(read, write)| (File::from(read), File::from(write)))?;
    // SAFETY: there is no other thread, so the child may do whatever we may.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        drop(says);
        let started = receive_errno(&answer);
        // SAFETY: our child, which ends at once. Where the kernel has seen to it, there is nothing to wait for.
        while unsafe { libc::waitpid(child, ptr::null_mut(), 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        return started;
    }
    // SAFETY: a C string, and numbers of descriptors that this process uses no more; it is left by _exit, so nothing that
    // we have begun is ended twice.
    unsafe {
        libc::setsid();
        match check(libc::fork()) {
            Ok(0) => send_errno(&says, 0),
            Ok(_) => libc::_exit(0),
            Err(error) => {
                send_errno(&says, error.raw_os_error().unwrap_or(libc::EIO));
                libc::_exit(1)
            }
        }
        libc::chdir(c"/".as_ptr());
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for standard in (0..=2).filter(|standard| !keep.contains(standard)) {
            libc::dup2(null, standard);
        }
        close_all_but(keep);
    }
    let _ = work();
    // SAFETY: takes no pointer.
    unsafe { libc::_exit(0) }
}

/// Writes an errno into a pipe. Who reads takes silence for a failure.
fn send_errno(mut pipe: &File, errno: c_int) {
    let _ = pipe.write_all(&errno.to_ne_bytes());
}

/// The errno that was written into a pipe: 0 is none.
fn receive_errno(mut pipe: &File) -> io::Result<()> {
    let mut bytes = [0; size_of::<c_int>()];
    pipe.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it has ended"),
        _ => error,
    })?;
    match c_int::from_ne_bytes(bytes) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Closes descriptors by their numbers, those from `first` to `last` that are open.
///
/// # Safety
/// This process uses none of them any more.
pub unsafe fn close_range(first: u32, last: u32) {
    // SAFETY: the caller vouches for it. Linux 5.9, or a filter forbids it: then one by one, as many as there can be.
    unsafe {
        if first <= last && libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            let most = u32::try_from(libc::sysconf(libc::_SC_OPEN_MAX)).unwrap_or(u32::MAX).min(1 << 20);
            for fd in first..=last.min(most) {
                libc::close(fd.cast_signed());
            }
        }
    }
}

/// Waits until a file of the kernel's has something new to say, but no longer than this. poll(2), `POLLPRI`
pub fn await_change(file: BorrowedFd<'_>, longest: Duration) -> io::Result<()> {
    let longest = c_int::try_from(longest.as_millis()).unwrap_or(c_int::MAX);
    let mut set = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
    // SAFETY: one entry, as it is said.
    match check(unsafe { libc::poll(&raw mut set, 1, longest) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
