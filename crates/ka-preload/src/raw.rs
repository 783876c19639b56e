//! System calls by instruction. They do not change `errno`, and do not call functions that another library may have
//! hooked.

#![expect(unsafe_code, reason = "system calls")]

use core::ffi::CStr;
use core::ops::Range;

use ka_core::bytes::trim;
use ka_core::direct::{Direct, check};
pub(crate) use ka_core::direct::{call, int, poll};
use ka_core::{Errno, Kernel, Quantity, Retransmission, SockOpt};
use libc::{c_int, c_long, c_void, sockaddr_storage, socklen_t};

use crate::filter;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the preload shim makes system calls by instruction, and supports only x86_64 and aarch64");

/// The kernel, called without the hooks.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Kernel for Raw {
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        Direct.get(fd, option, value)
    }

    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        Direct.set(fd, option, value)
    }

    fn retries(&self) -> u8 {
        retries()
    }
}

/// Returns whether this kernel lacks `TCP_RTO_MAX_MS`: it has net.ipv4.tcp_retries2, but not tcp_rto_max_ms. Returns
/// false if /proc shows neither.
#[cold]
pub(crate) fn lacks_rto_max() -> bool {
    let exists = |path| File::open(path, libc::O_RDONLY, 0).is_ok();
    exists(RETRIES) && !exists(c"/proc/sys/net/ipv4/tcp_rto_max_ms")
}

const RETRIES: &CStr = c"/proc/sys/net/ipv4/tcp_retries2";

/// Returns net.ipv4.tcp_retries2, or 15 if it cannot be read.
#[cold]
#[inline(never)]
pub(crate) fn retries() -> u8 {
    let mut text = [0; 8];
    let size = File::open(RETRIES, libc::O_RDONLY, 0).and_then(|file| file.read(&mut text)).unwrap_or(0);
    let number = Quantity::parse(trim(text.get(..size).unwrap_or_default())).map(|quantity| quantity.number);
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(Retransmission::STANDARD.retries)
}

/// Copies memory from an address of the program, which may be invalid. Returns whether all bytes could be read.
///
/// After the program has installed a filter, this returns false without a system call. Programs rarely call
/// process_vm_readv(2), so a filter may kill the process for it.
pub(crate) fn read_memory(from: *const c_void, to: &mut [u8]) -> bool {
    if filter::is_installed() {
        return false;
    }
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: from.cast_mut(), iov_len: to.len() };
    // Uses the ID of the thread, because the first thread of the process may have ended and released its memory.
    let args = [int(gettid()), (&raw const local) as usize, 1, (&raw const remote) as usize, 1, 0];
    // SAFETY: the kernel writes at most `to.len()` bytes to `to`, and checks the address that it reads.
    check(unsafe { call(libc::SYS_process_vm_readv, args) }) == Ok(to.len())
}

/// Returns whether an int can be read at this address of the program.
///
/// getsockopt(2) reads the size of its value before it checks the name of the option. For an option that does not
/// exist, the call fails and writes nothing: with EFAULT if the size cannot be read, and with ENOPROTOOPT if it can.
/// This holds for options at `SOL_SOCKET`. For options of TCP, Multipath TCP fails without reading. If the int is
/// negative, the call fails with EINVAL. A filter may return that or any other error, so such an error alone proves
/// nothing.
pub(crate) fn is_readable_int(fd: c_int, address: *const c_void) -> bool {
    const NO_SUCH_OPTION: c_int = 0x7fff_0000;
    let mut nothing = 0_u8;
    let value = (&raw mut nothing) as usize;
    let args = [int(fd), int(libc::SOL_SOCKET), int(NO_SUCH_OPTION), value, address as usize, 0];
    // SAFETY: the kernel checks the address, and writes nothing for an unknown option.
    match check(unsafe { call(libc::SYS_getsockopt, args) }) {
        Err(Errno(libc::ENOPROTOOPT)) => true,
        Err(Errno(libc::EINVAL)) => read_memory(address, &mut [0; size_of::<c_int>()]),
        _ => false,
    }
}

/// Calls getsockname(2) or getpeername(2), by number.
pub(crate) fn name(number: c_long, fd: c_int, address: &mut sockaddr_storage) -> Result<(), Errno> {
    let mut size = size_of::<sockaddr_storage>() as socklen_t;
    let args = [int(fd), (&raw mut *address) as usize, (&raw mut size) as usize, 0, 0, 0];
    // SAFETY: the kernel writes at most `size` bytes to `address`, which has them, and the size to `size`.
    check(unsafe { call(number, args) })?;
    Ok(())
}

/// Returns whether a descriptor may be a socket: it is open for reading and writing, and was not opened as a file.
/// Files, pipes and memory (memfd_create(2)) never pass; eventfds do. fstat(2) would be exact, but it calls the file
/// system, which may be a FUSE server that never answers. fcntl(2) only reads a word of the descriptor.
pub(crate) fn may_be_a_socket(fd: c_int) -> bool {
    // The kernel's value. libc defines 0 on targets where all files are large.
    #[cfg(target_arch = "x86_64")]
    const LARGE_FILE: usize = 0o100_000;
    #[cfg(target_arch = "aarch64")]
    const LARGE_FILE: usize = 0o400_000;
    const MASK: usize = libc::O_ACCMODE as usize | LARGE_FILE;
    // SAFETY: fcntl(2) takes no pointer here.
    let flags = check(unsafe { call(libc::SYS_fcntl, [int(fd), int(libc::F_GETFL), 0, 0, 0, 0]) });
    flags.is_ok_and(|flags| flags & MASK == libc::O_RDWR as usize)
}

/// Returns the user of this process, if its real, effective and saved user are the same.
pub(crate) fn own_user() -> Option<u32> {
    let (mut real, mut effective, mut saved) = (0_u32, 0_u32, 0_u32);
    let args = [(&raw mut real) as usize, (&raw mut effective) as usize, (&raw mut saved) as usize, 0, 0, 0];
    // SAFETY: the kernel writes three numbers of 32 bits.
    check(unsafe { call(libc::SYS_getresuid, args) }).ok()?;
    (real == effective && effective == saved).then_some(effective)
}

/// Returns the user who made the other end of a unix socket. The kernel reads it without the socket's lock
/// (sk_getsockopt in net/core/sock.c).
pub(crate) fn peer_user(fd: c_int) -> Option<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as socklen_t;
    let value = (&raw mut peer) as usize;
    let args = [int(fd), int(libc::SOL_SOCKET), int(libc::SO_PEERCRED), value, (&raw mut size) as usize, 0];
    // SAFETY: the kernel writes at most `size` bytes to `peer`, which has them, and the size to `size`.
    check(unsafe { call(libc::SYS_getsockopt, args) }).ok()?;
    Some(peer.uid)
}

/// A file that the shim has opened, closed when dropped.
pub(crate) struct File(c_int);

impl File {
    #[inline(never)]
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
        // SAFETY: the kernel writes at most `buffer.len()` bytes.
        check(unsafe { call(libc::SYS_read, args) })
    }

    /// Returns whether this is a regular file that belongs to root and that only root can write.
    pub(crate) fn is_roots_alone(&self) -> bool {
        // SAFETY: all fields are integers, for which zero is a valid value.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        let args = [int(self.0), (&raw mut stat) as usize, 0, 0, 0, 0];
        // SAFETY: the kernel writes a `stat`, which libc declares as the kernel does on the architectures above.
        check(unsafe { call(libc::SYS_fstat, args) }).is_ok()
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
            && stat.st_uid == 0
            && stat.st_mode & (libc::S_IWGRP | libc::S_IWOTH) == 0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: close(2) takes no pointer. Only the owner of the descriptor calls this, once.
        unsafe { call(libc::SYS_close, [int(self.0), 0, 0, 0, 0, 0]) };
    }
}

/// Changes the signal mask. Returns the previous mask, or `None` if the call failed.
fn change_mask(how: c_int, signals: u64) -> Option<u64> {
    let mut before = 0_u64;
    let args = [int(how), (&raw const signals) as usize, (&raw mut before) as usize, size_of::<u64>(), 0, 0];
    // SAFETY: the kernel reads and writes a set of the given size.
    check(unsafe { call(libc::SYS_rt_sigprocmask, args) }).ok()?;
    Some(before)
}

/// Returns the pending signals.
fn pending() -> Option<u64> {
    let mut signals = 0_u64;
    let args = [(&raw mut signals) as usize, size_of::<u64>(), 0, 0, 0, 0];
    // SAFETY: the kernel writes a set of the given size.
    check(unsafe { call(libc::SYS_rt_sigpending, args) }).ok()?;
    Some(signals)
}

/// Removes one of these pending signals, if any. Returns whether the kernel permits this call at all.
fn take_back(signals: u64) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let set = (&raw const signals) as usize;
    let args = [set, 0, (&raw const at_once) as usize, size_of::<u64>(), 0, 0];
    // SAFETY: the kernel reads a set of the given size, and a time.
    matches!(check(unsafe { call(libc::SYS_rt_sigtimedwait, args) }), Ok(_) | Err(Errno(libc::EAGAIN)))
}

/// Writes a line by one write(2). A failure is ignored, and must not end the program. write(2) sends a signal if a
/// pipe has no reader, or if a file has reached its size limit. So these signals are blocked during the call. If
/// write(2) has sent one, it is removed, unless one was already pending.
///
/// A filter may deny any of these calls. So each is first tried without effect, before a signal is blocked. If one is
/// denied, the line is not written, because its effects could not be undone.
pub(crate) fn write(fd: c_int, line: &[u8]) {
    const SIGNALS: u64 = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
    const NONE: u64 = 0;
    if !take_back(NONE) || change_mask(libc::SIG_UNBLOCK, NONE).is_none() {
        return;
    }
    let Some(before) = change_mask(libc::SIG_BLOCK, SIGNALS) else {
        return;
    };
    if let Some(waiting) = pending() {
        let args = [int(fd), line.as_ptr() as usize, line.len(), 0, 0, 0];
        // SAFETY: the kernel reads `line.len()` bytes.
        let result = unsafe { call(libc::SYS_write, args) };
        if result < 0 && waiting & SIGNALS == 0 {
            take_back(SIGNALS);
        }
    }
    // Unblock only the signals that were blocked above. All others keep their state.
    change_mask(libc::SIG_UNBLOCK, SIGNALS & !before);
}

/// Reads the target of a symbolic link into `buffer`. Returns its length in bytes.
pub(crate) fn read_link(path: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args =
        [int(libc::AT_FDCWD), path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0];
    // SAFETY: the kernel reads a C string, and writes at most `buffer.len()` bytes.
    check(unsafe { call(libc::SYS_readlinkat, args) })
}

/// mprotect(2)
pub(crate) fn protect(pages: &Range<usize>, protection: c_int) -> Result<(), Errno> {
    let args = [pages.start, pages.len(), int(protection), 0, 0, 0];
    // SAFETY: the only caller passes data pages of a loaded object, and they stay readable.
    check(unsafe { call(libc::SYS_mprotect, args) })?;
    Ok(())
}

pub(crate) fn gettid() -> c_int {
    // SAFETY: gettid(2) has no arguments.
    unsafe { call(libc::SYS_gettid, [0; 6]) as c_int }
}

pub(crate) fn getpid() -> c_int {
    // SAFETY: getpid(2) has no arguments.
    unsafe { call(libc::SYS_getpid, [0; 6]) as c_int }
}

/// Ends the program by an illegal instruction, which needs no function. The program gets SIGILL, and a core dump shows
/// where.
#[cold]
pub(crate) fn end() -> ! {
    // SAFETY: the processor rejects the instruction in any state of the program, so execution never continues after it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("ud2", options(noreturn, nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("udf #0", options(noreturn, nomem, nostack));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::may_be_a_socket;

    /// Returns `TCP_RTO_MAX_MS` (44), read by the C library, or `None` before Linux 6.15.
    pub(crate) fn rto_max(socket: &impl AsRawFd) -> Option<i32> {
        let (mut value, mut size) = (0_i32, 4);
        let pointer = (&raw mut value).cast();
        // SAFETY: `value` has `size` bytes.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, 44, pointer, &raw mut size) };
        (result == 0).then_some(value)
    }

    #[test]
    fn may_be_a_socket_accepts_sockets_and_rejects_files_and_pipes() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!([stream.as_raw_fd(), tcp.as_raw_fd(), udp.as_raw_fd()].into_iter().all(may_be_a_socket));
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        // SAFETY: the argument is a C string. The descriptor is closed when the process ends.
        let memory = unsafe { libc::memfd_create(c"memory".as_ptr(), 0) };
        assert!(memory >= 0);
        for fd in [reader.as_raw_fd(), writer.as_raw_fd(), file.as_raw_fd(), memory, -1] {
            assert!(!may_be_a_socket(fd), "{fd}");
        }
    }

    /// The kernel's file has a newline, as the shim reads it.
    #[test]
    fn retries_and_the_support_of_rto_max_are_those_of_the_sysctls() {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_retries2").unwrap();
        assert_eq!(super::retries().to_string() + "\n", text);
        let lacks = !std::path::Path::new("/proc/sys/net/ipv4/tcp_rto_max_ms").exists();
        assert_eq!(super::lacks_rto_max(), lacks);
    }

    /// The test runs itself in a child process, which ends.
    #[test]
    fn end_raises_sigill() {
        const INSIDE: &str = "KA_TEST_END";
        if std::env::var_os(INSIDE).is_some() {
            super::end();
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output =
            again.args(["raw::tests::end_raises_sigill", "--exact"]).env(INSIDE, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGILL), "{output:?}");
    }
}
