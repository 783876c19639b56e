//! `ka attach`: sets the policy on the TCP sockets of running processes.
//!
//! ka duplicates each socket out of the process (pidfd_getfd(2)), sets it, and closes the duplicate. The process is not
//! stopped and notices nothing. ka duplicates only descriptors that are sockets according to /proc. It sets a socket
//! once, even if several descriptors or processes share it. A call on a socket may block forever, so a worker makes it
//! ([`ka_reach::worker`]).
//!
//! With `--via bpf`, the kernel itself goes through the sockets ([`ka_reach::bpf`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ka_core::{Config, Settings};
use ka_policy::{Mode, Policy};
use serde::{Deserialize, Serialize};

use crate::args::{self, AttachVia};
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::policy;
use crate::via::{self, Chosen};
use ka_reach::attach::{
    ATTEMPTS, Change, Fate, Line, NO_USER_TIMEOUT, Named, Open, Pass, Report, Seen, Values, arrow, is_gone,
    lacks_descriptors,
};
use ka_reach::bpf::{self, Counter, Done, Only, Setter};
use ka_reach::diag::State;
use ka_reach::file;
use ka_reach::policies::{self, Other};
use ka_reach::privilege;
use ka_reach::process::{self, Process, Status};
use ka_reach::sockets::{self, sockets};
use ka_reach::sys;
use ka_reach::text::{self, reason};
use ka_reach::worker::{Ended, Found, Workers};

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
        return Ok(status(&report, args));
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
    Ok(status(&report, args))
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
                let brief = text::brief_settings(&before.into());
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
                let (skipped, meant) =
                    meant.partition::<Vec<_>, _>(|pid| policies::is_skipped(&self.skip, *pid));
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
        let (mapped, why) = policies::mapped(owners.iter().copied(), policies::MOST, workers);
        report.new_others.extend(policies::others(&mapped, &policy, mode));
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
        format!("{} (mode {})", text::brief(policy), mode.name())
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
    let brief = |values: Option<Values>| values.map(|values| text::brief_settings(&values.into()));
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

/// The exit status. --follow usually ends by a signal, so the sockets that are left then are a failure only with
/// --spread.
fn status(report: &Report, args: &args::Attach) -> i32 {
    let is_end = args.follow && args.spread.is_none();
    let left = if is_end { 0 } else { report.not_asked + report.not_examined };
    if report.failed + report.denied + left > 0 { FOUND } else { 0 }
}
