//! Sets the policy on the TCP sockets of running processes.
//!
//! ka duplicates each socket out of the process (pidfd_getfd(2)), sets it, and closes the duplicate. The process is not
//! stopped and notices nothing. ka duplicates only descriptors that are sockets according to /proc. It sets a socket
//! once, even if several descriptors or processes share it. A call on a socket may block forever, so a worker makes it
//! ([`crate::worker`]).

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ka_core::{Config, Errno, Error, Kernel, Libc, Settings, SockOpt, Timer, UserTimeout};
use ka_policy::{Mode, due, give};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::policies::{self, Mapped, Other};
use crate::privilege;
use crate::process::{self, Process, Table, Target};
use crate::seccomp;
use crate::sockets;
use crate::sys;
use crate::text;
use crate::words;
use crate::worker::{self, Answer, Answers, BLOCKED, Cell, Pace, Workers};

/// A change to make to sockets.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    pub policy: Config,
    pub mode: Mode,
    /// Only sockets whose local or peer port is this one.
    pub port: Option<u16>,
    pub dry_run: bool,
    /// Whether to make a line for each socket.
    pub describe: bool,
    /// The policy of each socket, by inode, instead of one for all.
    pub before: Option<&'a HashMap<u32, Config>>,
}

/// A process that the user named.
pub struct Named {
    pub pid: i32,
    /// The start time, which distinguishes the process from a later one with the same PID.
    pub started: u64,
    /// `None` if no descriptor was left for it.
    pub held: Option<Process>,
}

impl Named {
    /// Returns the process, if the PID still belongs to the process that was named.
    pub fn open(&self) -> io::Result<Process> {
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

    pub fn is_alive(&self) -> bool {
        match self.open() {
            Ok(process) => process.is_alive(),
            Err(error) => !is_gone(&error),
        }
    }
}

/// A function that opens a process.
pub type Open<'o> = Box<dyn Fn() -> io::Result<Process> + 'o>;

/// Makes a change to the sockets with these inodes, in these processes.
pub fn set_processes(
    change: &Change<'_>,
    pids: Vec<i32>,
    only: HashSet<u32>,
    workers: &mut Workers,
) -> Report {
    let mut report = Report::default();
    let mut pass = Pass { workers, is_selected: false, termination: None, only: Some(only), looks: false };
    let processes = pids.into_iter().map(|pid| (pid, Box::new(move || Process::open(pid)) as Open<'_>));
    change.make_all(processes, None, &mut Seen::default(), &mut pass, &mut report);
    report
}

/// One pass over all selected processes.
pub struct Pass<'a> {
    pub workers: &'a mut Workers,
    /// Whether the processes were selected, not named.
    pub is_selected: bool,
    /// A descriptor that becomes readable when a termination signal comes.
    pub termination: Option<BorrowedFd<'a>>,
    /// Only sockets with one of these inodes.
    pub only: Option<HashSet<u32>>,
    /// Whether to look for other policies of the processes.
    pub looks: bool,
}

impl Pass<'_> {
    pub fn is_interrupted(&self) -> bool {
        let signal = self.termination.map(|signal| sys::poll(&[signal], Duration::ZERO));
        signal.is_some_and(|ready| ready.is_ok_and(|ready| ready.contains(&true)))
    }
}

/// The sockets that a worker sets in one turn. `again` marks the sockets that an earlier pass examined. ka reports
/// these only if they changed.
pub struct Batch {
    targets: Vec<Target>,
    again: Vec<bool>,
    /// Whether the process of this target is to be examined for other policies.
    looks: Vec<bool>,
    processes: usize,
    /// How many processes can be held at a time.
    room: usize,
    begun: Instant,
}

impl Batch {
    /// Limits of a batch. Without them, the first processes would wait for the last, and the descriptors could run out.
    const SOCKETS: usize = 1 << 15;
    const PROCESSES: usize = 256;
    const TIME: Duration = Duration::from_millis(100);

    fn new() -> Self {
        let room = (sys::raise_descriptor_limit() / 4).max(1);
        let (targets, again, looks) = (Vec::new(), Vec::new(), Vec::new());
        Self { targets, again, looks, processes: 0, room, begun: Instant::now() }
    }

    fn is_full(&self) -> bool {
        self.targets.len() >= Self::SOCKETS
            || self.processes >= self.room.min(Self::PROCESSES)
            || self.begun.elapsed() >= Self::TIME
    }
}

/// How often a socket is looked for that one of its processes has closed: another `ka attach`, for one, has each for a
/// moment.
pub const ATTEMPTS: usize = 3;

/// What earlier rounds of --follow have dealt with. An inode's number comes again only after four thousand million
/// others.
#[derive(Default)]
pub struct Seen {
    pub round: u64,
    /// The round in which a socket is to be looked at again.
    pub sockets: HashMap<u32, u64>,
    /// The processes that were examined for other policies.
    pub processes: HashSet<i32>,
    /// Processes whose refusal has been reported, by PID and start time, and the last round in which each refused.
    pub refused: HashMap<(i32, u64), u64>,
}

impl Seen {
    /// Some programs set their own keepalive right after they connect, as those of Go do: so a socket is looked at in
    /// two rounds, and then every so often.
    const AGAIN: u64 = 30;

    /// Whether a socket is to be looked at in this round, once however many have it; and if so, whether it has been
    /// before.
    pub fn is_due(&mut self, inode: u32) -> Option<bool> {
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
}

impl Seen {
    /// Records that a process refused access in this round. Returns whether this is its first refusal.
    pub fn refuses(&mut self, pid: i32, started: u64) -> bool {
        self.refused.insert((pid, started), self.round).is_none()
    }

    /// Forgets sockets that were absent when they were due again, and processes that have not refused since.
    pub fn forget(&mut self) {
        if self.round.is_multiple_of(Self::AGAIN) {
            let round = self.round;
            self.sockets.retain(|_, next| *next >= round);
            self.refused.retain(|_, last| *last + Self::AGAIN >= round);
            self.processes.retain(|pid| process::started(*pid) != 0);
        }
    }
}

/// The result for a socket or a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Set,
    /// On a dry run.
    WouldSet,
    Unchanged,
    Failed,
    /// The process may not be examined.
    Denied,
}

/// The result for one socket, or the reason why a process could not be examined.
#[derive(Serialize)]
pub struct Line {
    /// `None` if no process has the socket, or only processes that ka may not examine.
    pub pid: Option<i32>,
    pub fd: Option<i32>,
    pub inode: Option<u32>,
    pub comm: Option<String>,
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
    pub result: Fate,
    /// The settings before the change. `None` if unknown.
    pub before: Option<Values>,
    /// The settings after the change. On a dry run, the settings that the change would make.
    pub after: Option<Values>,
    pub error: Option<String>,
    /// The part of the policy that the socket cannot have.
    pub note: Option<&'static str>,
}

/// A socket's settings in JSON.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Values {
    pub keepalive: bool,
    pub idle: i32,
    pub intvl: i32,
    pub cnt: i32,
    pub user_timeout_ms: Option<i32>,
}

impl From<Settings> for Values {
    fn from(settings: Settings) -> Self {
        let Settings { enabled: keepalive, idle, intvl, cnt, user_timeout: user_timeout_ms } = settings;
        Self { keepalive, idle, intvl, cnt, user_timeout_ms }
    }
}

impl From<Values> for Settings {
    fn from(values: Values) -> Self {
        let Values { keepalive: enabled, idle, intvl, cnt, user_timeout_ms: user_timeout } = values;
        Self { enabled, idle, intvl, cnt, user_timeout }
    }
}

/// The note for a socket that has all of the policy except its user timeout.
pub const NO_USER_TIMEOUT: &str = "without the user timeout: Multipath TCP has none";

#[derive(Default)]
pub struct Report {
    pub set: usize,
    pub unchanged: usize,
    pub failed: usize,
    /// How many of those that are set, or were, have no user timeout.
    pub without_user_timeout: usize,
    /// Sockets that a signal kept from being set.
    pub not_asked: usize,
    /// Processes that a signal kept from being examined.
    pub not_examined: usize,
    /// Processes that ka may not examine, if no process was named.
    pub denied: usize,
    /// Processes that KA_SKIP leaves alone.
    pub skipped: usize,
    /// Sockets to undo that were not found.
    pub not_found: usize,
    /// The inodes of the sockets to undo that were found.
    pub found: HashSet<u32>,
    /// The other policies that the processes have, if they have not been printed yet.
    pub new_others: Vec<Other>,
    /// The other policies that have been printed.
    pub others: Vec<Other>,
    /// Processes whose other policies are unknown.
    pub unknown: Vec<i32>,
    pub lines: Vec<Line>,
    /// All lines of the rounds before, where JSON is made of them.
    pub said: Vec<Line>,
    /// Sockets that blocked a worker, by inode.
    pub blocked: HashSet<u32>,
}

impl Report {
    /// Returns the reasons why sockets were not set, for messages.
    pub fn reasons(&self) -> impl Iterator<Item = String> {
        self.lines.iter().filter_map(|line| {
            let who = line.pid.map_or_else(|| "a process".to_owned(), sockets::name);
            let fd = line.fd.map_or_else(|| ":".to_owned(), |fd| format!(": its socket fd {fd}"));
            line.error.as_ref().map(|error| format!("{who}{fd} {error}"))
        })
    }

    pub fn count(&mut self, result: Fate) {
        match result {
            Fate::Set | Fate::WouldSet => self.set += 1,
            Fate::Unchanged => self.unchanged += 1,
            Fate::Failed => self.failed += 1,
            Fate::Denied => self.denied += 1,
        }
    }

    /// Adds the results of a search for sockets in all processes. Processes that refuse access are left out.
    pub fn take(&mut self, others: Self) {
        self.set += others.set;
        self.unchanged += others.unchanged;
        self.found.extend(others.found);
        self.lines.extend(others.lines.into_iter().filter(|line| line.fd.is_some()));
    }

    /// Reports a process that cannot be examined. If the user did not name the process and may not examine it, it counts
    /// as denied, not as failed.
    pub fn refused(&mut self, pid: i32, error: &io::Error, is_selected: bool) {
        let is_denied = is_selected && error.kind() == io::ErrorKind::PermissionDenied;
        let result = if is_denied { Fate::Denied } else { Fate::Failed };
        self.left(pid, None, privilege::explain(pid, error), result);
    }

    /// Moves this many sockets from `unchanged` to `set`: the kernel had set them before ka examined them.
    pub fn were_set(&mut self, count: usize) {
        let count = count.min(self.unchanged);
        self.unchanged -= count;
        self.set += count;
    }

    pub fn failed(&mut self, pid: i32, fd: Option<i32>, error: String) {
        self.left(pid, fd, error, Fate::Failed);
    }

    pub fn left(&mut self, pid: i32, fd: Option<i32>, error: String, result: Fate) {
        self.count(result);
        let comm = process::comm(pid).map(|comm| text::lossless(&comm).into_owned());
        let line = Line {
            pid: Some(pid),
            fd,
            inode: None,
            comm,
            local: None,
            peer: None,
            result,
            before: None,
            after: None,
            error: Some(error),
            note: None,
        };
        self.lines.push(line);
    }
}

/// An upper bound on the writes that applying and withdrawing a policy take.
pub const WRITES: usize = 16;

/// The kernel's socket options, with a record of the writes. On a dry run, nothing is written.
pub struct Counting {
    writes: RefCell<Vec<(SockOpt, libc::c_int)>>,
    dry_run: bool,
}

impl Counting {
    fn is_unused(&self) -> bool {
        self.writes.borrow().is_empty()
    }

    /// Returns the settings after the writes.
    fn after(&self, mut settings: Settings) -> Settings {
        for (option, value) in self.writes.borrow().iter() {
            match option {
                SockOpt::KeepAlive => settings.enabled = *value != 0,
                SockOpt::Timer(Timer::Idle) => settings.idle = *value,
                SockOpt::Timer(Timer::Intvl) => settings.intvl = *value,
                SockOpt::Timer(Timer::Cnt) => settings.cnt = *value,
                SockOpt::Timer(Timer::UserTimeout) => settings.user_timeout = Some(*value),
                _ => {}
            }
        }
        settings
    }
}

impl Kernel for Counting {
    fn get(&self, fd: libc::c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        Libc.get(fd, option, value)
    }

    fn set(&self, fd: libc::c_int, option: SockOpt, value: libc::c_int) -> Result<(), Errno> {
        let mut writes = self.writes.borrow_mut();
        if writes.len() < WRITES {
            writes.push((option, value));
        }
        drop(writes);
        if self.dry_run { Ok(()) } else { Libc.set(fd, option, value) }
    }
}

pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Separates the error of a socket from the JSON about its process, in a worker's message.
pub const LOOKED: char = '\0';

/// The first word of a worker's record about a socket: a result, whether the socket cannot have the user timeout of the
/// policy, and an errno. The socket's two addresses follow.
mod said {
    pub(super) const NOT_MEANT: u64 = 0;
    pub(super) const SET: u64 = 1;
    pub(super) const UNCHANGED: u64 = 2;
    pub(super) const FAILED: u64 = 3;
    /// The socket could not be duplicated or read.
    pub(super) const REFUSED: u64 = 4;
    pub(super) const IS_WITHOUT: u64 = 1 << 8;
    /// The settings before the change follow the addresses.
    pub(super) const HAD: u64 = 1 << 9;
    /// The settings after the change follow those before it.
    pub(super) const HAS: u64 = 1 << 10;
}

impl Change<'_> {
    /// Makes the change to the sockets of processes, some processes at a time. Reports the processes that refuse
    /// access. Processes that have ended are skipped. Returns the inodes of sockets that were closed before their turn
    /// came.
    pub fn make_all<'o>(
        &self,
        mut processes: impl Iterator<Item = (i32, Open<'o>)>,
        end: Option<Instant>,
        seen: &mut Seen,
        pass: &mut Pass<'_>,
        report: &mut Report,
    ) -> HashSet<u32> {
        let mut lost = HashSet::new();
        let mut batch = Batch::new();
        while let Some((pid, open)) = processes.next() {
            let mut looked = open().and_then(|process| found(&process));
            if looked.as_ref().is_err_and(lacks_descriptors) && batch.processes > 0 {
                // The earlier processes hold the descriptors.
                let until = end.map(|end| Instant::now() + end.saturating_duration_since(Instant::now()) / 2);
                lost.extend(self.make_batch(&mut batch, until, seen, pass, report));
                looked = open().and_then(|process| found(&process));
            }
            let problem = match looked {
                Ok((tables, problem)) => {
                    for (table, sockets) in tables {
                        batch.processes += usize::from(!sockets.is_empty());
                        for (fd, inode) in sockets {
                            let is_meant = pass.only.as_ref().is_none_or(|only| only.contains(&inode));
                            if is_meant
                                && let Some(again) = seen.is_due(inode)
                                // A dry run would report the same again.
                                && !(again && self.dry_run)
                            {
                                batch.targets.push(Target { table: table.clone(), fd, inode });
                                batch.again.push(again);
                                batch.looks.push(pass.looks && !seen.processes.contains(&pid));
                            }
                        }
                    }
                    problem
                }
                Err(error) => Some(error),
            };
            if let Some(error) = problem.filter(|error| !is_gone(error))
                && seen.refuses(pid, process::started(pid))
            {
                report.refused(pid, &error, pass.is_selected);
            }
            // With --spread, the work is spread evenly as far as descriptors allow: half of the remaining time is left
            // for the processes that follow.
            if batch.processes >= batch.room || batch.is_full() && end.is_none() {
                let until = end.map(|end| Instant::now() + end.saturating_duration_since(Instant::now()) / 2);
                lost.extend(self.make_batch(&mut batch, until, seen, pass, report));
            }
            if pass.is_interrupted() {
                report.not_examined = processes.count();
                break;
            }
        }
        lost.extend(self.make_batch(&mut batch, end, seen, pass, report));
        seen.round += 1;
        lost
    }

    /// Sets each socket of a batch, as fast as the cores allow, or evenly until `end`.
    fn make_batch(
        &self,
        batch: &mut Batch,
        end: Option<Instant>,
        seen: &mut Seen,
        pass: &mut Pass<'_>,
        report: &mut Report,
    ) -> HashSet<u32> {
        let Batch { targets, again, looks, .. } = std::mem::replace(batch, Batch::new());
        let pace = end.map(|end| {
            let start = Instant::now();
            Pace { start, time: end.saturating_duration_since(start) }
        });
        let looked = Mutex::new(HashSet::new());
        let answers = pass.workers.ask(&targets, pace, pass.termination, |place, target, cell| {
            let is_meant = self.make(target, again.get(place) == Some(&true), cell);
            let pid = target.table.pid;
            if !is_meant || looks.get(place) != Some(&true) {
                return;
            }
            // Threads of this worker may find sockets of one process at the same time.
            let is_first = looked.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
            cell.finish();
            if is_first
                && let Ok(mapped) = serde_json::to_string(&policies::read(target.table.pid, policies::MOST))
            {
                cell.say_later(format!("{LOOKED}{mapped}"));
            }
        });
        let is_meant = |answer: &Answer| matches!(answer, Answer::Given([kind, ..]) if (said::SET..=said::FAILED).contains(&(kind & 0xff)));
        let asked = looks.iter().zip(&targets).zip(&answers.each);
        let asked = asked.filter(|((looks, _), answer)| **looks && is_meant(answer));
        let asked: Vec<_> = asked.map(|((_, target), _)| target.table.pid).collect();
        let lost = self.report(&targets, &again, answers, report, seen, pass.is_selected);
        // A worker that was blocked or killed has not sent its findings.
        report.unknown.extend(asked.into_iter().filter(|pid| seen.processes.insert(*pid)));
        lost
    }

    /// Makes the change to one socket, in a worker. Returns whether the socket is selected.
    fn make(&self, target: &Target, again: bool, cell: &Cell<'_>) -> bool {
        let refused = |error: io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs();
            cell.answer(words::together(&[&[said::REFUSED | u64::from(errno) << 32]]));
            false
        };
        let socket = match target.table.duplicate(target.fd) {
            Ok(socket) => socket,
            Err(error) => return refused(error),
        };
        let change = Self {
            policy: self.before.and_then(|before| before.get(&target.inode)).copied().unwrap_or(self.policy),
            ..*self
        };
        let read = || ka_core::Socket::new(socket.as_raw_fd()).settings().ok();
        let settings = || if self.describe { read() } else { None };
        let before = settings();
        let is_back =
            self.before.is_some() && read().is_some_and(|now| Config::try_from(now) == Ok(change.policy));
        // An allocation between two writes could fail and leave half a policy.
        let writes = RefCell::new(Vec::with_capacity(WRITES));
        let kernel = Counting { writes, dry_run: self.dry_run };
        let done = if is_back {
            Ok(Some((Fate::Unchanged, false, None)))
        } else {
            change.set_one(socket.as_fd(), again, &kernel)
        };
        let (fate, is_without, error) = match done {
            Err(error) => return refused(error),
            Ok(None) => {
                cell.answer(words::together(&[&[said::NOT_MEANT]]));
                return false;
            }
            Ok(Some(done)) => done,
        };
        let after = if self.dry_run {
            before.map(|before| kernel.after(before))
        } else {
            before.and_then(|_| settings())
        };
        let kind = match fate {
            Fate::Set | Fate::WouldSet => said::SET,
            Fate::Unchanged => said::UNCHANGED,
            Fate::Failed | Fate::Denied => said::FAILED,
        };
        let kind = if is_without { kind | said::IS_WITHOUT } else { kind };
        let kind = if before.is_some() { kind | said::HAD } else { kind };
        let kind = if after.is_some() { kind | said::HAS } else { kind };
        let packed = |settings: Option<Settings>| settings.as_ref().map_or([0; 3], words::of_settings);
        let values = [packed(before), packed(after)].concat();
        if let Some(error) = &error {
            cell.say(error);
        }
        // Reading the addresses takes the socket's lock too. On a dry run, no earlier call takes it.
        if !self.dry_run {
            cell.answer(words::together(&[&[kind], &[0; 6], &values]));
        }
        let (local, peer) =
            if self.describe || error.is_some() { ends(socket.as_fd()) } else { (None, None) };
        let (local, peer) = (words::of_address(local), words::of_address(peer));
        cell.answer(words::together(&[&[kind], &local, &peer, &values]));
        true
    }

    /// Reports the results. Returns the inodes of sockets that were closed before their turn came.
    fn report(
        &self,
        targets: &[Target],
        again: &[bool],
        mut answers: Answers,
        report: &mut Report,
        seen: &mut Seen,
        is_selected: bool,
    ) -> HashSet<u32> {
        // A refusal that all sockets of a process have in common is said once.
        let mut refused = HashSet::new();
        let mut lost = HashSet::new();
        for (place, (target, outcome)) in targets.iter().zip(std::mem::take(&mut answers.each)).enumerate() {
            let pid = target.table.pid;
            let text = answers.texts.remove(&place).unwrap_or_default();
            let (error, mapped) = text.split_once(LOOKED).unwrap_or((&text, ""));
            if let Ok(mapped) = serde_json::from_str::<Mapped>(mapped)
                && seen.processes.insert(pid)
            {
                report.new_others.extend(policies::others(&[mapped], &self.policy, self.mode));
            }
            let is_lost = matches!(&outcome, Answer::Given([kind, ..]) if kind & 0xff == said::REFUSED);
            if self.before.is_some() && !is_lost {
                report.found.insert(target.inode);
            }
            let record = match outcome {
                Answer::Given(record) => record,
                Answer::NotAsked => {
                    report.not_asked += usize::from(again.get(place) != Some(&true));
                    continue;
                }
                Answer::Failed(why) => {
                    // This failure concerns all sockets of the process.
                    if refused.insert(pid) {
                        report.failed(pid, None, why);
                    } else {
                        report.count(Fate::Failed);
                    }
                    continue;
                }
                Answer::Blocked => {
                    if report.blocked.insert(target.inode) {
                        report.failed(pid, Some(target.fd), format!("{BLOCKED}; left as it is"));
                    }
                    continue;
                }
                Answer::Classed(why) => {
                    if seen.refuses(pid, process::started(pid)) {
                        report.failed(pid, None, why);
                    }
                    continue;
                }
                Answer::Excluded(user) => {
                    if seen.refuses(pid, process::started(pid)) {
                        report.failed(pid, None, worker::excluded(user));
                    }
                    continue;
                }
            };
            let [kind] = words::part(&record, 0);
            let result = match kind & 0xff {
                said::NOT_MEANT => continue,
                said::SET if self.dry_run => Fate::WouldSet,
                said::SET => Fate::Set,
                said::UNCHANGED => Fate::Unchanged,
                said::FAILED => Fate::Failed,
                _ => {
                    let errno = i32::try_from(kind >> 32).unwrap_or(libc::EIO);
                    let error = io::Error::from_raw_os_error(errno);
                    // The descriptor was closed since, or the process has ended.
                    if is_gone(&error) || errno == libc::EBADF {
                        lost.insert(target.inode);
                    } else if errno != libc::EPERM {
                        report.failed(pid, Some(target.fd), privilege::explain(pid, &error));
                    } else if refused.insert(pid) {
                        report.refused(pid, &error, is_selected);
                    }
                    continue;
                }
            };
            let is_without = kind & said::IS_WITHOUT != 0;
            report.count(result);
            report.without_user_timeout += usize::from(is_without);
            let error = (!error.is_empty()).then(|| error.to_owned());
            if self.describe || error.is_some() {
                let settings = |flag, start| {
                    let is_there = kind & flag != 0;
                    is_there.then(|| Values::from(words::settings(words::part(&record, start))))
                };
                report.lines.push(Line {
                    pid: Some(pid),
                    fd: Some(target.fd),
                    inode: Some(target.inode),
                    before: settings(said::HAD, 7),
                    after: settings(said::HAS, 10),
                    comm: process::comm(pid).map(|comm| text::lossless(&comm).into_owned()),
                    local: words::address(words::part(&record, 1)),
                    peer: words::address(words::part(&record, 4)),
                    result,
                    error,
                    note: is_without.then_some(NO_USER_TIMEOUT),
                });
            }
        }
        lost
    }

    /// Sets one socket. Returns its result, whether it cannot have the user timeout of the policy, and the error text.
    /// Returns `None` if the socket is not selected.
    fn set_one(
        &self,
        socket: BorrowedFd<'_>,
        again: bool,
        kernel: &Counting,
    ) -> io::Result<Option<(Fate, bool, Option<String>)>> {
        if let Some(port) = self.port
            && !has_port(socket, port)?
        {
            return Ok(None);
        }
        let (result, error) = match self.give(ka_core::Socket::with_kernel(socket.as_raw_fd(), kernel)) {
            // Or no socket any more: the descriptor was closed, and its number used again, since it was listed.
            Err(Error::NotTcp | Error::System { errno: Errno(libc::ENOTSOCK), .. }) => return Ok(None),
            Err(error) => (Fate::Failed, Some(error.to_string())),
            Ok(()) if !kernel.is_unused() && !self.holds(socket) => {
                (Fate::Failed, Some(held_by().to_owned()))
            }
            Ok(()) if !kernel.is_unused() => (Fate::Set, None),
            Ok(()) if again => return Ok(None),
            Ok(()) => (Fate::Unchanged, None),
        };
        let is_without = error.is_none() && self.is_without_user_timeout(socket, result);
        Ok(Some((result, is_without, error)))
    }

    /// Returns whether the policy has a user timeout that the socket cannot have (Multipath TCP). False if the socket kept its
    /// own keepalive.
    fn is_without_user_timeout(&self, socket: BorrowedFd<'_>, result: Fate) -> bool {
        let is_given = self.mode == Mode::Force || result == Fate::Set;
        let is_named =
            !matches!(self.policy.user_timeout(), UserTimeout::Keep | UserTimeout::Milliseconds(0));
        let timeout = || ka_core::Socket::new(socket.as_raw_fd()).timer(Timer::UserTimeout);
        is_given && is_named && matches!(timeout(), Err(Error::Unsupported { .. }))
    }

    /// Returns whether the written values are in force. If a cgroup or a supervisor of ka's own process has a policy, setsockopt
    /// reports success but changes nothing.
    fn holds(&self, socket: BorrowedFd<'_>) -> bool {
        let socket = ka_core::Socket::new(socket.as_raw_fd());
        let is_there = |timer| match (self.policy.timer(timer), socket.timer(timer)) {
            (Some(ours), Ok(theirs)) if self.mode == Mode::Floor => theirs <= ours,
            (Some(ours), Ok(theirs)) => theirs == ours,
            _ => true,
        };
        // If the value cannot be read, assume that it is in force.
        let is_as_said = |on| socket.is_enabled().map_or(true, |is_on| is_on == on);
        self.dry_run || self.policy.enabled().is_none_or(is_as_said) && Timer::ALL.into_iter().all(is_there)
    }

    fn give(&self, socket: ka_core::Socket<&Counting>) -> Result<(), Error> {
        // The write rejects descriptors that are not TCP. If nothing may be written, the read does.
        let is_written = self.mode == Mode::Force && !self.dry_run;
        let was_on = if is_written { false } else { socket.is_enabled()? };
        due(socket, &self.policy, self.mode, was_on).map_or(Ok(()), |config| give(socket, config, false).1)
    }
}

/// Formats the two addresses of a socket: `192.0.2.1:443 -> 198.51.100.1:50000`, with * for a missing one.
pub fn arrow((local, peer): (Option<SocketAddr>, Option<SocketAddr>)) -> String {
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "*".to_owned(), |end| end.to_string());
    format!("{} -> {}", end(local), end(peer))
}

/// A table, and those of its descriptors that are sockets with their inodes.
pub type TableAndSockets = (Table, Vec<(i32, u32)>);

/// A process's tables of descriptors with the sockets in each, and why one could not be looked at.
pub fn found(process: &Process) -> io::Result<(Vec<TableAndSockets>, Option<io::Error>)> {
    let mut tables = Vec::new();
    let mut problem = None;
    process.each_table(|table| match table {
        Ok(table) => tables.push(table),
        Err(error) => problem = Some(error),
    })?;
    // What /proc said is of this process only if it is still there.
    if process.is_alive() { Ok((tables, problem)) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Who holds a policy against what was just written.
pub fn held_by() -> &'static str {
    if seccomp::is_enforced() {
        "the policy of ka run --via seccomp overrides this command: use ka attach outside of it, or ka attach --all --via bpf"
    } else {
        "its cgroup has a policy in mode force (ka cgroup ls), which overrides this; use ka attach --all --via bpf"
    }
}

pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Both ends of a socket, as far as it has them.
pub fn ends(socket: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let socket = SockRef::from(&socket);
    let end = |address: io::Result<socket2::SockAddr>| address.ok().and_then(|address| address.as_socket());
    (end(socket.local_addr()), end(socket.peer_addr()))
}

/// Returns whether the local or the peer port of a socket is this one. Fails if the kernel does not report an address.
pub fn has_port(socket: BorrowedFd<'_>, port: u16) -> io::Result<bool> {
    let socket = SockRef::from(&socket);
    for end in [socket.local_addr(), socket.peer_addr()] {
        match end {
            Ok(end) if end.as_socket().is_some_and(|end| end.port() == port) => return Ok(true),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EPERM)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(false)
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
            assert_eq!(seen.refuses(1, 7), round == 0);
            assert!(seen.refuses(i32::try_from(round).unwrap() + 2, 7));
            seen.forget();
            assert!(
                seen.refused.len() <= 3 * usize::try_from(Seen::AGAIN).unwrap(),
                "{}",
                seen.refused.len()
            );
        }
        // A PID that is used again is another process.
        assert!(seen.refuses(1, 8));
    }
}
