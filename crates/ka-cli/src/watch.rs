//! `ka watch`: reports each connection that ends abnormally.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::time::{Duration, Instant, SystemTime};

use ka_core::Settings;
use serde::Serialize;

use crate::args::{self, SourceFlag};
use crate::failure::{CommandResult, Failure, warn};
use crate::json;
use crate::metrics::{self, MetricsServer};
use crate::notify::Notify;
use crate::plural::count;
use crate::timestamp::rfc3339;
use ka_reach::escape::{lossless, visible};
use ka_reach::netns::{self, Namespace};
use ka_reach::process::Process;
use ka_reach::watch::{Cause, Death, Metrics, Namespaces, Watch, WatchEvent, WatchFilter, WatchSource};
use ka_reach::{privilege, signal, wait};

/// The shortest time between two messages about missed connections.
const MISSED_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn watch(args: &args::WatchArgs) -> CommandResult {
    let failure = |why: &dyn Display| Failure::new(format_args!("watch: {why}"));
    // From here on, a signal does not kill this process.
    let termination = signal::termination().map_err(|error| failure(&error))?;
    let mut pids = args.pid.clone();
    pids.sort_unstable();
    pids.dedup();
    let mut processes = Vec::new();
    for pid in &pids {
        let open = Process::open(*pid).and_then(|process| process.check_access().map(|()| process));
        let process = open
            .map_err(|error| failure(&format_args!("process {pid}: {}", privilege::explain(*pid, error))))?;
        processes.push(process);
    }
    // ka enters other network namespaces later.
    let listener = args.metrics.map(metrics::listen).transpose()?;
    let namespaces = namespaces(args, &pids).map_err(|error| failure(&error))?;
    let filter = WatchFilter { namespaces, pids, port: args.port };
    let source = args.source.map(|source| match source {
        SourceFlag::Ebpf => WatchSource::Ebpf,
        SourceFlag::Diag => WatchSource::Diag,
        SourceFlag::Poll => WatchSource::Poll,
    });
    let mut watch = Watch::start(filter, source).map_err(|error| failure(&error))?;
    // ka-metrics drops its own privileges, which as root needs CAP_SETUID.
    let mut server = listener.map(MetricsServer::start).transpose()?;
    let mut metrics = Metrics::new(watch.source());
    if server.is_some() {
        watch.count_risks();
    }
    if let Err(error) = watch.drop_capabilities() {
        warn(format_args!("watch: cannot drop capabilities: {error}"));
    }
    if let Some(limits) = limits(&watch) {
        warn(format_args!("watch: {limits}"));
    }
    let mut report = Output {
        source: watch.source(),
        is_json: args.json,
        missed: MissedEnds::default(),
        last_missed: None,
        last_incomplete: String::new(),
    };
    let notify = Notify::from_environment();
    notify.send("READY=1");
    let pipe = output_pipe();
    loop {
        let has_ended = !processes.is_empty() && processes.iter().all(|process| !process.is_alive());
        let mut others = vec![termination.as_fd()];
        others.extend(processes.iter().filter(|process| process.is_alive()).map(|process| process.as_fd()));
        others.extend(pipe.as_ref().map(|pipe| pipe.as_fd()));
        others.extend(server.as_ref().map(|server| server.as_fd()));
        let longest = if has_ended { Duration::ZERO } else { report.longest_wait(&notify) };
        let events = watch.wait(&others, longest).map_err(|error| failure(&error))?;
        // If the reader of the output has ended, ka ends without an error.
        let is_ready =
            |fd: &OwnedFd| wait::poll(&[fd.as_fd()], Duration::ZERO).is_ok_and(|ready| ready == [true]);
        if pipe.as_ref().is_some_and(is_ready) {
            return Ok(0);
        }
        metrics.count(&events);
        match report.print(events) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            printed => printed?,
        }
        notify.reset_watchdog();
        if has_ended || is_ready(&termination) {
            report.print_missed(true)?;
            notify.send("STOPPING=1");
            return Ok(0);
        }
        if let Some(server) = &mut server {
            metrics.update(&watch);
            server.check()?;
            server.send(&metrics)?;
        }
    }
}

/// Returns the network namespaces to watch.
fn namespaces(args: &args::WatchArgs, pids: &[i32]) -> ka_reach::Result<Namespaces> {
    match &args.netns {
        Some(netns) if netns == "all" => Ok(Namespaces::All),
        Some(netns) => Ok(Namespaces::Some(vec![Namespace::named(netns)?])),
        // If ka may not open the namespace of a process, it may not examine the process either.
        None => Ok(Namespaces::Some(netns::of(pids).0)),
    }
}

/// Describes the ends that the source of the watch misses, with the reasons why ka cannot use a better source.
pub(crate) fn limits(watch: &Watch) -> Option<String> {
    let misses = match watch.source() {
        WatchSource::Ebpf => return None,
        WatchSource::Diag => {
            "ka reports a connection when its program closes the socket, or when ka examines the socket, at most once \
             a second; it reports unreachable as retransmission and destroyed as reset, and cannot always distinguish \
             a reset from a program that closed the connection with data unread"
        }
        WatchSource::Poll => {
            "ka examines the connections at most once a second, and misses those that their programs close in between; \
             it reports unreachable as retransmission and destroyed as reset"
        }
    };
    let owners = if privilege::may_look_anywhere() {
        ""
    } else {
        "; it can examine only the sockets of your own processes"
    };
    let reasons: Vec<_> =
        watch.refused().iter().map(|(source, error)| format!("{}: {error}", source.name())).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    Some(format!("{misses}{owners}{reasons}"))
}

/// If the source of the watch is eBPF and the kernel has not recorded this end, returns a message about it.
fn unrecorded(source: WatchSource, death: &Death) -> Option<String> {
    let is_unrecorded = source == WatchSource::Ebpf && death.source != source;
    is_unrecorded.then(|| {
        let local = death.local;
        format!("eBPF has no record of the end of {local}: its time and cause are those that --source poll reports")
    })
}

/// Returns a duplicate of standard output if it is a pipe. When its reader has closed it, the duplicate is ready.
fn output_pipe() -> Option<OwnedFd> {
    let output = std::fs::metadata("/proc/self/fd/1").ok()?;
    output.file_type().is_fifo().then(|| io::stdout().as_fd().try_clone_to_owned().ok())?
}

/// The numbers of ends that ka could not report, by the reason.
#[derive(Clone, Copy, Default)]
struct MissedEnds {
    /// The kernel dropped the reports.
    dropped: usize,
    /// It is unknown which connections ended.
    unclear: usize,
}

impl MissedEnds {
    const fn count(self) -> usize {
        self.dropped + self.unclear
    }
}

/// The output.
struct Output {
    source: WatchSource,
    is_json: bool,
    /// The missed reports that are not printed yet.
    missed: MissedEnds,
    last_missed: Option<Instant>,
    /// The last message about an incomplete list.
    last_incomplete: String,
}

impl Output {
    /// Returns the time until something must be printed, or the service manager expects a message.
    fn longest_wait(&self, notify: &Notify) -> Duration {
        /// The longest time between two refreshes of anything.
        const LONGEST: Duration = Duration::from_secs(60);
        let missed = if self.missed.count() > 0 { MISSED_AFTER } else { LONGEST };
        notify.interval().unwrap_or(LONGEST).min(missed)
    }

    fn print(&mut self, events: Vec<WatchEvent>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for event in events {
            if let WatchEvent::Died(death) = &event
                && let Some(message) = unrecorded(self.source, death)
            {
                warn(format_args!("watch: {message}"));
            }
            match event {
                WatchEvent::Died(death) if self.is_json => {
                    json::to_writer(&mut out, &DeathLine::new(&death))?;
                    writeln!(out)?;
                }
                WatchEvent::Died(death) => {
                    writeln!(out, "{} {}", rfc3339(death.time), sentence(&death))?;
                }
                WatchEvent::Missed(count) => self.missed.dropped += count,
                WatchEvent::Unclear(count) => self.missed.unclear += count,
                WatchEvent::Incomplete(error) => {
                    let message = error.to_string();
                    if message != self.last_incomplete {
                        warn(format_args!("watch: {message}"));
                        self.last_incomplete = message;
                    }
                }
            }
        }
        out.flush()?;
        drop(out);
        self.print_missed(false)
    }

    /// Prints the number of missed connections, at most once a second. `is_last` forces it.
    fn print_missed(&mut self, is_last: bool) -> io::Result<()> {
        let is_due = self.last_missed.is_none_or(|last| last.elapsed() >= MISSED_AFTER);
        if self.missed.count() == 0 || !(is_due || is_last) {
            return Ok(());
        }
        let missed = std::mem::take(&mut self.missed);
        self.last_missed = Some(Instant::now());
        if missed.dropped > 0 {
            let ends = count(missed.dropped, "report");
            warn(format_args!(
                "watch: {ends} missed: the kernel dropped them, because ka did not read them in time"
            ));
        }
        if missed.unclear > 0 {
            let ends = count(missed.unclear, "connection");
            warn(format_args!(
                "watch: {ends} reset or destroyed: without eBPF, ka cannot distinguish them from connections that \
                 their programs closed at the same time with data unread"
            ));
        }
        if self.is_json {
            let mut out = io::stdout().lock();
            let line =
                MissedLine { time: rfc3339(SystemTime::now()), event: "missed", count: missed.count() };
            json::to_writer(&mut out, &line)?;
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// A line of JSON about an abnormal end.
#[derive(Serialize)]
struct DeathLine<'a> {
    time: String,
    event: &'static str,
    cause: &'static str,
    pid: Option<i32>,
    comm: Option<Cow<'a, str>>,
    local: SocketAddr,
    peer: SocketAddr,
    keepalive: Option<bool>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    unanswered_probes: Option<u32>,
    silent_ms: Option<u64>,
}

impl<'a> DeathLine<'a> {
    fn new(death: &'a Death) -> Self {
        let Death { settings, owner, .. } = death;
        let setting = |value: fn(&Settings) -> i32| settings.as_ref().map(value);
        Self {
            time: rfc3339(death.time),
            event: "died",
            cause: death.cause.name(),
            pid: owner.as_ref().map(|owner| owner.pid),
            comm: owner.as_ref().and_then(|owner| owner.comm.as_deref()).map(lossless),
            local: death.local,
            peer: death.peer,
            keepalive: settings.map(|settings| settings.enabled),
            idle: setting(|settings| settings.idle),
            intvl: setting(|settings| settings.intvl),
            cnt: setting(|settings| settings.cnt),
            unanswered_probes: death.unanswered_probes,
            silent_ms: death.silent_ms,
        }
    }
}

/// A line of JSON about ends that ka has missed.
#[derive(Serialize)]
struct MissedLine {
    time: String,
    event: &'static str,
    count: usize,
}

/// Describes the end of a connection for people.
pub(crate) fn sentence(death: &Death) -> String {
    let owner = death.owner.as_ref().map_or_else(
        || "unknown process".to_owned(),
        |owner| format!("{}/{}", visible(owner.comm.as_deref().unwrap_or(b"?")), owner.pid),
    );
    let probes = death.unanswered_probes.map_or_else(|| "probes".to_owned(), |probes| count(probes, "probe"));
    let limit = death.settings.and_then(|settings| settings.user_timeout).filter(|limit| *limit > 0);
    let limit =
        limit.map_or_else(String::new, |limit| format!(" of {}", seconds(limit.unsigned_abs().into())));
    // A connection that was in use until its end was not silent.
    let silent = death.silent_ms.filter(|silent| *silent >= 1000).map(seconds);
    let mut why = match death.cause {
        Cause::Keepalive => format!("{probes} unanswered"),
        Cause::UserTimeout => format!("user timeout{limit} expired"),
        Cause::Retransmission => "the peer did not acknowledge data".to_owned(),
        Cause::Unreachable => "the peer is unreachable, and did not acknowledge data".to_owned(),
        Cause::Reset => "reset by the peer or a middlebox".to_owned(),
        Cause::Destroyed => "destroyed by a program on this machine (SOCK_DESTROY)".to_owned(),
    };
    if let Some(silent) = silent {
        why.push_str(", silent for ");
        why.push_str(&silent);
    }
    format!("{owner} lost {}: {why}", death.peer)
}

/// Formats a time in seconds: `110 s`, and with tenths below 10 s: `4.1 s`.
fn seconds(milliseconds: u64) -> String {
    let tenths = (milliseconds + 50) / 100;
    if tenths >= 100 || tenths.is_multiple_of(10) {
        format!("{} s", (milliseconds + 500) / 1000)
    } else {
        format!("{}.{} s", tenths / 10, tenths % 10)
    }
}
