//! /etc/ka.conf, and the settings that a process takes from this file and from its KA_ variables. ka-preload(7)

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use ka_core::bytes::cut;
use ka_core::{Config, Retransmission};
use ka_policy::{CONF, CONF_ROOM, Mode, Policy, RuleBuffer, Source, Variables};

use crate::{Error, Result};

/// Returns the text of /etc/ka.conf. It is empty if there is no such file.
///
/// # Errors
/// Like the shim, ka trusts only root's file. [`Error::ConfNotOwnedByRoot`]: it is not a regular file, does not belong
/// to root, is writable by other users, or cannot be opened or read. [`Error::ConfTooLong`]: it has [`CONF_ROOM`] bytes
/// or more.
pub fn read() -> Result<Vec<u8>> {
    let path = OsStr::from_bytes(CONF.to_bytes());
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut text = Vec::new();
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(text),
        Err(_) => return Err(Error::ConfNotOwnedByRoot),
    };
    let is_roots_only = file
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0);
    if !is_roots_only {
        return Err(Error::ConfNotOwnedByRoot);
    }
    file.take(CONF_ROOM as u64).read_to_end(&mut text).map_err(|_| Error::ConfNotOwnedByRoot)?;
    if text.len() < CONF_ROOM { Ok(text) } else { Err(Error::ConfTooLong) }
}

/// The settings that the shim or the supervisor applies to a process.
pub struct ProcessSettings {
    /// The policy for sockets that no rule selects.
    pub config: Config,
    /// The value of KA_MODE.
    pub mode: Mode,
    /// The value of KA_RULES.
    rules: Vec<u8>,
    /// The value of KA_SKIP: the names of programs that the shim leaves alone.
    pub skip: Vec<u8>,
}

impl ProcessSettings {
    /// Returns the settings from these KA_ variables of a process and from /etc/ka.conf. NULs separate the variables.
    /// Invalid values are ignored, and so is a file that [`read`] rejects.
    #[must_use]
    pub fn from_variables(entries: &[u8]) -> Self {
        let file = read().unwrap_or_default();
        let mut environment = Source::default();
        for entry in entries.split(|byte| *byte == 0) {
            let (name, value) = cut(entry, b'=');
            environment.keep(name, value.unwrap_or_default());
        }
        let Variables { config, mode, rules, skip, .. } = variables(environment, &file);
        Self { config, mode, rules: rules.to_vec(), skip: skip.to_vec() }
    }

    /// Returns the policy. `room` is the memory for its rules. Invalid rules are left out, as in the shim and the
    /// supervisor.
    pub fn policy<'r>(&self, room: &'r mut RuleBuffer) -> Policy<'r> {
        let Self { config, mode, ref rules, .. } = *self;
        Variables { config, mode, rules, ..Variables::default() }.policy(
            room,
            || Retransmission::read().retries,
            |_, _| {},
        )
    }
}

/// Returns the settings from an environment and from the text of /etc/ka.conf. The environment overrides the file.
/// Invalid values are ignored.
#[must_use]
pub fn variables<'a>(environment: Source<'a>, file: &'a [u8]) -> Variables<'a> {
    let mut conf = Source::default();
    conf.keep_lines(file, |_| {});
    let mut variables = Variables::default();
    variables.take_all(&[environment, conf], |_, _, _| {});
    variables
}
