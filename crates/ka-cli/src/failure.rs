//! Messages on standard error, and the failure of a command: its message, and the exit status.

use std::fmt;
use std::io::{self, Write as _};

use ka_reach::escape::visible_lines;
use ka_reach::reason::reason;

/// The exit status if the command found sockets without keepalive, or could not handle all sockets.
pub(crate) const FOUND: i32 = 1;
/// The exit status if the arguments are wrong, or the command could not do its work at all.
pub(crate) const USAGE: i32 = 2;
/// The exit status if `ka ls --off` found no socket without keepalive, but could not read all sockets.
pub(crate) const UNKNOWN: i32 = 3;
/// The exit status if `ka run` could not start the program under the policy. env(1), nohup(1) and timeout(1) use this
/// status and the next two in the same way.
pub(crate) const RUN_FAILED: i32 = ka_reach::seccomp::FAILED;
/// The exit status if `ka run` found the program, but could not execute it.
pub(crate) const NOT_EXECUTABLE: i32 = 126;
/// The exit status if `ka run` did not find the program.
pub(crate) const NOT_FOUND: i32 = 127;

/// Prints `ka: MESSAGE` on standard error. The message may contain names with any characters, so control characters
/// except newlines are escaped. Errors are ignored, because they could not be reported.
pub(crate) fn warn(message: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "ka: {}", visible_lines(&message.to_string()));
}

/// The failure of a command.
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

/// An output error, for example a full disk.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(format_args!("standard output: {}", reason(&error)))
    }
}

/// The result of a command: its exit status, or a failure.
pub(crate) type CommandResult = Result<i32, Failure>;

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}
