//! The running kernel: its version, its settings, and the features that it has.
#![expect(unsafe_code, reason = "bpf")]

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;

use crate::log::skip;
use crate::socket::socket;

/// Returns the kernel's version without the suffix of the distribution: `6.18.44` for `6.18.44-cloud-amd64`.
pub fn version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.trim().split('-').next().unwrap().to_owned()
}

/// Writes a sysctl of this network namespace: a file below /proc/sys/net/ipv4.
pub fn sysctl(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net/ipv4").join(name), value).unwrap();
}

/// Returns why eBPF programs cannot be attached to sockets here, or `None` if they can.
///
/// Either the kernel lacks a feature, or root lacks a capability. This function does not use ka.
pub fn lacks_bpf() -> Option<String> {
    /// The beginning of `union bpf_attr` for a map: an array of one `int`.
    #[repr(C)]
    struct Map([u32; 4]);
    const SYS_ADMIN: u32 = 21;
    let mut map = Map([2, 4, 4, 1]);
    // SAFETY: the kernel reads only `size_of::<Map>()` bytes of `map`. The descriptor that it returns stays open until
    // the process ends.
    if unsafe { libc::syscall(libc::SYS_bpf, 0, &raw mut map, size_of::<Map>()) } < 0 {
        return Some(format!("bpf(2): {}", io::Error::last_os_error()));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() & 1 << SYS_ADMIN == 0 {
        return Some("root has no CAP_SYS_ADMIN here".to_owned());
    }
    let version = version();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    if (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 1) {
        return Some(format!("Linux {version} is older than 6.1"));
    }
    let has_types = Path::new("/sys/kernel/btf/vmlinux").exists();
    (!has_types).then(|| "this kernel does not describe its types (BTF)".to_owned())
}

/// Returns whether the loopback interface has IPv6. If it does not, a message says that the test is skipped.
pub fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skip("no IPv6 here");
    }
    has
}

/// Returns whether the kernel creates MPTCP sockets. If it does not, a message says that the test is skipped.
pub fn has_mptcp() -> bool {
    let has = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).is_ok();
    if !has {
        skip("no MPTCP here");
    }
    has
}
