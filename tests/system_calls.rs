//! Tests the system calls of libka with strace, and the state of the socket after the kernel rejects one of them.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use ka_test::child::succeed;
use ka_test::compiler::{LINKS, Linkage, program};
use ka_test::namespace::is_root;
use ka_test::path::scratch;
use ka_test::socket::{fresh, has_rto_max, rto_max};

const EPERM: i32 = 1;

/// Runs the program under strace. Returns its output, and strace's log.
fn strace(program: &Path, options: &[String], args: &[&str]) -> (String, String) {
    let log = scratch("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=getsockopt,setsockopt,close,accept,openat,socket"]).args(options);
    let output = succeed(command.arg("-o").arg(&log).arg(program).args(args));
    (String::from_utf8(output.stdout).unwrap(), std::fs::read_to_string(log).unwrap())
}

/// Returns the calls between marks, without process and result: `setsockopt(3, SOL_TCP, TCP_KEEPIDLE, [60], 4)`.
fn between_marks(log: &str) -> Vec<Vec<&str>> {
    let calls = log
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim().rsplit_once(" = ").map(|call| call.0.trim()));
    let mut parts = vec![vec![]];
    for call in calls {
        if call == "close(-77)" {
            parts.push(vec![]);
        } else {
            parts.last_mut().unwrap().push(call);
        }
    }
    parts.remove(0);
    parts.pop();
    parts
}

#[test]
fn ka_enable_makes_five_calls_and_four_reads_the_second_time() {
    for link in LINKS {
        let (_, log) = strace(&program("trace", link), &[], &["enable", "3"]);
        let parts = between_marks(&log);
        assert_eq!(
            parts[0],
            [
                "getsockopt(3, SOL_SOCKET, SO_KEEPALIVE, [0], [4])",
                "setsockopt(3, SOL_TCP, TCP_KEEPINTVL, [10], 4)",
                "setsockopt(3, SOL_TCP, TCP_KEEPCNT, [5], 4)",
                "setsockopt(3, SOL_TCP, TCP_KEEPIDLE, [60], 4)",
                "setsockopt(3, SOL_SOCKET, SO_KEEPALIVE, [1], 4)",
            ]
        );
        for again in &parts[1..] {
            assert_eq!(
                again[..],
                [
                    "getsockopt(3, SOL_SOCKET, SO_KEEPALIVE, [1], [4])",
                    "getsockopt(3, SOL_TCP, TCP_KEEPINTVL, [10], [4])",
                    "getsockopt(3, SOL_TCP, TCP_KEEPCNT, [5], [4])",
                    "getsockopt(3, SOL_TCP, TCP_KEEPIDLE, [60], [4])",
                ]
            );
        }
        assert_eq!(parts.len(), 3);
    }
}

#[test]
fn accepted_connections_cost_no_call() {
    let (output, log) = strace(&program("trace", Linkage::Shared), &[], &["server"]);
    assert_eq!(output, format!("1 60 10 5 0 {} ", rto_max(fresh().as_raw_fd())).repeat(3));
    let accepts = between_marks(&log);
    for accepted in accepts.iter().step_by(2) {
        assert!(accepted.len() == 1 && accepted[0].starts_with("accept("), "{accepted:?}");
    }
}

#[test]
fn ka_probe_with_a_timeout_of_0_only_reads() {
    for link in LINKS {
        let (output, log) =
            strace(&program("trace", link), &["-e".into(), "trace=all".into()], &["probe", "0", "10000"]);
        assert_eq!(output, "0 1 ");
        let parts = between_marks(&log);
        let is_read = |call: &&str| call.starts_with("getsockopt(");
        assert!(!parts[0].is_empty() && parts[0].iter().all(is_read), "{:?}", parts[0]);
        assert!(parts[2].iter().any(|call| call.contains("TCP_KEEPIDLE, [1]")), "{:?}", parts[2]);
    }
}

#[test]
fn the_idle_time_is_set_after_a_lower_interval() {
    let (output, log) = strace(&program("trace", Linkage::Shared), &[], &["on", "intvl=1"]);
    let kept = if has_rto_max() { 60000 } else { -1 };
    assert_eq!(output, format!("1 600 60 6 60000 {kept} 1 600 1 6 60000 {kept} 0 0\n"));
    let writes: Vec<_> =
        between_marks(&log).remove(0).into_iter().filter(|call| call.starts_with("set")).collect();
    assert_eq!(
        writes,
        ["setsockopt(3, SOL_TCP, TCP_KEEPINTVL, [1], 4)", "setsockopt(3, SOL_TCP, TCP_KEEPIDLE, [600], 4)"]
    );
}

/// Reads a line of the program: the six values before the call, the six values after it, the result and errno.
fn outcome(output: &str) -> ([i32; 6], [i32; 6], (i32, i32)) {
    let numbers: Vec<i32> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let six = |from: usize| numbers[from..from + 6].try_into().unwrap();
    assert_eq!(numbers.len(), 14, "{output}");
    (six(0), six(6), (numbers[12], numbers[13]))
}

/// The kernel rejects the 1st, 2nd, 3rd, … write of a policy, on sockets with keepalive on and off.
#[test]
fn rejected_writes_leave_keepalive_unchanged() {
    let program = program("trace", Linkage::Shared);
    for on in [true, false] {
        for policy in [
            "idle=30,intvl=3,cnt=2",
            "idle=30,intvl=3,cnt=2,user_timeout=auto",
            "off,idle=30,intvl=3,cnt=2,user_timeout=7000",
            "keep,intvl=3,user_timeout=0",
            "idle=30,intvl=3,cnt=2,user_timeout=auto,rto_max=auto",
            "off,idle=30,intvl=3,cnt=2,rto_max=7000",
            "keep,intvl=3,rto_max=7000",
        ] {
            if policy.contains("rto_max") && !has_rto_max() {
                continue;
            }
            let start = if on { "on" } else { "off" };
            let mut refused = 0;
            loop {
                // The program itself makes six writes before the call.
                let inject = format!("inject=setsockopt:error=EPERM:when={}", 6 + refused + 1);
                let (output, _) = strace(&program, &["-e".into(), inject], &[start, policy]);
                let (before, after, result) = outcome(&output);
                let what = format!("{policy} on a socket that is {start}, write {} refused", refused + 1);
                if result == (0, 0) {
                    break;
                }
                refused += 1;
                assert_eq!(result, (-1, EPERM), "{what}");
                let kept = |values: [i32; 6]| (values[0], values[4], values[5]);
                assert_eq!(kept(before), kept(after), "{what}");
                if on {
                    assert_eq!(before, after, "{what}");
                }
            }
            assert!(refused >= 2, "{policy} made only {refused} writes");
        }
    }
}

/// The call makes all reads before its first write.
#[test]
fn failed_reads_change_nothing() {
    let program = program("trace", Linkage::Shared);
    for (start, policy) in [
        ("on", "intvl=3,user_timeout=auto"),
        ("off", "intvl=3,user_timeout=auto"),
        ("on", "intvl=3,rto_max=auto"),
        ("off", "intvl=3,rto_max=auto"),
    ] {
        if policy.contains("rto_max") && !has_rto_max() {
            continue;
        }
        let (_, log) = strace(&program, &[], &[start, policy]);
        let reads = between_marks(&log)[0].iter().filter(|call| call.starts_with("getsockopt")).count();
        // Reads SO_KEEPALIVE, the value that governs data, and the kept values that an automatic user timeout is
        // computed from.
        assert!(reads >= 4, "only {reads} reads on a socket that is {start}");
        for read in 1..=reads {
            // The program itself makes six reads before the call.
            let inject = format!("inject=getsockopt:error=ENOMEM:when={}", 6 + read);
            let (output, _) = strace(&program, &["-e".into(), inject], &[start, policy]);
            let (before, after, result) = outcome(&output);
            assert_eq!(result, (-1, libc::ENOMEM), "{start}, read {read}");
            assert_eq!(before, after, "{start}, read {read}");
        }
    }
}

/// tcp_retries2 is read only for an automatic value, and through a descriptor that is closed at exec.
#[test]
fn only_an_automatic_rto_max_opens_a_file() {
    if !has_rto_max() {
        return;
    }
    let program = program("trace", Linkage::Shared);
    for start in ["on", "off"] {
        for (policy, files) in [("rto_max=auto", 1), ("rto_max=2000", 0), ("user_timeout=auto", 0)] {
            let (_, log) = strace(&program, &[], &[start, policy]);
            let calls = between_marks(&log).remove(0);
            let opened: Vec<_> = calls.iter().filter(|call| call.starts_with("openat(")).collect();
            assert_eq!(opened.len(), files, "{policy}: {calls:?}");
            assert!(
                opened.iter().all(|call| call.contains("tcp_retries2") && call.contains("O_CLOEXEC")),
                "{opened:?}"
            );
        }
    }
}

#[test]
fn defaults_are_read_through_close_on_exec_descriptors() {
    let program = program("defaults", Linkage::Static);
    let (_, log) = strace(&program, &[], &[]);
    let opened = log.lines().filter(|line| line.contains("openat("));
    // The loader opens its files before the first sysctl.
    let opened: Vec<_> = opened.skip_while(|line| !line.contains("/proc/sys/")).collect();
    for name in ["tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes", "tcp_rto_max_ms"] {
        assert!(opened.iter().any(|line| line.contains(name)), "{name}: {opened:?}");
    }
    let is_sysctl = |line: &&str| line.contains("\"/proc/sys/net/ipv4/tcp_") && line.contains("O_CLOEXEC");
    assert!(opened.iter().all(is_sysctl), "{opened:?}");

    // Without /proc, ka_defaults uses a socket.
    let empty = scratch("root");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    let (_, log) = if is_root() {
        strace(&program, &[], &[empty])
    } else {
        // chroot(2) needs root, in a user namespace at least.
        strace(Path::new("unshare"), &[], &["-Ur", program.to_str().unwrap(), empty])
    };
    let made: Vec<_> = log.lines().filter(|line| line.contains("socket(AF_INET")).collect();
    assert!(!made.is_empty() && made.iter().all(|line| line.contains("SOCK_CLOEXEC")), "{made:?}");
}
