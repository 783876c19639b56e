//! `ka attach`: sets the policy on the TCP sockets of running processes.
//!
//! Each socket is duplicated out of the process (pidfd_getfd(2)), set, and closed: the process is not stopped and
//! notices nothing. Only descriptors that /proc says are sockets are duplicated, and one that several descriptors or
//! processes share is set once.
//!
//! With `--via bpf` it is the kernel that goes through the sockets ([`crate::bpf`]).

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use ka_core::{Config, Errno, Error, Kernel, Libc, Mode, SockOpt, Timer, UserTimeout};
use serde::Serialize;
use socket2::SockRef;

use crate::args::{self, AttachVia};
use crate::bpf::{self, Done, Only, Orders, Setter};
use crate::diag::State;
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::parallel;
use crate::privilege;
use crate::process::{self, Process, Status, Table};
use crate::sockets::sockets;
use crate::sys;
use crate::text;
use crate::via;

pub(crate) fn attach(args: &args::Attach) -> Outcome {
    let attach = Attach {
        policy: args.policy.config_for(args.mode)?,
        mode: args.mode.into(),
        user: args.user.as_deref().map(user).transpose()?,
        // What nobody will see is not asked for.
        describe: args.json || args.verbose || args.dry_run,
        args,
    };
    sys::raise_descriptor_limit();
    let mut report = Report::default();
    if args.via == AttachVia::Bpf {
        attach.check_for_kernel()?;
        attach.through_kernel(&mut report)?;
        attach.say(&mut report)?;
        attach.conclude(&report)?;
        return Ok(if report.failed > 0 { FOUND } else { 0 });
    }
    let named = attach.named(&mut report);
    if args.follow {
        attach.follow(&named, &mut report)?;
    } else {
        let mut targets = attach.targets(&named, &mut Seen::default(), &mut report);
        let pace = attach.pace(None);
        for _ in 0..ATTEMPTS {
            let lost = attach.set_all(&targets, pace, &mut report);
            if lost.is_empty() {
                break;
            }
            // Whoever was asked for them has closed them; others may have them still.
            targets = attach.targets(&named, &mut Seen::default(), &mut Report::default());
            targets.retain(|target| lost.contains(&target.inode));
        }
        attach.say(&mut report)?;
    }
    attach.conclude(&report)?;
    Ok(if report.failed > 0 { FOUND } else { 0 })
}

/// The user of a name, or of a number.
fn user(name: &std::ffi::OsStr) -> Result<u32, Failure> {
    let number = name.to_str().and_then(|digits| digits.parse().ok());
    sys::user_named(name)
        .or(number)
        .ok_or_else(|| Failure::new(format_args!("attach: --user {}: there is no such user", name.display())))
}

struct Attach<'a> {
    policy: Config,
    mode: Mode,
    user: Option<u32>,
    describe: bool,
    args: &'a args::Attach,
}

/// A socket of a process.
struct Target {
    table: Table,
    fd: i32,
    inode: u32,
    /// It has been looked at before: only what is new is said of it.
    again: bool,
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
    /// Records that a process refuses to be looked into in this round. Returns whether that is not reported yet.
    fn refuses(&mut self, pid: i32, started: u64) -> bool {
        self.refused.insert((pid, started), self.round).is_none()
    }

    /// What was not there when it was to be looked at again is gone. So is a process that has not refused since.
    fn forget(&mut self, targets: &[Target]) {
        if self.round.is_multiple_of(Self::AGAIN) {
            let there: HashSet<u32> = targets.iter().map(|target| target.inode).collect();
            let round = self.round;
            self.sockets.retain(|inode, next| *next >= round || there.contains(inode));
            self.refused.retain(|_, last| *last + Self::AGAIN >= round);
        }
    }
}

/// How a socket fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Fate {
    Set,
    Unchanged,
    Failed,
}

/// What was done to one socket, or why a process could not be looked into.
#[derive(Serialize)]
struct Line {
    /// `None` where no process has the socket, or none that we may look into.
    pid: Option<i32>,
    fd: Option<i32>,
    comm: Option<String>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    result: Fate,
    error: Option<String>,
    /// What it can have no part of.
    note: Option<&'static str>,
}

/// What is said of a socket that has all of the policy but that.
const NO_USER_TIMEOUT: &str = "without the user timeout: Multipath TCP has none";

#[derive(Default)]
struct Report {
    set: usize,
    unchanged: usize,
    failed: usize,
    /// How many of those that are set, or were, have no user timeout.
    without_user_timeout: usize,
    lines: Vec<Line>,
    /// All lines of the rounds before, where JSON is made of them.
    said: Vec<Line>,
}

impl Report {
    fn count(&mut self, result: Fate) {
        match result {
            Fate::Set => self.set += 1,
            Fate::Unchanged => self.unchanged += 1,
            Fate::Failed => self.failed += 1,
        }
    }

    fn failed(&mut self, pid: i32, fd: Option<i32>, error: String) {
        self.count(Fate::Failed);
        let comm = process::comm(pid).map(|comm| text::lossless(&comm).into_owned());
        let line = Line {
            pid: Some(pid),
            fd,
            comm,
            local: None,
            peer: None,
            result: Fate::Failed,
            error: Some(error),
            note: None,
        };
        self.lines.push(line);
    }
}

/// One socket after the other, over a time.
#[derive(Clone, Copy)]
struct Pace<'a> {
    end: Instant,
    /// What can be read when a signal has come that would have ended us.
    termination: Option<BorrowedFd<'a>>,
}

impl Pace<'_> {
    /// What a function makes of each item, with a pause after each, until a signal comes. Who comes after the end does not
    /// wait.
    fn map<T, R>(self, items: &[T], function: impl Fn(&T) -> R) -> Vec<R> {
        let start = Instant::now();
        let time = self.end.saturating_duration_since(start);
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let mut done = Vec::with_capacity(items.len());
        for (number, item) in (1..).zip(items) {
            done.push(function(item));
            // By the clock, so that pauses that are too short to be made are made together.
            let due = time.saturating_mul(number).checked_div(count).unwrap_or_default();
            let pause = due.saturating_sub(start.elapsed());
            match sys::poll(self.termination.as_slice(), pause) {
                Ok(ready) if ready.contains(&true) => break,
                Ok(_) => {}
                Err(_) => thread::sleep(pause),
            }
        }
        done
    }
}

/// The kernel, with a count of what is written; on a dry run nothing is.
struct Counting {
    writes: Cell<usize>,
    dry_run: bool,
}

impl Kernel for Counting {
    fn get(&self, fd: libc::c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        Libc.get(fd, option, value)
    }

    fn set(&self, fd: libc::c_int, option: SockOpt, value: libc::c_int) -> Result<(), Errno> {
        self.writes.set(self.writes.get() + 1);
        if self.dry_run { Ok(()) } else { Libc.set(fd, option, value) }
    }
}

impl Attach<'_> {
    /// The processes that are named, held: a number that is used again is another process, and not meant.
    fn named(&self, report: &mut Report) -> Vec<Process> {
        let mut once = HashSet::new();
        let pids = self.args.pids.iter().copied().filter(|pid| once.insert(*pid));
        pids.filter_map(|pid| match Process::open(pid) {
            Ok(process) => Some(process),
            Err(error) => {
                let leader = Status::read(pid).ok().and_then(|status| status.leader());
                let why = match leader.filter(|leader| *leader != pid) {
                    Some(leader) => format!("it is a task of process {leader}: name that"),
                    None => privilege::explain(pid, &error),
                };
                report.failed(pid, None, why);
                None
            }
        })
        .collect()
    }

    /// The sockets that are to be set. What cannot be looked into is reported; what has ended meanwhile has none.
    fn targets(&self, named: &[Process], seen: &mut Seen, report: &mut Report) -> Vec<Target> {
        let mut targets = Vec::new();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let all = match process::all() {
            Ok(_) if !self.args.pids.is_empty() => Vec::new(),
            // This one is there.
            Ok(pids) if pids.is_empty() => {
                report.failed(own, None, "/proc shows no process: it is not mounted here".to_owned());
                pids
            }
            Ok(pids) => pids,
            Err(error) => {
                report.failed(own, None, format!("/proc: {error}"));
                Vec::new()
            }
        };
        let meant = all.into_iter().filter(|pid| *pid != own && self.is_meant(*pid));
        let opened = meant.filter_map(|pid| match Process::open(pid) {
            Err(error) if is_gone(&error) => None,
            // The number may have become another's before it was held.
            Ok(_) if self.user.is_some() && !self.is_meant(pid) => None,
            opened => Some((pid, opened)),
        });
        for (pid, process) in named.iter().map(|process| (process.pid, Ok(process.clone()))).chain(opened) {
            let found = process.and_then(|process| found(&process));
            let problem = match found {
                Ok((tables, problem)) => {
                    for (table, sockets) in tables {
                        targets.extend(sockets.into_iter().filter_map(|(fd, inode)| {
                            let again = seen.is_due(inode)?;
                            Some(Target { table: table.clone(), fd, inode, again })
                        }));
                    }
                    problem
                }
                Err(error) => Some(error),
            };
            if let Some(error) = problem.filter(|error| !is_gone(error))
                && seen.refuses(pid, process::started(pid))
            {
                report.failed(pid, None, privilege::explain(pid, &error));
            }
        }
        seen.round += 1;
        targets
    }

    /// Whether a process is one of all that are asked for.
    fn is_meant(&self, pid: i32) -> bool {
        match self.user {
            Some(user) => Status::read(pid).is_ok_and(|status| status.user() == Some(user)),
            None => !process::is_kernel_thread(pid),
        }
    }

    /// The pace of a pass over all sockets, which begins now. On a dry run there is nothing to spread.
    fn pace<'t>(&self, termination: Option<BorrowedFd<'t>>) -> Option<Pace<'t>> {
        let time = self.args.spread.filter(|_| !self.args.dry_run)?;
        Some(Pace { end: Instant::now() + Duration::from_millis(time.into()), termination })
    }

    /// Sets each: as fast as the cores allow, or at a pace. Those that were gone by then are given back, by their inodes.
    fn set_all(&self, targets: &[Target], pace: Option<Pace<'_>>, report: &mut Report) -> HashSet<u32> {
        let done = match pace {
            None => parallel::map(targets, |target| self.set_one(target)),
            Some(pace) => pace.map(targets, |target| self.set_one(target)),
        };
        // A refusal that all sockets of a process have in common is said once.
        let mut refused = HashSet::new();
        let mut lost = HashSet::new();
        for (target, done) in targets.iter().zip(done) {
            let pid = target.table.pid;
            match done {
                Ok(None) => {}
                Ok(Some((fate, is_without, line))) => {
                    report.count(fate);
                    report.without_user_timeout += usize::from(is_without);
                    report.lines.extend(line);
                }
                // It was closed since, or the process has ended.
                Err(error) if is_gone(&error) || error.raw_os_error() == Some(libc::EBADF) => {
                    lost.insert(target.inode);
                }
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    if refused.insert(pid) {
                        report.failed(pid, None, privilege::explain(pid, &error));
                    }
                }
                Err(error) => report.failed(pid, Some(target.fd), privilege::explain(pid, &error)),
            }
        }
        lost
    }

    /// Sets one, and says how it fared, and whether it lacks a user timeout that it was to have: nothing where it is none
    /// of those that are meant. An error is one of getting hold of it.
    fn set_one(&self, target: &Target) -> io::Result<Option<(Fate, bool, Option<Line>)>> {
        let pid = target.table.pid;
        let socket = target.table.duplicate(target.fd)?;
        if let Some(port) = self.args.port
            && !has_port(socket.as_fd(), port)?
        {
            return Ok(None);
        }
        let kernel = Counting { writes: Cell::new(0), dry_run: self.args.dry_run };
        let (result, error) = match self.give(ka_core::Socket::with_kernel(socket.as_raw_fd(), &kernel)) {
            // Or no socket any more: the descriptor was closed, and its number used again, since it was listed.
            Err(Error::NotTcp | Error::System { errno: Errno(libc::ENOTSOCK), .. }) => return Ok(None),
            Err(error) => (Fate::Failed, Some(error.to_string())),
            Ok(()) if kernel.writes.get() > 0 && !self.holds(socket.as_fd()) => {
                (Fate::Failed, Some(held_by().to_owned()))
            }
            Ok(()) if kernel.writes.get() > 0 => (Fate::Set, None),
            Ok(()) if target.again => return Ok(None),
            Ok(()) => (Fate::Unchanged, None),
        };
        let is_without = error.is_none() && self.is_without_user_timeout(socket.as_fd(), result);
        let note = is_without.then_some(NO_USER_TIMEOUT);
        let line = (self.describe || error.is_some()).then(|| {
            let (local, peer) = ends(socket.as_fd());
            let comm = process::comm(pid).map(|comm| text::lossless(&comm).into_owned());
            Line { pid: Some(pid), fd: Some(target.fd), comm, local, peer, result, error, note }
        });
        Ok(Some((result, is_without, line)))
    }

    /// Whether a socket was to have a user timeout and can have none, as Multipath TCP's. One that kept its own keepalive was
    /// to have nothing.
    fn is_without_user_timeout(&self, socket: BorrowedFd<'_>, result: Fate) -> bool {
        let is_given = self.mode == Mode::Force || result == Fate::Set;
        let is_named =
            !matches!(self.policy.user_timeout(), UserTimeout::Keep | UserTimeout::Milliseconds(0));
        let timeout = || ka_core::Socket::new(socket.as_raw_fd()).timer(Timer::UserTimeout);
        is_given && is_named && matches!(timeout(), Err(Error::Unsupported { .. }))
    }

    /// Whether what was written is there. Where another's policy is held, of a cgroup or of a supervisor over this very
    /// process, the kernel says that it set what it did not.
    fn holds(&self, socket: BorrowedFd<'_>) -> bool {
        let socket = ka_core::Socket::new(socket.as_raw_fd());
        let is_there = |timer| match (self.policy.timer(timer), socket.timer(timer)) {
            (Some(ours), Ok(theirs)) if self.mode == Mode::Floor => theirs <= ours,
            (Some(ours), Ok(theirs)) => theirs == ours,
            _ => true,
        };
        // What the kernel does not tell proves nobody's policy.
        let is_as_said = |on| socket.is_enabled().map_or(true, |is_on| is_on == on);
        self.args.dry_run
            || self.policy.enabled().is_none_or(is_as_said)
                && [Timer::Idle, Timer::Intvl, Timer::Cnt, Timer::UserTimeout].into_iter().all(is_there)
    }

    fn give(&self, socket: ka_core::Socket<&Counting>) -> Result<(), Error> {
        // A dry run writes nothing, so nothing refuses what is not TCP.
        let was_on =
            if self.mode == Mode::Default || self.args.dry_run { socket.is_enabled()? } else { false };
        if self.policy.enabled() != Some(true) {
            // Nothing to be stricter than, and nothing to give: who may have a word keeps it.
            return if self.mode == Mode::Force {
                socket.apply(&self.policy)
            } else {
                socket.is_enabled().map(|_| ())
            };
        }
        match socket.due(&self.policy, self.mode, was_on) {
            Some(config) => socket.give(config, false).1,
            None => Ok(()),
        }
    }

    /// The kernel has sockets, and not processes, and goes through them once.
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

    /// Has the kernel set all sockets of this network namespace, in one pass, whoever has them.
    fn through_kernel(&self, report: &mut Report) -> Result<(), Failure> {
        let orders = Orders { policy: self.policy, mode: self.mode };
        let only = Only { port: self.args.port, cgroup: None };
        let done =
            Setter::load(orders, self.args.dry_run, only).and_then(|setter| setter.set()).map_err(|why| {
                Failure::new(format_args!(
                    "attach: --via bpf: {why}; without it ka attach goes through the processes"
                ))
            })?;
        let sockets: HashMap<_, _> = if self.describe || done.iter().any(|done| done.errno != 0) {
            let states: Vec<_> = State::with_options().collect();
            let sockets = sockets(&states, None).map_err(|error| {
                Failure::new(format_args!("attach: what was set cannot be listed: {error}"))
            })?;
            sockets.into_iter().map(|socket| (socket.entry.cookie, socket)).collect()
        } else {
            HashMap::new()
        };
        for Done { cookie, writes, errno } in done {
            let result = match (errno, writes) {
                (0, 0) => Fate::Unchanged,
                (0, _) => Fate::Set,
                _ => Fate::Failed,
            };
            report.count(result);
            if self.describe || errno != 0 {
                let socket = sockets.get(&cookie);
                let owner = socket.and_then(|socket| socket.owner.as_ref());
                report.lines.push(Line {
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
        Ok(())
    }

    /// Looks again and again, until the processes have ended or a signal says to.
    fn follow(&self, named: &[Process], report: &mut Report) -> Result<(), Failure> {
        let failed = |error| Failure::new(format_args!("attach: {error}"));
        let termination = sys::termination().map_err(failed)?;
        let mut seen = Seen::default();
        let interval = Duration::from_millis(self.args.interval.into());
        let mut living = named.to_vec();
        loop {
            let targets = self.targets(&living, &mut seen, report);
            // What was lost is looked for in the next round, and what a signal has left is left.
            let _ = self.set_all(&targets, self.pace(Some(termination.as_fd())), report);
            self.say(report)?;
            seen.forget(&targets);
            if !self.args.pids.is_empty() && living.is_empty() {
                return Ok(());
            }
            // A signal ends the wait, and so does the end of the last process that is named.
            let last = living.iter().take(usize::from(living.len() == 1)).map(AsFd::as_fd);
            let waited: Vec<_> = [termination.as_fd()].into_iter().chain(last).collect();
            if sys::poll(&waited, interval).map_err(failed)?.first() == Some(&true) {
                return Ok(());
            }
            living.retain(Process::is_alive);
        }
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
                _ => writeln!(out, "{who} {}", socket_line(line, self.args.dry_run))?,
            }
        }
        out.flush()?;
        for (reason, who) in reasons {
            const NAMED: usize = 5;
            let more = who.len().saturating_sub(NAMED);
            let names = who.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = writeln!(io::stderr(), "ka: attach: {names}{more}: {reason}");
        }
        Ok(())
    }

    fn conclude(&self, report: &Report) -> io::Result<()> {
        let Report { set, unchanged, failed, without_user_timeout, said, .. } = report;
        let mut out = BufWriter::new(io::stdout().lock());
        if !self.args.json {
            let would = if self.args.dry_run { "would be set" } else { "set" };
            writeln!(out, "{set} sockets {would}, {unchanged} unchanged, {failed} failed")?;
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
                policy: String,
                sockets: &'a [Line],
            }
            let summary = Summary {
                set: *set,
                unchanged: *unchanged,
                failed: *failed,
                without_user_timeout: *without_user_timeout,
                dry_run: self.args.dry_run,
                policy: self.policy.to_string(),
                sockets: said,
            };
            json::to_writer_pretty(&mut out, &summary)?;
            writeln!(out)?;
        }
        out.flush()
    }
}

/// What was done to a socket: `fd 7 192.0.2.1:443 -> 198.51.100.1:50000: set`
fn socket_line(line: &Line, dry_run: bool) -> String {
    let fd = line.fd.map_or_else(|| "?".to_owned(), |fd| fd.to_string());
    let result = match (line.result, &line.error) {
        (_, Some(error)) => error.as_str(),
        (Fate::Set, _) if dry_run => "would be set",
        (Fate::Set, _) => "set",
        _ => "unchanged",
    };
    let note = line.note.map_or_else(String::new, |note| format!(", {note}"));
    format!("fd {fd} {}: {result}{note}", arrow((line.local, line.peer)))
}

/// Both ends of a socket: `192.0.2.1:443 -> 198.51.100.1:50000`, with * for one that it does not have.
fn arrow((local, peer): (Option<SocketAddr>, Option<SocketAddr>)) -> String {
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "*".to_owned(), |end| end.to_string());
    format!("{} -> {}", end(local), end(peer))
}

/// The ends of a socket, as text.
pub(crate) fn ends_text(socket: BorrowedFd<'_>) -> String {
    arrow(ends(socket))
}

/// A table, and those of its descriptors that are sockets with their inodes.
type TableAndSockets = (Table, Vec<(i32, u32)>);

/// A process's tables of descriptors with the sockets in each, and why one could not be looked at.
fn found(process: &Process) -> io::Result<(Vec<TableAndSockets>, Option<io::Error>)> {
    let mut tables = Vec::new();
    let mut problem = None;
    for table in process.tables()? {
        match table.and_then(|table| Ok((table.sockets()?, table))) {
            Ok((sockets, table)) => tables.push((table, sockets)),
            Err(error) => problem = Some(error),
        }
    }
    // What /proc said is of this process only if it is still there.
    if process.is_alive() { Ok((tables, problem)) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Who holds a policy against what was just written.
fn held_by() -> &'static str {
    if via::is_held() {
        "ka run --via seccomp holds its policy against this command too: ka attach outside of it, or ka attach --all --via bpf"
    } else {
        "its cgroup has a policy that holds against others (ka cgroup ls); ka attach --all --via bpf passes it"
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Both ends of a socket, as far as it has them.
fn ends(socket: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let socket = SockRef::from(&socket);
    let end = |address: io::Result<socket2::SockAddr>| address.ok().and_then(|address| address.as_socket());
    (end(socket.local_addr()), end(socket.peer_addr()))
}

/// Whether one of its ends has the port. An end that it has not has none; one that the kernel does not tell is an error.
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
            seen.forget(&[]);
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
