//! The requirements of BPF programs: capabilities, mounted filesystems, and features of the kernel.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::btf::{NAMES, Types};
use super::sys;
use crate::error::{Error, Result};
use crate::process::Status;

/// The usual mount point of the bpf filesystem. systemd mounts it there.
pub(crate) const BPF_FOLDER: &str = "/sys/fs/bpf";

/// The file in which the kernel describes its types (BTF).
pub(super) const TYPES: &str = "/sys/kernel/btf/vmlinux";

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Reads the types of the running kernel. A kernel that was built without `CONFIG_DEBUG_INFO_BTF` has no such file.
pub(super) fn kernel_types() -> Result<Types<'static>> {
    // The file does not change while the kernel runs, so its contents are kept until this process ends. It can be
    // mapped since Linux 6.16.
    let bytes = match sys::map(&File::open(TYPES)?) {
        Ok(bytes) => bytes,
        Err(_) => fs::read(TYPES)?.leak(),
    };
    Types::parse(bytes, &NAMES).ok_or(Error::UnexpectedBtf { path: TYPES })
}

/// A capability: its number and name. capabilities(7)
#[derive(Clone, Copy)]
pub struct Capability(u32, &'static str);

const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
const PERFMON: Capability = Capability(38, "CAP_PERFMON");
const BPF: Capability = Capability(39, "CAP_BPF");
/// The number of CAP_SYS_ADMIN. It implies CAP_PERFMON and CAP_BPF, which were split from it in Linux 5.8.
const SYS_ADMIN: u32 = 21;

/// The capabilities that are needed to attach programs to a cgroup.
pub const FOR_CGROUPS: [Capability; 2] = [BPF, NET_ADMIN];
/// The capabilities that are needed to run the TCP iterator and to set sockets with it.
pub const FOR_SOCKETS: [Capability; 3] = [BPF, PERFMON, NET_ADMIN];

/// Checks that this process has these capabilities. If /proc cannot be read, it is assumed to have them.
///
/// # Errors
///
/// [`Error::MissingCapabilities`]
pub fn check_capabilities(capabilities: &[Capability]) -> Result<()> {
    let own = i32::try_from(std::process::id()).ok().and_then(|pid| Status::read(pid).ok());
    let Some(own) = own else { return Ok(()) };
    let has = |Capability(number, _): &Capability| {
        own.has_capability(*number) || (*number > SYS_ADMIN && own.has_capability(SYS_ADMIN))
    };
    let missing: Vec<_> =
        capabilities.iter().filter(|capability| !has(capability)).map(|Capability(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::MissingCapabilities(missing)) }
}

/// Permanently drops all capabilities except the one for bpf(2), which is needed if the sysctl
/// unprivileged_bpf_disabled is on.
///
/// # Errors
///
/// The error of capset(2). Then the process keeps its capabilities.
pub fn keep_only_bpf() -> io::Result<()> {
    let last =
        fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let Capability(bpf, _) = BPF;
    // Linux before 5.8 has no CAP_BPF and checks CAP_SYS_ADMIN.
    let keep = if last.is_some_and(|last: u32| last < bpf) { SYS_ADMIN } else { bpf };
    crate::sys::keep_capabilities(&[keep])
}

/// Returns the first two numbers of the running kernel's release. Distributions may have backported newer features.
#[must_use]
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        text.split(|letter: char| !letter.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Returns the mount point of the cgroup v2 hierarchy.
///
/// # Errors
///
/// [`Error::NoCgroups`]
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let found = mounts.split(|byte| *byte == b'\n').filter_map(cgroup_mount);
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
pub fn cgroup_mount(line: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (shown, place) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| (shown.to_vec(), OsString::from_vec(unescaped(place)).into()))
}

/// Parses a line of mountinfo. If it is a mount of the cgroup v1 hierarchy with these controllers, returns the mounted
/// part of the hierarchy and the mount point. `controllers` has the form of /proc/PID/cgroup: names with commas.
pub(crate) fn cgroup_v1_mount(line: &[u8], controllers: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
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

/// Returns the folder of this process's cgroup, or `None` for the reasons of [`cgroup_of`].
#[must_use]
pub fn own_cgroup() -> Option<PathBuf> {
    cgroup_of("self")
}

/// Returns the folder of a process's cgroup. `pid` is a PID or `self`. Returns `None` if cgroup v2 is not mounted, if
/// the process has ended, or if it is in no cgroup of version 2.
#[must_use]
pub fn cgroup_of(pid: &str) -> Option<PathBuf> {
    let root = cgroup_root().ok()?;
    let text = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(if own.is_empty() { root } else { root.join(OsString::from_vec(own.to_vec())) })
}

/// Returns whether an open folder is a cgroup's.
pub(crate) fn is_cgroup(folder: &File) -> bool {
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    sys::filesystem(Path::new(&path)).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC)
}

/// Returns whether a path is a cgroup's folder.
#[must_use]
pub fn is_cgroup_path(path: &Path) -> bool {
    path.is_dir() && sys::filesystem(path).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC)
}

/// Returns whether the kernel describes its types (BTF).
#[must_use]
pub fn has_types() -> bool {
    Path::new(TYPES).exists()
}

/// Checks that a bpf filesystem is mounted at its usual place.
///
/// # Errors
///
/// [`Error::NoBpffs`]
pub fn check_bpffs() -> Result<()> {
    let is_bpffs = sys::filesystem(Path::new(BPF_FOLDER)).is_ok_and(|kind| kind == BPF_FS_MAGIC);
    if is_bpffs { Ok(()) } else { Err(Error::NoBpffs { path: BPF_FOLDER }) }
}

#[cfg(test)]
mod tests {
    use super::{cgroup_mount, cgroup_v1_mount, release};

    #[test]
    fn mounts_of_cgroup_v2_are_parsed() {
        let line = b"26 24 0:23 /a /sys/fs/c\\040g rw,nosuid shared:4 master:1 - cgroup2 none rw";
        assert_eq!(cgroup_mount(line), Some((b"/a".to_vec(), "/sys/fs/c g".into())));
        assert_eq!(cgroup_mount(b"26 24 0:23 / /sys rw - sysfs cgroup2 rw"), None);
        assert_eq!(cgroup_mount(b""), None);
        let other = b"26 24 0:23 / /\\+12\\400 rw - cgroup2 none rw";
        assert_eq!(cgroup_mount(other), Some((b"/".to_vec(), "/\\+12\\400".into())));
    }

    #[test]
    fn mounts_of_cgroup_v1_are_parsed() {
        let line = b"26 24 0:23 / /sys/fs/cgroup/net rw shared:4 - cgroup none rw,net_cls,net_prio";
        let found = cgroup_v1_mount(line, b"net_cls,net_prio");
        assert_eq!(found, Some((b"/".to_vec(), "/sys/fs/cgroup/net".into())));
        assert!(cgroup_v1_mount(line, b"net_cls").is_some());
        assert_eq!(cgroup_v1_mount(line, b"cpu"), None);
        assert_eq!(cgroup_v1_mount(b"26 24 0:23 / /x rw - cgroup2 none rw,net_cls", b"net_cls"), None);
    }

    #[test]
    fn the_kernel_s_release_is_parsed() {
        assert!(release() > (4, 0), "{:?}", release());
    }
}
