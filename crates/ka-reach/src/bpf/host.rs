//! What this machine has of what programs for the kernel need: privileges, filesystems, a kernel that is new enough.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::btf::{NAMES, Types};
use super::sys;
use crate::process::Status;

/// Where the bpf filesystem is mounted, by custom and by systemd.
pub const BPF_FOLDER: &str = "/sys/fs/bpf";

/// The kernel's types, as it describes them itself.
pub(super) const TYPES: &str = "/sys/kernel/btf/vmlinux";

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The types of the kernel that runs. One that was built without `CONFIG_DEBUG_INFO_BTF` has none: `NotFound`.
pub(super) fn kernel_types() -> io::Result<Types<'static>> {
    // The file is the kernel's for as long as it runs, and ours for as long as this process does. Linux 6.16 maps it.
    let bytes = match sys::map(&File::open(TYPES)?) {
        Ok(bytes) => bytes,
        Err(_) => fs::read(TYPES)?.leak(),
    };
    Types::parse(bytes, &NAMES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{TYPES} is not as expected")))
}

/// A capability by its number and name. capabilities(7)
#[derive(Clone, Copy)]
pub struct Capability(u32, &'static str);

const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
const PERFMON: Capability = Capability(38, "CAP_PERFMON");
const BPF: Capability = Capability(39, "CAP_BPF");
/// It stands for the last two, as it did before they came with Linux 5.8.
const SYS_ADMIN: u32 = 21;

/// What giving a cgroup a program needs.
pub const FOR_CGROUPS: [Capability; 2] = [BPF, NET_ADMIN];
/// What going through all sockets needs: setting them needs CAP_NET_ADMIN too.
pub const FOR_SOCKETS: [Capability; 3] = [BPF, PERFMON, NET_ADMIN];

/// Those of the capabilities that this process has not: `needs CAP_BPF and CAP_NET_ADMIN (run ka as root)`.
pub fn lacks(capabilities: &[Capability]) -> Option<String> {
    let own = i32::try_from(std::process::id()).ok().and_then(|pid| Status::read(pid).ok())?;
    let has = |Capability(number, _): &Capability| {
        own.has_capability(*number) || (*number > SYS_ADMIN && own.has_capability(SYS_ADMIN))
    };
    let missing: Vec<_> =
        capabilities.iter().filter(|capability| !has(capability)).map(|Capability(_, name)| *name).collect();
    let (last, others) = missing.split_last()?;
    let others = if others.is_empty() { String::new() } else { format!("{} and ", others.join(", ")) };
    Some(format!("needs {others}{last} (run ka as root)"))
}

/// Permanently drops all capabilities except the one that bpf(2) needs if the sysctl unprivileged_bpf_disabled is on.
pub fn keep_only_bpf() -> io::Result<()> {
    let last =
        fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let Capability(bpf, _) = BPF;
    // Linux before 5.8 has no CAP_BPF and checks CAP_SYS_ADMIN.
    let keep = if last.is_some_and(|last: u32| last < bpf) { SYS_ADMIN } else { bpf };
    crate::sys::keep_capabilities(&[keep])
}

/// The version of the kernel that runs: its first two numbers. A distribution's may have what is newer.
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        text.split(|letter: char| !letter.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Where the tree of cgroups is mounted, version 2; `None` where it is not.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    let found = mounts.split(|byte| *byte == b'\n').filter_map(cgroup_mount);
    // Another may have been mounted over it. One that shows the whole tree comes before one of a part of it.
    found
        .filter(|(_, place)| is_cgroup_path(place))
        .min_by_key(|(shown, _)| shown.len())
        .map(|(_, place)| place)
}

/// What of the tree a line of mountinfo shows, and where. proc_pid_mountinfo(5)
pub fn cgroup_mount(line: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (shown, place) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| (shown.to_vec(), OsString::from_vec(unescaped(place)).into()))
}

/// Reads a line of mountinfo. If it is a mount of the cgroup v1 hierarchy with these controllers, returns the mounted
/// part of the hierarchy and the mount point. The controllers are named as in /proc/PID/cgroup.
pub fn cgroup_v1_mount(line: &[u8], controllers: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (shown, place) = (fields.nth(3)?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, options) = (rest.next()?, rest.nth(1)?);
    let is_there = |controller| options.split(|byte| *byte == b',').any(|option| option == controller);
    (kind == b"cgroup" && controllers.split(|byte| *byte == b',').all(is_there))
        .then(|| (unescaped(shown), OsString::from_vec(unescaped(place)).into()))
}

/// Blanks and the like in mountinfo are written as a backslash and three octal digits.
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

/// This process's own cgroup, by its folder.
pub fn own_cgroup() -> Option<PathBuf> {
    cgroup_of("self")
}

/// The cgroup of a process, by its folder: of one by its number, or of `self`.
pub fn cgroup_of(pid: &str) -> Option<PathBuf> {
    let root = cgroup_root()?;
    let text = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(if own.is_empty() { root } else { root.join(OsString::from_vec(own.to_vec())) })
}

/// Returns whether an open folder is a cgroup's.
pub fn is_cgroup(folder: &File) -> bool {
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    sys::filesystem(Path::new(&path)).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC)
}

/// Whether a path is a cgroup's folder.
pub fn is_cgroup_path(path: &Path) -> bool {
    path.is_dir() && sys::filesystem(path).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC)
}

/// Why no cgroup can be found.
pub const NO_CGROUPS: &str =
    "cgroup v2 is not mounted here (Linux 4.5 and later: mount -t cgroup2 none /sys/fs/cgroup)";

/// Whether the kernel describes its types.
pub fn has_types() -> bool {
    Path::new(TYPES).exists()
}

/// Why nothing can be kept in the bpf filesystem.
pub fn lacks_bpf_folder() -> Option<String> {
    let is_there = sys::filesystem(Path::new(BPF_FOLDER)).is_ok_and(|kind| kind == BPF_FS_MAGIC);
    (!is_there).then(|| format!("bpffs is not mounted at {BPF_FOLDER} (mount -t bpf bpf {BPF_FOLDER})"))
}

#[cfg(test)]
mod tests {
    use super::{cgroup_mount, cgroup_v1_mount, release};

    #[test]
    fn mounts_are_read() {
        let line = b"26 24 0:23 /a /sys/fs/c\\040g rw,nosuid shared:4 master:1 - cgroup2 none rw";
        assert_eq!(cgroup_mount(line), Some((b"/a".to_vec(), "/sys/fs/c g".into())));
        assert_eq!(cgroup_mount(b"26 24 0:23 / /sys rw - sysfs cgroup2 rw"), None);
        assert_eq!(cgroup_mount(b""), None);
        let other = b"26 24 0:23 / /\\+12\\400 rw - cgroup2 none rw";
        assert_eq!(cgroup_mount(other), Some((b"/".to_vec(), "/\\+12\\400".into())));
    }

    #[test]
    fn mounts_of_version_1_are_read() {
        let line = b"26 24 0:23 / /sys/fs/cgroup/net rw shared:4 - cgroup none rw,net_cls,net_prio";
        let found = cgroup_v1_mount(line, b"net_cls,net_prio");
        assert_eq!(found, Some((b"/".to_vec(), "/sys/fs/cgroup/net".into())));
        assert!(cgroup_v1_mount(line, b"net_cls").is_some());
        assert_eq!(cgroup_v1_mount(line, b"cpu"), None);
        assert_eq!(cgroup_v1_mount(b"26 24 0:23 / /x rw - cgroup2 none rw,net_cls", b"net_cls"), None);
    }

    #[test]
    fn the_release_is_read() {
        assert!(release() > (4, 0), "{:?}", release());
    }
}
