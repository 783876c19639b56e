//! The sweep: sets the sockets that a cgroup's processes already have open, once.
//!
//! The kernel's iterator visits the sockets of one network namespace and takes the lock of each. A program can hold a
//! socket's lock for as long as it likes, and a process that waits for this lock cannot be killed. So the sweep runs in
//! a child process. The child reports which namespace it enters, and its results there. If the child is silent for too
//! long, the parent sets the sockets of that namespace one by one, through the processes that have them. Then the
//! parent starts another child for the other namespaces.
//!
//! There may be more namespaces than descriptors, so the child opens only one at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_policy::{Mode, Policy};
use serde::{Deserialize, Serialize};

use super::walk::walk;
use super::{Cgroup, is_gone, overridden_below};
use crate::attach::{self, Change, Report};
use crate::bpf::{self, Counter, Only, Setter};
use crate::diag::State;
use crate::text::{self, reason};
use crate::worker::{Ended, Found, Workers};
use crate::{record, sockets, sys};

/// How often the parent polls the pipe. The parent counts polls instead of reading the clock. So it does not mistake a
/// time in which it was itself stopped for silence of the child.
const TICK: Duration = Duration::from_secs(1);
/// The parent gives up a child after this many silent polls.
const PATIENCE: u32 = 5;
/// The parent gives up the sweep after this many silent namespaces.
const MOST_BLOCKED: usize = 8;

/// The results of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    pub set: usize,
    pub unchanged: usize,
    /// How many sockets were refused, by errno.
    pub refused: BTreeMap<i32, usize>,
    /// Reasons why sockets were left out.
    pub left: Vec<String>,
    /// The policies of cgroups below that this one overrides.
    pub overridden: Option<String>,
}

/// A message of the child, one a line.
#[derive(Serialize, Deserialize)]
enum Message {
    /// The policies of cgroups below that this one overrides.
    Overrides(String),
    /// The child enters the network namespace with this inode.
    Entering(u64),
    /// The child has finished this namespace and looks for the next.
    Leaving,
    /// A number of sockets that were set, were as they should be, or were refused.
    Sockets { writes: bool, errno: i32, count: usize },
    /// The last message.
    Finished { left: Vec<String> },
}

/// How a child's turn ended.
enum End {
    Finished,
    /// The child is silent in this namespace, where it has reported this many sockets. It has set more sockets than it
    /// has reported.
    Blocked {
        network: u64,
        seen: usize,
        unreported: usize,
    },
    Died,
    Signal,
}

/// The needs of a process that stays in the foreground while it sweeps.
pub struct Foreground<'a> {
    /// A descriptor that becomes readable when a termination signal comes.
    pub termination: BorrowedFd<'a>,
    /// The longest time between two calls of `is_alive`.
    pub interval: Option<Duration>,
    /// Tells the service manager that the process is alive.
    pub is_alive: &'a dyn Fn(),
}

/// Sets the open sockets of a cgroup's processes, in each of their network namespaces. If this process holds the policy, a
/// signal ends the sweep early.
pub fn sweep(cgroup: &Cgroup, policy: Policy<'static>, foreground: Option<&Foreground<'_>>) -> Swept {
    let mut swept = Swept::default();
    let mut entered = HashSet::new();
    let mut workers = Workers::default();
    let mut blocked = 0;
    loop {
        let end = match Sweeper::start(cgroup, policy, &entered) {
            Ok(sweeper) => sweeper.listen(&mut swept, &mut entered, foreground),
            Err(error) => {
                swept.left.push(format!(
                    "the open sockets were not set: cannot start a worker process: {}; {}",
                    reason(&error),
                    instead(policy.mode)
                ));
                return swept;
            }
        };
        match end {
            Ok(End::Finished) => return swept,
            Ok(End::Blocked { network, seen, unreported }) => {
                blocked += 1;
                let mut report = through_processes(cgroup, policy, network, &mut workers, &mut swept);
                report.were_set(unreported);
                swept.set += report.set;
                // The child has already reported `seen` of them.
                swept.unchanged += report.unchanged.saturating_sub(seen);
                swept.left.extend(report.reasons());
                if blocked >= MOST_BLOCKED {
                    swept.left.push(format!(
                        "other network namespaces were not examined: {MOST_BLOCKED} did not answer"
                    ));
                    return swept;
                }
            }
            Ok(End::Died) => {
                swept.left.push(
                    "some or all open sockets were not set: the worker process was \
                     killed"
                        .to_owned(),
                );
                return swept;
            }
            Ok(End::Signal) => {
                swept.left.push("some or all open sockets were not set: a signal came".to_owned());
                return swept;
            }
            Err(error) => {
                swept.left.push(format!("it is unknown which open sockets were set: {}", reason(&error)));
                return swept;
            }
        }
    }
}

/// A child, and the bytes of it that are not parsed yet.
struct Sweeper {
    says: File,
    text: Vec<u8>,
    /// `None` if the kernel refuses to make the map. Then the child explains why.
    counter: Option<Counter>,
}

impl Sweeper {
    /// Starts a child that leaves out the namespaces that earlier children have entered.
    fn start(cgroup: &Cgroup, policy: Policy<'static>, done: &HashSet<u64>) -> io::Result<Self> {
        let (says, out) = sys::pipe()?;
        let counter = Counter::new();
        let keep: Vec<_> =
            [out.as_raw_fd()].into_iter().chain(counter.iter().map(Counter::as_raw_fd)).collect();
        sys::detached(&keep, || {
            let mut out = File::from(out.try_clone()?);
            let left = Work { out: &mut out, done: done.clone(), path: &cgroup.path, id: cgroup.id }
                .all(policy, counter.as_ref().map_err(String::clone))?;
            say(&mut out, &Message::Finished { left })
        })?;
        Ok(Self { says: says.into(), text: Vec::new(), counter: counter.ok() })
    }

    fn listen(
        mut self,
        swept: &mut Swept,
        entered: &mut HashSet<u64>,
        foreground: Option<&Foreground<'_>>,
    ) -> io::Result<End> {
        let mut network = None;
        let (mut seen, mut reported) = (0, 0);
        let mut silence = 0;
        let mut piece = [0; 4096];
        loop {
            let waited: Vec<_> =
                [self.says.as_fd()].into_iter().chain(foreground.map(|held| held.termination)).collect();
            let tick = foreground.and_then(|held| held.interval).map_or(TICK, |interval| interval.min(TICK));
            let ready = sys::poll(&waited, tick)?;
            if let Some(foreground) = foreground {
                (foreground.is_alive)();
            }
            if ready.get(1) == Some(&true) {
                return Ok(End::Signal);
            }
            if ready.first() != Some(&true) {
                silence += tick.as_millis();
                // Between namespaces the child takes no socket's lock, so nothing can block it.
                if let Some(network) = network
                    && silence >= u128::from(PATIENCE) * TICK.as_millis()
                {
                    let counted = self.counter.as_ref().map_or(0, Counter::value);
                    return Ok(End::Blocked { network, seen, unreported: counted.saturating_sub(reported) });
                }
                continue;
            }
            silence = 0;
            let size = self.says.read(&mut piece)?;
            if size == 0 {
                return Ok(End::Died);
            }
            self.text.extend_from_slice(piece.get(..size).unwrap_or_default());
            while let Some(message) = self.next()? {
                match message {
                    Message::Entering(number) => {
                        network = Some(number);
                        seen = 0;
                        entered.insert(number);
                    }
                    Message::Leaving => network = None,
                    Message::Overrides(which) => swept.overridden = Some(which),
                    Message::Sockets { writes, errno: 0, count } => {
                        seen += count;
                        reported += if writes { count } else { 0 };
                        *(if writes { &mut swept.set } else { &mut swept.unchanged }) += count;
                    }
                    Message::Sockets { errno, count, .. } => {
                        *swept.refused.entry(errno).or_default() += count;
                    }
                    Message::Finished { left } => {
                        swept.left.extend(left);
                        return Ok(End::Finished);
                    }
                }
            }
        }
    }

    /// The next complete message.
    fn next(&mut self) -> io::Result<Option<Message>> {
        let Some(end) = self.text.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.text.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

fn say(out: &mut File, message: &Message) -> io::Result<()> {
    let mut line = Vec::new();
    serde_json::to_writer(&mut line, message)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// The work of the child.
struct Work<'a> {
    out: &'a mut File,
    /// The inodes of the namespaces that the child has entered. The inode of a removed namespace may be reused. That
    /// does no harm: in a namespace made from now on, all sockets already have the policy.
    done: HashSet<u64>,
    path: &'a Path,
    id: u64,
}

impl Work<'_> {
    /// Does the work. Returns the reasons why sockets were left out. The child inherits no descriptor of the cgroup, so
    /// it opens the cgroup again.
    fn all(&mut self, policy: Policy<'static>, counter: Result<&Counter, String>) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        let opened = Cgroup::open(self.path).ok().filter(|cgroup| cgroup.id == self.id);
        let Some(cgroup) = opened else {
            left.push("it has been removed".to_owned());
            return Ok(left);
        };
        // Only the first child reports this.
        if self.done.is_empty()
            && let Some(which) = overridden_below(&cgroup, policy)
        {
            say(self.out, &Message::Overrides(which))?;
        }
        let only = Only { cgroup: Some(cgroup.id), port: None };
        let nothing = |why: String| format!("the open sockets were not set: {why}; {}", instead(policy.mode));
        let setter = match counter.and_then(|counter| Setter::load(policy, false, only, counter)) {
            Ok(setter) => setter,
            Err(why) => {
                left.push(nothing(why));
                return Ok(left);
            }
        };
        if let Ok(own) = File::open("/proc/self/ns/net")
            && self.begins(&own)?
            && let Err(why) = self.set(&setter)?
        {
            left.push(nothing(why));
            return Ok(left);
        }
        say(self.out, &Message::Leaving)?;
        let mut unseen = 0_usize;
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let mut broken = None;
        let walked = walk(&cgroup, |cgroup| {
            for pid in members(cgroup)?.lines() {
                // The PID of a process outside of ka's PID namespace reads as 0.
                let network = match File::open(PathBuf::from(format!("/proc/{pid}/ns/net"))) {
                    Ok(network) => network,
                    Err(error) if pid != "0" && is_gone(&error) => continue,
                    Err(_) => {
                        unseen += 1;
                        continue;
                    }
                };
                let mut enter = || -> io::Result<()> {
                    if !self.begins(&network)? {
                        return Ok(());
                    }
                    let entered = sys::enter_network(&network).map_err(|error| match error.raw_os_error() {
                        Some(libc::EPERM) => "needs CAP_SYS_ADMIN (run ka as root)".to_owned(),
                        _ => reason(&error),
                    });
                    let set = match entered {
                        Ok(()) => self.set(&setter)?,
                        Err(why) => Err(why),
                    };
                    if let Err(why) = set {
                        *refused.entry(why).or_default() += 1;
                    }
                    say(self.out, &Message::Leaving)
                };
                if let Err(error) = enter() {
                    // The parent does not read the pipe any more.
                    broken = Some(error);
                    return Err(io::Error::from_raw_os_error(libc::EPERM));
                }
            }
            Ok(())
        });
        if let Some(error) = broken {
            return Err(error);
        }
        match walked {
            Ok(skipped) => left.extend(skipped.lines()),
            Err(error) => {
                left.push(format!("the search for other network namespaces failed: {}", reason(&error)));
            }
        }
        if unseen > 0 {
            left.push(format!(
                "{unseen} of its processes could not be examined, so only their sockets in ka's own network namespace were set: \
                 needs CAP_SYS_PTRACE, and their PIDs in ka's PID namespace"
            ));
        }
        left.extend(refused.iter().map(|(why, count)| {
            let namespaces = text::count(*count, "other network namespace");
            format!("the open sockets in {namespaces} were not set: {why}")
        }));
        Ok(left)
    }

    /// Returns whether this namespace has not been entered yet, and tells the parent if so.
    fn begins(&mut self, network: &File) -> io::Result<bool> {
        let number = sys::inode(network.as_fd())?;
        let is_new = self.done.insert(number);
        if is_new {
            say(self.out, &Message::Entering(number))?;
        }
        Ok(is_new)
    }

    /// Sets the sockets of the child's current namespace and reports the results.
    fn set(&mut self, setter: &Setter) -> io::Result<Result<(), String>> {
        let mut results = Results { out: self.out, records: Vec::new() };
        let set = setter.set(&mut results);
        results.report()?;
        Ok(set)
    }
}

/// Reports the kernel's records as they come, so that the parent sees progress.
struct Results<'a> {
    out: &'a mut File,
    /// Records that are not reported yet. The last one may be incomplete.
    records: Vec<u8>,
}

impl Results<'_> {
    fn report(&mut self) -> io::Result<()> {
        let mut counts: BTreeMap<(bool, i32), usize> = BTreeMap::new();
        for one in bpf::take_done(&mut self.records) {
            *counts.entry((one.writes != 0, one.errno)).or_default() += 1;
        }
        for ((writes, errno), count) in counts {
            say(self.out, &Message::Sockets { writes, errno, count })?;
        }
        Ok(())
    }
}

impl Write for Results<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.records.extend_from_slice(piece);
        self.report()?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the cgroup's sockets of a network namespace through the processes that have them. This is for a namespace in
/// which the child blocked at a socket whose lock is held.
fn through_processes(
    cgroup: &Cgroup,
    policy: Policy<'static>,
    number: u64,
    workers: &mut Workers,
    swept: &mut Swept,
) -> Report {
    let is_number = |network: &File| sys::inode(network.as_fd()).is_ok_and(|inode| inode == number);
    let is_own = File::open("/proc/self/ns/net").is_ok_and(|own| is_number(&own));
    let (mut cgroups, mut pids, mut network) = (HashSet::new(), Vec::new(), None);
    // The child reports the cgroups that the walk skips.
    let _ = walk(cgroup, |cgroup| {
        cgroups.insert(cgroup.id);
        for pid in members(cgroup)?.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0) {
            if !is_own && network.is_none() {
                let opened = File::open(PathBuf::from(format!("/proc/{pid}/ns/net"))).ok();
                network = opened.filter(&is_number);
            }
            pids.push(pid);
        }
        Ok(())
    });
    let mut not_set = |why: &str| {
        swept.left.push(format!(
            "some or all open sockets in network namespace {number} were not set: {why}; {}",
            instead(policy.mode)
        ));
        Report::default()
    };
    if !is_own && network.is_none() {
        return not_set("a program holds the lock of a socket there");
    }
    let states: Vec<_> = State::with_options().collect();
    let keep: Vec<_> = network.iter().map(File::as_raw_fd).collect();
    let Found { data, end } = workers.find(&keep, |sink| {
        if let Some(network) = &network {
            sys::enter_network(network).map_err(|error| reason(&error))?;
        }
        sockets::list(&states, false, sink)
    });
    match end {
        Ended::Whole => {}
        Ended::Blocked => return not_set("a program holds the lock of a socket there"),
        Ended::Failed(why) => return not_set(&why),
    }
    let is_ours = |inode: u32, cgroup: u64| inode != 0 && cgroups.contains(&cgroup);
    let rest: HashSet<_> = record::entries(&data)
        .filter(|entry| is_ours(entry.inode, entry.cgroup))
        .map(|entry| entry.inode)
        .collect();
    let Policy { config: policy, mode, .. } = policy;
    let change = Change { policy, mode, port: None, dry_run: false, describe: false, before: None };
    attach::set_processes(change, pids, rest, workers)
}

/// Returns the PIDs of a cgroup's processes, one per line. A threaded cgroup lists only thread IDs, which work as well.
fn members(cgroup: &Cgroup) -> io::Result<String> {
    let mut text = String::new();
    match cgroup.file("cgroup.procs").and_then(|mut file| file.read_to_string(&mut text)) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            cgroup.file("cgroup.threads")?.read_to_string(&mut text)?;
        }
        read => {
            read?;
        }
    }
    Ok(text)
}

/// Returns a line for each reason why the kernel rejected sockets, with their number.
pub fn refusals(swept: &Swept, mode: Mode) -> impl Iterator<Item = String> {
    let instead = instead(mode);
    swept.refused.iter().map(move |(errno, count)| {
        let why = match *errno {
            bpf::TOO_DEEP => {
                "they are in cgroups too deep to tell whether these are below this one".to_owned()
            }
            errno => bpf::refusal(errno),
        };
        let sockets = if *count == 1 { "a socket".to_owned() } else { format!("{count} sockets") };
        format!("{sockets}: {why}; {instead}")
    })
}

/// Names the command that reaches the sockets that the sweep left out.
fn instead(mode: Mode) -> &'static str {
    match mode {
        Mode::Force => "use ka attach PID before ka cgroup attach; afterwards mode force overrides it",
        _ => "use ka attach PID",
    }
}
