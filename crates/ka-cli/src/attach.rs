//! `ka attach`: sets the policy on the TCP sockets of running processes.
//!
//! ka duplicates each socket out of the process (pidfd_getfd(2)), sets it, and closes the duplicate. The process is not
//! stopped and notices nothing. ka duplicates only descriptors that are sockets according to /proc. It sets a socket
//! once, even if several descriptors or processes share it. A call on a socket may block forever, so a worker makes it
//! ([`crate::worker`]).
//!
//! With `--via bpf`, the kernel itself goes through the sockets ([`crate::bpf`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufWriter, Read as _, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ka_core::{Config, Errno, Error, Kernel, Libc, Settings, SockOpt, Timer, UserTimeout};
use ka_policy::{Mode, Policy, due, give};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::args::{self, AttachVia};
use crate::bpf::{self, Counter, Done, Only, Setter};
use crate::diag::State;
use crate::failure::{FOUND, Failure, Outcome};
use crate::file;
use crate::json;
use crate::over::{self, Mapped, Other};
use crate::policy;
use crate::privilege;
use crate::process::{self, Process, Status, Table, Target};
use crate::sockets::{self, sockets};
use crate::sys;
use crate::text::{self, reason};
use crate::via::{self, Chosen};
use crate::words;
use crate::worker::{self, Answer, Answers, BLOCKED, Cell, Ended, Found, Pace, Workers};

pub(crate) fn attach(args: &args::Attach) -> Outcome {
    let undo = args.undo.as_deref().map(Undo::read).transpose()?;
    let Chosen { policy, mode, skip } = if undo.is_some() {
        Chosen { policy: Config::KEEP, mode: Mode::Force, skip: Vec::new() }
    } else {
        let chosen = via::choose("attach", &args.policy, args.mode)?;
        policy::check_effect(&chosen.policy, chosen.mode)?;
        chosen
    };
    let attach = Attach {
        change: Change {
            policy,
            mode,
            port: args.port,
            dry_run: args.dry_run,
            // Ask for the addresses and values only if they are printed.
            describe: args.json || args.verbose || args.dry_run,
            before: undo.as_ref().map(|undo| &undo.before),
        },
        user: args.user.as_deref().map(user).transpose()?,
        skip,
        args,
    };
    let failed = |error: io::Error| Failure::new(format_args!("attach: {}", reason(&error)));
    // Holding a process takes a descriptor, and listing its sockets takes more.
    let held = sys::raise_descriptor_limit() / 4;
    let mut report = Report::default();
    let mut workers = Workers::default();
    workers.lose_class = args.lose_class;
    if args.via == AttachVia::Bpf {
        attach.check_for_kernel()?;
        if !attach.skip.is_empty() {
            let _ = writeln!(
                io::stderr(),
                "ka: attach: KA_SKIP is ignored with --via bpf: the kernel sets all sockets"
            );
        }
        attach.through_kernel(&mut workers, &mut report)?;
        attach.finish(&mut report)?;
        return Ok(report.status(args));
    }
    let named = match &undo {
        Some(undo) => attach.named(undo.pids.iter().copied(), held, &mut report),
        None => attach.named(args.pids.iter().copied(), held, &mut report),
    };
    if args.follow {
        attach.follow(named, &mut workers, &mut report)?;
    } else {
        // Setting sockets over a time can take long. A signal ends it with a summary.
        let termination = args.spread.map(|_| sys::termination()).transpose().map_err(failed)?;
        let only = undo.as_ref().map(|undo| undo.before.keys().copied().collect());
        let termination = termination.as_ref().map(|signal| signal.as_fd());
        let is_selected = !attach.names_processes();
        let looks = undo.is_none();
        let mut pass = Pass { workers: &mut workers, is_selected, termination, only, looks };
        let mut seen = Seen::default();
        let mut lost = attach.pass(&named, &mut seen, &mut pass, &mut report);
        for _ in 1..ATTEMPTS {
            if lost.is_empty() {
                break;
            }
            if pass.is_interrupted() {
                break;
            }
            // The process in which ka found these sockets has closed them, but others may have them. Processes that
            // refused were reported in the first pass.
            seen.sockets.clear();
            pass.only = Some(lost);
            lost = attach.pass(&named, &mut seen, &mut pass, &mut report);
        }
        if let Some(undo) = &undo {
            if report.found.len() < undo.before.len() && !pass.is_interrupted() {
                // Another process may have the socket, if the recorded one has ended.
                pass.only =
                    Some(undo.before.keys().copied().filter(|key| !report.found.contains(key)).collect());
                let mut others = Report::default();
                let all = process::all().unwrap_or_default().into_iter();
                let all = all.map(|pid| (pid, Box::new(move || Process::open(pid)) as Open<'_>));
                attach.change.make_all(all, None, &mut seen, &mut pass, &mut others);
                report.take(others);
            }
            report.not_found = undo.before.len().saturating_sub(report.found.len());
            for why in &undo.left {
                report.failed(why.0, None, why.1.clone());
            }
        }
        attach.finish(&mut report)?;
    }
    Ok(report.status(args))
}

/// The user of a name, or of a number.
fn user(name: &std::ffi::OsStr) -> Result<u32, Failure> {
    let number = name.to_str().and_then(|digits| digits.parse().ok());
    sys::user_named(name)
        .or(number)
        .ok_or_else(|| Failure::new(format_args!("attach: --user {}: there is no such user", name.display())))
}

struct Attach<'a> {
    change: Change<'a>,
    user: Option<u32>,
    /// The names of programs that KA_SKIP leaves alone, unless they are named by PID.
    skip: Vec<u8>,
    args: &'a args::Attach,
}

/// The sockets that an earlier `ka attach --json` has set.
struct Undo {
    pids: BTreeSet<i32>,
    /// The earlier settings of each socket, by inode.
    before: HashMap<u32, Config>,
    /// Sockets that cannot be undone, by process, and why.
    left: Vec<(i32, String)>,
}

/// A socket in the output of `ka attach --json`, as far as --undo reads it.
#[derive(Deserialize)]
struct Undone {
    pid: Option<i32>,
    inode: Option<u32>,
    result: String,
    before: Option<Values>,
}

/// The output of `ka attach --json` without --follow, as far as --undo reads it.
#[derive(Deserialize)]
struct UndoneAll {
    sockets: Vec<Undone>,
}

impl Undo {
    /// Reads the JSON of `ka attach --json`, also with --follow.
    fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::new(format_args!("attach: --undo {}: {why}", path.display()))
        };
        let mut text = Vec::new();
        let read = file::open_regular(path).and_then(|mut file| file.read_to_end(&mut text));
        read.map_err(|error| wrong(&reason(&error)))?;
        let rows = match serde_json::from_slice::<UndoneAll>(&text) {
            Ok(all) => all.sockets,
            Err(_) => serde_json::Deserializer::from_slice(&text)
                .into_iter()
                .collect::<Result<Vec<Undone>, _>>()
                .ok()
                .filter(|rows| !rows.is_empty())
                .ok_or_else(|| wrong(&"must be the output of ka attach --json"))?,
        };
        let mut undo = Self { pids: BTreeSet::new(), before: HashMap::new(), left: Vec::new() };
        let mut without = 0_usize;
        for Undone { pid, inode, before, .. } in rows.into_iter().filter(|row| row.result == "set") {
            let (Some(pid), Some(inode), Some(before)) = (pid, inode, before) else {
                without += 1;
                continue;
            };
            let Ok(config) = Config::try_from(Settings::from(before)) else {
                let brief = policy::brief_settings(&before.into());
                undo.left.push((pid, format!("a socket had {brief}, which no program can set")));
                continue;
            };
            undo.pids.insert(pid);
            // The first row of a socket has its oldest settings.
            undo.before.entry(inode).or_insert(config);
        }
        if without > 0 {
            return Err(wrong(&format_args!(
                "it lacks the earlier settings of {}: --via bpf reports only the new ones",
                text::count(without, "socket")
            )));
        }
        Ok(undo)
    }
}

/// A change to make to sockets.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) policy: Config,
    pub(crate) mode: Mode,
    /// Only sockets whose local or peer port is this one.
    pub(crate) port: Option<u16>,
    pub(crate) dry_run: bool,
    /// Whether to make a line for each socket.
    pub(crate) describe: bool,
    /// The policy of each socket, by inode, instead of one for all.
    pub(crate) before: Option<&'a HashMap<u32, Config>>,
}

/// A process that the user named.
struct Named {
    pid: i32,
    /// The start time, which distinguishes the process from a later one with the same PID.
    started: u64,
    /// `None` if no descriptor was left for it.
    held: Option<Process>,
}

impl Named {
    /// Returns the process, if the PID still belongs to the process that was named.
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
            Err(error) => !is_gone(&error),
        }
    }
}

/// A function that opens a process.
type Open<'o> = Box<dyn Fn() -> io::Result<Process> + 'o>;

/// Makes a change to the sockets with these inodes, in these processes.
pub(crate) fn set_processes(
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
struct Pass<'a> {
    workers: &'a mut Workers,
    /// Whether the processes were selected, not named.
    is_selected: bool,
    /// A descriptor that becomes readable when a termination signal comes.
    termination: Option<BorrowedFd<'a>>,
    /// Only sockets with one of these inodes.
    only: Option<HashSet<u32>>,
    /// Whether to look for other policies of the processes.
    looks: bool,
}

impl Pass<'_> {
    fn is_interrupted(&self) -> bool {
        let signal = self.termination.map(|signal| sys::poll(&[signal], Duration::ZERO));
        signal.is_some_and(|ready| ready.is_ok_and(|ready| ready.contains(&true)))
    }
}

/// The sockets that a worker sets in one turn. `again` marks the sockets that an earlier pass examined. ka reports
/// these only if they changed.
struct Batch {
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
const ATTEMPTS: usize = 3;

/// What earlier rounds of --follow have dealt with. An inode's number comes again only after four thousand million
/// others.
#[derive(Default)]
struct Seen {
    round: u64,
    /// The round in which a socket is to be looked at again.
    sockets: HashMap<u32, u64>,
    /// The processes that were examined for other policies.
    processes: HashSet<i32>,
    /// Processes whose refusal has been reported, by PID and start time, and the last round in which each refused.
    refused: HashMap<(i32, u64), u64>,
}

impl Seen {
    /// Some programs set their own keepalive right after they connect, as those of Go do: so a socket is looked at in
    /// two rounds, and then every so often.
    const AGAIN: u64 = 30;

    /// Whether a socket is to be looked at in this round, once however many have it; and if so, whether it has been
    /// before.
    fn is_due(&mut self, inode: u32) -> Option<bool> {
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
    fn refuses(&mut self, pid: i32, started: u64) -> bool {
        self.refused.insert((pid, started), self.round).is_none()
    }

    /// Forgets sockets that were absent when they were due again, and processes that have not refused since.
    fn forget(&mut self) {
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
pub(crate) enum Fate {
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
pub(crate) struct Line {
    /// `None` if no process has the socket, or only processes that ka may not examine.
    pid: Option<i32>,
    fd: Option<i32>,
    inode: Option<u32>,
    comm: Option<String>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    result: Fate,
    /// The settings before the change. `None` if unknown.
    before: Option<Values>,
    /// The settings after the change. On a dry run, the settings that the change would make.
    after: Option<Values>,
    error: Option<String>,
    /// The part of the policy that the socket cannot have.
    note: Option<&'static str>,
}

/// A socket's settings in JSON.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Values {
    keepalive: bool,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout_ms: Option<i32>,
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
const NO_USER_TIMEOUT: &str = "without the user timeout: Multipath TCP has none";

#[derive(Default)]
pub(crate) struct Report {
    pub(crate) set: usize,
    pub(crate) unchanged: usize,
    failed: usize,
    /// How many of those that are set, or were, have no user timeout.
    without_user_timeout: usize,
    /// Sockets that a signal kept from being set.
    not_asked: usize,
    /// Processes that a signal kept from being examined.
    not_examined: usize,
    /// Processes that ka may not examine, if no process was named.
    denied: usize,
    /// Processes that KA_SKIP leaves alone.
    skipped: usize,
    /// Sockets to undo that were not found.
    not_found: usize,
    /// The inodes of the sockets to undo that were found.
    found: HashSet<u32>,
    /// The other policies that the processes have, if they have not been printed yet.
    new_others: Vec<Other>,
    /// The other policies that have been printed.
    others: Vec<Other>,
    /// Processes whose other policies are unknown.
    unknown: Vec<i32>,
    lines: Vec<Line>,
    /// All lines of the rounds before, where JSON is made of them.
    said: Vec<Line>,
    /// Sockets that blocked a worker, by inode.
    blocked: HashSet<u32>,
}

impl Report {
    /// Returns the reasons why sockets were not set, for messages.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = String> {
        self.lines.iter().filter_map(|line| {
            let who = line.pid.map_or_else(|| "a process".to_owned(), sockets::name);
            let fd = line.fd.map_or_else(|| ":".to_owned(), |fd| format!(": its socket fd {fd}"));
            line.error.as_ref().map(|error| format!("{who}{fd} {error}"))
        })
    }

    /// The exit status. --follow usually ends by a signal, so the sockets that are left then are a failure only with
    /// --spread.
    fn status(&self, args: &args::Attach) -> i32 {
        let is_end = args.follow && args.spread.is_none();
        let left = if is_end { 0 } else { self.not_asked + self.not_examined };
        if self.failed + self.denied + left > 0 { FOUND } else { 0 }
    }

    fn count(&mut self, result: Fate) {
        match result {
            Fate::Set | Fate::WouldSet => self.set += 1,
            Fate::Unchanged => self.unchanged += 1,
            Fate::Failed => self.failed += 1,
            Fate::Denied => self.denied += 1,
        }
    }

    /// Adds the results of a search for sockets in all processes. Processes that refuse access are left out.
    fn take(&mut self, others: Self) {
        self.set += others.set;
        self.unchanged += others.unchanged;
        self.found.extend(others.found);
        self.lines.extend(others.lines.into_iter().filter(|line| line.fd.is_some()));
    }

    /// Reports a process that cannot be examined. If the user did not name the process and may not examine it, it counts
    /// as denied, not as failed.
    fn refused(&mut self, pid: i32, error: &io::Error, is_selected: bool) {
        let is_denied = is_selected && error.kind() == io::ErrorKind::PermissionDenied;
        let result = if is_denied { Fate::Denied } else { Fate::Failed };
        self.left(pid, None, privilege::explain(pid, error), result);
    }

    /// Moves this many sockets from `unchanged` to `set`: the kernel had set them before ka examined them.
    pub(crate) fn were_set(&mut self, count: usize) {
        let count = count.min(self.unchanged);
        self.unchanged -= count;
        self.set += count;
    }

    fn failed(&mut self, pid: i32, fd: Option<i32>, error: String) {
        self.left(pid, fd, error, Fate::Failed);
    }

    fn left(&mut self, pid: i32, fd: Option<i32>, error: String, result: Fate) {
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
const WRITES: usize = 16;

/// The kernel's socket options, with a record of the writes. On a dry run, nothing is written.
struct Counting {
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

impl Attach<'_> {
    /// Opens the processes that were named on the command line. At most `most` stay open, so that a reused PID is not
    /// mistaken for the named process. The others are recognized by their start time.
    fn named(&self, pids: impl Iterator<Item = i32>, most: usize, report: &mut Report) -> Vec<Named> {
        let is_named = self.change.before.is_none();
        let mut once = HashSet::new();
        let mut named = Vec::new();
        for pid in pids.filter(|pid| once.insert(*pid)) {
            let started = process::started(pid);
            match Process::open(pid) {
                Ok(_) if is_named && Status::read(pid).is_ok_and(|status| status.is_ended()) => {
                    report.failed(pid, None, "it has ended (a zombie), and has no sockets".to_owned());
                }
                Ok(process) => {
                    let held = Some(process).filter(|_| named.len() < most);
                    named.push(Named { pid, started, held });
                }
                Err(error) if lacks_descriptors(&error) => named.push(Named { pid, started, held: None }),
                // The sockets of this process are closed.
                Err(error) if !is_named && is_gone(&error) => {}
                Err(error) => report.failed(pid, None, privilege::explain(pid, &error)),
            }
        }
        named
    }

    /// Returns the PIDs that the options select, besides the named processes.
    fn meant(&self, report: &mut Report) -> Vec<i32> {
        if self.names_processes() {
            return Vec::new();
        }
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        match process::all() {
            // This one is there.
            Ok(pids) if pids.is_empty() => {
                report.failed(own, None, "/proc shows no process: it is not mounted here".to_owned());
                pids
            }
            Ok(pids) => {
                let meant = pids.into_iter().filter(|pid| *pid != own && self.is_meant(*pid));
                let (skipped, meant) = meant.partition::<Vec<_>, _>(|pid| over::is_skipped(&self.skip, *pid));
                report.skipped = skipped.len();
                meant
            }
            Err(error) => {
                report.failed(own, None, format!("/proc: {}", reason(&error)));
                Vec::new()
            }
        }
    }

    /// Sets the sockets of all selected processes, some processes at a time. Reports the processes that refuse access.
    /// Processes that have ended are skipped. Returns the inodes of sockets that were closed before their turn came.
    fn pass(
        &self,
        named: &[Named],
        seen: &mut Seen,
        pass: &mut Pass<'_>,
        report: &mut Report,
    ) -> HashSet<u32> {
        let end = self.args.spread.filter(|_| !self.args.dry_run);
        let end = end.map(|spread| Instant::now() + Duration::from_millis(spread.into()));
        let others = self.meant(report);
        let open = |pid: i32| match Process::open(pid) {
            // The number may have become another's before it was held.
            Ok(_) if self.user.is_some() && !self.is_meant(pid) => {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
            opened => opened,
        };
        let named = named.iter().map(|named| (named.pid, Box::new(|| named.open()) as Open<'_>));
        let others = others.into_iter().map(|pid| (pid, Box::new(move || open(pid)) as Open<'_>));
        self.change.make_all(named.chain(others), end, seen, pass, report)
    }

    /// Returns whether the user named processes by PID, instead of selecting them by an option.
    fn names_processes(&self) -> bool {
        !self.args.pids.is_empty() || self.change.before.is_some()
    }

    /// Returns whether the options select a process.
    fn is_meant(&self, pid: i32) -> bool {
        match self.user {
            Some(user) => Status::read(pid).is_ok_and(|status| status.user() == Some(user)),
            None => !process::is_kernel_thread(pid),
        }
    }
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Separates the error of a socket from the JSON about its process, in a worker's message.
const LOOKED: char = '\0';

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
    fn make_all<'o>(
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
            if is_first && let Ok(mapped) = serde_json::to_string(&over::read(target.table.pid, over::MOST)) {
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
                report.new_others.extend(over::others(&[mapped], &self.policy, self.mode));
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

impl Attach<'_> {
    /// Rejects options that the kernel's iterator cannot follow. The iterator visits sockets, not processes, and visits
    /// each socket once.
    fn check_for_kernel(&self) -> Result<(), Failure> {
        let args = self.args;
        let wrong = [
            (!args.all, "it sets every socket of this network namespace, so it wants --all"),
            (args.follow, "it goes through the sockets once: ka cgroup attach sees to those that come later"),
            (args.spread.is_some(), "it sets them in one pass, and spreads nothing"),
        ];
        match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, why)) => Err(Failure::new(format_args!("attach: --via bpf: {why}"))),
            None => Ok(()),
        }
    }

    /// Has the kernel set all sockets of this network namespace in one pass, whichever process has them. If the kernel
    /// blocks at a socket whose lock is held, sets the others through their processes.
    fn through_kernel(&self, workers: &mut Workers, report: &mut Report) -> Result<(), Failure> {
        let failed = |why: String| {
            Failure::new(format_args!(
                "attach: --via bpf: {why}; without --via bpf, ka attach goes through the processes"
            ))
        };
        let Change { policy, mode, port, dry_run, describe, .. } = self.change;
        let counter = Counter::new().map_err(failed)?;
        let setter = Setter::load(Policy::new(policy, mode), dry_run, Only { port, cgroup: None }, &counter)
            .map_err(failed)?;
        let Found { mut data, end } = workers.find(&[setter.program().as_raw_fd()], |sink| setter.set(sink));
        let done = bpf::take_done(&mut data);
        if let Ended::Failed(why) = end {
            return Err(failed(why));
        }
        let is_whole = end == Ended::Whole;
        let sockets: HashMap<_, _> = if describe || !is_whole || done.iter().any(|done| done.errno != 0) {
            let states: Vec<_> = State::with_options().collect();
            let listing = sockets(workers, &states, None).map_err(|error| {
                Failure::new(format_args!(
                    "attach: the sockets that were set cannot be listed: {}",
                    reason(&error)
                ))
            })?;
            listing.sockets.into_iter().map(|socket| (socket.entry.cookie, socket)).collect()
        } else {
            HashMap::new()
        };
        if !is_whole {
            // The sockets that the kernel has reported already.
            let told: HashSet<_> = done.iter().map(|done| done.cookie).collect();
            let rest = sockets.values().filter(|socket| !told.contains(&socket.entry.cookie));
            let (owned, alone): (Vec<_>, Vec<_>) = rest.partition(|socket| socket.owner.is_some());
            let only = owned.iter().map(|socket| socket.entry.inode).collect();
            let mut pass =
                Pass { workers, is_selected: true, termination: None, only: Some(only), looks: true };
            let _ = self.pass(&[], &mut Seen::default(), &mut pass, report);
            if !dry_run {
                let reported = done.iter().filter(|done| done.writes != 0 && done.errno == 0).count();
                report.were_set(counter.value().saturating_sub(reported));
            }
            if !alone.is_empty() {
                let own = i32::try_from(std::process::id()).unwrap_or(0);
                report.failed(own, None, format!(
                    "--via bpf stopped at a socket whose lock a program holds: {} sockets that no process has (not \
                     accepted yet, or already closed) were left as they are; try again when that program has ended",
                    alone.len()
                ));
            }
        }
        let mut owners = BTreeSet::new();
        for Done { cookie, writes, errno } in done {
            let result = match (errno, writes) {
                (0, 0) => Fate::Unchanged,
                (0, _) if dry_run => Fate::WouldSet,
                (0, _) => Fate::Set,
                _ => Fate::Failed,
            };
            report.count(result);
            if describe || errno != 0 {
                let socket = sockets.get(&cookie);
                let owner = socket.and_then(|socket| socket.owner.as_ref());
                owners.extend(owner.map(|owner| owner.pid));
                let values = socket.and_then(|socket| socket.settings).map(Values::from);
                report.lines.push(Line {
                    // The list was made after the sockets were set.
                    before: values.filter(|_| dry_run || result == Fate::Unchanged),
                    after: values.filter(|_| !dry_run || result == Fate::Unchanged),
                    inode: socket.map(|socket| socket.entry.inode),
                    pid: owner.map(|owner| owner.pid),
                    fd: owner.map(|owner| owner.fd),
                    comm: owner
                        .and_then(|owner| owner.comm.as_deref())
                        .map(|comm| text::lossless(comm).into_owned()),
                    local: socket.map(|socket| socket.entry.local),
                    peer: socket.and_then(|socket| socket.entry.peer),
                    result,
                    error: (errno != 0).then(|| bpf::refusal(errno)),
                    note: None,
                });
            }
        }
        let (mapped, why) = over::mapped(owners.iter().copied(), over::MOST, workers);
        report.new_others.extend(over::others(&mapped, &policy, mode));
        report.unknown.extend(owners.into_iter().skip(mapped.len()).filter(|_| why.is_some()));
        Ok(())
    }

    /// Looks again and again, until the processes have ended or a signal says to.
    fn follow(
        &self,
        mut living: Vec<Named>,
        workers: &mut Workers,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(format_args!("attach: {}", reason(&error)));
        let termination = sys::termination().map_err(failed)?;
        let what = match living.len() {
            _ if !self.names_processes() => "the selected processes".to_owned(),
            count => text::count(count, "process"),
        };
        let until = match living.len() {
            _ if !self.names_processes() => "until",
            1 => "until it ends, or until",
            _ => "until they end, or until",
        };
        if self.names_processes() && living.is_empty() {
            return self.conclude(report).map_err(Failure::from);
        }
        let _ = writeln!(
            io::stderr(),
            "ka: attach: following {what} with {}, {until} SIGINT or SIGTERM",
            self.policy_text()
        );
        let mut seen = Seen::default();
        let interval = Duration::from_millis(self.args.interval.into());
        loop {
            let is_selected = !self.names_processes();
            let mut pass = Pass {
                workers,
                is_selected,
                termination: Some(termination.as_fd()),
                only: None,
                looks: true,
            };
            // What was lost is looked for in the next round, and what a signal has left is left.
            let _ = self.pass(&living, &mut seen, &mut pass, report);
            self.say(report)?;
            self.say_others(report);
            seen.forget();
            if self.names_processes() && living.is_empty() {
                return self.conclude(report).map_err(Failure::from);
            }
            // A signal ends the wait, and so does the end of the last process that is named.
            let last = living.iter().take(usize::from(living.len() == 1));
            let last = last.filter_map(|named| Some(named.held.as_ref()?.as_fd()));
            let waited: Vec<_> = [termination.as_fd()].into_iter().chain(last).collect();
            if sys::poll(&waited, interval).map_err(failed)?.first() == Some(&true) {
                return self.conclude(report).map_err(Failure::from);
            }
            living.retain(Named::is_alive);
        }
    }

    /// Prints the results of a run that does not follow.
    fn finish(&self, report: &mut Report) -> io::Result<()> {
        /// A dry run with more lines than this starts with the summary.
        const MANY: usize = 20;
        if self.args.dry_run && !self.args.json && report.lines.len() > MANY {
            self.conclude(report)?;
            self.say(report)?;
            self.say_others(report);
        } else {
            self.say(report)?;
            self.say_others(report);
            self.conclude(report)?;
        }
        Ok(())
    }

    /// Names the other policies of ka that the processes have.
    fn say_others(&self, report: &mut Report) {
        let others = std::mem::take(&mut report.new_others);
        let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for other in &others {
            said.entry(other.later()).or_default().push(sockets::name(other.pid));
        }
        for (text, who) in said {
            let _ = writeln!(io::stderr(), "ka: attach: {}: {}", listed(who), text::visible(text.as_bytes()));
        }
        if !report.unknown.is_empty() {
            let who = std::mem::take(&mut report.unknown).into_iter().map(sockets::name).collect();
            let _ = writeln!(
                io::stderr(),
                "ka: attach: {}: whether another policy of ka applies is unknown: its memory maps did not answer within 2 s",
                listed(who)
            );
        }
        if !self.args.follow {
            report.others.extend(others);
        }
    }

    /// Describes the policy and the mode.
    fn policy_text(&self) -> String {
        let Change { policy, mode, .. } = &self.change;
        format!("{} (mode {})", policy::brief(policy), mode.name())
    }

    /// Says what is to be said of this round.
    fn say(&self, report: &mut Report) -> io::Result<()> {
        let lines = std::mem::take(&mut report.lines);
        if self.args.json {
            if self.args.follow {
                let mut out = BufWriter::new(io::stdout().lock());
                for line in lines {
                    json::to_writer(&mut out, &line)?;
                    writeln!(out)?;
                }
                return out.flush();
            }
            report.said.extend(lines);
            return Ok(());
        }
        let mut out = BufWriter::new(io::stdout().lock());
        // Many processes fail for one reason: it is said once, with their numbers.
        let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in &lines {
            let pid = line.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let who = format!("{pid} ({})", text::visible(line.comm.as_deref().unwrap_or("?").as_bytes()));
            match (&line.error, line.fd) {
                (Some(error), None) if line.local.is_none() => {
                    reasons.entry(error.clone()).or_default().push(who);
                }
                _ => writeln!(out, "{who} {}", text::visible(socket_line(line).as_bytes()))?,
            }
        }
        out.flush()?;
        for (reason, who) in reasons {
            let _ =
                writeln!(io::stderr(), "ka: attach: {}: {}", listed(who), text::visible(reason.as_bytes()));
        }
        Ok(())
    }

    fn conclude(&self, report: &Report) -> io::Result<()> {
        let Report { set, unchanged, failed, without_user_timeout, said, others, .. } = report;
        let Report { not_asked, not_examined, denied, skipped, not_found, .. } = report;
        let mut out = BufWriter::new(io::stdout().lock());
        if !self.args.json {
            let would = if self.args.dry_run { "would be set" } else { "set" };
            let to = if self.change.before.is_some() {
                "back".to_owned()
            } else {
                format!("to {}", self.policy_text())
            };
            write!(
                out,
                "{} {would} {to}, {unchanged} unchanged, {failed} failed",
                text::count(*set, "socket")
            )?;
            for (count, what, why) in [
                (not_found, "socket", "not found (closed, or the process has ended)"),
                (denied, "process", "not examined, because ka may not do so"),
                (skipped, "process", "left alone (KA_SKIP)"),
                (not_asked, "socket", "of any kind not examined, because a signal came"),
                (not_examined, "process", "not examined, because a signal came"),
            ] {
                if *count > 0 {
                    write!(out, "; {} {why}", text::count(*count, what))?;
                }
            }
            writeln!(out)?;
            if *without_user_timeout > 0 {
                writeln!(out, "{without_user_timeout} of them {NO_USER_TIMEOUT}")?;
            }
        } else if !self.args.follow {
            #[derive(Serialize)]
            struct Summary<'a> {
                set: usize,
                unchanged: usize,
                failed: usize,
                without_user_timeout: usize,
                dry_run: bool,
                policy: Option<String>,
                mode: Option<&'static str>,
                not_found: usize,
                denied: usize,
                skipped: usize,
                sockets_left: usize,
                processes_left: usize,
                others: &'a [Other],
                sockets: &'a [Line],
            }
            let is_one_policy = self.change.before.is_none();
            let summary = Summary {
                set: *set,
                unchanged: *unchanged,
                failed: *failed,
                without_user_timeout: *without_user_timeout,
                dry_run: self.args.dry_run,
                policy: is_one_policy.then(|| ka_core::Text::typed(&self.change.policy).to_string()),
                mode: is_one_policy.then(|| self.change.mode.name()),
                not_found: *not_found,
                denied: *denied,
                skipped: *skipped,
                sockets_left: *not_asked,
                processes_left: *not_examined,
                others,
                sockets: said,
            };
            json::to_writer_pretty(&mut out, &summary)?;
            writeln!(out)?;
        }
        out.flush()
    }
}

/// Joins the names of processes. Names only some, if there are many.
fn listed(who: Vec<String>) -> String {
    const NAMED: usize = 5;
    let more = who.len().saturating_sub(NAMED);
    let names = who.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// Describes what was done to a socket: `fd 7 192.0.2.1:443 -> 198.51.100.1:50000: set from off to 60,10,6`
fn socket_line(line: &Line) -> String {
    let fd = line.fd.map_or_else(|| "?".to_owned(), |fd| fd.to_string());
    let result = match (line.result, &line.error) {
        (_, Some(error)) => error.as_str(),
        (Fate::WouldSet, _) => "would be set",
        (Fate::Set, _) => "set",
        _ => "unchanged",
    };
    let brief = |values: Option<Values>| values.map(|values| policy::brief_settings(&values.into()));
    let values = match (line.result, brief(line.before), brief(line.after)) {
        (Fate::Set | Fate::WouldSet, Some(before), Some(after)) => format!(" from {before} to {after}"),
        (Fate::Set | Fate::WouldSet, None, Some(after)) => format!(" to {after}"),
        (Fate::Set | Fate::WouldSet, Some(before), None) => format!(" from {before}"),
        (Fate::Unchanged, Some(before), _) => format!(", {before}"),
        _ => String::new(),
    };
    let note = line.note.map_or_else(String::new, |note| format!(", {note}"));
    format!("fd {fd} {}: {result}{values}{note}", arrow((line.local, line.peer)))
}

/// Formats the two addresses of a socket: `192.0.2.1:443 -> 198.51.100.1:50000`, with * for a missing one.
pub(crate) fn arrow((local, peer): (Option<SocketAddr>, Option<SocketAddr>)) -> String {
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "*".to_owned(), |end| end.to_string());
    format!("{} -> {}", end(local), end(peer))
}

/// A table, and those of its descriptors that are sockets with their inodes.
type TableAndSockets = (Table, Vec<(i32, u32)>);

/// A process's tables of descriptors with the sockets in each, and why one could not be looked at.
fn found(process: &Process) -> io::Result<(Vec<TableAndSockets>, Option<io::Error>)> {
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
fn held_by() -> &'static str {
    if via::is_held() {
        "the policy of ka run --via seccomp overrides this command: use ka attach outside of it, or ka attach --all --via bpf"
    } else {
        "its cgroup has a policy in mode force (ka cgroup ls), which overrides this; use ka attach --all --via bpf"
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Both ends of a socket, as far as it has them.
pub(crate) fn ends(socket: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let socket = SockRef::from(&socket);
    let end = |address: io::Result<socket2::SockAddr>| address.ok().and_then(|address| address.as_socket());
    (end(socket.local_addr()), end(socket.peer_addr()))
}

/// Returns whether the local or the peer port of a socket is this one. Fails if the kernel does not report an address.
fn has_port(socket: BorrowedFd<'_>, port: u16) -> io::Result<bool> {
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
