//! Reports each TCP connection that ends abnormally, with its owner and the cause.
//!
//! The kernel has the cause of an end, but reports only an error to the program, and few programs log it. ka has three
//! sources. Each has its own limits, and [`Watch::start`] uses the first one that the kernel allows:
//!
//! - [`WatchSource::Ebpf`]: a BPF program records each end at the moment at which it happens, with the error and the
//!   counters that led to it, in all network namespaces ([`crate::bpf`], `trace`). It needs CAP_BPF and CAP_PERFMON. The
//!   kernel may fail to record an end. If the program keeps the socket, ka then examines it, as the last source does.
//! - [`WatchSource::Diag`]: the kernel reports each socket when it frees the socket, without the error (`destroyed`). ka
//!   also examines sockets that their programs keep, as the next source does. This needs no capability.
//! - [`WatchSource::Poll`]: a connection that has ended is no longer in the kernel's list. If its program still has the
//!   socket, ka examines a duplicate (`examine`). ka misses a connection that its program closes before the next list.
//!
//! With the last two sources, ka does not read the error of a socket, because a read of SO_ERROR would take the error
//! from the program. ka only finds out that there is an error, and derives the cause from `TCP_INFO`:
//!
//! - A connection that was destroyed looks like one that was reset.
//! - A connection whose peer the network reported as unreachable looks like one whose peer was silent.
//! - A connection that its program had shut down before a reset came looks like one that was in use.
//!
//! The kernel does not keep the TTL of a reset. So no source can distinguish a reset of the peer from one of a
//! middlebox.
//!
//! The owner of a connection comes from earlier lists (`connections`). With eBPF, a socket still has its inode when its
//! end is recorded. So if the owner is unknown, ka searches /proc for it at once.
//!
//! A failed connect(2), a close by both sides, and the exit of a process are not events.

mod connections;
mod counters;
mod death;
mod destroyed;
mod examine;
mod metrics;
mod probes;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use ka_core::Retransmission;

use crate::bpf::host;
use crate::bpf::trace::{TraceRecord, Tracer};
use crate::diag::{DestroyedSocket, State};
use crate::listing::SocketOwner;
use crate::worker::Workers;
use crate::{Error, Result, privilege, sys};

pub use connections::{ConnectionCounts, LastList, Namespaces};
use connections::{ConnectionKey, Connections};
pub use death::{Cause, Death};
use destroyed::{DestroyedGroup, Ending, WithoutFin, ending, timeout};
use examine::ExaminedSocket;
pub use metrics::Metrics;

/// The connections to watch.
pub struct WatchFilter {
    /// The network namespaces.
    pub namespaces: Namespaces,
    /// Only the connections of these processes. If empty, those of all processes.
    pub pids: Vec<i32>,
    /// Only connections whose local or peer port is this one.
    pub port: Option<u16>,
}

/// An event of a [`Watch`].
#[derive(Debug)]
pub enum WatchEvent {
    /// A connection ended abnormally.
    Died(Death),
    /// The kernel dropped this number of reports, because ka did not read them in time.
    Missed(usize),
    /// This number of connections were reset or destroyed. The source does not show which connections, because programs
    /// closed others with data unread at the same time.
    Unclear(usize),
    /// A part of the connections is unknown from now on, for this reason.
    Incomplete(Error),
}

/// The source from which a [`Watch`] gets the ends of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchSource {
    /// A BPF program at a tracepoint.
    Ebpf,
    /// The kernel's reports of destroyed sockets.
    Diag,
    /// Repeated examinations of the sockets of other processes.
    Poll,
}

impl WatchSource {
    /// All sources, the best first.
    pub const ALL: [Self; 3] = [Self::Ebpf, Self::Diag, Self::Poll];

    /// Returns the name, as `ka watch --source` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Diag => "diag",
            Self::Poll => "poll",
        }
    }
}

/// Watches connections from its creation until it is dropped. The process must have only one thread while a method runs
/// ([`crate::worker`]).
pub struct Watch {
    source: WatchSource,
    refused: Vec<(WatchSource, Error)>,
    /// `None` unless the source is [`WatchSource::Ebpf`].
    tracer: Option<Tracer>,
    connections: Connections,
    filter: WatchFilter,
    workers: Workers,
}

impl Watch {
    /// Begins to watch. Without `source`, uses the best source that the kernel allows.
    ///
    /// # Errors
    ///
    /// The source cannot be used, or the kernel does not list the sockets of a namespace.
    pub fn start(filter: WatchFilter, source: Option<WatchSource>) -> Result<Self> {
        sys::raise_descriptor_limit();
        let sources = source.map_or_else(|| WatchSource::ALL.to_vec(), |source| vec![source]);
        let mut refused = Vec::new();
        for source in sources {
            match open(source, &filter) {
                Ok((tracer, connections)) => {
                    let workers = Workers::default();
                    return Ok(Self { source, refused, tracer, connections, filter, workers });
                }
                Err(error) => refused.push((source, error)),
            }
        }
        // The last source needs the least, so its error prevents the others too.
        Err(refused.pop().map_or(Error::NoSocketList, |(_, error)| error))
    }

    /// Returns the source.
    #[must_use]
    pub const fn source(&self) -> WatchSource {
        self.source
    }

    /// Returns the better sources that cannot be used, each with the reason.
    pub fn refused(&self) -> &[(WatchSource, Error)] {
        &self.refused
    }

    /// Permanently drops the capabilities that are not needed any more, if the source is [`WatchSource::Ebpf`]. Those
    /// to find the processes of other users and to enter new network namespaces stay.
    ///
    /// # Errors
    ///
    /// The error of capset(2). Then the process keeps its capabilities.
    pub fn drop_capabilities(&self) -> Result<()> {
        if self.source != WatchSource::Ebpf {
            return Ok(());
        }
        let mut needed = vec![privilege::CAP_SYS_PTRACE, privilege::CAP_DAC_READ_SEARCH];
        if matches!(self.filter.namespaces, Namespaces::All) {
            needed.push(privilege::CAP_SYS_ADMIN);
        }
        Ok(host::keep_bpf_and(&needed)?)
    }

    /// Waits until there are events, one of `others` is readable, or `longest` has passed. Returns the events, which
    /// may be none.
    ///
    /// # Errors
    ///
    /// The errno of poll(2).
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], longest: Duration) -> Result<Vec<WatchEvent>> {
        let due = self.connections.due().saturating_duration_since(Instant::now());
        let groups = self.connections.networks.iter().filter_map(|network| network.group.as_ref());
        let fds = self.tracer.iter().flat_map(Tracer::descriptors).chain(groups.map(DestroyedGroup::as_fd));
        let fds: Vec<_> = fds.chain(others.iter().copied()).collect();
        sys::poll(&fds, longest.min(due))?;
        let mut events = Vec::new();
        if let Some((records, lost)) = self.tracer.as_mut().map(Tracer::take) {
            self.report_traced(records, &mut events);
            if lost > 0 {
                events.push(WatchEvent::Missed(lost));
                self.connections.skip_counted();
            }
        }
        self.report_destroyed(&mut events);
        if self.connections.due() <= Instant::now() {
            let (mut gone, incomplete) = self.connections.refresh();
            events.extend(incomplete.map(WatchEvent::Incomplete));
            if self.source == WatchSource::Diag {
                gone.extend(self.connections.gone_for_long());
            }
            self.report_gone(&gone, &mut events);
            if self.source != WatchSource::Ebpf || self.connections.counts_risks {
                self.read_settings();
            }
        }
        let filter = &self.filter;
        events.retain(|event| !matches!(event, WatchEvent::Died(death) if !filter.matches(death)));
        Ok(events)
    }

    /// From now on, reads the settings of all connections from time to time, to count those at risk.
    pub fn count_risks(&mut self) {
        self.connections.counts_risks = true;
    }

    /// Returns the numbers of open connections that the filter selects, as they were listed last.
    #[must_use]
    pub fn counts(&self) -> ConnectionCounts {
        self.connections.counts(&self.filter)
    }

    /// Returns the number of keepalive probes that the kernel had sent in the watched network namespaces at the last
    /// list, since each namespace was created.
    #[must_use]
    pub const fn probes(&self) -> u64 {
        self.connections.probes
    }

    /// Returns the time and the duration of the last list of the connections. `None` before the first list.
    #[must_use]
    pub const fn last_list(&self) -> Option<LastList> {
        self.connections.last_list
    }

    /// Reports the connections whose ends the BPF program has recorded.
    fn report_traced(&mut self, records: Vec<TraceRecord>, events: &mut Vec<WatchEvent>) {
        let networks: HashSet<_> = self.connections.networks.iter().map(|network| network.inode).collect();
        let is_all = matches!(self.filter.namespaces, Namespaces::All);
        let watched = records.into_iter().filter(|record| is_all || networks.contains(&record.namespace));
        let mut ends: Vec<_> = watched
            .map(|record| {
                let connection = self.connections.remove((record.namespace, record.cookie));
                (record, connection.and_then(|connection| connection.owner))
            })
            .collect();
        ends.retain(|(record, _)| is_abnormal(record));
        let unknown = ends.iter().filter(|(_, owner)| owner.is_none());
        let inodes = unknown.filter_map(|(record, _)| inode(record)).collect();
        let found = self.connections.owners(&inodes);
        let (now, monotonic) = (SystemTime::now(), sys::monotonic_time());
        for (record, owner) in ends {
            events.push(WatchEvent::Died(Death {
                source: WatchSource::Ebpf,
                time: now.checked_sub(monotonic.saturating_sub(record.at)).unwrap_or(now),
                cause: Cause::of_error(record.errno, &record.settings, record.probes, record.has_data),
                owner: owner.or_else(|| found.get(&inode(&record)?).cloned()),
                local: record.local,
                peer: record.peer,
                settings: Some(record.settings),
                unanswered_probes: Some(record.probes),
                silent_ms: Some(record.silent_ms),
            }));
        }
    }

    /// Reports the connections whose sockets the kernel has destroyed.
    fn report_destroyed(&mut self, events: &mut Vec<WatchEvent>) {
        let mut taken = Vec::new();
        for (place, network) in self.connections.networks.iter_mut().enumerate() {
            if let Some((sockets, dropped)) = network.group.as_mut().map(DestroyedGroup::take) {
                events.extend((dropped > 0).then_some(WatchEvent::Missed(dropped)));
                taken.push((place, network.inode, network.retries(), sockets));
            }
        }
        for (place, inode, retries, sockets) in taken {
            let (mut explained, mut without_fin) = (0, Vec::new());
            for DestroyedSocket { socket, transfer } in sockets {
                let known = self.connections.remove((inode, socket.cookie));
                if known.as_ref().is_some_and(|known| known.is_reported || known.is_closed()) {
                    continue;
                }
                let (Some(status), Some(peer)) = (socket.status, socket.peer) else { continue };
                let settings = known.as_ref().and_then(|known| known.settings);
                let is_accepted = known.as_ref().is_some_and(|known| known.is_accepted);
                let death = |cause| Death {
                    source: WatchSource::Diag,
                    time: SystemTime::now(),
                    cause,
                    owner: known.and_then(|known| known.owner),
                    local: socket.local,
                    peer,
                    settings,
                    unanswered_probes: Some(status.probes),
                    silent_ms: Some(status.silent_ms().into()),
                };
                match ending(&status, &transfer, settings.as_ref(), retries, is_accepted) {
                    Ending::Normal => {}
                    Ending::Died(cause) => {
                        explained += 1;
                        events.push(WatchEvent::Died(death(cause)));
                    }
                    Ending::WithoutFin => without_fin.push(death(Cause::Reset)),
                }
            }
            let network = self.connections.networks.get_mut(place);
            let Some(group) = network.and_then(|network| network.group.as_mut()) else { continue };
            group.explain(explained);
            match group.without_fin(without_fin.len()) {
                WithoutFin::Reset => events.extend(without_fin.into_iter().map(WatchEvent::Died)),
                WithoutFin::Unclear(0) => {}
                WithoutFin::Unclear(count) => events.push(WatchEvent::Unclear(count)),
            }
        }
    }

    /// Examines connections that are no longer listed. If the owner still has the socket, reports the end.
    fn report_gone(&mut self, keys: &[ConnectionKey], events: &mut Vec<WatchEvent>) {
        let mut examined = Vec::new();
        let mut sockets = Vec::new();
        for key in keys {
            match self.connections.gone(*key).and_then(|connection| examine::held(connection)) {
                Some(socket) => {
                    examined.push(*key);
                    sockets.push(socket);
                }
                None => drop(self.connections.remove(*key)),
            }
        }
        let networks = self.connections.networks.iter();
        let retries: HashMap<_, _> = networks.map(|network| (network.inode, network.retries())).collect();
        for (key, found) in examined.into_iter().zip(examine::examine(&mut self.workers, &sockets)) {
            let Some(ExaminedSocket { settings, status, has_error }) = found else {
                self.connections.remove(key);
                continue;
            };
            let Some(connection) = self.connections.gone(key) else { continue };
            let retries = retries.get(&key.0).copied().unwrap_or(Retransmission::STANDARD.retries);
            let cause = match timeout(&settings, &status, retries) {
                Some(cause) => cause,
                None if has_error => Cause::Reset,
                // The program has read the error, or the connection ended by FINs.
                None => continue,
            };
            if status.is_connected() || connection.is_reported {
                continue;
            }
            connection.is_reported = true;
            let (local, peer, owner) = (connection.local, connection.peer, connection.owner.clone());
            events.push(WatchEvent::Died(Death {
                source: WatchSource::Poll,
                time: SystemTime::now(),
                cause,
                owner,
                local,
                peer,
                settings: Some(settings),
                unanswered_probes: Some(status.probes),
                silent_ms: Some(status.silent_ms().into()),
            }));
        }
        if self.source != WatchSource::Diag {
            for key in keys {
                self.connections.remove(*key);
            }
        }
    }

    /// Reads the settings of new connections, and those that are to be read again.
    fn read_settings(&mut self) {
        let before = sys::processor_time_with_children();
        let mut unread = Vec::new();
        let mut sockets = Vec::new();
        for connection in self.connections.unread() {
            connection.examined = Some(Instant::now());
            if let Some(socket) = examine::held(connection) {
                unread.push(connection);
                sockets.push(socket);
            }
        }
        for (connection, examined) in unread.into_iter().zip(examine::examine(&mut self.workers, &sockets)) {
            // If the socket cannot be read again, what was read before stays.
            if let Some(examined) = examined {
                connection.set_examined(&examined);
            }
        }
        // The settings of new connections are read only once.
        if self.connections.counts_risks {
            self.connections.delay(sys::processor_time_with_children().saturating_sub(before));
        }
    }
}

/// Opens a source.
fn open(source: WatchSource, filter: &WatchFilter) -> Result<(Option<Tracer>, Connections)> {
    let connections = Connections::new(source, &filter.namespaces, &filter.pids)?;
    let only = match (&filter.namespaces, &*connections.networks) {
        (Namespaces::Some(_), [only]) => Some(only.inode),
        _ => None,
    };
    let tracer = (source == WatchSource::Ebpf).then(|| Tracer::start(only)).transpose()?;
    Ok((tracer, connections))
}

impl WatchFilter {
    fn matches(&self, death: &Death) -> bool {
        self.selects(death.local, death.peer, death.owner.as_ref())
    }

    /// Returns whether a connection with these addresses and this owner is to be watched.
    fn selects(&self, local: SocketAddr, peer: SocketAddr, owner: Option<&SocketOwner>) -> bool {
        let has_port = |port| [local, peer].iter().any(|end| end.port() == port);
        self.port.is_none_or(has_port)
            && (self.pids.is_empty() || owner.is_some_and(|owner| self.pids.contains(&owner.pid)))
    }
}

/// Returns whether a connection ended abnormally.
///
/// If the program has shut down both directions, it has ended the connection itself, and a reset is a normal end.
/// shutdown(2) changes the state at once. So if both directions are shut down but the state is that of an open
/// connection, close(2) is aborting the connection. The error is then an older one that the program has not read.
fn is_abnormal(record: &TraceRecord) -> bool {
    let is_reset = matches!(record.errno, libc::ECONNRESET | libc::EPIPE);
    let is_open = matches!(record.state, State::Established | State::CloseWait);
    !(record.is_shut_down && (is_reset || is_open))
}

/// Returns the inode of a socket, if a process has it.
fn inode(record: &TraceRecord) -> Option<u32> {
    u32::try_from(record.inode).ok().filter(|inode| *inode != 0)
}
