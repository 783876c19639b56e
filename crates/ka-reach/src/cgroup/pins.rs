//! Pins: the paths in the bpf filesystem that keep a cgroup's policy attached.
//!
//! ka pins the links of a cgroup's programs in a folder of their own. So the policy stays when ka has ended, and goes
//! when the folder or the cgroup is removed.

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

/// The cgroup that pins are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The cgroup with this ID.
    Cgroup(u64),
    /// A cgroup that has been removed.
    Removed,
    /// The kernel does not report the cgroup, or the folder has no link.
    Unknown,
}

/// The pins of a policy: a folder in the bpf filesystem.
pub struct Pins {
    /// The folder.
    pub folder: PathBuf,
    /// The cgroup.
    pub owner: Owner,
}

/// The folder that contains the folders of all cgroups. A cgroup's folder is named by its ID.
fn root() -> PathBuf {
    Path::new(BPF_FOLDER).join("ka")
}

/// Returns the error of a file operation on this path.
fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::io(path.display(), error)
}

impl Pins {
    fn open(folder: PathBuf) -> Self {
        let owner = match bpf::pinned_cgroup(&folder.join(bpf::SOCK_OPS)) {
            Ok(0) => Owner::Removed,
            Ok(id) => Owner::Cgroup(id),
            Err(_) => Owner::Unknown,
        };
        Self { folder, owner }
    }

    /// Returns all pins of ka. If [`Pins::check_root`] fails, there are none.
    #[must_use]
    pub fn all() -> Vec<Self> {
        if Self::check_root().is_err() {
            return Vec::new();
        }
        let entries = fs::read_dir(root()).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| Self::open(entry.path())).collect()
    }

    /// Returns all pins of a cgroup. There are several if an attach was interrupted. Folders with the cgroup's name are
    /// included, unless they are known to be another cgroup's.
    #[must_use]
    pub fn of(cgroup: &Cgroup) -> Vec<Self> {
        let own = cgroup.id.to_string();
        let is_named = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
            name.split(|byte| *byte == b'_').next() == Some(own.as_bytes())
        };
        let mut pins = Self::all();
        pins.retain(|Self { folder, owner }| match owner {
            Owner::Cgroup(id) => *id == cgroup.id,
            Owner::Removed | Owner::Unknown => is_named(folder),
        });
        pins
    }

    /// Checks that only root and the user of this process can change the pins. A bpf filesystem mounted by mount(8)
    /// lets every user make folders in it. Such a folder may be a link to any other place, so ka must not write to it
    /// or remove anything from it.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignPins`], or the folder cannot be examined. It is no error if it does not exist.
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

    /// Keeps other processes of ka from changing the pins while the returned file is open. Otherwise they would
    /// remove a folder that is not complete yet. `None` if there are no pins.
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

    /// Attaches a policy's programs to a cgroup and pins them. They replace the cgroup's earlier policy. At every
    /// moment one of the two policies is in force.
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
        // Interrupted attempts are released too, but only after their replacement is attached. One of them may be the
        // only policy in force.
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
        // Pins of removed cgroups have no effect any more.
        for pins in Self::all() {
            if pins.owner == Owner::Removed {
                let _ = release(&pins.folder);
            }
        }
        Ok(())
    }

    /// Reads the policy. `None` if the record is not one of ka's.
    ///
    /// # Errors
    ///
    /// The folder has no record, or bpf(2) fails.
    pub fn policy(&self) -> io::Result<Option<Policy<'static>>> {
        bpf::pinned_policy(&self.folder.join(bpf::RECORD))
    }

    /// Detaches the policy and removes the folder. When this returns, the policy is not in force any more.
    ///
    /// # Errors
    ///
    /// A program cannot be detached or a file cannot be removed. Then some pins may be left.
    pub fn release(self) -> Result<()> {
        release(&self.folder).map_err(failed(&self.folder))
    }
}

/// Returns the path of a folder for a cgroup that does not exist yet. Interrupted attempts may have left others.
fn unused(cgroup: &Cgroup, purpose: &str) -> PathBuf {
    let numbered = |number| root().join(format!("{}_{purpose}{number}", cgroup.id));
    let is_unused = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    (1..=u32::MAX).map(numbered).find(is_unused).unwrap_or_else(|| numbered(0))
}

fn release(folder: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // When its pin is removed, a link ends only a moment later, so it is detached first. The record is no link.
        if !path.ends_with(bpf::RECORD) {
            result = result.and(bpf::detach_pinned(&path));
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(folder)?;
    result
}
