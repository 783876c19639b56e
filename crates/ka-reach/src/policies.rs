//! The policies of ka that a process already has: from the shim or a supervisor that it runs under, and from its cgroups.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use ka_core::bytes::cut;
use ka_core::{Config, Text};
use ka_policy::{Mode, Policy, Rule, Rules, Variable, skips};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::conf;
use crate::process;
use crate::seccomp;
use crate::text::{self, reason};
use crate::worker::{Ended, Workers};

/// The parts of a process's memory maps and environment that show a policy of ka.
#[derive(Default, Deserialize, Serialize)]
pub struct Mapped {
    pid: i32,
    pub is_preloaded: bool,
    /// The number of copies of the C library.
    pub copies: usize,
    /// Whether ka may not read the maps.
    pub is_denied: bool,
    /// The KA_ variables with which the process was started.
    pub settings: Vec<u8>,
}

/// How much of a process's maps is read, if the caller has other processes to examine.
pub const MOST: u64 = 1 << 22;

/// How much of a process's environment is read. execve(2) accepts less.
const ENVIRONMENT: u64 = 6 << 20;

/// The kernel appends this to the path of a removed file.
const DELETED: &[u8] = b" (deleted)";

/// How many bytes of KA_ variables are kept. A process may have very many.
const SETTINGS: usize = 1 << 15;

/// Reads the maps and the environment of processes. The kernel may block on a process here, so a worker reads them. The
/// worker reads the maps line by line, because a process may have very many mappings. Returns the processes that the
/// worker has read, and the reason if some are missing.
pub fn mapped(
    pids: impl IntoIterator<Item = i32>,
    most: u64,
    workers: &mut Workers,
) -> (Vec<Mapped>, Option<String>) {
    let found = workers.find(&[], |sink| {
        for pid in pids {
            let mut line = serde_json::to_vec(&read(pid, most)).map_err(|error| error.to_string())?;
            line.push(b'\n');
            sink.write_all(&line).map_err(|error| reason(&error))?;
        }
        Ok(())
    });
    let lines = found.data.split_inclusive(|byte| *byte == b'\n');
    let mapped = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let why = match found.end {
        Ended::Whole => None,
        Ended::Blocked => Some("its memory maps did not answer within 2 s".to_owned()),
        Ended::Failed(why) => Some(format!("its memory maps: {why}")),
    };
    (mapped, why)
}

/// Reads one process, in a worker.
pub fn read(pid: i32, most: u64) -> Mapped {
    let mut mapped = Mapped { pid, ..Mapped::default() };
    match File::open(format!("/proc/{pid}/maps")) {
        Ok(maps) => {
            let mut maps = BufReader::new(maps.take(most));
            let mut line = Vec::new();
            while maps.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
                // The file may have been replaced by another version.
                let name = line.trim_ascii_end();
                let name = name.strip_suffix(DELETED).unwrap_or(name);
                mapped.is_preloaded |= name.ends_with(b"/libka_preload.so");
                mapped.copies += usize::from(is_c_library(&line));
                line.clear();
            }
        }
        Err(error) => mapped.is_denied = error.kind() == io::ErrorKind::PermissionDenied,
    }
    let mut environment = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ"))
        && !is_secure(pid)
    {
        let _ = file.take(ENVIRONMENT).read_to_end(&mut environment);
    }
    let is_known = |entry: &&[u8]| Variable::names().any(|name| name == cut(entry, b'=').0);
    for entry in environment.split(|byte| *byte == 0).filter(is_known) {
        if mapped.settings.len() + entry.len() < SETTINGS {
            mapped.settings.extend_from_slice(entry);
            mapped.settings.push(0);
        }
    }
    mapped
}

/// Returns whether a process has more rights than its user, so that the shim ignores the environment. getauxval(3),
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

/// A policy that a process has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Other {
    pub pid: i32,
    /// preload, seccomp or cgroup.
    pub way: &'static str,
    /// The supervisor's PID, or the cgroup.
    pub of: Option<String>,
    /// `off` if the process is left alone.
    pub policy: String,
    pub mode: &'static str,
    /// How many rules (KA_RULES) give some sockets another policy.
    pub rules: usize,
}

impl Other {
    /// Describes the policy and where it comes from.
    pub fn text(&self) -> String {
        let Self { way, of, policy, mode, rules, .. } = self;
        let rules = match rules {
            0 => String::new(),
            rules => format!(", with {} (KA_RULES)", text::count(*rules, "rule")),
        };
        let policy = text::brief_text(policy);
        match (*way, of) {
            _ if policy == "off" => {
                "none: libka_preload.so leaves it alone (KA_POLICY=off or KA_SKIP)".to_owned()
            }
            ("cgroup", Some(cgroup)) => format!("the policy of the cgroup {cgroup}: {policy} (mode {mode})"),
            ("seccomp", Some(pid)) => {
                format!("the policy of the supervisor {pid}: {policy} (mode {mode}){rules}")
            }
            _ => format!("the policy of libka_preload.so: {policy} (mode {mode}){rules}"),
        }
    }

    /// Describes the policy of the sockets that the process opens later.
    pub fn later(&self) -> String {
        if self.policy == "off" {
            "libka_preload.so leaves it alone (KA_POLICY=off or KA_SKIP): the sockets that it opens later get no policy"
                .to_owned()
        } else {
            format!("{} applies to the sockets that the process opens later", self.text())
        }
    }
}

/// Returns the policies that a process has.
pub fn policies(mapped: &Mapped) -> Vec<Other> {
    let pid = mapped.pid;
    let mut found = Vec::new();
    let supervisor = seccomp::supervisor_of(pid);
    let way = match supervisor {
        Some(supervisor) => Some(("seccomp", Some(supervisor.to_string()))),
        None => mapped.is_preloaded.then_some(("preload", None)),
    };
    if let Some((way, of)) = way {
        let given = conf::given(&mapped.settings);
        let mut room = [Rule::SKIP; Rules::MAX];
        let Policy { config, mode, rules } = given.policy(&mut room);
        let is_off = config.enabled() != Some(true) || way == "preload" && is_skipped(&given.skip, pid);
        let policy = if is_off { "off".to_owned() } else { Text::typed(&config).to_string() };
        found.push(Other { pid, way, of, policy, mode: mode.name(), rules: rules.iter().count() });
    }
    for cgroup::InForce { cgroup, policy, mode } in cgroup::policies_of(pid).unwrap_or_default() {
        found.push(Other { pid, way: "cgroup", of: Some(cgroup), policy, mode, rules: 0 });
    }
    found
}

/// Returns whether KA_SKIP leaves a process alone, by its name or that of its file. Neither name is in the memory of
/// the process. A process can make reads of its memory block.
pub fn is_skipped(skip: &[u8], pid: i32) -> bool {
    if skip.is_empty() {
        return false;
    }
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let executable = executable.file_name().unwrap_or_default().as_bytes();
    let executable = executable.strip_suffix(DELETED).unwrap_or(executable);
    skips(skip, [&process::comm(pid).unwrap_or_default(), executable])
}

/// Returns the policies of these processes that differ from the given policy.
pub fn others(mapped: &[Mapped], policy: &Config, mode: Mode) -> Vec<Other> {
    let policy = Text::typed(policy).to_string();
    let mut others: Vec<_> = mapped.iter().flat_map(policies).collect();
    others.retain(|other| other.policy != policy || other.mode != mode.name() || other.rules > 0);
    others
}
