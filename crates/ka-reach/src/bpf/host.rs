//! The requirements of BPF programs: capabilities, mounted filesystems, and features of the kernel.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::btf::{NAMES, Named, Types};
use super::sys;
use crate::error::{Error, Result};
use crate::privilege::CAP_SYS_ADMIN;
use crate::process::StatusFields;
use crate::sys::file::filesystem;

/// The usual mount point of the bpf filesystem. systemd mounts it there.
pub(crate) const BPF_FOLDER: &str = "/sys/fs/bpf";

/// The file in which the kernel describes its types (BTF).
pub(super) const TYPES: &str = "/sys/kernel/btf/vmlinux";

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Reads the types of the iterator's programs, as [`types`] does.
pub(super) fn kernel_types() -> Result<Types<'static>> {
    types(&NAMES)
}

/// Reads these types of the running kernel. A kernel that was built without `CONFIG_DEBUG_INFO_BTF` has no such file.
pub(super) fn types(names: &[Named<'static>]) -> Result<Types<'static>> {
    // The file does not change while the kernel runs, so its contents are kept until this process ends. It can be
    // mapped since Linux 6.16.
    let bytes = match sys::map(&File::open(TYPES)?) {
        Ok(bytes) => bytes,
        Err(_) => fs::read(TYPES)?.leak(),
    };
    Types::parse(bytes, names).ok_or(Error::UnexpectedBtf { path: TYPES })
}

/// A capability: its number and name. capabilities(7)
#[derive(Clone, Copy)]
pub struct Capability(u32, &'static str);

const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
const PERFMON: Capability = Capability(38, "CAP_PERFMON");
const BPF: Capability = Capability(39, "CAP_BPF");

/// The capabilities that are needed to attach programs to a cgroup.
pub const FOR_CGROUPS: [Capability; 2] = [BPF, NET_ADMIN];
/// The capabilities that are needed to run a program at a tracepoint.
pub const FOR_TRACING: [Capability; 2] = [BPF, PERFMON];
/// The capabilities that are needed to run the TCP iterator and to set sockets with it.
pub const FOR_SOCKETS: [Capability; 3] = [BPF, PERFMON, NET_ADMIN];

/// Checks that this process has these capabilities. If /proc cannot be read, it is assumed to have them.
///
/// # Errors
///
/// [`Error::MissingCapabilities`]
pub fn check_capabilities(capabilities: &[Capability]) -> Result<()> {
    let Ok(own) = StatusFields::read("self") else { return Ok(()) };
    // CAP_SYS_ADMIN implies CAP_PERFMON and CAP_BPF, which were split from it in Linux 5.8.
    let has = |Capability(number, _): &Capability| {
        own.has_capability(*number) || (*number > CAP_SYS_ADMIN && own.has_capability(CAP_SYS_ADMIN))
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
    keep_bpf_and(&[])
}

/// Does the same as [`keep_only_bpf`], but also keeps these capabilities, by number.
pub(crate) fn keep_bpf_and(others: &[u32]) -> io::Result<()> {
    let last =
        fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let Capability(bpf, _) = BPF;
    // Linux before 5.8 has no CAP_BPF and checks CAP_SYS_ADMIN.
    let keep = if last.is_some_and(|last: u32| last < bpf) { CAP_SYS_ADMIN } else { bpf };
    crate::sys::keep_capabilities(&[others, &[keep]].concat())
}

/// Returns the first two numbers of the running kernel's release. Distributions may have backported newer features.
#[must_use]
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        text.split(|letter: char| !letter.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
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
    let is_bpffs = filesystem(Path::new(BPF_FOLDER)).is_ok_and(|kind| kind == BPF_FS_MAGIC);
    if is_bpffs { Ok(()) } else { Err(Error::NoBpffs { path: BPF_FOLDER }) }
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn the_kernel_s_release_is_parsed() {
        assert!(release() > (4, 0), "{:?}", release());
    }
}
