//! One pass over processes and their sockets.
//!
//! The machine may have more processes and sockets than ka can hold descriptors for. So a pass collects the sockets of
//! some processes in a batch, lets workers set them, releases the processes, and continues with the next batch.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::finding::{Examined, Finding};
use super::processes::Candidate;
use super::{Change, Outcome, Report, Seen, SocketResult, lacks_descriptors};
use crate::error::Error;
use crate::escape;
use crate::privilege;
use crate::process::{self, DescriptorTable, HeldSocket, Process, is_gone};
use crate::process_policy::{self, Evidence};
use crate::sys;
use crate::worker::{Answers, JobResult, Pace, Workers};

/// One pass over processes.
pub(super) struct Pass<'a> {
    pub(super) change: Change<'a>,
    pub(super) workers: &'a mut Workers,
    pub(super) seen: &'a mut Seen,
    pub(super) report: &'a mut Report,
    /// A descriptor that becomes readable when a termination signal arrives.
    pub(super) termination: Option<BorrowedFd<'a>>,
    /// If not `None`, only sockets with one of these inodes are set.
    pub(super) only: Option<HashSet<u32>>,
    /// True if ka selected the processes. False if the user named each one.
    pub(super) is_selected: bool,
    /// True if ka looks for other policies that apply to the processes.
    pub(super) finds_policies: bool,
    /// If not `None`, the work is spread evenly until this time.
    pub(super) end: Option<Instant>,
}

/// The separator in a worker's message about a socket. The text of an error precedes it. The [`Evidence`], as JSON,
/// follows it.
const EVIDENCE: char = '\0';

impl<'a> Pass<'a> {
    /// Prepares a pass over processes that the user named, with all their sockets.
    pub(super) const fn new(
        change: Change<'a>,
        workers: &'a mut Workers,
        seen: &'a mut Seen,
        report: &'a mut Report,
    ) -> Self {
        Self {
            change,
            workers,
            seen,
            report,
            termination: None,
            only: None,
            is_selected: false,
            finds_policies: false,
            end: None,
        }
    }

    /// Makes the change to the sockets of processes, some processes at a time. Reports the processes that refuse
    /// access. Skips processes that have ended. Returns the inodes of sockets that were closed before their turn
    /// came.
    pub(super) fn run<'c>(&mut self, processes: impl IntoIterator<Item = Candidate<'c>>) -> HashSet<u32> {
        let mut lost = HashSet::new();
        let mut batch = Batch::new();
        let mut processes = processes.into_iter();
        while let Some(candidate) = processes.next() {
            let pid = candidate.pid();
            let list = || candidate.open().map_err(Error::from).and_then(|process| tables(&process));
            let mut listed = list();
            if listed.as_ref().is_err_and(|error| lacks_descriptors(error.raw_os_error()))
                && batch.processes > 0
            {
                // The earlier processes of the batch use up the descriptors, so set their sockets first.
                lost.extend(self.make(&mut batch, self.half_time()));
                listed = list();
            }
            let problem = match listed {
                Ok((tables, problem)) => {
                    for (table, sockets) in tables {
                        self.add(&mut batch, &table, &sockets);
                    }
                    problem
                }
                Err(error) => Some(error),
            };
            if let Some(error) = problem.filter(|error| !is_gone(error.raw_os_error()))
                && self.seen.refuses(pid)
            {
                self.report.refuse(pid, error, self.is_selected);
            }
            // If the work is spread over a time, a batch is as large as the descriptors allow, to spread it evenly.
            if batch.processes >= batch.room || batch.is_full() && self.end.is_none() {
                lost.extend(self.make(&mut batch, self.half_time()));
            }
            if self.termination.is_some_and(sys::is_readable) {
                self.report.not_examined = processes.count();
                break;
            }
        }
        lost.extend(self.make(&mut batch, self.end));
        self.seen.round += 1;
        lost
    }

    /// Returns the middle of the remaining time. The processes after this batch get the second half.
    fn half_time(&self) -> Option<Instant> {
        self.end.map(|end| Instant::now() + end.saturating_duration_since(Instant::now()) / 2)
    }

    /// Adds a table's sockets to a batch, if they are due in this round.
    fn add(&mut self, batch: &mut Batch, table: &DescriptorTable, sockets: &[(i32, u32)]) {
        batch.processes += usize::from(!sockets.is_empty());
        for (fd, inode) in sockets {
            let is_wanted = self.only.as_ref().is_none_or(|only| only.contains(inode));
            if is_wanted
                && let Some(is_again) = self.seen.is_due(*inode)
                // A second dry run would only report the same again.
                && !(is_again && self.change.dry_run)
            {
                batch.targets.push(HeldSocket { table: table.clone(), fd: *fd, inode: *inode });
                let finds_policies = self.finds_policies && !self.seen.processes.contains(&table.pid);
                batch.instructions.push(SocketInstructions { is_again, finds_policies });
            }
        }
    }

    /// Makes the change to each socket of a batch, as fast as the cores allow, or evenly until `end`.
    fn make(&mut self, batch: &mut Batch, end: Option<Instant>) -> HashSet<u32> {
        let Batch { targets, instructions, .. } = std::mem::replace(batch, Batch::new());
        let pace = end.map(|end| {
            let start = Instant::now();
            Pace { start, time: end.saturating_duration_since(start) }
        });
        let read = Mutex::new(HashSet::new());
        let answers = self.workers.ask(&targets, pace, self.termination, |place, target, reply| {
            let SocketInstructions { is_again, finds_policies } =
                instructions.get(place).copied().unwrap_or_default();
            let pid = target.table.pid;
            if !self.change.make(target, is_again, reply) || !finds_policies {
                return;
            }
            // Several threads of this worker may have sockets of the same process. Only the first one reads the
            // evidence.
            let is_first = read.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
            reply.finish();
            if is_first
                && let Ok(evidence) = serde_json::to_string(&process_policy::read(pid, process_policy::MAPS))
            {
                reply.send_later(format!("{EVIDENCE}{evidence}"));
            }
        });
        self.record(&targets, &instructions, answers)
    }

    /// Records the results. Returns the inodes of sockets that were closed before their turn came.
    fn record(
        &mut self,
        targets: &[HeldSocket],
        instructions: &[SocketInstructions],
        mut answers: Answers,
    ) -> HashSet<u32> {
        // The processes with a failure that concerns all their sockets. It is reported once.
        let mut refused = HashSet::new();
        let mut lost = HashSet::new();
        let mut examined_processes = Vec::new();
        let each = std::mem::take(&mut answers.each);
        for (place, ((target, instructions), answer)) in
            targets.iter().zip(instructions).zip(each).enumerate()
        {
            let pid = target.table.pid;
            let text = answers.texts.remove(&place).unwrap_or_default();
            let (error, evidence) = text.split_once(EVIDENCE).unwrap_or((&text, ""));
            self.record_policies(pid, evidence);
            let finding = match answer {
                JobResult::Given(record) => Some(Finding::from_record(&record)),
                _ => None,
            };
            if self.change.before.is_some() && !matches!(finding, Some(Finding::Refused(_))) {
                self.report.found.insert(target.inode);
            }
            match answer {
                JobResult::Given(_) => {}
                JobResult::NotAsked => self.report.not_asked += usize::from(!instructions.is_again),
                // This failure concerns all sockets of the process.
                JobResult::Failed(why) if refused.insert(pid) => {
                    self.report.fail(pid, None, why);
                }
                JobResult::Failed(_) => self.report.count(Outcome::Failed),
                JobResult::Blocked => {
                    if self.report.blocked.insert(target.inode) {
                        self.report.fail(pid, Some(target.fd), Error::LeftLocked);
                    }
                }
                JobResult::Classed(why) => {
                    if self.seen.refuses(pid) {
                        self.report.fail(pid, None, why);
                    }
                }
                JobResult::Excluded(user) => {
                    if self.seen.refuses(pid) {
                        self.report.fail(pid, None, crate::worker::excluded(user));
                    }
                }
            }
            match finding {
                Some(Finding::Examined(examined)) => {
                    if instructions.finds_policies {
                        examined_processes.push(pid);
                    }
                    self.record_examined(target, &examined, error);
                }
                Some(Finding::Refused(errno)) => {
                    let error = io::Error::from_raw_os_error(errno);
                    // The process has closed the descriptor since it was listed, or has ended.
                    if is_gone(Some(errno)) || errno == libc::EBADF {
                        lost.insert(target.inode);
                    } else if errno != libc::EPERM {
                        self.report.fail(pid, Some(target.fd), privilege::explain(pid, error));
                    } else if refused.insert(pid) {
                        self.report.refuse(pid, error, self.is_selected);
                    }
                }
                Some(Finding::NotSelected) | None => {}
            }
        }
        // A worker that was blocked or killed has sent no evidence.
        let without_evidence = examined_processes.into_iter().filter(|pid| self.seen.processes.insert(*pid));
        self.report.unknown.extend(without_evidence);
        lost
    }

    /// Records the policies that the evidence about a process shows, once per process.
    fn record_policies(&mut self, pid: i32, evidence: &str) {
        if let Ok(evidence) = serde_json::from_str::<Evidence>(evidence)
            && self.seen.processes.insert(pid)
        {
            let Change { policy, mode, .. } = &self.change;
            self.report.policies.extend(process_policy::others(&[evidence], policy, *mode));
        }
    }

    fn record_examined(&mut self, target: &HeldSocket, examined: &Examined, error: &str) {
        let pid = target.table.pid;
        let Examined { effect, unsupported, local, peer, before, after } = *examined;
        let outcome = effect.into();
        self.report.count(outcome);
        self.report.without_user_timeout += usize::from(unsupported.user_timeout);
        self.report.without_rto_max += usize::from(unsupported.rto_max);
        if self.change.describe || !error.is_empty() {
            self.report.results.push(SocketResult {
                pid: Some(pid),
                fd: Some(target.fd),
                inode: Some(target.inode),
                comm: process::comm(pid).map(|comm| escape::lossless(&comm).into_owned()),
                local,
                peer,
                outcome,
                before,
                after,
                error: (!error.is_empty()).then(|| Error::Worker(error.to_owned()).into()),
                unsupported,
            });
        }
    }
}

/// Instructions to a worker about one socket.
#[derive(Clone, Copy, Default)]
struct SocketInstructions {
    /// True if an earlier round examined the socket. Then ka reports it only if ka has to set it again.
    is_again: bool,
    /// True if the worker examines the socket's process for other policies.
    finds_policies: bool,
}

/// Sockets that workers set together.
struct Batch {
    targets: Vec<HeldSocket>,
    /// The instructions for each socket, in the order of `targets`.
    instructions: Vec<SocketInstructions>,
    /// The number of processes that have these sockets.
    processes: usize,
    /// The maximum number of processes that can be held open at a time.
    room: usize,
    begun: Instant,
}

impl Batch {
    // The limits of a batch. Without them, the first processes would wait for the last, and the descriptors could run
    // out.
    const SOCKETS: usize = 1 << 15;
    const PROCESSES: usize = 256;
    const TIME: Duration = Duration::from_millis(100);

    fn new() -> Self {
        let room = (sys::raise_descriptor_limit() / 4).max(1);
        Self { targets: Vec::new(), instructions: Vec::new(), processes: 0, room, begun: Instant::now() }
    }

    fn is_full(&self) -> bool {
        self.targets.len() >= Self::SOCKETS
            || self.processes >= self.room.min(Self::PROCESSES)
            || self.begun.elapsed() >= Self::TIME
    }
}

/// A descriptor table, and its descriptors that are sockets, with their inodes.
pub(crate) type TableAndSockets = (DescriptorTable, Vec<(i32, u32)>);

/// Returns a process's descriptor tables with the sockets in each. If a table could not be read, also returns the
/// error.
pub(crate) fn tables(process: &Process) -> crate::Result<(Vec<TableAndSockets>, Option<Error>)> {
    let mut tables = Vec::new();
    let mut problem = None;
    process.each_table(|table| match table {
        Ok(table) => tables.push(table),
        Err(error) => problem = Some(error),
    })?;
    // If the process has ended, /proc may have shown another process with the same PID.
    if process.is_alive() {
        Ok((tables, problem))
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH).into())
    }
}
