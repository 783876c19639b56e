//! Tests plans: each plan meets its time, no slower plan would, and an impossible time is an error.

use ka_core::{
    Config, Detection, PRESETS, PlanError, Retransmission, RtoMax, Timer, UserTimeout, plan_detect,
    plan_path, preset,
};

/// Computes the worst case in another way than the library. Each timer is late by 8/63 of its length and one tick. The
/// sum is exact and then rounded up to milliseconds.
fn worst_ms(seconds: u64, timers: u64) -> u64 {
    let sixty_thirds = 1000 * seconds * 63 + 1000 * seconds * 8;
    sixty_thirds / 63 + u64::from(!sixty_thirds.is_multiple_of(63)) + 10 * timers
}

fn values(config: Config) -> (u64, u64, u64) {
    assert_eq!(config.enabled(), Some(true));
    assert_eq!((config.user_timeout(), config.rto_max()), (UserTimeout::Keep, RtoMax::Keep));
    let value = |value: Option<i32>| u64::try_from(value.unwrap()).unwrap();
    (value(config.idle()), value(config.intvl()), value(config.cnt()))
}

#[test]
fn a_path_plan_has_the_longest_idle_time_that_allows_a_second_probe() {
    for path in 1..=36_000_u32 {
        let wanted = u64::from(path) * 1000;
        let intvl = (u64::from(path) / 10).clamp(1, 30);
        match plan_path(path) {
            Ok(config) => {
                let (idle, got, cnt) = values(config);
                assert_eq!((got, cnt), (intvl, 5), "{path} s");
                assert!(intvl <= idle, "{path} s: {config} has an interval longer than its idle time");
                assert!(worst_ms(idle + intvl, 2) <= wanted, "{path} s: {config} is late");
                assert!(
                    idle == 32767 || worst_ms(idle + 1 + intvl, 2) > wanted,
                    "{path} s: {config} could have a longer idle time"
                );
            }
            Err(error) => {
                assert_eq!(error, PlanError::TooShort { least: 3 });
                assert!(worst_ms(1 + intvl, 2) > wanted, "{path} s is possible");
            }
        }
    }
    assert_eq!(values(plan_path(350).unwrap()), (280, 30, 5));
    assert_eq!(plan_path(0), Err(PlanError::TooShort { least: 3 }));
    assert_eq!(values(plan_path(3).unwrap()), (1, 1, 5));
    assert_eq!(values(plan_path(u32::MAX).unwrap()), (32767, 30, 5));
}

#[test]
fn a_detection_plan_uses_the_time_without_exceeding_it() {
    let close = 1..=400_000_u32;
    let far = (0..5_000_u32).map(|n| 400_000 + n * 858_993);
    for within in close.chain(far).chain([u32::MAX]) {
        let wanted = u64::from(within);
        // The library divides. This searches.
        let whole = |timers| {
            let mut seconds = wanted / 1127;
            while worst_ms(seconds + 1, timers) <= wanted {
                seconds += 1;
            }
            while seconds > 0 && worst_ms(seconds, timers) > wanted {
                seconds -= 1;
            }
            seconds
        };
        let expected = [(3, 4), (2, 3), (1, 2)].into_iter().find_map(|(cnt, least)| {
            let seconds = whole(cnt + 1);
            (seconds >= least).then(|| {
                let intvl = (seconds / (2 * cnt)).clamp(1, 32767);
                ((seconds - intvl * cnt).min(32767), intvl, cnt)
            })
        });
        match plan_detect(within) {
            Ok(config) => {
                assert_eq!(Some(values(config)), expected, "{within} ms");
                let (idle, intvl, _) = values(config);
                assert!(intvl <= idle, "{within} ms: {config} has an interval longer than its idle time");
                assert!(config.detection().unwrap().worst_ms <= wanted, "{within} ms: {config} is late");
            }
            Err(error) => {
                assert_eq!(error, PlanError::TooShort { least: 2274 });
                assert_eq!(expected, None, "{within} ms is possible");
            }
        }
    }
    assert_eq!(plan_detect(0), Err(PlanError::TooShort { least: 2274 }));
    assert!(plan_detect(2273).is_err() && plan_detect(2274).is_ok());
}

#[test]
fn detection_time_follows_the_user_timeout() {
    let detection = |text: &str| {
        let config = ka_core::parse(text.as_bytes()).unwrap();
        config.detection().map(|detection| (detection.typical_ms, detection.worst_ms))
    };
    let plain = |seconds, timers| Ok((1000 * seconds, worst_ms(seconds, timers)));
    assert_eq!(detection("60,10,5"), plain(110, 6));
    assert_eq!(detection("idle=60,intvl=10,cnt=5,user_timeout=0"), plain(110, 6));
    assert_eq!(detection("idle=60,intvl=10,cnt=5,user_timeout=auto"), plain(110, 6));
    // Measured: a connection with 5,2,5 and a user timeout of 1000 ms ends after 7 s; with 1,1,2 and 10000 ms, after
    // 10 s.
    assert_eq!(detection("idle=5,intvl=2,cnt=5,user_timeout=1000"), plain(7, 2));
    assert_eq!(detection("idle=1,intvl=1,cnt=2,user_timeout=10000"), plain(10, 10));
    assert_eq!(detection("idle=1,intvl=1,cnt=2,user_timeout=10001"), plain(11, 11));
    assert_eq!(detection("idle=32767,intvl=32767,cnt=127"), plain(32767 * 128, 128));
    // Measured: a connection whose peer dies right after it has answered a probe ends after 9.9 s.
    assert_eq!(detection("1,5,1"), Ok((6000, worst_ms(10, 2))));
    for incomplete in
        ["idle=60", "off,idle=60,intvl=10,cnt=5", "keep,idle=60,intvl=10,cnt=5", "intvl=1,cnt=1"]
    {
        assert_eq!(detection(incomplete), Err(PlanError::Incomplete), "{incomplete}");
    }
}

/// Adds up the times between retransmissions one by one. The library has a closed form. Like the kernel, the sum
/// doubles the time as long as the doubled time is at most the longest one, and then uses the longest one.
fn retransmission_ms(retries: u8, rto_max: u64) -> u64 {
    let mut wait = 200;
    let mut total = wait;
    for _ in 0..retries {
        wait = if 2 * wait <= rto_max { 2 * wait } else { rto_max };
        total += wait;
    }
    total
}

fn data_time(config: Config, retries: u8, rto_max_ms: i32) -> Result<(u64, u64), PlanError> {
    let time = config.data_time(Retransmission { retries, rto_max_ms });
    time.map(|Detection { typical_ms, worst_ms }| (typical_ms, worst_ms))
}

fn with_rto_max(config: Config, milliseconds: i32) -> Config {
    config.with_rto_max(RtoMax::Milliseconds(milliseconds)).unwrap()
}

#[test]
fn data_time_is_the_sum_of_the_times_between_retransmissions() {
    let around_each_doubling =
        (0..=9).flat_map(|k| [-1, 0, 1].map(|near| (200 << k) + near)).chain((1000..=120_000).step_by(7));
    let limits: Vec<i32> =
        around_each_doubling.filter(|value| Timer::RtoMax.accepts(*value)).chain([120_000]).collect();
    assert!(limits.contains(&1599) && limits.contains(&1600) && limits.contains(&102_401));
    for retries in (0..=32).chain([100, 254, 255]) {
        for rto_max in &limits {
            let expected = retransmission_ms(retries, u64::from(rto_max.unsigned_abs()));
            let times = Ok((expected, expected + u64::from(rto_max.unsigned_abs())));
            // The value of the policy overrides that of the system. Without one, the system's is used.
            let config = with_rto_max(Config::KEEP, *rto_max);
            assert_eq!(data_time(config, retries, 120_000), times, "{retries} {rto_max}");
            assert_eq!(data_time(Config::KEEP, retries, *rto_max), times, "{retries} {rto_max}");
        }
    }
    // The kernel's documentation has 924.6 s for the defaults. Measured: data in flight on a silent path ends the
    // connection after 15.3 s with 1000 ms, and after 27.6 s with 2000 ms, which is less than the worst case.
    assert_eq!(data_time(Config::KEEP, 15, 120_000), Ok((924_600, 1_044_600)));
    for (rto_max, typical, measured) in [(1000, 14_400, 15_300), (2000, 27_000, 27_600)] {
        let (typical_ms, worst_ms) = data_time(with_rto_max(Config::KEEP, rto_max), 15, 120_000).unwrap();
        assert_eq!(typical_ms, typical);
        assert!((typical_ms..=worst_ms).contains(&measured), "{rto_max}: {typical_ms}..{worst_ms}");
    }
}

#[test]
fn data_time_follows_the_user_timeout() {
    let policy = with_rto_max(Config::new(60, 10, 5).unwrap(), 2000);
    for (user_timeout, times) in [
        (UserTimeout::Milliseconds(0), (27_000, 29_000)),
        (UserTimeout::Milliseconds(1), (1, 2001)),
        (UserTimeout::Milliseconds(i32::MAX), (2_147_483_647, 2_147_485_647)),
        (UserTimeout::Auto, (110_000, 112_000)),
    ] {
        assert_eq!(data_time(policy.with_user_timeout(user_timeout).unwrap(), 15, 120_000), Ok(times));
    }
    // Keepalive has no effect on retransmission.
    for enabled in [None, Some(false)] {
        assert_eq!(data_time(policy.with_enabled(enabled), 15, 120_000), Ok((27_000, 29_000)));
    }
    let timers = [Timer::Idle, Timer::Intvl, Timer::Cnt];
    for timer in timers {
        let policy = policy.without(timer);
        assert_eq!(data_time(policy, 15, 120_000), Ok((27_000, 29_000)));
        for auto in [
            policy.with_user_timeout(UserTimeout::Auto).unwrap(),
            policy.with_rto_max(RtoMax::Auto).unwrap(),
            policy
                .with_rto_max(RtoMax::Auto)
                .unwrap()
                .with_user_timeout(UserTimeout::Milliseconds(9))
                .unwrap(),
        ] {
            assert_eq!(data_time(auto, 15, 120_000), Err(PlanError::Incomplete), "{auto}");
            assert_eq!(auto.resolved(15), auto);
        }
    }
}

/// Compares with a search over all values, from the largest to the smallest.
#[test]
fn an_automatic_rto_max_is_the_largest_that_is_in_time() {
    let policy = |idle, intvl, cnt| Config::new(idle, intvl, cnt).unwrap();
    let mut chosen = std::collections::BTreeSet::new();
    for retries in [0, 1, 2, 3, 5, 7, 8, 9, 10, 15, 16, 64, 255] {
        for config in [
            policy(1, 1, 1),
            policy(3, 2, 2),
            policy(10, 1, 4),
            policy(10, 5, 1),
            policy(14, 4, 3),
            policy(26, 1, 1),
            policy(60, 10, 5),
            policy(280, 30, 5),
            policy(600, 75, 9),
            policy(7200, 75, 9),
            policy(32767, 32767, 127),
        ] {
            let wanted = u64::try_from(config.detection_ms().unwrap()).unwrap();
            let in_time =
                |rto_max: &i32| retransmission_ms(retries, u64::from(rto_max.unsigned_abs())) <= wanted;
            let expected = (1000..=120_000).rev().find(in_time).unwrap_or(1000);
            let auto = config.with_rto_max(RtoMax::Auto).unwrap();
            assert_eq!(auto.resolved(retries), with_rto_max(config, expected), "{config}, {retries}");
            assert_eq!(
                data_time(auto, retries, 5000),
                data_time(with_rto_max(config, expected), retries, 5000),
                "{config}, {retries}"
            );
            chosen.insert(expected);
        }
    }
    assert!(chosen.len() > 30 && chosen.contains(&1000) && chosen.contains(&120_000), "{chosen:?}");
    // Only an automatic value is replaced.
    let config = with_rto_max(policy(60, 10, 5), 3000);
    assert_eq!((config.resolved(15), policy(60, 10, 5).resolved(15)), (config, policy(60, 10, 5)));
}

#[test]
fn presets_compute_the_plan_of_their_documented_timeout() {
    for (name, seconds) in
        [("aws-nlb", 350), ("aws-nat", 350), ("azure-lb", 240), ("azure-nat", 240), ("gcp-vpc", 600)]
    {
        let preset = preset(name.as_bytes()).unwrap();
        assert_eq!(preset.path_idle_s, seconds);
        assert_eq!(preset.plan(), plan_path(seconds));
    }
    assert!(
        PRESETS.is_sorted_by(|a, b| a.name < b.name),
        "the presets are sorted by name, without duplicates"
    );
    for preset in PRESETS {
        assert!(preset.plan().is_ok() && preset.url.starts_with("https://") && !preset.source.is_empty());
    }
    assert_eq!(ka_core::preset(b"aws"), None);
    assert_eq!(ka_core::preset(b""), None);
}

#[test]
fn plan_errors_say_what_is_required() {
    let too_short = plan_path(2).unwrap_err();
    assert_eq!(too_short.to_string(), "no policy can do it: the shortest time that works is 3");
    assert_eq!(
        Config::KEEP.detection().unwrap_err().to_string(),
        "the policy must turn keepalive on and name idle, intvl and cnt"
    );
    assert_eq!(
        ka_core::PlanError::AutoTooLong.to_string(),
        "the automatic user timeout is more than 2147483647 ms"
    );
}
