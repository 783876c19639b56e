//! The policies of ka that apply to a process: from the shim, from a supervisor, and from its cgroups.
//!
//! No file lists these policies, so ka infers them. The memory maps of a process show the shim. The process tree shows
//! the supervisor. The environment has the KA_ variables that both read, together with /etc/ka.conf. bpf(2) reports the
//! policies of cgroups.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use ka_core::Config;
use ka_core::bytes::cut;
use ka_policy::{Mode, Policy, Rule, Rules, Variable, skips};
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, InForce};
use crate::conf::ProcessSettings;
use crate::error::Error;
use crate::process;
use crate::seccomp;
use crate::worker::{Completion, WorkerOutput, Workers};

/// The facts from a process's memory maps and environment that show a policy of ka.
#[derive(Default, Deserialize, Serialize)]
pub struct Evidence {
    pid: i32,
    /// True if libka_preload.so is mapped.
    pub is_preloaded: bool,
    /// The number of copies of the C library that are mapped.
    pub c_libraries: usize,
    /// True if the kernel denies ka access to the maps.
    pub is_denied: bool,
    /// The KA_ variables with which the process was started. Each one ends with a NUL.
    pub variables: Vec<u8>,
}

/// The limit on the bytes of one process's maps, if the caller has other processes to examine.
pub(crate) const MAPS: u64 = 1 << 22;

/// The limit on the bytes of a process's environment. execve(2) accepts less.
const ENVIRONMENT: u64 = 6 << 20;

/// The text that the kernel appends to the path of a removed file.
const DELETED: &[u8] = b" (deleted)";

/// The limit on the bytes of KA_ variables that are kept, because a hostile process may have any number.
const VARIABLES: usize = 1 << 15;

/// Reads at most `most` bytes of the maps of each process, and its environment.
///
/// A worker reads them, because a process can make such a read block. The worker reads the maps line by line, because a
/// process may have very many mappings. Returns the evidence of the processes that the worker has read. If some are
/// missing, also returns the reason.
pub fn evidence(
    pids: impl IntoIterator<Item = i32>,
    most: u64,
    workers: &mut Workers,
) -> (Vec<Evidence>, Option<Error>) {
    let WorkerOutput { data, end } = workers.run(&[], |out| {
        for pid in pids {
            let mut line = serde_json::to_vec(&read(pid, most)).map_err(io::Error::from)?;
            line.push(b'\n');
            out.write_all(&line)?;
        }
        Ok(())
    });
    let lines = data.split_inclusive(|byte| *byte == b'\n');
    let evidence = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let why = match end {
        Completion::Finished => None,
        Completion::Blocked => Some(Error::MapsBlocked),
        Completion::Failed(error) => Some(Error::Maps(error.into())),
    };
    (evidence, why)
}

/// Reads the evidence of one process, in a worker.
pub(crate) fn read(pid: i32, most: u64) -> Evidence {
    let mut evidence = Evidence { pid, ..Evidence::default() };
    match File::open(format!("/proc/{pid}/maps")) {
        Ok(maps) => {
            let mut maps = BufReader::new(maps.take(most));
            let mut line = Vec::new();
            while maps.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
                // After an update of the library, the old file is removed but still mapped.
                let name = line.trim_ascii_end();
                let name = name.strip_suffix(DELETED).unwrap_or(name);
                evidence.is_preloaded |= name.ends_with(b"/libka_preload.so");
                evidence.c_libraries += usize::from(is_c_library(&line));
                line.clear();
            }
        }
        Err(error) => evidence.is_denied = error.kind() == io::ErrorKind::PermissionDenied,
    }
    let mut environment = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ"))
        && !is_secure(pid)
    {
        let _ = file.take(ENVIRONMENT).read_to_end(&mut environment);
    }
    let is_known = |entry: &&[u8]| Variable::names().any(|name| name == cut(entry, b'=').0);
    for entry in environment.split(|byte| *byte == 0).filter(is_known) {
        if evidence.variables.len() + entry.len() < VARIABLES {
            evidence.variables.extend_from_slice(entry);
            evidence.variables.push(0);
        }
    }
    evidence
}

/// Returns whether a process has more rights than its user. If so, the shim ignores the environment. getauxval(3),
/// `AT_SECURE`
fn is_secure(pid: i32) -> bool {
    const WORD: usize = size_of::<libc::c_ulong>();
    let vector = fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| libc::c_ulong::from_ne_bytes(*bytes));
    vector.chunks_exact(2 * WORD).any(|pair| {
        let (key, value) = pair.split_at_checked(WORD).unwrap_or_default();
        number(key) == Some(libc::AT_SECURE) && number(value) != Some(0)
    })
}

/// Returns whether a line of /proc/PID/maps is the first mapping of a C library. Each copy has one such line.
fn is_c_library(line: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"libc.so", b"libc-2.", b"ld-musl-"];
    let offset = line.split(|byte| *byte == b' ').nth(2);
    let name = line.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    offset.is_some_and(|offset| offset.iter().all(|digit| *digit == b'0'))
        && NAMES.iter().any(|libc| name.starts_with(libc))
}

/// The origin of a policy that applies to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// The shim, libka_preload.so.
    Preload,
    /// The supervisor of `ka run --via seccomp`.
    Seccomp {
        /// The supervisor's PID.
        supervisor: i32,
    },
    /// The process's cgroup, or one above it.
    Cgroup {
        /// The cgroup's path below the mount point, as in /proc/PID/cgroup.
        name: String,
    },
}

/// A policy of ka that applies to the sockets that a process opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessPolicy {
    /// The process.
    pub pid: i32,
    /// The origin of the policy.
    pub source: PolicyOrigin,
    /// The keepalive settings. They have no effect if `is_off`.
    pub config: Config,
    /// The mode, which decides whether the process can override the settings.
    pub mode: Mode,
    /// The number of rules (KA_RULES) that give some sockets another policy.
    pub rules: usize,
    /// True if the shim or the supervisor leaves all sockets of the process alone (KA_POLICY=off or KA_SKIP).
    pub is_off: bool,
}

impl ProcessPolicy {
    /// Returns whether all sockets of the process get these settings in this mode.
    fn is_same(&self, config: &Config, mode: Mode) -> bool {
        let own = if self.is_off { Config::KEEP.with_enabled(Some(false)) } else { self.config };
        own == *config && self.mode == mode && self.rules == 0
    }
}

/// Returns the policies that apply to a process. Cgroups whose policies cannot be read are left out.
pub fn policies(evidence: &Evidence) -> Vec<ProcessPolicy> {
    let pid = evidence.pid;
    let mut found = Vec::new();
    let source = match seccomp::supervisor_of(pid) {
        Some(supervisor) => Some(PolicyOrigin::Seccomp { supervisor }),
        None => evidence.is_preloaded.then_some(PolicyOrigin::Preload),
    };
    if let Some(source) = source {
        let settings = ProcessSettings::from_variables(&evidence.variables);
        let mut room = [Rule::SKIP; Rules::MAX];
        let Policy { config, mode, rules } = settings.policy(&mut room);
        let is_off = config.enabled() != Some(true)
            || source == PolicyOrigin::Preload && is_skipped(&settings.skip, pid);
        found.push(ProcessPolicy { pid, source, config, mode, rules: rules.iter().count(), is_off });
    }
    let cgroups = cgroup::policies_of(pid).unwrap_or_default();
    found.extend(cgroups.into_iter().map(|InForce { cgroup, config, mode }| {
        let source = PolicyOrigin::Cgroup { name: cgroup };
        ProcessPolicy { pid, source, config, mode, rules: 0, is_off: false }
    }));
    found
}

/// Returns whether KA_SKIP names a process, by its own name or by the name of its executable file.
///
/// This reads neither name from the memory of the process, because a process can make such a read block.
pub fn is_skipped(skip: &[u8], pid: i32) -> bool {
    if skip.is_empty() {
        return false;
    }
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let executable = executable.file_name().unwrap_or_default().as_bytes();
    let executable = executable.strip_suffix(DELETED).unwrap_or(executable);
    skips(skip, [&process::comm(pid).unwrap_or_default(), executable])
}

/// Returns the policies that apply to these processes and differ from the given one.
pub(crate) fn others(evidence: &[Evidence], config: &Config, mode: Mode) -> Vec<ProcessPolicy> {
    let mut others: Vec<_> = evidence.iter().flat_map(policies).collect();
    others.retain(|other| !other.is_same(config, mode));
    others
}
