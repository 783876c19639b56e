//! Lists open folders, and opens and reads their entries.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use libc::c_int;

use super::{c_path, check, owned};

/// Returns the names in an open folder that are numbers, such as the PIDs in /proc.
pub(crate) fn numbers(folder: BorrowedFd<'_>) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    entries(folder, |entries| found.extend(numbers_in(entries)))?;
    Ok(found)
}

/// Returns the names of the folders in an open folder, without "." and "..".
pub(crate) fn folders(folder: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut found = Vec::new();
    entries(folder, |entries| {
        let folders = names_in(entries).filter(|(kind, name)| {
            // Some filesystems do not report the type. The caller opens the entry, which fails if it is not a folder.
            [libc::DT_DIR, libc::DT_UNKNOWN].contains(kind) && ![&b"."[..], b".."].contains(name)
        });
        found.extend(folders.map(|(_, name)| OsStr::from_bytes(name).to_owned()));
    })?;
    Ok(found)
}

/// Opens an entry of an open folder for reading. Does not follow a symbolic link, but fails. openat(2)
pub(crate) fn open_at(folder: BorrowedFd<'_>, name: &OsStr, flags: c_int) -> io::Result<File> {
    let name = c_path(name.as_ref())?;
    let flags = flags | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` is a C string, which lives until the call returns.
    owned(unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) }.into()).map(File::from)
}

/// Lists an open folder with getdents64(2), and passes each part of the output to `each`.
fn entries(folder: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        // SAFETY: `buffer` is valid during the call, and the kernel writes at most its length.
        let size = check(unsafe {
            libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        })?;
        let entries = buffer.get(..usize::try_from(size).unwrap_or(0)).unwrap_or_default();
        if entries.is_empty() {
            return Ok(());
        }
        each(entries);
    }
}

/// Returns the names in the output of getdents64(2) that are numbers.
pub fn numbers_in(entries: &[u8]) -> impl Iterator<Item = i32> {
    names_in(entries).filter_map(|(_, digits)| std::str::from_utf8(digits).ok()?.parse().ok())
}

/// Returns the type and the name of each entry in the output of getdents64(2).
fn names_in(entries: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    /// Offsets in `struct linux_dirent64`: inode, offset, length of the entry, type, then the name.
    const LENGTH: usize = 16;
    const KIND: usize = 18;
    const NAME: usize = 19;
    let mut rest = entries;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.get(LENGTH..)?.first_chunk()?));
        let kind = *rest.get(KIND)?;
        let name = rest.get(NAME..length).unwrap_or_default();
        rest = rest.get(length.max(NAME)..).unwrap_or_default();
        Some((kind, name.split(|byte| *byte == 0).next()?))
    })
}

/// Reads a symbolic link in an open folder. The link's name is a number. The kernel truncates a target that is longer
/// than the buffer. readlinkat(2)
pub(crate) fn read_link<'a>(
    folder: BorrowedFd<'_>,
    name: i32,
    buffer: &'a mut [u8; 64],
) -> io::Result<&'a [u8]> {
    let mut text = [0_u8; 12];
    let digits = digits(name.unsigned_abs(), &mut text);
    // SAFETY: `digits` ends with a NUL; the kernel writes at most as many bytes as the buffer has.
    let size = check(unsafe {
        libc::readlinkat(folder.as_raw_fd(), digits.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len())
    })?;
    Ok(buffer.get(..usize::try_from(size).unwrap_or(0)).unwrap_or_default())
}

/// Formats a number with a NUL at the end. ka calls this for each descriptor of the machine, so it allocates nothing.
fn digits(mut value: u32, text: &mut [u8; 12]) -> &[u8] {
    let mut start = text.len() - 1;
    loop {
        start -= 1;
        if let Some(slot) = text.get_mut(start) {
            *slot = b'0' + (value % 10) as u8;
        }
        value /= 10;
        if value == 0 || start == 0 {
            return text.get(start..).unwrap_or_default();
        }
    }
}
