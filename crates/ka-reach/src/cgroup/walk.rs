//! A walk through a cgroup and all cgroups below it.
//!
//! A user to whom a cgroup is delegated can create any number of cgroups in it. Their paths may be longer than
//! `PATH_MAX`, and thousands of levels deep. The user may create new ones as fast as ka visits the others. None of this
//! may keep the walk from the cgroups of other users. So the walk has three rules:
//!
//! - Long paths: the walk opens each cgroup by its name in the parent (openat(2)), and returns through "..". A cgroup
//!   cannot be moved, so ".." leads back to the same parent.
//! - Depth: the walk does not recurse, and holds two descriptors at any depth.
//! - Growth: the walk stops after a number of cgroups that depends on the number of cgroups at its start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cgroup, is_gone, name};
use crate::error::Error;
use crate::escape;
use crate::sys;

/// The cgroups that a walk skipped, grouped by the text of the reason.
#[derive(Default)]
pub struct Skipped(BTreeMap<String, Skip>);

/// The cgroups that a walk skipped for the same reason. The cgroups below them were skipped too.
#[derive(Debug, Serialize, Deserialize)]
pub struct Skip {
    /// The number of these cgroups, without those below them.
    pub count: usize,
    /// The name of the first one.
    pub first: String,
    /// The reason.
    pub reason: Error,
}

impl Skipped {
    fn add(&mut self, reason: Error, path: &Path) {
        let text = reason.to_string();
        self.0.entry(text).or_insert_with(|| Skip { count: 0, first: name(path), reason }).count += 1;
    }

    /// Returns whether the walk skipped no cgroup.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Skipped {
    type Item = Skip;
    type IntoIter = std::collections::btree_map::IntoValues<String, Skip>;

    /// Returns an item for each reason, sorted by its text.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first, reason } = self;
        let first = Shortened(first);
        if *count == 1 {
            write!(f, "1 cgroup was not examined, nor the cgroups below it: {first}: {reason}")
        } else {
            write!(
                f,
                "{count} cgroups were not examined, nor the cgroups below them, such as {first}: {reason}"
            )
        }
    }
}

/// A path, shortened to about one line of a terminal.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LENGTH: usize = 80;
        let Self(name) = self;
        match name.char_indices().nth(LENGTH) {
            None => f.write_str(&escape::visible(name.as_bytes())),
            Some((end, _)) => {
                let start = name.get(..end).unwrap_or_default();
                write!(f, "{}... ({} bytes)", escape::visible(start.as_bytes()), name.len())
            }
        }
    }
}

/// Calls `look` for a cgroup and for all cgroups below it. Ignores cgroups that are removed during the walk.
///
/// # Errors
///
/// If `look` fails with EPERM, the walk ends with this error, because `look` would fail everywhere. After other
/// errors the cgroup is returned as skipped.
pub fn walk(start: &Cgroup, look: impl FnMut(&Cgroup) -> io::Result<()>) -> io::Result<Skipped> {
    // Users may create cgroups during the walk. The limit ends the walk if a user creates them without end.
    let most = descendants(start).unwrap_or(1_000_000).saturating_mul(2).saturating_add(10_000);
    walk_at_most(most, start, look)
}

/// Returns the number of cgroups below this one.
fn descendants(cgroup: &Cgroup) -> Option<usize> {
    let mut text = String::new();
    cgroup.file("cgroup.stat").ok()?.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("nr_descendants ")?.parse().ok())
}

/// A cgroup on the path from the start to the current cgroup, and its children that the walk has not visited.
struct Level {
    id: u64,
    below: std::vec::IntoIter<OsString>,
}

fn walk_at_most(
    most: usize,
    start: &Cgroup,
    mut look: impl FnMut(&Cgroup) -> io::Result<()>,
) -> io::Result<Skipped> {
    let mut skipped = Skipped::default();
    let mut visit = |cgroup: &Cgroup, skipped: &mut Skipped| -> io::Result<Level> {
        match look(cgroup) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(error),
            Err(error) if !is_gone(&error) => skipped.add(open_error(error), &cgroup.path),
            _ => {}
        }
        let mut below = sys::folders(cgroup.as_fd()).unwrap_or_else(|error| {
            if !is_gone(&error) {
                skipped.add(open_error(error), &cgroup.path);
            }
            Vec::new()
        });
        below.sort_unstable();
        Ok(Level { id: cgroup.id, below: below.into_iter() })
    };
    // Open the folder again: a duplicate of the descriptor would share its read position.
    let mut here = Cgroup { folder: start.below(".".as_ref())?, path: start.path.clone(), id: start.id };
    let mut levels = vec![visit(&here, &mut skipped)?];
    let mut left = most;
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.next() {
            let opened = here.below(&name).and_then(|folder| Ok((sys::inode(folder.as_fd())?, folder)));
            match opened {
                Ok(_) if left == 0 => {
                    skipped.add(Error::EndlessCgroups(most), &here.path);
                    break;
                }
                Ok((id, folder)) => {
                    left -= 1;
                    (here.folder, here.id) = (folder, id);
                    here.path.push(name);
                    levels.push(visit(&here, &mut skipped)?);
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => skipped.add(open_error(error), &here.path.join(name)),
            }
        } else {
            levels.pop();
            let Some(above) = levels.last() else { break };
            let returned =
                here.below("..".as_ref()).and_then(|folder| Ok((sys::inode(folder.as_fd())?, folder)));
            let error = match returned {
                Ok((id, folder)) if id == above.id => {
                    (here.folder, here.id) = (folder, id);
                    here.path.pop();
                    continue;
                }
                Ok(_) => Error::ParentChanged,
                Err(error) => Error::io("cannot return to the parent cgroup", error),
            };
            skipped.add(error, &here.path);
            break;
        }
    }
    Ok(skipped)
}

/// Explains why a cgroup cannot be opened or read.
fn open_error(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EACCES) => Error::UnreadableCgroup,
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;

    use super::{Cgroup, walk_at_most};
    use crate::sys;

    /// A tree of ordinary folders. The walk treats them like cgroups.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ka-walk-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn start(&self) -> Cgroup {
            Cgroup::open(&self.0).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// Nests folders so deeply that the path of the innermost is longer than `PATH_MAX`. Makes one folder beside the
    /// outermost.
    fn nest(tree: &Tree, levels: usize, name: &str) {
        let mut folder = tree.start().folder;
        for _ in 0..levels {
            let here = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder)));
            fs::create_dir(here.join(name)).unwrap();
            folder = fs::File::open(here.join(name)).unwrap();
        }
        fs::create_dir(tree.0.join("~last")).unwrap();
    }

    #[test]
    fn folders_deeper_than_a_path_can_name_are_visited() {
        let tree = Tree::new("deep");
        nest(&tree, 40, &"n".repeat(250));
        let mut visited = Vec::new();
        let skipped = walk_at_most(100, &tree.start(), |cgroup| {
            assert_eq!(sys::inode(cgroup.as_fd())?, cgroup.id);
            visited.push(cgroup.path.clone());
            Ok(())
        });
        assert!(skipped.unwrap().is_empty());
        assert_eq!(visited.len(), 42);
        assert!(visited.iter().any(|path| path.as_os_str().len() > 10_000));
        assert_eq!(visited.last(), Some(&tree.0.join("~last")));
        // Cgroup::open opens paths that are too long for one open(2).
        for path in &visited {
            Cgroup::open(path).unwrap();
        }
    }

    #[test]
    fn unreadable_folders_are_reported_and_the_rest_is_visited() {
        let tree = Tree::new("reported");
        for name in ["a", "b", "b/gone", "c", "d"] {
            fs::create_dir(tree.0.join(name)).unwrap();
        }
        let mut visited = 0;
        let skipped = walk_at_most(100, &tree.start(), |cgroup| {
            visited += 1;
            match cgroup.path.file_name().unwrap().to_str() {
                // Remove this branch while the walk is in it, and another branch before the walk reaches it.
                Some("gone") => {
                    for name in ["b/gone", "b", "c"] {
                        fs::remove_dir(tree.0.join(name))?;
                    }
                    Ok(())
                }
                Some("a") => Err(io::Error::from_raw_os_error(libc::EBADF)),
                Some("d") => Err(io::Error::from_raw_os_error(libc::ENODEV)),
                _ => Ok(()),
            }
        });
        assert_eq!(visited, 5);
        let lines: Vec<_> = skipped.unwrap().into_iter().map(|skip| skip.to_string()).collect();
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(
            line.starts_with("1 cgroup was not examined, nor the cgroups below it: ")
                && line.contains("/a: "),
            "{line}"
        );

        let refused = walk_at_most(100, &tree.start(), |_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(refused.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)));
    }

    /// The test makes two more folders in each folder that the walk visits.
    #[test]
    fn the_walk_ends_in_a_tree_that_grows() {
        let tree = Tree::new("growing");
        let mut visited = 0;
        let skipped = walk_at_most(50, &tree.start(), |cgroup| {
            visited += 1;
            let here =
                PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&cgroup.folder)));
            fs::create_dir(here.join("a"))?;
            fs::create_dir(here.join("b"))
        });
        assert_eq!(visited, 51);
        let line = skipped.unwrap().into_iter().next().unwrap().to_string();
        assert!(line.contains("ka stopped after 50"), "{line}");
    }
}
