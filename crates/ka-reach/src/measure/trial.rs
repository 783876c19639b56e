//! One trial: a connection stays idle for a time, and is then probed. This module times the probes, and makes no system
//! calls.
//!
//! The idle time ends at the moment when the first probe really left, not when it was due. If the first probe is
//! lost and a later one is answered, the connection has survived at least the idle time before the first one.

use std::time::Duration;

use serde::Serialize;

/// The result of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialResult {
    /// The peer answered a probe, or sent something itself after an idle time.
    Answered,
    /// No probe was answered.
    Silent,
    /// A reset (RST) ended the connection.
    Reset,
    /// The peer closed the connection (FIN) while it was idle.
    Closed,
}

impl TrialResult {
    /// All results.
    pub const ALL: [Self; 4] = [Self::Answered, Self::Silent, Self::Reset, Self::Closed];

    /// Returns the name of the result in the output and in the protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Silent => "silent",
            Self::Reset => "reset",
            Self::Closed => "closed",
        }
    }
}

/// The record of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The idle time that was planned.
    pub rung: Duration,
    /// The idle time before the first probe, or before the connection ended without a probe.
    pub idle: Duration,
    /// The result.
    pub result: TrialResult,
    /// The time from the first probe to the answer or to the reset. `None` if there was no probe, or no answer.
    pub after: Option<Duration>,
}

impl Sample {
    /// Returns whether the connection was reset although no probe was sent.
    pub fn is_unasked_reset(&self) -> bool {
        self.result == TrialResult::Reset && self.after.is_none()
    }

    /// Returns whether the peer sent packets by itself, so that the connection was never idle for the planned time.
    pub fn is_interrupted_by_peer(&self) -> bool {
        self.result == TrialResult::Answered && self.after.is_none()
    }
}

/// The number of unanswered probes after which a trial is silent.
///
/// On a path that loses 30 % of the packets in each direction, a probe and its answer get through with 0.7 · 0.7 =
/// 49 %, so a probe stays unanswered with 51 %. Then n probes in a row stay unanswered with 0.51^n, and 0.51^11 =
/// 0.0006 is the first power below 0.001. A rung must fail twice before it counts, so a false failure of a rung has a
/// chance of less than one in a million.
pub const PROBES: u32 = 11;

/// The shortest idle time. The kernel sends no keepalive probe on a connection that has been idle for less than 1 s.
pub const LEAST_IDLE: Duration = Duration::from_millis(1050);

/// The number of packets of the peer that end a trial, if each has ended an idle time of [`LEAST_IDLE`] or more.
const BREAKS: u32 = 3;

/// The time for which the peer may send packets without an idle time of [`LEAST_IDLE`] between them. The answer to a
/// request may take a while.
const TALK: Duration = Duration::from_secs(30);

/// A connection that is idle or being probed.
#[derive(Debug)]
pub struct IdleTrial {
    rung: Duration,
    round_trip: Duration,
    /// The time of the last packet, sent or received.
    quiet_since: Duration,
    /// The number of packets that have ended an idle time of [`LEAST_IDLE`] or more.
    breaks: u32,
    /// The time of the last such packet.
    talks_since: Duration,
    /// The longest idle time that a packet has ended.
    longest: Duration,
    first_probe: Option<Duration>,
    last_probe: Duration,
    probes: u32,
}

/// The next step of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialStep {
    /// Wait until this time.
    Wait(Duration),
    /// Send a probe.
    Probe,
    /// The trial is over.
    End(Sample),
}

impl IdleTrial {
    /// Begins a trial. The last packet was sent or received at `now`. `round_trip` is the round-trip time of the
    /// connection. All times are times of one clock of the caller.
    pub const fn new(rung: Duration, round_trip: Duration, now: Duration) -> Self {
        Self {
            rung,
            round_trip,
            quiet_since: now,
            breaks: 0,
            talks_since: now,
            longest: Duration::ZERO,
            first_probe: None,
            last_probe: now,
            probes: 0,
        }
    }

    /// Returns whether a probe has been sent.
    pub const fn is_probed(&self) -> bool {
        self.first_probe.is_some()
    }

    /// Returns the idle time, until the first probe or until now.
    pub fn idle(&self, now: Duration) -> Duration {
        self.first_probe.unwrap_or(now).saturating_sub(self.quiet_since)
    }

    /// Records a packet that is neither a probe of this end nor its answer. The idle time starts again.
    pub fn packet_seen(&mut self, now: Duration) {
        if self.is_probed() {
            return;
        }
        let idle = self.idle(now);
        if idle >= LEAST_IDLE {
            self.breaks = self.breaks.saturating_add(1);
            self.talks_since = now;
        }
        self.longest = self.longest.max(idle);
        self.quiet_since = now;
    }

    /// Records that a probe left.
    pub fn probe_left(&mut self, now: Duration) {
        self.first_probe.get_or_insert(now);
        self.last_probe = now;
        self.probes = self.probes.saturating_add(1);
    }

    /// Returns the next step.
    pub fn next(&self, now: Duration) -> TrialStep {
        let talk = self.quiet_since.saturating_sub(self.talks_since);
        if self.breaks >= BREAKS || !self.is_probed() && talk >= TALK {
            let idle = self.longest;
            return TrialStep::End(Sample {
                rung: self.rung,
                idle,
                result: TrialResult::Answered,
                after: None,
            });
        }
        let due = match self.first_probe {
            None => self.quiet_since.saturating_add(self.rung.max(LEAST_IDLE)),
            Some(_) => self.last_probe.saturating_add(self.patience()),
        };
        if now < due {
            TrialStep::Wait(due)
        } else if self.probes < PROBES {
            TrialStep::Probe
        } else {
            TrialStep::End(self.end(TrialResult::Silent, now))
        }
    }

    /// Returns the record of a trial that ends with this result.
    pub fn end(&self, result: TrialResult, now: Duration) -> Sample {
        let is_reply = matches!(result, TrialResult::Answered | TrialResult::Reset);
        let after = self.first_probe.filter(|_| is_reply).map(|sent| now.saturating_sub(sent));
        Sample { rung: self.rung, idle: self.idle(now), result, after }
    }

    /// Returns the time to wait for the answer to the latest probe: two round trips, or four for the last of all
    /// probes. A radio link may need seconds to wake up, so the probes together wait for more than 5 s.
    fn patience(&self) -> Duration {
        let (trips, least) = if self.probes < PROBES { (2, 500) } else { (4, 1000) };
        let least = Duration::from_millis(least);
        self.round_trip.saturating_mul(trips).clamp(least, least.saturating_mul(6))
    }
}

#[cfg(test)]
mod tests {
    use super::{IdleTrial, PROBES, TrialResult, TrialStep};
    use std::time::Duration;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_idle_time_ends_when_the_first_probe_leaves() {
        let mut trial = IdleTrial::new(s(10), Duration::ZERO, s(100));
        assert_eq!(trial.next(s(101)), TrialStep::Wait(s(110)));
        assert_eq!(trial.next(s(113)), TrialStep::Probe);
        trial.probe_left(s(113));
        trial.probe_left(s(114));
        let sample = trial.end(TrialResult::Answered, s(115));
        assert_eq!((sample.idle, sample.after), (s(13), Some(s(2))));
    }

    #[test]
    fn a_packet_restarts_the_idle_time() {
        let mut trial = IdleTrial::new(s(10), Duration::ZERO, s(100));
        trial.packet_seen(s(107));
        assert_eq!(trial.next(s(112)), TrialStep::Wait(s(117)));
        assert_eq!(trial.end(TrialResult::Closed, s(112)).idle, s(5));
    }

    #[test]
    fn a_peer_that_keeps_sending_ends_the_trial_with_its_longest_idle_time() {
        let mut trial = IdleTrial::new(s(60), Duration::ZERO, s(0));
        for time in [20, 45, 65] {
            trial.packet_seen(s(time));
        }
        let TrialStep::End(sample) = trial.next(s(65)) else { panic!("{trial:?}") };
        assert!(sample.is_interrupted_by_peer());
        assert_eq!(sample.idle, s(25));
    }

    #[test]
    fn a_peer_that_never_pauses_ends_the_trial() {
        for every in [1, 250, 1000] {
            let mut trial = IdleTrial::new(s(2), Duration::ZERO, s(0));
            let times = (every..).step_by(usize::try_from(every).unwrap()).map(Duration::from_millis);
            let end = times.take_while(|time| *time < s(120)).find_map(|time| {
                trial.packet_seen(time);
                let TrialStep::End(sample) = trial.next(time) else { return None };
                Some((sample, time))
            });
            let (sample, time) = end.unwrap();
            assert!(sample.is_interrupted_by_peer(), "{sample:?}");
            assert_eq!((sample.idle, time), (Duration::from_millis(every), s(30)));
        }
    }

    #[test]
    fn silence_needs_all_probes_and_time_for_the_last_answer() {
        for round_trip in [0, 300, 3000] {
            let round_trip = Duration::from_millis(round_trip);
            let mut trial = IdleTrial::new(s(2), round_trip, s(0));
            let mut now = s(2);
            for _ in 0..PROBES {
                assert_eq!(trial.next(now), TrialStep::Probe);
                trial.probe_left(now);
                let TrialStep::Wait(until) = trial.next(now) else { panic!("{trial:?}") };
                let wait = until.saturating_sub(now);
                assert!(wait >= Duration::from_millis(500).max(round_trip), "{round_trip:?}");
                now = until;
            }
            assert!(matches!(trial.next(now), TrialStep::End(end) if end.result == TrialResult::Silent));
        }
        assert!(0.51_f64.powi(PROBES.try_into().unwrap()) < 1e-3);
        assert!(0.51_f64.powi((PROBES - 1).try_into().unwrap()) > 1e-3);
    }
}
