//! The errors of this crate.

use std::error;
use std::fmt;
use std::io;

use crate::text::reason;

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
            Self::Worker(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, source } if what.is_empty() => f.write_str(&reason(source)),
            Self::Io { what, source } => write!(f, "{what}: {}", reason(source)),
            Self::Worker(message) => f.write_str(message),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Worker(_) => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io { what: String::new(), source }
    }
}
