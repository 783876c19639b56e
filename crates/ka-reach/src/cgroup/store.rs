//! The policies that ka has attached to cgroups, kept by paths in the bpf filesystem.
//!
//! The links of a cgroup's programs are pinned in a folder of its own. So they stay when ka has ended, and go when the
//! folder or the cgroup is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Cgroup;
use crate::bpf::host::{self, BPF_FOLDER};
use crate::bpf::{self, Programs};
use crate::sys::{self, users};
use crate::text::reason;

impl Cgroup {
    /// Where what is attached to it is kept.
    pub fn pins(&self) -> PathBuf {
        pins().join(self.id.to_string())
    }

    /// A folder beside that, which is not there: two of one purpose are, where an attach was ended halfway.
    pub fn spare_pins(&self, purpose: &str) -> PathBuf {
        let named = |number| pins().join(format!("{}_{purpose}{number}", self.id));
        let is_free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
        (1..=u32::MAX).map(named).find(is_free).unwrap_or_else(|| named(0))
    }

    /// All folders where something of it is kept, whatever they are called, and those of its name in which nothing says
    /// whose it is.
    pub fn kept(&self) -> Vec<PathBuf> {
        let own = self.id.to_string();
        let is_own = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
            name.split(|byte| *byte == b'_').next() == Some(own.as_bytes())
        };
        let is_kept = |folder: &Path, id: Option<u64>| match id {
            None | Some(0) => is_own(folder),
            Some(id) => id == self.id,
        };
        kept().into_iter().filter(|(folder, id)| is_kept(folder, *id)).map(|(folder, _)| folder).collect()
    }
}

/// Where all that ka has attached is kept, a folder a cgroup, named by its number.
pub fn pins() -> PathBuf {
    Path::new(BPF_FOLDER).join("ka")
}

/// A bpf filesystem that mount(8) has mounted lets everybody make folders in it. What somebody else has made there, or may
/// write to, is not for us to keep anything in, nor to remove anything from: it may lead anywhere.
pub fn check_pins() -> Result<(), String> {
    let path = pins();
    let (_, user) = users();
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {}", path.display(), reason(&error))),
        Ok(found) if found.is_dir() && [0, user].contains(&found.uid()) && found.mode() & 0o022 == 0 => {
            Ok(())
        }
        Ok(found) => Err(format!(
            "{}: user {} made it, or others may write to it, so it is not used: remove it, and ka makes one of its own",
            path.display(),
            found.uid()
        )),
    }
}

/// While this is open, no other ka changes what is kept: what stands half done is removed by the next.
pub fn lock_pins() -> Result<Option<File>, String> {
    let said = |error: io::Error| format!("{}: {}", pins().display(), reason(&error));
    match File::open(pins()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => {
            let folder = opened.map_err(said)?;
            sys::lock(folder.as_fd()).map_err(said)?;
            Ok(Some(folder))
        }
    }
}

/// Attaches the programs, and keeps them; what was attached to the cgroup before is replaced. At every moment one of both
/// is in force, and a failure leaves what was.
pub fn keep(cgroup: &Cgroup, programs: &Programs) -> Result<(), String> {
    let said = |path: &Path, error: io::Error| format!("{}: {}", path.display(), reason(&error));
    match DirBuilder::new().mode(0o700).create(pins()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(said(&pins(), error)),
        _ => check_pins()?,
    }
    let _lock = lock_pins()?;
    // What was there is all released when what takes its place is there: also what an attempt has left that was ended
    // halfway, which may be all that is in force.
    let mut before = cgroup.kept();
    let (folder, new, old) = (cgroup.pins(), cgroup.spare_pins("new"), cgroup.spare_pins("old"));
    DirBuilder::new().mode(0o700).create(&new).map_err(|error| said(&new, error))?;
    let pinned = programs.link(cgroup.folder.as_fd()).and_then(|links| {
        let links = links.iter().map(|(name, link)| (*name, link.as_fd()));
        for (name, kept) in links.chain([programs.record()]) {
            let path = new.join(name);
            bpf::sys::pin(kept, &path).map_err(|error| said(&path, error))?;
        }
        Ok(())
    });
    let moved = pinned.and_then(|()| {
        if folder.exists() {
            fs::rename(&folder, &old).map_err(|error| said(&folder, error))?;
        }
        fs::rename(&new, &folder).map_err(|error| said(&new, error))
    });
    if let Err(why) = moved {
        let _ = fs::rename(&old, &folder);
        let _ = release(&new);
        return Err(why);
    }
    before.retain(|path| *path != folder);
    for path in before.iter().chain([&old]) {
        let _ = release(path);
    }
    // What is kept for cgroups that are gone is of no use to anybody.
    for (folder, id) in kept() {
        if id == Some(0) {
            let _ = release(&folder);
        }
    }
    Ok(())
}

/// The folders of what is kept, and the cgroup of each: 0 where it is gone, `None` where that cannot be found out.
pub fn kept() -> Vec<(PathBuf, Option<u64>)> {
    if check_pins().is_err() {
        return Vec::new();
    }
    let entries = fs::read_dir(pins()).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| entry.path())
        .map(|folder| {
            let link = bpf::sys::pinned(&folder.join(bpf::GIVER));
            let id = link.and_then(|link| bpf::sys::linked_cgroup(link.as_fd())).ok();
            (folder, id)
        })
        .collect()
}

/// Detaches what a folder keeps, and removes it: when this returns, nothing of it is in force.
pub fn release(folder: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // By itself the link ends a moment after its last name has gone. Before Linux 5.9 that must do. What is recorded
        // beside the links detaches nothing.
        if !path.ends_with(bpf::RECORD) {
            match bpf::sys::pinned(&path).and_then(|link| bpf::sys::detach(link.as_fd())) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && host::release() < (5, 9) => {}
                detached => result = result.and(detached),
            }
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(folder)?;
    result
}
