//! The open connections, and the processes that have them.
//!
//! After the end of a connection, its owner often closes the socket within microseconds. From then on, the kernel does
//! not report the owner of the socket. So ka finds the owners while the connections are open. It lists the connections
//! again and again: sock_diag(7) has the cookie and the inode of each socket. If there are new ones, ka searches /proc
//! for the processes that have these inodes. It stores each owner under the cookie of the socket. So neither a reused
//! inode nor a reused PID leads to a wrong owner.
//!
//! **Cost.** The time until the next list depends on the processor time of the last one, and of the settings that were
//! read again after it. So both take at most 0.8 % of a core ([`LIST_PAUSE`]). ka searches /proc only if there are new
//! connections, and with at most 4 % of a core ([`SEARCH_PAUSE`]). If [`SEARCHES`] searches have not found the owner of a
//! socket, ka does not search for it again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ka_core::{Retransmission, Settings, Status};
use serde::{Deserialize, Serialize};

use super::destroyed::DestroyedGroup;
use super::examine::ExaminedSocket;
use super::probes::ProbeCounter;
use super::{WatchFilter, WatchSource};
use crate::diag::{DiagSocket, Lister, State};
use crate::listing::{ListedSocket, SocketOwner};
use crate::netns::{self, Namespace};
use crate::process::{self, Process};
use crate::risk::{Risk, risks};
use crate::{Error, Result, privilege, sys};

/// The pause after a list, as a multiple of its processor time.
const LIST_PAUSE: u32 = 125;
/// The pause after a search, as a multiple of the processor time of the search.
const SEARCH_PAUSE: u32 = 25;
/// The shortest and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The number of searches for the owner of a socket.
const SEARCHES: u8 = 2;
/// The largest number of connections whose owners are known, to limit the memory to about 200 MB.
const MOST: usize = 1 << 20;
/// The time between two searches for new network namespaces. The sockets of ka in a namespace keep it alive for at most
/// this time after its last process has ended.
const NAMESPACES_AFTER: Duration = Duration::from_secs(30);
/// While risks are counted, ka reads the settings of a connection again after this time. After each list, ka reads those
/// of at most [`MOST_EXAMINED`] connections, so with many connections it takes longer.
const EXAMINE_AFTER: Duration = Duration::from_secs(10);
const MOST_EXAMINED: usize = 1000;

/// A network namespace, by its inode, and a socket cookie in it.
pub(super) type ConnectionKey = (u32, u64);

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The inode of the socket. 0 if no process has it.
    pub(super) inode: u32,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) owner: Option<SocketOwner>,
    /// The settings. `None` if they have not been read.
    pub(super) settings: Option<Settings>,
    /// The status when the settings were read last.
    status: Option<Status>,
    /// The time of the last attempt to read the settings.
    pub(super) examined: Option<Instant>,
    risks: Vec<Risk>,
    /// True if the end was reported.
    pub(super) is_reported: bool,
    /// True if the peer has connected to this machine.
    pub(super) is_accepted: bool,
    keepalive: Option<bool>,
    /// The number of the list that had it last.
    list: u64,
    searches: u8,
}

/// The network namespaces to watch.
pub enum Namespaces {
    /// These namespaces. The calling thread may be in one of them. If empty, the namespace of the calling thread.
    Some(Vec<Namespace>),
    /// All namespaces that contain processes, also those that are created later.
    All,
}

/// A network namespace that is watched.
pub(super) struct Network {
    pub(super) inode: u32,
    /// net.ipv4.tcp_retries2. An open file stays with its namespace.
    retries: Option<File>,
    lister: Lister,
    /// `None` unless the source is [`WatchSource::Diag`].
    pub(super) group: Option<DestroyedGroup>,
    probes: ProbeCounter,
}

/// The numbers of open connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Keepalive is on.
    pub on: usize,
    /// Keepalive is off.
    pub off: usize,
    /// It is unknown whether keepalive is on, because another timer runs.
    pub unknown: usize,
    /// The number of connections with each risk, in the order of [`Risk::ALL`]. 0 unless [`super::Watch::count_risks`]
    /// was called.
    pub at_risk: [usize; Risk::ALL.len()],
}

/// The last list of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastList {
    /// The time at which it was complete, in seconds since 1970.
    pub time_s: f64,
    /// The time that it took, in seconds.
    pub took_s: f64,
}

/// A limit on the frequency of some work.
struct Schedule {
    due: Instant,
    /// The pause after the work, as a multiple of its processor time.
    pause: u32,
}

impl Schedule {
    fn new(pause: u32) -> Self {
        Self { due: Instant::now(), pause }
    }

    /// Does some work, and sets the time from which it may be done again.
    fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = sys::processor_time_with_children();
        let result = work();
        let cost = sys::processor_time_with_children().saturating_sub(before);
        self.due = Instant::now() + (cost * self.pause).clamp(PAUSES.0, PAUSES.1);
        result
    }

    /// Delays the next work, because other work had this processor time.
    fn delay(&mut self, cost: Duration) {
        self.due = (self.due + cost * self.pause).min(Instant::now() + PAUSES.1);
    }

    fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }
}

/// The open connections of the watched network namespaces.
pub(super) struct Connections {
    source: WatchSource,
    known: HashMap<ConnectionKey, Connection>,
    /// The connections that are not listed any more, and whose ends were not reported. With [`WatchSource::Diag`], they
    /// stay as long as a process has the socket. With [`WatchSource::Ebpf`], they stay until the next list.
    gone: HashMap<ConnectionKey, Connection>,
    pub(super) networks: Vec<Network>,
    follows_namespaces: bool,
    namespaces_read: Instant,
    /// The processes to search. If empty, all.
    pids: Vec<i32>,
    lists: u64,
    /// With [`WatchSource::Ebpf`], the number of the last list whose connections without a record are not examined. The
    /// kernel lost records shortly before, and these are already counted as missed.
    counted_until: u64,
    listing: Schedule,
    searching: Schedule,
    /// True if the last list had connections that are not stored.
    is_full: bool,
    pub(super) counts_risks: bool,
    pub(super) last_list: Option<LastList>,
    /// The number of keepalive probes that the kernel has sent in the watched namespaces, also in those that are gone.
    pub(super) probes: u64,
}

impl Connections {
    /// Begins to watch. The first list is due at once.
    pub(super) fn new(source: WatchSource, namespaces: &Namespaces, pids: &[i32]) -> Result<Self> {
        let mut new = Self {
            source,
            known: HashMap::new(),
            gone: HashMap::new(),
            networks: Vec::new(),
            follows_namespaces: matches!(namespaces, Namespaces::All),
            namespaces_read: Instant::now(),
            pids: pids.to_vec(),
            lists: 0,
            counted_until: 0,
            listing: Schedule::new(LIST_PAUSE),
            searching: Schedule::new(SEARCH_PAUSE),
            is_full: false,
            counts_risks: false,
            last_list: None,
            probes: 0,
        };
        match namespaces {
            Namespaces::Some(some) if some.is_empty() => {
                new.networks.push(Network::open(&Namespace::current()?, source)?);
            }
            Namespaces::Some(some) => new.add(some)?,
            Namespaces::All => new.add(&all_namespaces()?)?,
        }
        Ok(new)
    }

    /// Opens the namespaces that are not watched yet.
    fn add(&mut self, namespaces: &[Namespace]) -> Result<()> {
        let home = Namespace::current()?;
        let is_new = |namespace: &&Namespace| !self.networks.iter().any(|known| known.is(namespace));
        let opened: Result<Vec<_>> = namespaces
            .iter()
            .filter(is_new)
            .map(|namespace| {
                if namespace.inode() != home.inode() {
                    namespace.enter()?;
                }
                let opened = Network::open(namespace, self.source);
                if namespace.inode() != home.inode() {
                    home.enter()?;
                }
                opened
            })
            .collect();
        self.networks.extend(opened?);
        Ok(())
    }

    /// Returns the time from which [`Connections::refresh`] should be called.
    pub(super) fn due(&self) -> Instant {
        self.listing.due
    }

    /// Lists the connections, and searches for the owners of new ones. Returns the keys of the connections to examine,
    /// and the reason if the list is incomplete.
    ///
    /// The connections to examine are no longer listed. With [`WatchSource::Ebpf`], the previous list lacked them too,
    /// and no record of their ends has arrived since.
    pub(super) fn refresh(&mut self) -> (Vec<ConnectionKey>, Option<Error>) {
        let mut listing = std::mem::replace(&mut self.listing, Schedule::new(LIST_PAUSE));
        let start = Instant::now();
        let (gone, incomplete) = listing.run(|| self.list());
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_list = Some(LastList { time_s: time.as_secs_f64(), took_s: start.elapsed().as_secs_f64() });
        self.listing = listing;
        let mut searching = std::mem::replace(&mut self.searching, Schedule::new(SEARCH_PAUSE));
        if searching.is_due() && self.known.values().any(Connection::is_searched) {
            searching.run(|| self.search());
        }
        self.searching = searching;
        (gone, incomplete)
    }

    fn list(&mut self) -> (Vec<ConnectionKey>, Option<Error>) {
        let mut incomplete = None;
        if self.follows_namespaces && self.namespaces_read.elapsed() >= NAMESPACES_AFTER {
            self.namespaces_read = Instant::now();
            incomplete = all_namespaces()
                .and_then(|all| {
                    self.networks.retain(|known| all.iter().any(|namespace| known.is(namespace)));
                    self.add(&all)
                })
                .err();
        }
        self.lists += 1;
        let states: Vec<_> =
            State::ALL.into_iter().filter(|state| state.is_connected() || *state == State::Listen).collect();
        let was_full = std::mem::take(&mut self.is_full);
        let mut failed = HashSet::new();
        for network in &mut self.networks {
            self.probes += network.probes.more();
            match network.lister.dump(&states, false) {
                Ok(entries) => {
                    let listeners: HashSet<_> = entries
                        .iter()
                        .filter(|entry| entry.state == State::Listen)
                        .map(|entry| entry.local.port())
                        .collect();
                    for entry in entries {
                        let is_accepted = listeners.contains(&entry.local.port());
                        let key = (network.inode, entry.cookie);
                        self.is_full |= !insert(&mut self.known, key, &entry, is_accepted, self.lists);
                        if let Some(connection) = self.known.get_mut(&key).filter(|_| self.counts_risks) {
                            connection.find_risks(entry);
                        }
                    }
                }
                Err(error) => {
                    failed.insert(network.inode);
                    incomplete = Some(error);
                }
            }
        }
        if self.is_full && !was_full {
            incomplete = Some(Error::TooManyConnections(MOST));
        }
        if self.lists <= self.counted_until {
            self.gone.clear();
        }
        let unrecorded: Vec<_> = self.gone.keys().copied().collect();
        let lists = self.lists;
        let is_gone = |(network, _): &ConnectionKey, connection: &mut Connection| {
            connection.list != lists && !failed.contains(network)
        };
        let gone: Vec<_> = self.known.extract_if(is_gone).collect();
        let keys = gone.iter().map(|(key, _)| *key).collect();
        self.gone.extend(gone);
        (if self.source == WatchSource::Ebpf { unrecorded } else { keys }, incomplete)
    }

    /// Prevents the examination of connections that have already ended, because lost records are counted as missed.
    pub(super) const fn skip_counted(&mut self) {
        // The next list lacks these connections, and the list after it would return them.
        self.counted_until = self.lists + 2;
    }

    /// Searches for the owners of the connections that have none.
    fn search(&mut self) {
        let mut wanted: HashMap<u32, Vec<ConnectionKey>> = HashMap::new();
        for (key, connection) in self.known.iter_mut().filter(|(_, connection)| connection.is_searched()) {
            connection.searches += 1;
            wanted.entry(connection.inode).or_default().push(*key);
        }
        let inodes = wanted.keys().copied().collect();
        for (inode, owner) in owners(&inodes, &self.pids, true) {
            for key in wanted.remove(&inode).unwrap_or_default() {
                if let Some(connection) = self.known.get_mut(&key) {
                    connection.owner = Some(owner.clone());
                }
            }
        }
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&mut self, key: ConnectionKey) -> Option<Connection> {
        self.known.remove(&key).or_else(|| self.gone.remove(&key))
    }

    /// Returns a connection that is no longer listed.
    pub(super) fn gone(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.gone.get_mut(&key)
    }

    /// Returns the keys of all connections that are no longer listed, each time after many lists.
    pub(super) fn gone_for_long(&self) -> Vec<ConnectionKey> {
        if self.lists.is_multiple_of(64) { self.gone.keys().copied().collect() } else { Vec::new() }
    }

    /// Returns the owners of sockets that have just ended, and whose owners are unknown. Searches /proc.
    pub(super) fn owners(&self, inodes: &HashSet<u32>) -> HashMap<u32, SocketOwner> {
        if inodes.is_empty() { HashMap::new() } else { owners(inodes, &self.pids, false) }
    }

    /// Returns the connections whose owners are known, and whose settings must be read: for the first time, or again
    /// to count the risks.
    pub(super) fn unread(&mut self) -> Vec<&mut Connection> {
        let counts_risks = self.counts_risks;
        let is_old = |time: &Instant| counts_risks && time.elapsed() >= EXAMINE_AFTER;
        let is_unread = |connection: &&mut Connection| {
            connection.owner.is_some() && connection.examined.as_ref().is_none_or(is_old)
        };
        let mut unread: Vec<_> = self.known.values_mut().filter(is_unread).collect();
        if counts_risks && unread.len() > MOST_EXAMINED {
            // `None` comes first. Without this order, some connections would never have their turn.
            unread.select_nth_unstable_by_key(MOST_EXAMINED, |connection| connection.examined);
            unread.truncate(MOST_EXAMINED);
        }
        unread
    }

    /// Delays the next list, because the settings that were read again had this processor time.
    pub(super) fn delay(&mut self, cost: Duration) {
        self.listing.delay(cost);
    }

    /// Counts the connections that the filter selects, as they were listed last.
    pub(super) fn counts(&self, filter: &WatchFilter) -> ConnectionCounts {
        let mut counts = ConnectionCounts::default();
        let is_selected = |connection: &&Connection| {
            filter.selects(connection.local, connection.peer, connection.owner.as_ref())
        };
        for connection in self.known.values().filter(is_selected) {
            *match connection.keepalive {
                Some(true) => &mut counts.on,
                Some(false) => &mut counts.off,
                None => &mut counts.unknown,
            } += 1;
            for (count, _) in
                counts.at_risk.iter_mut().zip(Risk::ALL).filter(|(_, risk)| connection.risks.contains(risk))
            {
                *count += 1;
            }
        }
        counts
    }
}

impl Connection {
    /// Stores what was read from the socket.
    pub(super) fn set_examined(&mut self, examined: &ExaminedSocket) {
        self.settings = Some(examined.settings);
        self.status = Some(examined.status);
    }

    /// Finds the risks, from the list and from what was read from the socket last.
    fn find_risks(&mut self, mut entry: DiagSocket) {
        let mut settings = self.settings;
        // The list is newer.
        if let (Some(settings), Some(is_on)) = (&mut settings, entry.keepalive()) {
            settings.enabled = is_on;
        }
        // The timer that the list has tells whether data is unacknowledged now.
        entry.status = self.status.map(|status| Status { unacked: 0, ..status });
        self.keepalive = entry.keepalive().or_else(|| settings.map(|settings| settings.enabled));
        let socket =
            ListedSocket { entry, owner: None, others: Vec::new(), netns: None, settings, error: None };
        self.risks = risks(&socket);
    }

    /// Returns whether the last list had the connection without a process, because its program had closed it.
    pub(super) const fn is_closed(&self) -> bool {
        self.owner.is_some() && self.inode == 0
    }

    /// Returns whether its owner is unknown and may be found.
    const fn is_searched(&self) -> bool {
        self.owner.is_none() && self.inode != 0 && self.searches < SEARCHES
    }
}

impl Network {
    /// Opens the network namespace that the calling thread is in.
    fn open(namespace: &Namespace, source: WatchSource) -> Result<Self> {
        // Inodes of namespaces have 32 bits.
        let inode = u32::try_from(namespace.inode()).map_err(|_| Error::NotNetworkNamespace)?;
        let group = (source == WatchSource::Diag).then(DestroyedGroup::join).transpose()?;
        let retries = File::open("/proc/sys/net/ipv4/tcp_retries2").ok();
        Ok(Self { inode, retries, lister: Lister::open()?, group, probes: ProbeCounter::open() })
    }

    /// Returns net.ipv4.tcp_retries2, or its default if it cannot be read.
    pub(super) fn retries(&self) -> u8 {
        let mut text = [0; 8];
        let read = self.retries.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = text.get(..read.unwrap_or(0)).and_then(|text| std::str::from_utf8(text).ok());
        let number = text.and_then(|text| text.trim().parse().ok());
        number.unwrap_or(Retransmission::STANDARD.retries)
    }

    fn is(&self, namespace: &Namespace) -> bool {
        u64::from(self.inode) == namespace.inode()
    }
}

/// Returns all network namespaces that contain processes.
fn all_namespaces() -> Result<Vec<Namespace>> {
    let (namespaces, refused) = netns::of(&process::all()?);
    match refused.into_iter().next() {
        Some((pid, error)) if namespaces.is_empty() => {
            Err(Error::named_process(pid, privilege::explain(pid, error)))
        }
        _ => Ok(namespaces),
    }
}

/// Stores a connection, or updates it. Returns false if there are too many.
fn insert(
    known: &mut HashMap<ConnectionKey, Connection>,
    key: ConnectionKey,
    entry: &DiagSocket,
    is_accepted: bool,
    list: u64,
) -> bool {
    let Some(peer) = entry.peer else { return true };
    if let Some(connection) = known.get_mut(&key) {
        // A connection that no process has accepted yet has no inode.
        connection.inode = entry.inode;
        connection.keepalive = entry.keepalive();
        connection.list = list;
        return true;
    }
    if known.len() >= MOST {
        return false;
    }
    let connection = Connection {
        inode: entry.inode,
        local: entry.local,
        peer,
        owner: None,
        settings: None,
        status: None,
        examined: None,
        risks: Vec::new(),
        is_reported: false,
        is_accepted,
        keepalive: entry.keepalive(),
        list,
        searches: 0,
    };
    known.insert(key, connection);
    true
}

/// Returns the owners of the sockets with these inodes: of each, the process with the lowest PID. If `pids` is empty,
/// searches all processes. If `is_thorough`, also searches the descriptor tables of tasks that do not share that of
/// their process.
fn owners(inodes: &HashSet<u32>, pids: &[i32], is_thorough: bool) -> HashMap<u32, SocketOwner> {
    let own = process::own_pid();
    let pids = if pids.is_empty() { process::all().unwrap_or_default() } else { pids.to_vec() };
    let mut found = HashMap::new();
    for of_tasks in [false, true] {
        if of_tasks && !is_thorough || found.len() == inodes.len() {
            break;
        }
        for pid in pids.iter().filter(|pid| **pid != own) {
            let Ok(process) = Process::open(*pid) else { continue };
            let mut sockets = Vec::new();
            if of_tasks {
                let _ = process.each_table(|table| match table {
                    Ok((table, more)) if !table.belongs_to_leader() => sockets.extend(more),
                    _ => {}
                });
            } else {
                sockets = process::sockets(&format!("/proc/{pid}/fd")).unwrap_or_default();
            }
            sockets.retain(|(_, inode)| inodes.contains(inode));
            if sockets.is_empty() {
                continue;
            }
            let comm: Option<Arc<[u8]>> = process::comm(*pid).map(Arc::from);
            // If the process has ended, the PID may be that of another one.
            if process.is_alive() {
                for (fd, inode) in sockets {
                    found.entry(inode).or_insert_with(|| SocketOwner { pid: *pid, fd, comm: comm.clone() });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first connections that are found must not be read again and again, while others wait.
    #[test]
    fn the_settings_of_all_connections_are_read_in_turn() {
        const ROUNDS: usize = 3;
        let mut connections =
            Connections::new(WatchSource::Poll, &Namespaces::Some(Vec::new()), &[]).unwrap();
        connections.counts_risks = true;
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        for number in 0..ROUNDS * MOST_EXAMINED {
            let connection = Connection {
                inode: 1,
                local: address,
                peer: address,
                owner: Some(SocketOwner { pid: 1, fd: 3, comm: None }),
                settings: None,
                status: None,
                examined: None,
                risks: Vec::new(),
                is_reported: false,
                is_accepted: false,
                keepalive: None,
                list: 1,
                searches: 0,
            };
            connections.known.insert((1, number as u64), connection);
        }
        // Each one is due again at once.
        let start = Instant::now().checked_sub(2 * EXAMINE_AFTER).unwrap();
        let mut reads: HashMap<*const Connection, usize> = HashMap::new();
        for round in 0..2 * ROUNDS {
            for connection in connections.unread() {
                connection.examined = Some(start + Duration::from_millis(round as u64));
                *reads.entry(&raw const *connection).or_default() += 1;
            }
        }
        assert_eq!(reads.len(), ROUNDS * MOST_EXAMINED);
        assert!(reads.values().all(|reads| *reads == 2));
    }
}
