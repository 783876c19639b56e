//! Sets sockets through the kernel's tcp iterator, without duplicates.
//!
//! The iterator calls an eBPF program for every TCP socket of this network namespace. The eBPF program sets the socket.
//! The iterator takes the lock of each socket, so it blocks at a socket whose lock another program holds. ka then sets
//! the sockets that the iterator has not reached through the processes that have them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::AsRawFd as _;

use ka_core::Timer;
use ka_policy::Policy;

use super::{Attach, Change, Outcome, SocketResult, Unsupported};
use crate::bpf::{self, Counter, IterWriter, SetResult, SocketFilter};
use crate::diag::State;
use crate::error::{Error, Result};
use crate::escape;
use crate::listing::{ListedSocket, sockets};
use crate::process::own_pid;
use crate::process_policy;
use crate::worker::{Completion, WorkerOutput};

impl Attach<'_> {
    /// Sets all sockets of this network namespace in one pass of the kernel. If the kernel blocks at a socket whose
    /// lock is held, sets the remaining sockets through their processes. `processes` must be
    /// [`super::Processes::All`].
    ///
    /// # Errors
    /// The kernel cannot run the eBPF program, or ended it early. Then some sockets may have been set.
    /// [`Error::Unlisted`] if the sockets were set, but cannot be listed.
    pub fn through_kernel(&mut self) -> Result<()> {
        let Change { policy, mode, port, dry_run, describe, .. } = self.change;
        let counter = Counter::new()?;
        let selection = SocketFilter { port, cgroup: None };
        let writer = IterWriter::load(Policy::new(policy, mode), dry_run, selection, &counter)?;
        let WorkerOutput { mut data, end } = self.workers.run(&[writer.as_raw_fd()], |out| writer.run(out));
        let done = bpf::take_results(&mut data);
        let is_whole = match end {
            Completion::Failed(error) => return Err(error),
            Completion::Finished => true,
            Completion::Blocked => false,
        };
        let sockets = if describe || !is_whole || done.iter().any(|done| done.errno != 0) {
            let states: Vec<_> = State::with_options().collect();
            let listing = sockets(&mut self.workers, &states, None)
                .map_err(|error| Error::Unlisted(Box::new(error)))?;
            listing.sockets.into_iter().map(|socket| (socket.entry.cookie, socket)).collect()
        } else {
            HashMap::new()
        };
        if !is_whole {
            self.set_rest(&done, &sockets, &counter);
        }
        // The eBPF program leaves out the option on a kernel that lacks it.
        let lacks_rto_max = policy.names(Timer::RtoMax)
            && ka_core::defaults().is_ok_and(|defaults| defaults.rto_max.is_none());
        let mut owners = BTreeSet::new();
        for SetResult { cookie, writes, errno } in done {
            let outcome = match (errno, writes) {
                (0, 0) => Outcome::Unchanged,
                (0, _) => Outcome::Set,
                _ => Outcome::Failed,
            };
            let unsupported = Unsupported {
                rto_max: lacks_rto_max && self.change.is_given(outcome),
                ..Unsupported::default()
            };
            self.report.count(outcome);
            self.report.without_rto_max += usize::from(unsupported.rto_max);
            if describe || errno != 0 {
                let socket = sockets.get(&cookie);
                let owner = socket.and_then(|socket| socket.owner.as_ref());
                owners.extend(owner.map(|owner| owner.pid));
                let settings = socket.and_then(|socket| socket.settings);
                self.report.results.push(SocketResult {
                    pid: owner.map(|owner| owner.pid),
                    fd: owner.map(|owner| owner.fd),
                    inode: socket.map(|socket| socket.entry.inode),
                    comm: owner
                        .and_then(|owner| owner.comm.as_deref())
                        .map(|comm| escape::lossless(comm).into_owned()),
                    local: socket.map(|socket| socket.entry.local),
                    peer: socket.and_then(|socket| socket.entry.peer),
                    // The sockets were listed after they were set, so the settings of a set socket are those after it.
                    before: settings.filter(|_| dry_run || outcome == Outcome::Unchanged),
                    after: settings.filter(|_| !dry_run || outcome == Outcome::Unchanged),
                    outcome,
                    error: (errno != 0).then(|| bpf::set_error(errno).into()),
                    unsupported,
                });
            }
        }
        let (evidence, why) =
            process_policy::evidence(owners.iter().copied(), process_policy::MAPS, &mut self.workers);
        self.report.policies.extend(process_policy::others(&evidence, &policy, mode));
        self.report.unknown.extend(owners.into_iter().skip(evidence.len()).filter(|_| why.is_some()));
        Ok(())
    }

    /// Sets the sockets that the kernel has not reported, through their processes.
    fn set_rest(&mut self, done: &[SetResult], sockets: &HashMap<u64, ListedSocket>, counter: &Counter) {
        let reported: HashSet<_> = done.iter().map(|done| done.cookie).collect();
        let rest = sockets.values().filter(|socket| !reported.contains(&socket.entry.cookie));
        let (owned, ownerless): (Vec<_>, Vec<_>) = rest.partition(|socket| socket.owner.is_some());
        self.pass(Some(owned.iter().map(|socket| socket.entry.inode).collect()));
        if !self.change.dry_run {
            let reported = done.iter().filter(|done| done.writes != 0 && done.errno == 0).count();
            self.report.were_set(counter.value().saturating_sub(reported));
        }
        if !ownerless.is_empty() {
            self.report.fail(own_pid(), None, Error::IteratorStopped { left: ownerless.len() });
        }
    }
}
