//! The sweep: sets all open sockets of a cgroup, once.
//!
//! A cgroup's BPF programs set a socket when it connects, listens or is accepted. Connections and listeners that are
//! older than the programs keep their old settings. So `ka cgroup attach` sweeps them.
//!
//! The kernel's tcp iterator visits the sockets of one network namespace, and takes the lock of each. A program can
//! hold a socket's lock for as long as it likes. A process that waits for this lock cannot be killed, so the sweep
//! runs in a child process. The child reports each namespace that it enters, and its results there. If the child is
//! silent for too long, the parent sets the sockets of that namespace one by one, through the processes that have
//! them. Then the parent starts another child for the other namespaces.
//!
//! There may be more namespaces than ka can have descriptors. So the child opens only one namespace at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_policy::{Mode, Policy};
use serde::{Deserialize, Serialize};

use super::walk::{Skip, walk};
use super::{Cgroup, InForce, is_gone};
use crate::attach::{self, Change, Report};
use crate::bpf::{self, Counter, IterWriter, SocketFilter};
use crate::diag::State;
use crate::error::{Error, Result};
use crate::worker::{Completion, WorkerOutput, Workers};
use crate::{listing, netns, record, sys};

/// The longest time of one poll of the pipe. The parent adds up polls instead of reading the clock: if the
/// parent itself is stopped for a time (SIGSTOP), this time must not count as silence of the child.
const TICK: Duration = Duration::from_secs(1);
/// The number of ticks of silence after which the parent gives up a child.
const MAX_SILENT_TICKS: u32 = 5;
/// The number of namespaces with a silent child after which the parent gives up the sweep.
const MAX_BLOCKED: usize = 8;

/// The results of a sweep.
#[derive(Debug, Default)]
pub struct SweepResult {
    /// The number of sockets that were set.
    pub set: usize,
    /// The number of sockets that already had the policy, or keep their own settings.
    pub unchanged: usize,
    /// The number of sockets that were not set because the kernel rejected an option, by errno ([`bpf::set_error`]).
    pub refused: BTreeMap<i32, usize>,
    /// The sockets that the sweep left out.
    pub left: Vec<LeftOut>,
    /// The policies of cgroups below that the cgroup's policy overrides.
    pub overridden: Option<OverriddenPolicies>,
}

/// Sockets that a sweep left out, and the reason.
#[derive(Debug, Serialize, Deserialize)]
pub enum LeftOut {
    /// All or the remaining sockets: the cgroup has been removed.
    CgroupRemoved,
    /// All or the remaining sockets: this error would occur in every network namespace.
    All(Error),
    /// The sockets in some network namespaces other than ka's own.
    Networks {
        /// The number of these network namespaces.
        count: usize,
        /// The error.
        error: Error,
    },
    /// Some or all sockets in this network namespace.
    Network {
        /// The inode of the network namespace.
        inode: u64,
        /// The error. `None` if a program holds the lock of a socket.
        error: Option<Error>,
    },
    /// The sockets in the remaining network namespaces: in this many namespaces, a program held the lock of a socket.
    OtherNetworks(usize),
    /// The sockets in network namespaces that only processes in these skipped cgroups use.
    Cgroups(Skip),
    /// The sockets in other network namespaces: the search for these namespaces failed.
    Search(Error),
    /// The sockets in the network namespaces of this many processes: ka could not open these namespaces.
    Processes(usize),
    /// The sockets of a process, or one of them. The text names the process or the socket, and the reason.
    Socket(String),
    /// Some or all sockets: the child died.
    WorkerDied,
    /// Some or all sockets: a termination signal arrived.
    Signal,
    /// Some or all sockets: the child's messages could not be read, so ka does not know which sockets were set.
    Unknown(Error),
}

/// The policies of cgroups below that a policy in mode force overrides.
#[derive(Debug)]
pub struct OverriddenPolicies {
    /// The first of these policies.
    pub first: Vec<InForce>,
    /// The number of further ones.
    pub more: usize,
}

impl OverriddenPolicies {
    /// The number of policies that are named. The others are only counted.
    const MAX_NAMED: usize = 3;

    /// Searches the cgroups below for policies that `policy` overrides. `None` if there are no such policies, or if the
    /// kernel refuses to list them.
    fn below(cgroup: &Cgroup, policy: Policy<'static>) -> Option<Self> {
        if policy.mode != Mode::Force {
            return None;
        }
        let mut found = Self { first: Vec::new(), more: 0 };
        let look = |below: &Cgroup| {
            if below.id != cgroup.id {
                for other in below.policies()?.into_iter().filter(|other| other.config != policy.config) {
                    if found.first.len() < Self::MAX_NAMED {
                        found.first.push(InForce::new(&below.path, other));
                    } else {
                        found.more += 1;
                    }
                }
            }
            Ok(())
        };
        // The sweep's own walk reports the cgroups that are skipped.
        walk(cgroup, look).ok()?;
        (!found.first.is_empty()).then_some(found)
    }
}

/// A message of the child. Each message is a line of JSON.
#[derive(Serialize, Deserialize)]
enum SweepMessage {
    /// The policies that the cgroup's policy overrides ([`OverriddenPolicies`]). Each has its cgroup's name, and its
    /// record.
    Overrides { first: Vec<(String, String)>, more: usize },
    /// The child enters the network namespace with this inode.
    Entering(u64),
    /// The child has finished this namespace and searches for the next one.
    Leaving,
    /// The number of sockets with the same result. If `errno` is 0, they were set (`writes`) or needed no change.
    /// Otherwise, the kernel rejected an option.
    Sockets { writes: bool, errno: i32, count: usize },
    /// The last message.
    Finished { left: Vec<LeftOut> },
}

/// The end of a child.
enum ChildEnd {
    /// The child has visited all namespaces.
    Finished,
    /// The child is silent in the namespace `network`. It has reported `seen` sockets there without an error. It may
    /// have set more sockets than it has reported. `unreported` is their number.
    Blocked { network: u64, seen: usize, unreported: usize },
    /// The child closed its pipe without its last message.
    Died,
    /// A termination signal arrived.
    Signal,
}

/// The duties of a process that stays in the foreground while it sweeps.
pub struct Foreground<'a> {
    /// A descriptor that becomes readable when a termination signal arrives.
    pub termination: BorrowedFd<'a>,
    /// The longest time between two calls of `reset_watchdog`.
    pub interval: Option<Duration>,
    /// The function that tells the service manager that the process is alive.
    pub reset_watchdog: &'a dyn Fn(),
}

/// Sets the open sockets of a cgroup and of the cgroups below it, in each of their network namespaces. With
/// `foreground`, a termination signal ends the sweep early.
pub fn sweep(cgroup: &Cgroup, policy: Policy<'static>, foreground: Option<&Foreground<'_>>) -> SweepResult {
    let mut swept = SweepResult::default();
    let mut entered = HashSet::new();
    let mut workers = Workers::default();
    let mut blocked = 0;
    loop {
        let end = match SweepChild::start(cgroup, policy, &entered) {
            Ok(child) => child.receive(&mut swept, &mut entered, foreground),
            Err(error) => {
                swept.left.push(LeftOut::All(Error::WorkerStart(error)));
                return swept;
            }
        };
        match end {
            Ok(ChildEnd::Finished) => {}
            Ok(ChildEnd::Blocked { network, seen, unreported }) => {
                blocked += 1;
                let mut report = through_processes(cgroup, policy, network, &mut workers, &mut swept);
                report.were_set(unreported);
                swept.set += report.set;
                // The child has already reported `seen` of them.
                swept.unchanged += report.unchanged.saturating_sub(seen);
                swept.left.extend(report.reasons().map(LeftOut::Socket));
                if blocked < MAX_BLOCKED {
                    continue;
                }
                swept.left.push(LeftOut::OtherNetworks(MAX_BLOCKED));
            }
            Ok(ChildEnd::Died) => swept.left.push(LeftOut::WorkerDied),
            Ok(ChildEnd::Signal) => swept.left.push(LeftOut::Signal),
            Err(error) => swept.left.push(LeftOut::Unknown(error.into())),
        }
        return swept;
    }
}

/// A child process that visits network namespaces.
struct SweepChild {
    pipe: File,
    /// The bytes that were read from the pipe and are not parsed yet.
    text: Vec<u8>,
    /// The counter of the sockets that the child has set. `None` if the kernel refuses to create its map. Then the
    /// child reports the reason.
    counter: Option<Counter>,
}

impl SweepChild {
    /// Starts a child. The child leaves out the namespaces in `done`, which earlier children have entered.
    fn start(cgroup: &Cgroup, policy: Policy<'static>, done: &HashSet<u64>) -> io::Result<Self> {
        let (pipe, out) = io::pipe()?;
        let counter = Counter::new();
        let keep: Vec<_> =
            [out.as_raw_fd()].into_iter().chain(counter.iter().map(Counter::as_raw_fd)).collect();
        sys::start_detached(&keep, || {
            let mut out = File::from(OwnedFd::from(out.try_clone()?));
            let counter = counter.as_ref().map_err(|error| Error::Worker(error.to_string()));
            let left = Work { out: &mut out, done: done.clone(), path: &cgroup.path, id: cgroup.id }
                .visit_all(policy, counter)?;
            send(&mut out, &SweepMessage::Finished { left })
        })?;
        Ok(Self { pipe: OwnedFd::from(pipe).into(), text: Vec::new(), counter: counter.ok() })
    }

    /// Adds the child's messages to the results until the child ends.
    fn receive(
        mut self,
        swept: &mut SweepResult,
        entered: &mut HashSet<u64>,
        foreground: Option<&Foreground<'_>>,
    ) -> io::Result<ChildEnd> {
        let mut network = None;
        let (mut seen, mut reported) = (0, 0);
        let mut silence = 0;
        let mut piece = [0; 4096];
        loop {
            let waited: Vec<_> =
                [self.pipe.as_fd()].into_iter().chain(foreground.map(|held| held.termination)).collect();
            let tick = foreground.and_then(|held| held.interval).map_or(TICK, |interval| interval.min(TICK));
            let ready = sys::poll(&waited, tick)?;
            if let Some(foreground) = foreground {
                (foreground.reset_watchdog)();
            }
            if ready.get(1) == Some(&true) {
                return Ok(ChildEnd::Signal);
            }
            if ready.first() != Some(&true) {
                silence += tick.as_millis();
                // Between namespaces the child takes no socket's lock, so nothing can block it.
                if let Some(network) = network
                    && silence >= u128::from(MAX_SILENT_TICKS) * TICK.as_millis()
                {
                    let counted = self.counter.as_ref().map_or(0, Counter::value);
                    return Ok(ChildEnd::Blocked {
                        network,
                        seen,
                        unreported: counted.saturating_sub(reported),
                    });
                }
                continue;
            }
            silence = 0;
            let size = self.pipe.read(&mut piece)?;
            if size == 0 {
                return Ok(ChildEnd::Died);
            }
            self.text.extend_from_slice(piece.get(..size).unwrap_or_default());
            while let Some(message) = self.next()? {
                match message {
                    SweepMessage::Entering(number) => {
                        network = Some(number);
                        seen = 0;
                        entered.insert(number);
                    }
                    SweepMessage::Leaving => network = None,
                    SweepMessage::Overrides { first, more } => {
                        let policies = first.into_iter().filter_map(|(cgroup, record)| {
                            let Policy { config, mode, .. } = bpf::parse_record(record.as_bytes())?;
                            Some(InForce { cgroup, config, mode })
                        });
                        swept.overridden = Some(OverriddenPolicies { first: policies.collect(), more });
                    }
                    SweepMessage::Sockets { writes, errno: 0, count } => {
                        seen += count;
                        reported += if writes { count } else { 0 };
                        *(if writes { &mut swept.set } else { &mut swept.unchanged }) += count;
                    }
                    SweepMessage::Sockets { errno, count, .. } => {
                        *swept.refused.entry(errno).or_default() += count;
                    }
                    SweepMessage::Finished { left } => {
                        swept.left.extend(left);
                        return Ok(ChildEnd::Finished);
                    }
                }
            }
        }
    }

    /// Removes the next complete message from the bytes that were read.
    fn next(&mut self) -> io::Result<Option<SweepMessage>> {
        let Some(end) = self.text.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.text.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

fn send(out: &mut File, message: &SweepMessage) -> io::Result<()> {
    let mut line = Vec::new();
    serde_json::to_writer(&mut line, message)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// The work of the child.
struct Work<'a> {
    out: &'a mut File,
    /// The inodes of the namespaces that this child and earlier ones have entered. The inode of a removed namespace may
    /// be reused for a new namespace. That does no harm: in a new namespace, all sockets already have the policy.
    done: HashSet<u64>,
    path: &'a Path,
    id: u64,
}

impl Work<'_> {
    /// Visits all network namespaces. Returns the sockets that were left out. Fails if the parent has closed the pipe.
    ///
    /// The child inherits no descriptor of the cgroup, so it opens the cgroup again.
    fn visit_all(&mut self, policy: Policy<'static>, counter: Result<&Counter>) -> io::Result<Vec<LeftOut>> {
        let opened = Cgroup::open(self.path).ok().filter(|cgroup| cgroup.id == self.id);
        let Some(cgroup) = opened else { return Ok(vec![LeftOut::CgroupRemoved]) };
        // Only the first child reports this.
        if self.done.is_empty()
            && let Some(OverriddenPolicies { first, more }) = OverriddenPolicies::below(&cgroup, policy)
        {
            let record = |InForce { cgroup, config, mode }| (cgroup, bpf::record(Policy::new(config, mode)));
            let first = first.into_iter().map(record).collect();
            send(self.out, &SweepMessage::Overrides { first, more })?;
        }
        let selection = SocketFilter { cgroup: Some(cgroup.id), port: None };
        let writer = match counter.and_then(|counter| IterWriter::load(policy, false, selection, counter)) {
            Ok(writer) => writer,
            Err(error) => return Ok(vec![LeftOut::All(error)]),
        };
        if let Ok(own) = File::open("/proc/self/ns/net")
            && self.announce(&own)?
            && let Err(error) = self.set(&writer)?
        {
            return Ok(vec![LeftOut::All(error)]);
        }
        send(self.out, &SweepMessage::Leaving)?;
        let mut unseen = 0_usize;
        let mut failed: BTreeMap<String, (usize, Error)> = BTreeMap::new();
        let mut broken = None;
        let walked = walk(&cgroup, |cgroup| {
            for pid in members(cgroup)?.lines() {
                // If a process is outside of ka's PID namespace, the file shows its PID as 0.
                let network = match File::open(PathBuf::from(format!("/proc/{pid}/ns/net"))) {
                    Ok(network) => network,
                    Err(error) if pid != "0" && is_gone(&error) => continue,
                    Err(_) => {
                        unseen += 1;
                        continue;
                    }
                };
                let mut enter = || -> io::Result<()> {
                    if !self.announce(&network)? {
                        return Ok(());
                    }
                    let set = match sys::enter_network(&network) {
                        Ok(()) => self.set(&writer)?,
                        Err(error) => Err(netns::explain(error)),
                    };
                    if let Err(error) = set {
                        failed.entry(error.to_string()).or_insert((0, error)).0 += 1;
                    }
                    send(self.out, &SweepMessage::Leaving)
                };
                if let Err(error) = enter() {
                    // The parent has closed the pipe. EPERM ends the walk.
                    broken = Some(error);
                    return Err(io::Error::from_raw_os_error(libc::EPERM));
                }
            }
            Ok(())
        });
        if let Some(error) = broken {
            return Err(error);
        }
        let mut left: Vec<_> = match walked {
            Ok(skipped) => skipped.into_iter().map(LeftOut::Cgroups).collect(),
            Err(error) => vec![LeftOut::Search(error.into())],
        };
        if unseen > 0 {
            left.push(LeftOut::Processes(unseen));
        }
        left.extend(failed.into_values().map(|(count, error)| LeftOut::Networks { count, error }));
        Ok(left)
    }

    /// Tells the parent that the child enters this namespace. Returns false if this or an earlier child has entered it
    /// before.
    fn announce(&mut self, network: &File) -> io::Result<bool> {
        let number = sys::inode(network.as_fd())?;
        let is_new = self.done.insert(number);
        if is_new {
            send(self.out, &SweepMessage::Entering(number))?;
        }
        Ok(is_new)
    }

    /// Sets the sockets of the child's current namespace and reports the results. The outer error is an error of the
    /// pipe. The inner one is an error of the iterator.
    fn set(&mut self, writer: &IterWriter) -> io::Result<Result<()>> {
        let mut results = Results { out: self.out, records: Vec::new() };
        let set = writer.run(&mut results);
        results.report()?;
        Ok(set)
    }
}

/// Reports the kernel's records as they arrive, so that the parent sees progress.
struct Results<'a> {
    out: &'a mut File,
    /// The records that are not reported yet. The last one may be incomplete.
    records: Vec<u8>,
}

impl Results<'_> {
    /// Sends the number of sockets for each kind of result.
    fn report(&mut self) -> io::Result<()> {
        let mut counts: BTreeMap<(bool, i32), usize> = BTreeMap::new();
        for one in bpf::take_results(&mut self.records) {
            *counts.entry((one.writes != 0, one.errno)).or_default() += 1;
        }
        for ((writes, errno), count) in counts {
            send(self.out, &SweepMessage::Sockets { writes, errno, count })?;
        }
        Ok(())
    }
}

impl Write for Results<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.records.extend_from_slice(piece);
        self.report()?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the cgroup's sockets in one network namespace through the processes that have them. The child has blocked in
/// this namespace, at a socket whose lock is held.
fn through_processes(
    cgroup: &Cgroup,
    policy: Policy<'static>,
    number: u64,
    workers: &mut Workers,
    swept: &mut SweepResult,
) -> Report {
    let is_number = |network: &File| sys::inode(network.as_fd()).is_ok_and(|inode| inode == number);
    let is_own = File::open("/proc/self/ns/net").is_ok_and(|own| is_number(&own));
    let (mut cgroups, mut pids, mut network) = (HashSet::new(), Vec::new(), None);
    // The child reports the cgroups that the walk skips.
    let _ = walk(cgroup, |cgroup| {
        cgroups.insert(cgroup.id);
        for pid in members(cgroup)?.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0) {
            if !is_own && network.is_none() {
                let opened = File::open(PathBuf::from(format!("/proc/{pid}/ns/net"))).ok();
                network = opened.filter(&is_number);
            }
            pids.push(pid);
        }
        Ok(())
    });
    let mut not_set = |error| {
        swept.left.push(LeftOut::Network { inode: number, error });
        Report::default()
    };
    if !is_own && network.is_none() {
        return not_set(None);
    }
    let states: Vec<_> = State::with_options().collect();
    let keep: Vec<_> = network.iter().map(File::as_raw_fd).collect();
    let WorkerOutput { data, end } = workers.run(&keep, |out| {
        if let Some(network) = &network {
            sys::enter_network(network)?;
        }
        listing::list(&states, false, out)
    });
    match end {
        Completion::Finished => {}
        Completion::Blocked => return not_set(None),
        Completion::Failed(error) => return not_set(Some(error)),
    }
    let is_selected = |inode: u32, cgroup: u64| inode != 0 && cgroups.contains(&cgroup);
    let rest: HashSet<_> = record::entries(&data)
        .filter(|entry| is_selected(entry.inode, entry.cgroup))
        .map(|entry| entry.inode)
        .collect();
    let Policy { config: policy, mode, .. } = policy;
    let change = Change { policy, mode, port: None, dry_run: false, describe: false, before: None };
    attach::set_processes(change, pids, rest, workers)
}

/// Returns the PIDs of a cgroup's processes, one per line. For a threaded cgroup, the kernel lists only thread IDs,
/// which serve the same purpose in /proc.
fn members(cgroup: &Cgroup) -> io::Result<String> {
    let mut text = String::new();
    match cgroup.file("cgroup.procs").and_then(|mut file| file.read_to_string(&mut text)) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            cgroup.file("cgroup.threads")?.read_to_string(&mut text)?;
        }
        read => {
            read?;
        }
    }
    Ok(text)
}
