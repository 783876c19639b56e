//! Why a command could not do what it was asked, and the status that the program then ends with.

use std::fmt;
use std::io;

use ka_reach::reason::reason;

/// Something was found, or was not done: sockets without keepalive, sockets that could not be set.
pub(crate) const FOUND: i32 = 1;
/// The command was used wrongly, or could not do its work at all.
pub(crate) const USAGE: i32 = 2;
/// `ka ls --off` found no socket without keepalive, but could not read all sockets.
pub(crate) const UNKNOWN: i32 = 3;
/// `ka run` could not start the program under the policy. The three are those of env(1), nohup(1) and timeout(1).
pub(crate) const OUR_OWN: i32 = ka_reach::seccomp::FAILED;
/// `ka run`: the program is there, and cannot be executed.
pub(crate) const NOT_EXECUTABLE: i32 = 126;
/// `ka run`: there is no such program.
pub(crate) const NOT_FOUND: i32 = 127;

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: i32,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { status: USAGE, message: message.to_string() }
    }

    pub(crate) const fn with_status(mut self, status: i32) -> Self {
        self.status = status;
        self
    }
}

/// Output that could not be written, as to a full disk.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(format_args!("standard output: {}", reason(&error)))
    }
}

/// How a command ends: the status of the program.
pub(crate) type Outcome = Result<i32, Failure>;

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}
