//! BPF programs, with which the kernel itself reads and sets the keepalive of sockets. bpf(2)
//!
//! A process can set a socket only through a descriptor, which it must duplicate from the socket's owner. The kernel
//! needs no descriptor. It runs BPF programs at certain events, and they can set the socket of the event.
//!
//! Two of ka's BPF programs are attached to a cgroup. The `sock_ops` program applies a policy to each socket that
//! connects, listens or is accepted. The `setsockopt` program keeps the cgroup's processes from replacing the policy's
//! values. Two other BPF programs belong to the iterator over all TCP sockets of a network namespace. One reads the
//! settings of each socket, the other writes them. A last one records at a tracepoint how each connection ends
//! (`trace`).
//!
//! ka generates the instructions of these programs at run time, and needs no compiler. All BPF programs that set
//! sockets share the instructions for it (`apply`).

mod apply;
pub(crate) mod btf;
pub mod host;
mod insn;
mod iter;
mod links;
mod setsockopt;
mod sock_ops;
mod sys;
pub(crate) mod trace;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use ka_core::{Config, Settings};
use ka_policy::{Mode, Policy};

use crate::cgroup;
use crate::error::{Error, Result};
use btf::Types;
use host::Capability;
use insn::Insn;
pub use iter::{SetResult, SocketFilter};
pub use links::Links;
pub(crate) use links::{detach_pinned, pinned_cgroup};
use sys::Kind;

/// The names of the programs and maps, as bpftool(8) shows them.
pub(crate) const SOCK_OPS: &str = "ka_sockops";
const SETSOCKOPT: &str = "ka_setsockopt";
const ITER_READER: &str = "ka_iter_read";
const ITER_WRITER: &str = "ka_iter_set";
pub(crate) const RECORD: &str = "ka_policy";
const COUNTER: &str = "ka_iter_count";

/// A feature of the kernel that a kind of program needs.
struct Feature {
    name: &'static str,
    /// The first release of Linux with the feature.
    since: (u32, u32),
    capabilities: &'static [Capability],
}

/// Older kernels have `sock_ops` programs too, but these cannot set keepalive.
const BPF_SETSOCKOPT: Feature = Feature {
    name: "bpf_setsockopt of keepalive in sock_ops programs",
    since: (5, 9),
    capabilities: &host::FOR_CGROUPS,
};
const CGROUP_SETSOCKOPT: Feature =
    Feature { name: "cgroup/setsockopt programs", since: (5, 3), capabilities: &host::FOR_CGROUPS };
const CGROUP_LINK: Feature =
    Feature { name: "links of programs to cgroups", since: (5, 7), capabilities: &host::FOR_CGROUPS };
const TCP_ITER: Feature = Feature {
    name: "the tcp iterator, and types of the kernel in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
    since: (5, 9),
    capabilities: &host::FOR_SOCKETS,
};
/// In mode default, the `sock_ops` program reads SO_KEEPALIVE, to leave alone sockets that have it on. The iterator's
/// programs read the settings, to report them and to write only those that differ.
const BPF_GETSOCKOPT: Feature =
    Feature { name: "bpf_getsockopt of keepalive", since: (6, 1), capabilities: &host::FOR_SOCKETS };

impl Feature {
    fn missing(&self) -> Error {
        Error::MissingFeature { feature: self.name, since: self.since, release: host::release() }
    }

    fn check_release(&self) -> Result<()> {
        if host::release() < self.since { Err(self.missing()) } else { Ok(()) }
    }

    /// Explains why the kernel did not attach a program to a cgroup. Here EPERM does not mean missing capabilities: the
    /// kernel has already loaded the program, so the capabilities suffice.
    fn attach_error(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EPERM) => Error::ExclusiveProgram,
            Some(libc::E2BIG) => Error::TooManyPrograms,
            _ => self.error(error),
        }
    }

    /// Explains an error of bpf(2).
    fn error(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                host::check_capabilities(self.capabilities).err().unwrap_or(Error::BpfForbidden)
            }
            Some(libc::ENOSYS) => Error::NoBpf,
            Some(libc::EINVAL | libc::EOPNOTSUPP) if host::release() < self.since => self.missing(),
            _ => Error::io("bpf(2)", error),
        }
    }
}

/// Makes a map with one value.
fn map_with(name: &str, value: &[u8]) -> io::Result<OwnedFd> {
    with_memory(|| sys::map_with(name, value))
}

/// Makes a map. If the kernel refuses, tries again without a limit on locked memory.
fn with_memory<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => sys::with_locked_memory(make),
        other => other,
    }
}

/// Loads a program. If the verifier rejects it, the error contains the last lines of the verifier's log.
fn load(kind: Kind, name: &str, insns: &[Insn], feature: &Feature) -> Result<OwnedFd> {
    const LINES: usize = 20;
    let loaded = match sys::load(kind, name, insns, &mut []) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && host::release() < (5, 11) => {
            sys::with_locked_memory(|| sys::load(kind, name, insns, &mut []))
        }
        other => other,
    };
    let error = match loaded {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let Some(errno @ (libc::EINVAL | libc::EACCES | libc::E2BIG | libc::ENOSPC)) = error.raw_os_error()
    else {
        return Err(feature.error(error));
    };
    // Load the program again, to get the verifier's log.
    let mut log = vec![0; 1 << 20];
    let _ = sys::load(kind, name, insns, &mut log);
    let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<_> = log.lines().map(str::to_owned).collect();
    let cause = feature.error(error);
    if lines.is_empty() {
        // The kernel does not know this kind of program, so the verifier did not run.
        return Err(cause);
    }
    let log = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().to_vec();
    Err(Error::Verifier { program: name.to_owned(), cause: Box::new(cause), errno, log })
}

/// The start of a record. It identifies ka's records and their format.
const FORM: &str = "ka1 ";

/// Returns the record of a policy: `ka1 MODE POLICY`. ka stores it in a map of the `sock_ops` program, from which other
/// processes read the policy.
pub(crate) fn record(policy: Policy<'_>) -> String {
    format!("{FORM}{} {}", policy.mode.name(), policy.config)
}

/// Parses a record. Returns `None` if it is not one of ka's.
pub(crate) fn parse_record(text: &[u8]) -> Option<Policy<'static>> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix(FORM)?;
    let (mode, config) = text.split_once(' ')?;
    Some(Policy::new(ka_core::parse(config.as_bytes()).ok()?, Mode::named(mode.as_bytes())?))
}

/// The BPF programs of a policy for a cgroup, loaded into the kernel. They have no effect until they are attached.
pub struct Programs {
    /// The map with the policy's record.
    record: OwnedFd,
    sock_ops: OwnedFd,
    /// `None` unless the mode is force.
    setsockopt: Option<OwnedFd>,
}

impl Programs {
    /// Loads the BPF programs of a policy. In mode force, they keep the cgroup's processes from replacing the policy's
    /// values. In mode default, they leave alone sockets on which a process has turned keepalive on. ka offers no mode
    /// floor for cgroups.
    ///
    /// # Errors
    ///
    /// Missing capabilities, a kernel that is too old, the verifier's log, or [`Error::IncompleteAuto`]. Then nothing
    /// stays loaded.
    pub fn load(policy: Policy<'_>) -> Result<Self> {
        let config = apply::complete(&policy.config)?;
        let mode = policy.mode;
        host::check_capabilities(&host::FOR_CGROUPS)?;
        BPF_SETSOCKOPT.check_release()?;
        if mode != Mode::Force {
            check_getsockopt(None)?;
        }
        let record =
            map_with(RECORD, record(policy).as_bytes()).map_err(|error| BPF_SETSOCKOPT.error(error))?;
        let insns = sock_ops::sock_ops(&config, mode, record.as_raw_fd());
        let sock_ops = load(Kind::SockOps, SOCK_OPS, &insns, &BPF_SETSOCKOPT)?;
        let setsockopt = match mode {
            Mode::Force => {
                let insns = setsockopt::setsockopt(&config, mode, sys::page_size());
                Some(load(Kind::SetSockOpt, SETSOCKOPT, &insns, &CGROUP_SETSOCKOPT)?)
            }
            _ => None,
        };
        Ok(Self { record, sock_ops, setsockopt })
    }

    /// Returns the BPF programs in the order in which they are attached. The `setsockopt` program comes last. If a
    /// process sets its own values before that, the `sock_ops` program overrides them when the socket connects.
    fn each(&self) -> impl Iterator<Item = (&'static str, Kind, BorrowedFd<'_>)> {
        let setsockopt = self.setsockopt.as_ref().map(|fd| (SETSOCKOPT, Kind::SetSockOpt, fd.as_fd()));
        [(SOCK_OPS, Kind::SockOps, self.sock_ops.as_fd())].into_iter().chain(setsockopt)
    }

    /// Attaches the programs to a cgroup until the cgroup is removed.
    ///
    /// # Errors
    ///
    /// [`Error::ExclusiveProgram`], [`Error::TooManyPrograms`], or an error of bpf(2). The `sock_ops` program may stay
    /// attached.
    pub fn attach(&self, cgroup: impl AsFd) -> Result<()> {
        self.each()
            .try_for_each(|(_, kind, program)| sys::attach(cgroup.as_fd(), program, kind))
            .map_err(|error| BPF_SETSOCKOPT.attach_error(error))
    }

    /// Attaches the programs to a cgroup for as long as the links exist.
    ///
    /// # Errors
    ///
    /// The errors of [`Programs::attach`]. Nothing stays attached.
    pub fn link(&self, cgroup: impl AsFd) -> Result<Links> {
        self.each()
            .map(|(name, kind, program)| Ok((name, sys::link(program, Some(cgroup.as_fd()), kind)?)))
            .collect::<io::Result<_>>()
            .map(Links)
            .map_err(|error| CGROUP_LINK.attach_error(error))
    }

    /// Attaches the programs to a cgroup by links. Pins the links, and the map with the policy's record, in a folder
    /// of a bpf filesystem. If this fails, some pins may be left in the folder.
    pub(crate) fn pin(&self, cgroup: impl AsFd, folder: &Path) -> Result<()> {
        let Links(links) = self.link(cgroup)?;
        let links = links.iter().map(|(name, link)| (*name, link.as_fd()));
        for (name, pinned) in links.chain([(RECORD, self.record.as_fd())]) {
            let path = folder.join(name);
            sys::pin(pinned, &path).map_err(|error| Error::io(path.display(), error))?;
        }
        Ok(())
    }
}

/// Reads the policy from the record that is pinned at a path. Returns `None` if the record is not one of ka's.
pub(crate) fn pinned_policy(path: &Path) -> io::Result<Option<Policy<'static>>> {
    Ok(parse_record(&sys::map_value(sys::pinned(path)?.as_fd())?))
}

/// Returns the policies that ka has attached to this cgroup, without those of its ancestors.
pub(crate) fn policies(cgroup: BorrowedFd<'_>) -> io::Result<Vec<Policy<'static>>> {
    let mut found = Vec::new();
    for program in sys::attached(cgroup, Kind::SockOps)? {
        let (name, maps) = match sys::program_info(program) {
            // The program has been detached in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other?,
        };
        if name == SOCK_OPS {
            for map in maps {
                found.extend(parse_record(&sys::map_value(sys::map_numbered(map)?.as_fd())?));
            }
        }
    }
    Ok(found)
}

/// Checks that BPF programs can read keepalive settings. Distributions backport this feature to older kernels. So on an
/// older kernel, the function's entry in the kernel's BTF decides.
fn check_getsockopt(types: Option<&Types<'_>>) -> Result<()> {
    if BPF_GETSOCKOPT.check_release().is_ok() {
        return Ok(());
    }
    let read = if types.is_none() { host::kernel_types().ok() } else { None };
    // Since Linux 6.1, bpf_getsockopt calls this function.
    match types.or(read.as_ref()).and_then(|types| types.function("sk_getsockopt")) {
        Some(_) => Ok(()),
        None => Err(BPF_GETSOCKOPT.missing()),
    }
}

/// Returns the kernel's types, and the kind of the TCP iterator's programs.
fn iterator() -> Result<(Types<'static>, Kind)> {
    host::check_capabilities(&host::FOR_SOCKETS)?;
    let types = host::kernel_types().map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => TCP_ITER.missing(),
        other => other,
    })?;
    let function = types.function("bpf_iter_tcp").ok_or_else(|| TCP_ITER.missing())?;
    check_getsockopt(Some(&types))?;
    Ok((types, Kind::TcpIter { function }))
}

fn load_reader() -> Result<(Kind, OwnedFd)> {
    let (_, kind) = iterator()?;
    Ok((kind, load(kind, ITER_READER, &iter::reader(), &TCP_ITER)?))
}

/// Runs an iterator program over all TCP sockets of this network namespace, and copies its output.
///
/// The kernel takes each socket's lock, which another process may hold forever. So only a worker process may call this
/// ([`fork_worker`](crate::sys::fork_worker)).
fn run(kind: Kind, program: BorrowedFd<'_>, out: &mut impl Write) -> Result<()> {
    let mut copy = || -> io::Result<()> {
        let link = sys::link(program, None, kind)?;
        let mut records = File::from(sys::iterate(link.as_fd())?);
        // The kernel returns records only when this buffer is full. If the kernel blocks at a socket, the records in
        // the buffer are lost, so the buffer is small.
        let mut piece = [0; 1 << 13];
        loop {
            match records.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(size) => out.write_all(piece.get(..size).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    copy().map_err(|error| TCP_ITER.error(error))
}

/// Writes a record of the settings of each TCP socket of this network namespace. Sockets that are neither bound nor
/// connected are not included. Only a worker process may call this, because it may block at a socket whose lock is
/// held.
pub(crate) fn read_settings(out: &mut impl Write) -> Result<()> {
    let (kind, program) = load_reader()?;
    run(kind, program.as_fd(), out)
}

/// Parses the output of [`read_settings`]: the settings of each socket, by cookie.
pub(crate) fn parse_settings(records: &[u8]) -> HashMap<u64, Settings> {
    iter::settings(records).collect()
}

/// The number of sockets that an [`IterWriter`] has set. If the kernel blocks at a socket, the last records before it
/// are lost, but the counter includes their sockets.
pub struct Counter(OwnedFd);

impl Counter {
    /// Makes a counter that starts at 0.
    ///
    /// # Errors
    ///
    /// Missing capabilities, or a kernel without bpf(2).
    pub fn new() -> Result<Self> {
        map_with(COUNTER, &[0; 8]).map(Self).map_err(|error| TCP_ITER.error(error))
    }

    /// Returns the number of sockets, or 0 if the kernel does not report it.
    #[must_use]
    pub fn value(&self) -> usize {
        let value = sys::map_value(self.0.as_fd()).unwrap_or_default();
        value.first_chunk().and_then(|bytes| u64::from_ne_bytes(*bytes).try_into().ok()).unwrap_or(0)
    }
}

impl AsRawFd for Counter {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The iterator program that sets sockets, loaded into the kernel.
pub struct IterWriter {
    kind: Kind,
    program: OwnedFd,
}

impl IterWriter {
    /// Loads the program. On a dry run it sets no socket, but reports the same results.
    ///
    /// # Errors
    ///
    /// Missing capabilities, a kernel that is too old or has no BTF, the verifier's log, or
    /// [`Error::IncompleteAuto`].
    pub fn load(
        policy: Policy<'_>,
        dry_run: bool,
        selection: SocketFilter,
        counter: &Counter,
    ) -> Result<Self> {
        let (types, kind) = iterator()?;
        let config = apply::complete(&policy.config)?;
        let mode = policy.mode;
        let insns = iter::writer(&types, &config, mode, dry_run, selection, counter.as_raw_fd())
            .ok_or(Error::UnexpectedTypes)?;
        Ok(Self { kind, program: load(kind, ITER_WRITER, &insns, &TCP_ITER)? })
    }

    /// Sets the selected sockets of this network namespace in one pass, and writes a record of each result. Only a
    /// worker process may call this, because it may block at a socket whose lock is held.
    ///
    /// # Errors
    ///
    /// An error of the iterator or of `out`. A socket whose record was written has been set.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        run(self.kind, self.program.as_fd(), out)
    }
}

impl AsRawFd for IterWriter {
    fn as_raw_fd(&self) -> RawFd {
        self.program.as_raw_fd()
    }
}

/// Removes the complete records from the output of [`IterWriter::run`], and parses them. A partial record at the end
/// stays.
pub fn take_results(written: &mut Vec<u8>) -> Vec<SetResult> {
    let whole = written.len() / iter::RECORD_SIZE * iter::RECORD_SIZE;
    iter::results(&written.drain(..whole).collect::<Vec<_>>()).collect()
}

/// The errno of a socket in a cgroup that is nested too deeply. The writer cannot determine whether the socket is
/// selected.
const TOO_DEEP: i32 = libc::ELOOP;

/// Explains the errno of a [`SetResult`]. The kernel does not report which option it rejected.
#[must_use]
pub const fn set_error(errno: i32) -> Error {
    if errno == TOO_DEEP { Error::CgroupTooDeep } else { Error::SetSockOpt(errno) }
}

/// Checks that ka can attach a policy to a cgroup on this machine. Loads the programs, and attaches nothing.
///
/// # Errors
///
/// [`Error::NoCgroups`], or an error of [`Programs::load`].
pub fn check_cgroups() -> Result<()> {
    cgroup::mount_point()?;
    Programs::load(Policy::new(Config::STANDARD, Mode::Force)).map(drop)
}

/// Checks that the TCP iterator can be used on this machine.
///
/// # Errors
///
/// Missing capabilities, or a kernel that is too old or has no BTF.
pub fn check_iterator() -> Result<()> {
    load_reader().map(drop)
}

#[cfg(test)]
mod tests {
    use ka_policy::{Mode, Policy};

    use super::insn::{Assembler, Reg};
    use super::{BPF_SETSOCKOPT, load, parse_record, record};
    use crate::bpf::sys::Kind;

    #[test]
    fn records_are_read_back() {
        for mode in [Mode::Force, Mode::Default] {
            let policy = ka_core::parse(b"idle=280,intvl=30,cnt=5,user_timeout=auto,rto_max=auto").unwrap();
            let policy = Policy::new(policy, mode);
            assert_eq!(parse_record(record(policy).as_bytes()), Some(policy));
        }
        for foreign in [&b""[..], b"ka2 force 60,10,6", b"ka1 force", b"ka1 often 60,10,6", b"ka1 force \xff"]
        {
            assert_eq!(parse_record(foreign), None);
        }
    }

    /// If the machine does not allow ka to load programs, the error names the reason instead.
    #[test]
    fn a_rejected_program_is_reported_with_the_verifiers_log() {
        let mut program = Assembler::default();
        program.mov(Reg::R0, Reg::R3);
        program.exit();
        let why =
            load(Kind::SockOps, "ka_wrong", &program.finish(), &BPF_SETSOCKOPT).unwrap_err().to_string();
        let has_log = why.contains("the kernel's verifier refuses ka_wrong") && why.contains("R3 !read_ok");
        assert!(has_log || why.starts_with("needs CAP_") || why.contains("forbids it"), "{why}");
    }
}
