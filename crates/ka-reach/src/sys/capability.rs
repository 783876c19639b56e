//! The capabilities and privileges of this process. capabilities(7)

use std::io;

use libc::c_int;

use super::check;

/// Returns whether setuid bits and file capabilities have no effect for this process. prctl(2), `PR_SET_NO_NEW_PRIVS`
pub fn has_no_new_privileges() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}

/// Returns whether this process has more rights than the user who started it, by a setuid bit or file capabilities.
/// getauxval(3), `AT_SECURE`
pub fn has_more_rights() -> bool {
    // SAFETY: takes a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Makes setuid bits and file capabilities have no effect for this process and its descendants. prctl(2),
/// `PR_SET_NO_NEW_PRIVS`
pub(crate) fn renounce_privileges() -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Permanently drops all capabilities except those in `keep`. A program that this process starts cannot gain others,
/// even if it runs as root. capset(2), and `cap_bprm_creds_from_file` in security/commoncap.c
pub(crate) fn keep_capabilities(keep: &[u32]) -> io::Result<()> {
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
    // SAFETY: both pointers are valid during the call. With this version, the kernel writes two data structs.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    for (half, first) in data.iter_mut().zip([0, 32]) {
        let bits = keep.iter().filter_map(|number| 1_u32.checked_shl(number.checked_sub(first)?));
        half.permitted &= bits.fold(0, std::ops::BitOr::bitor);
        half.effective = half.permitted;
        half.inheritable = 0;
    }
    // SAFETY: both pointers are valid during the call. The kernel only reads the structs.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    renounce_privileges()
}
