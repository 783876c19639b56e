//! /etc/ka.conf, and the settings that a running program has from it and from its environment.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use ka_core::Config;
use ka_core::bytes::cut;
use ka_policy::{CONF, CONF_LENGTH, CONF_OWNER, CONF_ROOM, Mode, Policy, RuleBuffer, Source, Variables};

/// Returns the text of /etc/ka.conf. It is empty if there is no such file.
///
/// # Errors
/// A description of a valid file: as the shim, ka reads the file only if it is a regular file of root's that nobody else
/// can write, and not too long.
pub fn text() -> Result<Vec<u8>, &'static str> {
    let path = OsStr::from_bytes(CONF.to_bytes());
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut text = Vec::new();
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(text),
        Err(_) => return Err(CONF_OWNER),
    };
    let is_roots_alone = file
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0);
    if !is_roots_alone {
        return Err(CONF_OWNER);
    }
    let _ = file.take(CONF_ROOM as u64).read_to_end(&mut text);
    if text.len() < CONF_ROOM { Ok(text) } else { Err(CONF_LENGTH) }
}

/// The settings that the shim or the supervisor of a process follows.
pub struct Given {
    pub config: Config,
    pub mode: Mode,
    /// KA_RULES
    rules: Vec<u8>,
    /// KA_SKIP
    pub skip: Vec<u8>,
}

impl Given {
    /// Returns the policy. `room` is for its rules. Wrong rules are left out, as the shim and the supervisor do.
    pub fn policy<'r>(&self, room: &'r mut RuleBuffer) -> Policy<'r> {
        let Self { config, mode, ref rules, .. } = *self;
        Variables { config, mode, rules, ..Variables::default() }.policy(room, |_, _| {})
    }
}

/// Returns the settings that the shim or the supervisor follows in a process with these KA_ variables. NULs separate the
/// variables.
pub fn given(settings: &[u8]) -> Given {
    let file = text().unwrap_or_default();
    let mut environment = Source::default();
    for entry in settings.split(|byte| *byte == 0) {
        let (name, value) = cut(entry, b'=');
        environment.keep(name, value.unwrap_or_default());
    }
    let Variables { config, mode, rules, skip, .. } = variables(environment, &file);
    Given { config, mode, rules: rules.to_vec(), skip: skip.to_vec() }
}

/// Returns the settings of an environment and of the text of /etc/ka.conf. Wrong values are ignored.
pub fn variables<'a>(environment: Source<'a>, file: &'a [u8]) -> Variables<'a> {
    let mut conf = Source::default();
    conf.keep_lines(file, |_| {});
    let mut variables = Variables::default();
    variables.take_all(&[environment, conf], |_, _, _| {});
    variables
}
