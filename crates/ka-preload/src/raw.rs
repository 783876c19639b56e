//! System calls as instructions: they touch neither `errno` nor a function that somebody may have hooked.

#![expect(unsafe_code, reason = "system calls")]

use core::arch::asm;
use core::ffi::CStr;
use core::ops::Range;

use ka_core::{Errno, Kernel, SockOpt};
use libc::{c_int, c_long, c_void, sockaddr_storage, socklen_t};

/// Makes a system call. A failure is a negated error number.
///
/// # Safety
/// As the call's manual page demands of its arguments.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the kernel's calling convention; the caller vouches for what the call does.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Makes a system call. A failure is a negated error number.
///
/// # Safety
/// As the call's manual page demands of its arguments.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the kernel's calling convention; the caller vouches for what the call does.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the preload shim makes system calls by itself, and knows how on x86_64 and aarch64 only");

/// An argument of a system call.
pub(crate) const fn int(value: c_int) -> usize {
    value as isize as usize
}

fn check(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno(c_int::try_from(result.wrapping_neg()).unwrap_or(libc::EINVAL)))
}

/// The kernel behind the hooks.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Kernel for Raw {
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        let (level, name) = option.level_and_name();
        let mut size = socklen_t::try_from(value.len()).unwrap_or(socklen_t::MAX);
        let args = [int(fd), int(level), int(name), value.as_mut_ptr() as usize, (&raw mut size) as usize, 0];
        // SAFETY: the kernel writes at most `size` bytes to `value`, which has them, and the size to `size`.
        check(unsafe { call(libc::SYS_getsockopt, args) })?;
        Ok(size as usize)
    }

    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        let (level, name) = option.level_and_name();
        let args = [int(fd), int(level), int(name), (&raw const value) as usize, size_of::<c_int>(), 0];
        // SAFETY: the kernel reads an int, which `value` is.
        check(unsafe { call(libc::SYS_setsockopt, args) })?;
        Ok(())
    }
}

/// Copies from an address of the program's that may be wrong, as the kernel would: whether all of it could be read.
pub(crate) fn read_memory(from: *const c_void, to: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: from.cast_mut(), iov_len: to.len() };
    // Not the process: its first thread may have ended, and its memory with it.
    let args = [int(gettid()), (&raw const local) as usize, 1, (&raw const remote) as usize, 1, 0];
    // SAFETY: the kernel writes at most `to.len()` bytes to `to`, and checks the address that it reads.
    check(unsafe { call(libc::SYS_process_vm_readv, args) }) == Ok(to.len())
}

/// Whether an int can be read at this address of the program's.
///
/// getsockopt(2) reads the size of its value before it looks at the option's name: with an option that does not
/// exist, it answers EFAULT where it could not, ENOPROTOOPT where it could, and writes nothing. (At the level of
/// the socket: at that of TCP, Multipath TCP refuses without looking.) EINVAL, its answer where the int is negative, may
/// be a filter's too, and proves nothing by itself; nor does any other.
pub(crate) fn is_readable_int(fd: c_int, address: *const c_void) -> bool {
    const NO_SUCH_OPTION: c_int = 0x7fff_0000;
    let mut nothing = 0_u8;
    let value = (&raw mut nothing) as usize;
    let args = [int(fd), int(libc::SOL_SOCKET), int(NO_SUCH_OPTION), value, address as usize, 0];
    // SAFETY: the kernel checks the address, and has nothing to write for an option that it does not have.
    match check(unsafe { call(libc::SYS_getsockopt, args) }) {
        Err(Errno(libc::ENOPROTOOPT)) => true,
        Err(Errno(libc::EINVAL)) => read_memory(address, &mut [0; size_of::<c_int>()]),
        _ => false,
    }
}

/// getsockname(2) or getpeername(2), by number.
pub(crate) fn name(number: c_long, fd: c_int, address: &mut sockaddr_storage) -> Result<(), Errno> {
    let mut size = size_of::<sockaddr_storage>();
    let args = [int(fd), (&raw mut *address) as usize, (&raw mut size) as usize, 0, 0, 0];
    // SAFETY: the kernel writes at most `size` bytes to `address`, which has them.
    check(unsafe { call(number, args) })?;
    Ok(())
}

/// poll(2) that does not wait: as ppoll(2), which every architecture has.
pub(crate) fn poll(set: &mut [libc::pollfd]) -> Result<usize, Errno> {
    let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [set.as_mut_ptr() as usize, set.len(), (&raw mut at_once) as usize, 0, 0, 0];
    // SAFETY: the kernel reads and writes as many entries as `set` has; it may write the time that is left.
    check(unsafe { call(libc::SYS_ppoll, args) })
}

/// A file of the shim's own, closed when dropped.
pub(crate) struct File(c_int);

impl File {
    pub(crate) fn open(path: &CStr, flags: c_int, mode: u32) -> Result<Self, Errno> {
        let flags = flags | libc::O_CLOEXEC;
        let args = [int(libc::AT_FDCWD), path.as_ptr() as usize, int(flags), mode as usize, 0, 0];
        // SAFETY: the kernel reads a C string, which `path` is.
        let fd = check(unsafe { call(libc::SYS_openat, args) })?;
        Ok(Self(c_int::try_from(fd).map_err(|_| Errno(libc::EBADF))?))
    }

    pub(crate) const fn fd(&self) -> c_int {
        self.0
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let args = [int(self.0), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
        // SAFETY: the kernel writes at most as many bytes as `buffer` has.
        check(unsafe { call(libc::SYS_read, args) })
    }

    /// Whether it is a regular file of root's that nobody else can write.
    pub(crate) fn is_roots_alone(&self) -> bool {
        // SAFETY: numbers all, for which zeros are values.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        let args = [int(self.0), (&raw mut stat) as usize, 0, 0, 0, 0];
        // SAFETY: the kernel writes a stat; on the architectures above, libc's is the kernel's.
        check(unsafe { call(libc::SYS_fstat, args) }).is_ok()
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
            && stat.st_uid == 0
            && stat.st_mode & (libc::S_IWGRP | libc::S_IWOTH) == 0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: takes no pointer; only the owner of the descriptor calls this, once.
        unsafe { call(libc::SYS_close, [int(self.0), 0, 0, 0, 0, 0]) };
    }
}

/// Writes a line at once. What goes wrong has nobody to be told, and must not end the program: where nobody reads, or a
/// file may not grow, write(2) sends a signal. It waits until it is taken back, unless one was waiting already.
pub(crate) fn write(fd: c_int, line: &[u8]) {
    const SIGNALS: u64 = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
    const SIZE: usize = size_of::<u64>();
    let (signals, mut before, mut waiting) = (SIGNALS, 0_u64, 0_u64);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let set = (&raw const signals) as usize;
    // SAFETY: the kernel reads and writes sets of the size that it is told, reads a time, and as many bytes as `line` has.
    unsafe {
        call(libc::SYS_rt_sigprocmask, [int(libc::SIG_BLOCK), set, (&raw mut before) as usize, SIZE, 0, 0]);
        call(libc::SYS_rt_sigpending, [(&raw mut waiting) as usize, SIZE, 0, 0, 0, 0]);
        let result = call(libc::SYS_write, [int(fd), line.as_ptr() as usize, line.len(), 0, 0, 0]);
        if result < 0 && waiting & SIGNALS == 0 {
            call(libc::SYS_rt_sigtimedwait, [set, 0, (&raw const at_once) as usize, SIZE, 0, 0]);
        }
        call(libc::SYS_rt_sigprocmask, [int(libc::SIG_SETMASK), (&raw const before) as usize, 0, SIZE, 0, 0]);
    }
}

/// What a symbolic link points to: the bytes of `buffer` that it filled.
pub(crate) fn read_link(path: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args =
        [int(libc::AT_FDCWD), path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0];
    // SAFETY: the kernel reads a C string and writes at most as many bytes as `buffer` has.
    check(unsafe { call(libc::SYS_readlinkat, args) })
}

/// mprotect(2)
pub(crate) fn protect(pages: &Range<usize>, protection: c_int) -> Result<(), Errno> {
    let args = [pages.start, pages.len(), int(protection), 0, 0, 0];
    // SAFETY: the caller names pages of a loaded object's data, which stay readable.
    check(unsafe { call(libc::SYS_mprotect, args) })?;
    Ok(())
}

pub(crate) fn gettid() -> c_int {
    // SAFETY: gettid(2) takes nothing.
    unsafe { call(libc::SYS_gettid, [0; 6]) as c_int }
}

pub(crate) fn getpid() -> usize {
    // SAFETY: getpid(2) takes nothing.
    unsafe { call(libc::SYS_getpid, [0; 6]) }.unsigned_abs()
}

/// Ends the program where it stands: by an instruction that there is not, which needs no function of anybody's. SIGILL,
/// and a core that shows where.
#[cold]
pub(crate) fn end() -> ! {
    // SAFETY: the processor refuses it, whatever state the program is in, and nothing comes behind it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("ud2", options(noreturn, nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("udf #0", options(noreturn, nomem, nostack));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    /// The test ends itself, in a process of its own.
    #[test]
    fn an_end_is_seen() {
        const INSIDE: &str = "KA_TEST_END";
        if std::env::var_os(INSIDE).is_some() {
            super::end();
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["raw::tests::an_end_is_seen", "--exact"]).env(INSIDE, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGILL), "{output:?}");
    }
}
