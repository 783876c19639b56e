//! Socket classes of net_cls and net_prio, two controllers of cgroups of version 1.
//!
//! A socket's class is that of a cgroup. Firewalls and traffic queues can select sockets by class. If a process
//! receives a socket's descriptor, the kernel gives the socket the class of the receiver (`__receive_sock` in
//! net/core/scm.c and fs/file.c). pidfd_getfd(2) is such a receive. So if ka duplicated a socket out of a process, the
//! socket would get the class of ka.
//!
//! To keep the class, the thread that duplicates a socket first enters the cgroups of the task that has the socket. If
//! no hierarchy has these controllers, there are no classes and ka skips this work.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::cgroup::mounts;
use crate::error::{Error, Result};
use crate::process::DescriptorTable;

const CONTROLLERS: [&[u8]; 2] = [b"net_cls", b"net_prio"];

/// The cgroup of a thread in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The hierarchy's controllers, as in /proc/PID/cgroup: `net_cls,net_prio`.
    controllers: Vec<u8>,
    path: Vec<u8>,
}

/// Parses the text of /proc/PID/cgroup. Returns the cgroups in the hierarchies that have classes. cgroups(7)
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

/// The calling thread's cgroups in the hierarchies that have classes.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    /// The thread's original cgroups.
    home: Vec<Place>,
    /// The thread's current cgroups.
    own: Vec<Place>,
    /// The process and the task whose cgroups the thread has entered.
    at: Option<(i32, i32)>,
}

impl Classes {
    /// Returns the cgroups of this process. `None` if no hierarchy has classes.
    pub(crate) fn of_this_process() -> Option<Self> {
        let own = places(&fs::read("/proc/self/cgroup").unwrap_or_default());
        (!own.is_empty()).then(|| Self { home: own.clone(), own, at: None })
    }

    /// Moves the calling thread into the cgroups of a table's task, so that the task's sockets keep their class. If
    /// this fails, the thread may have entered some of the cgroups.
    pub(crate) fn enter(&mut self, table: &DescriptorTable) -> Result<()> {
        let task = table.task();
        if self.at == Some((table.pid, task)) {
            return Ok(());
        }
        self.enter_task(task)?;
        self.at = Some((table.pid, task));
        Ok(())
    }

    /// Moves the calling thread into the current cgroups of a task.
    pub(crate) fn enter_task(&mut self, task: i32) -> Result<()> {
        self.at = None;
        // A task that has ended has no sockets that could lose a class.
        let text = fs::read(format!("/proc/{task}/cgroup"));
        self.move_to(places(&text.unwrap_or_default()))
    }

    /// Moves the calling thread back to its original cgroups. The kernel does not remove a cgroup that has a thread.
    pub(crate) fn go_home(&mut self) {
        if self.own != self.home {
            let _ = self.move_to(self.home.clone());
        }
    }

    fn move_to(&mut self, places: Vec<Place>) -> Result<()> {
        for place in places {
            if !self.own.contains(&place) {
                enter(&place).map_err(|source| Error::ClassLost {
                    controllers: String::from_utf8_lossy(&place.controllers).into_owned(),
                    cgroup: String::from_utf8_lossy(&place.path).into_owned(),
                    source,
                })?;
                self.own.retain(|own| own.controllers != place.controllers);
                self.own.push(place);
            }
        }
        Ok(())
    }
}

/// Moves the calling thread into a cgroup. The error is `None` if the hierarchy is not mounted.
fn enter(place: &Place) -> std::result::Result<(), Option<io::Error>> {
    let lines = fs::read("/proc/thread-self/mountinfo").map_err(Some)?;
    let found = lines.split(|byte| *byte == b'\n').find_map(|line| {
        let (shown, mounted) = mounts::parse_v1(line, &place.controllers)?;
        // The mount may show only a part of the hierarchy, as in a container.
        let below = match shown.as_slice() {
            b"/" => place.path.as_slice(),
            shown => place.path.strip_prefix(shown)?,
        };
        let below = below.strip_prefix(b"/").unwrap_or(below);
        Some(mounted.join(PathBuf::from(OsString::from_vec(below.to_vec()))).join("tasks"))
    });
    fs::write(found.ok_or(None)?, "0").map_err(Some)
}

#[cfg(test)]
mod tests {
    use super::{Place, places};

    #[test]
    fn only_net_cls_and_net_prio_hierarchies_are_returned() {
        let text = b"11:net_prio:/a:b\n10:cpu,net_cls:/\n9:name=net_cls:/x\n8:pids:/\n0::/net_cls\n";
        let place = |controllers: &[u8], path: &[u8]| Place {
            controllers: controllers.to_vec(),
            path: path.to_vec(),
        };
        assert_eq!(places(text), [place(b"net_prio", b"/a:b"), place(b"cpu,net_cls", b"/")]);
        assert_eq!(places(b""), []);
    }
}
