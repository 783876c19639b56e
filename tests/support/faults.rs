//! Faults: a program of which one system call fails in each run, each call once with each errno that it can have, and a
//! judge of what came of it. `tests/c/fault.c` has the calls fail.
//!
//! A run of the tests takes part of them, spread over all calls and errnos; with `KA_FAULTS=all`, as `make faults` has
//! it, all.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use libc::{
    E2BIG, EACCES, EADDRINUSE, EAFNOSUPPORT, EAGAIN, EBADF, EBUSY, ECHILD, ECONNREFUSED, EEXIST, EFAULT,
    EFBIG, EINTR, EINVAL, EIO, ELOOP, EMFILE, ENFILE, ENOBUFS, ENODEV, ENOENT, ENOEXEC, ENOLCK, ENOMEM,
    ENOPROTOOPT, ENOSPC, ENOSYS, ENOTCONN, ENOTDIR, ENOTTY, EOPNOTSUPP, EOVERFLOW, EPERM, EPIPE, EROFS,
    ESPIPE, ESRCH, ETXTBSY, c_long,
};

use super::support::{Link, program, scratch};

/// A system call, and the errnos that its manual page has for arguments that are right, with EPERM or ENOSYS where a
/// sandbox or an older kernel answers so.
struct Kind {
    number: c_long,
    name: &'static str,
    errnos: &'static [i32],
}

macro_rules! kinds {
    ($($number:ident $name:literal [$($errno:ident),*];)*) => {
        const KINDS: &[Kind] =
            &[$(Kind { number: libc::$number, name: $name, errnos: &[$($errno),*] }),*];
        const NAMES: &[(i32, &str)] = &[$($(($errno, stringify!($errno)),)*)*];
    };
}

kinds! {
    SYS_accept "accept" [EINTR, EMFILE, ENFILE, ENOMEM, EPERM];
    SYS_accept4 "accept4" [EINTR, EMFILE, ENFILE, ENOMEM, EPERM];
    SYS_bind "bind" [EADDRINUSE, ENOMEM, EACCES];
    SYS_bpf "bpf" [EPERM, ENOMEM, EINVAL, EAGAIN, EBUSY, ENOSPC, EEXIST, ENOENT, ENOSYS];
    SYS_brk "brk" [ENOMEM];
    SYS_chdir "chdir" [EACCES, ENOMEM];
    SYS_clone "clone" [EAGAIN, ENOMEM, EPERM];
    SYS_clone3 "clone3" [EAGAIN, ENOMEM, EPERM, ENOSYS];
    SYS_close "close" [EINTR, EIO];
    SYS_close_range "close_range" [EMFILE, ENOMEM, ENOSYS];
    SYS_connect "connect" [ECONNREFUSED, EINTR, ENOMEM];
    SYS_dup3 "dup3" [EBUSY, EINTR, EMFILE];
    SYS_execve "execve" [E2BIG, EACCES, EIO, EMFILE, ENOENT, ENOEXEC, ENOMEM, EPERM, ETXTBSY];
    SYS_faccessat "faccessat" [EACCES, ELOOP, ENOENT, ENOMEM, EROFS];
    SYS_faccessat2 "faccessat2" [EACCES, ELOOP, ENOENT, ENOMEM, ENOSYS, EPERM];
    SYS_fchdir "fchdir" [EACCES];
    SYS_eventfd2 "eventfd2" [EMFILE, ENFILE, ENODEV, ENOMEM];
    SYS_fcntl "fcntl" [EMFILE, EINVAL];
    SYS_flock "flock" [EINTR, ENOLCK];
    SYS_fstat "fstat" [EIO, ENOMEM];
    SYS_fsync "fsync" [EIO, ENOSPC];
    SYS_getdents64 "getdents64" [EIO, ENOENT, ENOTDIR, ENOMEM];
    SYS_getpeername "getpeername" [ENOBUFS, ENOTCONN];
    SYS_getresuid "getresuid" [EPERM];
    SYS_getrandom "getrandom" [EINTR, ENOSYS, EPERM];
    SYS_getsockname "getsockname" [ENOBUFS];
    SYS_getsockopt "getsockopt" [EACCES, ENOMEM, ENOPROTOOPT, EOPNOTSUPP, EPERM];
    SYS_getxattr "getxattr" [EOPNOTSUPP, ENOMEM];
    SYS_ioctl "ioctl" [EINTR, EINVAL, ENOENT, ENOTTY];
    SYS_kcmp "kcmp" [EPERM, ENOSYS, ESRCH];
    SYS_kill "kill" [EPERM, ESRCH];
    SYS_lseek "lseek" [EINVAL, EOVERFLOW, ESPIPE];
    SYS_madvise "madvise" [EAGAIN, EINVAL, ENOMEM];
    SYS_mkdirat "mkdirat" [EACCES, EEXIST, ENOMEM, ENOSPC, EROFS];
    SYS_mmap "mmap" [ENOMEM, EAGAIN, EPERM];
    SYS_mprotect "mprotect" [ENOMEM, EACCES];
    SYS_munmap "munmap" [ENOMEM];
    SYS_newfstatat "newfstatat" [EACCES, ENOENT, ENOMEM];
    SYS_openat "openat" [EACCES, EINTR, EMFILE, ENFILE, ENOENT, ENOMEM, EPERM];
    SYS_pidfd_getfd "pidfd_getfd" [EBADF, EINVAL, EMFILE, ENFILE, ENOSYS, EPERM, ESRCH];
    SYS_pidfd_open "pidfd_open" [EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS, EPERM, ESRCH];
    SYS_pipe2 "pipe2" [EMFILE, ENFILE];
    SYS_ppoll "ppoll" [EINTR, EINVAL, ENOMEM];
    SYS_prctl "prctl" [EACCES, EINVAL, EPERM];
    SYS_prlimit64 "prlimit64" [EPERM, ENOSYS];
    SYS_process_vm_readv "process_vm_readv" [EFAULT, ENOMEM, ENOSYS, EPERM, ESRCH];
    SYS_pwrite64 "pwrite64" [EINTR, EINVAL, EIO, ENOSPC, EPERM];
    SYS_read "read" [EINTR, EIO, ENOMEM, ESRCH];
    SYS_readlinkat "readlinkat" [EACCES, EIO, ENOENT, ENOMEM];
    SYS_recvfrom "recvfrom" [EINTR, ENOBUFS, ENOMEM];
    SYS_recvmsg "recvmsg" [EINTR, ENOBUFS, ENOMEM];
    SYS_renameat "renameat" [EACCES, EBUSY, EIO, ENOSPC, EROFS];
    SYS_rt_sigpending "rt_sigpending" [EPERM];
    SYS_rt_sigprocmask "rt_sigprocmask" [EPERM];
    SYS_rt_sigtimedwait "rt_sigtimedwait" [EAGAIN, EINTR, EPERM];
    SYS_sched_getaffinity "sched_getaffinity" [EPERM, ENOSYS];
    SYS_seccomp "seccomp" [EACCES, EBUSY, EINVAL, ENOMEM, ENOSYS];
    SYS_sendto "sendto" [EINTR, ENOBUFS, ENOMEM];
    SYS_setpgid "setpgid" [EACCES, EPERM, ESRCH];
    SYS_setsid "setsid" [EPERM];
    SYS_setsockopt "setsockopt" [EACCES, EINVAL, ENOBUFS, ENOMEM, ENOPROTOOPT, EPERM];
    SYS_signalfd4 "signalfd4" [EMFILE, ENFILE, ENODEV, ENOMEM];
    SYS_socket "socket" [EACCES, EAFNOSUPPORT, EMFILE, ENFILE, ENOBUFS, ENOMEM];
    SYS_socketpair "socketpair" [EAFNOSUPPORT, EMFILE, ENFILE];
    SYS_statfs "statfs" [EACCES, EIO, ENOENT, ENOMEM, ENOSYS];
    SYS_statx "statx" [EACCES, ENOENT, ENOMEM, ENOSYS];
    SYS_symlinkat "symlinkat" [EACCES, EEXIST, ENOSPC, EROFS];
    SYS_unlinkat "unlinkat" [EACCES, EBUSY, EIO, EPERM];
    SYS_unshare "unshare" [ENOMEM, EPERM];
    SYS_wait4 "wait4" [ECHILD, EINTR];
    SYS_waitid "waitid" [EINTR];
    SYS_write "write" [EFBIG, EINTR, EIO, ENOSPC, EPIPE];
}

/// The older ones, which newer architectures do not have: as those that have taken their place.
#[cfg(target_arch = "x86_64")]
const OLDER: &[(c_long, &str)] = &[
    (libc::SYS_dup2, "dup3"),
    (libc::SYS_fork, "clone"),
    (libc::SYS_vfork, "clone"),
    (libc::SYS_mkdir, "mkdirat"),
    (libc::SYS_open, "openat"),
    (libc::SYS_pipe, "pipe2"),
    (libc::SYS_poll, "ppoll"),
    (libc::SYS_readlink, "readlinkat"),
    (libc::SYS_rename, "renameat"),
    (libc::SYS_rmdir, "unlinkat"),
    (libc::SYS_stat, "newfstatat"),
    (libc::SYS_symlink, "symlinkat"),
    (libc::SYS_unlink, "unlinkat"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[(c_long, &str)] = &[];

#[cfg(target_arch = "x86_64")]
const GETPGRP: c_long = libc::SYS_getpgrp;
#[cfg(not(target_arch = "x86_64"))]
const GETPGRP: c_long = libc::SYS_getpgid;

/// Those that fail for wrong arguments alone, or never.
const SURE: &[c_long] = &[
    GETPGRP,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_uname,
];

/// Calls that fail only under a filter. The C library makes them too, and ignores failures.
const SIGNALS: &[c_long] = &[libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask];

fn kind(number: c_long) -> Option<&'static Kind> {
    let newer = OLDER.iter().find(|(older, _)| *older == number).map(|(_, name)| *name);
    KINDS.iter().find(|kind| newer.map_or(kind.number == number, |name| name == kind.name))
}

/// A call of one task in one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    task: String,
    number: c_long,
    nth: u32,
}

/// A call that fails.
#[derive(Clone, Debug)]
pub struct Fault {
    call: Call,
    pub errno: i32,
    /// What all later calls of the same number answer, if they fail too.
    pub then: Option<i32>,
    /// The calls that its task has made before, by their numbers.
    before: BTreeSet<c_long>,
}

impl Fault {
    /// The call's name.
    pub fn name(&self) -> &'static str {
        kind(self.call.number).map_or("call", |kind| kind.name)
    }

    /// Whether its task has made such a call before, in the run that was recorded.
    pub fn is_behind(&self, name: &str) -> bool {
        self.before.iter().any(|number| kind(*number).is_some_and(|kind| kind.name == name))
    }

    /// Whether the kernel says that what was meant is not there any more.
    pub fn is_gone(&self) -> bool {
        [EBADF, ENOENT, ENOTCONN, ESRCH].contains(&self.errno)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = NAMES.iter().find(|(errno, _)| *errno == self.errno).map_or("a kill", |(_, name)| name);
        write!(f, "{} {} of task {}: {errno}", self.name(), self.call.nth, self.call.task)?;
        self.then.map_or(Ok(()), |then| write!(f, ", then errno {then}"))
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// 128 + n where a signal ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    /// `SO_KEEPALIVE` and the timers of the descriptor that is watched, at each mark.
    pub sockets: Vec<[i32; 5]>,
    is_injected: bool,
    hung: Vec<String>,
    calls: Vec<Call>,
}

/// Runs a command under `fault`, with these of its options.
fn run(options: &[&str], fault: Option<&Fault>, command: &Command) -> Ran {
    static FAULT: OnceLock<std::path::PathBuf> = OnceLock::new();
    let log = scratch("fault");
    let mut wrapped = Command::new(FAULT.get_or_init(|| program("fault", Link::Nothing)));
    wrapped.args(options);
    if let Some(Fault { call: Call { task, number, nth }, errno, then, .. }) = fault {
        wrapped.arg("-f").arg(format!("{task}:{number}:{nth}:{errno}:{}", then.unwrap_or(0)));
    }
    wrapped.arg(&log).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    let output = wrapped.stdin(Stdio::null()).output().unwrap();
    let said = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    let mut ran = Ran {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        sockets: Vec::new(),
        is_injected: false,
        hung: Vec::new(),
        calls: Vec::new(),
    };
    for line in said.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["call", task, number, nth] => ran.calls.push(Call {
                task: task.to_owned(),
                number: number.parse().unwrap(),
                nth: nth.parse().unwrap(),
            }),
            ["injected"] => ran.is_injected = true,
            ["socket", ..] => {
                let values: Vec<_> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
                ran.sockets.push(values.try_into().unwrap());
            }
            _ => ran.hung.push(line.to_owned()),
        }
    }
    ran
}

impl Ran {
    /// Whether it came to the call.
    pub const fn is_injected(&self) -> bool {
        self.is_injected
    }
}

/// Runs a command without a fault, but watched: whether it hangs.
pub fn watch(command: &Command) -> Ran {
    run(&[], None, command)
}

/// Whether all are tried.
pub fn takes_all() -> bool {
    std::env::var_os("KA_FAULTS").is_some_and(|value| value == "all")
}

/// The faults to try: of a call that a task makes again and again, some, from its first to its last.
fn chosen(calls: Vec<Call>, trial: &Trial<'_>) -> Vec<Fault> {
    let (most, all) = if takes_all() { (200, true) } else { (trial.few, false) };
    let mut last: BTreeMap<(String, c_long), u32> = BTreeMap::new();
    for call in &calls {
        last.insert((call.task.clone(), call.number), call.nth);
    }
    let mut faults = Vec::new();
    let mut made: BTreeMap<String, BTreeSet<c_long>> = BTreeMap::new();
    for call in calls {
        let before = made.entry(call.task.clone()).or_default();
        let before_it = before.clone();
        before.insert(call.number);
        let errnos = match kind(call.number) {
            _ if trial.kills => &[0][..],
            _ if SURE.contains(&call.number) => continue,
            _ if SIGNALS.contains(&call.number) && !trial.signals => continue,
            Some(kind) => kind.errnos,
            None => panic!("system call {} of task {} is in no table of faults", call.number, call.task),
        };
        let (count, place) = (last[&(call.task.clone(), call.number)] as usize, call.nth as usize - 1);
        let is_due = count <= most || place * most / count != (place + 1) * most / count || place == 0;
        if !is_due {
            continue;
        }
        // Which errno it is changes from call to call.
        let turn = faults.len();
        for (n, errno) in errnos.iter().enumerate() {
            let fault =
                Fault { call: call.clone(), errno: *errno, then: trial.then, before: before_it.clone() };
            if (all || n == turn % errnos.len()) && !trial.never.contains(&(fault.name(), *errno)) {
                faults.push(fault);
            }
        }
    }
    faults
}

/// What is tried.
pub struct Trial<'a> {
    pub name: &'a str,
    /// Of `fault`.
    pub options: &'a [&'a str],
    /// How often a call that a task makes again and again fails, at most, where not all are tried.
    pub few: usize,
    /// How many of the runs may not come to the call that was to fail, in percent: threads go their own ways.
    pub missed: usize,
    /// What the calls of the same number that come behind the one that fails answer, where they fail too.
    pub then: Option<i32>,
    /// Calls and errnos that the kernel cannot answer here.
    pub never: &'a [(&'a str, i32)],
    /// Whether calls on the signal mask and on pending signals fail too.
    pub signals: bool,
    /// No call fails: before each, the process that the environment's FAULT_KILL names is killed.
    pub kills: bool,
}

/// What most have in common.
pub const TRIAL: Trial<'static> = Trial {
    name: "",
    options: &[],
    few: 1000,
    missed: 0,
    then: None,
    never: &[],
    signals: false,
    kills: false,
};

/// Runs a command once for each fault. `prepare` makes the command and what the judge needs to know; the judge says what
/// is wrong.
pub fn each<T>(
    trial: &Trial<'_>,
    prepare: impl Fn() -> (Command, T) + Sync,
    judge: impl Fn(&Fault, &Ran, T) -> Result<(), String> + Sync,
) {
    let (command, state) = prepare();
    let without = run(trial.options, None, &command);
    drop(state);
    assert!(without.hung.is_empty(), "{}: hangs without a fault: {without:?}", trial.name);
    let faults = chosen(without.calls, trial);
    assert!(!faults.is_empty(), "{}: it makes no calls: {}", trial.name, without.stderr);
    let (next, missed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (command, state) = prepare();
            let ran = run(trial.options, Some(fault), &command);
            if !ran.is_injected {
                missed.fetch_add(1, Ordering::Relaxed);
            }
            if let Err(why) = sane(fault, &ran).and_then(|()| judge(fault, &ran, state)) {
                let Ran { status, stdout, stderr, .. } = &ran;
                wrong.lock().unwrap().push(format!("{fault}: {why}\n  {status} {stdout:?} {stderr:?}"));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let (wrong, missed) = (wrong.into_inner().unwrap(), missed.into_inner());
    let (name, count) = (trial.name, faults.len());
    super::support::say(&format!("{name}: {count} faults, {missed} not reached"));
    assert!(
        wrong.is_empty(),
        "{name}: {} of {count} faults:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(30)].join("\n")
    );
    assert!(missed * 100 <= trial.missed * count, "{name}: {missed} of {count} calls were not made");
}

/// What must never be: that something hangs, panics, or breaks; but where it was killed.
fn sane(fault: &Fault, ran: &Ran) -> Result<(), String> {
    if fault.errno == 0 && ran.status == 128 + libc::SIGKILL && ran.hung.is_empty() {
        Ok(())
    } else {
        is_sane(ran)
    }
}

/// What must never be: that something hangs, panics, or breaks.
pub fn is_sane(ran: &Ran) -> Result<(), String> {
    if !ran.hung.is_empty() {
        return Err(format!("it hangs: {}", ran.hung.join(", ")));
    }
    if ran.stderr.contains("panicked") || ran.stderr.contains("RUST_BACKTRACE") {
        return Err("it panics".to_owned());
    }
    if ran.status > 128 || ran.status < 0 {
        return Err("a signal ended it".to_owned());
    }
    Ok(())
}

/// A path that is to be told apart in what `fault` is told.
pub fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
