//! Wrappers of system calls that have no safe wrapper elsewhere. Each file is about one kind of object.

#![expect(unsafe_code, reason = "system calls")]

pub(crate) mod capability;
mod clock;
mod descriptor;
pub(crate) mod file;
pub(crate) mod folder;
pub mod fork;
pub mod limits;
mod memory;
mod namespace;
mod receive;
pub mod signal;
mod task;
pub mod user;
pub mod wait;

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use libc::c_long;

pub(crate) use capability::{keep_capabilities, renounce_privileges};
pub(crate) use clock::{monotonic_time, processor_time, processor_time_with_children};
pub(crate) use descriptor::{
    bound_interface, close_all_but, inode, lock, owner, pidfd_getfd, pidfd_open, replace_by_null,
};
pub(crate) use folder::{folders, numbers, open_at, read_link};
pub(crate) use fork::{
    fork_worker, has_ended, kill_worker, outlive_parent, start_detached, wait_for, widen_pipe,
};
pub(crate) use limits::raise_descriptor_limit;
pub(crate) use memory::SharedWords;
pub(crate) use namespace::{enter_network, network_of};
pub(crate) use receive::{dropped_messages, set_receive_buffer};
pub(crate) use task::{compare_descriptors, share_descriptors, thread_id, unshare_descriptors};
pub(crate) use user::users;
pub(crate) use wait::{is_readable, poll};

/// Returns the result of a call, or its errno.
pub(crate) fn check<T: Copy + PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of a descriptor that a system call has just made, or returns the errno of the call.
pub(crate) fn owned(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Converts a path to a C string. Fails if the path contains a NUL.
fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
