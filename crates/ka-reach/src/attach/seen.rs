//! The sockets and processes that earlier rounds of `ka attach --follow` have examined.

use std::collections::{HashMap, HashSet};

use crate::process;

/// The sockets, processes and refusals of earlier rounds. Sockets are recognized by inode: the kernel reuses an inode
/// number only after 2^32 others.
#[derive(Default)]
pub(crate) struct Seen {
    /// The number of the current round.
    pub(super) round: u64,
    /// The round in which each socket is due again, by inode.
    pub(super) sockets: HashMap<u32, u64>,
    /// The processes that were examined for other policies.
    pub(super) processes: HashSet<i32>,
    /// The last round in which each process refused access, by PID and start time. The first refusal was reported.
    refused: HashMap<(i32, u64), u64>,
}

impl Seen {
    /// The number of rounds between two examinations of a socket, after the first two.
    ///
    /// Some programs, such as Go programs, set their own keepalive right after they connect. So a new socket is
    /// examined in two consecutive rounds.
    const INTERVAL: u64 = 30;

    /// Returns `None` if a socket is not due in this round. Otherwise returns whether an earlier round examined it.
    ///
    /// Several descriptors may share a socket, so later calls in the same round return `None`.
    pub(super) fn is_due(&mut self, inode: u32) -> Option<bool> {
        let round = self.round;
        match self.sockets.get_mut(&inode) {
            Some(next) if *next > round => None,
            Some(next) => {
                *next = round + Self::INTERVAL;
                Some(true)
            }
            None => {
                self.sockets.insert(inode, round + 1);
                Some(false)
            }
        }
    }

    /// Records that a process refused access in this round. Returns whether this is its first refusal.
    pub(super) fn refuses(&mut self, pid: i32) -> bool {
        self.refuses_as(pid, process::started(pid))
    }

    fn refuses_as(&mut self, pid: i32, started: u64) -> bool {
        self.refused.insert((pid, started), self.round).is_none()
    }

    /// Forgets sockets that were closed before they were due again, processes that have ended, and refusals that have
    /// not recurred. Does so once in [`Self::INTERVAL`] rounds.
    pub(super) fn forget(&mut self) {
        if self.round.is_multiple_of(Self::INTERVAL) {
            let round = self.round;
            self.sockets.retain(|_, next| *next >= round);
            self.refused.retain(|_, last| *last + Self::INTERVAL >= round);
            self.processes.retain(|pid| process::started(*pid) != 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn refusals_are_reported_once_and_later_forgotten() {
        let mut seen = Seen::default();
        let rounds = 10 * Seen::INTERVAL;
        for round in 0..rounds {
            seen.round = round;
            // Process 1 refuses in every round. In each round, a process with a new PID refuses once.
            assert_eq!(seen.refuses_as(1, 7), round == 0);
            assert!(seen.refuses_as(i32::try_from(round).unwrap() + 2, 7));
            seen.forget();
            assert!(
                seen.refused.len() <= 3 * usize::try_from(Seen::INTERVAL).unwrap(),
                "{}",
                seen.refused.len()
            );
        }
        // A reused PID belongs to another process.
        assert!(seen.refuses_as(1, 8));
    }
}
