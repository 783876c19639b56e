//! Tests `ka_enable_lenient`: it turns keepalive on even if timers cannot be set, and the mask names these timers.
//! `tests/descriptors.rs` tests it on each kind of descriptor.

use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;

use ka_test::child::stdout;
use ka_test::compiler::{LINKS, program};
use ka_test::kernel::has_mptcp;
use ka_test::libka::call;
use ka_test::socket::{fresh, keepalive_options, set_option, socket};
use libc::c_int;

const MISSED_IDLE: c_int = 1;
const MISSED_INTVL: c_int = 2;
const MISSED_CNT: c_int = 4;

fn enable_lenient(fd: RawFd, idle: c_int, intvl: c_int, cnt: c_int) -> Result<c_int, c_int> {
    // SAFETY: the call takes no pointer.
    call(|ka| unsafe { (ka.ka_enable_lenient)(fd, idle, intvl, cnt) })
}

/// Returns the value of a timer after a call with this argument, and whether its bit is set in the mask.
fn expected(argument: c_int, most: c_int, before: c_int) -> (c_int, bool) {
    match argument {
        ..=0 => (before, false),
        value if value > most => (most, true),
        value => (value, false),
    }
}

#[test]
fn values_below_1_are_kept_and_values_above_the_maximum_are_clamped() {
    let seconds = [c_int::MIN, -3, -2, -1, 0, 1, 60, 32767, 32768, 65536 + 60, 86400, c_int::MAX];
    let probes = [c_int::MIN, -3, -2, -1, 0, 1, 5, 127, 128, 256 + 5, c_int::MAX];
    let mut sockets = vec![fresh()];
    if has_mptcp() {
        sockets.push(socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap());
    }
    for socket in sockets {
        let fd = socket.as_raw_fd();
        let [.., user_timeout, rto_max] = keepalive_options(fd);
        for on in [0, 1] {
            for (idle, intvl, cnt) in seconds
                .iter()
                .flat_map(|idle| seconds.iter().map(move |intvl| (*idle, *intvl)))
                .flat_map(|(idle, intvl)| probes.iter().map(move |cnt| (idle, intvl, *cnt)))
            {
                for (option, value) in
                    [(libc::TCP_KEEPINTVL, 61), (libc::TCP_KEEPCNT, 6), (libc::TCP_KEEPIDLE, 601)]
                {
                    set_option(fd, libc::IPPROTO_TCP, option, value);
                }
                set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
                let timers = [expected(idle, 32767, 601), expected(intvl, 32767, 61), expected(cnt, 127, 6)];
                let bits = [MISSED_IDLE, MISSED_INTVL, MISSED_CNT];
                let mask: c_int =
                    timers.iter().zip(bits).map(|((_, missed), bit)| if *missed { bit } else { 0 }).sum();
                assert_eq!(enable_lenient(fd, idle, intvl, cnt), Ok(mask), "{idle} {intvl} {cnt}");
                let [(idle_now, _), (intvl_now, _), (cnt_now, _)] = timers;
                assert_eq!(
                    keepalive_options(fd),
                    [Ok(1), Ok(idle_now), Ok(intvl_now), Ok(cnt_now), user_timeout, rto_max],
                    "{idle} {intvl} {cnt}, keepalive was {on}"
                );
            }
        }
    }
}

/// Hand-written code ignores the errors of setsockopt(2) for the timers. `ka_enable_lenient` reports them in the mask.
#[test]
fn keepalive_is_turned_on_even_if_the_kernel_rejects_timers() {
    for link in LINKS {
        assert_eq!(stdout(&mut Command::new(program("lenient", link))), "2304 calls\n");
    }
}
