//! Blocks signals, reads them from a descriptor, and sends them. signal(7)

#![expect(unsafe_code, reason = "signal masks and dispositions")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::thread::JoinHandle;

use libc::c_int;

use crate::sys::{check, owned};

/// The signal mask, and the disposition of SIGCHLD, that this process had before its signals were blocked.
pub(super) struct BlockedSignals {
    mask: libc::sigset_t,
    child: libc::sigaction,
}

impl BlockedSignals {
    /// Blocks all signals, so that they stay pending until they are read. Sets the default disposition of SIGCHLD,
    /// because a process that ignores SIGCHLD cannot wait for its children.
    pub(super) fn block() -> io::Result<Self> {
        let (mut mask, mut child) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both calls initialize their output if they succeed. A sigaction of zeros is SIG_DFL.
        unsafe {
            let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
            check(libc::sigaction(libc::SIGCHLD, &raw const default, child.as_mut_ptr()))?;
            let child = child.assume_init();
            // If the mask cannot be set, nothing is left to restore later, so the disposition is restored at once.
            check(libc::sigprocmask(libc::SIG_SETMASK, &all(), mask.as_mut_ptr()))
                .inspect_err(|_| _ = libc::sigaction(libc::SIGCHLD, &raw const child, ptr::null_mut()))?;
            Ok(Self { mask: mask.assume_init(), child })
        }
    }

    /// Restores the mask and the disposition that `block` saved. If this fails, the program must not be started,
    /// because its signals would stay blocked.
    pub(super) fn restore(&self) -> io::Result<()> {
        // SAFETY: both are values that the kernel returned.
        unsafe {
            let disposition = check(libc::sigaction(libc::SIGCHLD, &raw const self.child, ptr::null_mut()));
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()))?;
            disposition.map(drop)
        }
    }
}

/// Returns the set of all signals.
fn all() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Returns the set of one signal.
fn only(signal: c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}

/// Returns a descriptor that reports a blocked signal, or all blocked signals if `signal` is `None`. signalfd(2)
pub(super) fn signalfd(signal: Option<c_int>) -> io::Result<OwnedFd> {
    let set = signal.map_or_else(all, only);
    // SAFETY: an initialized set.
    let fd =
        owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // If standard descriptors are closed, signalfd(2) may return one of their numbers. try_clone returns a number
    // above 2.
    fd.try_clone()
}

/// A signal that was received or will be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signal {
    pub(super) number: c_int,
    /// The PID of the process that sent it.
    pub(super) sender: i32,
    /// The value of sigqueue(3).
    pub(super) value: Option<u64>,
}

impl Signal {
    /// Reads the next pending signal from a signalfd.
    pub(super) fn read(signals: BorrowedFd<'_>) -> Option<Self> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes one signalfd_siginfo or nothing, and zeros are a valid one.
        let (read, info) = unsafe {
            let read = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
            (read, info.assume_init())
        };
        (usize::try_from(read) == Ok(size)).then(|| Self {
            number: info.ssi_signo.cast_signed(),
            sender: info.ssi_pid.cast_signed(),
            value: (info.ssi_code == libc::SI_QUEUE).then_some(info.ssi_ptr),
        })
    }

    /// Returns whether the same signal from the same sender is pending in this process. If so, it was sent to the whole
    /// process group. Consumes the pending signal.
    pub(super) fn take_pending(&self) -> bool {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the set and the time are initialized, and `info` has room for a siginfo_t. Zeros are a valid one.
        unsafe {
            libc::sigtimedwait(&only(self.number), info.as_mut_ptr(), &raw const at_once) == self.number
                && info.assume_init().si_pid() == self.sender
        }
    }

    /// Sends the signal to a child of this process.
    pub(super) fn send(&self, pid: i32) {
        // SAFETY: takes no pointer to memory of this process. A child that has ended keeps its PID until it is waited
        // for, so the PID never names another process.
        unsafe {
            match self.value {
                Some(value) => {
                    let value = usize::try_from(value).unwrap_or_default();
                    let value = libc::sigval { sival_ptr: ptr::with_exposed_provenance_mut(value) };
                    libc::sigqueue(pid, self.number, value);
                }
                None => _ = libc::kill(pid, self.number),
            }
        }
    }
}

/// Performs the default action of a signal on this process: stops it, or ends it without a core dump.
pub(super) fn perform_default_action(signal: c_int) {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
    // SAFETY: numbers, initialized sets, and a sigaction of zeros, which is SIG_DFL.
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

/// The signal that interrupts the system call of a stuck thread, if the call is interruptible. Programs do not use this
/// signal.
const INTERRUPT: c_int = libc::SIGSTKFLT;

/// Lets [`interrupt`] interrupt the calling thread.
pub(super) fn allow_interrupt() {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: the handler does nothing, and the structs are initialized. Without SA_RESTART, system calls return EINTR.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(INTERRUPT, &raw const action, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &only(INTERRUPT), ptr::null_mut());
    }
}

/// Interrupts the system call of a thread that has called [`allow_interrupt`].
pub(super) fn interrupt(thread: &JoinHandle<()>) {
    // SAFETY: the thread of a borrowed handle has not been joined or detached.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), INTERRUPT) };
}

#[cfg(test)]
mod tests {
    use seccompiler::sock_filter;

    use super::BlockedSignals;
    use crate::seccomp::listener::install_plain;
    use crate::sys::renounce_privileges;

    /// Filters and the signal mask belong to a thread, so the test runs in its own thread.
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
            let signals = BlockedSignals::block().unwrap();
            signals.restore().unwrap();
            renounce_privileges().unwrap();
            install_plain(&filter).unwrap();
            assert!(BlockedSignals::block().is_err());
            signals.restore().map_err(|error| error.raw_os_error())
        };
        assert_eq!(std::thread::spawn(run).join().unwrap(), Err(Some(libc::EPERM)));
    }
}
