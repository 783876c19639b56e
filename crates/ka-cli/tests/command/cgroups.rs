//! Creates cgroups and a bpf filesystem for a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ka_test::child::{Running, stdout, succeed};
use ka_test::kernel::lacks_bpf;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_new_namespaces, is_root};
use ka_test::path::root;

/// A cgroup of the test at the top of the tree. The tree's controllers are not enabled in it.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    /// Creates a cgroup in a tree that is mounted for the test, so it does not depend on the mounts of this machine.
    pub fn new() -> Self {
        let cgroup = Self(tree().join(format!("ka-test-{}", std::process::id())));
        fs::create_dir(&cgroup.0).unwrap();
        cgroup
    }

    pub fn below(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // If this process is in the cgroup, it returns to the top.
        let _ = fs::write(tree().join("cgroup.procs"), std::process::id().to_string());
        // A killed process leaves the cgroup a moment later. A ka process that has lost its cgroup leaves after some
        // seconds.
        for _ in 0..500 {
            remove(&self.0);
            if !self.0.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes empty cgroups, the deepest first. find(1) also removes those whose path is longer than PATH_MAX.
fn remove(path: &Path) {
    let mut find = Command::new("find");
    let _ = find.arg(path).args(["-depth", "-type", "d", "-delete"]).stderr(Stdio::null()).status();
}

/// Returns the path where the test has mounted the cgroup tree.
pub fn tree() -> PathBuf {
    "/run/ka-test-cgroups".into()
}

/// Runs the test again with its own network and mount namespaces, and returns whether this is that run. If bpf(2) or
/// cgroups are not available, skips the test loudly.
pub fn in_own_cgroup_tree(test: &str) -> bool {
    if !is_root() {
        skip("only root attaches programs to cgroups");
        return false;
    }
    let probe = Command::new("unshare").args(["--mount", "sh", "-c"]).arg(MOUNT).output().unwrap();
    if !probe.status.success() {
        skip(&format!("cgroup v2 and bpffs cannot be mounted: {}", String::from_utf8_lossy(&probe.stderr)));
        return false;
    }
    if let Some(why) = lacks_bpf() {
        skip(&why);
        return false;
    }
    if !in_new_namespaces(test, &["--net", "--mount"]) {
        return false;
    }
    succeed(Command::new("sh").args(["-c", MOUNT]));
    true
}

/// The cgroup tree is that of the machine, which may be mounted anywhere. The bpf filesystem is new for each test.
const MOUNT: &str = "mount -t tmpfs none /run && mkdir /run/ka-test-cgroups && \
                     mount -t cgroup2 none /run/ka-test-cgroups && mount -t bpf none /sys/fs/bpf";

/// Starts a command that keeps running. Returns the command and the first line of its output.
pub fn attaching(command: &mut Command) -> (Running, String) {
    let mut running = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let line = Lines::new("ka", running.0.stdout.take().unwrap()).next().unwrap_or_default();
    (running, line)
}

/// Returns the system calls that the systemd unit allows.
pub fn unit_calls() -> BTreeSet<String> {
    let unit = fs::read_to_string(root().join("deploy/systemd/ka-cgroup@.service")).unwrap();
    let mut calls = BTreeSet::new();
    for words in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        system_calls(words, &mut calls);
    }
    calls
}

/// Returns the system calls that the profile for containers allows.
pub fn profile_calls() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("deploy/kubernetes/seccomp.json")).unwrap();
    let profile: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names = profile["syscalls"][0]["names"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Applies an item of systemd's SystemCallFilter= list: `~` removes calls, `@` names a set of systemd.
fn system_calls(words: &str, calls: &mut BTreeSet<String>) {
    let (words, allow) = words.strip_prefix('~').map_or((words, true), |words| (words, false));
    for word in words.split_whitespace() {
        if word.starts_with('@') {
            let set = stdout(Command::new("systemd-analyze").args(["syscall-filter", word]));
            for word in
                set.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                system_calls(&format!("{}{word}", if allow { "" } else { "~" }), calls);
            }
        } else if allow {
            calls.insert(word.to_owned());
        } else {
            calls.remove(word);
        }
    }
}
