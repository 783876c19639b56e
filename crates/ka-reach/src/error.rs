//! The errors of this crate.

use std::error;
use std::fmt;
use std::io;

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
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io { what: String::new(), source }
    }
}
