//! The ladder chooses the idle times of the next trials, and draws the conclusion from their results. This module makes
//! no system calls.
//!
//! The first round tries a geometric ladder of idle times, all at once. Each idle time is a rung. When a rung fails,
//! longer rungs are useless. The next round puts a finer ladder between the longest survivor and the shortest failure,
//! and repeats the failure. Further rounds follow until the gap is narrow enough.
//!
//! A rung counts as failed when two of its trials failed. A rung with one failure and one answer is tried a third time,
//! and the majority decides. If a longer rung survives and a shorter one fails, both are tried up to three times. If
//! they still contradict each other, the result is unclear.

use std::time::Duration;

use super::trial::{LEAST_IDLE, Sample, TrialResult};
use super::verdict::{Conclusion, Doubt, Measured};

/// The idle times to try.
#[derive(Clone, Copy, Debug)]
pub struct IdleTimes {
    /// The shortest idle time.
    pub from: Duration,
    /// The longest idle time.
    pub to: Duration,
    /// The widest gap to leave between the longest survivor and the shortest failure.
    pub precision: Duration,
}

/// The ratio of two neighbouring rungs of the first round, if there are enough connections.
const RATIO: f64 = 1.5;
/// The same ratio if there are few connections. The shortest rungs are then tried first.
const WIDEST_RATIO: f64 = 2.0;
/// The number of trials of one rung after which the majority decides.
const MAJORITY: usize = 3;
/// The number of rungs with contradictory results that makes a measurement unclear.
const MOST_MIXED: usize = 3;
/// The maximum number of trials of a measurement.
const MOST_TRIALS: usize = 200;
/// The tolerance by which the gap may exceed the precision: probes do not leave exactly when they are due.
const LATENESS: Duration = Duration::from_millis(20);
/// The tolerance for ends without a probe: a server or a middlebox ends each connection after nearly the same idle
/// time.
const JITTER: Duration = Duration::from_millis(500);

/// The results of one rung.
#[derive(Clone, Debug)]
struct Rung {
    /// The planned idle time, or the real one of a reset that came without a probe.
    at: Duration,
    /// True if the failures are resets without a probe.
    unasked: bool,
    answered: Vec<Sample>,
    failed: Vec<Sample>,
}

impl Rung {
    fn has_survived(&self) -> bool {
        self.answered.len() > self.failed.len()
    }

    fn trials(&self) -> usize {
        self.answered.len().saturating_add(self.failed.len())
    }

    fn is_mixed(&self) -> bool {
        !self.answered.is_empty() && !self.failed.is_empty()
    }

    /// Returns the idle time that repeats this rung. If the rung failed by a reset without a probe, this is a longer
    /// time, so that the reset comes before the probe.
    fn again(&self) -> Duration {
        if self.unasked { self.at.saturating_mul(11).div_f64(10.0).saturating_add(JITTER) } else { self.at }
    }
}

/// The state of a measurement.
#[derive(Debug)]
pub struct Ladder {
    range: IdleTimes,
    connections: usize,
    /// The rungs to try in this round, shortest last.
    queue: Vec<Duration>,
    rungs: Vec<Rung>,
    /// The idle times at which the peer closed connections, or reset them at once.
    closed: Vec<Sample>,
    /// The trials in which the peer sent packets by itself.
    interrupted: Vec<Sample>,
    conclusion: Option<Conclusion>,
}

impl Ladder {
    /// Plans the first round, with at most this many connections at a time.
    pub fn new(range: IdleTimes, connections: usize) -> Self {
        let mut ladder = Self {
            range,
            connections: connections.max(1),
            queue: Vec::new(),
            rungs: Vec::new(),
            closed: Vec::new(),
            interrupted: Vec::new(),
            conclusion: None,
        };
        ladder.queue(first_rungs(range, ladder.connections));
        ladder
    }

    /// Limits the number of connections at a time, because the server accepts no more.
    pub fn limit_connections(&mut self, connections: usize) {
        self.connections = self.connections.min(connections).max(1);
    }

    /// Takes the shortest idle time of this round that has not been tried.
    pub fn take(&mut self) -> Option<Duration> {
        self.queue.pop()
    }

    /// Puts an idle time back whose trial did not take place.
    pub fn put_back(&mut self, rung: Duration) {
        self.queue.push(rung);
        self.queue.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn queue(&mut self, mut rungs: Vec<Duration>) {
        rungs.sort_unstable_by(|a, b| b.cmp(a));
        self.queue = rungs;
    }

    /// Records a trial.
    pub fn record(&mut self, sample: Sample) {
        match sample.result {
            TrialResult::Closed => self.closed.push(sample),
            // The server rejects the connection. No idle time of keepalive is that short.
            TrialResult::Reset if sample.is_unasked_reset() && sample.idle < LEAST_IDLE => {
                self.closed.push(sample);
            }
            TrialResult::Answered if sample.is_interrupted_by_peer() => self.interrupted.push(sample),
            _ => self.rung_of(&sample).push(sample),
        }
        let shortest = self.shortest_failure().map(|rung| rung.at);
        if let Some(shortest) = shortest {
            self.queue.retain(|rung| *rung <= shortest);
        }
    }

    fn rung_of(&mut self, sample: &Sample) -> &mut Vec<Sample> {
        let unasked = sample.is_unasked_reset();
        let at = if unasked { sample.idle } else { sample.rung };
        let is_same = |rung: &Rung| {
            let distance = rung.at.abs_diff(at);
            rung.unasked == unasked
                && if unasked { distance <= JITTER.max(at.div_f64(20.0)) } else { distance.is_zero() }
        };
        let place = self.rungs.iter().position(is_same).unwrap_or(self.rungs.len());
        if place == self.rungs.len() {
            self.rungs.push(Rung { at, unasked, answered: Vec::new(), failed: Vec::new() });
        }
        #[expect(
            clippy::indexing_slicing,
            reason = "`place` is the place of a rung, or of the one just added"
        )]
        let rung = &mut self.rungs[place];
        if sample.result == TrialResult::Answered { &mut rung.answered } else { &mut rung.failed }
    }

    /// Returns the shortest rung that has not survived.
    fn shortest_failure(&self) -> Option<&Rung> {
        self.rungs.iter().filter(|rung| !rung.has_survived()).min_by_key(|rung| rung.at)
    }

    /// Returns whether the round waits for a trial of this rung. If a shorter rung has failed, it does not.
    pub fn awaits(&self, rung: Duration) -> bool {
        self.shortest_failure().is_none_or(|failed| rung <= failed.at || failed.unasked)
    }

    /// Returns whether to stop a running trial, because a shorter rung has failed. `idle` is the time that its
    /// connection has been idle.
    pub fn is_moot(&self, rung: Duration, idle: Duration) -> bool {
        self.shortest_failure().is_some_and(|failed| {
            if failed.unasked {
                // A reset without a probe arrives on all connections at about the same time. These resets confirm it.
                rung > failed.at && idle > failed.at.saturating_add(JITTER.saturating_mul(2))
            } else {
                // The next rungs end while the finer ladder runs. If they survive, the results contradict each other.
                rung > failed.at.mul_f64(RATIO * RATIO)
            }
        })
    }

    /// Returns whether the path has probably forgotten a connection that has been idle for this time.
    pub fn has_failed(&self, idle: Duration) -> bool {
        self.shortest_failure().is_some_and(|failed| idle >= failed.at)
    }

    /// Plans the next round, or concludes. Call it when no awaited trial is running. Does nothing if the queue is not
    /// empty.
    pub fn plan(&mut self) {
        if self.queue.is_empty() && self.conclusion.is_none() {
            match self.next_round() {
                Ok(rungs) => self.queue(rungs),
                Err(conclusion) => self.conclusion = Some(conclusion),
            }
        }
    }

    /// Returns the conclusion, if there is one.
    pub const fn conclusion(&self) -> Option<Conclusion> {
        self.conclusion
    }

    /// Estimates the time until the end of the measurement. `round` is the rest of the current round.
    pub fn remaining(&self, round: Duration) -> Duration {
        let more = self.shortest_failure().filter(|failed| {
            failed.failed.len() < 2
                || failed.at.saturating_sub(self.longest_survivor()) > self.range.precision
        });
        round.saturating_add(more.map_or(Duration::ZERO, |failed| failed.at))
    }

    fn longest_survivor(&self) -> Duration {
        let survived = self.rungs.iter().filter(|rung| rung.has_survived()).map(|rung| rung.at);
        survived.max().unwrap_or_default()
    }

    /// Returns the rungs of the next round, or the conclusion.
    fn next_round(&self) -> Result<Vec<Duration>, Conclusion> {
        let trials: usize = self.rungs.iter().map(Rung::trials).sum();
        if trials.saturating_add(self.closed.len()) >= MOST_TRIALS {
            return Err(Conclusion::Unclear(Doubt::Contradiction));
        }
        let mixed = self.rungs.iter().filter(|rung| rung.is_mixed()).count();
        if mixed >= MOST_MIXED {
            return Err(Conclusion::Unclear(Doubt::Contradiction));
        }
        let shortest = self.shortest_failure();
        let survived = self.longest_survivor();
        if let Some(failed) = shortest.filter(|failed| failed.at < survived) {
            let odd = self
                .rungs
                .iter()
                .filter(|rung| if rung.has_survived() { rung.at > failed.at } else { rung.at < survived });
            let again: Vec<_> = odd.filter(|rung| rung.trials() < MAJORITY).map(Rung::again).collect();
            return if again.is_empty() { Err(Conclusion::Unclear(Doubt::Contradiction)) } else { Ok(again) };
        }
        match shortest {
            Some(failed) => self.narrow(failed, survived),
            None => self.climb(survived),
        }
    }

    /// Returns the rungs between the longest survivor and the shortest failure. If the failure is not confirmed,
    /// includes it again.
    fn narrow(&self, failed: &Rung, survived: Duration) -> Result<Vec<Duration>, Conclusion> {
        let mut rungs = Vec::new();
        if failed.failed.len() < 2 || failed.is_mixed() && failed.trials() < MAJORITY {
            rungs.push(failed.again());
        }
        let untried = first_rungs(self.range, self.connections);
        let untried = untried.into_iter().filter(|rung| *rung < failed.at && *rung > survived);
        let untried: Vec<_> =
            untried.filter(|rung| !self.rungs.iter().any(|tried| tried.at == *rung)).collect();
        let gap = failed.at.saturating_sub(survived);
        if survived.is_zero() {
            // Nothing survived. The user has chosen the shortest idle time.
            rungs.extend(untried);
        } else if gap > self.range.precision.saturating_add(LATENESS) {
            let wanted = ceiling(gap.div_duration_f64(self.range.precision));
            let room = self.connections.saturating_sub(rungs.len()).max(1);
            let count = wanted.clamp(1, room);
            // If there is room, several connections try each rung. This saves a round that repeats the failure, and
            // finds paths whose connections take different ways.
            let copies = room.checked_div(count).unwrap_or(1).clamp(1, MAJORITY);
            for rung in spread(survived, failed.at, count) {
                rungs.extend(std::iter::repeat_n(rung, copies));
            }
        }
        if rungs.is_empty() { Err(Conclusion::Forgets(main_failure(failed))) } else { Ok(rungs) }
    }

    /// Returns the next rungs, if no rung has failed. If none are left, returns the conclusion.
    fn climb(&self, survived: Duration) -> Result<Vec<Duration>, Conclusion> {
        if survived >= self.range.to {
            return Err(Conclusion::Keeps);
        }
        let limit = self.peer_limit();
        let untried = first_rungs(self.range, self.connections);
        let untried = untried.into_iter().filter(|rung| *rung > survived);
        let Some(limit) = limit else {
            return Ok(untried.collect());
        };
        let below: Vec<_> = untried.clone().filter(|rung| *rung < limit.saturating_sub(JITTER)).collect();
        if !below.is_empty() {
            return Ok(below);
        }
        match (self.closed_idle(), self.closed.len()) {
            (None, _) => Err(Conclusion::Unclear(Doubt::PeerTalks)),
            // One connection may have been closed for another reason.
            (Some(_), 1) => Ok(untried.take(1).collect()),
            _ => Err(Conclusion::ServerCloses),
        }
    }

    /// Returns the idle time beyond which the peer lets no connection be idle.
    fn peer_limit(&self) -> Option<Duration> {
        let talks = self.interrupted.iter().map(|sample| sample.idle).min();
        [talks, self.closed_idle()].into_iter().flatten().min()
    }

    /// Returns the shortest idle time at which the peer closed a connection, unless others lived longer.
    fn closed_idle(&self) -> Option<Duration> {
        let survived = self.longest_survivor();
        let consistent = |sample: &&Sample| sample.idle.saturating_add(JITTER) >= survived;
        self.closed.iter().filter(consistent).map(|sample| sample.idle).min()
    }

    /// Returns the numbers of the measurement so far.
    pub fn measured(&self) -> Measured {
        let failed = if self.conclusion == Some(Conclusion::Unclear(Doubt::Contradiction)) {
            // A policy must be short enough for all ways of the path.
            self.rungs.iter().filter(|rung| !rung.failed.is_empty()).min_by_key(|rung| rung.at)
        } else {
            self.shortest_failure()
        };
        let limit = failed.map_or(Duration::MAX, |failed| failed.at);
        let survived = self.rungs.iter().filter(|rung| rung.has_survived() && rung.at < limit);
        // A FIN, or a packet that the peer sent by itself, has also passed the path after the idle time.
        let passed = self.closed.iter().chain(&self.interrupted);
        let passed = passed.filter(|sample| sample.idle >= LEAST_IDLE && sample.idle < limit);
        Measured {
            survives: survived.flat_map(|rung| &rung.answered).chain(passed).map(|sample| sample.idle).max(),
            fails: failed.and_then(|rung| rung.failed.iter().map(|sample| sample.idle).min()),
            failure: failed.map(main_failure),
            is_unasked: failed.is_some_and(|rung| rung.unasked),
            server_closed: self.closed_idle(),
        }
    }
}

/// Returns the result of most failed trials of a rung.
fn main_failure(rung: &Rung) -> TrialResult {
    let resets = rung.failed.iter().filter(|sample| sample.result == TrialResult::Reset).count();
    if resets.saturating_mul(2) > rung.failed.len() { TrialResult::Reset } else { TrialResult::Silent }
}

/// Returns the rungs of the first round: both ends, and idle times in a constant ratio between them.
fn first_rungs(range: IdleTimes, connections: usize) -> Vec<Duration> {
    let IdleTimes { from, to, .. } = range;
    if from >= to {
        return vec![to];
    }
    let ratio = to.div_duration_f64(from);
    let steps = |ratio_of_two: f64| ceiling(ratio.ln() / ratio_of_two.ln()).max(1);
    let steps = steps(RATIO).min(connections.saturating_sub(1)).max(steps(WIDEST_RATIO));
    #[expect(clippy::cast_precision_loss, reason = "a few steps")]
    let part = |step: usize| step as f64 / steps as f64;
    let between = (1..steps).map(|step| rounded(from.mul_f64(ratio.powf(part(step)))));
    std::iter::once(from).chain(between).chain([to]).collect()
}

/// Returns `count` idle times, spread evenly between `low` and `high`.
fn spread(low: Duration, high: Duration, count: usize) -> Vec<Duration> {
    let gap = high.saturating_sub(low);
    #[expect(clippy::cast_precision_loss, reason = "a few rungs")]
    let part = |rung: usize| rung as f64 / count.saturating_add(1) as f64;
    (1..=count).map(|rung| rounded(low.saturating_add(gap.mul_f64(part(rung))))).collect()
}

/// Rounds to milliseconds, which are easier to read.
fn rounded(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Rounds up to a number of rungs.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn ceiling(number: f64) -> usize {
    number.ceil() as usize
}
