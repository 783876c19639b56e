//! The results of a change, for each socket and in total.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ka_core::Settings;

use crate::error::Error;
use crate::escape;
use crate::privilege;
use crate::process;
use crate::process_policy::ProcessPolicy;

/// The result for a socket or a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The socket was set. On a dry run, it would be set.
    Set,
    /// The socket already had the policy, or the mode lets it keep its own settings.
    Unchanged,
    /// The socket was not set, or the process could not be examined.
    #[default]
    Failed,
    /// ka may not examine the process, and the user did not name it.
    Denied,
}

/// The result for one socket, or the reason why a process could not be examined.
#[derive(Debug, Default)]
pub struct SocketResult {
    /// The PID of the process. `None` if no process has the socket, or only processes that ka may not examine.
    pub pid: Option<i32>,
    /// The descriptor in the process. `None` if the result concerns the whole process, or `pid` is `None`.
    pub fd: Option<i32>,
    /// The inode of the socket. `None` if unknown.
    pub inode: Option<u32>,
    /// The name of the process. Bytes that are not UTF-8 are written as `\xNN`.
    pub comm: Option<String>,
    /// The local address. `None` if unknown.
    pub local: Option<SocketAddr>,
    /// The peer's address. `None` if unknown, or if the socket is not connected.
    pub peer: Option<SocketAddr>,
    /// The result.
    pub outcome: Outcome,
    /// The settings before the change. `None` if unknown.
    pub before: Option<Settings>,
    /// The settings after the change. On a dry run, the settings that the change would make. `None` if unknown.
    pub after: Option<Settings>,
    /// The reason for a failure.
    pub error: Option<Arc<Error>>,
    /// The values of the policy that the socket does not support. It has all the others.
    pub unsupported: Unsupported,
}

/// The values of a policy that a socket does not support.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsupported {
    /// The user timeout, because it is a Multipath TCP socket.
    pub user_timeout: bool,
    /// `TCP_RTO_MAX_MS`, because it is a Multipath TCP socket, or the kernel is older than Linux 6.15.
    pub rto_max: bool,
}

/// The results of a change.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of sockets that were set, or on a dry run, that would be set.
    pub set: usize,
    /// The number of sockets that needed no change.
    pub unchanged: usize,
    /// The number of sockets and processes that failed.
    pub failed: usize,
    /// The number of sockets among `set` and `unchanged` that do not support the policy's user timeout.
    pub without_user_timeout: usize,
    /// The number of sockets among `set` and `unchanged` that do not support the policy's `TCP_RTO_MAX_MS`.
    pub without_rto_max: usize,
    /// The number of sockets that were not examined, because a termination signal arrived.
    pub not_asked: usize,
    /// The number of processes that were not examined, because a termination signal arrived.
    pub not_examined: usize,
    /// The number of processes that ka may not examine and that the user did not name.
    pub denied: usize,
    /// The number of processes that KA_SKIP leaves alone.
    pub skipped: usize,
    /// The number of sockets to restore that were not found.
    pub not_found: usize,
    /// The results of sockets and processes. Successes are included only if [`super::Change::describe`] is set.
    pub results: Vec<SocketResult>,
    /// Policies that apply to the processes and differ from the policy of the change.
    pub policies: Vec<ProcessPolicy>,
    /// Processes for which ka could not find out whether another policy applies.
    pub unknown: Vec<i32>,
    /// The inodes of the sockets to restore that were found.
    pub(super) found: HashSet<u32>,
    /// The inodes of sockets that blocked a worker.
    pub(super) blocked: HashSet<u32>,
}

impl Report {
    /// Records that a process, or a socket of it, failed.
    pub fn fail(&mut self, pid: i32, fd: Option<i32>, error: impl Into<Arc<Error>>) {
        self.push(pid, fd, error.into(), Outcome::Failed);
    }

    /// Returns a message for each socket and process that was not set, with the reason.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = String> {
        self.results.iter().filter_map(|result| {
            let who = result.pid.map_or_else(|| "a process".to_owned(), process::title);
            let fd = result.fd.map_or_else(|| ":".to_owned(), |fd| format!(": its socket fd {fd}"));
            result.error.as_ref().map(|error| format!("{who}{fd} {error}"))
        })
    }

    pub(super) const fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Set => self.set += 1,
            Outcome::Unchanged => self.unchanged += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Denied => self.denied += 1,
        }
    }

    /// Adds the results of a search for sockets in all processes. Processes that refuse access are left out.
    pub(super) fn add_sockets(&mut self, search: Self) {
        self.set += search.set;
        self.unchanged += search.unchanged;
        self.found.extend(search.found);
        self.results.extend(search.results.into_iter().filter(|result| result.fd.is_some()));
    }

    /// Records that a process cannot be examined. If ka selected the process (`is_selected`) and lacks the permission,
    /// the process counts as denied, not as failed.
    pub(crate) fn refuse(&mut self, pid: i32, error: impl Into<Error>, is_selected: bool) {
        let error = error.into();
        let is_denied = is_selected && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        let outcome = if is_denied { Outcome::Denied } else { Outcome::Failed };
        self.push(pid, None, privilege::explain(pid, error).into(), outcome);
    }

    /// Moves this many sockets from `unchanged` to `set`. The iterator had set them without a report, so ka then found
    /// them unchanged.
    pub(crate) fn were_set(&mut self, count: usize) {
        let count = count.min(self.unchanged);
        self.unchanged -= count;
        self.set += count;
    }

    fn push(&mut self, pid: i32, fd: Option<i32>, error: Arc<Error>, outcome: Outcome) {
        self.count(outcome);
        self.results.push(SocketResult {
            pid: Some(pid),
            fd,
            comm: process::comm(pid).map(|comm| escape::lossless(&comm).into_owned()),
            outcome,
            error: Some(error),
            ..SocketResult::default()
        });
    }
}
