//! The errors of this crate.

use std::error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ka_core::Settings;
use ka_policy::{CONF_LENGTH, CONF_OWNER};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::brief::brief_settings;
use crate::process;
use crate::reason::reason;

/// The result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why sockets could not be found or set.
///
/// `Display` writes a message for people: the thing that failed, the reason, and what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a file operation failed.
    Io {
        /// The file, the process or the call that failed. Empty if the reason is clear without it.
        what: String,
        /// The error of the operation.
        source: io::Error,
    },
    /// A worker process reported this error. Errors cross a pipe as text.
    Worker(String),
    /// The memory maps of a process could not be read.
    Maps(Box<Error>),
    /// The kernel did not return the memory maps of a process in time.
    MapsBlocked,
    /// The process has ended, and its parent has not waited for it.
    Zombie,
    /// /proc shows no processes.
    NoProcesses,
    /// A program holds the lock of this socket, so a call on the socket blocked. ka has not changed the socket.
    LeftLocked,
    /// The settings that a socket had before are outside the range that programs can set.
    NotRestorable(Settings),
    /// The kernel's tcp iterator stopped at a locked socket. Some of the sockets after it belong to no process, so ka
    /// cannot set them in another way.
    IteratorStopped {
        /// The number of sockets that belong to no process and were not set.
        left: usize,
    },
    /// The sockets were set, but cannot be listed.
    Unlisted(Box<Error>),
    /// This process lacks these capabilities. capabilities(7)
    MissingCapabilities(Vec<&'static str>),
    /// The running kernel lacks this feature: the kernel is too old, or was built without the feature.
    MissingFeature {
        /// The feature.
        feature: &'static str,
        /// The first release of Linux with the feature.
        since: (u32, u32),
        /// The release of the running kernel.
        release: (u32, u32),
    },
    /// The kernel was built without bpf(2).
    NoBpf,
    /// The kernel refuses bpf(2) although this process has the capabilities.
    BpfForbidden,
    /// The verifier rejected a BPF program of ka.
    Verifier {
        /// The program's name.
        program: String,
        /// The error of loading the program.
        cause: Box<Self>,
        /// The errno of bpf(2).
        errno: i32,
        /// The last lines of the verifier's log.
        log: Vec<String>,
    },
    /// A BPF program was attached to the cgroup, or to one above it, without `BPF_F_ALLOW_MULTI`.
    ExclusiveProgram,
    /// The cgroup has as many BPF programs as the kernel allows (`BPF_CGROUP_MAX_PROGS`).
    TooManyPrograms,
    /// The kernel's BTF lacks a struct member that a BPF program of ka reads.
    UnexpectedTypes,
    /// The kernel's BTF file cannot be parsed.
    UnexpectedBtf {
        /// The file.
        path: &'static str,
    },
    /// The policy has `user_timeout=auto` or `rto_max=auto`, but lacks values from which it is computed.
    IncompleteAuto,
    /// The kernel rejected a socket option of a socket, with this errno.
    SetSockOpt(i32),
    /// The socket's cgroup is nested too deeply to find out whether it is below the selected cgroup.
    CgroupTooDeep,
    /// No cgroup v2 hierarchy is mounted.
    NoCgroups,
    /// No bpf filesystem is mounted here.
    NoBpffs {
        /// The expected mount point.
        path: &'static str,
    },
    /// A cgroup's name is empty.
    EmptyCgroupName,
    /// There is no cgroup v2 with this name or folder.
    NotACgroup {
        /// The name as the user gave it.
        name: PathBuf,
        /// The mount point of the cgroup v2 hierarchy.
        root: PathBuf,
    },
    /// A process is in no cgroup of version 2.
    CgroupV1,
    /// The user may not read a cgroup's folder.
    UnreadableCgroup,
    /// A cgroup's parent is not the cgroup through which ka reached it.
    ParentChanged,
    /// Other processes created cgroups during the whole walk. The walk stopped after this many.
    EndlessCgroups(usize),
    /// The folder of ka's pins belongs to another user, or other users may write to it.
    ForeignPins {
        /// The folder.
        path: PathBuf,
        /// The UID of its owner.
        owner: u32,
    },
    /// Duplicating a process's sockets would change their class of net_cls or net_prio.
    ClassLost {
        /// The controllers of the hierarchy, such as `net_cls,net_prio`.
        controllers: String,
        /// The cgroup of the process in this hierarchy.
        cgroup: String,
        /// The reason why ka cannot enter the cgroup. `None` if the hierarchy is not mounted.
        source: Option<io::Error>,
    },

    /// A worker process could not be started.
    WorkerStart(io::Error),
    /// A worker process died before it finished its work.
    WorkerDied,
    /// A process that ka started ended before it reported its success.
    ProcessEnded,
    /// A call on a socket blocked, because a program holds the socket's lock.
    SocketBlocked,
    /// Too many sockets of a user have blocked, so ka leaves the other sockets of this user alone.
    UserExcluded {
        /// The user ID.
        user: u32,
        /// The number of sockets that blocked.
        blocked: usize,
    },
    /// Listing the sockets (sock_diag(7)) blocked, because a program holds the lock of a socket.
    SocketListBlocked,
    /// The kernel has no list of TCP sockets (sock_diag(7)).
    NoSocketList,
    /// The machine has more connections than this, and ka does not search for the owners of the others.
    TooManyConnections(usize),
    /// The file is neither a regular file nor a folder.
    NotRegularFile,

    /// The peer has closed the connection, and the program has not closed its side (CLOSE-WAIT).
    LeftOpen,
    /// The connection is not established yet, so ka cannot probe it.
    NotEstablished,
    /// A policy holds the settings of the socket, so ka cannot make the kernel send a probe.
    PolicyHeld {
        /// True if the policy is that of the supervisor of this process.
        is_own: bool,
    },
    /// The kernel sent no probe within the time, because other data has to be sent first.
    NoProbe,
    /// Another process of ka probes the connection, or was killed while it did.
    ProbedByAnother,
    /// A termination signal arrived before ka had a result for the connection.
    Interrupted,
    /// This process was stopped again and again while it probed the connection.
    TooBusy,
    /// The kernel sent fewer segments than required to a silent peer.
    AskedTooLittle {
        /// The number of unanswered segments.
        asked: u32,
        /// The required number.
        count: u32,
    },
    /// The kernel cannot end a Multipath TCP connection of another process.
    MptcpNotDestroyed,
    /// The kernel did not find a connection by its addresses and its cookie.
    ConnectionNotFound,
    /// The kernel cannot end connections of other processes.
    NoSocketDestroy,
    /// This process may not administer the network namespace of a socket.
    NotNetAdmin,

    /// No process has this PID.
    NoSuchProcess,
    /// The PID is that of a thread.
    Thread {
        /// The PID of the thread's process.
        leader: i32,
    },
    /// /proc is not mounted, or hides a process that exists.
    ProcessNotShown,
    /// /proc hides the process, so ka cannot tell why the kernel refuses access.
    ProcessHidden,
    /// The process belongs to another user, and ka lacks CAP_SYS_PTRACE.
    ForeignProcess {
        /// The effective user ID of the process.
        user: u32,
    },
    /// The Yama security module forbids access to the process. The number is kernel.yama.ptrace_scope.
    PtraceScope(i32),
    /// The Yama security module forbids access to ordinary processes of ka's own user. The number is
    /// kernel.yama.ptrace_scope.
    PtraceScopeOfAll(i32),
    /// The process is not dumpable or has more capabilities than ka. ptrace(2)
    NotDumpable,
    /// The kernel refuses access although ka has CAP_SYS_PTRACE.
    RefusedToRoot,
    /// The kernel has no pidfd_getfd(2).
    NoPidfdGetfd,
    /// A thread has its own descriptor table, and the kernel has no pidfds of threads.
    ThreadDescriptors {
        /// The thread. `None` if its process has only this one.
        task: Option<i32>,
    },
    /// The process has more descriptors than ka reads of one process. ka has handled the sockets that it reached.
    OverBudget,
    /// This process has reached its limit on descriptors, or the machine has.
    TooManyOpenFiles,

    /// The file is not a network namespace.
    NotNetworkNamespace,
    /// An error in a network namespace.
    Namespace {
        /// The name or the path of the namespace.
        name: String,
        /// The error.
        source: Arc<Error>,
    },
    /// An error with a process.
    Process {
        /// The PID.
        pid: i32,
        /// The name, safe to print to a terminal. Absent if the PID is enough.
        name: Option<String>,
        /// The error.
        source: Arc<Error>,
    },
    /// An error with a socket of a process.
    Socket {
        /// The descriptor in the process.
        fd: i32,
        /// The error.
        source: Arc<Error>,
    },
    /// Several errors.
    Several(Vec<Error>),
    /// seccompiler generates no filters for this architecture.
    NoFilters(&'static str),
    /// seccompiler rejected a filter.
    Filter(seccompiler::BackendError),
    /// A seccomp filter with a listener applies to this process. The kernel allows only one listener.
    ListenerInUse,
    /// The kernel refused a filter, its listener, or a duplicate of the listener.
    Unsupervisable(io::Error),
    /// A policy that ka may not override keeps keepalive on, so a connection of ka does not stay idle.
    KeepaliveHeld,
    /// No address of a host fits: the address family, or the address to bind to.
    NoFittingAddress {
        /// The family that is missing: `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A server does not speak the protocol of `ka measure --serve`.
    NotMeasureServer {
        /// The message that the server sent, if it knows the protocol but not this version.
        message: Option<String>,
    },
    /// The configuration file cannot be opened, is not a regular file, does not belong to root, or is writable by other
    /// users.
    ConfNotOwnedByRoot,
    /// The configuration file is too long.
    ConfTooLong,
}

impl Error {
    /// An error of a system call or a file operation. `what` names the file, the process or the call.
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// An error with a process.
    pub(crate) fn process(pid: i32, source: impl Into<Arc<Self>>) -> Self {
        Self::Process { pid, name: None, source: source.into() }
    }

    /// An error with a process, whose current name is part of the message.
    pub(crate) fn named_process(pid: i32, source: impl Into<Arc<Self>>) -> Self {
        Self::Process { pid, name: Some(process::name(pid)), source: source.into() }
    }

    /// An error with a socket of a process.
    pub(crate) fn socket(fd: i32, source: impl Into<Arc<Self>>) -> Self {
        Self::Socket { fd, source: source.into() }
    }

    /// An error in a network namespace.
    pub(crate) fn namespace(name: impl fmt::Display, source: impl Into<Arc<Self>>) -> Self {
        Self::Namespace { name: name.to_string(), source: source.into() }
    }

    /// Returns the errno of the `io::Error` that this error contains. `None` if it contains none.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::WorkerStart(source) | Self::Unsupervisable(source) => {
                source.raw_os_error()
            }
            Self::Namespace { source, .. } | Self::Process { source, .. } | Self::Socket { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    #[expect(clippy::too_many_lines, reason = "a message for each error")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The remedy if ka may not inspect a process.
        const INSTEAD: &str = "needs CAP_SYS_PTRACE (run ka as root)";
        match self {
            Self::Io { what, source } if what.is_empty() => f.write_str(&reason(source)),
            Self::Io { what, source } => write!(f, "{what}: {}", reason(source)),
            Self::Worker(message) => f.write_str(message),
            Self::Maps(error) => write!(f, "cannot read its memory maps: {error}"),
            Self::Zombie => f.write_str("it has ended (a zombie), and has no sockets"),
            Self::NoProcesses => f.write_str("/proc shows no process: it is not mounted here"),
            Self::LeftLocked => write!(f, "{}; left as it is", Self::SocketBlocked),
            Self::NotRestorable(settings) => {
                write!(f, "a socket had {}, which no program can set", brief_settings(settings))
            }
            Self::IteratorStopped { left } => write!(
                f,
                "--via bpf stopped at a socket whose lock a program holds: {left} sockets that no process has (not \
                 accepted yet, or already closed) were left as they are; try again when that program has ended"
            ),
            Self::Unlisted(error) => write!(f, "the sockets that were set cannot be listed: {error}"),
            Self::MapsBlocked => f.write_str("the kernel did not return its memory maps within 2 s"),
            Self::MissingCapabilities(names) => {
                let (last, others) = names.split_last().unwrap_or((&"privileges", &[]));
                let others =
                    if others.is_empty() { String::new() } else { format!("{} and ", others.join(", ")) };
                write!(f, "needs {others}{last} (run ka as root)")
            }
            Self::MissingFeature { feature, since: (major, minor), release: (own_major, own_minor) } => write!(
                f,
                "this kernel ({own_major}.{own_minor}) lacks {feature}: Linux {major}.{minor} and later have it"
            ),
            Self::NoBpf => f.write_str("this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)"),
            Self::BpfForbidden => f.write_str(
                "the kernel refuses bpf(2) in spite of the capabilities: another user namespace, a security module, \
                 a seccomp filter (as in a container) or kernel lockdown forbids it",
            ),
            Self::Verifier { program, cause, errno, log } => write!(
                f,
                "{cause}\nthe kernel's verifier refuses {program} ({}):\n  {}",
                reason(&io::Error::from_raw_os_error(*errno)),
                log.join("\n  ")
            ),
            Self::ExclusiveProgram => f.write_str(
                "another BPF program is attached to this cgroup or to one above it, and allows no others \
                 (no BPF_F_ALLOW_MULTI): bpftool cgroup tree shows it",
            ),
            Self::TooManyPrograms => {
                f.write_str("64 BPF programs are attached to this cgroup already: the kernel allows no more")
            }
            Self::UnexpectedTypes => f.write_str(
                "the kernel's type information (BTF) lacks a member of a socket that ka reads",
            ),
            Self::UnexpectedBtf { path } => write!(f, "{path} cannot be parsed"),
            Self::IncompleteAuto => {
                f.write_str("user_timeout=auto and rto_max=auto need idle, intvl and cnt in the policy here")
            }
            Self::SetSockOpt(errno) => {
                write!(f, "setsockopt: {}", reason(&io::Error::from_raw_os_error(*errno)))
            }
            Self::CgroupTooDeep => {
                f.write_str("their cgroups are nested too deeply to tell whether they are below this one")
            }
            Self::NoCgroups => f.write_str(
                "cgroup v2 is not mounted here (Linux 4.5 and later: mount -t cgroup2 none /sys/fs/cgroup)",
            ),
            Self::NoBpffs { path } => {
                write!(f, "bpffs is not mounted at {path} (mount -t bpf bpf {path})")
            }
            Self::EmptyCgroupName => f.write_str("the name is empty; the root cgroup is /"),
            Self::NotACgroup { name, root } => write!(
                f,
                "{}: not a cgroup (v2): neither a cgroup's folder nor a name below {}",
                name.display(),
                root.display()
            ),
            Self::CgroupV1 => f.write_str("its cgroup is not of version 2"),
            Self::UnreadableCgroup => f.write_str("its folder may not be read: needs CAP_DAC_READ_SEARCH"),
            Self::ParentChanged => {
                f.write_str("cannot return to the parent cgroup: the parent cgroup has changed")
            }
            Self::EndlessCgroups(count) => {
                write!(f, "cgroups are created as fast as ka visits them: ka stopped after {count}")
            }
            Self::ForeignPins { path, owner } => write!(
                f,
                "{}: it belongs to user {owner} or is writable by others, so ka does not use it: remove it, and ka \
                 creates its own",
                path.display()
            ),
            Self::ClassLost { controllers, cgroup, source } => write!(
                f,
                "its sockets would lose their class of {controllers}, because ka cannot enter the cgroup {cgroup}: {}; \
                 run ka as root where the hierarchy is mounted, or use ka attach --all --via bpf, or ka attach \
                 --lose-class",
                source.as_ref().map_or_else(|| "it is not mounted here".to_owned(), reason)
            ),

            Self::WorkerStart(source) => write!(f, "ka cannot start a worker process: {}", reason(source)),
            Self::WorkerDied => f.write_str(
                "ka's worker process ended before it answered (killed, or out of memory); try again",
            ),
            Self::ProcessEnded => f.write_str("it has ended"),
            Self::SocketBlocked => f.write_str("did not answer within 2 s (a program holds its lock)"),
            Self::UserExcluded { user, blocked } => write!(
                f,
                "{blocked} sockets of user {user} did not answer within 2 s: the user's other sockets are left alone"
            ),
            Self::SocketListBlocked => f.write_str(
                "the kernel did not list its sockets within 2 s, because a program holds a socket's lock: \
                 ka check PID and ka attach PID examine one process and name the socket",
            ),
            Self::NoSocketList => f.write_str(
                "this kernel does not list its TCP sockets (CONFIG_INET_TCP_DIAG: modprobe tcp_diag, as root)",
            ),
            Self::TooManyConnections(most) => write!(
                f,
                "more than {most} connections are open: ka does not search for the processes of the others"
            ),
            Self::NotRegularFile => f.write_str("it is not a regular file"),

            Self::LeftOpen => f.write_str(
                "close-wait: the peer has closed the connection, and the program has not closed its side",
            ),
            Self::NotEstablished => f.write_str("the connection is not established yet"),
            Self::PolicyHeld { is_own: true } => f.write_str(
                "the policy of ka run --via seccomp holds its settings: run ka ping outside of that command",
            ),
            Self::PolicyHeld { is_own: false } => f.write_str(
                "a policy in mode force holds its settings, so ka cannot make the kernel send a probe (ka cgroup ls \
                 shows the policies of cgroups)",
            ),
            Self::NoProbe => f.write_str(
                "the kernel sent no probe within the time: data waits until the peer opens its window, or the \
                 program used the socket all the time",
            ),
            Self::ProbedByAnother => f.write_str(
                "another process of ka probes it, or was killed while it did (see ka-ping(1), NOTES)",
            ),
            Self::Interrupted => f.write_str("a signal came before ka had a result"),
            Self::TooBusy => f.write_str("ka was stopped too often while it probed the connection; try again"),
            Self::AskedTooLittle { asked, count } => write!(
                f,
                "the peer left only {asked} of {count} segments unanswered, because data in flight suspends probes; \
                 try a longer --timeout"
            ),
            Self::MptcpNotDestroyed => {
                f.write_str("the kernel cannot end a Multipath TCP connection of another process")
            }
            Self::ConnectionNotFound => f.write_str("the kernel did not find the connection by its addresses"),
            Self::NoSocketDestroy => f.write_str(
                "this kernel cannot end connections of other processes (CONFIG_INET_DIAG_DESTROY, Linux 4.9 and later)",
            ),
            Self::NotNetAdmin => f.write_str(
                "needs CAP_NET_ADMIN in the user namespace that owns the network namespace of the socket (run ka as root)",
            ),

            Self::NoSuchProcess => f.write_str("there is no such process"),
            Self::Thread { leader } => write!(f, "it is a thread of process {leader}: use that PID"),
            Self::ProcessNotShown => f.write_str(
                "/proc does not show it: /proc hides other users' processes (hidepid), or is not mounted",
            ),
            Self::ProcessHidden => {
                write!(f, "/proc hides it and all processes of other users (hidepid): {INSTEAD}")
            }
            Self::ForeignProcess { user } => write!(f, "it belongs to user {user}: {INSTEAD}"),
            Self::PtraceScope(1) => write!(
                f,
                "kernel.yama.ptrace_scope is 1, so only its ancestors may inspect it: {INSTEAD}, or ptrace_scope 0"
            ),
            Self::PtraceScope(3) => f.write_str("kernel.yama.ptrace_scope is 3: not even root may inspect it"),
            Self::PtraceScope(scope) => write!(f, "kernel.yama.ptrace_scope is {scope}: {INSTEAD}"),
            Self::PtraceScopeOfAll(3) => {
                f.write_str("kernel.yama.ptrace_scope is 3: not even root may inspect a process")
            }
            Self::PtraceScopeOfAll(scope) => {
                write!(f, "kernel.yama.ptrace_scope is {scope}: {INSTEAD}, or ptrace_scope 0")
            }
            Self::NotDumpable => {
                write!(f, "it is not dumpable, or has capabilities that you lack: {INSTEAD}")
            }
            Self::RefusedToRoot => f.write_str(
                "the kernel refuses access in spite of CAP_SYS_PTRACE: it is in another user namespace, or a \
                 security module or seccomp filter (as in a container) forbids access",
            ),
            Self::NoPidfdGetfd => f.write_str("this kernel has no pidfd_getfd: Linux 5.6 and later have it"),
            Self::ThreadDescriptors { task } => {
                if let Some(task) = task {
                    write!(f, "task {task}: ")?;
                }
                f.write_str(
                    "this thread has its own descriptors, and only Linux 6.9 and later lets other processes reach them",
                )
            }
            Self::OverBudget => f.write_str(
                "its threads have more descriptors than ka reads in 2 s of processor time: \
                 ka has handled the sockets that it reached, and left the others alone",
            ),
            Self::TooManyOpenFiles => f.write_str("too many open files"),

            Self::NotNetworkNamespace => f.write_str("it is not a network namespace"),
            Self::Namespace { name, source } => write!(f, "network namespace {name}: {source}"),
            Self::Process { pid, name: None, source } => write!(f, "process {pid}: {source}"),
            Self::Process { pid, name: Some(name), source } => write!(f, "process {pid} ({name}): {source}"),
            Self::Socket { fd, source } if matches!(**source, Self::SocketBlocked) => {
                write!(f, "its socket fd {fd} {source}")
            }
            Self::Socket { fd, source } => write!(f, "its socket fd {fd}: {source}"),
            Self::Several(errors) => {
                for (number, error) in errors.iter().enumerate() {
                    let separator = if number > 0 { "; " } else { "" };
                    write!(f, "{separator}{error}")?;
                }
                Ok(())
            }
            Self::NoFilters(architecture) => {
                write!(f, "ka has no seccomp filters for {architecture}")
            }
            Self::Filter(error) => write!(f, "seccomp: {error}"),
            Self::ListenerInUse => f.write_str(
                "another program (a container runtime, for example) has a seccomp listener for this process, and the \
                 kernel allows only one",
            ),
            Self::Unsupervisable(source) => match source.raw_os_error() {
                Some(libc::ENOSYS) => f.write_str(
                    "this kernel has no seccomp filters, or no pidfd_getfd: Linux 5.6 and later have both",
                ),
                Some(libc::EINVAL) => f.write_str(
                    "this kernel has no seccomp listeners with CONTINUE: Linux 5.5 and later have them",
                ),
                Some(libc::EPERM | libc::EACCES) => f.write_str(
                    "seccomp or pidfd_getfd is not allowed here, as in Docker's containers without CAP_SYS_PTRACE",
                ),
                _ => write!(f, "ka cannot start a supervisor here: {}", reason(source)),
            },
            Self::KeepaliveHeld => f.write_str(
                "a policy keeps keepalive on, so that no connection stays idle: run ka without ka run, and outside of \
                 cgroups with a policy (ka cgroup ls)",
            ),
            Self::NoFittingAddress { family } => write!(f, "it has no {family} address"),
            Self::NotMeasureServer { message: None } => f.write_str(
                "no ka measure --serve answers there: start it on that machine, or measure without --from-server",
            ),
            Self::NotMeasureServer { message: Some(message) } => {
                write!(f, "its ka measure --serve is of another version: {message}")
            }
            Self::ConfNotOwnedByRoot => f.write_str(CONF_OWNER),
            Self::ConfTooLong => f.write_str(CONF_LENGTH),
        }
    }
}

/// For the pipe between ka and its workers. An error crosses it as text.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::Worker)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. }
            | Self::WorkerStart(source)
            | Self::Unsupervisable(source)
            | Self::ClassLost { source: Some(source), .. } => Some(source),
            Self::Verifier { cause, .. } => Some(&**cause),
            Self::Namespace { source, .. } | Self::Process { source, .. } | Self::Socket { source, .. } => {
                Some(source.as_ref())
            }
            Self::Filter(source) => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io { what: String::new(), source }
    }
}

/// Lets functions that return `io::Result` pass an [`Error`] on. The message stays the same. The errno is kept only for
/// an [`Error::Io`] with an empty `what`.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { what, source } if what.is_empty() => source,
            error => Self::other(error),
        }
    }
}
