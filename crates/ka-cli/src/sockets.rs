//! TCP sockets with their owners and options: the kernel's list joined, by inode, with the descriptors of processes.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::thread;

use ka_core::Settings;

use crate::bpf;
use crate::diag::{Entry, State, dump};
use crate::parallel;
use crate::process::{self, Process, Table};
use crate::sys;

/// Who has a socket.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    /// `None` where it cannot be read.
    pub(crate) comm: Option<Arc<[u8]>>,
}

/// A TCP socket and all that could be found out about it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) entry: Entry,
    /// The process with the lowest number, and its lowest descriptor.
    pub(crate) owner: Option<Owner>,
    /// How many other processes have it too.
    pub(crate) others: usize,
    /// What is in force, where we may look.
    pub(crate) settings: Option<Settings>,
}

impl Socket {
    /// Whether keepalive is on, where that is known.
    pub(crate) fn keepalive(&self) -> Option<bool> {
        self.settings.map_or_else(|| self.entry.keepalive(), |settings| Some(settings.enabled))
    }
}

/// The sockets in some states; of one process, or of all.
///
/// A process may end at any moment: then it has none. The kernel's list and the processes' descriptors are read side by
/// side, and what changes between the two is left out. What is in force the kernel tells of all in one pass, where we may
/// have it do that; else, and of those that it has not told of, the sockets are asked one by one, through whoever has them.
pub(crate) fn sockets(states: &[State], pid: Option<i32>) -> io::Result<Vec<Socket>> {
    sys::raise_descriptor_limit();
    let (entries, holders, told) = thread::scope(|scope| {
        let told = thread::Builder::new().spawn_scoped(scope, || bpf::settings().unwrap_or_default());
        let entries = thread::Builder::new().spawn_scoped(scope, || dump(states));
        let holders = match pid {
            Some(pid) => tables(pid),
            None => others().map(|pids| pids.filter_map(leader).collect()),
        };
        let entries = match entries.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(entries)) => entries,
            _ => dump(states),
        };
        let told = told.ok().and_then(|told| told.join().ok()).unwrap_or_default();
        (entries, holders, told)
    });
    let holders = holders?;
    let socket = |entry: Entry| {
        let settings = told.get(&entry.cookie).copied();
        Socket { entry, owner: None, others: 0, settings }
    };
    let mut sockets: Vec<_> = entries?.into_iter().map(socket).collect();
    // By inode: those that nobody has come first.
    sockets.sort_unstable_by_key(|socket| socket.entry.inode);
    join(&mut sockets, &holders);
    if pid.is_some() {
        sockets.retain(|socket| socket.owner.is_some());
    } else if sockets.iter().any(|socket| socket.entry.inode != 0 && socket.owner.is_none()) {
        // What no leader has may be a task's with descriptors of its own.
        let holders: Vec<_> = others()?.flat_map(tasks).collect();
        join(&mut sockets, &holders);
    }
    Ok(sockets)
}

/// A table of descriptors, and those of them that are sockets.
struct Holder {
    pid: i32,
    /// `None` where it is held only if it is needed.
    table: Option<Table>,
    sockets: Vec<(i32, u32)>,
}

/// All processes but this one, which has what it was started with and nothing of its own.
fn others() -> io::Result<impl Iterator<Item = i32>> {
    Ok(process::all()?.into_iter().filter(|pid| u32::try_from(*pid) != Ok(std::process::id())))
}

/// What a process's leader has, if it may be looked at.
fn leader(pid: i32) -> Option<Holder> {
    let sockets = process::sockets(&format!("/proc/{pid}/fd")).ok()?;
    (!sockets.is_empty()).then_some(Holder { pid, table: None, sockets })
}

/// All that a process has, or why it may not be looked at.
fn tables(pid: i32) -> io::Result<Vec<Holder>> {
    let process = Process::open(pid)?;
    let holder = |table: Table| Ok(Holder { pid, sockets: table.sockets()?, table: Some(table) });
    process.tables()?.into_iter().map(|table| holder(table?)).collect()
}

/// What a process's tasks have that the leader has not.
fn tasks(pid: i32) -> Vec<Holder> {
    let Ok(process) = Process::open(pid) else { return Vec::new() };
    let tables = process.tables().unwrap_or_default().into_iter().flatten();
    tables
        .filter(|table| !table.is_leaders())
        .filter_map(|table| Some(Holder { pid, sockets: table.sockets().ok()?, table: Some(table) }))
        .collect()
}

/// Gives the sockets their owners, and asks each once for what is in force, where that is not known.
fn join(sockets: &mut [Socket], holders: &[Holder]) {
    let mut asked = Vec::new();
    for holder in holders {
        let mut comm: Option<Option<Arc<[u8]>>> = None;
        let mut held: Option<Option<Table>> = None;
        let mut seen = HashSet::new();
        for (fd, inode) in &holder.sockets {
            let place = with_inode(sockets, *inode);
            let found = sockets.get_mut(place.clone()).unwrap_or_default();
            let Some(first) = found.first() else { continue };
            if first.owner.is_some() {
                // A process that has it twice counts once.
                let is_its_own = first.owner.as_ref().is_some_and(|owner| owner.pid == holder.pid);
                if !is_its_own && seen.insert(*inode) {
                    for socket in found {
                        socket.others += 1;
                    }
                }
                continue;
            }
            let comm = comm.get_or_insert_with(|| process::comm(holder.pid).map(Arc::from));
            let is_known = found.iter().all(|socket| socket.settings.is_some());
            for socket in found {
                socket.owner = Some(Owner { pid: holder.pid, fd: *fd, comm: comm.clone() });
            }
            if !is_known {
                let table = held.get_or_insert_with(|| hold(holder));
                asked.extend(table.as_ref().map(|table| (place, table.clone(), *fd, *inode)));
            }
        }
    }
    let answers = parallel::map(&asked, |(_, table, fd, inode)| settings(table, *fd, *inode));
    for ((place, ..), settings) in asked.into_iter().zip(answers) {
        for socket in sockets.get_mut(place).unwrap_or_default() {
            socket.settings = socket.settings.or(settings);
        }
    }
}

fn hold(holder: &Holder) -> Option<Table> {
    match &holder.table {
        Some(table) => Some(table.clone()),
        None => Some(Process::open(holder.pid).ok()?.leader_table()),
    }
}

/// The sockets with an inode, which they are sorted by: more than one where it is a Multipath TCP socket with its
/// subflows.
fn with_inode(sockets: &[Socket], inode: u32) -> Range<usize> {
    let start = sockets.partition_point(|socket| socket.entry.inode < inode);
    let rest = sockets.get(start..).unwrap_or_default();
    start..start + rest.iter().take_while(|socket| socket.entry.inode == inode && inode != 0).count()
}

/// What is in force on a process's socket, if it is still the one with this inode and we may look.
fn settings(table: &Table, fd: i32, inode: u32) -> Option<Settings> {
    let duplicate = table.duplicate(fd).ok()?;
    if sys::inode(duplicate.as_fd()).ok()? != u64::from(inode) {
        return None;
    }
    ka_core::Socket::new(duplicate.as_raw_fd()).settings().ok()
}
