//! TCP sockets with their owners and options: the kernel's list joined, by inode, with the descriptors of processes.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use ka_core::Settings;

use crate::bpf;
use crate::diag::{Entry, State, dump};
use crate::netns::Namespace;
use crate::privilege;
use crate::process::{self, OVER_BUDGET, Process, Table, Target};
use crate::record::{self, Reader, Writer};
use crate::sys;
use crate::text::{self, reason};
use crate::worker::{self, Answer, BLOCKED, Cell, Ended, Stream, Workers};

/// Who has a socket.
#[derive(Clone, Debug)]
pub struct Owner {
    pub pid: i32,
    pub fd: i32,
    /// `None` where it cannot be read.
    pub comm: Option<Arc<[u8]>>,
}

/// A TCP socket and all that could be found out about it.
#[derive(Debug)]
pub struct Socket {
    pub entry: Entry,
    /// The process with the lowest number, and its lowest descriptor.
    pub owner: Option<Owner>,
    /// The other processes that have this socket.
    pub others: Vec<i32>,
    /// The name of its network namespace, if [`Selection`] has one.
    pub netns: Option<Arc<str>>,
    /// What is in force, where we may look.
    pub settings: Option<Settings>,
    /// The reason why the socket could not be read.
    pub error: Option<String>,
}

impl Socket {
    /// Whether keepalive is on, where that is known.
    pub fn keepalive(&self) -> Option<bool> {
        self.settings.map_or_else(|| self.entry.keepalive(), |settings| Some(settings.enabled))
    }
}

/// The sockets that were found, and a message for each part that was left out.
#[derive(Debug)]
pub struct Listing {
    pub sockets: Vec<Socket>,
    pub left: Vec<String>,
}

/// Which sockets to list.
#[derive(Default)]
pub struct Selection<'a> {
    /// Only the sockets of these processes. If empty, the sockets of all processes.
    pub pids: &'a [i32],
    /// Only sockets whose local or peer port is this one.
    pub port: Option<u16>,
    /// The network namespaces to list. Afterwards ka is in the last of them. If empty, the namespace that ka is in.
    pub namespaces: &'a [Namespace],
}

/// Lists the sockets in these states: a selection, or all of this network namespace.
///
/// The kernel's list and the processes' descriptors are read at the same time. Sockets that change between the two, and
/// processes that end meanwhile, are left out. If eBPF is allowed, the kernel reports the settings of all sockets in
/// one pass. The other settings are read socket by socket, through the processes that have them.
///
/// Fails if no namespace, or no process, could be listed.
pub fn sockets(
    workers: &mut Workers,
    states: &[State],
    selection: Option<&Selection<'_>>,
) -> io::Result<Listing> {
    let all = Selection::default();
    let Selection { pids, port, namespaces } = selection.unwrap_or(&all);
    sys::raise_descriptor_limit();
    let (mut left, mut failed) = (Vec::new(), Vec::new());
    let mut holders = None;
    let mut ours = Vec::new();
    let mut sockets = Vec::new();
    let mut has_status = true;
    let here = namespaces.is_empty().then_some(None);
    for namespace in here.into_iter().chain(namespaces.iter().map(Some)) {
        let entered = match namespace {
            Some(namespace) if !namespace.is_current() => namespace.enter().map_err(io::Error::other),
            _ => Ok(()),
        };
        let listed = entered.and_then(|()| {
            let meanwhile = |workers: &[i32]| {
                ours.extend_from_slice(workers);
                holders.get_or_insert_with(|| match pids {
                    [] => others(&ours).map(|pids| pids.filter_map(leader).collect()),
                    pids => tables_of(pids, &mut left),
                });
            };
            kernels(workers, states, meanwhile).map_err(|error| match namespace {
                Some(namespace) => {
                    io::Error::other(format!("network namespace {}: {}", namespace.name, reason(&error)))
                }
                None => error,
            })
        });
        match listed {
            Ok(listed) => {
                has_status &= listed.has_status;
                let meant = |entry: &Entry| port.is_none_or(|port| entry.has_port(port));
                sockets.extend(record::entries(&listed.entries).filter(meant).map(|entry| Socket {
                    settings: listed.settings.get(&entry.cookie).copied(),
                    entry,
                    owner: None,
                    others: Vec::new(),
                    netns: namespace.map(|namespace| Arc::clone(&namespace.name)),
                    error: None,
                }));
            }
            Err(error) if namespaces.len() <= 1 => return Err(error),
            Err(error) => failed.push(reason(&error)),
        }
    }
    let holders: Vec<_> = match holders {
        Some(holders) if failed.len() < namespaces.len().max(1) => holders?,
        _ => return Err(io::Error::other(failed.join("; "))),
    };
    left.append(&mut failed);
    // Sort by inode. Sockets without a process have inode 0 and come first. An inode belongs to one namespace.
    sockets.sort_unstable_by_key(|socket| socket.entry.inode);
    let mut join = Join { sockets: &mut sockets, asked: Vec::new(), workers, left: &mut left, has_status };
    join.all(&holders);
    if pids.is_empty() && join.sockets.iter().any(|socket| socket.entry.inode != 0 && socket.owner.is_none())
    {
        // A socket that no leader has may belong to a task with its own descriptor table.
        for pid in others(&ours)? {
            let holders = tasks(pid, join.left);
            join.all(&holders);
        }
    }
    if !pids.is_empty() {
        sockets.retain(|socket| socket.owner.is_some());
    }
    for socket in &mut sockets {
        // A process with several descriptor tables may be listed more than once.
        socket.others.sort_unstable();
        socket.others.dedup();
    }
    Ok(Listing { sockets, left })
}

/// The sockets of the network namespace that ka is in.
struct Kernels {
    /// As [`list`] writes them.
    entries: Vec<u8>,
    /// The settings of each socket, by cookie. Empty if eBPF is not allowed.
    settings: HashMap<u64, Settings>,
    /// Whether the entries have the connections' status.
    has_status: bool,
}

/// Reads the kernel's list in workers. Calls `meanwhile` with their PIDs.
fn kernels(workers: &mut Workers, states: &[State], meanwhile: impl FnOnce(&[i32])) -> io::Result<Kernels> {
    let told = Workers::start(&[], |sink| bpf::read_settings(sink).map_err(|error| error.to_string()));
    let listed = Workers::start(&[], |sink| list(states, true, sink));
    // A worker has ka's descriptors until it has closed them.
    let ours: Vec<_> = [told.as_ref(), listed.as_ref()].into_iter().flatten().map(Stream::worker).collect();
    meanwhile(&ours);
    let (mut listed, told) = match (listed?, told) {
        (listed, Ok(told)) => {
            let [listed, told] = workers.finish_all([listed, told]);
            (listed, told.data)
        }
        (listed, Err(_)) => (workers.finish(listed), Vec::new()),
    };
    // Without the connections' status, the list needs no lock.
    let has_status = listed.end != Ended::Blocked;
    if !has_status {
        listed = workers.find(&[], |sink| list(states, false, sink));
    }
    match listed.end {
        // If the iterator blocked, it has reported the sockets before that one.
        Ended::Whole => {
            Ok(Kernels { entries: listed.data, settings: bpf::parse_settings(&told), has_status })
        }
        Ended::Failed(why) => Err(io::Error::other(why)),
        Ended::Blocked => Err(io::Error::other(
            "the kernel's list of sockets did not end within 2 s, because a program holds a socket's \
             lock: ka check PID and ka attach PID go through a process and name the socket",
        )),
    }
}

/// Writes the kernel's socket list, in a worker.
pub fn list(states: &[State], with_status: bool, sink: &mut worker::Sink<'_>) -> Result<(), String> {
    let entries = dump(states, with_status).map_err(|error| reason(&error))?;
    for entries in entries.chunks(256) {
        let mut bytes = Vec::new();
        for entry in entries {
            record::put_entry(entry, &mut bytes);
        }
        sink.write_all(&bytes).map_err(|error| reason(&error))?;
    }
    Ok(())
}

/// A table of descriptors, and those of them that are sockets.
struct Holder {
    pid: i32,
    /// `None` where it is held only if it is needed.
    table: Option<Table>,
    sockets: Vec<(i32, u32)>,
}

/// All processes but this one and its workers, which have what ka was started with and nothing of their own.
fn others(workers: &[i32]) -> io::Result<impl Iterator<Item = i32>> {
    let is_ours = |pid: &i32| u32::try_from(*pid) == Ok(std::process::id()) || workers.contains(pid);
    Ok(process::all()?.into_iter().filter(move |pid| !is_ours(pid)))
}

/// Formats a process for messages.
pub fn name(pid: i32) -> String {
    let comm = process::comm(pid).unwrap_or_else(|| b"?".to_vec());
    format!("process {pid} ({})", text::visible(&comm))
}

/// What a process's leader has, if it may be looked at.
fn leader(pid: i32) -> Option<Holder> {
    let sockets = process::sockets(&format!("/proc/{pid}/fd")).ok()?;
    (!sockets.is_empty()).then_some(Holder { pid, table: None, sockets })
}

/// All that a process has, or why it may not be looked at.
fn tables(pid: i32, left: &mut Vec<String>) -> io::Result<Vec<Holder>> {
    let process = Process::open(pid)?;
    let mut holders = Vec::new();
    let mut refused = None;
    process.each_table(|table| match table {
        Ok((table, sockets)) => holders.push(Holder { pid, sockets, table: Some(table) }),
        Err(error) if error.to_string() == OVER_BUDGET => left.push(format!("{}: {error}", name(pid))),
        Err(error) => refused = Some(error),
    })?;
    refused.map_or(Ok(holders), Err)
}

/// The sockets of these processes. Fails if ka may not examine any of the processes.
fn tables_of(pids: &[i32], left: &mut Vec<String>) -> io::Result<Vec<Holder>> {
    let mut holders = Vec::new();
    let mut refused = Vec::new();
    for pid in pids {
        match tables(*pid, left) {
            Ok(tables) => holders.extend(tables),
            Err(error) => refused.push(format!("process {pid}: {}", privilege::explain(*pid, &error))),
        }
    }
    if refused.len() == pids.len() {
        return Err(io::Error::other(refused.join("; ")));
    }
    left.append(&mut refused);
    Ok(holders)
}

/// What a process's tasks have that the leader has not.
fn tasks(pid: i32, left: &mut Vec<String>) -> Vec<Holder> {
    let mut holders = Vec::new();
    let Ok(process) = Process::open(pid) else { return holders };
    let _ = process.each_table(|table| match table {
        Ok((table, sockets)) if !table.is_leaders() => {
            holders.push(Holder { pid, sockets, table: Some(table) });
        }
        Err(error) if error.to_string() == OVER_BUDGET => left.push(format!("{}: {error}", name(pid))),
        _ => {}
    });
    holders
}

/// Assigns the sockets to their processes. Reads values that the kernel's list and the iterator lack from the sockets
/// themselves, once per socket.
struct Join<'a> {
    /// By inode.
    sockets: &'a mut [Socket],
    asked: Vec<(Range<usize>, Target)>,
    workers: &'a mut Workers,
    left: &'a mut Vec<String>,
    /// Whether the kernel's list has the connections' status.
    has_status: bool,
}

impl Join<'_> {
    /// How many processes are held at a time, if there are descriptors for them.
    const PROCESSES: usize = 256;

    fn all(&mut self, holders: &[Holder]) {
        let most = (sys::raise_descriptor_limit() / 4).clamp(1, Self::PROCESSES);
        let mut processes = 0;
        for holder in holders {
            let before = self.asked.len();
            self.one(holder);
            processes += usize::from(self.asked.len() > before);
            if processes >= most {
                self.ask();
                processes = 0;
            }
        }
        self.ask();
    }

    fn one(&mut self, holder: &Holder) {
        let mut comm: Option<Option<Arc<[u8]>>> = None;
        let mut held: Option<Option<Table>> = None;
        for (fd, inode) in &holder.sockets {
            let place = with_inode(self.sockets, *inode);
            let found = self.sockets.get_mut(place.clone()).unwrap_or_default();
            let Some(first) = found.first() else { continue };
            if first.owner.is_some() {
                let is_its_own = first.owner.as_ref().is_some_and(|owner| owner.pid == holder.pid);
                for socket in found {
                    // A process that has the socket twice is listed once.
                    if !is_its_own && socket.others.last() != Some(&holder.pid) {
                        socket.others.push(holder.pid);
                    }
                }
                continue;
            }
            let comm = comm.get_or_insert_with(|| process::comm(holder.pid).map(Arc::from));
            let is_known = self.has_status && found.iter().all(|socket| socket.settings.is_some());
            for socket in found {
                socket.owner = Some(Owner { pid: holder.pid, fd: *fd, comm: comm.clone() });
            }
            if !is_known && let Some(table) = held.get_or_insert_with(|| hold(holder)) {
                self.asked.push((place, Target { table: table.clone(), fd: *fd, inode: *inode }));
            }
        }
    }

    /// Reads the settings of the sockets in `asked`.
    fn ask(&mut self) {
        let (places, targets): (Vec<_>, Vec<_>) = std::mem::take(&mut self.asked).into_iter().unzip();
        if targets.is_empty() {
            return;
        }
        let with_status = !self.has_status;
        let answers =
            self.workers.ask(&targets, None, None, |_, target, cell| look(target, with_status, cell));
        // A message that concerns a whole process is printed once.
        let mut said = HashSet::new();
        for ((place, target), answer) in places.into_iter().zip(&targets).zip(answers.each) {
            let mut error = None;
            let mut settings = None;
            let mut status = None;
            match answer {
                Answer::Given(record) => {
                    let mut record = Reader::new(&record);
                    let kind = record.word();
                    // The settings need no lock on newer kernels.
                    settings = record.settings();
                    if kind & PENDING != 0 {
                        error = Some(BLOCKED.to_owned());
                    } else if kind & WITH_STATUS != 0 {
                        status = Some(record.status());
                    }
                }
                Answer::Failed(why) => error = Some(why),
                Answer::Blocked => error = Some(BLOCKED.to_owned()),
                Answer::Classed(why) if said.insert(target.table.pid) => {
                    self.left.push(format!("{}: {why}", name(target.table.pid)));
                }
                Answer::Excluded(user) if said.insert(target.table.pid) => {
                    self.left.push(format!("{}: {}", name(target.table.pid), worker::excluded(user)));
                }
                Answer::Classed(_) | Answer::Excluded(_) | Answer::NotAsked => {}
            }
            if let Some(why) = &error {
                self.left.push(format!("{}: its socket fd {} {why}", name(target.table.pid), target.fd));
            }
            for socket in self.sockets.get_mut(place).unwrap_or_default() {
                socket.settings = socket.settings.or(settings);
                socket.entry.status = socket.entry.status.or(status);
                socket.error.clone_from(&error);
            }
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

/// Values of the first word of a record: the status is being read, or follows the settings.
const PENDING: u64 = 1;
const WITH_STATUS: u64 = 2;

/// Reads a process's socket, in a worker, if the descriptor still has the same inode and ka may access it.
fn look(target: &Target, with_status: bool, cell: &Cell<'_>) {
    let Ok(duplicate) = target.table.duplicate(target.fd) else { return };
    if sys::inode(duplicate.as_fd()).ok() != Some(u64::from(target.inode)) {
        return;
    }
    let socket = ka_core::Socket::new(duplicate.as_raw_fd());
    let Ok(settings) = socket.settings() else { return };
    let record = |kind| Writer::new().word(kind).settings(Some(settings));
    cell.answer(record(if with_status { PENDING } else { 0 }).finish());
    if with_status && let Ok(status) = socket.status() {
        cell.answer(record(WITH_STATUS).status(&status).finish());
    }
}
