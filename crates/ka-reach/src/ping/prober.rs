//! The worker that probes many connections at the same time.
//!
//! A thread, the stepper, steps all probes in turn, again and again ([`ka_core::Probe`]). While a probe leaves, the
//! settings of its socket are changed, for a few milliseconds. The stepper puts them back, unless it blocks at another
//! socket whose lock a program holds. So the main thread, which makes no call on a socket, watches the stepper. If the
//! stepper blocks, another one takes over all other connections. The first one ends when its call returns.
//!
//! The settings must be put back in any case. So no signal ends this process, except SIGKILL. It stops early if a
//! signal ends its parent, even if that is SIGKILL. If a socket is still blocked in the end, this process stays behind,
//! and puts the settings of that socket back when the lock is released.
//!
//! [`ka_core::Probe`] lets at most 64 probes of a process leave at the same time, until the kernel has sent them. The
//! others wait. So a burst of probes and answers does not overflow the queue of a network device on the same machine
//! (net.core.netdev_max_backlog, 1000 packets for each processor).

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use ka_core::direct::Direct;
use ka_core::{Alive, Probe, Socket, Status};
use socket2::SockRef;

use super::examination::Facts;
use super::{Destroy, Destroyed, PingRequest, PingResult};
use crate::class::Classes;
use crate::diag::{self, ConnectionId, State};
use crate::error::{Error, Result};
use crate::netns;
use crate::process::{HeldSocket, is_gone, own_pid};
use crate::reason::socket_reason;
use crate::seccomp;
use crate::sys;
use crate::worker::{self, PipeWriter, is_waiting};

/// A connection to probe.
pub(super) struct Target<'a> {
    pub(super) held: &'a HeldSocket,
    pub(super) facts: Facts,
}

/// The pause of the main thread between two checks.
const TICK: Duration = Duration::from_millis(10);
/// The number of checks without progress after which another stepper takes over: 0.1 s.
const TAKE_OVER_TICKS: u32 = 10;
/// The number of checks after which a blocked socket is given up: 2 s, as for other workers.
const GIVE_UP_TICKS: u32 = 200;
/// The number of checks between two signs of life for the parent.
const SIGN_TICKS: u32 = 20;
/// The maximum number of probes that have begun and not yet left.
const MAX_LEAVING: usize = 256;
/// If this many sockets of one user have blocked, the user's other sockets are left alone.
const MAX_BLOCKED_PER_USER: u32 = 8;
/// If a look is this late, because this process was stopped, the connection is probed again from the beginning. Then
/// each probe has its time, and the RTT does not include the stop.
const MAX_LATE: Duration = Duration::from_secs(1);
/// The maximum number of these restarts for one connection.
const MAX_RESTARTS: u32 = 8;

/// Probes connections, and writes each result to `out` as a line of JSON: the index and the [`PingResult`]. Ends early
/// if a word of `stop` is not 0.
pub(super) fn probe_all(
    targets: &[Target<'_>],
    request: PingRequest,
    classes: Option<Classes>,
    stop: &sys::SharedWords,
    out: &mut PipeWriter<'_>,
) {
    let parent = parent_id();
    sys::outlive_parent();
    let (mut opened, mut classes) = (Vec::new(), classes);
    for (place, target) in targets.iter().enumerate() {
        match open(target, classes.as_mut()) {
            Ok(socket) => opened.push((place, target, socket)),
            Err(result) => write(out, place, &result),
        }
    }
    if let Some(classes) = &mut classes {
        classes.go_home();
    }
    let prober = Prober {
        connections: opened
            .iter()
            .map(|(place, target, socket)| Probed::new(*place, target, socket, request))
            .collect(),
        began: Instant::now(),
        is_ending: AtomicBool::new(false),
        results: Mutex::default(),
    };
    thread::scope(|scope| {
        prober.watch(scope, out, || {
            stop.words().iter().any(|word| word.load(Ordering::Acquire) != 0) || parent_id() != parent
        });
        out.finish();
        // The scope waits for steppers that are still blocked. They put the settings of their sockets back.
    });
}

/// Duplicates a socket, if it is still the same one.
fn open(target: &Target<'_>, classes: Option<&mut Classes>) -> std::result::Result<OwnedFd, PingResult> {
    let HeldSocket { table, fd, .. } = target.held;
    classes.map_or(Ok(()), |classes| classes.enter(table)).map_err(PingResult::Skipped)?;
    let socket = table.duplicate(*fd).map_err(|error| match error.raw_os_error() {
        errno if is_gone(errno) || errno == Some(libc::EBADF) => PingResult::Gone,
        Some(libc::EMFILE | libc::ENFILE) => PingResult::Skipped(Error::TooManyOpenFiles),
        _ => PingResult::Skipped(error.into()),
    })?;
    let is_same = sys::inode(socket.as_fd()).ok() == Some(target.held.inode.into())
        && SockRef::from(&socket).cookie().unwrap_or(0) == target.facts.cookie;
    if is_same { Ok(socket) } else { Err(PingResult::Gone) }
}

fn write(out: &mut PipeWriter<'_>, place: usize, result: &PingResult) {
    if let Ok(mut line) = serde_json::to_vec(&(place, result)) {
        line.push(b'\n');
        let _ = out.write_all(&line); // If the parent has ended, the result is not needed.
    }
}

/// All connections, and the state that the threads share.
struct Prober<'a> {
    connections: Vec<Probed<'a>>,
    began: Instant,
    /// True if the steppers must put all settings back and end.
    is_ending: AtomicBool,
    /// The results that the main thread has not written yet.
    results: Mutex<Vec<(usize, PingResult)>>,
}

/// A connection, and its state, which only one stepper uses at a time.
struct Probed<'a> {
    place: usize,
    user: u32,
    is_done: AtomicBool,
    /// True if the user of the socket has made too many sockets block.
    is_excluded: AtomicBool,
    sequence: Mutex<ProbeSequence<'a>>,
}

impl<'a> Probed<'a> {
    fn new(place: usize, target: &'a Target<'a>, socket: &'a OwnedFd, request: PingRequest) -> Self {
        Self {
            place,
            user: target.facts.user,
            is_done: AtomicBool::new(false),
            is_excluded: AtomicBool::new(false),
            sequence: Mutex::new(ProbeSequence {
                target,
                socket,
                request,
                probe: None,
                begun: 0,
                first: Duration::ZERO,
                since: None,
                sent: None,
                before: None,
                due: Duration::ZERO,
                restarts: 0,
            }),
        }
    }
}

/// A thread that steps the probes, as the main thread sees it.
#[derive(Default)]
struct Stepper {
    thread: AtomicI32,
    /// The index plus one of the connection whose socket the thread uses in a system call. 0 if it makes no such call.
    at: AtomicUsize,
    /// The number of connections that the thread has looked at. It may wrap.
    looks: AtomicU32,
    /// True if another stepper has taken over.
    is_relieved: AtomicBool,
    has_ended: AtomicBool,
}

impl Prober<'_> {
    /// Starts a stepper and watches it, until all connections have a result. Writes the results.
    fn watch<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        out: &mut PipeWriter<'_>,
        must_end: impl Fn() -> bool,
    ) {
        let mut stepper = self.start(scope);
        let mut last = (0, 0);
        let mut failures = 0;
        let (mut idle, mut ticks) = (0, 0_u32);
        // The connections at which a stepper has blocked, and the tick at which another stepper took over.
        let mut blocked: Vec<(usize, u32)> = Vec::new();
        let mut of_user: HashMap<u32, u32> = HashMap::new();
        loop {
            thread::sleep(TICK);
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(SIGN_TICKS) {
                let _ = out.write(&[]);
            }
            self.write_results(out);
            if must_end() {
                self.is_ending.store(true, Ordering::Release);
            }
            blocked.retain(|(place, _)| self.connections.get(*place).is_some_and(Probed::is_locked));
            let is_open = |(place, probed): (usize, &Probed<'_>)| {
                let is_blocked = blocked.iter().any(|(blocked, _)| *blocked == place);
                !is_blocked && !probed.is_done.load(Ordering::Acquire) && !probed.is_excluded()
            };
            let has_waited = |(_, since): &(usize, u32)| ticks.wrapping_sub(*since) >= GIVE_UP_TICKS;
            if !self.connections.iter().enumerate().any(is_open) && blocked.iter().all(has_waited) {
                self.is_ending.store(true, Ordering::Release);
            }
            let stepper_now = match &stepper {
                Ok(stepper) if stepper.has_ended.load(Ordering::Acquire) => break,
                Ok(stepper) => stepper,
                Err(_) if failures >= GIVE_UP_TICKS => break,
                Err(_) => {
                    // Only a stepper puts settings back. So try again to start one.
                    failures += 1;
                    stepper = self.start(scope);
                    continue;
                }
            };
            let now = (stepper_now.at.load(Ordering::Acquire), stepper_now.looks.load(Ordering::Acquire));
            let thread = stepper_now.thread.load(Ordering::Acquire);
            idle = if now.0 != 0 && now == last && is_waiting(own_pid(), thread) { idle + 1 } else { 0 };
            last = now;
            if idle >= TAKE_OVER_TICKS {
                stepper_now.is_relieved.store(true, Ordering::Release);
                let place = now.0.saturating_sub(1);
                blocked.push((place, ticks));
                if let Some(probed) = self.connections.get(place) {
                    let count = of_user.entry(probed.user).or_default();
                    *count += 1;
                    if *count == MAX_BLOCKED_PER_USER {
                        self.exclude(probed.user);
                    }
                }
                stepper = self.start(scope);
                (idle, last) = (0, (0, 0));
            }
        }
        self.write_results(out);
        let failure = stepper.err().map(|error| Error::WorkerStart(error).to_string());
        for probed in self.connections.iter().filter(|probed| !probed.is_done.load(Ordering::Acquire)) {
            let error = if probed.is_locked() {
                Error::SocketBlocked
            } else if probed.is_excluded() {
                worker::excluded(probed.user)
            } else {
                failure.clone().map_or(Error::Interrupted, Error::Worker)
            };
            write(out, probed.place, &PingResult::Skipped(error));
        }
    }

    fn exclude(&self, user: u32) {
        for probed in self.connections.iter().filter(|probed| probed.user == user) {
            probed.is_excluded.store(true, Ordering::Release);
        }
    }

    fn write_results(&self, out: &mut PipeWriter<'_>) {
        let results = std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner));
        for (place, result) in &results {
            write(out, *place, result);
        }
    }

    fn start<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>) -> io::Result<Arc<Stepper>> {
        let stepper = Arc::new(Stepper::default());
        let own = Arc::clone(&stepper);
        let run = move || {
            own.thread.store(sys::thread_id(), Ordering::Release);
            self.step_all(&own);
            own.has_ended.store(true, Ordering::Release);
        };
        thread::Builder::new().spawn_scoped(scope, run)?;
        Ok(stepper)
    }

    /// Steps all connections, until another stepper takes over or the work ends.
    fn step_all(&self, stepper: &Stepper) {
        while !self.is_ending.load(Ordering::Acquire) {
            let round = self.began.elapsed();
            let mut next = round + Duration::from_millis(5);
            let mut leaving = 0;
            for (place, probed) in self.connections.iter().enumerate() {
                if probed.is_done.load(Ordering::Acquire) || probed.is_excluded() {
                    continue;
                }
                // A stepper that has blocked has the lock.
                let Some(mut sequence) = probed.lock() else { continue };
                if sequence.due > round || !sequence.has_begun() && leaving >= MAX_LEAVING {
                    next = next.min(sequence.due.max(round));
                    leaving += usize::from(sequence.is_leaving());
                    continue;
                }
                stepper.look_at(place);
                let result = sequence.step(self.began.elapsed());
                if result.is_some() || self.is_ending.load(Ordering::Acquire) {
                    sequence.probe = None; // This puts the settings back.
                }
                stepper.at.store(0, Ordering::Release);
                if let Some(result) = result {
                    let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((probed.place, result));
                    probed.is_done.store(true, Ordering::Release);
                }
                leaving += usize::from(sequence.is_leaving());
                next = next.min(sequence.due);
                drop(sequence);
                if stepper.is_relieved.load(Ordering::Acquire) {
                    return;
                }
                if self.is_ending.load(Ordering::Acquire) {
                    break;
                }
            }
            let pause = next.saturating_sub(self.began.elapsed());
            thread::sleep(pause.max(Duration::from_micros(100)));
        }
        // The sockets of excluded users may block. They come last.
        let (last, first): (Vec<_>, Vec<_>) =
            self.connections.iter().enumerate().partition(|(_, probed)| probed.is_excluded());
        for (place, probed) in first.into_iter().chain(last) {
            let Some(mut sequence) = probed.lock() else { continue };
            stepper.look_at(place);
            sequence.probe = None; // This puts the settings back.
            stepper.at.store(0, Ordering::Release);
            if stepper.is_relieved.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

impl<'a> Probed<'a> {
    fn is_excluded(&self) -> bool {
        self.is_excluded.load(Ordering::Acquire)
    }

    /// Locks the state. Returns `None` if a stepper has it, because it has blocked.
    fn lock(&self) -> Option<std::sync::MutexGuard<'_, ProbeSequence<'a>>> {
        match self.sequence.try_lock() {
            Ok(sequence) => Some(sequence),
            Err(TryLockError::Poisoned(sequence)) => Some(sequence.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn is_locked(&self) -> bool {
        matches!(self.sequence.try_lock(), Err(TryLockError::WouldBlock))
    }
}

impl Stepper {
    fn look_at(&self, place: usize) {
        self.looks.fetch_add(1, Ordering::AcqRel);
        self.at.store(place + 1, Ordering::Release);
    }
}

/// The probes of one connection, one after the other.
struct ProbeSequence<'a> {
    target: &'a Target<'a>,
    socket: &'a OwnedFd,
    request: PingRequest,
    probe: Option<Probe<'a, Direct>>,
    /// The number of probes that have begun.
    begun: u32,
    /// The time at which the first probe began. It may have to wait for other probes before it can leave.
    first: Duration,
    /// The time from which the timeout counts: the first probe has begun to leave.
    since: Option<Duration>,
    /// The time at which the first probe had left.
    sent: Option<Duration>,
    /// The state before the first probe, and a time just before it was read.
    before: Option<(Status, Instant)>,
    /// The time of the next look.
    due: Duration,
    restarts: u32,
}

impl<'a> ProbeSequence<'a> {
    const fn has_begun(&self) -> bool {
        self.begun > 0
    }

    /// Returns whether the kernel has not sent the current probe yet.
    fn is_leaving(&self) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.is_leaving() || probe.is_untriggered())
    }

    fn own(&self) -> Socket<'a, Direct> {
        Socket::with_kernel(self.socket.as_raw_fd(), Direct)
    }

    /// Looks for an answer. Begins a probe if one is due.
    fn step(&mut self, now: Duration) -> Option<PingResult> {
        if self.has_begun() && now.saturating_sub(self.due) >= MAX_LATE {
            let too_busy = self.restart();
            if too_busy.is_some() {
                return too_busy;
            }
        }
        let before = if let Some((before, _)) = self.before {
            before
        } else {
            let time = Instant::now();
            match self.own().status() {
                Ok(status) => self.before.insert((status, time)).0,
                Err(error) => return Some(failed(error, None)),
            }
        };
        if self.is_next_due(now) {
            if self.begun == 0 {
                self.first = now;
            }
            self.begun += 1;
            self.probe = Some(Probe::new(self.own(), now));
        }
        let probe = self.probe.as_mut()?;
        let was_leaving = probe.is_leaving();
        match probe.step(now) {
            Err(error) => return Some(failed(error, Some(&before))),
            Ok(Some(Alive::Recently)) if self.begun == 1 => {
                return Some(PingResult::Answered { rtt_us: before.rtt_us });
            }
            Ok(Some(alive)) => {
                let time = if let Alive::Answered(time) = alive { time } else { Duration::ZERO };
                let rtt = self.sent.map_or(time, |sent| now.saturating_sub(sent));
                return Some(PingResult::Answered {
                    rtt_us: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
                });
            }
            Ok(None) => {}
        }
        let (is_leaving, is_untriggered) = (probe.is_leaving(), probe.is_untriggered());
        if was_leaving && !is_leaving {
            self.sent = self.sent.or(Some(now));
        }
        let PingRequest { timeout, count, .. } = self.request;
        if !is_untriggered {
            self.since = self.since.or(Some(now));
        } else if now.saturating_sub(self.first) >= timeout {
            // Another process of ka keeps probing the connection, or was killed and has left its settings.
            self.since = self.since.or(Some(self.first));
        }
        let is_last = self.begun == count || is_untriggered;
        let is_over = self.since.is_some_and(|since| since.saturating_add(timeout) <= now);
        let result = if is_last && is_over && !is_leaving { self.end() } else { None };
        let pause = if is_leaving {
            Duration::from_micros(250)
        } else if is_untriggered {
            Duration::from_millis(1)
        } else {
            // First look often, because the round trip may be short. Then look less often.
            let waited = now.saturating_sub(self.sent.unwrap_or(self.first)) / 8;
            let next = self.time_of_probe(self.begun).map_or(Duration::MAX, |next| next.saturating_sub(now));
            waited.min(Duration::from_millis(50)).min(next).max(Duration::from_micros(250))
        };
        self.due = now + pause;
        result
    }

    /// Returns the time at which a probe must begin, or for the number of probes, the time at which the timeout ends.
    fn time_of_probe(&self, number: u32) -> Option<Duration> {
        let PingRequest { timeout, count, .. } = self.request;
        let spent = timeout.checked_div(count).and_then(|each| each.checked_mul(number))?;
        Some(self.since?.saturating_add(spent))
    }

    fn is_next_due(&self, now: Duration) -> bool {
        let is_time = || self.time_of_probe(self.begun).is_some_and(|time| time <= now);
        !self.has_begun() || self.begun < self.request.count && !self.is_leaving() && is_time()
    }

    /// Puts the settings back, and begins with the first probe again. After too many times, returns the result.
    fn restart(&mut self) -> Option<PingResult> {
        (self.probe, self.begun, self.since, self.sent, self.before) = (None, 0, None, None, None);
        self.restarts += 1;
        (self.restarts > MAX_RESTARTS).then_some(PingResult::Skipped(Error::TooBusy))
    }

    /// Returns the result of a connection whose timeout is over. `None` if the next look has a result, because the
    /// connection has just ended, or because the peer has answered while this process was stopped.
    fn end(&mut self) -> Option<PingResult> {
        let (before, began) = self.before?;
        let now = match self.own().status() {
            Ok(status) => status,
            Err(error) => return Some(failed(error, None)),
        };
        let is_still_silent = |now: &Status| is_silent(now.silent_ms(), began.elapsed());
        if !now.is_connected() {
            return None;
        }
        if !is_still_silent(&now) {
            return self.restart();
        }
        // TCP_INFO has these counts as bytes. Only a segment of the peer resets them.
        let more = |before: u32, now: u32| now.wrapping_sub(before) & 0xff;
        let asked = more(before.probes, now.probes) + more(before.retransmits, now.retransmits);
        let in_flight = now.unacked > 0;
        if asked == 0 && !in_flight {
            let is_probed = self.own().is_probed();
            return Some(PingResult::Skipped(if is_probed {
                Error::ProbedByAnother
            } else {
                Error::NoProbe
            }));
        }
        let PingRequest { count, destroy, .. } = self.request;
        let destroyed = match destroy {
            Destroy::Never => None,
            _ if asked < count => Some(Destroyed::Not(Error::AskedTooLittle { asked, count })),
            _ if self.target.facts.is_mptcp => Some(Destroyed::Not(Error::MptcpNotDestroyed)),
            Destroy::DryRun => Some(Destroyed::Planned),
            Destroy::Silent => match self.destroy(is_still_silent) {
                Ok(true) => Some(Destroyed::Done),
                Ok(false) => return None,
                Err(error) => Some(Destroyed::Not(error)),
            },
        };
        Some(PingResult::Silent { in_flight, destroyed })
    }

    /// Ends the connection, unless its state has changed. Returns whether it did.
    fn destroy(&self, is_still_silent: impl Fn(&Status) -> bool) -> Result<bool> {
        let Facts { local: Some(local), peer: Some(peer), cookie, .. } = self.target.facts else {
            return Err(Error::ConnectionNotFound);
        };
        // sock_diag(7) finds only sockets of the network namespace that this thread is in.
        netns::enter_that_of(self.socket.as_fd())?;
        let interface = sys::bound_interface(self.socket.as_fd()).unwrap_or(0);
        if !self.own().status().is_ok_and(|now| now.is_connected() && is_still_silent(&now)) {
            return Ok(false);
        }
        match diag::destroy(&ConnectionId { local, peer, interface, cookie }) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(Error::ConnectionNotFound),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns whether the peer has sent nothing since the first probe. `silent_ms` is the silence now, and `elapsed` the time
/// since the first probe.
///
/// Without an answer, `silent_ms` also includes the silence before the probe, which was at least a second. The kernel
/// rounds, and half a second is enough room for that.
fn is_silent(silent_ms: u32, elapsed: Duration) -> bool {
    Duration::from_millis(silent_ms.into()) >= elapsed + Duration::from_millis(500)
}

/// Returns the result of a connection whose probe failed. `before` is the state before the probe, if it is known.
fn failed(error: ka_core::Error, before: Option<&Status>) -> PingResult {
    let was_established = || before.is_some_and(|before| before.state == State::Established as u32);
    match error {
        ka_core::Error::Ended(errno) => PingResult::Dead(Some(errno.0)),
        // This process has a duplicate, so a close(2) of the program does not end the connection.
        ka_core::Error::NotConnected if was_established() => PingResult::Dead(None),
        ka_core::Error::NotConnected => PingResult::Gone,
        ka_core::Error::PolicyHeld => {
            PingResult::Skipped(Error::PolicyHeld { is_own: seccomp::is_enforced() })
        }
        error => PingResult::Skipped(Error::Worker(socket_reason(&error))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::is_silent;

    #[test]
    fn an_answer_that_came_while_ka_was_stopped_ends_the_silence() {
        for (silent_ms, elapsed_ms, expected) in [
            // No answer: the silence was 1000 ms before the first probe.
            (3000, 2000, true),
            (2996, 2000, true),
            // An answer after 10 ms, and then ka was stopped for 5 s. The silence is longer than before the probe.
            (5000, 5010, false),
            // An answer to the last probe.
            (0, 2000, false),
        ] {
            assert_eq!(is_silent(silent_ms, Duration::from_millis(elapsed_ms)), expected, "{silent_ms}");
        }
    }
}
