//! KA_LOG: a line for each socket that was set, and for each call that was denied.
//!
//! The file is opened, appended to and closed for each line, so that no descriptor of the program's numbers is in
//! use between two calls, and one that closes all of them closes nothing of ours.

use ka_core::{Config, Text};
use libc::c_int;

use crate::line::Line;
use crate::raw::{self, File};
use crate::settings::Settings;

/// A socket was given the policy, or the kernel refused.
#[cold]
pub(crate) fn set(settings: &Settings, fd: c_int, config: &Config, result: Result<(), ka_core::Error>) {
    let mut line = Line::new();
    begin(settings, &mut line, fd);
    match result {
        Ok(()) => line.text(b"set ").text(Text::from(config).as_bytes()),
        Err(error) => line.text(b"could not be set: errno ").number(error.errno().0.into()),
    };
    append(settings, &mut line);
}

/// A call of the program's was answered without the kernel, or with another value.
#[cold]
pub(crate) fn denied(settings: &Settings, fd: c_int, option: &[u8], wanted: c_int) {
    let mut line = Line::new();
    begin(settings, &mut line, fd);
    line.text(b"denied ").text(option).text(b"=").number(wanted.into());
    append(settings, &mut line);
}

fn begin(settings: &Settings, line: &mut Line, fd: c_int) {
    line.foreign(settings.program.as_bytes()).text(b"[").number(i64::try_from(raw::getpid()).unwrap_or(0));
    line.text(b"] fd ").number(fd.into()).text(b": ");
}

fn append(settings: &Settings, line: &mut Line) {
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    if let Some(path) = settings.log.as_c_str()
        && let Ok(file) = File::open(path, flags, 0o600)
    {
        raw::write(file.fd(), line.end());
    }
}
