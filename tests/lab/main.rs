//! The lab makes small networks on this machine, injects faults, and checks how keepalive reacts. It looks at the
//! packets that tcpdump captures, and at the errors that programs get.
//!
//! Each case is a test. `make lab` runs the same cases, prints them as a table, and writes target/lab/report.md with a
//! picture of each. The lab runs in new network, mount and PID namespaces, so it leaves nothing behind, however it
//! ends.

mod cases {
    pub mod data;
    pub mod dead_peer;
    pub mod idle;
    pub mod ka_probe;
    pub mod loss;
    pub mod many;
    pub mod measure;
    pub mod middlebox;
    pub mod probe;
    pub mod rules;
    pub mod soak;
    pub mod traces;
    pub mod watch;
}
mod chart;
mod drift;
mod endpoint;
mod network;
mod report;
mod story;
mod timeline;
mod wire;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use ka_test::example::example;
use ka_test::kernel::has_ipv6;
use ka_test::libka::libka;
use ka_test::log::skip;
use ka_test::namespace::user_namespace;
use ka_test::process::raise_descriptor_limit;
use libtest_mimic::Arguments;

use network::Family;
use story::Case;

/// Set inside the namespaces, to the PID of the process that waits outside. Inside, this process is always PID 1.
pub const INSIDE: &str = "KA_LAB_INSIDE";
/// The folder for the report. Without it, the lab writes no report.
const REPORT: &str = "KA_LAB_REPORT";

fn main() -> ExitCode {
    if let Ok(role) = env::var(endpoint::PEER) {
        endpoint::run_peer(&role);
    }
    extend_path();
    let mut arguments = Arguments::from_args();
    if env::var_os(INSIDE).is_none() && !arguments.list {
        return enter();
    }
    obey_signals();
    raise_descriptor_limit();
    // Build now, so that no case has to wait for a build.
    libka();
    let records = Arc::new(Mutex::new(vec![]));
    let trials: Vec<_> = cases().into_iter().map(|case| case.trial(&records)).collect();
    // The cases mostly wait for timers, so all of them can run at the same time.
    arguments.test_threads.get_or_insert(trials.len().max(1));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(folder) = env::var_os(REPORT) {
        report::write(folder.as_ref(), &mut records.lock().unwrap());
    }
    conclusion.exit_code()
}

fn cases() -> Vec<Case> {
    if let Some(ending) = env::var_os(cases::traces::ENDING) {
        return vec![cases::traces::case(&ending.to_string_lossy())];
    }
    if env::var_os(cases::soak::MINUTES).is_some() {
        return cases::soak::cases();
    }
    let mut families = vec![Family::V4];
    families.extend(has_ipv6().then_some(Family::V6));
    // Start the longest cases first.
    let mut cases = cases::loss::cases();
    cases.extend(cases::many::cases());
    cases.extend(cases::data::cases());
    cases.extend(cases::ka_probe::cases());
    cases.extend(cases::measure::cases());
    cases.extend(cases::watch::cases());
    for family in families {
        cases.extend(cases::middlebox::cases(family));
        cases.extend(cases::dead_peer::cases(family));
        cases.extend(cases::probe::cases(family));
        cases.extend(cases::ka_probe::cases_of(family));
        cases.extend(cases::measure::cases_of(family));
    }
    cases.extend(cases::rules::cases());
    cases.extend(cases::idle::cases());
    cases.extend(cases::soak::cases());
    cases
}

/// Ends the lab on a signal. The kernel ignores signals to the first process of a PID namespace if it has no handler.
/// When this process ends, the kernel kills all others in the namespace.
fn obey_signals() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit(2) is async-signal-safe.
        unsafe { libc::_exit(128 + signal) };
    }
    let end: extern "C" fn(libc::c_int) = end;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler has the right signature, and calls only an async-signal-safe function.
        unsafe { libc::signal(signal, end as libc::sighandler_t) };
    }
}

/// Adds the folders of administration tools, which an ordinary user's PATH lacks.
fn extend_path() {
    let path = env::var("PATH").unwrap_or_default();
    // SAFETY: there are no other threads yet.
    unsafe { env::set_var("PATH", format!("{path}:/usr/sbin:/sbin")) };
}

/// Runs this program again in new namespaces. When its first process ends, or the process that waits for it is killed,
/// the kernel kills all others, and removes their networks.
fn enter() -> ExitCode {
    // Compile outside the namespaces.
    example("tcp_keepalive_client");
    let mut flags = user_namespace().to_vec();
    flags.extend(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let mut probe = Command::new("unshare");
    let allowed =
        probe.args(&flags).arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !allowed {
        skip("the lab: cannot create namespaces. Run it as root, or allow user namespaces (unshare -Urn)");
        return if env::var_os(REPORT).is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let error = Command::new("unshare")
        .args(&flags)
        .args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(env::current_exe().unwrap())
        .args(env::args_os().skip(1))
        .env(INSIDE, std::process::id().to_string())
        .exec();
    panic!("unshare: {error}");
}
