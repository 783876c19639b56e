//! Attackers that try to stop ka: they hold the locks of their sockets, make the last close wait, or have more
//! descriptors or threads than ka can read. Each test shows that ka ends, that all other sockets have the policy, and
//! that ka names the sockets that it left out.

mod command;

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use command::cgroups::{Cgroup, attaching, in_own_cgroup_tree, profile_calls, unit_calls};
use command::{Holder, Options, as_nobody, bare, holder, ka, source};
use ka_test::artifact::release;
use ka_test::child::{Running, stdout, succeed};
use ka_test::compiler::{Linkage, allowing, cc, compile};
use ka_test::kernel::lacks_bpf;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, is_root};
use ka_test::path::{PublicFolder, copy_program, scratch, unique};
use ka_test::process::{children, kill, signal_child, state};
use ka_test::wait::{eventually, eventually_within};
use serde_json::Value;

/// More time than ka needs for a few sockets on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// An attacker, which ends at the end of its input.
struct Attacker {
    child: Child,
    said: Vec<i32>,
    lines: Lines<ChildStdout>,
}

impl Attacker {
    /// Starts a program of tests/c and reads the numbers that it prints. Skips loudly and returns `None` if it cannot
    /// attack here.
    fn start(name: &str, args: &[&str]) -> Option<Self> {
        let program = compile(cc().arg("-pthread"), &source(name), Linkage::Nothing);
        // Every user may run the program there, even if the repository is private.
        let folder = PublicFolder::new(name);
        let place = folder.join(name);
        copy_program(program, &place);
        let mut child = bare(&place).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::new(name, child.stdout.take().unwrap());
        let Some(line) = lines.next() else {
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(77), "{name}: {status}");
            skip("userfaultfd(2) does not handle page faults of the kernel here");
            return None;
        };
        let said = line.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
        Some(Self { child, said, lines })
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Makes an attacker that was started with `later` attack.
    fn attack(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert!(self.lines.expect("`locked`").starts_with("locked "));
    }

    /// Reads the options of the attacker's sockets. It omits sockets whose lock is held, because they could block this
    /// test.
    fn others(&self) -> Vec<Options> {
        let locked = &self.said;
        command::socket_options_except(self.child.id().try_into().unwrap(), locked)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_attackers() -> bool {
    if !is_root() {
        skip("only root looks into the processes of other users");
    }
    is_root()
}

/// Runs ka to its end. Its pipes must be closed too, although its workers may still exist.
#[track_caller]
fn ends(mut command: Command) -> (i32, String, String) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    output(child, &format!("{command:?}"))
}

#[track_caller]
fn output(child: Child, what: &str) -> (i32, String, String) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let Ok(Output { status, stdout, stderr }) = receiver.recv_timeout(LONG) else {
        panic!("{what} does not end in {LONG:?}");
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn attach(args: &[&str]) -> Command {
    let mut command = ka();
    command.arg("attach").args(args);
    command
}

const BLOCKED: &str = "did not answer within 2 s (a program holds its lock)";

#[test]
fn ka_sets_other_sockets_while_a_lock_is_held() {
    if !in_own_namespaces("ka_sets_other_sockets_while_a_lock_is_held") || !has_attackers() {
        return;
    }
    let mut before = Holder::start(&mut Command::new(holder()));
    let Some(evil) = Attacker::start("locker", &["65534", "evil", "1"]) else { return };
    let mut after = Holder::start(&mut Command::new(holder()));
    let named = format!("{} (evil) fd {} ", evil.pid(), evil.said[0]);
    let is_named = |out: &str| out.lines().any(|line| line.starts_with(&named) && line.contains(BLOCKED));

    // ka attach --dry-run and ka ls set no socket.
    let (status, out, err) = ends(attach(&["--all", "--dry-run"]));
    assert_eq!(status, 1, "{out}{err}");
    assert!(
        is_named(&out)
            && out.ends_with("10 sockets would be set to 60,10,6 (mode force), 0 unchanged, 1 failed\n"),
        "{out}{err}"
    );
    let mut ls = ka();
    ls.arg("ls");
    let (status, out, err) = ends(ls);
    let line = format!("ka: ls: process {} (evil): its socket fd {} {BLOCKED}\n", evil.pid(), evil.said[0]);
    assert_eq!((status, err.as_str()), (1, line.as_str()), "{out}");
    assert!(out.contains("11 sockets: 0 on, 11 off"), "{out}");
    let mut ls = ka();
    ls.args(["ls", "--json", "--pid", &evil.pid()]);
    let (status, out, err) = ends(ls);
    let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    let errors: Vec<_> = rows.iter().filter(|row| !row["error"].is_null()).collect();
    assert_eq!((status, rows.len(), errors.len()), (1, 5, 1), "{out}{err}");
    assert_eq!((&errors[0]["fd"], &errors[0]["error"]), (&evil.said[0].into(), &BLOCKED.into()), "{out}");
    // The other rows have their status: the kernel's list had blocked, so ka read the status socket by socket.
    assert!(rows.iter().all(|row| row["error"].is_string() || row["unanswered_probes"] == 0), "{out}");
    let mut check = ka();
    check.args(["check", &evil.pid()]);
    let (status, out, err) = ends(check);
    let blocked = format!("its socket fd {} {BLOCKED}", evil.said[0]);
    assert!(
        status == 1 && out.contains("5 TCP sockets, 5 of them without keepalive") && out.contains(&blocked),
        "{out}{err}"
    );

    let (status, out, err) = ends(attach(&["--all", "-p", "280,30,5"]));
    assert_eq!(status, 1, "{out}{err}");
    assert!(
        is_named(&out) && out.ends_with("10 sockets set to 280,30,5 (mode force), 0 unchanged, 1 failed\n"),
        "{out}{err}"
    );
    before.assert_all(280, 30, 5);
    after.assert_all(280, 30, 5);
    assert_eq!(evil.others().len(), 4);
    assert!(evil.others().iter().all(|options| options.on && options.timers[..3] == [280, 30, 5]));

    let (status, out, err) =
        ends(attach(&["--json", "-p", "281,30,5", &evil.pid(), &after.pid().to_string()]));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &report["set"], &report["failed"]), (1, &7.into(), &1.into()), "{out}{err}");
    let sockets = report["sockets"].as_array().unwrap();
    let failed = sockets.iter().find(|socket| socket["result"] == "failed").unwrap();
    assert_eq!(failed["fd"], evil.said[0]);
    assert!(failed["error"].as_str().unwrap().contains(BLOCKED), "{out}");

    if let Some(why) = lacks_bpf() {
        skip(&format!("ka attach --via bpf: {why}"));
    } else {
        let (status, out, err) = ends(attach(&["--all", "--via", "bpf", "-p", "290,30,5"]));
        assert_eq!(status, 1, "{out}{err}");
        assert!(is_named(&out), "{out}{err}");
        // The kernel had set some of them when it blocked.
        let counts = format!(
            "{} sockets set to 290,30,5 (mode force), 0 unchanged, 1 failed\n",
            6 + evil.others().len()
        );
        assert!(out.ends_with(&counts), "{out}{err}");
        before.assert_all(290, 30, 5);
        after.assert_all(290, 30, 5);
        assert!(evil.others().iter().all(|options| options.timers[..3] == [290, 30, 5]));
    }
}

#[test]
fn ka_ends_at_a_signal_while_a_lock_is_held() {
    if !in_own_namespaces("ka_ends_at_a_signal_while_a_lock_is_held") || !has_attackers() {
        return;
    }
    let Some(evil) = Attacker::start("locker", &["65534", "evil", "1"]) else { return };
    let mut victim = Holder::start(&mut Command::new(holder()));
    let spawn = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let terminate = |child: &Child| {
        signal_child(child, libc::SIGTERM);
    };
    // The signal comes while a worker is stuck in state D and ka has not given it up yet.
    let is_stuck = |ka: &Child| {
        children(ka.id().try_into().unwrap()).into_iter().any(|worker| state(worker) == Some('D'))
    };
    for args in [&["--follow", "--all"][..], &["--all"], &["--all", "--dry-run"]] {
        let child = spawn(attach(args));
        eventually("a worker is stuck", || is_stuck(&child));
        terminate(&child);
        let sent = Instant::now();
        let (status, out, err) = output(child, "ka attach");
        assert!(sent.elapsed() < Duration::from_secs(30), "{args:?}: {:?}", sent.elapsed());
        // With --follow, ka exits with status 0; otherwise the signal ends it.
        assert_eq!(status, if args[0] == "--follow" { 0 } else { -1 }, "{args:?}: {out}{err}");
    }
    // The same while ka follows, with a stuck worker left behind.
    let child = spawn(attach(&["--follow", "--all", "--interval", "100ms", "-p", "280,30,5"]));
    let is_set = |options: &Options| options.on && options.timers[..3] == [280, 30, 5];
    eventually("the victim is set", || victim.look().iter().all(is_set));
    victim.open();
    eventually("sockets that the victim opens later are set", || {
        let options = victim.look();
        options.len() == 5 && options.iter().all(is_set)
    });
    terminate(&child);
    let (status, out, err) = output(child, "ka attach --follow");
    assert_eq!(status, 1, "{out}{err}");
    let named = format!("{} (evil) fd {} ", evil.pid(), evil.said[0]);
    assert_eq!(
        out.lines().filter(|line| line.starts_with(&named) && line.contains(BLOCKED)).count(),
        1,
        "{out}"
    );
}

fn ping(args: &[&str]) -> Command {
    let mut command = ka();
    command.args(["ping", "--json"]).args(args);
    command
}

/// Returns the rows of `ka ping --json` that have this result.
fn with_result(out: &str, result: &str) -> Vec<Value> {
    let rows: Vec<Value> = serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"));
    rows.into_iter().filter(|row| row["result"] == result).collect()
}

#[test]
fn ping_probes_other_connections_while_a_lock_is_held() {
    if !in_own_namespaces("ping_probes_other_connections_while_a_lock_is_held") || !has_attackers() {
        return;
    }
    let _before = Holder::start(&mut Command::new(holder()));
    let Some(evil) = Attacker::start("locker", &["65534", "evil", "2"]) else { return };
    let _after = Holder::start(&mut Command::new(holder()));
    thread::sleep(Duration::from_millis(1100));
    let (status, out, err) = ends(ping(&["--all"]));
    let skipped = with_result(&out, "skipped");
    let (answered, silent) = (with_result(&out, "answered"), with_result(&out, "silent"));
    // The kernel does not answer for a socket while its lock is held, so the other ends of the two are silent.
    assert_eq!((status, answered.len(), silent.len(), skipped.len()), (1, 6, 2, 2), "{out}{err}");
    for (row, fd) in skipped.iter().zip(&evil.said) {
        assert_eq!((row["fd"].as_i64(), &row["error"]), (Some((*fd).into()), &BLOCKED.into()), "{row}");
    }
}

/// The attacker locks sockets whose probe is under way. The settings of all other sockets must be put back, and those
/// of the locked sockets as soon as their lock is released.
#[test]
fn ping_restores_settings_although_locks_are_taken_during_a_probe() {
    if !in_own_namespaces("ping_restores_settings_although_locks_are_taken_during_a_probe")
        || !has_attackers()
    {
        return;
    }
    let mut before = Holder::start(&mut Command::new(holder()));
    let Some(mut evil) = Attacker::start("locker", &["65534", "evil", "12", "later"]) else { return };
    let mut after = Holder::start(&mut Command::new(holder()));
    let settings = [before.look(), after.look()];
    let of_evil = command::socket_options_except(evil.child.id().try_into().unwrap(), &[]);
    thread::sleep(Duration::from_millis(1100));
    // All probes stay unanswered.
    let rules = "add table ip t; add chain ip t in { type filter hook input priority 0; }; add rule ip t in counter drop";
    let mut nft = Command::new("nft");
    succeed(nft.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg(rules));
    let mut command = ping(&["--all", "--timeout", "3s"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ka: i32 = child.id().try_into().unwrap();
    eventually("the worker probes", || {
        let mut nft = Command::new("nft");
        let rules = stdout(nft.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg("list table ip t"));
        !rules.contains("packets 0 ")
    });
    let workers = children(ka);
    evil.attack();
    let (status, out, err) = output(child, "ka ping");
    // 13 connections of the attacker, of which it has locked 12 on one side, and 2 of the holders.
    let (silent, skipped) = (with_result(&out, "silent"), with_result(&out, "skipped"));
    assert_eq!((status, silent.len() + skipped.len()), (1, 30), "{out}{err}");
    let of_others = silent.iter().filter(|row| row["comm"] != "evil").count();
    assert_eq!(of_others, 4, "{out}{err}");
    let blocked = skipped.iter().filter(|row| row["error"] == BLOCKED).count();
    assert!(blocked >= 8, "{out}{err}");
    assert_eq!([before.look(), after.look()], settings);
    // When the attacker ends, the worker restores the settings and ends. The test has duplicates.
    let process = ka_test::process::open(evil.child.id().try_into().unwrap()).unwrap();
    let sockets: Vec<_> =
        of_evil.iter().map(|options| ka_test::process::duplicate(&process, options.fd).unwrap()).collect();
    drop(evil);
    eventually("the workers have ended", || {
        workers.iter().all(|worker| !ka_test::process::is_running(*worker))
    });
    for (socket, options) in sockets.iter().zip(&of_evil) {
        let [on, timers @ .., _] = ka_test::socket::keepalive_options(socket.as_raw_fd());
        assert_eq!(
            (on.unwrap() != 0, timers.map(Result::unwrap)),
            (options.on, options.timers),
            "{options:?}"
        );
    }
}

/// After 8 blocked sockets of one user, ka leaves the rest of that user's sockets alone. It still sets those of others.
#[test]
fn a_user_with_many_held_locks_is_left_alone() {
    if !in_own_namespaces("a_user_with_many_held_locks_is_left_alone") || !has_attackers() {
        return;
    }
    let Some(evil) = Attacker::start("locker", &["65534", "evil", "12"]) else { return };
    let mut after = Holder::start(&mut Command::new(holder()));
    let (status, out, err) = ends(attach(&["--all", "-p", "280,30,5"]));
    assert_eq!(status, 1, "{out}{err}");
    assert_eq!(out.lines().filter(|line| line.contains(BLOCKED)).count(), 8, "{out}{err}");
    assert!(
        err.contains(&format!("{} (evil): 8 sockets of user 65534 did not answer", evil.pid())),
        "{out}{err}"
    );
    after.assert_all(280, 30, 5);
    // A later run also sets the sockets of other users.
    let (status, out, err) = ends(attach(&["-p", "281,30,5", &after.pid().to_string()]));
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "3 sockets set to 281,30,5 (mode force), 0 unchanged, 0 failed\n", "")
    );
}

#[test]
fn lingering_sockets_do_not_block_ka() {
    if !in_own_namespaces("lingering_sockets_do_not_block_ka") || !has_attackers() {
        return;
    }
    for follow in [false, true] {
        let Some(evil) = Attacker::start("lingerer", &["65534", "20"]) else { return };
        let mut victim = Holder::start(&mut Command::new(holder()));
        // strace delays each option, so that ka still has a duplicate when the attacker ends.
        let mut strace = bare("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=setsockopt", "-e"]);
        strace.arg("inject=setsockopt:delay_enter=20000").arg(release().join("ka"));
        strace.args(["attach", "--all", "-p", "280,30,5"]).args(follow.then_some("--follow"));
        let child =
            strace.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let is_set = |options: &Options| options.on && options.timers[..3] == [280, 30, 5];
        if follow {
            eventually_within(LONG, "the victim is set", || victim.look().iter().all(is_set));
            let ka = children(child.id().try_into().unwrap())[0];
            kill(ka, libc::SIGTERM);
        }
        let (status, out, err) = output(child, "ka attach");
        assert_eq!(status, 0, "{out}{err}");
        victim.assert_all(280, 30, 5);
        assert_eq!(state(evil.said[0]), Some('Z'), "the attacker did not attack");
    }
}

/// A cgroup has a socket whose lock is held: ka sets the cgroup's other sockets through their processes. For
/// this, ka needs only system calls that the systemd unit and the profile for containers allow.
#[test]
fn a_cgroup_gets_its_policy_while_a_lock_is_held() {
    if !in_own_cgroup_tree("a_cgroup_gets_its_policy_while_a_lock_is_held") {
        return;
    }
    let cgroup = Cgroup::new();
    fs::write(cgroup.0.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let mut before = Holder::start(&mut Command::new(holder()));
    let Some(evil) = Attacker::start("locker", &["65534", "evil", "1"]) else { return };
    let mut after = Holder::start(&mut Command::new(holder()));
    let named = format!("process {} (evil): its socket fd {} {BLOCKED}", evil.pid(), evil.said[0]);
    // The kernel had set some of them when it blocked.
    let counts =
        format!("; {} sockets set, 0 unchanged, 0 failed; some were not examined", 6 + evil.others().len());
    let mut check = |mode: &str, idle: i32, err: &str| {
        assert!(err.contains(&named), "{mode}: {err}");
        before.assert_all(idle, 30, 5);
        after.assert_all(idle, 30, 5);
        // In mode default, sockets that have keepalive on keep their settings.
        if mode == "force" {
            assert!(evil.others().iter().all(|options| options.on && options.timers[..3] == [idle, 30, 5]));
        }
    };
    let args = |mode, idle: i32| {
        ["cgroup", "attach", "--mode", mode, "-i30", "-c5", &format!("-d{idle}")].map(str::to_owned)
    };

    for (mode, idle, calls) in [("default", 270, profile_calls()), ("force", 280, unit_calls())] {
        let errors = scratch("sweep-errors");
        let mut command = Command::new(allowing(calls.iter().map(String::as_str)));
        command.arg(ka().get_program()).args(args(mode, idle)).arg("--foreground").arg(&cgroup.0);
        let (_running, line) = attaching(command.stderr(fs::File::create(&errors).unwrap()));
        let err = fs::read_to_string(&errors).unwrap();
        assert!(line.contains(&counts), "{line}\n{err}");
        check(mode, idle, &err);
    }
    let mut command = ka();
    let (status, out, err) = ends({
        command.args(args("force", 290)).arg(&cgroup.0);
        command
    });
    assert!(status == 1 && out.contains(&counts), "{out}{err}");
    check("force", 290, &err);
    succeed(ka().args(["cgroup", "detach", "--all"]));
}

/// A mount of net_cls for this test, with a cgroup that has a class. The second field names the mounted controllers.
struct NetCls(PathBuf, &'static str);

impl NetCls {
    /// Skips loudly and returns `None` if net_cls cannot be mounted.
    fn mount() -> Option<Self> {
        let folder = std::env::temp_dir().join(unique("ka-net-cls"));
        fs::create_dir(&folder).unwrap();
        for controllers in ["net_cls", "net_cls,net_prio"] {
            let mount =
                Command::new("mount").args(["-t", "cgroup", "-o", controllers, "none"]).arg(&folder).output();
            if mount.unwrap().status.success() {
                let made = Self(folder, controllers);
                fs::create_dir(made.cgroup()).unwrap();
                fs::write(made.cgroup().join("net_cls.classid"), "0x100001").unwrap();
                return Some(made);
            }
        }
        let _ = fs::remove_dir(folder);
        skip("neither net_cls nor net_cls,net_prio can be mounted as a cgroup of version 1");
        None
    }

    fn cgroup(&self) -> PathBuf {
        self.0.join(format!("ka-test-{}", std::process::id()))
    }
}

impl Drop for NetCls {
    fn drop(&mut self) {
        // A killed process leaves the cgroup a moment later.
        for _ in 0..500 {
            if fs::remove_dir(self.cgroup()).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        // The kernel removes the hierarchy some time after its last unmount. If remains of the cgroup existed at that
        // moment, the hierarchy needs another mount and unmount.
        let is_there = || fs::read_to_string("/proc/self/cgroup").unwrap().contains("net_cls");
        for _ in 0..3 {
            let _ = Command::new("umount").arg(&self.0).status();
            let end = Instant::now() + Duration::from_secs(3);
            while is_there() && Instant::now() < end {
                thread::sleep(Duration::from_millis(50));
            }
            if !is_there() {
                break;
            }
            let _ = Command::new("mount").args(["-t", "cgroup", "-o", self.1, "none"]).arg(&self.0).status();
        }
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns how many sockets of this network namespace have the class according to ss(8), and how many there are.
fn classed() -> (usize, usize) {
    let sockets = stdout(Command::new("ss").args(["-tanH", "--tos"]));
    (sockets.lines().filter(|line| line.contains("class_id:0x100001")).count(), sockets.lines().count())
}

/// A receiver of a descriptor gives the socket the receiver's class. So ka first enters the cgroup of the process.
#[test]
fn sockets_keep_their_class() {
    if !in_own_namespaces("sockets_keep_their_class") || !has_attackers() {
        return;
    }
    let Some(net_cls) = NetCls::mount() else { return };
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ >\"$0\" && exec \"$1\""]).arg(net_cls.cgroup().join("tasks")).arg(holder());
    let mut holder = Holder::start(&mut shell);
    let pid = holder.pid().to_string();
    assert_eq!(classed(), (3, 3));
    // If the hierarchy is not mounted, ka leaves the sockets alone, except with --lose-class.
    let elsewhere = |args: &[&str]| {
        let mut command = bare("unshare");
        command.args(["--mount", "sh", "-c", "umount \"$0\" && exec \"$@\""]).arg(&net_cls.0);
        command.arg(release().join("ka")).args(args).arg(&pid);
        ends(command)
    };
    for args in [&["attach"][..], &["attach", "--dry-run"]] {
        let (status, out, err) = elsewhere(args);
        assert!(
            status == 1 && err.contains("class of net_cls") && err.contains("--lose-class"),
            "{out}{err}"
        );
        assert_eq!(classed(), (3, 3), "{args:?}");
    }
    let (_, out, err) = elsewhere(&["check"]);
    assert!(out.contains("class of net_cls"), "{out}{err}");
    assert_eq!(classed(), (3, 3));
    assert!(holder.look().iter().all(|options| !options.on));

    for args in [&["check"][..], &["ls", "--pid"], &["attach", "--dry-run"], &["attach", "-p", "280,30,5"]] {
        let mut command = ka();
        command.args(args).arg(&pid);
        let (_, out, err) = ends(command);
        assert_eq!((classed(), err.as_str()), ((3, 3), ""), "{args:?}: {out}");
    }
    holder.assert_all(280, 30, 5);
    let (status, out, err) = elsewhere(&["attach", "--lose-class", "-p", "281,30,5"]);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    holder.assert_all(281, 30, 5);
    assert_eq!(classed(), (0, 3));
    drop(holder);

    let tasks = net_cls.cgroup().join("tasks");
    // The supervisor of `ka run` starts in another cgroup than the program, which moves itself.
    let mut run = ka();
    run.args(["run", "--via", "seccomp", "-p", "280,30,5", "sh", "-c", "echo $$ >\"$0\" && exec \"$1\""]);
    let mut holder = Holder::start(run.arg(&tasks).arg(command::holder()));
    holder.assert_all(280, 30, 5);
    // Sockets of the earlier processes may still be there, in state TIME-WAIT.
    assert_eq!(classed().0, 3);
    let members = fs::read_to_string(&tasks).unwrap();
    assert_eq!(members.lines().count(), 1, "the program is in the cgroup, and the supervisor has left it");
    drop(holder);

    // The supervisor of an ordinary user may not enter a cgroup of root's.
    let folder = PublicFolder::new("class");
    for program in [release().join("ka").as_path(), command::holder()] {
        copy_program(program, folder.join(program.file_name().unwrap()));
    }
    let reachable = folder.join(command::holder().file_name().unwrap());
    let errors = scratch("class-errors");
    let mut run = bare(folder.join("ka"));
    let mut run = as_nobody(run.args(["run", "--via", "seccomp", "-p", "280,30,5"]).arg(&reachable));
    let mut holder = Holder::start(run.stderr(fs::File::create(&errors).unwrap()));
    let (run, program) = (holder.pid(), reachable.as_os_str().as_encoded_bytes());
    let is_program =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(program));
    let pid = (run..run + 100).find(is_program).unwrap();
    fs::write(&tasks, pid.to_string()).unwrap();
    holder.open();
    assert_eq!(classed().0, 5);
    let options = holder.look();
    assert_eq!(options.iter().filter(|options| !options.on).count(), 1, "{options:?}");
    let said = || fs::read_to_string(&errors).unwrap();
    eventually("ka names the program", || said().contains("class of net_cls"));
    assert!(said().contains("no policy") && said().contains("--lose-class"), "{}", said());
}

/// Starts a program with 300 threads that each have their own descriptor table, and one socket more than the program
/// had after `setup`.
fn three_hundred_tables(setup: &str) -> Running {
    const THREADS: &str = "def run():\n\
        \x20   assert libc.unshare(0x400) == 0\n\
        \x20   kept = socket.socket()\n\
        \x20   ready.release()\n\
        \x20   time.sleep(600)\n\
        for n in range(300): threading.Thread(target=run, daemon=True).start()\n\
        for n in range(300): ready.acquire()\n\
        print('ready', flush=True)\n\
        time.sleep(600)";
    let start = "import ctypes, socket, threading, time\n\
        libc = ctypes.CDLL(None)\n\
        ready = threading.Semaphore(0)\n";
    let mut python = Command::new("python3");
    python.arg("-c").arg([start, setup, THREADS].concat());
    let (running, line) = attaching(&mut python);
    assert_eq!(line, "ready");
    running
}

/// kcmp(2) orders tables, so n tasks need n log n comparisons: fewer than 3,600 for 300 tasks, instead of 45,000.
#[test]
fn tables_are_compared_in_order() {
    let running = three_hundred_tables("");
    let counts = scratch("kcmp");
    let mut strace = bare("strace");
    strace.args(["-f", "-qq", "-c", "-e", "trace=kcmp", "-o"]).arg(&counts).arg(release().join("ka"));
    strace.args(["attach", "-p", "280,30,5"]).arg(running.0.id().to_string());
    let (status, out, err) = ends(strace);
    if err.contains("Linux 6.9") {
        skip("this kernel has no pidfds of threads");
        return;
    }
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "300 sockets set to 280,30,5 (mode force), 0 unchanged, 0 failed\n", "")
    );
    // % time, seconds, usecs/call, calls, (errors,) syscall
    let counts = fs::read_to_string(counts).unwrap();
    let line = counts.lines().find(|line| line.ends_with(" kcmp")).unwrap();
    let calls: u32 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!((300..3600).contains(&calls), "{counts}");
}

/// Reading the descriptors of a process can take very long. ka stops after some time, names the process, and sets the
/// next one.
#[test]
fn a_process_with_very_many_descriptors_does_not_block_ka() {
    if !has_attackers() {
        return;
    }
    let running = three_hundred_tables(
        "import os, resource\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (19100, 19100))\n\
         first = socket.socket()\n\
         for n in range(19000): os.dup(first.fileno())\n",
    );
    let mut next = Holder::start(&mut Command::new(holder()));
    let pids = [running.0.id().to_string(), next.pid().to_string()];
    let (status, out, err) = ends(attach(&["-p", "280,30,5", &pids[0], &pids[1]]));
    if err.contains("Linux 6.9") {
        skip("this kernel has no pidfds of threads");
        return;
    }
    next.assert_all(280, 30, 5);
    let named = format!("ka: attach: {} (python3): its threads have more descriptors than ka reads", pids[0]);
    assert!(status == 1 && err.contains(&named), "{out}{err}");
    let set: usize = out.split(' ').next().unwrap().parse().unwrap();
    assert!((4..304).contains(&set), "{out}");
}

/// ka needs a descriptor for each process, and may have only few at a time.
#[test]
fn more_processes_than_descriptors_are_set() {
    if !in_own_namespaces("more_processes_than_descriptors_are_set") {
        return;
    }
    let mut holders: Vec<_> = (0..40).map(|_| Holder::start(&mut Command::new(holder()))).collect();
    let pids: Vec<_> = holders.iter().map(|holder| holder.pid().to_string()).collect();
    let few = |args: &[&str], pids: &[String]| {
        let mut prlimit = bare("prlimit");
        prlimit.arg("--nofile=24:24").arg(release().join("ka")).arg("attach").args(args).args(pids);
        ends(prlimit)
    };
    for (args, pids, idle) in
        [(&["-p", "280,30,5"][..], &pids[..], 280), (&["--all", "-p", "281,30,5"], &[], 281)]
    {
        let (status, out, err) = few(args, pids);
        assert_eq!(
            (status, out, err.as_str()),
            (0, format!("120 sockets set to {idle},30,5 (mode force), 0 unchanged, 0 failed\n"), "")
        );
        for holder in &mut holders {
            holder.assert_all(idle, 30, 5);
        }
    }
}
