//! The system calls of this way that have no safe wrapper, and its `unsafe`. seccomp(2), seccomp_unotify(2)

#![expect(unsafe_code, reason = "system calls")]

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use libc::{c_int, c_long, c_ulong};
use seccompiler::sock_filter;

use crate::process::stat_field;
use crate::sys::{check, close_range, numbers, owned};

/// Which of the two processes this is.
pub(super) enum Forked {
    Parent(i32),
    Child,
}

/// Makes another process of this one. fork(2)
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: there is no other thread, so the child has whatever it may need.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Forked::Child,
        pid => Forked::Parent(pid),
    })
}

/// The maximum number of worker threads, including those that are stuck.
pub(super) const WORKERS: usize = 16;

/// Memory that the supervisor, its spare and the front process share.
#[repr(C)]
pub(super) struct Shared {
    /// One post for each worker.
    pub(super) posts: [Post; WORKERS],
    /// The program that was started.
    pub(super) program: AtomicI32,
    /// The PID of the front process.
    pub(super) front: AtomicI32,
    pub(super) spare: AtomicI32,
    /// Set when the supervisor exits because no process of the program is left.
    pub(super) is_done: AtomicBool,
    /// Set while a thread of the supervisor is stuck. Then the supervisor may stay a zombie after its end, so no
    /// process may wait for it.
    pub(super) is_stuck: AtomicBool,
}

/// The state of a worker.
#[repr(C)]
pub(super) struct Post {
    /// The call that the worker handles. The kernel itself writes it there. So a received call's ID is never known only
    /// to a process that may be killed.
    slot: UnsafeCell<Roomy<Call>>,
    /// Odd while the worker handles a call. Incremented at the beginning and the end of each call.
    turn: AtomicU32,
    task: AtomicU32,
    id: AtomicU64,
}

// SAFETY: only its worker accesses the slot. The spare reads it after the supervisor has ended. A thread that is left
// then is stuck in a system call on a program's object. That call does not write the slot, and the thread dies when it
// returns.
unsafe impl Sync for Post {}

/// A call that waits for its answer.
pub(super) type Call = libc::seccomp_notif;

/// What the kernel reads or writes, and room behind it: a newer kernel's may be longer. seccomp_unotify(2),
/// `SECCOMP_GET_NOTIF_SIZES`
#[repr(C)]
struct Roomy<T> {
    known: T,
    room: [u64; 16],
}

impl Shared {
    /// Memory that the processes made from this one share. It is there as long as they are.
    pub(super) fn new() -> io::Result<&'static Self> {
        // SAFETY: the kernel chooses the place; where it refuses, the answer is MAP_FAILED.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is as large as it was asked for, aligned to a page, and zeros are right for each field.
        Ok(unsafe { &*place.cast::<Self>() })
    }

    /// Returns the calls that a supervisor was handling when it died.
    pub(super) fn left(&self) -> Vec<Call> {
        // SAFETY: the supervisor has ended, so no thread writes the slots (see `Post`).
        let calls = self.posts.iter().map(|post| unsafe { ptr::read_volatile(post.slot.get().cast()) });
        calls.filter(|call: &Call| call.id != 0 || call.pid != 0).collect()
    }
}

impl Post {
    /// Waits for a call. The caller must try again after EINTR, and after ENOENT, if the call was cancelled.
    pub(super) fn receive(&self, listener: BorrowedFd<'_>) -> io::Result<Call> {
        self.clear();
        // SAFETY: the kernel writes one seccomp_notif, for which there is room, and which must be zeros before.
        check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, self.slot.get()) })?;
        // SAFETY: no other thread writes it.
        let call = unsafe { ptr::read_volatile(self.slot.get().cast()) };
        self.begin(&call);
        Ok(call)
    }

    /// Marks the beginning of a call.
    pub(super) fn begin(&self, call: &Call) {
        self.task.store(call.pid, Ordering::Relaxed);
        self.id.store(call.id, Ordering::Relaxed);
        // The store must precede the worker's check whether the watchdog sleeps.
        self.turn.fetch_add(1, Ordering::SeqCst);
    }

    /// Marks the end of a call. The worker must have closed all descriptors of the task.
    pub(super) fn end(&self) {
        self.clear();
        // The writes of the next call must not move before this.
        self.turn.fetch_add(1, Ordering::AcqRel);
    }

    /// No call is under way.
    fn clear(&self) {
        // SAFETY: no other thread touches it, and zeros are a seccomp_notif.
        unsafe { ptr::write_volatile(self.slot.get(), MaybeUninit::zeroed().assume_init()) };
    }

    /// Clears the state of another supervisor's worker.
    pub(super) fn reset(&self) {
        self.clear();
        self.turn.store(0, Ordering::Relaxed);
    }

    pub(super) fn turn(&self) -> u32 {
        self.turn.load(Ordering::SeqCst)
    }

    /// Returns the ID of the worker's current call and the task that made it, if the worker is still at this turn.
    pub(super) fn call(&self, turn: u32) -> Option<(u64, i32)> {
        let (id, task) = (self.id.load(Ordering::Acquire), self.task.load(Ordering::Acquire));
        (self.turn() == turn && turn % 2 == 1).then_some((id, task.cast_signed()))
    }
}

/// What a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The kernel makes it, as it came.
    Continue,
    /// It is not made: it returns 0, or fails with this errno.
    Return(c_int),
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, as wide as it is in a response.
const CONTINUE: u32 = 1;

/// Answers a call. ENOENT: nobody waits any more.
pub(super) fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (error, flags) = match answer {
        Answer::Continue => (0, CONTINUE),
        Answer::Return(errno) => (errno.saturating_neg(), 0),
    };
    let known = libc::seccomp_notif_resp { id, val: 0, error, flags };
    let mut response = Roomy { known, room: [0; 16] };
    // SAFETY: the kernel reads one seccomp_notif_resp, of whatever length.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    check(result).map(drop)
}

/// Whether the task still waits for the answer to this call, so that its number is its own.
pub(super) fn is_waiting(listener: BorrowedFd<'_>, call: &Call) -> bool {
    let mut id = call.id;
    // SAFETY: the kernel reads a u64.
    let valid =
        check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) });
    // Any other errno, as EINTR, does not say so; and who waits and is not answered waits for ever.
    !valid.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
}

/// Whether the last process under a listener's filter has ended: Linux 5.9, before that nobody says so.
pub(super) fn is_over(listener: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: listener.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut entry, 1, 0) == 1 && entry.revents & libc::POLLHUP != 0 }
}

/// Whoever calls hands its processor over to whoever answers, and back: half the time. Linux 6.6, else as it was.
pub(super) fn wake_up_in_turn(listener: BorrowedFd<'_>) {
    const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: c_ulong = 1;
    // SAFETY: the flags are the argument itself.
    unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
        )
    };
}

/// Puts a filter over this process and all that it starts: what the kernel answers, a descriptor where there is a
/// listener.
fn install(filter: &[sock_filter], flags: c_ulong) -> io::Result<c_long> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const sock_filter,
    }
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = Program { length, filter: filter.as_ptr() };
    // SAFETY: a sock_fprog with as many instructions as it says, which the kernel checks and copies.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
}

/// A filter that answers by itself.
pub(super) fn install_plain(filter: &[sock_filter]) -> io::Result<()> {
    install(filter, 0).map(drop)
}

/// A filter whose calls wait for an answer, and where they are listened for. A task that waits can be killed, but is not
/// called away by any other signal, so that one that comes every 50 us does not keep it from getting anywhere: Linux 5.19.
pub(super) fn install_listener(filter: &[sock_filter]) -> io::Result<OwnedFd> {
    const LISTENER: c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    owned(match install(filter, LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(filter, LISTENER)?,
        result => result?,
    })
}

/// Whether a filter is over this process already.
pub(super) fn is_filtered() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) == libc::SECCOMP_MODE_FILTER.cast_signed() }
}

/// Connects a socket to no address at all, which the kernel refuses: but who supervises has seen to the socket by then.
pub(super) fn connect_nowhere(socket: BorrowedFd<'_>) {
    // SAFETY: a length of 0, so nothing is read.
    unsafe { libc::connect(socket.as_raw_fd(), ptr::null(), 0) };
}

/// The int at an address of another process, if it can be read.
pub(super) fn read_int(task: i32, address: u64) -> io::Result<c_int> {
    match read_directly(task, address) {
        // A container's filter, which lets us take descriptors and not read memory, as Podman's. The file needs the same
        // rights, and no such call.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            let mut value = [0; size_of::<c_int>()];
            let read = File::open(format!("/proc/{task}/mem"))?.read_exact_at(&mut value, address);
            // EIO, or less than was asked for: nothing is there.
            read.map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
            Ok(c_int::from_ne_bytes(value))
        }
        read => read,
    }
}

/// process_vm_readv(2)
fn read_directly(task: i32, address: u64) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let size = size_of::<c_int>();
    let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: size };
    let address = usize::try_from(address).map_err(io::Error::other)?;
    let remote = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(address), iov_len: size };
    // SAFETY: the kernel writes at most an int to `value`; what is not there in the other process is EFAULT.
    let read = check(unsafe { libc::process_vm_readv(task, &raw const local, 1, &raw const remote, 1, 0) })?;
    if usize::try_from(read) == Ok(size) {
        Ok(value)
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Orphans among our descendants become our children, not those of init. prctl(2), `PR_SET_CHILD_SUBREAPER`
pub(super) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// The port that a socket is bound to; 0 where it is not, or has none.
pub(super) fn local_port(fd: RawFd) -> u16 {
    // Of both families the port comes second, after two bytes. sockaddr_in(3type)
    let mut address = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let Ok(mut size) = libc::socklen_t::try_from(size_of::<libc::sockaddr_in6>()) else { return 0 };
    // SAFETY: the kernel writes at most `size` bytes, and zeros are an address.
    let address = unsafe {
        if libc::getsockname(fd, address.as_mut_ptr().cast(), &raw mut size) != 0 {
            return 0;
        }
        address.assume_init()
    };
    if [libc::AF_INET, libc::AF_INET6].contains(&address.sin6_family.into()) {
        u16::from_be(address.sin6_port)
    } else {
        0
    }
}

/// What ps(1) and top(1) call this process.
pub(super) fn set_name(name: &CStr) {
    // SAFETY: a C string, of which the kernel copies 16 bytes at most.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Gives the calling thread its own descriptor table, with these descriptors only. If the thread gets stuck later, it
/// holds no other file open.
pub(super) fn own_descriptors(kept: &[RawFd]) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept {
        let fd = fd.cast_unsigned();
        if fd > first {
            // SAFETY: the table is this thread's alone, and the thread does not use these descriptors.
            unsafe { close_range(first, fd.saturating_sub(1)) };
        }
        first = fd.saturating_add(1);
    }
    // SAFETY: as above.
    unsafe { close_range(first, u32::MAX) };
    Ok(())
}

/// Replaces the three standard descriptors by this one. A program's socket that the thread duplicates then never gets
/// the number of standard error.
pub(super) fn cover_standard(fd: BorrowedFd<'_>) {
    for standard in 0..=libc::STDERR_FILENO {
        // SAFETY: the table is this thread's alone, and the thread does not use the three.
        unsafe { libc::dup2(fd.as_raw_fd(), standard) };
    }
}

/// Makes an eventfd, which one thread waits for and others make readable. eventfd(2)
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())?;
    // If standard descriptors are closed, the number must still be above 2.
    fd.try_clone()
}

/// Makes an eventfd readable.
pub(super) fn raise(eventfd: BorrowedFd<'_>) {
    let one = 1_u64;
    // SAFETY: the kernel reads eight bytes. The call does not block; if it fails, the eventfd is already readable.
    unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

/// Makes an eventfd unreadable.
pub(super) fn lower(eventfd: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: the kernel writes eight bytes. The call does not block.
    unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}

/// The signal that interrupts the system call of a stuck thread, if the call is interruptible. Programs have no use for
/// this signal.
const NUDGE: c_int = libc::SIGSTKFLT;

/// Lets [`nudge`] interrupt the calling thread.
pub(super) fn accept_nudges() {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: the handler does nothing, and the structs are initialized. Without SA_RESTART, system calls return EINTR.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(NUDGE, &raw const action, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &only(NUDGE), ptr::null_mut());
    }
}

/// Interrupts a thread that has called [`accept_nudges`].
pub(super) fn nudge(thread: &JoinHandle<()>) {
    // SAFETY: the thread of a borrowed handle has not been joined or detached.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), NUDGE) };
}

/// Writes the whole text to a descriptor, or stops at an error.
pub(super) fn write_all(fd: RawFd, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: the pointer and the length are those of `text`.
        let written = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => text = text.get(written..).unwrap_or_default(),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// The memory of this process's command line, as ps(1) shows it.
pub(super) struct Title {
    start: usize,
    size: usize,
}

impl Title {
    /// Finds where the kernel keeps the arguments and, after them, the environment. proc_pid_stat(5)
    pub(super) fn find() -> Option<Self> {
        let stat = std::fs::read("/proc/self/stat").ok()?;
        let field = |number| usize::try_from(stat_field(&stat, number)?).ok();
        let (start, end) = (field(48)?, field(49)?);
        let room_end = field(51).filter(|_| field(50) == Some(end)).unwrap_or(end);
        (start != 0 && start < end && end <= room_end).then(|| Self { start, size: room_end - start })
    }

    /// Overwrites the arguments, and as much of the environment as needed. The processes that call this do not read
    /// them any more.
    pub(super) fn set(&self, text: &[u8]) {
        let mut title = text.to_vec();
        title.truncate(self.size.saturating_sub(1));
        title.resize(self.size, 0);
        let place = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: the kernel put the strings there, in writable memory of this process. No reference to them exists,
        // and zeros follow the title, so later reads of the strings end.
        unsafe { ptr::copy_nonoverlapping(title.as_ptr(), place, self.size) };
    }
}

/// Closes all descriptors but standard error and these, and puts /dev/null in the place of standard input and output.
pub(super) fn keep_only(kept: &[RawFd]) {
    let open = File::open("/proc/self/fd").and_then(|folder| {
        let own = folder.as_raw_fd();
        Ok(numbers(folder.as_fd())?.into_iter().filter(move |fd| *fd != own).collect::<Vec<_>>())
    });
    for fd in open.unwrap_or_default() {
        if fd > libc::STDERR_FILENO && !kept.contains(&fd) {
            // SAFETY: nobody in this process has anything but the descriptors in `kept`.
            unsafe { libc::close(fd) };
        }
    }
    forget(libc::STDIN_FILENO);
    forget(libc::STDOUT_FILENO);
    // SAFETY: fcntl with F_GETFD takes no pointer.
    if unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_GETFD) } == -1 {
        forget(libc::STDERR_FILENO);
    }
}

/// Puts /dev/null in the place of a descriptor, so that who waits for its end does not wait for us.
pub(super) fn forget(fd: RawFd) {
    // SAFETY: a C string, and numbers. Where there is no /dev/null the descriptor stays closed, or as it was.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null != -1 && null != fd {
            libc::dup2(null, fd);
            libc::close(null);
        }
    }
}

/// The signals that this process had blocked, and what it did with SIGCHLD.
pub(super) struct Signals {
    mask: libc::sigset_t,
    child: libc::sigaction,
}

/// All signals there are.
fn every_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset makes a set of it.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// This one alone.
fn only(signal: c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset makes a set of it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}

impl Signals {
    /// From now on signals wait until they are read. SIGCHLD does what it does by default, so that children can be
    /// waited for.
    pub(super) fn hold() -> io::Result<Self> {
        let (mut mask, mut child) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: a set, and places that are filled in where the answer is 0; zeros are SIG_DFL.
        unsafe {
            let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
            check(libc::sigaction(libc::SIGCHLD, &raw const default, child.as_mut_ptr()))?;
            let child = child.assume_init();
            // On failure, this process either exits or continues without blocking signals.
            check(libc::sigprocmask(libc::SIG_SETMASK, &every_signal(), mask.as_mut_ptr()))
                .inspect_err(|_| _ = libc::sigaction(libc::SIGCHLD, &raw const child, ptr::null_mut()))?;
            Ok(Self { mask: mask.assume_init(), child })
        }
    }

    /// Restores the mask that `hold` found. On failure the program must not be started: all its signals would stay
    /// blocked.
    pub(super) fn release(&self) -> io::Result<()> {
        // SAFETY: what the kernel gave.
        unsafe {
            let disposition = check(libc::sigaction(libc::SIGCHLD, &raw const self.child, ptr::null_mut()));
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()))?;
            disposition.map(drop)
        }
    }
}

/// A descriptor that held signals are read from: this one, or all. signalfd(2)
pub(super) fn signalfd(signal: Option<c_int>) -> io::Result<OwnedFd> {
    let set = signal.map_or_else(every_signal, only);
    // SAFETY: a set.
    let fd =
        owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // Not one of the first three, where those are closed.
    fd.try_clone()
}

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signal {
    pub(super) number: c_int,
    pub(super) sender: i32,
    /// What came with it, by sigqueue(3).
    pub(super) value: Option<u64>,
}

/// The next signal that has come.
pub(super) fn next_signal(signals: BorrowedFd<'_>) -> Option<Signal> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the kernel writes one signalfd_siginfo, or nothing; zeros are one.
    let (read, info) = unsafe {
        let read = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
        (read, info.assume_init())
    };
    (usize::try_from(read) == Ok(size)).then(|| Signal {
        number: info.ssi_signo.cast_signed(),
        sender: info.ssi_pid.cast_signed(),
        value: (info.ssi_code == libc::SI_QUEUE).then_some(info.ssi_ptr),
    })
}

/// Whether this process was sent the same signal: then it was for the whole process group.
pub(super) fn was_sent_too(signal: &Signal) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: a set, a place for a siginfo_t, and a time. A kill(2) fills in si_pid; zeros are one too.
    unsafe {
        libc::sigtimedwait(&only(signal.number), info.as_mut_ptr(), &raw const at_once) == signal.number
            && info.assume_init().si_pid() == signal.sender
    }
}

/// Our process group.
pub(super) fn own_group() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getpgrp() }
}

/// Whether a process is in our process group.
pub(super) fn is_in_our_group(pid: i32) -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::getpgid(pid) == own_group() }
}

/// Goes into a process group of this session, or with 0 into a new one. Where it is not there any more, nothing changes.
pub(super) fn enter_group(group: i32) {
    // SAFETY: takes no pointer.
    unsafe { libc::setpgid(0, group) };
}

/// Sends a signal on.
pub(super) fn send(pid: i32, signal: &Signal) {
    // SAFETY: numbers. A process that has ended is ours until it is waited for, so it is never another.
    unsafe {
        match signal.value {
            Some(value) => {
                let value = usize::try_from(value).unwrap_or_default();
                let value = libc::sigval { sival_ptr: ptr::with_exposed_provenance_mut(value) };
                libc::sigqueue(pid, signal.number, value);
            }
            None => _ = libc::kill(pid, signal.number),
        }
    }
}

/// Does to this process what the signal does by default: stops it, or ends it without a core.
pub(super) fn suffer(signal: c_int) {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
    // SAFETY: numbers, sets, and a sigaction of zeros, which is SIG_DFL.
    unsafe {
        if !stops {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        }
        let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
        libc::sigaction(signal, &raw const default, ptr::null_mut());
        libc::kill(libc::getpid(), signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &only(signal), ptr::null_mut());
        libc::sigprocmask(libc::SIG_BLOCK, &only(signal), ptr::null_mut());
    }
}

/// What has become of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Exited(c_int),
    Killed(c_int),
    Stopped(c_int),
    Continued,
}

impl Change {
    /// Converts a status of wait(2).
    pub(super) fn ended(status: c_int) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Killed(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// The next child that something has become of, and what. It is told again until [`acknowledge`]d. ECHILD: there are
/// no children.
pub(super) fn next_change() -> io::Result<Option<(i32, Change)>> {
    const WHAT: c_int = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: a place for a siginfo_t, which is zeros where there is nothing to tell.
    let (pid, status, code) = unsafe {
        let flags = WHAT | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        uninterrupted(|| libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags))?;
        let info = info.assume_init();
        (info.si_pid(), info.si_status(), info.si_code)
    };
    let change = match code {
        libc::CLD_EXITED => Change::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Change::Killed(status),
        libc::CLD_CONTINUED => Change::Continued,
        _ => Change::Stopped(status),
    };
    Ok((pid != 0).then_some((pid, change)))
}

/// What has become of a child is known.
pub(super) fn acknowledge(pid: i32, change: Change) {
    let what = match change {
        Change::Exited(_) | Change::Killed(_) => libc::WEXITED,
        Change::Stopped(_) => libc::WSTOPPED,
        Change::Continued => libc::WCONTINUED,
    };
    let Ok(id) = libc::id_t::try_from(pid) else { return };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: a place for a siginfo_t.
    let wait =
        || unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), what | libc::WNOHANG | libc::__WALL) };
    let _ = uninterrupted(wait);
}

/// Returns whether a child that has ended exited with status 0. `None` if it still runs.
pub(super) fn ending(pid: i32) -> Option<bool> {
    let mut status = 0;
    // SAFETY: a pointer to an int.
    match uninterrupted(|| unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::__WALL) }) {
        Ok(0) => None,
        Ok(_) => Some(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0),
        // A filter may refuse waitpid. Then check whether the process exists: a second supervisor must not start while
        // the first lives.
        // SAFETY: takes no pointer. The signal 0 only asks whether the process exists.
        Err(_) => (unsafe { libc::kill(pid, 0) } != 0).then_some(false),
    }
}

/// Waits until a child has ended: whether it said that all is well.
pub(super) fn has_ended_well(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: a place for an int.
    let waited = uninterrupted(|| unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) });
    waited.is_ok() && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// Makes a call again until no signal has come in between.
fn uninterrupted(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Ends this process, and nothing else: what it has of its parent's is not written out twice. _exit(2)
pub(super) fn exit(status: c_int) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::{Signals, install_plain, sock_filter};
    use crate::sys::renounce_privileges;

    /// Filters and the signal mask belong to a thread, so the test runs in its own.
    #[test]
    fn a_signal_mask_that_cannot_be_restored_is_an_error() {
        const LOAD: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let number = u32::try_from(libc::SYS_rt_sigprocmask).unwrap();
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
        let filter = [
            sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
            sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: number },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: refused },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        ];
        let run = move || {
            let signals = Signals::hold().unwrap();
            signals.release().unwrap();
            renounce_privileges().unwrap();
            install_plain(&filter).unwrap();
            assert!(Signals::hold().is_err());
            signals.release().map_err(|error| error.raw_os_error())
        };
        assert_eq!(std::thread::spawn(run).join().unwrap(), Err(Some(libc::EPERM)));
    }
}
