//! Files whose paths come from other programs or users: programs, interpreters, libraries, namespaces.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::Error;
pub use crate::sys::file::{check_executable, has_capabilities, is_nosuid};

/// Opens a regular file for reading.
///
/// Other types are rejected before the open: opening a FIFO without a writer blocks forever, and opening a device may
/// change its state. The file may be replaced by a FIFO after the check, so `O_NONBLOCK` is set.
///
/// # Errors
///
/// The error of stat(2) or open(2), or the error of [`check_regular`].
pub fn open_regular(path: &Path) -> io::Result<File> {
    check_regular(&fs::metadata(path)?)?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Checks that the file is regular, as execve(2) does.
///
/// # Errors
///
/// [`io::ErrorKind::IsADirectory`], or [`Error::NotRegularFile`] in an [`io::ErrorKind::InvalidInput`].
pub fn check_regular(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else if metadata.is_file() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, Error::NotRegularFile))
    }
}
