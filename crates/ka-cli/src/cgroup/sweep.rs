//! The sockets that a cgroup's processes have open already: the sweep sets them, once.
//!
//! The kernel goes through the sockets of one network namespace at a time and takes the lock of each. A program can hold a
//! socket's lock for as long as it likes, and whoever waits for it cannot be killed. So the sweep runs in a process of its own.
//! It says which namespace it enters, and what became of the sockets there. If it stays silent for too long, this process goes
//! on without it: it starts another sweep of the other namespaces, and reports the one that was left.
//!
//! A namespace's descriptor keeps the namespace alive, and there may be more namespaces than descriptors. So one is open
//! at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_core::Mode;
use serde::{Deserialize, Serialize};

use super::walk::walk;
use super::{Cgroup, Held, is_gone};
use crate::bpf::{self, Only, Orders, Setter};
use crate::json;
use crate::sys;

/// How often this process looks for what the sweep says. Silence is counted in looks and not by the clock: time in which this
/// process is stopped does not count.
const TICK: Duration = Duration::from_secs(1);
/// After so many looks without a word a sweep is given up.
const PATIENCE: u32 = 15;
/// After so many namespaces that did not answer, the others are left, too.
const MOST_BLOCKED: usize = 8;

/// How what was open already fared.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) set: usize,
    pub(super) unchanged: usize,
    /// How many sockets were refused, by errno.
    pub(super) refused: BTreeMap<i32, usize>,
    /// What was left as it is, and why.
    pub(super) left: Vec<String>,
}

/// A line of what the sweep says.
#[derive(Serialize, Deserialize)]
enum Message {
    /// It goes through the network namespace of this number now.
    Entering(u64),
    /// It is done with it, and looks for the next.
    Leaving,
    /// So many sockets there were set, were as they should be, or were refused.
    Sockets { writes: bool, errno: i32, count: usize },
    /// Nothing more comes.
    Finished { left: Vec<String> },
}

/// How a sweep's process ended, as far as this one waited for it.
enum End {
    Finished,
    /// It is silent, in this namespace.
    Blocked(u64),
    Died,
    Signal,
}

/// Sets what the cgroup's processes have open, in each network namespace that they are in. A signal ends it early, where the
/// policy is held by this process.
pub(super) fn sweep(cgroup: &Cgroup, orders: Orders, held: Option<&Held>) -> Swept {
    let mut swept = Swept::default();
    let mut entered = HashSet::new();
    let mut blocked = 0;
    loop {
        let end = match Sweeper::start(cgroup, orders, &entered) {
            Ok(sweeper) => sweeper.listen(&mut swept, &mut entered, held),
            Err(error) => {
                swept.left.push(format!(
                    "what is open already was left as it is: a process that sets it: {error}; {}",
                    instead(orders.mode)
                ));
                return swept;
            }
        };
        match end {
            Ok(End::Finished) => return swept,
            Ok(End::Blocked(network)) => {
                blocked += 1;
                swept.left.push(format!(
                    "what is open already in network namespace {network} was left as it is, wholly or in part: a program \
                     holds the lock of a socket there; {}",
                    instead(orders.mode)
                ));
                if blocked >= MOST_BLOCKED {
                    swept.left.push(format!(
                        "other network namespaces were not looked at: {MOST_BLOCKED} did not answer"
                    ));
                    return swept;
                }
            }
            Ok(End::Died) => {
                swept.left.push("what is open already was left as it is, wholly or in part: the process that sets it was \
                     ended".to_owned());
                return swept;
            }
            Ok(End::Signal) => {
                swept.left.push(
                    "what is open already was left as it is, wholly or in part: a signal came".to_owned(),
                );
                return swept;
            }
            Err(error) => {
                swept.left.push(format!("what became of what is open already is not known: {error}"));
                return swept;
            }
        }
    }
}

/// A process that sweeps, and what it has said that was not looked at yet.
struct Sweeper {
    says: File,
    text: Vec<u8>,
}

impl Sweeper {
    /// Starts one that leaves out the namespaces that are done, or did not answer.
    fn start(cgroup: &Cgroup, orders: Orders, done: &HashSet<u64>) -> io::Result<Self> {
        let (says, out) = sys::pipe()?;
        sys::detached(out.as_fd(), || {
            let mut out = File::from(out.try_clone()?);
            let left =
                Work { out: &mut out, done: done.clone(), path: &cgroup.path, id: cgroup.id }.all(orders)?;
            say(&mut out, &Message::Finished { left })
        })?;
        Ok(Self { says: says.into(), text: Vec::new() })
    }

    fn listen(
        mut self,
        swept: &mut Swept,
        entered: &mut HashSet<u64>,
        held: Option<&Held>,
    ) -> io::Result<End> {
        let mut network = None;
        let mut silence = 0;
        let mut piece = [0; 4096];
        loop {
            let waited: Vec<_> =
                [self.says.as_fd()].into_iter().chain(held.map(|held| held.termination.as_fd())).collect();
            let tick =
                held.and_then(|held| held.notify.interval()).map_or(TICK, |interval| interval.min(TICK));
            let ready = sys::poll(&waited, tick)?;
            if let Some(held) = held {
                held.notify.is_alive();
            }
            if ready.get(1) == Some(&true) {
                return Ok(End::Signal);
            }
            if ready.first() != Some(&true) {
                silence += tick.as_millis();
                // Outside of one, it does nothing that a stranger's lock could hold up.
                if let Some(network) = network
                    && silence >= u128::from(PATIENCE) * TICK.as_millis()
                {
                    return Ok(End::Blocked(network));
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
                        entered.insert(number);
                    }
                    Message::Leaving => network = None,
                    Message::Sockets { writes, errno: 0, count } => {
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

    /// The next message that is here as a whole.
    fn next(&mut self) -> io::Result<Option<Message>> {
        let Some(end) = self.text.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.text.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

fn say(out: &mut File, message: &Message) -> io::Result<()> {
    let mut line = Vec::new();
    json::to_writer(&mut line, message)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// What the sweep's process does.
struct Work<'a> {
    out: &'a mut File,
    /// The namespaces that are done. A number is free again when its namespace is gone. But a namespace that is made
    /// from now on has no socket without the policy, so it need not be entered.
    done: HashSet<u64>,
    path: &'a Path,
    id: u64,
}

impl Work<'_> {
    /// Does it, and says what was left and why. It has no descriptor of the process that started it.
    fn all(&mut self, orders: Orders) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        let opened = Cgroup::open(self.path).ok().filter(|cgroup| cgroup.id == self.id);
        let Some(cgroup) = opened else {
            left.push("it has been removed".to_owned());
            return Ok(left);
        };
        let only = Only { cgroup: Some(cgroup.id), port: None };
        let nothing =
            |why: String| format!("what is open already was left as it is: {why}; {}", instead(orders.mode));
        let setter = match Setter::load(orders, false, only) {
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
                // One of another PID namespace has the number 0.
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
                        _ => error.to_string(),
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
                    // Nobody listens any more.
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
            Err(error) => left.push(format!("other network namespaces were not looked for: {error}")),
        }
        if unseen > 0 {
            left.push(format!(
                "what {unseen} of its processes have open was left as it is, unless they are in ka's own network namespace: \
                 to see that needs CAP_SYS_PTRACE, and their numbers in ka's PID namespace"
            ));
        }
        left.extend(refused.iter().map(|(why, count)| {
            format!("what is open already in {count} other network namespaces was left as it is: {why}")
        }));
        Ok(left)
    }

    /// Whether this namespace is still to be done. If so, that is said.
    fn begins(&mut self, network: &File) -> io::Result<bool> {
        let number = sys::inode(network.as_fd())?;
        let is_new = self.done.insert(number);
        if is_new {
            say(self.out, &Message::Entering(number))?;
        }
        Ok(is_new)
    }

    /// Sets the sockets of the namespace that this process is in, and says how they fared.
    fn set(&mut self, setter: &Setter) -> io::Result<Result<(), String>> {
        let done = match setter.set() {
            Ok(done) => done,
            Err(why) => return Ok(Err(why)),
        };
        let mut counts: BTreeMap<(bool, i32), usize> = BTreeMap::new();
        for one in done {
            *counts.entry((one.writes != 0, one.errno)).or_default() += 1;
        }
        for ((writes, errno), count) in counts {
            say(self.out, &Message::Sockets { writes, errno, count })?;
        }
        Ok(Ok(()))
    }
}

/// The processes of a cgroup, one a line. A threaded cgroup has threads, whose processes may be elsewhere.
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

/// Why sockets were refused, and how many, for each reason.
pub(super) fn refusals(swept: &Swept, mode: Mode) -> impl Iterator<Item = String> {
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

/// What reaches the sockets that the sweep does not reach.
fn instead(mode: Mode) -> &'static str {
    match mode {
        Mode::Force => {
            "ka attach PID reaches it before ka cgroup attach; in mode force the policy holds against that afterwards"
        }
        _ => "ka attach PID reaches it",
    }
}
