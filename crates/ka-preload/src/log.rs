//! The log of KA_LOG: a line for each socket that was set, and for each call that was denied.
//!
//! The file is opened, appended to and closed for each line. So the shim occupies no descriptor between two calls,
//! and a program that closes all descriptors does not close the log.

use core::ffi::CStr;

use ka_core::{Config, Errno, Text};
use libc::c_int;

use crate::filter;
use crate::line::Line;
use crate::raw::{self, File};
use crate::shim::Shim;

/// Logs that the policy was set on a socket, or that the kernel rejected it.
#[cold]
pub(crate) fn set(shim: &Shim, fd: c_int, config: &Config, result: Result<(), ka_core::Error>) {
    let mut line = Line::new();
    begin(shim, &mut line, fd);
    match result {
        Ok(()) => line.text(b"set ").text(Text::from(config).as_bytes()),
        Err(error) => line.text(b"could not be set: errno ").number(error.errno().0),
    };
    append(shim, &mut line);
}

/// Logs that a call of the program was ignored, or was made with another value.
#[cold]
pub(crate) fn denied(shim: &Shim, fd: c_int, option: &[u8], wanted: c_int) {
    let mut line = Line::new();
    begin(shim, &mut line, fd);
    line.text(b"denied ").text(option).text(b"=").number(wanted);
    append(shim, &mut line);
}

fn begin(shim: &Shim, line: &mut Line, fd: c_int) {
    line.foreign(shim.program).text(b"[").number(raw::getpid());
    line.text(b"] fd ").number(fd).text(b": ");
}

fn append(shim: &Shim, line: &mut Line) {
    // The program's filter may kill the process for opening a file.
    if filter::is_installed() {
        return;
    }
    if let Some(path) = shim.log
        && let Ok(file) = open(path)
    {
        raw::write(file.fd(), line.end());
    }
}

/// Opens the log, and creates it if it is missing.
pub(crate) fn open(path: &CStr) -> Result<File, Errno> {
    let flags = libc::O_WRONLY
        | libc::O_APPEND
        | libc::O_CREAT
        | libc::O_NOFOLLOW
        | libc::O_NONBLOCK
        | libc::O_NOCTTY;
    File::open(path, flags, 0o600)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;
    use std::process::Command;

    use ka_core::{Errno, Error, SockOpt};

    use super::{denied, set};
    use crate::shim::tests::{POLICY, logging};

    /// Creates a folder for one test.
    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ka-preload-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn each_event_appends_a_line_to_the_log() {
        let folder = scratch("lines");
        let path = folder.join("log");
        let shim = logging(path.as_os_str().as_bytes(), b"a\x1b[31m\nb");
        set(&shim, 7, &POLICY, Ok(()));
        let rejected = Error::System { option: SockOpt::KeepAlive, errno: Errno(libc::EPERM) };
        set(&shim, 8, &POLICY, Err(rejected));
        denied(&shim, -1, b"SO_KEEPALIVE", 0);
        let who = format!("a?[31m?b[{}] fd ", std::process::id());
        let expected = format!(
            "{who}7: set idle=60,intvl=10,cnt=6\n{who}8: could not be set: errno 1\n{who}-1: denied SO_KEEPALIVE=0\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_log_does_not_follow_symlinks_or_block_on_fifos() {
        let folder = scratch("links");
        let (link, target, fifo) = (folder.join("link"), folder.join("target"), folder.join("fifo"));
        symlink(&target, &link).unwrap();
        denied(&logging(link.as_os_str().as_bytes(), b"x"), 3, b"x", 0);
        assert!(!target.exists());
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        denied(&logging(fifo.as_os_str().as_bytes(), b"x"), 3, b"x", 0);
        fs::remove_dir_all(folder).unwrap();
    }
}
