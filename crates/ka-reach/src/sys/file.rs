//! Files by path: the right to execute them, the privileges that execution gives, and their filesystem. execve(2)

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;

use super::{c_path, check};

/// Returns an error unless this process may execute the file with its effective rights. faccessat(2)
///
/// # Errors
///
/// The errno of faccessat(2): EACCES if the file is not executable, ENOENT if it does not exist.
pub fn check_executable(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` is a C string, which lives until the call returns.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) }).map(drop)
}

/// Returns whether the file's filesystem ignores setuid bits and file capabilities (nosuid). Returns false if that is
/// unknown. statvfs(3)
pub fn is_nosuid(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    let mut status = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string. The call initializes `status` if it returns 0, and only then `status` is read.
    unsafe {
        libc::statvfs(path.as_ptr(), status.as_mut_ptr()) == 0
            && status.assume_init().f_flag & libc::ST_NOSUID != 0
    }
}

/// Returns whether the file has capabilities. capabilities(7), "File capabilities"
pub fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    // SAFETY: both names are C strings. With size 0, the kernel returns the length and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0) > 0 }
}

/// Returns the type of the filesystem that a path is on: `f_type` of statfs(2).
pub(crate) fn filesystem(path: &Path) -> io::Result<u64> {
    let path = c_path(path)?;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` is a C string, and the kernel writes at most a `statfs` to `status`.
    check(unsafe { libc::statfs(path.as_ptr(), status.as_mut_ptr()) })?;
    // SAFETY: statfs(2) returned 0, so the kernel has filled `status` in. All bit patterns are valid.
    let kind = unsafe { status.assume_init() }.f_type;
    // The type of `f_type` differs between architectures. Its values have 32 bits.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    Ok(kind as u64 & 0xffff_ffff)
}
