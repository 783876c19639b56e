//! Programs for the kernel: what ka does through bpf(2).
//!
//! Four programs. Two are for a cgroup: one gives its sockets a policy as they connect, listen or are accepted, one holds
//! it against what the cgroup's programs say ([`sockops`]). Two are for the iterator over all TCP sockets of a network
//! namespace: one tells what they have, one sets them ([`iter`]). All are written with [`insn`], and what they do to a
//! socket is [`rule`]. `unsafe` is in [`sys`].

pub(crate) mod btf;
pub mod host;
mod insn;
mod iter;
mod rule;
mod sockops;
pub mod sys;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use ka_core::{Config, Settings};
use ka_policy::{Mode, Policy};

use crate::text::reason;
use btf::Types;
use host::Capability;
use insn::Insn;
pub use iter::{Done, Only};
use sys::Kind;

/// What the programs are called, as bpftool(8) shows it.
pub const GIVER: &str = "ka_sockops";
const KEEPER: &str = "ka_setsockopt";
const TELLER: &str = "ka_iter_read";
const SETTER: &str = "ka_iter_set";
pub const RECORD: &str = "ka_policy";
const COUNTER: &str = "ka_iter_count";

/// What must be there for a kind of program, and since when it is.
struct Feature {
    what: &'static str,
    since: (u32, u32),
    capabilities: &'static [Capability],
}

const GIVING: Feature = Feature {
    // Those programs are older, but could not set keepalive.
    what: "bpf_setsockopt of keepalive in sock_ops programs",
    since: (5, 9),
    capabilities: &host::FOR_CGROUPS,
};
const KEEPING: Feature =
    Feature { what: "cgroup/setsockopt programs", since: (5, 3), capabilities: &host::FOR_CGROUPS };
const LINKING: Feature =
    Feature { what: "links of programs to cgroups", since: (5, 7), capabilities: &host::FOR_CGROUPS };
const ITERATING: Feature = Feature {
    what: "the tcp iterator, and types of the kernel in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
    since: (5, 9),
    capabilities: &host::FOR_SOCKETS,
};
/// A program can be told what a socket has: before, neither can `default` tell whose word it would overrule, nor the
/// iterator tell or set anything but blindly.
const READING: Feature =
    Feature { what: "bpf_getsockopt of keepalive", since: (6, 1), capabilities: &host::FOR_SOCKETS };

impl Feature {
    fn missing(&self) -> String {
        let (major, minor) = self.since;
        let (have_major, have_minor) = host::release();
        format!(
            "this kernel ({have_major}.{have_minor}) lacks {}: Linux {major}.{minor} and later have it",
            self.what
        )
    }

    fn check_release(&self) -> Result<(), String> {
        if host::release() < self.since { Err(self.missing()) } else { Ok(()) }
    }

    /// What a refusal to attach a program to a cgroup comes from. It may be loaded, so it is not for want of rights.
    fn explain_attaching(&self, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::EPERM) => {
                "another program is attached to this cgroup or to one above it, and lets none be beside it \
                                  (no BPF_F_ALLOW_MULTI): bpftool cgroup tree shows it"
                    .to_owned()
            }
            Some(libc::E2BIG) => {
                "64 programs are attached to this cgroup already, and there can be no more".to_owned()
            }
            _ => self.explain(error),
        }
    }

    /// What a refusal of bpf(2) comes from.
    fn explain(&self, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => host::lacks(self.capabilities).unwrap_or_else(|| {
                "the kernel refuses bpf(2) in spite of the capabilities: another user namespace, a security module, \
                 a seccomp filter (as in a container) or kernel lockdown forbids it"
                    .to_owned()
            }),
            Some(libc::ENOSYS) => "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)".to_owned(),
            Some(libc::EINVAL | libc::EOPNOTSUPP) if host::release() < self.since => self.missing(),
            _ => format!("bpf(2): {}", reason(error)),
        }
    }
}

/// Makes a map with one value.
fn map_with(title: &str, value: &[u8]) -> io::Result<OwnedFd> {
    match sys::map_with(title, value) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            sys::with_locked_memory(|| sys::map_with(title, value))
        }
        other => other,
    }
}

/// Loads a program; where the verifier refuses it, the reason ends with what it said.
fn load(kind: Kind, name: &str, insns: &[Insn], feature: &Feature) -> Result<OwnedFd, String> {
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
    if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG | libc::ENOSPC)) {
        return Err(feature.explain(&error));
    }
    // Again, and the verifier says why.
    let mut log = vec![0; 1 << 20];
    let _ = sys::load(kind, name, insns, &mut log);
    let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<_> = log.lines().collect();
    if lines.is_empty() {
        // It did not come to be verified: programs of this kind are unknown.
        return Err(feature.explain(&error));
    }
    let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n  ");
    Err(format!(
        "{}\nthe kernel's verifier refuses {name} ({}):\n  {last}",
        feature.explain(&error),
        reason(&error)
    ))
}

/// The first word of a record: it shows that the record is ka's, and its form.
const FORM: &str = "ka1 ";

/// Returns the record of a policy, which the programs of a cgroup carry with them: `ka1 MODE POLICY`.
fn record(policy: Policy<'_>) -> String {
    format!("{FORM}{} {}", policy.mode.name(), policy.config)
}

/// Reads a record.
fn parse_record(text: &[u8]) -> Option<Policy<'static>> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix(FORM)?;
    let (mode, config) = text.split_once(' ')?;
    Some(Policy::new(ka_core::parse(config.as_bytes()).ok()?, Mode::named(mode.as_bytes())?))
}

/// The programs of a cgroup, loaded.
pub struct Programs {
    /// The policy's text.
    record: OwnedFd,
    giver: OwnedFd,
    keeper: Option<OwnedFd>,
}

impl Programs {
    /// Loads them. `Force` holds the policy against the cgroup's programs; any other mode leaves their sockets alone
    /// where they have a keepalive of their own.
    pub fn load(policy: Policy<'_>) -> Result<Self, String> {
        let Policy { config, mode, .. } = policy;
        if let Some(lack) = host::lacks(&host::FOR_CGROUPS) {
            return Err(lack);
        }
        GIVING.check_release()?;
        if mode != Mode::Force {
            check_reading(None)?;
        }
        let map = map_with(RECORD, record(policy).as_bytes()).map_err(|error| GIVING.explain(&error))?;
        let giver = load(Kind::SockOps, GIVER, &sockops::giver(&config, mode, map.as_raw_fd()), &GIVING)?;
        let keeper = match mode {
            Mode::Force => {
                let keeper = sockops::keeper(&config, mode, sys::page_size());
                Some(load(Kind::SetSockOpt, KEEPER, &keeper, &KEEPING)?)
            }
            _ => None,
        };
        Ok(Self { record: map, giver, keeper })
    }

    /// The policy first, and then what holds it: a program that sets its own between the two is overruled as it connects.
    fn each(&self) -> impl Iterator<Item = (&'static str, Kind, BorrowedFd<'_>)> {
        let keeper = self.keeper.as_ref().map(|keeper| (KEEPER, Kind::SetSockOpt, keeper.as_fd()));
        [(GIVER, Kind::SockOps, self.giver.as_fd())].into_iter().chain(keeper)
    }

    /// Attaches them for as long as the cgroup is there.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<(), String> {
        self.each()
            .try_for_each(|(_, kind, program)| sys::attach(cgroup, program, kind))
            .map_err(|error| GIVING.explain_attaching(&error))
    }

    /// Attaches them for as long as the links are there, which have names.
    pub fn link(&self, cgroup: BorrowedFd<'_>) -> Result<Vec<(&'static str, OwnedFd)>, String> {
        self.each()
            .map(|(name, kind, program)| Ok((name, sys::link(program, Some(cgroup), kind)?)))
            .collect::<io::Result<_>>()
            .map_err(|error| LINKING.explain_attaching(&error))
    }

    /// The policy's text, to be kept with the links, by its name.
    pub fn record(&self) -> (&'static str, BorrowedFd<'_>) {
        (RECORD, self.record.as_fd())
    }
}

/// What a policy's text that is kept says.
pub fn recorded(path: &Path) -> io::Result<Option<Policy<'static>>> {
    Ok(parse_record(&sys::map_value(sys::pinned(path)?.as_fd())?))
}

/// What of ka's is attached to a cgroup itself.
pub fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<Policy<'static>>> {
    let mut found = Vec::new();
    for program in sys::attached(cgroup, Kind::SockOps)? {
        let (name, maps) = match sys::program_info(program) {
            // It has been detached since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other?,
        };
        if name == GIVER {
            for map in maps {
                found.extend(parse_record(&sys::map_value(sys::map_numbered(map)?.as_fd())?));
            }
        }
    }
    Ok(found)
}

/// Whether programs can read what a socket has. The kernel's list of its functions tells, where it is there, for
/// distributions give older kernels what is newer.
fn check_reading(types: Option<&Types<'_>>) -> Result<(), String> {
    if READING.check_release().is_ok() {
        return Ok(());
    }
    let read = if types.is_none() { host::kernel_types().ok() } else { None };
    // What bpf_getsockopt calls since then.
    match types.or(read.as_ref()).and_then(|types| types.function("sk_getsockopt")) {
        Some(_) => Ok(()),
        None => Err(READING.missing()),
    }
}

/// What the iterator needs of the kernel's types: all of them, and which is the iterator's.
fn iterator() -> Result<(Types<'static>, Kind), String> {
    if let Some(lack) = host::lacks(&host::FOR_SOCKETS) {
        return Err(lack);
    }
    let types = host::kernel_types().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ITERATING.missing(),
        _ => reason(&error),
    })?;
    let function = types.function("bpf_iter_tcp").ok_or_else(|| ITERATING.missing())?;
    check_reading(Some(&types))?;
    Ok((types, Kind::TcpIter { function }))
}

/// Runs an iterator program over all TCP sockets of this network namespace, and copies its output.
///
/// The kernel takes each socket's lock, which another program may hold forever. Only a worker may call this.
fn run(kind: Kind, program: BorrowedFd<'_>, out: &mut impl Write) -> Result<(), String> {
    let mut go = || -> io::Result<()> {
        let link = sys::link(program, None, kind)?;
        let mut told = File::from(sys::iterate(link.as_fd())?);
        // The kernel returns its records when this buffer is full. If the kernel then blocks at a socket, few records
        // are lost.
        let mut piece = [0; 1 << 13];
        loop {
            match told.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(size) => out.write_all(piece.get(..size).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    go().map_err(|error| ITERATING.explain(&error))
}

/// Writes the settings of each TCP socket of this network namespace. Sockets that are neither bound nor connected are
/// not included. Only a worker may call this.
pub fn tell(out: &mut impl Write) -> Result<(), String> {
    let (_, kind) = iterator()?;
    let teller = load(kind, TELLER, &iter::teller(), &ITERATING)?;
    run(kind, teller.as_fd(), out)
}

/// Reads the output of [`tell`]: the settings of each socket, by cookie.
pub fn told(records: &[u8]) -> HashMap<u64, Settings> {
    iter::told(records).collect()
}

/// Counts the sockets that a [`Setter`] has set. If the kernel blocks at a socket, the records of the last sockets
/// before it are lost, but the counter includes these sockets.
pub struct Counter(OwnedFd);

impl Counter {
    pub fn new() -> Result<Self, String> {
        map_with(COUNTER, &[0; 8]).map(Self).map_err(|error| ITERATING.explain(&error))
    }

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

/// The program that sets the TCP sockets that are meant, loaded.
pub struct Setter {
    kind: Kind,
    program: OwnedFd,
}

impl Setter {
    /// Loads it; on a dry run it sets none.
    pub fn load(policy: Policy<'_>, dry_run: bool, only: Only, counter: &Counter) -> Result<Self, String> {
        let (types, kind) = iterator()?;
        let Policy { config, mode, .. } = policy;
        if !rule::is_complete(&config) {
            return Err("user_timeout=auto needs idle, intvl and cnt in the policy here".to_owned());
        }
        let insns = iter::setter(&types, &config, mode, dry_run, only, counter.as_raw_fd()).ok_or(
            "the kernel's types are not as expected: a socket's cgroup or port is not found in them",
        )?;
        Ok(Self { kind, program: load(kind, SETTER, &insns, &ITERATING)? })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Sets the sockets of this network namespace in one pass, and writes the result of each. Only a worker may call
    /// this.
    pub fn set(&self, out: &mut impl Write) -> Result<(), String> {
        run(self.kind, self.program.as_fd(), out)
    }
}

/// Takes the whole records off the front of the output of [`Setter::set`].
pub fn take_done(written: &mut Vec<u8>) -> Vec<Done> {
    let whole = written.len() / iter::RECORD_SIZE * iter::RECORD_SIZE;
    iter::done(&written.drain(..whole).collect::<Vec<_>>()).collect()
}

/// The errno of a socket whose cgroup is nested too deeply for the setter to tell whether the socket is selected.
pub const TOO_DEEP: i32 = libc::ELOOP;

/// What the kernel said of an option of a socket's that could not be set. Which one it was is not told.
pub fn refusal(errno: i32) -> String {
    format!("setsockopt: {}", io::Error::from_raw_os_error(errno))
}

/// Why no cgroup can be given a policy here.
pub fn cgroup_obstacle() -> Option<String> {
    if host::cgroup_root().is_none() {
        return Some(host::NO_CGROUPS.to_owned());
    }
    Programs::load(Policy::new(Config::STANDARD, Mode::Force)).err()
}

/// Why the iterator cannot be used here.
pub fn iterator_obstacle() -> Option<String> {
    let (_, kind) = match iterator() {
        Ok(found) => found,
        Err(why) => return Some(why),
    };
    load(kind, TELLER, &iter::teller(), &ITERATING).err()
}

#[cfg(test)]
mod tests {
    use ka_core::Config;
    use ka_policy::{Mode, Policy};

    use super::insn::{Assembler, Reg};
    use super::{GIVING, load, parse_record, record};
    use crate::bpf::sys::Kind;

    #[test]
    fn records_are_read_back() {
        for mode in [Mode::Force, Mode::Default] {
            let policy = ka_core::parse(b"idle=280,intvl=30,cnt=5,user_timeout=auto").unwrap();
            let policy = Policy::new(policy, mode);
            assert_eq!(parse_record(record(policy).as_bytes()), Some(policy));
        }
        for foreign in [&b""[..], b"ka2 force 60,10,6", b"ka1 force", b"ka1 often 60,10,6", b"ka1 force \xff"]
        {
            assert_eq!(parse_record(foreign), None);
        }
        let longest = Config::new(32767, 32767, 127).unwrap();
        assert!(record(Policy::new(longest, Mode::Default)).len() < 128);
    }

    /// Where programs may be loaded; else the reason is what is missing.
    #[test]
    fn what_the_verifier_refuses_is_said_with_its_own_words() {
        let mut program = Assembler::default();
        program.mov(Reg::R0, Reg::R3);
        program.exit();
        let why = load(Kind::SockOps, "ka_wrong", &program.finish(), &GIVING).unwrap_err();
        let is_said = why.contains("the kernel's verifier refuses ka_wrong") && why.contains("R3 !read_ok");
        assert!(is_said || why.starts_with("needs CAP_") || why.contains("forbids it"), "{why}");
    }
}
