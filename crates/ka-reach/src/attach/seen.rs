//! What earlier rounds of `ka attach --follow` have dealt with.

use std::collections::{HashMap, HashSet};

use crate::process;

/// The sockets, processes and refusals of earlier rounds. The kernel reuses an inode number only after 2^32 others.
#[derive(Default)]
pub(crate) struct Seen {
    pub(super) round: u64,
    /// The round in which a socket is due again, by inode.
    pub(super) sockets: HashMap<u32, u64>,
    /// The processes that were examined for other policies.
    pub(super) processes: HashSet<i32>,
    /// Processes whose refusal has been reported, by PID and start time, and the last round in which each refused.
    refused: HashMap<(i32, u64), u64>,
}

impl Seen {
    /// Some programs set their own keepalive right after they connect, such as Go programs. So a socket is examined in
    /// two consecutive rounds, and then each time after this many.
    const AGAIN: u64 = 30;

    /// Returns whether a socket is to be examined in this round, and if so, whether it was examined before. Later calls
    /// in the same round return `None`, because several descriptors may share the socket.
    pub(super) fn is_due(&mut self, inode: u32) -> Option<bool> {
        let round = self.round;
        match self.sockets.get_mut(&inode) {
            Some(next) if *next > round => None,
            Some(next) => {
                *next = round + Self::AGAIN;
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

    /// Forgets sockets that were absent when they were due again, processes that have ended, and processes that have
    /// not refused since.
    pub(super) fn forget(&mut self) {
        if self.round.is_multiple_of(Self::AGAIN) {
            let round = self.round;
            self.sockets.retain(|_, next| *next >= round);
            self.refused.retain(|_, last| *last + Self::AGAIN >= round);
            self.processes.retain(|pid| process::started(*pid) != 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn refusals_are_reported_once_and_forgotten_after_the_process() {
        let mut seen = Seen::default();
        let rounds = 10 * Seen::AGAIN;
        for round in 0..rounds {
            seen.round = round;
            // One process refuses in every round. Another one, of a new PID each time, refuses once.
            assert_eq!(seen.refuses_as(1, 7), round == 0);
            assert!(seen.refuses_as(i32::try_from(round).unwrap() + 2, 7));
            seen.forget();
            assert!(
                seen.refused.len() <= 3 * usize::try_from(Seen::AGAIN).unwrap(),
                "{}",
                seen.refused.len()
            );
        }
        // A PID that is used again is another process.
        assert!(seen.refuses_as(1, 8));
    }
}
