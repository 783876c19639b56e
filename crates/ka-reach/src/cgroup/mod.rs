//! Cgroups of version 2: their folders, and the policies that are attached to them. cgroups(7)
//!
//! BPF programs of a cgroup apply to the sockets of all its processes and of all cgroups below it. So several policies
//! can apply to one process: that of its cgroup, and those of the cgroups above. The kernel calls the programs of the
//! topmost cgroup last, so a policy in mode force overrides the policies below it.

pub(crate) mod mounts;
mod pins;
mod sweep;
mod walk;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ka_core::Config;
use ka_policy::{Mode, Policy};

use crate::bpf;
use crate::error::{Error, Result};
use crate::escape;
use crate::sys;

pub use mounts::{folder_of, is_cgroup_path, mount_point};
pub use pins::{PinOwner, Pins};
pub use sweep::{Foreground, LeftOut, OverriddenPolicies, SweepResult, sweep};
pub use walk::{Skip, Skipped, walk};

/// A cgroup, with its open folder.
pub struct Cgroup {
    folder: File,
    /// The path of the folder.
    pub path: PathBuf,
    /// The ID of the cgroup, which is the inode of its folder.
    pub id: u64,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Cgroup {
    /// Opens the cgroup with this name. The name is the path of the cgroup's folder, or its path in /proc/PID/cgroup
    /// with or without the leading slash.
    ///
    /// # Errors
    ///
    /// There is no such cgroup, cgroup v2 is not mounted, or the folder cannot be opened.
    pub fn named(name: &OsStr) -> Result<Self> {
        // An empty name is probably a shell variable that is not set. It must not select the root cgroup.
        if name.is_empty() {
            return Err(Error::EmptyCgroupName);
        }
        let root = mount_point()?;
        let path = Path::new(name);
        let within = root.join(path.strip_prefix("/").unwrap_or(path));
        for path in [path, &within] {
            let mut cgroup = match Self::open(path) {
                Ok(cgroup) if mounts::is_cgroup(&cgroup.folder) => cgroup,
                Err(error) if !is_gone(&error) && error.kind() != io::ErrorKind::NotADirectory => {
                    return Err(Error::io(path.display(), error));
                }
                _ => continue,
            };
            let absolute = match fs::canonicalize(path) {
                // The path is longer than the kernel accepts (`PATH_MAX`), so make it absolute without the kernel.
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => std::path::absolute(path),
                other => other,
            };
            cgroup.path = absolute.map_err(|error| Error::io(path.display(), error))?;
            return Ok(cgroup);
        }
        Err(Error::NotACgroup { name: path.to_path_buf(), root })
    }

    /// Returns whether this is the root of the whole hierarchy. Only the root has no file cgroup.type. cgroups(7)
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.file("cgroup.type").is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Opens a cgroup by the path of its folder. The path may be longer than `PATH_MAX`.
    ///
    /// # Errors
    ///
    /// The error of open(2). This does not check that the folder is that of a cgroup.
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
    fn below(&self, name: &OsStr) -> io::Result<File> {
        sys::open_at(self.as_fd(), name, libc::O_DIRECTORY)
    }

    /// Opens one of the cgroup's files.
    fn file(&self, name: &str) -> io::Result<File> {
        sys::open_at(self.as_fd(), name.as_ref(), 0)
    }

    /// Returns the cgroup's name as in /proc/PID/cgroup. Bytes that are not UTF-8 are written as `\xNN`.
    #[must_use]
    pub fn name(&self) -> String {
        name(&self.path)
    }

    /// Returns the policies that ka has attached directly to this cgroup.
    ///
    /// # Errors
    ///
    /// The error of bpf(2). See [`query_error`].
    pub fn policies(&self) -> io::Result<Vec<Policy<'static>>> {
        bpf::policies(self.as_fd())
    }

    /// Returns the policies of the cgroups above this one, the nearest first. Cgroups whose policies the kernel does
    /// not report are left out.
    #[must_use]
    pub fn policies_above(&self) -> Vec<(PathBuf, Policy<'static>)> {
        let mut found = Vec::new();
        let mut folder = self.below("..".as_ref());
        for path in self.path.ancestors().skip(1) {
            let Ok(open) = folder.as_ref() else { break };
            if !mounts::is_cgroup(open) {
                break;
            }
            let policies = bpf::policies(open.as_fd()).unwrap_or_default();
            found.extend(policies.into_iter().map(|policy| (path.to_path_buf(), policy)));
            folder = sys::open_at(open.as_fd(), "..".as_ref(), libc::O_DIRECTORY);
        }
        found
    }

    /// Returns the policy of a cgroup above that overrides `policy` in this cgroup. `None` if no cgroup above overrides
    /// it, or if the overriding policy has the same values.
    #[must_use]
    pub fn overriding(&self, policy: Policy<'static>) -> Option<InForce> {
        // The kernel calls the programs of the topmost cgroup last, so its policy in mode force prevails.
        let above = self.policies_above().into_iter().rfind(|(_, found)| found.mode == Mode::Force);
        let (path, found) = above.filter(|(_, found)| found.config != policy.config)?;
        Some(InForce::new(&path, found))
    }
}

fn name(path: &Path) -> String {
    let below = mount_point().ok().and_then(|root| Some(path.strip_prefix(root).ok()?.to_path_buf()));
    let name = below.map_or_else(|| path.to_path_buf(), |below| Path::new("/").join(below));
    escape::lossless(name.as_os_str().as_encoded_bytes()).into_owned()
}

/// A policy of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The cgroup's name, as [`Cgroup::name`] returns it.
    pub cgroup: String,
    /// The policy's values.
    pub config: Config,
    /// The policy's mode.
    pub mode: Mode,
}

impl InForce {
    fn new(path: &Path, Policy { config, mode, .. }: Policy<'_>) -> Self {
        Self { cgroup: name(path), config, mode }
    }
}

/// Returns whether a path is the root cgroup's folder.
#[must_use]
pub fn is_root(path: &Path) -> bool {
    Cgroup::open(path).is_ok_and(|cgroup| cgroup.is_root())
}

/// Returns the policies of a process's cgroup and of the cgroups above it. The policies of the process's own cgroup
/// come first.
///
/// # Errors
///
/// Cgroup v2 is not mounted, the process is in no cgroup of version 2, /proc cannot be read, or bpf(2) needs more
/// capabilities.
pub fn policies_of(pid: i32) -> Result<Vec<InForce>> {
    let root = mount_point()?;
    let mut found = Vec::new();
    for path in folder_of(pid)?.ancestors().take_while(|path| path.starts_with(&root)) {
        let policies = Cgroup::open(path).and_then(|cgroup| cgroup.policies()).map_err(query_error)?;
        found.extend(policies.into_iter().map(|policy| InForce::new(path, policy)));
    }
    Ok(found)
}

/// Explains why the kernel does not report the programs of a cgroup.
#[must_use]
pub fn query_error(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => Error::MissingCapabilities(vec!["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),
        _ => error.into(),
    }
}

/// Returns whether an error says that a cgroup was removed or a process has ended.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH))
}
