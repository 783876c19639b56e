//! Users and groups. credentials(7)

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;

/// Returns the real and the effective user ID of this process.
pub fn users() -> (u32, u32) {
    // SAFETY: the calls take nothing and cannot fail.
    unsafe { (libc::getuid(), libc::geteuid()) }
}

/// Returns the real and the effective group ID of this process.
pub fn groups() -> (u32, u32) {
    // SAFETY: the calls take nothing and cannot fail.
    unsafe { (libc::getgid(), libc::getegid()) }
}

/// Returns the ID of the user with this name. getpwnam(3)
pub fn named(name: &OsStr) -> Option<u32> {
    let name = CString::new(name.as_bytes()).ok()?;
    // SAFETY: `name` is a C string. The result is null or points to an entry that is valid until the next call of
    // getpwnam. There is no other thread that could call it, and the entry is read at once.
    unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|entry| entry.pw_uid)
}
