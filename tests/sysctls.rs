//! Tests the system's defaults in new network namespaces. libka reads them, and values that were set do not follow
//! them.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use ka_test::child::stdout;
use ka_test::compiler::{LINKS, program};
use ka_test::kernel::sysctl;
use ka_test::libka::{
    CONFIG_INIT, Getter, KEEP, NONE, OFF, RawConfig, apply, call, config, enable, get, query,
};
use ka_test::namespace::in_own_network_namespace;
use ka_test::path::scratch;
use ka_test::socket::{fresh, keepalive_options};
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
        assert_eq!(defaults(), config(OFF, word, 75, 9, NONE), "{value}");

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
    assert_eq!(query(never.as_raw_fd()), Ok(config(OFF, 500, 50, 4, NONE)));
    assert_eq!(defaults(), config(OFF, 500, 50, 4, NONE));
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
        assert_eq!(stdout(&mut Command::new(&program)), "2 -1 33 9 -3\n", "{link:?}");
        assert_eq!(stdout(Command::new(&program).arg(&empty)), "2 -1 33 9 -3\n", "{link:?}, without /proc");
    }
}
