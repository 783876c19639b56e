//! The errors of this crate.

use std::error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use ka_core::Settings;

use crate::text::{brief_settings, reason};
use crate::worker::{BLOCKED, excluded};

/// The result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why sockets could not be found or set.
///
/// `Display` gives a message for people, which names what failed, the reason, and what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a file operation failed.
    Io {
        /// The file, the process or the call that failed. Empty if the reason is clear without it.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A worker process reported this error. Errors cross a pipe as text.
    Worker(String),
    /// The memory maps of a process could not be read.
    Maps(Box<Error>),
    /// The kernel did not return the memory maps of a process in time.
    MapsBlocked,
    /// The kernel does not let ka examine a process. The text gives the reason and a remedy.
    Process(String),
    /// The process has ended, and its parent has not waited for it.
    Zombie,
    /// /proc has no processes.
    NoProcesses,
    /// A program holds the lock of this socket, so that a call on it blocks. ka has not changed the socket.
    LeftLocked,
    /// Too many sockets of this user were locked. ka has not changed the rest of the user's sockets.
    UserExcluded(u32),
    /// The settings that a socket had before are outside the range that programs can set.
    NotRestorable(Settings),
    /// The kernel's tcp iterator stopped at a locked socket. These later sockets belong to no process, so that they
    /// cannot be set in another way.
    IteratorStopped {
        /// The number of sockets.
        left: usize,
    },
    /// The sockets were set, but cannot be listed.
    Unlisted(Box<Error>),
    /// This process lacks these capabilities. capabilities(7)
    MissingCapabilities(Vec<&'static str>),
    /// The running kernel is too old, or was built without this feature.
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
    /// A program was attached to the cgroup, or to one above it, without `BPF_F_ALLOW_MULTI`.
    ExclusiveProgram,
    /// The cgroup has as many programs as the kernel allows (`BPF_CGROUP_MAX_PROGS`).
    TooManyPrograms,
    /// The kernel's types lack a member that ka's iterator program reads.
    UnexpectedTypes,
    /// The kernel's BTF file cannot be parsed.
    UnexpectedBtf {
        /// The file.
        path: &'static str,
    },
    /// The policy has `user_timeout=auto` without the values that it is computed from.
    IncompleteUserTimeout,
    /// The kernel rejected a socket option of a socket, with this errno.
    SetSockOpt(i32),
    /// The socket's cgroup is nested too deeply to determine whether the socket is selected.
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
    /// A cgroup that ka left is not the parent of the one below it any more.
    ParentChanged,
    /// Other processes made cgroups during the whole walk, which stopped after this many.
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
        /// Why ka cannot enter the cgroup. `None` if the hierarchy is not mounted.
        source: Option<io::Error>,
    },
}

impl Error {
    /// An error of a system call or a file operation. `what` names the file, the process or the call.
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// The kernel's answer, if this error has one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, source } if what.is_empty() => f.write_str(&reason(source)),
            Self::Io { what, source } => write!(f, "{what}: {}", reason(source)),
            Self::Worker(message) => f.write_str(message),
            Self::Maps(error) => write!(f, "its memory maps: {error}"),
            Self::Process(reason) => f.write_str(reason),
            Self::Zombie => f.write_str("it has ended (a zombie), and has no sockets"),
            Self::NoProcesses => f.write_str("/proc shows no process: it is not mounted here"),
            Self::LeftLocked => write!(f, "{BLOCKED}; left as it is"),
            Self::UserExcluded(user) => f.write_str(&excluded(*user)),
            Self::NotRestorable(settings) => {
                write!(f, "a socket had {}, which no program can set", brief_settings(settings))
            }
            Self::IteratorStopped { left } => write!(
                f,
                "--via bpf stopped at a socket whose lock a program holds: {left} sockets that no process has (not \
                 accepted yet, or already closed) were left as they are; try again when that program has ended"
            ),
            Self::Unlisted(error) => write!(f, "the sockets that were set cannot be listed: {error}"),
            Self::MapsBlocked => f.write_str("its memory maps did not answer within 2 s"),
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
                "another program is attached to this cgroup or to one above it, and lets none be beside it \
                 (no BPF_F_ALLOW_MULTI): bpftool cgroup tree shows it",
            ),
            Self::TooManyPrograms => {
                f.write_str("64 programs are attached to this cgroup already, and there can be no more")
            }
            Self::UnexpectedTypes => f.write_str(
                "the kernel's types are not as expected: a socket's cgroup or port is not found in them",
            ),
            Self::UnexpectedBtf { path } => write!(f, "{path} is not as expected"),
            Self::IncompleteUserTimeout => {
                f.write_str("user_timeout=auto needs idle, intvl and cnt in the policy here")
            }
            Self::SetSockOpt(errno) => write!(f, "setsockopt: {}", io::Error::from_raw_os_error(*errno)),
            Self::CgroupTooDeep => {
                f.write_str("they are in cgroups too deep to tell whether these are below this one")
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
                write!(f, "cgroups are made as fast as ka visits them: ka stopped after {count}")
            }
            Self::ForeignPins { path, owner } => write!(
                f,
                "{}: user {owner} made it, or others may write to it, so it is not used: remove it, and ka makes one of \
                 its own",
                path.display()
            ),
            Self::ClassLost { controllers, cgroup, source } => write!(
                f,
                "its sockets have a class of {controllers} (cgroup {cgroup}), which they would lose, because ka cannot \
                 enter that cgroup: {}; run ka as root where the hierarchy is mounted, or use ka attach --all --via bpf, \
                 or ka attach --lose-class",
                source.as_ref().map_or_else(|| "it is not mounted here".to_owned(), reason)
            ),
        }
    }
}

/// For the pipe between ka and its workers, which errors cross as text.
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
            Self::Io { source, .. } | Self::ClassLost { source: Some(source), .. } => Some(source),
            Self::Verifier { cause, .. } => Some(&**cause),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io { what: String::new(), source }
    }
}
