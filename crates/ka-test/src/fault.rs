//! Fault injection: runs a program again and again, and makes one of its system calls fail in each run.
//!
//! `tests/c/fault.c` traces the program and injects the fault. A judge of the suite then decides whether the outcome of
//! the run is right.
//!
//! By default a suite injects only some of the faults, spread over all calls and errnos. With `KA_FAULTS=all`, which
//! `make faults` sets, it makes each call fail once with each errno that its manual page names.

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

use crate::compiler::{Linkage, program};
use crate::log::say;
use crate::path::scratch;

/// A system call and the errnos to inject. These are the errnos that its manual page names for valid arguments. EPERM
/// or ENOSYS is added if a sandbox or an older kernel may reject the call.
struct FaultKind {
    number: c_long,
    name: &'static str,
    errnos: &'static [i32],
}

macro_rules! kinds {
    ($($number:ident $name:literal [$($errno:ident),*];)*) => {
        const KINDS: &[FaultKind] =
            &[$(FaultKind { number: libc::$number, name: $name, errnos: &[$($errno),*] }),*];
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
    SYS_clock_gettime "clock_gettime" [EPERM, ENOSYS];
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
    SYS_getpgid "getpgid" [EPERM, ESRCH];
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

/// System calls that newer architectures do not have, each with the name of its replacement, whose errnos apply.
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

/// System calls that fail only for invalid arguments, or never.
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
    libc::SYS_nanosleep,
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

/// System calls that fail only under a seccomp filter. The C library also makes them, and ignores failures.
const SIGNALS: &[c_long] = &[libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask];

fn kind(number: c_long) -> Option<&'static FaultKind> {
    let newer = OLDER.iter().find(|(older, _)| *older == number).map(|(_, name)| *name);
    KINDS.iter().find(|kind| newer.map_or(kind.number == number, |name| name == kind.name))
}

/// A system call of one task in one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TracedCall {
    task: String,
    number: c_long,
    nth: u32,
}

/// A fault: a system call that fails, and its errno.
#[derive(Clone, Debug)]
pub struct Fault {
    call: TracedCall,
    /// The errno of the call. 0 means that the process in `FAULT_KILL` is killed before the call, which does not fail.
    pub errno: i32,
    /// The errno of all later calls of the same number, if they fail too.
    pub then: Option<i32>,
    /// The numbers of the system calls that the task has made before.
    before: BTreeSet<c_long>,
}

impl Fault {
    /// Returns the name of the system call.
    pub fn name(&self) -> &'static str {
        kind(self.call.number).map_or("call", |kind| kind.name)
    }

    /// Returns whether the task had made a system call of this name before, in the run without a fault.
    pub fn had_called(&self, name: &str) -> bool {
        self.before.iter().any(|number| kind(*number).is_some_and(|kind| kind.name == name))
    }

    /// Returns whether the errno means that the object of the call no longer exists.
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

/// The outcome of a run.
#[derive(Debug)]
pub struct Ran {
    /// The exit status, or 128 + n if signal n ended the program.
    pub status: i32,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
    /// `SO_KEEPALIVE` and the timers of the watched descriptor, at each mark of the program.
    pub sockets: Vec<[i32; 6]>,
    is_injected: bool,
    hung: Vec<String>,
    calls: Vec<TracedCall>,
}

/// Runs a command under `fault` with these options, and injects a fault if there is one.
fn run(options: &[&str], fault: Option<&Fault>, command: &Command) -> Ran {
    static FAULT: OnceLock<std::path::PathBuf> = OnceLock::new();
    let log = scratch("fault");
    let mut wrapped = Command::new(FAULT.get_or_init(|| program("fault", Linkage::Nothing)));
    wrapped.args(options);
    if let Some(Fault { call: TracedCall { task, number, nth }, errno, then, .. }) = fault {
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
            ["call", task, number, nth] => ran.calls.push(TracedCall {
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
    /// Returns whether the program made the call that was to fail.
    pub const fn is_injected(&self) -> bool {
        self.is_injected
    }
}

/// Runs a command without a fault. Use `check_end` to find out whether it hung.
pub fn watch(command: &Command) -> Ran {
    run(&[], None, command)
}

/// Returns whether all faults are injected (`KA_FAULTS=all`).
pub fn takes_all() -> bool {
    std::env::var_os("KA_FAULTS").is_some_and(|value| value == "all")
}

/// Returns the faults to inject. If a task makes a call often, they cover only some of these calls, from the first to
/// the last.
fn chosen(calls: Vec<TracedCall>, trial: &Trial<'_>) -> Vec<Fault> {
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
        // If only one errno is tried, it changes from call to call.
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

/// A series of runs of one command.
pub struct Trial<'a> {
    /// The name of the trial, for messages.
    pub name: &'a str,
    /// Options of `fault`.
    pub options: &'a [&'a str],
    /// If a task makes the same system call more often than this, the trial tests only this number of the calls. With
    /// `KA_FAULTS=all` the number is 200.
    pub few: usize,
    /// The percentage of faults that may stay without effect, because the run does not make the call. With several
    /// threads, the order of calls differs from run to run.
    pub missed: usize,
    /// The errno of all later calls of the same number, if they fail too.
    pub then: Option<i32>,
    /// System calls with errnos that the kernel cannot return here.
    pub never: &'a [(&'a str, i32)],
    /// True if system calls on the signal mask and on pending signals fail too.
    pub signals: bool,
    /// If true, no call fails. Instead, the process in the environment variable `FAULT_KILL` is killed before each
    /// call.
    pub kills: bool,
}

/// The defaults of a trial.
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

/// Runs a command once for each fault, and fails the test if any run went wrong.
///
/// `prepare` returns the command of a run and a state for the judge. `judge` returns an error that describes what went
/// wrong.
pub fn each<T>(
    trial: &Trial<'_>,
    prepare: impl Fn() -> (Command, T) + Sync,
    judge: impl Fn(&Fault, &Ran, T) -> Result<(), String> + Sync,
) {
    let record = || {
        let (command, _state) = prepare();
        let without = run(trial.options, None, &command);
        assert!(without.hung.is_empty(), "{}: hangs without a fault: {without:?}", trial.name);
        without
    };
    // Some calls depend on the load of the machine, such as those of a process that waits.
    let (without, others) = (record(), [record(), record()]);
    let others = others.map(|other| other.calls.into_iter().collect::<BTreeSet<_>>());
    let is_certain = |call: &TracedCall| others.iter().all(|calls| calls.contains(call));
    let faults = chosen(without.calls, trial);
    assert!(!faults.is_empty(), "{}: the program makes no calls: {}", trial.name, without.stderr);
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (command, state) = prepare();
            let ran = run(trial.options, Some(fault), &command);
            if !ran.is_injected && is_certain(&fault.call) {
                missed.lock().unwrap().push(fault.to_string());
            }
            if let Err(why) = check_end_under_fault(fault, &ran).and_then(|()| judge(fault, &ran, state)) {
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
    let (wrong, missed) = (wrong.into_inner().unwrap(), missed.into_inner().unwrap());
    let (name, count) = (trial.name, faults.len());
    say(&format!("{name}: {count} faults, {} without effect", missed.len()));
    assert!(
        wrong.is_empty(),
        "{name}: {} of {count} faults:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(30)].join("\n")
    );
    assert!(
        missed.len() * 100 <= trial.missed * count,
        "{name}: {} of {count} calls were not made, although three runs had made them: {missed:?}",
        missed.len()
    );
}

/// Fails if the program hung, panicked or crashed. If the fault is a kill, the program may end by SIGKILL.
fn check_end_under_fault(fault: &Fault, ran: &Ran) -> Result<(), String> {
    if fault.errno == 0 && ran.status == 128 + libc::SIGKILL && ran.hung.is_empty() {
        Ok(())
    } else {
        check_end(ran)
    }
}

/// Fails if the program hung, panicked or crashed.
///
/// # Errors
///
/// Returns a description of the failure.
pub fn check_end(ran: &Ran) -> Result<(), String> {
    if !ran.hung.is_empty() {
        return Err(format!("it hangs: {}", ran.hung.join(", ")));
    }
    if ran.stderr.contains("panicked") || ran.stderr.contains("RUST_BACKTRACE") {
        return Err("it panics".to_owned());
    }
    if ran.status > 128 || ran.status < 0 {
        return Err("a signal ended the program".to_owned());
    }
    Ok(())
}

/// Returns the file name of a path. `fault` finds a program among others by its file name.
pub fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
