//! Finds out which TCP connections of running processes are alive now. Can end those whose peer is silent.
//!
//! ka duplicates the sockets, as [`crate::attach`] does, and sends keepalive probes on them ([`ka_core::Probe`]).
//! First, workers read the state of each socket. A socket whose lock a program holds is found then, and is left alone.
//! Then one worker probes all other connections at the same time. A socket is probed once, even if several descriptors
//! or processes share it.

mod examination;
mod prober;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attach::{Processes, Report, lacks_descriptors, tables};
use crate::diag;
use crate::error::{Error, Result};
use crate::process::{self, HeldSocket, is_gone};
use crate::sys;
use crate::worker::{self, Completion, JobResult, Workers};
use examination::Examination;
use prober::Target;

/// The parameters of the probes.
#[derive(Clone, Copy, Debug)]
pub struct PingRequest {
    /// The time in which a peer must answer.
    pub timeout: Duration,
    /// The number of probes, spread evenly over this time.
    pub count: u32,
    /// The treatment of silent connections.
    pub destroy: Destroy,
}

/// The treatment of silent connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroy {
    /// ka does not end them.
    Never,
    /// ka ends none, and the results name those that it would end.
    DryRun,
    /// ka ends them.
    Silent,
}

/// The result for one connection: alive, silent, dead or unknown.
#[derive(Debug, Serialize, Deserialize)]
pub enum PingResult {
    /// The peer answered.
    Answered {
        /// The time from the first probe to the answer, in microseconds. If the peer had sent something within the last
        /// second, no probe was sent, and this is the kernel's smoothed round-trip time.
        rtt_us: u32,
    },
    /// The peer did not answer.
    Silent {
        /// True if data is in flight. The kernel then retransmits data instead of sending probes.
        in_flight: bool,
        /// The outcome of [`PingRequest::destroy`] for this connection. `None` with [`Destroy::Never`].
        destroyed: Option<Destroyed>,
    },
    /// The connection has ended, with this errno. `None` if the program has already read the error.
    Dead(Option<i32>),
    /// ka does not know, for this reason.
    Skipped(Error),
    /// The process has closed the socket, or the socket is not connected.
    Gone,
}

/// The outcome of [`PingRequest::destroy`] for a silent connection.
#[derive(Debug, Serialize, Deserialize)]
pub enum Destroyed {
    /// ka ended it.
    Done,
    /// On a dry run: ka would end it.
    Planned,
    /// ka did not end it, for this reason.
    Not(Error),
}

/// A connection and its state.
#[derive(Debug)]
pub struct PingedConnection {
    /// The process in which ka found the socket.
    pub pid: i32,
    /// The descriptor in this process.
    pub fd: i32,
    /// The name of the process, which may be any bytes. `None` if it cannot be read.
    pub comm: Option<Vec<u8>>,
    /// The PIDs of the other processes that have the socket.
    pub others: Vec<i32>,
    /// The local address. `None` if unknown.
    pub local: Option<SocketAddr>,
    /// The peer's address. `None` if unknown.
    pub peer: Option<SocketAddr>,
    /// The result.
    pub result: PingResult,
}

/// The connections that have a result so far, and those that are still being probed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The number of connections whose peer answered.
    pub answered: usize,
    /// The number of silent and dead connections.
    pub silent: usize,
    /// The number of connections without a result.
    pub left: usize,
}

/// A run over the connections of processes, and its results.
pub struct Ping<'a> {
    /// The parameters of the probes.
    pub request: PingRequest,
    /// The processes.
    pub processes: Processes,
    /// If not `None`, only connections whose local or peer port is this one.
    pub port: Option<u16>,
    /// If not `None`, only the socket with this inode.
    pub inode: Option<u32>,
    /// A descriptor that becomes readable when a termination signal arrives. Then the run ends early.
    pub termination: Option<BorrowedFd<'a>>,
    /// The worker processes, which make the calls on sockets.
    pub workers: Workers,
    /// The results.
    pub connections: Vec<PingedConnection>,
    /// The processes that ka could not examine.
    pub report: Report,
    /// The PIDs that have a socket, by its inode.
    holders: HashMap<u32, Vec<i32>>,
    /// True if ka was allowed to judge a connection.
    is_allowed: bool,
    /// The reason why ka may not end a connection.
    refusal: Option<Error>,
}

/// The maximum number of passes over the processes. If a process closes a socket before ka duplicates it, the next pass
/// finds the socket in another process.
const ATTEMPTS: usize = 3;

/// The number of descriptors that a worker needs besides those of the processes and the duplicates.
const OWN_DESCRIPTORS: usize = 24;

impl Ping<'_> {
    /// Prepares a run. `report` may already contain processes that could not be opened.
    pub fn new(request: PingRequest, processes: Processes, report: Report) -> Self {
        Self {
            request,
            processes,
            port: None,
            inode: None,
            termination: None,
            workers: Workers::default(),
            connections: Vec::new(),
            report,
            holders: HashMap::new(),
            is_allowed: false,
            refusal: None,
        }
    }

    /// Probes all connections that the processes have now. Calls `progress` several times a second.
    ///
    /// # Errors
    ///
    /// Only with [`Destroy::DryRun`] and [`Destroy::Silent`]: ka may not end connections, or this kernel cannot end
    /// them. Then ka has probed no connection.
    pub fn run(&mut self, mut progress: impl FnMut(Progress)) -> Result<()> {
        if self.request.destroy != Destroy::Never {
            diag::check_destroy()?;
        }
        let mut lost = self.pass(None, &mut progress);
        for _ in 1..ATTEMPTS {
            if lost.is_empty() || self.is_interrupted() {
                break;
            }
            lost = self.pass(Some(&lost), &mut progress);
        }
        if let Some(refusal) = self.refusal.take().filter(|_| !self.is_allowed) {
            return Err(refusal);
        }
        for connection in &mut self.connections {
            connection.others.retain(|pid| *pid != connection.pid);
            connection.others.sort_unstable();
            connection.others.dedup();
        }
        Ok(())
    }

    /// Returns whether a termination signal has arrived.
    pub fn is_interrupted(&self) -> bool {
        self.termination.is_some_and(sys::is_readable)
    }

    /// Makes one pass over the processes, in batches: the machine may have more processes than ka can hold open.
    /// Returns the inodes of sockets that were closed before their turn came.
    fn pass(&mut self, only: Option<&HashSet<u32>>, progress: &mut impl FnMut(Progress)) -> HashSet<u32> {
        let most = (sys::raise_descriptor_limit() / 4).max(1);
        let is_selected = self.processes.named().is_none();
        let mut ignored = Report::default();
        let processes = std::mem::replace(&mut self.processes, Processes::Named(Vec::new()));
        let report = if only.is_none() { &mut self.report } else { &mut ignored };
        let candidates = processes.candidates(report);
        let (mut batch, mut held, mut lost) = (Vec::new(), 0, HashSet::new());
        let mut left = candidates.len();
        let mut again = HashSet::new();
        for candidate in candidates {
            if self.is_interrupted() {
                self.report.not_examined += left;
                break;
            }
            left -= 1;
            let pid = candidate.pid();
            let list = || candidate.open().map_err(Error::from).and_then(|process| tables(&process));
            let mut listed = list();
            if held > 0 && listed.as_ref().is_err_and(|error| lacks_descriptors(error.raw_os_error())) {
                // The earlier processes of the batch use up the descriptors.
                self.probe_sockets(&std::mem::take(&mut batch), &mut lost, progress);
                held = 0;
                listed = list();
            }
            let problem = match listed {
                Ok((tables, problem)) => {
                    for (table, sockets) in tables {
                        let before = batch.len();
                        for (fd, inode) in sockets {
                            if self.inode.is_some_and(|only| only != inode) {
                                continue;
                            }
                            let is_first = self.add_holder(inode, pid);
                            let is_again = |only: &HashSet<u32>| only.contains(&inode) && again.insert(inode);
                            if only.map_or(is_first, is_again) {
                                batch.push(HeldSocket { table: table.clone(), fd, inode });
                            }
                        }
                        held += usize::from(batch.len() > before);
                    }
                    problem
                }
                Err(error) => Some(error),
            };
            if let Some(error) = problem.filter(|error| only.is_none() && !is_gone(error.raw_os_error())) {
                self.report.refuse(pid, error, is_selected);
            }
            if held >= most {
                self.probe_sockets(&std::mem::take(&mut batch), &mut lost, progress);
                held = 0;
            }
        }
        self.probe_sockets(&batch, &mut lost, progress);
        self.processes = processes;
        lost
    }

    /// Records that a process has a socket. Returns whether it is the first one.
    fn add_holder(&mut self, inode: u32, pid: i32) -> bool {
        let holders = self.holders.entry(inode).or_default();
        holders.push(pid);
        holders.len() == 1
    }

    /// Finds the connections among the sockets, and probes them.
    fn probe_sockets(
        &mut self,
        sockets: &[HeldSocket],
        lost: &mut HashSet<u32>,
        progress: &mut impl FnMut(Progress),
    ) {
        let (port, destroys) = (self.port, self.request.destroy != Destroy::Never);
        let mut answers = self.workers.ask(sockets, None, self.termination, |_, target, reply| {
            examination::examine(target, port, destroys, reply);
        });
        let mut refused = HashSet::new();
        let mut targets = Vec::new();
        for (place, (held, answer)) in sockets.iter().zip(std::mem::take(&mut answers.each)).enumerate() {
            let pid = held.table.pid;
            let skipped = match answer {
                JobResult::Given(record) => match Examination::from_record(&record) {
                    Examination::NotSelected => continue,
                    Examination::Refused(errno) if is_gone(Some(errno)) || errno == libc::EBADF => {
                        lost.insert(held.inode);
                        continue;
                    }
                    Examination::Refused(errno) => {
                        if refused.insert(pid) {
                            let error = io::Error::from_raw_os_error(errno);
                            self.report.refuse(pid, error, self.processes.named().is_none());
                        }
                        continue;
                    }
                    Examination::Connection(facts) => {
                        if facts.has_no_right {
                            let text = answers.texts.remove(&place).unwrap_or_default();
                            self.refusal.get_or_insert_with(|| {
                                Error::named_process(pid, Error::Worker(text.clone()))
                            });
                            self.record(
                                held,
                                facts.local,
                                facts.peer,
                                PingResult::Skipped(Error::Worker(text)),
                            );
                            continue;
                        }
                        self.is_allowed = true;
                        match facts.obstacle() {
                            Some(obstacle) => {
                                self.record(held, facts.local, facts.peer, PingResult::Skipped(obstacle));
                            }
                            None => targets.push(Target { held, facts }),
                        }
                        continue;
                    }
                },
                JobResult::Failed(error) | JobResult::Classed(error) => {
                    if refused.insert(pid) {
                        self.report.fail(pid, None, error);
                    }
                    continue;
                }
                JobResult::Excluded(user) => {
                    if refused.insert(pid) {
                        self.report.fail(pid, None, worker::excluded(user));
                    }
                    continue;
                }
                JobResult::Blocked => Error::SocketBlocked,
                JobResult::NotAsked => {
                    self.report.not_asked += 1;
                    continue;
                }
            };
            self.record(held, None, None, PingResult::Skipped(skipped));
        }
        let mut pidfds: Vec<_> = targets.iter().map(|target| target.held.table.pidfd().as_raw_fd()).collect();
        pidfds.dedup();
        let limit = sys::raise_descriptor_limit();
        let room = limit.saturating_sub(pidfds.len().saturating_add(OWN_DESCRIPTORS)).max(1);
        let mut done = 0;
        while let Some(targets) = targets.get(done..).filter(|targets| !targets.is_empty()) {
            let now = targets.get(..room).unwrap_or(targets);
            self.probe_targets(now, targets.len() - now.len(), &pidfds, lost, progress);
            done += now.len();
        }
    }

    /// Probes these connections, in a worker. `later` is the number of connections that follow.
    fn probe_targets(
        &mut self,
        targets: &[Target<'_>],
        later: usize,
        pidfds: &[i32],
        lost: &mut HashSet<u32>,
        progress: &mut impl FnMut(Progress),
    ) {
        let mut results: Vec<Option<PingResult>> = targets.iter().map(|_| None).collect();
        let count = |results: &[Option<PingResult>]| {
            let number =
                |is: fn(&PingResult) -> bool| results.iter().flatten().filter(|result| is(result)).count();
            Progress {
                answered: number(|result| matches!(result, PingResult::Answered { .. })),
                silent: number(|result| matches!(result, PingResult::Silent { .. } | PingResult::Dead(_))),
                left: later + results.iter().filter(|result| result.is_none()).count(),
            }
        };
        let before = self.progress();
        let add = |now: Progress| Progress {
            answered: before.answered + now.answered,
            silent: before.silent + now.silent,
            left: now.left,
        };
        let mut missing = if self.is_interrupted() { Some(Error::Interrupted) } else { None };
        let stop = sys::SharedWords::new(1);
        let started = stop.and_then(|stop| {
            let child = Workers::start(pidfds, |out| {
                prober::probe_all(targets, self.request, self.workers.classes(), &stop, out);
                Ok(())
            })?;
            Ok((child, stop))
        });
        match started {
            Err(error) => missing = Some(Error::WorkerStart(error)),
            Ok((child, stop)) => {
                let set = || stop.words().iter().for_each(|word| word.store(1, Ordering::Release));
                let mut rest = Vec::new();
                let end = self.workers.follow(child, self.termination, set, |bytes| {
                    rest.extend_from_slice(bytes);
                    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).collect();
                        if let Ok((place, result)) = serde_json::from_slice::<(usize, PingResult)>(&line)
                            && let Some(slot) = results.get_mut(place)
                        {
                            *slot = Some(result);
                        }
                    }
                    progress(add(count(&results)));
                });
                missing = missing.or(match end {
                    Completion::Finished | Completion::Failed(_) => Some(Error::WorkerDied),
                    Completion::Blocked => Some(Error::SocketBlocked),
                });
            }
        }
        for (target, result) in targets.iter().zip(results) {
            let result = result.unwrap_or_else(|| match &missing {
                Some(Error::Interrupted) => PingResult::Skipped(Error::Interrupted),
                other => PingResult::Skipped(Error::Worker(
                    other.as_ref().map_or_else(String::new, ToString::to_string),
                )),
            });
            if matches!(result, PingResult::Gone) {
                lost.insert(target.held.inode);
            } else {
                self.record(target.held, target.facts.local, target.facts.peer, result);
            }
        }
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        for connection in &self.connections {
            match connection.result {
                PingResult::Answered { .. } => progress.answered += 1,
                PingResult::Silent { .. } | PingResult::Dead(_) => progress.silent += 1,
                PingResult::Skipped(_) | PingResult::Gone => {}
            }
        }
        progress
    }

    fn record(
        &mut self,
        held: &HeldSocket,
        local: Option<SocketAddr>,
        peer: Option<SocketAddr>,
        result: PingResult,
    ) {
        let pid = held.table.pid;
        self.connections.push(PingedConnection {
            pid,
            fd: held.fd,
            comm: process::comm(pid),
            others: self.holders.get(&held.inode).cloned().unwrap_or_default(),
            local,
            peer,
            result,
        });
    }
}
