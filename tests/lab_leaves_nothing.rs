//! Tests that the lab leaves no process, namespace, link or rule behind, whether it succeeds, fails, is interrupted or
//! is killed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::artifact::{cargo, release};
use ka_test::child::stdout;
use ka_test::lines::Lines;
use ka_test::namespace::in_new_namespaces;

/// Returns the path of the lab's test program.
fn lab() -> PathBuf {
    let mut cargo = cargo();
    cargo.args([
        "test",
        "--quiet",
        "--locked",
        "--offline",
        "--test",
        "lab",
        "--no-run",
        "--message-format=json",
    ]);
    let messages = stdout(&mut cargo);
    let (_, after) = messages.rsplit_once(r#""executable":""#).expect("no executable in the output of cargo");
    after.split('"').next().unwrap().into()
}

/// The processes, links, mounts and rules in this test's own namespaces.
#[derive(Debug, PartialEq)]
struct Leftovers {
    processes: usize,
    networks: usize,
    mounts: String,
    links: String,
    rules: String,
}

fn leftovers() -> Leftovers {
    let mut networks = BTreeSet::new();
    let mut processes = 0;
    for entry in fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
        // A process that has ended has no namespaces. It may also end during this loop.
        let Ok(network) = fs::read_link(entry.join("ns/net")) else { continue };
        if entry.ends_with("self") || entry.ends_with("thread-self") {
            continue;
        }
        processes += 1;
        networks.insert(network);
        let open = fs::read_dir(entry.join("fd")).into_iter().flatten();
        let open = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        networks.extend(open.filter(|target| target.to_string_lossy().starts_with("net:[")));
    }
    Leftovers {
        processes,
        networks: networks.len(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
        links: stdout(Command::new("ip").args(["-o", "link"])),
        rules: stdout(
            Command::new("nft").env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["list", "ruleset"]),
        ),
    }
}

/// Starts the lab with every kind of network. Returns when all networks exist.
fn start(ending: &str) -> (Child, Box<dyn Iterator<Item = String>>) {
    let mut command = Command::new(lab());
    command.env("KA_LAB_ENDING", ending).arg("--nocapture").stdout(Stdio::piped()).stderr(Stdio::null());
    // Make a process group as a shell does, so that a signal to the group has the effect of Ctrl-C.
    command.process_group(0);
    let mut child = command.spawn().unwrap();
    let mut lines = Lines::new("the lab", child.stdout.take().unwrap());
    assert!(
        lines.any(|line| line.ends_with("built")),
        "{ending}: the lab ended before it had made its networks"
    );
    (child, Box::new(lines))
}

#[test]
fn the_lab_leaves_nothing_behind_however_it_ends() {
    const TEST: &str = "the_lab_leaves_nothing_behind_however_it_ends";
    // Each lab needs libka. If the lab had to build it first, its first line would be late.
    release();
    if !in_new_namespaces(TEST, &["--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]) {
        return;
    }
    let before = leftovers();
    assert_eq!(before.networks, 1);

    let (mut lab, lines) = start("ends");
    lines.for_each(drop);
    assert!(lab.wait().unwrap().success(), "the lab failed");
    assert_eq!(leftovers(), before, "after a lab that has ended");

    let (mut lab, lines) = start("fails");
    lines.for_each(drop);
    assert!(!lab.wait().unwrap().success(), "the lab did not fail");
    assert_eq!(leftovers(), before, "after a lab that has failed");

    let (mut lab, lines) = start("waits");
    // SAFETY: the child was not waited for yet, so its process group still exists.
    unsafe { libc::kill(-i32::try_from(lab.id()).unwrap(), libc::SIGINT) };
    lines.for_each(drop);
    assert!(!lab.wait().unwrap().success(), "the lab was not interrupted");
    nothing_is_left(&before, "after a lab that was interrupted");

    let (mut lab, _lines) = start("waits");
    let during = leftovers();
    // Five networks of three machines, and one namespace that forwards frames.
    assert_eq!(during.networks, before.networks + 1 + 16, "the lab's networks were not counted");
    assert!(during.processes > before.processes, "the lab's processes were not counted");
    lab.kill().unwrap();
    lab.wait().unwrap();
    nothing_is_left(&before, "after a lab that was killed");
}

/// Waits until only the traces from before are left. The kernel ends the processes and namespaces with a delay.
fn nothing_is_left(before: &Leftovers, when: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while leftovers() != *before && Instant::now() < until {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(leftovers(), *before, "{when}");
}
