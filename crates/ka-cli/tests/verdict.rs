//! Tests that all ways to reach a program follow `ka_policy::judge` for its setsockopt(2): the shim, the seccomp
//! supervisor, and the BPF program of a cgroup on the running kernel.

mod command;

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use command::cgroups::{Cgroup, in_own_cgroup_tree};
use command::{ka, outcome, source};
use ka_core::{Config, Retransmission, SockOpt, Timer, UserTimeout, parse};
use ka_policy::{Mode, Verdict, judge, user_timeout_limit};
use ka_test::child::stdout;
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::socket::{fresh, has_rto_max, rto_max};

/// Builds a program that sets options, and prints the result of each call.
fn program() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| compile(&mut cc(), &source("verdict"), Linkage::Nothing))
}

/// A policy without a user timeout and `rto_max`, and policies with each, also with automatic ones.
const POLICIES: [&str; 5] = [
    "60,10,6",
    "idle=60,intvl=10,cnt=6,user_timeout=9000",
    "idle=90,intvl=30,cnt=4,user_timeout=auto",
    "idle=60,intvl=10,cnt=6,rto_max=2000",
    "idle=90,intvl=30,cnt=4,rto_max=auto",
];

/// Values around each limit of the kernel and of the policies.
const VALUES: [i32; 34] = [
    i32::MIN,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    9,
    10,
    11,
    30,
    31,
    59,
    60,
    61,
    90,
    91,
    127,
    128,
    999,
    1000,
    1980,
    2000,
    2020,
    9000,
    32767,
    32768,
    120_000,
    120_001,
    i32::MAX,
];

/// Returns every option with every value.
fn grid() -> Vec<(SockOpt, i32)> {
    let options = SockOpt::ALL.into_iter();
    let options = options.filter(|option| has_rto_max() || *option != SockOpt::Timer(Timer::RtoMax));
    options.flat_map(|option| VALUES.map(|value| (option, value))).collect()
}

/// Returns the value that a policy sets for an option.
fn from_policy(policy: &Config, option: SockOpt) -> i32 {
    match (option, policy.user_timeout()) {
        (SockOpt::Timer(Timer::UserTimeout), UserTimeout::Auto) => user_timeout_limit(policy),
        (SockOpt::Timer(Timer::UserTimeout), UserTimeout::Keep) => 0,
        (SockOpt::Timer(Timer::RtoMax), _) if !policy.names(Timer::RtoMax) => rto_max(fresh().as_raw_fd()),
        (SockOpt::Timer(timer), _) => policy.timer(timer).unwrap(),
        _ => 1,
    }
}

/// Runs the program by a command that ends with its path, and compares its output with the verdicts.
fn compare(way: &str, mode: Mode, policy: &str, mut command: Command) {
    let config = parse(policy.as_bytes()).unwrap().resolved(Retransmission::read().retries);
    let grid = grid();
    for (option, value) in &grid {
        let (level, name) = option.level_and_name();
        command.args([level, name, *value].map(|number| number.to_string()));
    }
    let out = stdout(&mut command);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), grid.len(), "{out}");
    for ((option, value), line) in grid.into_iter().zip(lines) {
        let before = from_policy(&config, option);
        let set = if option == SockOpt::KeepAlive { i32::from(value != 0) } else { value };
        let is_rejected = matches!(option, SockOpt::Timer(timer) if !timer.accepts(value));
        let (errno, after) = match judge(mode, &config, option, value) {
            Verdict::Reject => (libc::EINVAL, before),
            Verdict::Pass if is_rejected => (libc::EINVAL, before),
            Verdict::Pass => (0, set),
            Verdict::Ignore => (0, before),
            Verdict::Clamp(limit) => (0, limit),
        };
        let what = format!("{way} {mode:?} {policy} {option}={value}: {line}");
        if option == SockOpt::Timer(Timer::RtoMax) {
            // The kernel rounds it up to a multiple of its tick, which is at most 10 ms.
            let numbers: Vec<i32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            let [error, was, is] = numbers[..] else { panic!("{what}") };
            let is_near = |found: i32, exact: i32| found >= exact && found - exact < 10;
            assert!(
                error == errno && is_near(was, before) && is_near(is, after),
                "{what}, not {before}, {after}"
            );
        } else {
            assert_eq!(line, format!("{errno} {before} {after}"), "{what}");
        }
    }
}

/// Tests `ka run` by one way, in each mode with each policy.
fn compare_run(way: &str) {
    for mode in Mode::ALL {
        for policy in POLICIES {
            let mut command = ka();
            command.args(["run", "--via", way, "--mode", mode.name(), "-p", policy]).arg(program());
            compare(way, mode, policy, command);
        }
    }
}

#[test]
fn the_shim_follows_the_verdicts() {
    compare_run("preload");
}

#[test]
fn the_seccomp_supervisor_follows_the_verdicts() {
    compare_run("seccomp");
}

#[test]
fn the_bpf_program_follows_the_verdicts() {
    if !in_own_cgroup_tree("the_bpf_program_follows_the_verdicts") {
        return;
    }
    let cgroup = Cgroup::new();
    for mode in [Mode::Force, Mode::Default] {
        for policy in POLICIES {
            let attach = ["cgroup", "attach", "--mode", mode.name(), "-p", policy];
            let (status, _, err) = outcome(ka().args(attach).arg(&cgroup.0));
            assert_eq!((status, err.as_str()), (0, ""));
            let mut command = Command::new("sh");
            command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&cgroup.0).arg(program());
            compare("cgroup", mode, policy, command);
        }
    }
}
