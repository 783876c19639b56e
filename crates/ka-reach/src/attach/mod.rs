//! Sets the policy on the TCP sockets of running processes.
//!
//! A process can set options only on its own descriptors. So ka duplicates each socket out of the process
//! (pidfd_getfd(2)), sets the options on the duplicate, and closes it. Both descriptors refer to the same socket. The
//! process is not stopped and notices nothing.
//!
//! ka duplicates only descriptors that are sockets according to /proc. It sets a socket once, even if several
//! descriptors or processes share it. A call on a socket may block forever, so a worker makes it ([`crate::worker`]).
//!
//! [`Attach::through_kernel`] needs no duplicates: an eBPF program visits the sockets in the kernel ([`crate::bpf`]).

mod change;
mod finding;
mod kernel;
mod pass;
mod processes;
mod report;
mod seen;
mod writes;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::process;
use crate::sys;
use crate::worker::Workers;
use pass::Pass;
use processes::Candidate;
use seen::Seen;

pub use change::Change;
pub(crate) use pass::tables;
pub use processes::{NamedProcess, Processes};
pub use report::{Outcome, Report, SocketResult, Unsupported};

/// The maximum number of passes over the processes. If a process closes a socket before ka duplicates it, the next pass
/// finds the socket in another process. For example, another `ka attach` has a duplicate of each socket for a moment.
const ATTEMPTS: usize = 3;

/// A change to the sockets of running processes, and its results.
pub struct Attach<'a> {
    /// The change.
    pub change: Change<'a>,
    /// The processes whose sockets are set.
    pub processes: Processes,
    /// If not `None`, only the socket with this inode is set.
    pub inode: Option<u32>,
    /// The time over which the sockets are set, one after the other and evenly. If `None`, ka sets them as fast as it
    /// can.
    pub spread: Option<Duration>,
    /// A descriptor that becomes readable when a termination signal arrives. Then the work ends early.
    pub termination: Option<BorrowedFd<'a>>,
    /// The worker processes, which make the calls on sockets.
    pub workers: Workers,
    /// The results so far.
    pub report: Report,
    seen: Seen,
}

impl<'a> Attach<'a> {
    /// Prepares a change. `report` may already contain results.
    pub fn new(change: Change<'a>, processes: Processes, report: Report) -> Self {
        Self {
            change,
            processes,
            inode: None,
            spread: None,
            termination: None,
            workers: Workers::default(),
            report,
            seen: Seen::default(),
        }
    }

    /// Sets the sockets that the processes have now.
    ///
    /// If [`Change::before`] names the sockets, a socket may have moved to another process. So ka then looks for
    /// missing sockets in all processes.
    pub fn set_once(&mut self) {
        let change = self.change;
        let restored = change.before.map(|before| before.keys().copied().collect());
        let mut lost = self.pass(self.inode.map(|inode| HashSet::from([inode])).or(restored));
        for _ in 1..ATTEMPTS {
            if lost.is_empty() || self.termination.is_some_and(sys::is_readable) {
                break;
            }
            // The processes in which ka found these sockets have closed them, but other processes may have them. The
            // first pass has reported the processes that refuse access.
            self.seen.sockets.clear();
            lost = self.pass(Some(lost));
        }
        let Some(before) = change.before else { return };
        if self.report.found.len() < before.len() && !self.termination.is_some_and(sys::is_readable) {
            // If the recorded process has ended, another process may have the socket.
            let found = &self.report.found;
            let missing = before.keys().copied().filter(|inode| !found.contains(inode)).collect();
            let mut search = Report::default();
            let mut pass = Pass::new(change, &mut self.workers, &mut self.seen, &mut search);
            pass.termination = self.termination;
            pass.only = Some(missing);
            pass.run(process::all().unwrap_or_default().into_iter().map(Candidate::from));
            self.report.add_sockets(search);
        }
        self.report.not_found = before.len().saturating_sub(self.report.found.len());
    }

    /// Sets the sockets that the processes have now, as one round of many. ka examines a socket in the first two rounds
    /// after the socket was opened, and then in every 30th round.
    pub fn set_round(&mut self) {
        // If a socket was closed before its turn, the next round finds it in another process.
        self.pass(None);
        self.seen.forget();
    }

    /// Makes one pass over the processes. Returns the inodes of sockets that were closed before their turn came.
    fn pass(&mut self, only: Option<HashSet<u32>>) -> HashSet<u32> {
        let end = self.spread.filter(|_| !self.change.dry_run).map(|spread| Instant::now() + spread);
        let candidates = self.processes.candidates(&mut self.report);
        let mut pass = Pass::new(self.change, &mut self.workers, &mut self.seen, &mut self.report);
        pass.termination = self.termination;
        pass.only = only;
        pass.is_selected = self.processes.named().is_none();
        pass.finds_policies = self.change.before.is_none();
        pass.end = end;
        pass.run(candidates)
    }
}

/// Makes a change to the sockets that have these inodes and belong to these processes.
pub(crate) fn set_processes(
    change: Change<'_>,
    pids: Vec<i32>,
    only: HashSet<u32>,
    workers: &mut Workers,
) -> Report {
    let mut report = Report::default();
    let mut seen = Seen::default();
    let mut pass = Pass::new(change, workers, &mut seen, &mut report);
    pass.only = Some(only);
    pass.run(pids.into_iter().map(Candidate::from));
    report
}

/// Returns whether an errno says that ka or the machine has no free descriptor.
pub(crate) fn lacks_descriptors(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EMFILE | libc::ENFILE))
}
