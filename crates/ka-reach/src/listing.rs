//! Lists TCP sockets with their owners and settings.
//!
//! The kernel has no list of sockets with their owners. sock_diag(7) lists sockets, and /proc lists the descriptors of
//! each process. Both report the inode of a socket, so joining the two by inode gives the owners.
//!
//! sock_diag(7) does not report the keepalive settings either. If ka may use eBPF, an iterator program reads the
//! settings of all sockets ([`crate::bpf`]). Otherwise ka duplicates each socket out of a process that has it, and
//! reads the duplicate.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use ka_core::Settings;

use crate::bpf;
use crate::diag::{DiagSocket, State, dump};
use crate::netns::Namespace;
use crate::privilege;
use crate::process::{self, DescriptorTable, HeldSocket, Process};
use crate::record::{self, Reader, Writer};
use crate::worker::{self, Completion, JobResult, PipedWorker, Reply, Workers};
use crate::{Error, Result, sys};

/// A process that has a socket.
#[derive(Clone, Debug)]
pub struct SocketOwner {
    /// The PID.
    pub pid: i32,
    /// The descriptor of the socket in the process.
    pub fd: i32,
    /// The name of the process, which may be any bytes. `None` if it cannot be read.
    pub comm: Option<Arc<[u8]>>,
}

/// A TCP socket of the machine.
#[derive(Debug)]
pub struct ListedSocket {
    /// The socket in the kernel's list.
    pub entry: DiagSocket,
    /// The process with the lowest PID that has this socket, and its lowest descriptor. `None` if no process has the
    /// socket, or only processes that ka may not inspect.
    pub owner: Option<SocketOwner>,
    /// The PIDs of the other processes that have this socket.
    pub others: Vec<i32>,
    /// The name of the network namespace, if [`Selection::namespaces`] has any.
    pub netns: Option<Arc<str>>,
    /// The settings of the socket. `None` if ka could not read them.
    pub settings: Option<Settings>,
    /// The reason why the socket could not be read.
    pub error: Option<Arc<Error>>,
}

impl ListedSocket {
    /// Returns whether keepalive is on. `None` if that is unknown.
    pub fn keepalive(&self) -> Option<bool> {
        self.settings.map_or_else(|| self.entry.keepalive(), |settings| Some(settings.enabled))
    }
}

/// The sockets that were found.
#[derive(Debug)]
pub struct Listing {
    /// The sockets, in no particular order.
    pub sockets: Vec<ListedSocket>,
    /// An error for each part of the list that is incomplete.
    pub incomplete: Vec<Error>,
}

impl Listing {
    /// Converts the listing to bytes, for a process that runs the same version of ka. Errors become texts.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        record::put_listing(self, &mut bytes);
        bytes
    }

    /// Reads the bytes of [`Self::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`Error::WorkerDied`]: the bytes are incomplete.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        record::listing(bytes)
    }
}

/// A selection of the sockets to list.
#[derive(Default)]
pub struct Selection<'a> {
    /// Only the sockets of these processes. If empty, the sockets of all processes.
    pub pids: &'a [i32],
    /// Only sockets whose local or peer port is this one.
    pub port: Option<u16>,
    /// The network namespaces to list. Afterwards ka is in the last of them. If empty, ka's current namespace is
    /// listed.
    pub namespaces: &'a [Namespace],
}

/// Lists the sockets in these states: a selection, or all sockets of this network namespace.
///
/// The kernel's list and the processes' descriptors are read at the same time. Sockets that change during that time,
/// and processes that end during that time, may be left out. If eBPF is allowed, the kernel reports the settings of
/// all sockets in one pass. Missing settings are read socket by socket, through the processes that have the sockets.
///
/// # Errors
///
/// No namespace, or no process, could be listed. After an error, ka may be in another namespace than before.
pub fn sockets(
    workers: &mut Workers,
    states: &[State],
    selection: Option<&Selection<'_>>,
) -> Result<Listing> {
    let all = Selection::default();
    let Selection { pids, port, namespaces } = selection.unwrap_or(&all);
    sys::raise_descriptor_limit();
    let (mut incomplete, mut failed) = (Vec::new(), Vec::new());
    let mut holders = None;
    let mut own_workers = Vec::new();
    let mut sockets = Vec::new();
    let mut has_status = true;
    let here = namespaces.is_empty().then_some(None);
    for namespace in here.into_iter().chain(namespaces.iter().map(Some)) {
        let entered = match namespace {
            Some(namespace) if !namespace.is_current() => namespace.enter(),
            _ => Ok(()),
        };
        let listed = entered.and_then(|()| {
            let meanwhile = |workers: &[i32]| {
                own_workers.extend_from_slice(workers);
                holders.get_or_insert_with(|| match pids {
                    [] => Ok(others(&own_workers)?.filter_map(leader).collect()),
                    pids => tables_of(pids, &mut incomplete),
                });
            };
            kernel_list(workers, states, meanwhile).map_err(|error| match namespace {
                Some(namespace) => Error::namespace(&namespace.name, error),
                None => error,
            })
        });
        match listed {
            Ok(listed) => {
                has_status &= listed.has_status;
                let matches = |entry: &DiagSocket| port.is_none_or(|port| entry.has_port(port));
                sockets.extend(record::entries(&listed.entries).filter(matches).map(|entry| ListedSocket {
                    settings: listed.settings.get(&entry.cookie).copied(),
                    entry,
                    owner: None,
                    others: Vec::new(),
                    netns: namespace.map(|namespace| Arc::clone(&namespace.name)),
                    error: None,
                }));
            }
            Err(error) if namespaces.len() <= 1 => return Err(error),
            Err(error) => failed.push(error),
        }
    }
    let holders: Vec<_> = match holders {
        Some(holders) if failed.len() < namespaces.len().max(1) => holders?,
        _ => return Err(Error::Several(failed)),
    };
    incomplete.append(&mut failed);
    // Sockets without a process have inode 0 and come first. Any other inode belongs to only one namespace.
    sockets.sort_unstable_by_key(|socket| socket.entry.inode);
    let mut join =
        Join { sockets: &mut sockets, asked: Vec::new(), workers, incomplete: &mut incomplete, has_status };
    join.assign_all(&holders);
    if pids.is_empty() && join.sockets.iter().any(|socket| socket.entry.inode != 0 && socket.owner.is_none())
    {
        // A socket that is in no leader's descriptor table may be in the table of another task.
        for pid in others(&own_workers)? {
            let holders = tasks(pid, join.incomplete);
            join.assign_all(&holders);
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
    Ok(Listing { sockets, incomplete })
}

/// The kernel's list of sockets of the network namespace that ka is in.
struct KernelList {
    /// The entries, as [`list`] writes them.
    entries: Vec<u8>,
    /// The settings of each socket, by cookie. Empty if eBPF is not allowed.
    settings: HashMap<u64, Settings>,
    /// True if the entries have the connections' status.
    has_status: bool,
}

/// Reads the kernel's list in workers. Calls `meanwhile` with their PIDs while they work.
fn kernel_list(
    workers: &mut Workers,
    states: &[State],
    meanwhile: impl FnOnce(&[i32]),
) -> Result<KernelList> {
    let settings = Workers::start(&[], |out| bpf::read_settings(out));
    let listed = Workers::start(&[], |out| list(states, true, out));
    // A worker starts with copies of ka's descriptors, and must not be listed as their owner.
    let pids: Vec<_> =
        [settings.as_ref(), listed.as_ref()].into_iter().flatten().map(PipedWorker::pid).collect();
    meanwhile(&pids);
    let (mut listed, settings) = match (listed, settings) {
        (Ok(listed), Ok(settings)) => {
            let [listed, settings] = workers.finish_all([listed, settings]);
            (listed, settings.data)
        }
        (Ok(listed), Err(_)) => (workers.finish(listed), Vec::new()),
        (Err(error), settings) => {
            // Wait for the other worker, so that it does not become a zombie.
            settings.map(|settings| workers.finish(settings)).ok();
            return Err(error.into());
        }
    };
    // If a held lock blocked the list, read it again without the connections' status, which takes no lock.
    let has_status = !matches!(listed.end, Completion::Blocked);
    if !has_status {
        listed = workers.run(&[], |out| list(states, false, out));
    }
    match listed.end {
        // If the iterator blocked at a socket, the settings of the sockets before it are used.
        Completion::Finished => {
            Ok(KernelList { entries: listed.data, settings: bpf::parse_settings(&settings), has_status })
        }
        Completion::Failed(error) => Err(error),
        Completion::Blocked => Err(Error::SocketListBlocked),
    }
}

/// Writes the kernel's socket list to `out`, in a worker.
pub(crate) fn list(states: &[State], with_status: bool, out: &mut impl Write) -> Result<()> {
    let entries = dump(states, with_status)?;
    for entries in entries.chunks(256) {
        let mut bytes = Vec::new();
        for entry in entries {
            record::put_entry(entry, &mut bytes);
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A process, and the sockets in one of its descriptor tables.
struct Holder {
    pid: i32,
    /// The table. `None` if ka opens the process only when it needs the table.
    table: Option<DescriptorTable>,
    /// The descriptors that are sockets, with their inodes.
    sockets: Vec<(i32, u32)>,
}

/// Returns all processes except this one and its workers. These have only sockets that ka inherited when it started.
fn others(workers: &[i32]) -> io::Result<impl Iterator<Item = i32>> {
    let own = process::own_pid();
    Ok(process::all()?.into_iter().filter(move |pid| *pid != own && !workers.contains(pid)))
}

/// Returns the sockets in the table of a process's leader. `None` if there are none, or ka may not inspect the process.
fn leader(pid: i32) -> Option<Holder> {
    let sockets = process::sockets(&format!("/proc/{pid}/fd")).ok()?;
    (!sockets.is_empty()).then_some(Holder { pid, table: None, sockets })
}

/// Returns the sockets in all descriptor tables of a process. Fails if ka may not inspect the process.
fn tables(pid: i32, incomplete: &mut Vec<Error>) -> Result<Vec<Holder>> {
    let process = Process::open(pid)?;
    let mut holders = Vec::new();
    let mut refused = None;
    process.each_table(|table| match table {
        Ok((table, sockets)) => holders.push(Holder { pid, sockets, table: Some(table) }),
        Err(error @ Error::OverBudget) => incomplete.push(Error::named_process(pid, error)),
        Err(error) => refused = Some(error),
    })?;
    refused.map_or(Ok(holders), Err)
}

/// Returns the sockets of these processes. Fails only if ka may not inspect any of these processes.
fn tables_of(pids: &[i32], incomplete: &mut Vec<Error>) -> Result<Vec<Holder>> {
    let mut holders = Vec::new();
    let mut refused = Vec::new();
    for pid in pids {
        match tables(*pid, incomplete) {
            Ok(tables) => holders.extend(tables),
            Err(error) => refused.push(Error::process(*pid, privilege::explain(*pid, error))),
        }
    }
    if refused.len() == pids.len() {
        return Err(Error::Several(refused));
    }
    incomplete.append(&mut refused);
    Ok(holders)
}

/// Returns the sockets in the descriptor tables of a process, except the leader's table.
fn tasks(pid: i32, incomplete: &mut Vec<Error>) -> Vec<Holder> {
    let mut holders = Vec::new();
    let Ok(process) = Process::open(pid) else { return holders };
    let _ = process.each_table(|table| match table {
        Ok((table, sockets)) if !table.belongs_to_leader() => {
            holders.push(Holder { pid, sockets, table: Some(table) });
        }
        Err(error @ Error::OverBudget) => incomplete.push(Error::named_process(pid, error)),
        _ => {}
    });
    holders
}

/// Assigns the sockets to their processes. If neither the kernel's list nor the iterator has a socket's settings or
/// status, reads them from the socket itself.
struct Join<'a> {
    /// The sockets, sorted by inode.
    sockets: &'a mut [ListedSocket],
    /// The sockets to read, each with its range in `sockets`.
    asked: Vec<(Range<usize>, HeldSocket)>,
    workers: &'a mut Workers,
    incomplete: &'a mut Vec<Error>,
    /// True if the kernel's list has the connections' status.
    has_status: bool,
}

impl Join<'_> {
    /// The maximum number of processes that are held open at a time. The descriptor limit may lower it.
    const PROCESSES: usize = 256;

    /// Assigns the sockets of all these holders.
    fn assign_all(&mut self, holders: &[Holder]) {
        let most = (sys::raise_descriptor_limit() / 4).clamp(1, Self::PROCESSES);
        let mut processes = 0;
        for holder in holders {
            let before = self.asked.len();
            self.assign(holder);
            processes += usize::from(self.asked.len() > before);
            if processes >= most {
                self.ask();
                processes = 0;
            }
        }
        self.ask();
    }

    fn assign(&mut self, holder: &Holder) {
        let mut comm: Option<Option<Arc<[u8]>>> = None;
        let mut opened: Option<Option<DescriptorTable>> = None;
        for (fd, inode) in &holder.sockets {
            let place = with_inode(self.sockets, *inode);
            let found = self.sockets.get_mut(place.clone()).unwrap_or_default();
            let Some(first) = found.first() else { continue };
            if first.owner.is_some() {
                let is_its_own = first.owner.as_ref().is_some_and(|owner| owner.pid == holder.pid);
                for socket in found {
                    // A process with several descriptors of the socket is listed once.
                    if !is_its_own && socket.others.last() != Some(&holder.pid) {
                        socket.others.push(holder.pid);
                    }
                }
                continue;
            }
            let comm = comm.get_or_insert_with(|| process::comm(holder.pid).map(Arc::from));
            let is_known = self.has_status && found.iter().all(|socket| socket.settings.is_some());
            for socket in found {
                socket.owner = Some(SocketOwner { pid: holder.pid, fd: *fd, comm: comm.clone() });
            }
            if !is_known && let Some(table) = opened.get_or_insert_with(|| table_of(holder)) {
                self.asked.push((place, HeldSocket { table: table.clone(), fd: *fd, inode: *inode }));
            }
        }
    }

    /// Reads the settings of the sockets in `asked`, and their status if the kernel's list lacks it.
    fn ask(&mut self) {
        let (places, targets): (Vec<_>, Vec<_>) = std::mem::take(&mut self.asked).into_iter().unzip();
        if targets.is_empty() {
            return;
        }
        let with_status = !self.has_status;
        let answers =
            self.workers.ask(&targets, None, None, |_, target, reply| read(target, with_status, reply));
        // An error that concerns a whole process is reported once.
        let mut reported = HashSet::new();
        for ((place, target), answer) in places.into_iter().zip(&targets).zip(answers.each) {
            let pid = target.table.pid;
            let mut error: Option<Arc<Error>> = None;
            let mut settings = None;
            let mut status = None;
            match answer {
                JobResult::Given(record) => {
                    let mut record = Reader::new(&record);
                    let kind = record.word();
                    // Newer kernels read the settings without the lock. So they may be here although the status
                    // blocked.
                    settings = (kind & WITH_SETTINGS != 0).then(|| record.settings()).flatten();
                    if kind & PENDING != 0 {
                        error = Some(Error::SocketBlocked.into());
                    } else if kind & WITH_STATUS != 0 {
                        status = Some(record.status());
                    }
                }
                JobResult::Failed(why) => error = Some(why),
                JobResult::Blocked => error = Some(Error::SocketBlocked.into()),
                JobResult::Classed(error) if reported.insert(pid) => {
                    self.incomplete.push(Error::named_process(pid, error));
                }
                JobResult::Excluded(user) if reported.insert(pid) => {
                    self.incomplete.push(Error::named_process(pid, worker::excluded(user)));
                }
                JobResult::Classed(_) | JobResult::Excluded(_) | JobResult::NotAsked => {}
            }
            if let Some(error) = &error {
                let of_socket = Error::socket(target.fd, Arc::clone(error));
                self.incomplete.push(Error::named_process(pid, of_socket));
            }
            for socket in self.sockets.get_mut(place).unwrap_or_default() {
                socket.settings = socket.settings.or(settings);
                socket.entry.status = socket.entry.status.or(status);
                socket.error.clone_from(&error);
            }
        }
    }
}

/// Returns the table of a holder. Opens the process if necessary.
fn table_of(holder: &Holder) -> Option<DescriptorTable> {
    match &holder.table {
        Some(table) => Some(table.clone()),
        None => Some(Process::open(holder.pid).ok()?.leader_table()),
    }
}

/// Returns the range of the sockets with this inode, in a slice that is sorted by inode. A Multipath TCP socket and its
/// subflows share one inode. The range is empty for inode 0.
fn with_inode(sockets: &[ListedSocket], inode: u32) -> Range<usize> {
    let start = sockets.partition_point(|socket| socket.entry.inode < inode);
    let rest = sockets.get(start..).unwrap_or_default();
    start..start + rest.iter().take_while(|socket| socket.entry.inode == inode && inode != 0).count()
}

// The flags in the first word of a record.
/// The settings follow.
const WITH_SETTINGS: u64 = 1;
/// The worker is still reading the status.
const PENDING: u64 = 2;
/// The status follows the settings.
const WITH_STATUS: u64 = 4;

/// Reads a process's socket, in a worker. Answers nothing if the descriptor has another inode by now, or ka may not
/// duplicate it.
fn read(target: &HeldSocket, with_status: bool, reply: &Reply<'_>) {
    let Ok(duplicate) = target.table.duplicate(target.fd) else { return };
    if sys::inode(duplicate.as_fd()).ok() != Some(u64::from(target.inode)) {
        return;
    }
    let socket = crate::socket(&duplicate);
    let Ok(settings) = socket.settings() else { return };
    let record = |kind| Writer::new().word(WITH_SETTINGS | kind).settings(Some(settings));
    reply.answer(record(if with_status { PENDING } else { 0 }).finish());
    if with_status && let Ok(status) = socket.status() {
        reply.answer(record(WITH_STATUS).status(&status).finish());
    }
}
