//! Finds and opens the processes whose sockets are set.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use super::{Report, lacks_descriptors};
use crate::error::Error;
use crate::privilege;
use crate::process::{self, Process, StatusFields, is_gone, own_pid};
use crate::process_policy::is_skipped;
use crate::sys;

/// The processes whose sockets are set.
pub enum Processes {
    /// The processes that the user named by PID.
    Named(Vec<NamedProcess>),
    /// All processes except this one. If `user` is `None`, kernel threads are left out too, because they have no
    /// sockets.
    All {
        /// If not `None`, only the processes of this user.
        user: Option<u32>,
        /// The value of KA_SKIP: the names of programs to leave alone.
        skip: Vec<u8>,
    },
}

impl Processes {
    /// Returns the named processes, without those that [`Self::forget_ended`] has removed. `None` for
    /// [`Processes::All`].
    pub fn named(&self) -> Option<&[NamedProcess]> {
        match self {
            Self::Named(named) => Some(named),
            Self::All { .. } => None,
        }
    }

    /// Removes the named processes that have ended.
    pub fn forget_ended(&mut self) {
        if let Self::Named(named) = self {
            named.retain(NamedProcess::is_alive);
        }
    }

    /// Returns the processes to examine now. If /proc cannot be listed, adds a failure to the report.
    pub(crate) fn candidates(&self, report: &mut Report) -> Vec<Candidate<'_>> {
        let (user, skip) = match self {
            Self::Named(named) => return named.iter().map(Candidate::Named).collect(),
            Self::All { user, skip } => (*user, skip),
        };
        let own = own_pid();
        match process::all() {
            // A mounted /proc shows at least this process.
            Ok(pids) if pids.is_empty() => {
                report.fail(own, None, Error::NoProcesses);
                Vec::new()
            }
            Ok(pids) => {
                let selected = pids.into_iter().filter(|pid| *pid != own && is_selected(*pid, user));
                let (skipped, selected) = selected.partition::<Vec<_>, _>(|pid| is_skipped(skip, *pid));
                report.skipped = skipped.len();
                selected.into_iter().map(|pid| Candidate::Selected { pid, user }).collect()
            }
            Err(error) => {
                report.fail(own, None, Error::io("/proc", error));
                Vec::new()
            }
        }
    }
}

/// Returns whether a process belongs to the user. If `user` is `None`, returns whether it is not a kernel thread.
fn is_selected(pid: i32, user: Option<u32>) -> bool {
    match user {
        Some(user) => StatusFields::read(pid).is_ok_and(|status| status.user() == Some(user)),
        None => !process::is_kernel_thread(pid),
    }
}

/// A process that the user named.
pub struct NamedProcess {
    pid: i32,
    /// The start time, which distinguishes the process from a later one with the same PID.
    started: u64,
    /// The open process. `None` if ka had no free descriptor for it.
    held: Option<Process>,
}

impl NamedProcess {
    /// Opens processes, each once.
    ///
    /// The kernel may reuse a PID for another process. So ka keeps as many pidfds open as the descriptor limit
    /// allows: a pidfd always refers to the same process. ka recognizes the other processes by their start time.
    ///
    /// `report` gets a failure for each process that has ended or cannot be opened. If `is_restore`, ended processes
    /// are not a failure, because their sockets are closed.
    pub fn open_all(pids: impl IntoIterator<Item = i32>, is_restore: bool, report: &mut Report) -> Vec<Self> {
        // Holding a process takes a descriptor, and listing its sockets takes more.
        let most = sys::raise_descriptor_limit() / 4;
        let mut once = HashSet::new();
        let mut named = Vec::new();
        for pid in pids.into_iter().filter(|pid| once.insert(*pid)) {
            let started = process::started(pid);
            match Process::open(pid) {
                Ok(_) if !is_restore && StatusFields::read(pid).is_ok_and(|status| status.is_ended()) => {
                    report.fail(pid, None, Error::Zombie);
                }
                Ok(process) => {
                    let held = Some(process).filter(|_| named.len() < most);
                    named.push(Self { pid, started, held });
                }
                Err(error) if lacks_descriptors(error.raw_os_error()) => {
                    named.push(Self { pid, started, held: None });
                }
                Err(error) if is_restore && is_gone(error.raw_os_error()) => {}
                Err(error) => report.fail(pid, None, privilege::explain(pid, error)),
            }
        }
        named
    }

    /// Returns a descriptor that becomes readable when the process ends. `None` if the process is not held open.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|process| process.as_fd())
    }

    /// Opens the process. Fails with ESRCH if the PID now belongs to another process.
    fn open(&self) -> io::Result<Process> {
        if let Some(process) = &self.held {
            return Ok(process.clone());
        }
        let process = Process::open(self.pid)?;
        if process::started(self.pid) == self.started && process.is_alive() {
            Ok(process)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }

    fn is_alive(&self) -> bool {
        match self.open() {
            Ok(process) => process.is_alive(),
            Err(error) => !is_gone(error.raw_os_error()),
        }
    }
}

/// A process to examine.
#[derive(Clone, Copy)]
pub(crate) enum Candidate<'s> {
    Named(&'s NamedProcess),
    Selected { pid: i32, user: Option<u32> },
}

impl From<i32> for Candidate<'_> {
    fn from(pid: i32) -> Self {
        Self::Selected { pid, user: None }
    }
}

impl Candidate<'_> {
    pub(crate) const fn pid(&self) -> i32 {
        match self {
            Self::Named(named) => named.pid,
            Self::Selected { pid, .. } => *pid,
        }
    }

    pub(crate) fn open(&self) -> io::Result<Process> {
        match *self {
            Self::Named(named) => named.open(),
            Self::Selected { pid, user } => {
                let process = Process::open(pid)?;
                // The PID may have been reused before the process was opened.
                if user.is_some() && !is_selected(pid, user) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(process)
            }
        }
    }
}
