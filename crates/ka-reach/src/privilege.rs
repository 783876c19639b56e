//! Why the kernel does not let us look into a process, and what it would take. ptrace(2), "Ptrace access mode checking"

use std::fs;
use std::io;

use crate::process::Status;
use crate::sys;
use crate::text::reason;

/// Numbers of capabilities(7).
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;

/// What the refusal of a process's descriptors comes from, and what would help.
pub fn explain(pid: i32, error: &io::Error) -> String {
    let is_absent = || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL));
    if let Ok(status) = Status::read(pid)
        && let Some(leader) = status.leader().filter(|leader| *leader != pid && is_absent())
    {
        return format!("it is a thread of process {leader}: use that PID");
    }
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => refusal(pid),
        Some(libc::ENOSYS) => "this kernel has no pidfd_getfd: Linux 5.6 and later do".to_owned(),
        Some(libc::ESRCH | libc::ENOENT) => "there is no such process".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "too many open files".to_owned(),
        _ => reason(error),
    }
}

fn refusal(pid: i32) -> String {
    const INSTEAD: &str = "needs CAP_SYS_PTRACE (run ka as root)";
    let (user, _) = sys::users();
    if may_look_anywhere() {
        return "the kernel refuses in spite of CAP_SYS_PTRACE: another user namespace's process, or a security \
                module or seccomp filter (as in a container) forbids it"
            .to_owned();
    }
    let Ok(theirs) = Status::read(pid) else {
        return format!("/proc hides it, as it hides others' processes under hidepid: {INSTEAD}");
    };
    if let Some(owner) = theirs.user().filter(|_| !theirs.is_wholly(user)) {
        return format!("it belongs to user {owner}: {INSTEAD}");
    }
    match ptrace_scope() {
        Some(1) => format!(
            "kernel.yama.ptrace_scope is 1, so only a process's ancestors may look inside: {INSTEAD}, or ptrace_scope 0"
        ),
        Some(2) => format!("kernel.yama.ptrace_scope is 2: {INSTEAD}"),
        Some(3) => "kernel.yama.ptrace_scope is 3: nobody may look inside".to_owned(),
        _ => format!("it is not dumpable, or has capabilities that you have not: {INSTEAD}"),
    }
}

/// Whether any process may be looked into.
pub fn may_look_anywhere() -> bool {
    has(CAP_SYS_PTRACE)
}

/// Whether ka has this capability in force.
pub fn has(capability: u32) -> bool {
    let own = i32::try_from(std::process::id()).ok().and_then(|pid| Status::read(pid).ok());
    own.is_some_and(|status| status.has_capability(capability))
}

/// Why processes of one's own user, which are as processes mostly are, cannot be looked into.
pub fn obstacle() -> Option<String> {
    if may_look_anywhere() {
        return None;
    }
    match ptrace_scope() {
        None | Some(0) => None,
        Some(3) => Some("kernel.yama.ptrace_scope is 3: nobody may look inside a process".to_owned()),
        Some(scope) => Some(format!(
            "kernel.yama.ptrace_scope is {scope}: needs CAP_SYS_PTRACE (run ka as root), or ptrace_scope 0"
        )),
    }
}

/// The restriction of the Yama security module, where it is there.
pub fn ptrace_scope() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}
