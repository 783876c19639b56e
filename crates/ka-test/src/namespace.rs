//! Namespaces: runs a test in a new network, or in new network and PID namespaces.
#![expect(unsafe_code, reason = "geteuid")]

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Output};

use crate::child::succeed;
use crate::path::scratch;

/// Runs the test again, alone, in a new network namespace. Returns whether this is that second run.
#[must_use]
pub fn in_own_network_namespace(test: &str) -> bool {
    in_new_namespaces(test, &["--net"])
}

/// Runs the test again, alone, in new network and PID namespaces. Returns whether this is that second run.
///
/// A test that acts on all processes then reaches only the processes that it has started. They all end with the test.
#[must_use]
pub fn in_own_namespaces(test: &str) -> bool {
    in_new_namespaces(test, &["--net", "--pid", "--fork", "--mount-proc"])
}

/// Runs the test again, alone, in new namespaces. Returns whether this is that second run.
///
/// `namespaces` are options of unshare(1). An ordinary user gets a new user namespace too, with all capabilities but
/// without becoming root in it: as root, some tools such as tcpdump would try to change to another user.
#[must_use]
pub fn in_new_namespaces(test: &str, namespaces: &[&str]) -> bool {
    const INSIDE: &str = "KA_TEST_NETWORK";
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(user_namespace()).args(namespaces).args([
        "sh",
        "-c",
        "ip link set lo up && exec \"$@\"",
        "sh",
    ]);
    command.arg(env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let output = succeed(&mut command);
    // Messages that were not captured in the second run are not captured in this one.
    let _ = io::stderr().write_all(&output.stderr);
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("1 passed"), "{test} did not run: {output}");
    false
}

/// Runs a shell script in a new mount namespace, where /etc is a copy without ka.conf. Only root can do this.
pub fn with_own_etc(script: &str) -> Output {
    let etc = scratch("etc");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg(
        "cp -a /etc \"$etc\" && rm -f \"$etc/ka.conf\" && mount --bind \"$etc\" /etc && eval \"$script\"",
    );
    let output = command.env("etc", &etc).env("script", script).output().unwrap();
    fs::remove_dir_all(etc).unwrap();
    output
}

/// Returns the options of unshare(1) that an ordinary user needs to create other namespaces. Root needs none.
pub fn user_namespace() -> &'static [&'static str] {
    if is_root() { &[] } else { &["--user", "--map-current-user", "--keep-caps"] }
}

/// Returns whether the test runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes no argument and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
