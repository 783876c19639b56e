//! Mounts of the cgroup hierarchies, and the folders of processes below the mount of version 2.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::file::filesystem;

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Returns the mount point of the cgroup v2 hierarchy.
///
/// # Errors
///
/// [`Error::NoCgroups`]
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let found = mounts.split(|byte| *byte == b'\n').filter_map(parse_v2);
    // Another filesystem may cover a mount point, so each path is checked. Of several mounts, the one with the shortest
    // root shows the largest part of the hierarchy.
    found
        .filter(|(_, place)| is_cgroup_path(place))
        .min_by_key(|(shown, _)| shown.len())
        .map(|(_, place)| place)
        .ok_or(Error::NoCgroups)
}

/// Parses a line of mountinfo. If it is a mount of cgroup v2, returns the mounted part of the hierarchy and the mount
/// point. proc_pid_mountinfo(5)
#[must_use]
pub fn parse_v2(line: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (shown, place) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| (shown.to_vec(), OsString::from_vec(unescaped(place)).into()))
}

/// Parses a line of mountinfo. If it is a mount of the cgroup v1 hierarchy with these controllers, returns the mounted
/// part of the hierarchy and the mount point. `controllers` has the form of /proc/PID/cgroup: names with commas.
pub(crate) fn parse_v1(line: &[u8], controllers: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (shown, place) = (fields.nth(3)?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, options) = (rest.next()?, rest.nth(1)?);
    let is_there = |controller| options.split(|byte| *byte == b',').any(|option| option == controller);
    (kind == b"cgroup" && controllers.split(|byte| *byte == b',').all(is_there))
        .then(|| (unescaped(shown), OsString::from_vec(unescaped(place)).into()))
}

/// Decodes the escapes of mountinfo. The kernel writes a blank, for example, as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'\\').then(|| behind.first_chunk::<3>()).flatten();
        let code = code.filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { behind.get(3..).unwrap_or_default() } else { behind };
    }
    bytes
}

/// Returns the folder of a process's cgroup. `pid` is a PID or `self`.
///
/// # Errors
///
/// [`Error::NoCgroups`], [`Error::CgroupV1`], or the process has ended.
pub fn folder_of(pid: impl Display) -> Result<PathBuf> {
    let root = mount_point()?;
    let text = fs::read(format!("/proc/{pid}/cgroup"))
        .map_err(|error| Error::io("/proc does not say which cgroup it is in", error))?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let below = lines.find_map(|line| line.strip_prefix(b"0::/")).ok_or(Error::CgroupV1)?;
    Ok(if below.is_empty() { root } else { root.join(OsString::from_vec(below.to_vec())) })
}

/// Returns whether an open folder is a cgroup's.
pub(super) fn is_cgroup(folder: &File) -> bool {
    is_cgroup_path(format!("/proc/self/fd/{}", folder.as_raw_fd()).as_ref())
}

/// Returns whether a path is a cgroup's folder.
#[must_use]
pub fn is_cgroup_path(path: &Path) -> bool {
    path.is_dir() && filesystem(path).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::{parse_v1, parse_v2};

    #[test]
    fn mounts_of_cgroup_v2_are_parsed() {
        let line = b"26 24 0:23 /a /sys/fs/c\\040g rw,nosuid shared:4 master:1 - cgroup2 none rw";
        assert_eq!(parse_v2(line), Some((b"/a".to_vec(), "/sys/fs/c g".into())));
        assert_eq!(parse_v2(b"26 24 0:23 / /sys rw - sysfs cgroup2 rw"), None);
        assert_eq!(parse_v2(b""), None);
        let other = b"26 24 0:23 / /\\+12\\400 rw - cgroup2 none rw";
        assert_eq!(parse_v2(other), Some((b"/".to_vec(), "/\\+12\\400".into())));
    }

    #[test]
    fn mounts_of_cgroup_v1_are_parsed() {
        let line = b"26 24 0:23 / /sys/fs/cgroup/net rw shared:4 - cgroup none rw,net_cls,net_prio";
        let found = parse_v1(line, b"net_cls,net_prio");
        assert_eq!(found, Some((b"/".to_vec(), "/sys/fs/cgroup/net".into())));
        assert!(parse_v1(line, b"net_cls").is_some());
        assert_eq!(parse_v1(line, b"cpu"), None);
        assert_eq!(parse_v1(b"26 24 0:23 / /x rw - cgroup2 none rw,net_cls", b"net_cls"), None);
    }
}
