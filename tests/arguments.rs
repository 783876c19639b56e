//! Tests arguments: the limits of their ranges, NULL, the rules for `size`, and which of several mistakes is reported.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use ka_test::kernel::has_mptcp;
use ka_test::libka::{
    AUTO, CONFIG_INIT, KEEP, Libka, NONE, OFF, ON, RawConfig, STATUS_INIT, apply, call, config, enable, get,
    query, times, with_rto_max,
};
use ka_test::socket::{
    CLOSED, RTO_MAX, fresh, has_rto_max, is_rounded_rto_max, keepalive_options, rto_max, set_option, socket,
};
use libc::{E2BIG, EBADF, EINVAL, ENOENT, ENOPROTOOPT, ERANGE, c_char, c_int};

#[test]
fn values_outside_the_ranges_are_rejected_and_change_nothing() {
    let mut sockets = vec![fresh()];
    if has_mptcp() {
        sockets.push(socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap());
    }
    for socket in sockets {
        let fd = socket.as_raw_fd();
        for (wanted, result) in [
            ((1, 1, 1), Ok(0)),
            ((32767, 32767, 127), Ok(0)),
            ((KEEP, KEEP, KEEP), Ok(0)),
            ((0, 1, 1), Err(EINVAL)),
            ((32768, 1, 1), Err(EINVAL)),
            ((1, 0, 1), Err(EINVAL)),
            ((1, 32768, 1), Err(EINVAL)),
            ((1, 1, 0), Err(EINVAL)),
            ((1, 1, 128), Err(EINVAL)),
            ((AUTO, 1, 1), Err(EINVAL)),
            ((1, AUTO, 1), Err(EINVAL)),
            ((1, 1, AUTO), Err(EINVAL)),
            ((c_int::MIN, 1, 1), Err(EINVAL)),
            ((1, c_int::MAX, 1), Err(EINVAL)),
            // Only the low 16 or 8 bits are in range.
            ((65536 + 60, 1, 1), Err(EINVAL)),
            ((1, 1, 256 + 5), Err(EINVAL)),
        ] {
            set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
            let before = keepalive_options(fd);
            assert_eq!(enable(fd, wanted.0, wanted.1, wanted.2), result, "{wanted:?}");
            let named = |wanted, before| if wanted == KEEP { before } else { Ok(wanted) };
            let after = match result {
                Ok(_) => [
                    Ok(1),
                    named(wanted.0, before[1]),
                    named(wanted.1, before[2]),
                    named(wanted.2, before[3]),
                    before[4],
                    before[5],
                ],
                Err(_) => before,
            };
            assert_eq!(keepalive_options(fd), after, "{wanted:?}");
        }
    }
}

#[test]
fn every_field_of_a_config_is_checked() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    let before = keepalive_options(fd);
    for wrong in [
        config(3, KEEP, KEEP, KEEP, KEEP),
        config(c_int::MAX, KEEP, KEEP, KEEP, KEEP),
        config(c_int::MIN, KEEP, KEEP, KEEP, KEEP),
        config(ON, 32768, KEEP, KEEP, KEEP),
        config(ON, KEEP, 32768, KEEP, KEEP),
        config(ON, KEEP, KEEP, 128, KEEP),
        config(ON, KEEP, KEEP, KEEP, -4),
        config(ON, KEEP, KEEP, KEEP, c_int::MIN),
        // KA_AUTO and KA_NONE are for user_timeout only.
        config(AUTO, KEEP, KEEP, KEEP, KEEP),
        config(NONE, KEEP, KEEP, KEEP, KEEP),
        config(ON, AUTO, KEEP, KEEP, KEEP),
        config(ON, KEEP, AUTO, KEEP, KEEP),
        config(ON, KEEP, KEEP, AUTO, KEEP),
        config(ON, NONE, KEEP, KEEP, KEEP),
        config(ON, KEEP, NONE, KEEP, KEEP),
        config(ON, KEEP, KEEP, NONE, KEEP),
        // 1000 * (32767 + 32767 * 127) is more than an int.
        config(ON, 32767, 32767, 127, AUTO),
        // rto_max has no KA_NONE.
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), 999),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), 120_001),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), 1),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), NONE),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), -4),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), c_int::MIN),
        with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), c_int::MAX),
        // The size is missing.
        [0; 7],
    ] {
        assert_eq!(apply(fd, &wrong), Err(EINVAL), "{wrong:?}");
        assert_eq!(keepalive_options(fd), before, "{wrong:?}");
        // SAFETY: the config has its size, and the buffer has size 0.
        let format = call(|ka| unsafe { (ka.ka_format)(&raw const wrong, ptr::null_mut(), 0) });
        assert_eq!(format, Err(EINVAL), "ka_format accepts what ka_apply rejects: {wrong:?}");
    }
    // The largest automatic user timeout that fits.
    apply(fd, &config(ON, 32767, 32767, 64, AUTO)).unwrap();
    assert_eq!(keepalive_options(fd)[4], Ok(1000 * (32767 + 32767 * 64)));
    apply(fd, &config(OFF, KEEP, KEEP, KEEP, c_int::MAX)).unwrap();
    assert_eq!(keepalive_options(fd)[4], Ok(c_int::MAX));
}

#[test]
fn rto_max_is_set_within_its_range() {
    // SAFETY: the call takes no pointer.
    let set = |fd, value| call(|ka| unsafe { (ka.ka_set_rto_max)(fd, value) });
    for wrong in [c_int::MIN, -4, NONE, 0, 1, 999, 120_001, 65536 + 2000 + (1 << 17), c_int::MAX] {
        assert_eq!(set(CLOSED, wrong), Err(EINVAL), "{wrong}");
    }
    for value in [1000, 120_000, AUTO, KEEP] {
        assert_eq!(set(CLOSED, value), Err(EBADF), "{value}");
    }
    if !has_rto_max() {
        assert_eq!(set(fresh().as_raw_fd(), 2000), Err(libc::EOPNOTSUPP));
        return;
    }
    for on in [0, 1] {
        let socket = fresh();
        let fd = socket.as_raw_fd();
        set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
        let mut expected = keepalive_options(fd);
        let got = || get(fd, |ka| ka.ka_get_rto_max);
        assert_eq!(got(), expected[5], "the value of the sysctl");
        for value in [1000, 2000, 120_000, 119_000, 5000] {
            assert_eq!(set(fd, value), Ok(0));
            expected[5] = Ok(value);
            assert_eq!((keepalive_options(fd), got()), (expected, Ok(value)));
            for wrong in [0, NONE, 999, 120_001] {
                assert_eq!(set(fd, wrong), Err(EINVAL), "{wrong}");
            }
            assert_eq!(set(fd, KEEP), Ok(0));
            assert_eq!((keepalive_options(fd), query(fd).unwrap()[6]), (expected, value));
        }
        // In the struct, 0 and KA_KEEP change nothing.
        for (value, after) in [(0, 5000), (KEEP, 5000), (1000, 1000), (120_000, 120_000)] {
            let changed = with_rto_max(config(KEEP, KEEP, KEEP, KEEP, KEEP), value);
            assert_eq!(apply(fd, &changed), Ok(0));
            expected[5] = Ok(after);
            assert_eq!(keepalive_options(fd), expected, "rto_max {value}");
        }
        // The automatic value is that of the values in force. Its arithmetic is tested in crates/ka-core/tests/plan.rs.
        let retries = ka_core::Retransmission::read().retries;
        let auto = |idle, intvl, cnt| {
            let config = ka_core::Config::new(idle, intvl, cnt).unwrap();
            config
                .with_rto_max(ka_core::RtoMax::Auto)
                .unwrap()
                .resolved(retries)
                .timer(ka_core::Timer::RtoMax)
                .unwrap()
        };
        let is_auto = |automatic| is_rounded_rto_max(rto_max(fd), automatic);
        enable(fd, 20, 5, 2).unwrap();
        assert_eq!(set(fd, AUTO), Ok(0));
        assert!(is_auto(auto(20, 5, 2)), "{}", rto_max(fd));
        apply(fd, &with_rto_max(config(ON, 3600, KEEP, KEEP, KEEP), AUTO)).unwrap();
        assert!(is_auto(auto(3600, 5, 2)), "{}", rto_max(fd));
        assert_ne!(auto(20, 5, 2), auto(3600, 5, 2));
    }
}

#[test]
fn an_automatic_user_timeout_of_kept_values_is_checked_after_the_descriptor() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    enable(fd, 32767, 32767, 127).unwrap();
    let before = keepalive_options(fd);
    let auto = |fd: RawFd| apply(fd, &config(KEEP, KEEP, KEEP, KEEP, AUTO));
    assert_eq!(auto(fd), Err(EINVAL));
    assert_eq!(keepalive_options(fd), before);
    assert_eq!(auto(CLOSED), Err(EBADF));
    let udp = ka_test::socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    assert_eq!(auto(udp.as_raw_fd()), Err(ENOPROTOOPT));
    if has_mptcp() {
        let mptcp = ka_test::socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
        enable(mptcp.as_raw_fd(), 32767, 32767, 127).unwrap();
        assert_eq!(auto(mptcp.as_raw_fd()), Err(libc::EOPNOTSUPP));
    }
}

#[test]
fn null_is_rejected_before_the_descriptor_is_checked() {
    let fd = CLOSED;
    let (mut config, mut status) = (CONFIG_INIT, STATUS_INIT);
    let (config, status) = (&raw mut config, &raw mut status);
    let mut ms = 0_u64;
    let ms = &raw mut ms;
    // SAFETY: each pointer is NULL or valid.
    let results = unsafe {
        [
            call(|ka| (ka.ka_apply)(fd, ptr::null())),
            call(|ka| (ka.ka_query)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_idle)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_intvl)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_cnt)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_user_timeout)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_rto_max)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_get_status)(fd, ptr::null_mut())),
            call(|ka| (ka.ka_defaults)(ptr::null_mut())),
            call(|ka| (ka.ka_parse)(ptr::null(), config)),
            call(|ka| (ka.ka_parse)(c"60,10,5".as_ptr(), ptr::null_mut())),
            call(|ka| (ka.ka_format)(ptr::null(), ptr::null_mut(), 0)),
            call(|ka| (ka.ka_format)(config, ptr::null_mut(), 1)),
            call(|ka| (ka.ka_plan_detect)(30_000, ptr::null_mut())),
            call(|ka| (ka.ka_plan_path)(350, ptr::null_mut())),
            call(|ka| (ka.ka_plan_preset)(c"aws-nlb".as_ptr(), ptr::null_mut())),
            call(|ka| (ka.ka_plan_preset)(ptr::null(), config)),
            call(|ka| (ka.ka_detect_time)(ptr::null(), ms, ms)),
            call(|ka| (ka.ka_detect_time)(config, ptr::null_mut(), ms)),
            call(|ka| (ka.ka_detect_time)(config, ms, ptr::null_mut())),
            call(|ka| (ka.ka_data_time)(ptr::null(), ms, ms)),
            call(|ka| (ka.ka_data_time)(config, ptr::null_mut(), ms)),
            call(|ka| (ka.ka_data_time)(config, ms, ptr::null_mut())),
        ]
    };
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result, Err(EINVAL), "call {n}");
    }
    // SAFETY: both point to local variables.
    let outputs = unsafe { (*config, *status) };
    assert_eq!(outputs, (CONFIG_INIT, STATUS_INIT), "outputs are written on success only");
}

#[test]
fn arguments_are_checked_before_the_descriptor() {
    let fd = CLOSED;
    assert_eq!(enable(fd, 0, 10, 5), Err(EINVAL));
    assert_eq!(enable(fd, 60, 10, 5), Err(EBADF));
    assert_eq!(apply(fd, &config(ON, 32767, 32767, 127, AUTO)), Err(EINVAL));
    assert_eq!(apply(fd, &[20, ON, 60, 10, 128, 0, 0]), Err(EINVAL));
    // SAFETY: the call takes no pointer.
    let set_user_timeout = |value| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, value) });
    assert_eq!(set_user_timeout(-4), Err(EINVAL));
    assert_eq!(set_user_timeout(c_int::MIN), Err(EINVAL));
    assert_eq!(set_user_timeout(NONE), Err(EBADF));
    // SAFETY: the call takes no pointer.
    let probe = |timeout_ms| call(|ka| unsafe { (ka.ka_probe)(fd, timeout_ms) });
    assert_eq!(probe(-1), Err(EINVAL));
    assert_eq!(probe(c_int::MIN), Err(EINVAL));
    assert_eq!(probe(0), Err(EBADF));
    assert_eq!(probe(c_int::MAX), Err(EBADF));
}

/// Returns a struct with this size and these words. The words may go beyond the size, to show what is read or written.
fn sized(size: i32, words: &[i32]) -> Vec<i32> {
    let mut object = vec![size];
    object.extend(words);
    object
}

fn apply_words(fd: RawFd, object: &[i32]) -> Result<c_int, c_int> {
    // SAFETY: the object has at least as many bytes as its first word says, or the call rejects the size.
    call(|ka| unsafe { (ka.ka_apply)(fd, object.as_ptr().cast()) })
}

#[test]
fn fields_beyond_a_smaller_size_are_not_read() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    let [_, idle, intvl, cnt, user_timeout, rto_max] = keepalive_options(fd);
    // If the call read words beyond the size, it would reject them.
    for (size, after) in [
        (8, [Ok(1), idle, intvl, cnt, user_timeout, rto_max]),
        (12, [Ok(1), Ok(60), intvl, cnt, user_timeout, rto_max]),
        (16, [Ok(1), Ok(60), Ok(10), cnt, user_timeout, rto_max]),
        (20, [Ok(1), Ok(60), Ok(10), Ok(5), user_timeout, rto_max]),
        // The size of 0.1.0.
        (24, [Ok(1), Ok(60), Ok(10), Ok(5), Ok(99), rto_max]),
    ] {
        let mut words = [ON, 60, 10, 5, 99, 2000];
        words[usize::try_from(size).unwrap() / 4 - 1..].fill(0x5a5a_5a5a);
        apply_words(fd, &sized(size, &words)).unwrap();
        assert_eq!(keepalive_options(fd), after, "size {size}");
    }
}

#[test]
fn the_tail_of_a_larger_config_may_be_zero_or_keep() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    for (idle, tail) in [(60, [KEEP, KEEP]), (61, [0, 0]), (62, [0, KEEP]), (63, [KEEP, 0])] {
        apply_words(fd, &sized(36, &[[ON, idle, 10, 5, KEEP, KEEP].as_slice(), &tail].concat())).unwrap();
        assert_eq!(keepalive_options(fd)[..4], [Ok(1), Ok(idle), Ok(10), Ok(5)], "{tail:?}");
    }
    for (idle, rest) in [(64, KEEP), (65, 0)] {
        let mut whole_page = vec![rest; 1023];
        whole_page[1] = idle;
        apply_words(fd, &sized(4096, &whole_page)).unwrap();
        assert_eq!(keepalive_options(fd)[1], Ok(idle));
    }
    let before = keepalive_options(fd);

    for tail in [[1, KEEP], [KEEP, 1], [0, 1], [1, 1], [AUTO, KEEP], [NONE, 0], [c_int::MIN, 0]] {
        let object = sized(36, &[[ON, 62, 10, 5, KEEP, KEEP].as_slice(), &tail].concat());
        assert_eq!(apply_words(fd, &object), Err(E2BIG), "{tail:?}");
        let config = object.as_ptr().cast::<RawConfig>();
        let mut ms = [7_u64; 2];
        let [typical, worst] = &mut ms;
        // SAFETY: the object has its size.
        unsafe {
            assert_eq!(call(|ka| (ka.ka_format)(config, ptr::null_mut(), 0)), Err(E2BIG), "{tail:?}");
            assert_eq!(call(|ka| (ka.ka_detect_time)(config, typical, worst)), Err(E2BIG), "{tail:?}");
            assert_eq!(call(|ka| (ka.ka_data_time)(config, typical, worst)), Err(E2BIG), "{tail:?}");
        }
        assert_eq!(ms, [7, 7]);
    }
    // Sizes above 4096 are rejected, even if no word of the struct would change anything.
    assert_eq!(apply_words(fd, &sized(4100, &[KEEP; 1024])), Err(E2BIG));
    assert_eq!(apply_words(fd, &sized(4100, &[0; 1024])), Err(E2BIG));
    assert_eq!(apply_words(fd, &sized(-4, &[KEEP; 6])), Err(E2BIG));
    assert_eq!(keepalive_options(fd), before);
}

/// `struct ka_config c = { .size = sizeof c };`, for a struct of each version, with and without timers.
#[test]
fn a_zero_initialised_config_changes_only_the_timers_that_it_names() {
    let has_rto_max = has_rto_max();
    for on in [0, 1] {
        for size in (8..=64).step_by(4).chain([4096]) {
            let socket = fresh();
            let fd = socket.as_raw_fd();
            for (option, value) in [
                (libc::TCP_KEEPIDLE, 600),
                (libc::TCP_KEEPINTVL, 60),
                (libc::TCP_KEEPCNT, 6),
                (libc::TCP_USER_TIMEOUT, 77_000),
            ] {
                set_option(fd, libc::IPPROTO_TCP, option, value);
            }
            set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
            if has_rto_max {
                set_option(fd, libc::IPPROTO_TCP, RTO_MAX, 7000);
            }
            let before = keepalive_options(fd);
            assert_eq!(before[..5], [Ok(on), Ok(600), Ok(60), Ok(6), Ok(77_000)]);
            assert_eq!(before[5] == Ok(7000), has_rto_max);

            let words = usize::try_from(size).unwrap() / 4 - 1;
            let mut object = sized(size, &vec![0; words]);
            // Words beyond the size are not read.
            object.extend([0x5a5a_5a5a; 8]);
            assert_eq!(apply_words(fd, &object), Ok(0), "size {size}");
            assert_eq!(keepalive_options(fd), before, "size {size}");

            for (n, value) in [60, 10, 5].into_iter().enumerate().filter(|(n, _)| n + 1 < words) {
                object[n + 2] = value;
            }
            assert_eq!(apply_words(fd, &object), Ok(0), "size {size}");
            let timer = |n: usize, value| if n < words { Ok(value) } else { before[n] };
            let after = [before[0], timer(1, 60), timer(2, 10), timer(3, 5), before[4], before[5]];
            assert_eq!(keepalive_options(fd), after, "size {size}, keepalive {on}");
        }
    }
    // ka_format writes the same text as for KA_KEEP, and ka_detect_time has nothing to compute.
    let zero = [28, 0, 0, 0, 0, 0, 0];
    assert_eq!(format(&zero), format(&CONFIG_INIT));
    assert_eq!(format(&[28, ON, 60, 0, 0, 0, 0]), Ok("idle=60".to_owned()));
    assert_eq!(format(&[24, ON, 60, 0, 0, 0, 2000]), Ok("idle=60".to_owned()), "the size of 0.1.0");
    assert_eq!(times(&zero, |ka| ka.ka_detect_time), Err(EINVAL));
}

/// Unlike in the struct, 0 is a mistake in the arguments of ka_enable.
#[test]
fn zero_is_valid_only_for_ka_set_user_timeout() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    for wrong in [(0, 10, 5), (60, 0, 5), (60, 10, 0), (0, 0, 0)] {
        assert_eq!(enable(fd, wrong.0, wrong.1, wrong.2), Err(EINVAL), "{wrong:?}");
        assert_eq!(keepalive_options(fd)[0], Ok(0), "{wrong:?}");
    }
    // SAFETY: the call takes no pointer.
    let set = |value| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, value) });
    let get = || get(fd, |ka| ka.ka_get_user_timeout);
    for removal in [0, NONE] {
        assert_eq!(set(7000), Ok(0));
        assert_eq!((keepalive_options(fd)[4], get()), (Ok(7000), Ok(7000)));
        assert_eq!(set(removal), Ok(0));
        assert_eq!((keepalive_options(fd)[4], get()), (Ok(0), Ok(0)), "{removal}");
    }
    // In the struct, only KA_NONE removes it.
    set(7000).unwrap();
    for (value, after) in [(0, 7000), (KEEP, 7000), (NONE, 0)] {
        assert_eq!(apply(fd, &config(KEEP, KEEP, KEEP, KEEP, value)), Ok(0));
        assert_eq!(keepalive_options(fd)[4], Ok(after), "user_timeout {value}");
    }
}

#[test]
fn impossible_sizes_are_rejected_by_every_function() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    for size in [0, 1, 4, 7, 9, 22, 23, 25, 27, 29, -1] {
        let mut object = sized(size, &[KEEP; 12]);
        let untouched = object.clone();
        let (config, status) = (object.as_mut_ptr().cast::<RawConfig>(), object.as_mut_ptr().cast());
        let mut ms = 0;
        let ms = &raw mut ms;
        // SAFETY: the calls access nothing beyond the size.
        let results = unsafe {
            [
                call(|ka| (ka.ka_apply)(fd, config)),
                call(|ka| (ka.ka_query)(fd, config)),
                call(|ka| (ka.ka_defaults)(config)),
                call(|ka| (ka.ka_parse)(c"60,10,5".as_ptr(), config)),
                // The text is wrong too (ERANGE), but the size is checked first.
                call(|ka| (ka.ka_parse)(c"0,10,5".as_ptr(), config)),
                call(|ka| (ka.ka_format)(config, ptr::null_mut(), 0)),
                call(|ka| (ka.ka_plan_detect)(30_000, config)),
                call(|ka| (ka.ka_plan_path)(350, config)),
                call(|ka| (ka.ka_plan_path)(0, config)),
                call(|ka| (ka.ka_plan_preset)(c"aws-nlb".as_ptr(), config)),
                call(|ka| (ka.ka_detect_time)(config, ms, ms)),
                call(|ka| (ka.ka_data_time)(config, ms, ms)),
                call(|ka| (ka.ka_get_status)(fd, status)),
            ]
        };
        for (n, result) in results.into_iter().enumerate() {
            assert_eq!(result, Err(EINVAL), "call {n}, size {size}");
        }
        assert_eq!(object, untouched, "size {size}");
    }
}

#[test]
fn outputs_fill_the_size_of_the_caller_and_no_more() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    enable(fd, 60, 10, 5).unwrap();
    let full = [ON, 60, 10, 5];
    for words in 1..=12_usize {
        let size = i32::try_from(4 + 4 * words).unwrap();
        let untouched = sized(size, &[0x5a5a_5a5a; 14]);
        // SAFETY: the object is at least as large as its size says.
        let calls: [&dyn Fn(*mut RawConfig) -> Result<c_int, c_int>; 5] = unsafe {
            [
                &|config| call(|ka| (ka.ka_query)(fd, config)),
                &|config| call(|ka| (ka.ka_parse)(c"60,10,5".as_ptr(), config)),
                &|config| call(|ka| (ka.ka_plan_path)(350, config)),
                &|config| call(|ka| (ka.ka_defaults)(config)),
                &|config| call(|ka| (ka.ka_get_status)(fd, config.cast())),
            ]
        };
        for (n, fill) in calls.into_iter().enumerate() {
            let known = if n == 4 { 8 } else { 6 };
            let mut object = untouched.clone();
            fill(object.as_mut_ptr().cast()).unwrap();
            assert_eq!(object[0], size, "the size is the caller's");
            let end = 1 + words.min(known);
            assert!(
                object[1..end].iter().all(|word| *word != 0x5a5a_5a5a),
                "call {n}, {words} words: {object:x?}"
            );
            // In a config, 0 would mean KA_KEEP. In a status, 0 is a number.
            assert!(n == 4 || !object[1..end].contains(&0), "call {n}, {words} words: {object:?}");
            assert_eq!(object[end..], untouched[end..], "call {n}, {words} words");
            if n < 2 {
                let end = words.min(4);
                assert_eq!(object[1..=end], full[..end], "call {n}, {words} words");
            }
        }
    }
}

#[test]
fn structs_may_be_unaligned() {
    let socket = fresh();
    let fd = socket.as_raw_fd();
    let mut bytes = [0_u8; 64];
    for offset in 0..4 {
        #[expect(clippy::cast_ptr_alignment, reason = "the test needs an unaligned struct")]
        let config = bytes[offset..].as_mut_ptr().cast::<RawConfig>();
        // SAFETY: the 28 bytes at `config` are in the array, and write_unaligned needs no alignment.
        unsafe {
            config.write_unaligned(ka_test::libka::config(ON, 60, 10, 5, KEEP));
            call(|ka| (ka.ka_apply)(fd, config)).unwrap();
            call(|ka| (ka.ka_query)(fd, config)).unwrap();
            let expected = with_rto_max(ka_test::libka::config(ON, 60, 10, 5, NONE), rto_max(fd));
            assert_eq!(config.read_unaligned(), expected);
        }
    }
}

fn parse(text: &str) -> Result<RawConfig, c_int> {
    let text = CString::new(text).unwrap();
    let mut config = [28, 7, 7, 7, 7, 7, 7];
    // SAFETY: a C string and a config with its size.
    match call(|ka| unsafe { (ka.ka_parse)(text.as_ptr(), &raw mut config) }) {
        Ok(_) => Ok(config),
        Err(errno) => {
            assert_eq!(config, [28, 7, 7, 7, 7, 7, 7], "outputs are written on success only");
            Err(errno)
        }
    }
}

fn format(config: &RawConfig) -> Result<String, c_int> {
    let mut text = [0x55 as c_char; 80];
    // SAFETY: a config with its size, and 80 bytes.
    let length = call(|ka| unsafe { (ka.ka_format)(config, text.as_mut_ptr(), text.len()) })?;
    // SAFETY: ka_format ends it with a NUL.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    assert_eq!(usize::try_from(length).unwrap(), text.len());
    Ok(text.into())
}

#[test]
fn policies_are_parsed_and_formatted() {
    for (text, config) in [
        ("60,10,5", config(ON, 60, 10, 5, KEEP)),
        ("idle=60,intvl=10,cnt=5", config(ON, 60, 10, 5, KEEP)),
        ("off", config(OFF, KEEP, KEEP, KEEP, KEEP)),
        ("keep,cnt=3,user_timeout=auto", config(KEEP, KEEP, KEEP, 3, AUTO)),
        ("on", config(ON, KEEP, KEEP, KEEP, KEEP)),
        ("user_timeout=0", config(ON, KEEP, KEEP, KEEP, NONE)),
        ("user_timeout=none", config(ON, KEEP, KEEP, KEEP, NONE)),
        ("user_timeout=30", config(ON, KEEP, KEEP, KEEP, 30)),
        ("user_timeout=30s", config(ON, KEEP, KEEP, KEEP, 30_000)),
        ("idle=5m, intvl=30s", config(ON, 300, 30, KEEP, KEEP)),
        ("rto_max=2000", with_rto_max(config(ON, KEEP, KEEP, KEEP, KEEP), 2000)),
        ("keep, rto_max=2m", with_rto_max(config(KEEP, KEEP, KEEP, KEEP, KEEP), 120_000)),
        ("rto_max=auto,idle=9", with_rto_max(config(ON, 9, KEEP, KEEP, KEEP), AUTO)),
        (
            "keep,idle=32767,intvl=32767,cnt=127,user_timeout=2147483647,rto_max=120000",
            with_rto_max(config(KEEP, 32767, 32767, 127, c_int::MAX), 120_000),
        ),
        (" 1h : 60000ms : 5 ", config(ON, 3600, 60, 5, KEEP)),
    ] {
        assert_eq!(parse(text), Ok(config), "{text}");
        assert_eq!(parse(&format(&config).unwrap()), Ok(config), "{text}");
    }
    for (text, errno) in [
        ("", EINVAL),
        ("60,10", EINVAL),
        ("0,10,5", ERANGE),
        ("72h,10,5", ERANGE),
        ("1500ms,10,5", EINVAL),
        ("60,10,5s", EINVAL),
        ("60 10 5", EINVAL),
        ("0,10,x", EINVAL),
        ("on,off", EINVAL),
        ("rto_max=none", EINVAL),
        ("rto_max=0", ERANGE),
        ("rto_max=999", ERANGE),
        ("rto_max=121s", ERANGE),
    ] {
        assert_eq!(parse(text), Err(errno), "{text}");
    }
}

/// A config of 0.1.0 has no field for rto_max. The value would be lost, so ka_parse fails. Larger structs have the
/// field.
#[test]
fn a_text_with_rto_max_needs_a_config_with_that_field() {
    for size in (8..=40).step_by(4).chain([4096]) {
        for (text, value) in
            [(c"idle=60,rto_max=2s", Some(2000)), (c"rto_max=auto", Some(AUTO)), (c"idle=60", None)]
        {
            let mut object = sized(size, &[0x5a5a_5a5a; 1025]);
            let untouched = object.clone();
            // SAFETY: the object is larger than its size says.
            let result = call(|ka| unsafe { (ka.ka_parse)(text.as_ptr(), object.as_mut_ptr().cast()) });
            if value.is_some() && size < 28 {
                assert_eq!((result, &object), (Err(EINVAL), &untouched), "{text:?}, size {size}");
                continue;
            }
            assert_eq!((result, object[0], object[1]), (Ok(0), size, ON), "{text:?}, size {size}");
            // A config that is smaller than that of 0.1.0 loses other values without an error, as in that release.
            let end = usize::try_from(size).unwrap().min(28) / 4;
            if size >= 28 {
                assert_eq!(object[6], value.unwrap_or(KEEP), "{text:?}, size {size}");
            }
            assert_eq!(object[end..], untouched[end..], "{text:?}, size {size}");
        }
    }
}

#[test]
fn text_that_does_not_fit_is_truncated_as_by_snprintf() {
    let config = config(OFF, 60, 10, 5, KEEP);
    let whole = "off,idle=60,intvl=10,cnt=5";
    for size in 0..40_usize {
        let mut text = [0x55_u8; 48];
        // SAFETY: the text has more than `size` bytes.
        let length = call(|ka| unsafe { (ka.ka_format)(&raw const config, text.as_mut_ptr().cast(), size) });
        assert_eq!(length, Ok(26), "size {size}");
        let kept = size.saturating_sub(1).min(whole.len());
        assert_eq!(&text[..kept], &whole.as_bytes()[..kept], "size {size}");
        let end = if size == 0 { 0 } else { kept + 1 };
        assert!(size == 0 || text[kept] == 0, "size {size}: no NUL");
        assert!(text[end..].iter().all(|byte| *byte == 0x55), "size {size}: written beyond");
    }
    // SAFETY: nothing is written.
    assert_eq!(call(|ka| unsafe { (ka.ka_format)(&raw const config, ptr::null_mut(), 0) }), Ok(26));
}

fn planned(plan: impl FnOnce(&Libka, *mut RawConfig) -> c_int) -> Result<RawConfig, c_int> {
    let mut config = [28, 7, 7, 7, 7, 7, 7];
    let result = call(|ka| plan(ka, &raw mut config));
    assert_eq!(result.is_err(), config == [28, 7, 7, 7, 7, 7, 7], "outputs are written on success only");
    result.map(|_| config)
}

#[test]
fn plans_and_detection_times_equal_those_of_ka_core() {
    // SAFETY: `planned` passes a config with its size, also to the next two calls.
    let path = |seconds| planned(|ka, config| unsafe { (ka.ka_plan_path)(seconds, config) });
    assert_eq!(path(350), Ok(config(ON, 280, 30, 5, KEEP)));
    assert_eq!(path(3), Ok(config(ON, 1, 1, 5, KEEP)));
    assert_eq!(path(2), Err(ERANGE));
    assert_eq!(path(u32::MAX), Ok(config(ON, 32767, 30, 5, KEEP)));

    // SAFETY: as above.
    let detect = |within| planned(|ka, config| unsafe { (ka.ka_plan_detect)(within, config) });
    assert_eq!(detect(2273), Err(ERANGE));
    assert_eq!(detect(2274), Ok(config(ON, 1, 1, 1, KEEP)));
    assert_eq!(detect(30_000), Ok(config(ON, 14, 4, 3, KEEP)));

    // SAFETY: as above, and a C string.
    let preset = |name: &CStr| planned(|ka, config| unsafe { (ka.ka_plan_preset)(name.as_ptr(), config) });
    assert_eq!(preset(c"aws-nlb"), path(350));
    assert_eq!(preset(c"azure-lb"), path(240));
    assert_eq!(preset(c"gcp-vpc"), path(600));
    assert_eq!(preset(c"nobody"), Err(ENOENT));
    assert_eq!(preset(c""), Err(ENOENT));
    for known in ka_core::PRESETS {
        assert_eq!(preset(&CString::new(known.name).unwrap()), path(known.path_idle_s), "{}", known.name);
    }

    let time = |config: RawConfig| times(&config, |ka| ka.ka_detect_time);
    assert_eq!(time(config(ON, 60, 10, 5, KEEP)), Ok([110_000, 124_029]));
    assert_eq!(time(config(ON, 5, 2, 5, 1000)), Ok([7000, 7909]));
    assert_eq!(time(config(ON, 5, 2, 5, NONE)), time(config(ON, 5, 2, 5, KEEP)));
    assert_eq!(time(config(ON, 5, 2, 5, 0)), time(config(ON, 5, 2, 5, KEEP)));
    // In the worst case the peer dies right after it has answered a probe. Then the next probe comes after the longer
    // of idle and intvl. The result is 71/63 of max(idle, intvl) + intvl * cnt seconds, plus 10 ms for each timer.
    for (idle, intvl, cnt, typical, worst) in
        [(30, 75, 9, 705_000, 845_339), (1, 32767, 1, 32_768_000, 73_855_798), (10, 10, 3, 40_000, 45_120)]
    {
        assert_eq!(time(config(ON, idle, intvl, cnt, KEEP)), Ok([typical, worst]), "{idle},{intvl},{cnt}");
    }
    assert_eq!(time(config(ON, 1, 10, 9, 5000)), Ok([11_000, 22_560]), "a user timeout replaces cnt");
    for incomplete in
        [config(KEEP, 60, 10, 5, KEEP), config(OFF, 60, 10, 5, KEEP), config(ON, KEEP, 10, 5, KEEP)]
    {
        assert_eq!(time(incomplete), Err(EINVAL));
    }
}
