//! Reads the memory of a supervised program.

#![expect(unsafe_code, reason = "process_vm_readv(2)")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use libc::c_int;

use crate::sys::check;

/// Reads an int from the memory of a task. Fails with EFAULT if the address is not readable.
pub(super) fn read_int(task: i32, address: u64) -> io::Result<c_int> {
    match read_directly(task, address) {
        // A container's seccomp filter, such as Podman's, may deny process_vm_readv(2) and allow pidfd_getfd(2).
        // Reading /proc/PID/mem needs the same rights, but not this system call.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            let mut value = [0; size_of::<c_int>()];
            let read = File::open(format!("/proc/{task}/mem"))?.read_exact_at(&mut value, address);
            // If nothing is mapped there, the read fails with EIO or is short.
            read.map_err(|_| fault())?;
            Ok(c_int::from_ne_bytes(value))
        }
        read => read,
    }
}

/// Reads an int with process_vm_readv(2).
fn read_directly(task: i32, address: u64) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let size = size_of::<c_int>();
    let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: size };
    let address = usize::try_from(address).map_err(|_| fault())?;
    let remote = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(address), iov_len: size };
    // SAFETY: the kernel writes at most the size of an int to `value`. It checks the address in the other process.
    let read = check(unsafe { libc::process_vm_readv(task, &raw const local, 1, &raw const remote, 1, 0) })?;
    if usize::try_from(read) == Ok(size) { Ok(value) } else { Err(fault()) }
}

fn fault() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}
