//! The environment of a program that is about to start.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::start;

/// The entries of an environment, in their order. Entries without `=` are kept.
pub(crate) struct Environment(pub(crate) Vec<OsString>);

impl Environment {
    /// Returns the environment of this process.
    pub(crate) fn of_this_process() -> Self {
        Self(start::environment())
    }

    pub(crate) fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.0.push(OsString::from_vec([name, b"=", value].concat()));
    }

    fn remove(&mut self, name: &[u8]) {
        self.0.retain(|entry| value_of(entry, name).is_none());
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find_map(|entry| value_of(entry, name))
    }

    /// Changes the variables that systemd addresses to the PID `from`, so that they name this process.
    /// sd_listen_fds(3), sd_watchdog_enabled(3)
    pub(crate) fn readdress_systemd_variables(&mut self, from: i32) {
        let (from, to) = (from.to_string(), std::process::id().to_string());
        for name in [&b"LISTEN_PID"[..], b"WATCHDOG_PID", b"SYSTEMD_EXEC_PID"] {
            if self.get(name) == Some(from.as_bytes()) {
                self.set(name, to.as_bytes());
                if name == b"LISTEN_PID" {
                    // Newer versions of systemd also name the process by the inode of its pidfd.
                    self.remove(b"LISTEN_PIDFDID");
                }
            }
        }
    }
}

/// Returns the value of an entry, if it has this name.
fn value_of<'a>(entry: &'a OsStr, name: &[u8]) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name)?.strip_prefix(b"=")
}
