//! Cgroups of version 2: their folders, and the policies that are attached to them.

pub mod store;
pub mod sweep;
pub mod walk;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ka_core::Config;
use ka_policy::{Mode, Policy};

use crate::bpf::{self, host};
use crate::sys;
use crate::text::{self, reason};
use walk::walk;

/// A cgroup, by its folder, which is held open.
pub struct Cgroup {
    pub folder: File,
    pub path: PathBuf,
    /// Its number, which is its folder's inode.
    pub id: u64,
}

impl Cgroup {
    /// The cgroup of this name: its folder, or what stands in /proc/PID/cgroup, with or without the / before it.
    pub fn named(name: &OsStr) -> Result<Self, String> {
        // A variable that is not set, most likely, which must not become the whole tree.
        if name.is_empty() {
            return Err("the name is empty; the root cgroup is /".to_owned());
        }
        let root = host::cgroup_root().ok_or(host::NO_CGROUPS)?;
        let path = Path::new(name);
        let within = root.join(path.strip_prefix("/").unwrap_or(path));
        let refused = |path: &Path, error: io::Error| format!("{}: {}", path.display(), reason(&error));
        for path in [path, &within] {
            let mut cgroup = match Self::open(path) {
                Ok(cgroup) if host::is_cgroup(&cgroup.folder) => cgroup,
                Err(error) if !is_gone(&error) && error.kind() != io::ErrorKind::NotADirectory => {
                    return Err(refused(path, error));
                }
                _ => continue,
            };
            let absolute = match fs::canonicalize(path) {
                // The path is longer than the kernel accepts (`PATH_MAX`).
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => std::path::absolute(path),
                other => other,
            };
            cgroup.path = absolute.map_err(|error| refused(path, error))?;
            return Ok(cgroup);
        }
        Err(format!(
            "{}: not a cgroup (v2): neither a cgroup's folder nor a name below {}",
            path.display(),
            root.display()
        ))
    }

    /// Returns whether this is the root of the whole tree. Only the root has no type: cgroups(7), "cgroup.type".
    pub fn is_root(&self) -> bool {
        self.file("cgroup.type").is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Opens a folder, even if its path is longer than `PATH_MAX`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let folder = match open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                let (start, rest) = match path.strip_prefix("/") {
                    Ok(rest) => ("/", rest),
                    Err(_) => (".", path),
                };
                rest.components().try_fold(open(start.as_ref())?, |folder, name| {
                    sys::open_at(folder.as_fd(), name.as_os_str(), libc::O_DIRECTORY)
                })?
            }
            other => other?,
        };
        let id = folder.metadata()?.ino();
        Ok(Self { folder, path: path.to_path_buf(), id })
    }

    /// Opens a cgroup directly below this one, or "." or "..".
    pub fn below(&self, name: &OsStr) -> io::Result<File> {
        sys::open_at(self.folder.as_fd(), name, libc::O_DIRECTORY)
    }

    /// Opens one of the cgroup's files.
    pub fn file(&self, name: &str) -> io::Result<File> {
        sys::open_at(self.folder.as_fd(), name.as_ref(), 0)
    }

    /// What it is called: its folder without where cgroups are mounted.
    pub fn name(&self) -> String {
        name(&self.path)
    }
}

pub fn name(path: &Path) -> String {
    let below = host::cgroup_root().and_then(|root| Some(path.strip_prefix(root).ok()?.to_path_buf()));
    let name = below.map_or_else(|| path.to_path_buf(), |below| Path::new("/").join(below));
    text::lossless(name.as_os_str().as_encoded_bytes()).into_owned()
}

/// Returns the policies of the cgroups above this one, the nearest first.
pub fn above(cgroup: &Cgroup) -> Vec<(PathBuf, Policy<'static>)> {
    let mut found = Vec::new();
    let mut folder = cgroup.below("..".as_ref());
    for path in cgroup.path.ancestors().skip(1) {
        let Ok(open) = folder.as_ref() else { break };
        if !host::is_cgroup(open) {
            break;
        }
        let attached = bpf::attached(open.as_fd()).unwrap_or_default();
        found.extend(attached.into_iter().map(|policy| (path.to_path_buf(), policy)));
        folder = sys::open_at(open.as_fd(), "..".as_ref(), libc::O_DIRECTORY);
    }
    found
}

/// The policy of a cgroup above that holds against that of this one, as who may not ask the kernel for it cannot know.
pub fn held_above(cgroup: &Cgroup, policy: Policy<'static>) -> Option<String> {
    // The kernel calls the programs of the one furthest up last.
    let holding = above(cgroup).into_iter().rfind(|(_, found)| found.mode == Mode::Force);
    let (path, found) = holding.filter(|(_, found)| found.config != policy.config)?;
    let name = name(&path);
    Some(format!(
        "{} above it has {} in mode force, which overrides this policy",
        text::visible(name.as_bytes()),
        found.config
    ))
}

/// Describes the policies of cgroups below that this one overrides. `None` if the kernel refuses to list them.
pub fn overridden_below(cgroup: &Cgroup, policy: Policy<'static>) -> Option<String> {
    const NAMED: usize = 3;
    if policy.mode != Mode::Force {
        return None;
    }
    let mut found = Vec::new();
    let look = |below: &Cgroup| {
        if below.id != cgroup.id {
            let others = bpf::attached(below.folder.as_fd())?
                .into_iter()
                .filter(|other| other.config != policy.config);
            found.extend(others.map(|other| (below.path.clone(), other)));
        }
        Ok(())
    };
    // The sweep reports the cgroups that the walk skips.
    walk(cgroup, look).ok()?;
    let (first, rest) = found.split_at_checked(NAMED).unwrap_or((&found, &[]));
    let mut named: Vec<_> = first
        .iter()
        .map(|(path, other)| format!("{} ({})", text::visible(name(path).as_bytes()), other.config))
        .collect();
    if !rest.is_empty() {
        named.push(format!("{} more", rest.len()));
    }
    (!named.is_empty()).then(|| format!("it overrides the policies of cgroups below: {}", named.join(", ")))
}

/// The policy of a cgroup, which applies to the processes in it.
pub struct InForce {
    /// The cgroup's path below the mount point.
    pub cgroup: String,
    /// The policy's values.
    pub config: Config,
    /// The policy's mode.
    pub mode: Mode,
}

/// Returns whether a cgroup is the root of the whole tree.
pub fn is_root(path: &Path) -> bool {
    Cgroup::open(path).is_ok_and(|cgroup| cgroup.is_root())
}

/// The policies of a process's cgroup and of those above it, its own first; or why they cannot be found out.
pub fn policies_of(pid: i32) -> Result<Vec<InForce>, String> {
    let root = host::cgroup_root().ok_or(host::NO_CGROUPS)?;
    let own =
        host::cgroup_of(&pid.to_string()).ok_or_else(|| match fs::read(format!("/proc/{pid}/cgroup")) {
            Err(error) => format!("/proc does not say which cgroup it is in: {}", reason(&error)),
            Ok(_) => "its cgroup is not of version 2".to_owned(),
        })?;
    let mut found = Vec::new();
    for path in own.ancestors().take_while(|path| path.starts_with(&root)) {
        let policies = Cgroup::open(path).and_then(|cgroup| bpf::attached(cgroup.folder.as_fd()));
        let policies = policies.map_err(|error| refusal(&error))?.into_iter();
        found.extend(policies.map(|Policy { config, mode, .. }| InForce {
            cgroup: name(path),
            config,
            mode,
        }));
    }
    Ok(found)
}

/// Why the kernel does not say what is attached to a cgroup.
pub fn refusal(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "needs CAP_NET_ADMIN and CAP_SYS_ADMIN (run ka as root)".to_owned(),
        _ => reason(error),
    }
}

/// Whether what was asked has gone meanwhile: a cgroup, or a process.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH))
}
