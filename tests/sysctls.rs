//! Tests the system's defaults in new network namespaces. libka reads them, and values that were set do not follow
//! them.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use ka_test::child::stdout;
use ka_test::compiler::{LINKS, program};
use ka_test::kernel::sysctl;
use ka_test::libka::{
    AUTO, CONFIG_INIT, Getter, KEEP, NONE, OFF, ON, RawConfig, apply, call, config, enable, get, query,
    times, with_rto_max,
};
use ka_test::namespace::in_own_network_namespace;
use ka_test::path::scratch;
use ka_test::socket::{fresh, has_rto_max, is_rounded_rto_max, keepalive_options, rto_max};
use libc::EINVAL;

fn defaults() -> RawConfig {
    let mut config = CONFIG_INIT;
    // SAFETY: the config has its size.
    call(|ka| unsafe { (ka.ka_defaults)(&raw mut config) }).unwrap();
    config
}

#[test]
fn sysctl_values_that_cannot_be_set_are_read_but_not_written() {
    if !in_own_network_namespace("sysctl_values_that_cannot_be_set_are_read_but_not_written") {
        return;
    }
    let socket = fresh();
    let fd = socket.as_raw_fd();
    for value in [86400, 0, -1] {
        sysctl("tcp_keepalive_time", &value.to_string());
        assert_eq!(keepalive_options(fd)[1], Ok(value), "the kernel follows the sysctl");
        assert_eq!(get(fd, |ka| ka.ka_get_idle), Ok(value));
        // In the struct, 0 and -1 are KA_KEEP. 0 is never written.
        let word = if value == 0 { KEEP } else { value };
        assert_eq!(query(fd).unwrap()[2], word, "{value}");
        assert_eq!(defaults(), with_rto_max(config(OFF, word, 75, 9, NONE), rto_max(fd)), "{value}");

        let result = apply(fd, &query(fd).unwrap());
        if word == KEEP {
            // The sysctl stays in force.
            assert_eq!(result, Ok(0), "{value}");
            assert_eq!(keepalive_options(fd)[1], Ok(value));
        } else {
            assert_eq!(result, Err(EINVAL), "{value}");
        }
    }
    // Test the other two sysctls on a new socket.
    let socket = fresh();
    let fd = socket.as_raw_fd();
    for (name, word, getter, values) in [
        ("tcp_keepalive_intvl", 3, (|ka| ka.ka_get_intvl) as Getter, [100_000, 0, -1]),
        // The kernel keeps the number of probes in a byte.
        ("tcp_keepalive_probes", 4, |ka| ka.ka_get_cnt, [255, 0, 1]),
    ] {
        for value in values {
            sysctl(name, &value.to_string());
            assert_eq!(keepalive_options(fd)[word - 1], Ok(value), "the kernel follows the sysctl");
            let expected = if value == 0 { KEEP } else { value };
            assert_eq!((query(fd).unwrap()[word], get(fd, getter)), (expected, Ok(value)), "{name} {value}");
            assert_eq!(defaults()[word], expected, "{name} {value}");
            assert!(!defaults().contains(&0) && !query(fd).unwrap().contains(&0), "{name} {value}");
        }
    }
}

#[test]
fn values_that_were_set_stay_and_kept_values_follow_the_sysctl() {
    if !in_own_network_namespace("values_that_were_set_stay_and_kept_values_follow_the_sysctl") {
        return;
    }
    let (set, kept, never) = (fresh(), fresh(), fresh());
    enable(set.as_raw_fd(), 7200, 75, 9).unwrap();
    enable(kept.as_raw_fd(), KEEP, 75, KEEP).unwrap();
    for (name, value) in
        [("tcp_keepalive_time", "500"), ("tcp_keepalive_intvl", "50"), ("tcp_keepalive_probes", "4")]
    {
        sysctl(name, value);
    }
    assert_eq!(
        keepalive_options(set.as_raw_fd())[..4],
        [Ok(1), Ok(7200), Ok(75), Ok(9)],
        "equal values must be written too"
    );
    assert_eq!(keepalive_options(kept.as_raw_fd())[..4], [Ok(1), Ok(500), Ok(75), Ok(4)]);
    let expected = with_rto_max(config(OFF, 500, 50, 4, NONE), rto_max(never.as_raw_fd()));
    assert_eq!((query(never.as_raw_fd()), defaults()), (Ok(expected), expected));
}

/// The sysctl is that of a new socket. A value that was set does not follow it.
#[test]
fn rto_max_follows_its_sysctl_until_it_is_set() {
    if !in_own_network_namespace("rto_max_follows_its_sysctl_until_it_is_set") || !has_rto_max() {
        return;
    }
    let set = fresh();
    // SAFETY: the call takes no pointer.
    call(|ka| unsafe { (ka.ka_set_rto_max)(set.as_raw_fd(), 4000) }).unwrap();
    for value in [1000, 5000, 120_000] {
        sysctl("tcp_rto_max_ms", &value.to_string());
        let socket = fresh();
        assert_eq!(rto_max(socket.as_raw_fd()), value, "the kernel follows the sysctl");
        assert_eq!((defaults()[6], query(socket.as_raw_fd()).unwrap()[6]), (value, value));
        assert_eq!(get(socket.as_raw_fd(), |ka| ka.ka_get_rto_max), Ok(value));
        assert_eq!(rto_max(set.as_raw_fd()), 4000);
    }
}

#[test]
fn data_time_follows_the_sysctls_of_the_network_namespace() {
    if !in_own_network_namespace("data_time_follows_the_sysctls_of_the_network_namespace") {
        return;
    }
    let data_time = |config: &RawConfig| times(config, |ka| ka.ka_data_time);
    let none = CONFIG_INIT;
    let two_seconds = with_rto_max(none, 2000);
    let has_rto_max = has_rto_max();
    // 200 ms that double 15 times, up to the longest time.
    assert_eq!(data_time(&none), Ok([924_600, 1_044_600]));
    assert_eq!(data_time(&two_seconds), Ok([27_000, 29_000]));
    assert_eq!(data_time(&with_rto_max(none, 1000)), Ok([14_400, 15_400]));
    if has_rto_max {
        sysctl("tcp_rto_max_ms", "1000");
        assert_eq!((data_time(&none), data_time(&two_seconds)), (Ok([14_400, 15_400]), Ok([27_000, 29_000])));
        sysctl("tcp_rto_max_ms", "120000");
    }
    sysctl("tcp_retries2", "3");
    assert_eq!((data_time(&none), data_time(&two_seconds)), (Ok([3000, 123_000]), Ok([3000, 5000])));
    // Keepalive and its timers have no effect, except on KA_AUTO. A user timeout replaces the retransmissions.
    let (on, off) = (config(ON, 60, 10, 5, KEEP), config(OFF, 60, KEEP, KEEP, KEEP));
    assert_eq!((data_time(&on), data_time(&off)), (Ok([3000, 123_000]), Ok([3000, 123_000])));
    assert_eq!(data_time(&[28, 0, 0, 0, 0, 0, 0]), Ok([3000, 123_000]));
    assert_eq!(data_time(&config(ON, 60, 10, 5, 9000)), Ok([9000, 129_000]));
    assert_eq!(data_time(&config(ON, 60, 10, 5, NONE)), data_time(&on));
    assert_eq!(data_time(&with_rto_max(config(OFF, 60, 10, 5, AUTO), 2000)), Ok([110_000, 112_000]));
    for incomplete in [config(ON, KEEP, 10, 5, AUTO), with_rto_max(config(ON, 60, 10, KEEP, KEEP), AUTO)] {
        assert_eq!(data_time(&incomplete), Err(EINVAL), "{incomplete:?}");
    }
    // 200 + 400 + 800 + 1600 ms fit into 2 s + 1 s, so the time between retransmissions needs no limit.
    assert_eq!(data_time(&with_rto_max(config(ON, 2, 1, 1, KEEP), AUTO)), Ok([3000, 123_000]));
    sysctl("tcp_retries2", "15");
    assert_eq!(data_time(&with_rto_max(config(ON, 14, 2, 5, KEEP), AUTO)), Ok([24_000, 25_750]));
    assert_eq!(data_time(&with_rto_max(config(ON, 1, 1, 1, KEEP), AUTO)), Ok([14_400, 15_400]));
    if has_rto_max {
        // A socket gets the same automatic value.
        let socket = fresh();
        apply(socket.as_raw_fd(), &with_rto_max(config(ON, 14, 2, 5, KEEP), AUTO)).unwrap();
        let is_in_force = |value: i32| is_rounded_rto_max(rto_max(socket.as_raw_fd()), value);
        assert!(is_in_force(1750), "{}", rto_max(socket.as_raw_fd()));
        sysctl("tcp_retries2", "16");
        apply(socket.as_raw_fd(), &with_rto_max(config(ON, 14, 2, 5, KEEP), AUTO)).unwrap();
        // 200 + 400 + 800 + 1600 ms, and 13 times 1615 ms.
        assert!(is_in_force(1615), "{}", rto_max(socket.as_raw_fd()));
    }
}

/// The call re-arms the running timer with the idle time in force. If this time cannot be set, the timer is unchanged.
#[test]
fn a_changed_interval_keeps_an_idle_time_that_cannot_be_set() {
    if !in_own_network_namespace("a_changed_interval_keeps_an_idle_time_that_cannot_be_set") {
        return;
    }
    sysctl("tcp_keepalive_time", "86400");
    let socket = fresh();
    let fd = socket.as_raw_fd();
    enable(fd, KEEP, 75, 9).unwrap();
    enable(fd, KEEP, 1, KEEP).unwrap();
    assert_eq!(keepalive_options(fd)[..4], [Ok(1), Ok(86400), Ok(1), Ok(9)]);
    sysctl("tcp_keepalive_time", "400");
    assert_eq!(keepalive_options(fd)[1], Ok(400), "the idle time must still follow the sysctl");
    enable(fd, KEEP, 2, KEEP).unwrap();
    sysctl("tcp_keepalive_time", "300");
    assert_eq!(
        keepalive_options(fd)[1],
        Ok(400),
        "the call must have written the idle time to re-arm the timer"
    );
}

#[test]
fn defaults_work_without_proc_and_leak_no_descriptor() {
    if !in_own_network_namespace("defaults_work_without_proc_and_leak_no_descriptor") {
        return;
    }
    sysctl("tcp_keepalive_time", "-1");
    sysctl("tcp_keepalive_intvl", "33");
    let empty = scratch("root");
    fs::create_dir(&empty).unwrap();
    for link in LINKS {
        let program = program("defaults", link);
        let expected = format!("2 -1 33 9 -3 {}\n", rto_max(fresh().as_raw_fd()));
        assert_eq!(stdout(&mut Command::new(&program)), expected, "{link:?}");
        assert_eq!(stdout(Command::new(&program).arg(&empty)), expected, "{link:?}, without /proc");
    }
}
