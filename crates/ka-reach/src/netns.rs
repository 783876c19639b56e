//! Network namespaces: those of processes, and those that have a name of ip-netns(8).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::escape::lossless;
use crate::file;
use crate::process;
use crate::sys;
use crate::{Error, Result};

/// The folder in which ip-netns(8) keeps its names.
const NAMES: &str = "/run/netns";

/// A network namespace. It exists as long as its file is open.
pub struct Namespace {
    /// A name that `ka ls --netns` accepts.
    pub name: Arc<str>,
    file: File,
    inode: u64,
}

impl Namespace {
    /// Opens a namespace by a name of ip-netns(8), a path, or a PID.
    ///
    /// # Errors
    ///
    /// [`Error::Namespace`] with the reason.
    pub fn named(netns: &OsStr) -> Result<Self> {
        let path = path(netns);
        Self::open(&path, &lossless(netns.as_bytes()))
            .map_err(|error| Error::namespace(path.display(), explain(error)))
    }

    /// Opens the network namespace of the calling thread. Its name is not meant for people.
    pub(crate) fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"), "current")
    }

    /// Returns the inode, which is unique while the namespace exists.
    pub(crate) const fn inode(&self) -> u64 {
        self.inode
    }

    fn open(path: &Path, name: &str) -> io::Result<Self> {
        let file = file::open_regular(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { name: name.into(), file, inode })
    }

    /// Moves the calling thread into the namespace. The move needs CAP_SYS_ADMIN, even if the thread is in the
    /// namespace already.
    ///
    /// # Errors
    ///
    /// [`Error::Namespace`] with the reason. The thread stays in its namespace.
    pub fn enter(&self) -> Result<()> {
        sys::enter_network(self.file.as_fd()).map_err(|error| Error::namespace(&self.name, explain(error)))
    }

    /// Returns whether this process is in the namespace.
    pub fn is_current(&self) -> bool {
        fs::metadata("/proc/self/ns/net").is_ok_and(|current| current.ino() == self.inode)
    }
}

/// Moves the calling thread into the network namespace of a socket, unless the thread is there already. The move needs
/// CAP_SYS_ADMIN.
///
/// # Errors
///
/// [`Error::NotNetAdmin`] if this process may not administer the namespace, or the reason why the move failed.
pub(crate) fn enter_that_of(socket: BorrowedFd<'_>) -> Result<()> {
    let namespace = sys::network_of(socket).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::NotNetAdmin,
        _ => error.into(),
    })?;
    if fs::metadata("/proc/thread-self/ns/net")?.ino() == sys::inode(namespace.as_fd())? {
        return Ok(());
    }
    sys::enter_network(namespace).map_err(explain)
}

/// Returns the path of a namespace. The user gives a name of ip-netns(8), a path or a PID. A name takes precedence
/// over a PID.
fn path(netns: &OsStr) -> PathBuf {
    let text = netns.as_encoded_bytes();
    let named = Path::new(NAMES).join(netns);
    if text.contains(&b'/') {
        netns.into()
    } else if !named.exists() && text.iter().all(u8::is_ascii_digit) {
        Path::new("/proc").join(netns).join("ns/net")
    } else {
        named
    }
}

/// Explains an error of opening or entering a namespace. setns(2)
pub(crate) fn explain(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::MissingCapabilities(vec!["CAP_SYS_ADMIN"]),
        Some(libc::EINVAL) => Error::NotNetworkNamespace,
        _ => error.into(),
    }
}

/// Returns the names that ip-netns(8) has given, by the inode of the namespace.
fn names() -> HashMap<u64, String> {
    let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let inode = fs::metadata(entry.path()).ok()?.ino();
            Some((inode, lossless(entry.file_name().as_bytes()).into_owned()))
        })
        .collect()
}

/// Returns the network namespaces of these processes and of their threads. Also returns the processes whose namespaces
/// could not be opened.
///
/// The name of a namespace is that of ip-netns(8). If it has none there, the name is the ID of a thread in it. If this
/// number is the ip-netns(8) name of another namespace, the name is a path in /proc.
pub fn of(pids: &[i32]) -> (Vec<Namespace>, Vec<(i32, io::Error)>) {
    let names = names();
    let mut found = Vec::new();
    let mut known = HashSet::new();
    let mut refused = Vec::new();
    for pid in pids {
        let result = process::tasks(*pid).and_then(|tasks| {
            for task in tasks {
                let path = PathBuf::from(format!("/proc/{pid}/task/{task}/ns/net"));
                let inode = match fs::metadata(&path) {
                    Ok(metadata) => metadata.ino(),
                    // The task has ended.
                    Err(error) if process::is_gone(error.raw_os_error()) => continue,
                    Err(error) => return Err(error),
                };
                if known.contains(&inode) {
                    continue;
                }
                let number = task.to_string();
                let name = match names.get(&inode) {
                    Some(name) => name,
                    None if names.values().any(|name| *name == number) => &path.display().to_string(),
                    None => &number,
                };
                match Namespace::open(&path, name) {
                    Ok(namespace) => {
                        known.insert(inode);
                        found.push(namespace);
                    }
                    Err(error) if process::is_gone(error.raw_os_error()) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        if let Err(error) = result
            && !process::is_gone(error.raw_os_error())
            && !process::is_kernel_thread(*pid)
        {
            refused.push((*pid, error));
        }
    }
    (found, refused)
}

/// Returns the network namespaces to list for these processes. An empty list means the namespace that ka runs in.
///
/// If ka may not open the namespace of a process, it may not examine the process either, and the listing reports that.
pub fn to_list(pids: &[i32]) -> Vec<Namespace> {
    let (mut namespaces, _) = of(pids);
    if namespaces.iter().all(Namespace::is_current) {
        namespaces.clear();
    }
    namespaces
}
