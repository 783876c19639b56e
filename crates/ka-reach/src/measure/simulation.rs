//! Tests of the ladder on simulated paths, in simulated time.

#![allow(clippy::indexing_slicing, clippy::unchecked_time_subtraction, reason = "a panic fails the test")]

use std::time::Duration;

use super::ladder::{IdleTimes, Ladder};
use super::trial::{IdleTrial, Sample, TrialResult, TrialStep};
use super::verdict::{Conclusion, Doubt, Measured};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const RANGE: IdleTimes = IdleTimes { from: s(10), to: s(600), precision: s(5) };
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// A path to a server. The default keeps all connections.
#[derive(Clone, Default)]
struct SimulatedPath {
    /// The idle times after which the ways of the path forget connections. A connection takes one of them at random.
    forgets: Vec<Duration>,
    resets: bool,
    /// The share of the packets that are lost, in each direction.
    loss: f64,
    /// The idle time after which the server closes connections.
    closes: Option<Duration>,
    /// The idle time after which a middlebox resets connections by itself.
    resets_unasked: Option<Duration>,
    /// The time between two packets that the server sends by itself.
    talks: Option<Duration>,
    /// A period of the measurement in which all packets are lost.
    outage: Option<(Duration, Duration)>,
    random: u64,
}

impl SimulatedPath {
    /// xorshift64
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[expect(clippy::cast_precision_loss, reason = "a random number")]
        let random = (self.random >> 11) as f64;
        random / 2_f64.powi(53)
    }

    fn is_lost(&mut self, now: Duration) -> bool {
        self.outage.is_some_and(|(from, to)| now > from && now < to) || self.random() < self.loss
    }

    /// Runs a trial. Returns its record and the time of its end.
    fn run(&mut self, rung: Duration, start: Duration) -> (Sample, Duration) {
        let mut trial = IdleTrial::new(rung, ROUND_TRIP, start);
        let ends = [(self.closes, TrialResult::Closed), (self.resets_unasked, TrialResult::Reset)];
        for (idle, result) in ends {
            if let Some(idle) = idle.filter(|idle| *idle < rung) {
                let end = start + idle + self.late();
                return (trial.end(result, end), end);
            }
        }
        let way = self.random();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let way = (way * self.forgets.len() as f64) as usize;
        let forgets = self.forgets.get(way).copied().unwrap_or(Duration::MAX);
        let (mut now, mut passed) = (start, start);
        loop {
            match trial.next(now) {
                TrialStep::Wait(until) => {
                    match self.talks.map(|every| trial.idle(now).max(Duration::ZERO) + every) {
                        Some(talk) if !trial.is_probed() && now + talk < until => {
                            now += talk;
                            passed = now;
                            trial.packet_seen(now);
                        }
                        _ => now = until,
                    }
                }
                TrialStep::Probe => {
                    now += self.late();
                    trial.probe_left(now);
                    let knows = now - passed <= forgets;
                    if self.is_lost(now) {
                        continue;
                    }
                    if knows {
                        passed = now;
                    }
                    let result = if knows { TrialResult::Answered } else { TrialResult::Reset };
                    if (knows || self.resets) && !self.is_lost(now) {
                        return (trial.end(result, now + ROUND_TRIP), now + ROUND_TRIP);
                    }
                }
                TrialStep::End(sample) => return (sample, now),
            }
        }
    }

    /// Timers are late by a few milliseconds.
    fn late(&mut self) -> Duration {
        Duration::from_secs_f64(self.random() / 100.0)
    }
}

/// Measures a path. Returns the verdict, the time, and the number of connections.
fn measure(
    range: IdleTimes,
    connections: usize,
    path: &SimulatedPath,
) -> (Conclusion, Measured, Duration, usize) {
    let mut path = path.clone();
    path.random = path.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut ladder = Ladder::new(range, connections);
    let (mut now, mut count) = (s(0), 0);
    let mut running: Vec<(Duration, Sample, Duration)> = Vec::new();
    loop {
        while running.len() < connections
            && let Some(rung) = ladder.take()
        {
            let (sample, end) = path.run(rung, now);
            running.push((now, sample, end));
            count += 1;
        }
        if !running.iter().any(|(_, sample, _)| ladder.awaits(sample.rung)) {
            ladder.plan();
            if let Some(conclusion) = ladder.conclusion() {
                return (conclusion, ladder.measured(), now, count);
            }
            if running.len() < connections {
                continue;
            }
        }
        let first = (0..running.len()).min_by_key(|place| running[*place].2).unwrap();
        let (_, sample, end) = running.remove(first);
        now = end;
        ladder.record(sample);
        running.retain(|(start, sample, _)| !ladder.is_moot(sample.rung, now - *start));
    }
}

#[test]
fn a_path_that_keeps_is_found_within_the_longest_idle_time() {
    let (conclusion, measured, took, count) = measure(RANGE, 12, &SimulatedPath::default());
    assert_eq!((conclusion, count), (Conclusion::Keeps, 12));
    assert!(measured.survives.unwrap() >= s(600) && measured.fails.is_none());
    assert!(took < s(602), "{took:?}");
}

#[test]
fn the_timeout_is_found_to_the_precision() {
    for (from, to, precision) in [(10, 600, 5), (4, 20, 1), (10, 6000, 5), (1, 30_000, 30), (100, 400, 60)] {
        let range = IdleTimes { from: s(from), to: s(to), precision: s(precision) };
        for connections in [1, 2, 3, 7, 12] {
            for part in [1.3, 1.9, 3.1, 3.9] {
                for resets in [false, true] {
                    let timeout = s(from).mul_f64(part);
                    let path = SimulatedPath { forgets: vec![timeout], resets, ..SimulatedPath::default() };
                    let (conclusion, measured, took, count) = measure(range, connections, &path);
                    let how = if resets { TrialResult::Reset } else { TrialResult::Silent };
                    let context =
                        format!("{range:?} {connections} {timeout:?}: {measured:?} {took:?} {count}");
                    assert_eq!(conclusion, Conclusion::Forgets(how), "{context}");
                    let (survives, fails) = (measured.survives.unwrap(), measured.fails.unwrap());
                    assert!(survives <= timeout && timeout < fails, "{context}");
                    assert!(fails - survives <= s(precision) + Duration::from_millis(50), "{context}");
                    let most = if connections == 12 { timeout * 5 + s(40) } else { timeout * 30 + s(200) };
                    assert!(took < most, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_path_that_forgets_sooner_than_the_shortest_rung_has_no_survivor() {
    let path = SimulatedPath { forgets: vec![s(5)], ..SimulatedPath::default() };
    let (conclusion, measured, ..) = measure(RANGE, 12, &path);
    assert_eq!(conclusion, Conclusion::Forgets(TrialResult::Silent));
    assert_eq!((measured.survives, measured.fails.map(|fails| fails.as_secs())), (None, Some(10)));
}

#[test]
fn a_path_that_loses_30_percent_causes_no_false_silence() {
    for random in 0..200 {
        let path = SimulatedPath { loss: 0.3, random, ..SimulatedPath::default() };
        assert_eq!(measure(RANGE, 12, &path).0, Conclusion::Keeps, "{random}");
        let path = SimulatedPath { loss: 0.3, random, forgets: vec![s(90)], ..SimulatedPath::default() };
        let (conclusion, measured, ..) = measure(RANGE, 12, &path);
        assert_eq!(conclusion, Conclusion::Forgets(TrialResult::Silent), "{random}");
        let (survives, fails) = (measured.survives.unwrap(), measured.fails.unwrap());
        // If the first probes are lost before the middlebox, the connection is forgotten a little later than the first
        // probe.
        assert!(survives <= s(90) && fails > s(87) && fails - survives < s(6), "{measured:?}");
    }
}

#[test]
fn an_outage_does_not_change_the_verdict() {
    for start in (9..590).step_by(13) {
        let outage = Some((s(start), s(start + 12)));
        let path = SimulatedPath { outage, ..SimulatedPath::default() };
        assert_eq!(measure(RANGE, 12, &path).0, Conclusion::Keeps, "{start}");
    }
}

#[test]
fn a_server_that_closes_limits_the_measurement() {
    let path = SimulatedPath { closes: Some(s(60)), ..SimulatedPath::default() };
    let (conclusion, measured, took, _) = measure(RANGE, 12, &path);
    assert_eq!(conclusion, Conclusion::ServerCloses);
    assert_eq!(measured.server_closed.map(|closed| closed.as_secs()), Some(60));
    assert_eq!(measured.survives.map(|survives| survives.as_secs()), Some(60));
    assert!(took < s(62), "{took:?}");
    for connections in [1, 2] {
        let (conclusion, measured, ..) = measure(RANGE, connections, &path);
        assert_eq!((conclusion, measured.survives.is_some()), (Conclusion::ServerCloses, true));
    }
    // The path forgets before the server closes.
    let path = SimulatedPath { forgets: vec![s(40)], ..path };
    let (conclusion, measured, ..) = measure(RANGE, 12, &path);
    assert_eq!(conclusion, Conclusion::Forgets(TrialResult::Silent));
    assert!((s(35)..=s(40)).contains(&measured.survives.unwrap()));
}

#[test]
fn resets_without_a_probe_are_an_idle_timeout() {
    for connections in [1, 12] {
        let path = SimulatedPath { resets_unasked: Some(s(60)), ..SimulatedPath::default() };
        let (conclusion, measured, ..) = measure(RANGE, connections, &path);
        assert_eq!(conclusion, Conclusion::Forgets(TrialResult::Reset));
        assert!(measured.is_unasked && measured.fails.unwrap().as_secs() == 60);
        assert!((s(54)..=s(60)).contains(&measured.survives.unwrap()), "{measured:?}");
    }
}

/// The ways of a path that balances its load cannot be chosen, and each connection stays on one way.
#[test]
fn ways_with_different_timeouts_are_unclear() {
    let (mut unclear, mut wrong) = (0, 0);
    for random in 0..200 {
        let path = SimulatedPath { forgets: vec![s(20), s(5000)], random, ..SimulatedPath::default() };
        let (conclusion, measured, ..) = measure(RANGE, 12, &path);
        match conclusion {
            Conclusion::Unclear(Doubt::Contradiction) => unclear += 1,
            // By chance, the results agree with the shortest timeout.
            Conclusion::Forgets(_) if measured.survives < Some(s(20)) => {}
            _ => wrong += 1,
        }
    }
    assert!(unclear >= 120 && wrong <= 20, "{unclear} unclear, {wrong} wrong, of 200");
}

#[test]
fn a_server_that_sends_packets_by_itself_is_named() {
    let path = SimulatedPath { talks: Some(s(50)), ..SimulatedPath::default() };
    let (conclusion, measured, took, _) = measure(RANGE, 12, &path);
    assert_eq!(conclusion, Conclusion::Unclear(Doubt::PeerTalks));
    assert_eq!(measured.survives.map(|survives| survives.as_secs()), Some(50));
    assert!(took < s(160), "{took:?}");
    // The server never pauses for as long as the shortest idle time of keepalive.
    let path = SimulatedPath { talks: Some(s(1)), ..SimulatedPath::default() };
    let (conclusion, measured, took, _) = measure(RANGE, 12, &path);
    assert_eq!(conclusion, Conclusion::Unclear(Doubt::PeerTalks));
    assert_eq!(measured.survives, None);
    assert!(took < s(60), "{took:?}");
}

#[test]
fn a_server_that_resets_at_once_is_not_a_path_that_forgets() {
    for connections in [1, 12] {
        let resets_unasked = Some(Duration::from_millis(100));
        let path = SimulatedPath { resets_unasked, ..SimulatedPath::default() };
        let (conclusion, measured, ..) = measure(RANGE, connections, &path);
        assert_eq!(conclusion, Conclusion::ServerCloses);
        assert_eq!((measured.survives, measured.fails), (None, None));
    }
}
