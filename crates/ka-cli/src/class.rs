//! The classes that net_cls and net_prio, controllers of cgroups of version 1, give to sockets.
//!
//! A process that receives a descriptor of a socket gives the socket its own class, also by pidfd_getfd(2)
//! (net/core/scm.c and fs/file.c, `__receive_sock`). A firewall or a queue that goes by classes would then take the
//! socket for ka's. So the thread that takes a duplicate first enters the cgroups of the process that has the socket.
//! Where no such hierarchy is mounted there are no classes, and this costs nothing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::bpf::host;
use crate::process::Table;

const CONTROLLERS: [&[u8]; 2] = [b"net_cls", b"net_prio"];

/// Where a thread is in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Its controllers, as /proc/PID/cgroup has them: `net_cls,net_prio`.
    controllers: Vec<u8>,
    path: Vec<u8>,
}

/// The hierarchies with classes in the text of /proc/PID/cgroup. cgroups(7)
fn places(text: &[u8]) -> Vec<Place> {
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let mut names = controllers.split(|byte| *byte == b',');
            names
                .any(|name| CONTROLLERS.contains(&name))
                .then(|| Place { controllers: controllers.to_vec(), path: path.to_vec() })
        })
        .collect()
}

/// The classes of the calling thread.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    own: Vec<Place>,
    /// Process and task whose cgroups these are.
    at: Option<(i32, i32)>,
}

impl Classes {
    /// Those of this process. `None` if no hierarchy has any.
    pub(crate) fn of_this_process() -> Option<Self> {
        let own = places(&fs::read("/proc/self/cgroup").unwrap_or_default());
        (!own.is_empty()).then_some(Self { own, at: None })
    }

    /// Moves the calling thread into the cgroups of a task, so that a socket of the task keeps its class.
    pub(crate) fn enter(&mut self, table: &Table) -> Result<(), String> {
        let task = table.task();
        if self.at == Some((table.pid, task)) {
            return Ok(());
        }
        let text = fs::read(format!("/proc/{}/task/{task}/cgroup", table.pid));
        // One that has ended has no sockets left to lose a class.
        let theirs = places(&text.unwrap_or_default());
        for place in theirs {
            if !self.own.contains(&place) {
                enter(&place).map_err(|error| {
                    let controllers = String::from_utf8_lossy(&place.controllers);
                    format!(
                        "its sockets have a class of {controllers} (cgroup {}), which they would lose by this, and ka \
                         cannot enter that cgroup: {error}; {INSTEAD}",
                        String::from_utf8_lossy(&place.path)
                    )
                })?;
                self.own.retain(|own| own.controllers != place.controllers);
                self.own.push(place);
            }
        }
        self.at = Some((table.pid, task));
        Ok(())
    }
}

/// What helps where classes cannot be kept.
const INSTEAD: &str =
    "run ka as root where the hierarchy is mounted, or ka attach --all --via bpf, or --lose-class";

/// Moves the calling thread.
fn enter(place: &Place) -> io::Result<()> {
    let mounts = fs::read("/proc/thread-self/mountinfo")?;
    let found = mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let (shown, mounted) = host::cgroup_v1_mount(line, &place.controllers)?;
        // A part of the tree may be mounted, as in a container.
        let below = match shown.as_slice() {
            b"/" => place.path.as_slice(),
            shown => place.path.strip_prefix(shown)?,
        };
        let below = below.strip_prefix(b"/").unwrap_or(below);
        Some(mounted.join(PathBuf::from(OsString::from_vec(below.to_vec()))).join("tasks"))
    });
    let tasks = found.ok_or_else(|| io::Error::other("it is not mounted here"))?;
    fs::write(tasks, "0")
}

#[cfg(test)]
mod tests {
    use super::{Place, places};

    #[test]
    fn only_hierarchies_with_classes_count() {
        let text = b"11:net_prio:/a:b\n10:cpu,net_cls:/\n9:name=net_cls:/x\n8:pids:/\n0::/net_cls\n";
        let place = |controllers: &[u8], path: &[u8]| Place {
            controllers: controllers.to_vec(),
            path: path.to_vec(),
        };
        assert_eq!(places(text), [place(b"net_prio", b"/a:b"), place(b"cpu,net_cls", b"/")]);
        assert_eq!(places(b""), []);
    }
}
