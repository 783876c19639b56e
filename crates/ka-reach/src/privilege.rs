//! Explains why the kernel does not let ka inspect a process. ptrace(2), "Ptrace access mode checking"
//!
//! For every refusal, the kernel returns only EPERM or EACCES. The user needs to know the rule behind the refusal, and
//! a remedy. So ka compares its own rights with those of the process to find the rule.

use std::fs;

use crate::Error;
use crate::process::StatusFields;
use crate::sys;
pub use crate::sys::capability::{has_more_rights, has_no_new_privileges};

/// The number of the capability to read files of other users. capabilities(7)
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// The number of the capability to inspect other users' processes. capabilities(7)
pub const CAP_SYS_PTRACE: u32 = 19;
/// The number of the capability to enter network namespaces. capabilities(7)
pub const CAP_SYS_ADMIN: u32 = 21;

/// Explains an error of a call on a process: the kernel's rule that made the call fail, and a remedy. Errors that
/// need no explanation are returned unchanged.
pub fn explain(pid: i32, error: impl Into<Error>) -> Error {
    let error = error.into();
    let errno = error.raw_os_error();
    if matches!(errno, Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
        && let Some(leader) = StatusFields::read(pid).ok().and_then(|status| status.leader())
        && leader != pid
    {
        return Error::Thread { leader };
    }
    match errno {
        Some(libc::EPERM | libc::EACCES) => refusal(pid),
        Some(libc::ENOSYS) => Error::NoPidfdGetfd,
        Some(libc::ESRCH | libc::ENOENT) => Error::NoSuchProcess,
        Some(libc::EMFILE | libc::ENFILE) => Error::TooManyOpenFiles,
        _ => error,
    }
}

/// Returns the reason why the kernel refuses access to a process.
fn refusal(pid: i32) -> Error {
    if may_look_anywhere() {
        return Error::RefusedToRoot;
    }
    let Ok(status) = StatusFields::read(pid) else { return Error::ProcessHidden };
    let (user, _) = sys::users();
    if let Some(user) = status.user().filter(|_| !status.has_only_user(user)) {
        return Error::ForeignProcess { user };
    }
    match ptrace_scope() {
        Some(scope @ 1..=3) => Error::PtraceScope(scope),
        _ => Error::NotDumpable,
    }
}

/// Returns whether ka has the capability to inspect every process.
pub fn may_look_anywhere() -> bool {
    has(CAP_SYS_PTRACE)
}

/// Returns whether ka has this capability in its effective set.
pub fn has(capability: u32) -> bool {
    StatusFields::read("self").is_ok_and(|status| status.has_capability(capability))
}

/// Returns the reason why ka cannot inspect ordinary processes of its own user. `None` if it can.
pub fn obstacle() -> Option<Error> {
    let scope = ptrace_scope().filter(|scope| *scope != 0)?;
    (!may_look_anywhere()).then_some(Error::PtraceScopeOfAll(scope))
}

/// Returns kernel.yama.ptrace_scope. `None` if the kernel has no Yama security module.
pub fn ptrace_scope() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}
