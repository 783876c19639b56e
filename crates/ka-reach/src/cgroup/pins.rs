//! Pins: the paths in the bpf filesystem that keep a cgroup's policy attached.
//!
//! The kernel detaches a cgroup's BPF programs when the last reference to their links is gone. A descriptor is such a
//! reference, and a pin is another. ka pins the links of each cgroup in a folder. So the policy stays after ka has
//! ended, and ends when the folder or the cgroup is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use ka_policy::Policy;

use super::Cgroup;
use crate::bpf::host::BPF_FOLDER;
use crate::bpf::{self, Programs};
use crate::error::{Error, Result};
use crate::sys::{self, users};

/// The cgroup to which the pinned links attach a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinOwner {
    /// The cgroup with this ID.
    Cgroup(u64),
    /// A cgroup that has been removed.
    Removed,
    /// Unknown: the kernel does not report the cgroup, or the folder has no link.
    Unknown,
}

/// The pins of a policy: a folder in the bpf filesystem.
pub struct Pins {
    /// The folder.
    pub folder: PathBuf,
    /// The cgroup to which the policy is attached.
    pub owner: PinOwner,
}

/// Returns the folder that contains the folders of all cgroups. The name of a cgroup's folder is the cgroup's ID.
fn root() -> PathBuf {
    Path::new(BPF_FOLDER).join("ka")
}

/// Converts the error of a file operation on this path.
fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::io(path.display(), error)
}

impl Pins {
    fn open(folder: PathBuf) -> Self {
        let owner = match bpf::pinned_cgroup(&folder.join(bpf::SOCK_OPS)) {
            Ok(0) => PinOwner::Removed,
            Ok(id) => PinOwner::Cgroup(id),
            Err(_) => PinOwner::Unknown,
        };
        Self { folder, owner }
    }

    /// Returns all pins of ka. Returns none if [`Pins::check_root`] fails.
    #[must_use]
    pub fn all() -> Vec<Self> {
        if Self::check_root().is_err() {
            return Vec::new();
        }
        let entries = fs::read_dir(root()).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| Self::open(entry.path())).collect()
    }

    /// Returns all pins of a cgroup. There are several if an attach was interrupted. If the owner of a folder is
    /// removed or unknown, the folder's name decides.
    #[must_use]
    pub fn of(cgroup: &Cgroup) -> Vec<Self> {
        let own = cgroup.id.to_string();
        let is_named = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
            name.split(|byte| *byte == b'_').next() == Some(own.as_bytes())
        };
        let mut pins = Self::all();
        pins.retain(|Self { folder, owner }| match owner {
            PinOwner::Cgroup(id) => *id == cgroup.id,
            PinOwner::Removed | PinOwner::Unknown => is_named(folder),
        });
        pins
    }

    /// Checks that only root and the user of this process can change the pins.
    ///
    /// A bpf filesystem that was mounted with mount(8) lets every user create folders and symbolic links in it. So the
    /// path may be another user's, or lead to any other place. Then ka must not write to it or remove anything from it.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignPins`], or the folder cannot be examined. A missing folder is not an error.
    pub fn check_root() -> Result<()> {
        let path = root();
        let (_, user) = users();
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(path.display(), error)),
            Ok(found) if found.is_dir() && [0, user].contains(&found.uid()) && found.mode() & 0o022 == 0 => {
                Ok(())
            }
            Ok(found) => Err(Error::ForeignPins { path, owner: found.uid() }),
        }
    }

    /// Returns whether this process may list the pins.
    #[must_use]
    pub fn can_list() -> bool {
        root().read_dir().is_ok()
    }

    /// Locks the pins as long as the returned file is open. Without the lock, another process of ka could remove a
    /// folder that is not complete yet. Returns `None` if there are no pins.
    ///
    /// # Errors
    ///
    /// The folder of all pins cannot be opened or locked.
    pub fn lock() -> Result<Option<File>> {
        let path = root();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => {
                let folder = opened.map_err(failed(&path))?;
                sys::lock(folder.as_fd()).map_err(failed(&path))?;
                Ok(Some(folder))
            }
        }
    }

    /// Attaches a policy's programs to a cgroup and pins their links. They replace the cgroup's earlier policy. The
    /// earlier policy stays in force until the new one is.
    ///
    /// # Errors
    ///
    /// The programs cannot be attached or pinned, or [`Pins::check_root`] fails. Then the earlier policy stays in
    /// force.
    pub fn create(cgroup: &Cgroup, programs: &Programs) -> Result<()> {
        let root = root();
        match DirBuilder::new().mode(0o700).create(&root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&root)(error)),
            _ => Self::check_root()?,
        }
        let _lock = Self::lock()?;
        // Earlier, interrupted attaches are released too, but only after the new programs are attached. One of them may
        // be the only policy in force.
        let mut earlier = Self::of(cgroup);
        let folder = root.join(cgroup.id.to_string());
        let (new, old) = (unused(cgroup, "new"), unused(cgroup, "old"));
        DirBuilder::new().mode(0o700).create(&new).map_err(failed(&new))?;
        let moved = programs.pin(cgroup, &new).and_then(|()| {
            if folder.exists() {
                fs::rename(&folder, &old).map_err(failed(&folder))?;
            }
            fs::rename(&new, &folder).map_err(failed(&new))
        });
        if let Err(error) = moved {
            let _ = fs::rename(&old, &folder);
            let _ = release(&new);
            return Err(error);
        }
        earlier.retain(|pins| pins.folder != folder);
        for path in earlier.iter().map(|pins| &pins.folder).chain([&old]) {
            let _ = release(path);
        }
        // Pins of removed cgroups have no effect, so remove them too.
        for pins in Self::all() {
            if pins.owner == PinOwner::Removed {
                let _ = release(&pins.folder);
            }
        }
        Ok(())
    }

    /// Reads the policy from its pinned record. `None` if ka cannot parse the record.
    ///
    /// # Errors
    ///
    /// The folder has no record, or bpf(2) fails.
    pub fn policy(&self) -> io::Result<Option<Policy<'static>>> {
        bpf::pinned_policy(&self.folder.join(bpf::RECORD))
    }

    /// Detaches the policy and removes the folder. When this returns, the policy is no longer in force.
    ///
    /// # Errors
    ///
    /// A program cannot be detached or a file cannot be removed. Then some pins may be left.
    pub fn release(self) -> Result<()> {
        release(&self.folder).map_err(failed(&self.folder))
    }
}

/// Returns the path of a new folder for a cgroup. The path is numbered, because interrupted attaches may have left
/// folders.
fn unused(cgroup: &Cgroup, purpose: &str) -> PathBuf {
    let numbered = |number| root().join(format!("{}_{purpose}{number}", cgroup.id));
    let is_unused = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    (1..=u32::MAX).map(numbered).find(is_unused).unwrap_or_else(|| numbered(0))
}

fn release(folder: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // The kernel releases a link a moment after its last pin is removed. So detach the link first: then the policy
        // ends at once. The record is not a link.
        if !path.ends_with(bpf::RECORD) {
            result = result.and(bpf::detach_pinned(&path));
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(folder)?;
    result
}
