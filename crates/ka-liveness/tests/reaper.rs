//! Tests the reaper against a simple model, and with extreme times and descriptors.

use std::collections::BTreeMap;

use ka_liveness::{Reaper, ReaperError};
use libc::c_int;
use proptest::prelude::*;

/// A simple model of the reaper: the time and the order of the last touch of each connection.
#[derive(Default)]
struct Model {
    timeout_ms: u64,
    latest: u64,
    touches: u64,
    connections: BTreeMap<c_int, (u64, u64)>,
}

impl Model {
    fn touch(&mut self, fd: c_int, now_ms: u64) -> bool {
        if fd < 0 {
            return false;
        }
        self.latest = self.latest.max(now_ms);
        self.touches += 1;
        self.connections.insert(fd, (self.latest, self.touches));
        true
    }

    fn oldest(&self) -> Option<(c_int, u64)> {
        let (fd, (time, _)) = self.connections.iter().min_by_key(|(_, (_, order))| *order)?;
        Some((*fd, *time))
    }

    fn expired(&mut self, now_ms: u64, n: usize) -> Vec<c_int> {
        self.latest = self.latest.max(now_ms);
        let mut fds = vec![];
        while fds.len() < n
            && let Some((fd, time)) = self.oldest()
            && self.latest - time >= self.timeout_ms
        {
            self.connections.remove(&fd);
            fds.push(fd);
        }
        fds
    }

    fn next_due_ms(&self, now_ms: u64) -> Option<u64> {
        let (_, time) = self.oldest()?;
        Some(self.timeout_ms.saturating_sub(self.latest.max(now_ms) - time))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Touch(c_int),
    Forget(c_int),
    Expired(usize),
    /// The clock moves by this many milliseconds, forward or backward.
    Time(i64),
    /// This many descriptors from the first one on are touched.
    TouchRange(c_int, c_int),
    /// This many descriptors from the first one on are forgotten.
    ForgetRange(c_int, c_int),
}

/// Generates descriptors: often from a small range, so that they repeat, and also at the borders of pages and leaves,
/// and any number.
fn fd() -> impl Strategy<Value = c_int> {
    prop_oneof![
        4 => 0..8,
        2 => prop::sample::select(vec![0, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 131_071, 131_072]),
        1 => prop::sample::select(vec![-1, c_int::MIN, c_int::MAX, c_int::MAX - 1, c_int::MAX - 256, 1 << 30]),
        1 => any::<c_int>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => fd().prop_map(Step::Touch),
        3 => fd().prop_map(Step::Forget),
        3 => (0..12_usize).prop_map(Step::Expired),
        4 => prop_oneof![0..40_i64, -40..40_i64, any::<i64>()].prop_map(Step::Time),
        1 => (0..1000, 0..300).prop_map(|(from, count)| Step::TouchRange(from, count)),
        1 => (0..1000, 0..600).prop_map(|(from, count)| Step::ForgetRange(from, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reaper_behaves_like_the_model(
        timeout_ms in prop_oneof![1..50_u32, any::<u32>().prop_map(|timeout| timeout.max(1)), Just(u32::MAX)],
        start in prop_oneof![Just(0), any::<u64>(), Just(u64::MAX - 20)],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut reaper = Reaper::new(timeout_ms).unwrap();
        let mut model = Model { timeout_ms: timeout_ms.into(), ..Model::default() };
        let mut now = start;
        for step in steps {
            match step {
                Step::Touch(fd) => {
                    let answer = if model.touch(fd, now) { Ok(()) } else { Err(ReaperError::BadDescriptor(fd)) };
                    prop_assert_eq!(reaper.touch(fd, now), answer);
                }
                Step::Forget(fd) => {
                    prop_assert_eq!(reaper.forget(fd), model.connections.remove(&fd).is_some());
                }
                Step::Expired(n) => {
                    let fds: Vec<_> = reaper.expired(now).take(n).collect();
                    prop_assert_eq!(fds, model.expired(now, n));
                }
                Step::Time(by) => now = now.saturating_add_signed(by),
                Step::TouchRange(from, count) => for fd in from..from + count {
                    reaper.touch(fd, now).unwrap();
                    model.touch(fd, now);
                }
                Step::ForgetRange(from, count) => for fd in from..from + count {
                    prop_assert_eq!(reaper.forget(fd), model.connections.remove(&fd).is_some());
                }
            }
            prop_assert_eq!(reaper.len(), model.connections.len());
            prop_assert_eq!(reaper.is_empty(), model.connections.is_empty());
            for time in [now, 0, now.saturating_add(timeout_ms.into()), u64::MAX] {
                prop_assert_eq!(reaper.next_due_ms(time).map(u64::from), model.next_due_ms(time));
            }
        }
        // At the latest possible time, the connections that are due are returned in order. The others can be forgotten.
        let fds: Vec<_> = reaper.expired(u64::MAX).collect();
        prop_assert_eq!(fds, model.expired(u64::MAX, usize::MAX));
        for fd in model.connections.keys() {
            prop_assert!(reaper.contains(*fd) && reaper.forget(*fd));
        }
        prop_assert!(reaper.is_empty());
    }
}

#[test]
fn a_timeout_of_0_is_rejected() {
    assert_eq!(Reaper::new(0).unwrap_err(), ReaperError::NoTimeout);
    assert_eq!(Reaper::new(1).unwrap().timeout_ms(), 1);
}

#[test]
fn a_connection_is_due_exactly_when_its_timeout_has_passed() {
    let mut reaper = Reaper::new(1000).unwrap();
    reaper.touch(3, 5).unwrap();
    assert_eq!(reaper.next_due_ms(5), Some(1000));
    assert_eq!(reaper.next_due_ms(1004), Some(1));
    assert_eq!(reaper.expired(1004).next(), None);
    assert_eq!(reaper.next_due_ms(1005), Some(0));
    assert_eq!(reaper.expired(1005).collect::<Vec<_>>(), [3]);
    assert_eq!(reaper.next_due_ms(1005), None);
}

/// Times near `u64::MAX` do not overflow. A connection that is touched there is due after that.
#[test]
fn times_near_the_maximum_do_not_overflow() {
    let mut reaper = Reaper::new(u32::MAX).unwrap();
    reaper.touch(3, u64::MAX - 1).unwrap();
    reaper.touch(4, u64::MAX).unwrap();
    assert_eq!(reaper.expired(u64::MAX).next(), None);
    assert_eq!(reaper.next_due_ms(u64::MAX), Some(u32::MAX - 1));
    let mut reaper = Reaper::new(1).unwrap();
    reaper.touch(3, u64::MAX - 1).unwrap();
    assert_eq!(reaper.expired(u64::MAX).collect::<Vec<_>>(), [3]);
}

#[test]
fn next_due_ms_does_not_advance_the_clock() {
    let mut reaper = Reaper::new(100).unwrap();
    reaper.touch(3, 0).unwrap();
    assert_eq!(reaper.next_due_ms(1_000_000), Some(0));
    reaper.touch(4, 50).unwrap();
    assert_eq!(reaper.next_due_ms(60), Some(40));
    // `expired` advances the clock, so the following touch is at 120, although it passes 60.
    assert_eq!(reaper.expired(120).collect::<Vec<_>>(), [3]);
    reaper.touch(4, 60).unwrap();
    assert_eq!(reaper.next_due_ms(0), Some(100));
}

#[test]
fn reaper_is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Reaper>();
}

#[test]
fn debug_output_and_messages_are_as_documented() {
    let mut reaper = Reaper::new(30_000).unwrap();
    reaper.touch(3, 5).unwrap();
    assert_eq!(reaper.timeout_ms(), 30_000);
    assert_eq!(format!("{reaper:?}"), "Reaper { timeout_ms: 30000, len: 1, latest: 5, .. }");
    assert_eq!(ReaperError::NoTimeout.to_string(), "the timeout is 0 ms: it must be 1 ms or more");
    assert_eq!(ReaperError::BadDescriptor(-1).to_string(), "-1 is not a descriptor: it must be 0 or more");
    assert_eq!(ReaperError::OutOfMemory.to_string(), "no memory for one more connection");
}
