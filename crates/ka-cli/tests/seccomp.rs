//! `ka run --via seccomp`: that every socket of the program and of all that it starts has the policy, and that the
//! program is otherwise what it would have been.

mod command;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use command::{
    CleanUp, Holder, Staying, Told, as_nobody, bare, go_holder, go_program, holder, holder_with, ka,
    number_behind, outcome, public, refusing, static_holder,
};
use ka_test::artifact::{release, shim};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::compiler::{Link, cc, compile};
use ka_test::log::skip;
use ka_test::namespace::{is_root, on_a_machine_of_its_own, with_own_etc};
use ka_test::path::{root, scratch};
use ka_test::process::{is_there, kill};
use ka_test::wait::eventually;

/// A program of tests/c, without a loader.
fn made(name: &str) -> PathBuf {
    let source = root().join("crates/ka-cli/tests/c").join(name).with_extension("c");
    compile(cc().arg("-static"), &source, Link::Nothing)
}

fn seen() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| made("seen"))
}

fn run() -> Command {
    let mut command = ka();
    command.args(["run", "--via", "seccomp"]);
    command
}

/// `ka run` where a call fails, always or with an argument of this value, as on an older kernel or in a container.
fn refused(call: libc::c_long, errno: i32, argument: Option<(u32, i32)>) -> Command {
    let mut command = refusing(call, errno, argument);
    command.arg(release().join("ka")).args(["run", "--via", "seccomp"]);
    command
}

/// What the program says of its socket.
fn told(what: &str, flags: &[&str]) -> String {
    stdout(run().args(flags).arg(seen()).arg(what))
}

const STANDARD: &str = "1 60 10 6 0\n";

#[test]
fn what_preload_does_not_reach_is_run_under_a_supervisor() {
    let musl = holder_with(&mut Command::new("musl-gcc"), &["-static"]);
    for program in [static_holder(), go_holder(), musl.as_path()] {
        let mut holder = Holder::start(ka().args(["run", "-p", "90,20,3"]).arg(program));
        holder.open();
        holder.assert_all(90, 20, 3);
        holder.end();
    }
    let (status, out, err) = outcome(ka().args(["run", "-v", "-d", "33"]).arg(seen()).arg("listen"));
    assert_eq!((status, out.as_str()), (0, "1 33 10 6 0\n"), "{err}");
    // Why not by the first way, and then by which.
    let (passed, taken) = err.split_once('\n').unwrap();
    assert!(
        passed.starts_with("ka: preload does not reach it: ") && passed.contains("it is static"),
        "{err}"
    );
    assert!(taken.starts_with("ka: via seccomp: idle=33,intvl=10,cnt=6, mode force, supervisor "), "{err}");
    // And what it does reach, when it is asked to.
    Holder::start(run().args(["-d", "90"]).arg(holder())).assert_all(90, 10, 6);
}

/// A folder that every user may enter, with a program that prints its sockets' options: dynamic and static.
fn visible(name: &str) -> (CleanUp, PathBuf, PathBuf) {
    let folder = public(name);
    let made = CleanUp(folder.clone());
    let (dynamic, fixed) = (folder.join("dynamic"), folder.join("static"));
    let source = root().join("crates/ka-cli/tests/c/seen.c");
    fs::copy(compile(&mut cc(), &source, Link::Nothing), &dynamic).unwrap();
    fs::copy(seen(), &fixed).unwrap();
    (made, dynamic, fixed)
}

fn has_tool(tool: &str) -> bool {
    let found = bare("sh").args(["-c", "command -v \"$0\"", tool]).output().unwrap().status.success();
    if !found {
        skip(&format!("{tool} is not here"));
    }
    found
}

/// Wrappers start their program without the shim. The test also tries each one without ka, with the shim preloaded, to
/// confirm ka's table.
#[test]
fn wrappers_that_lose_the_shim_are_run_under_a_supervisor() {
    if !is_root() {
        skip("only root is somebody else without a password");
        return;
    }
    let (_made, dynamic, _) = visible("wrappers");
    let shim = dynamic.with_file_name("libka_preload.so");
    fs::copy(ka_test::artifact::shim(), &shim).unwrap();
    let seen = dynamic.to_str().unwrap();
    let command = format!("{seen} listen");
    for (words, why) in [
        (&["sudo", "-n", "-u", "nobody", seen, "listen"][..], "sudo starts its program without LD_PRELOAD"),
        (&["su", "-s", "/bin/sh", "-c", &command, "-", "nobody"], "su starts its program without LD_PRELOAD"),
        (&["su", "-ls", "/bin/sh", "nobody", "-c", &command], "su starts its program without LD_PRELOAD"),
        (
            &["runuser", "--login", "-s/bin/sh", "-c", &command, "nobody"],
            "runuser starts its program without LD_PRELOAD",
        ),
        (&["env", "-i", seen, "listen"], "env starts its program without LD_PRELOAD"),
        (&["env", "-u", "LD_PRELOAD", "A=1", seen, "listen"], "env starts its program without LD_PRELOAD"),
        (&["nice", "env", "-S", "-i A=1", seen, "listen"], "env starts its program without LD_PRELOAD"),
        (&["timeout", "30", "sudo", "-n", seen, "listen"], "sudo starts its program without LD_PRELOAD"),
        (&["setpriv", "--reset-env", seen, "listen"], "setpriv starts its program without LD_PRELOAD"),
        (&["mptcpize", "run", seen, "listen"], "mptcpize replaces LD_PRELOAD with its own library"),
        (
            &["bwrap", "--clearenv", "--bind", "/", "/", seen, "listen"],
            "bwrap starts its program in another root folder",
        ),
    ] {
        if !has_tool(words[0]) {
            continue;
        }
        let alone = bare(words[0]).args(&words[1..]).env("LD_PRELOAD", &shim).output().unwrap();
        if !alone.status.success() {
            skip(&format!("{words:?} does not work here: {}", stderr(&alone)));
            continue;
        }
        assert!(alone.stdout.starts_with(b"0 "), "{words:?} keeps the shim");
        let (status, out, err) = outcome(ka().args(["run", "-p", "97,13,7", "--"]).args(words));
        // mptcpize makes a Multipath TCP socket, which has no user timeout.
        assert!(status == 0 && out.starts_with("1 97 13 7 "), "{words:?}: {out}{err}");
        assert!(!err.contains("ka: "), "{words:?}: {err}");
        let (status, out, err) = outcome(ka().args(["run", "-v", "-p", "97,13,7", "--"]).args(words));
        assert!(status == 0 && out.starts_with("1 97 13 7 "), "{words:?}: {out}{err}");
        assert!(err.starts_with(&format!("ka: preload does not reach it: {why}")), "{words:?}: {err}");
        // If the user asks for preload, ka does not silently run the program without the shim.
        let (status, out, err) = outcome(ka().args(["run", "--via", "preload", "--"]).args(words));
        assert_eq!((status, out.as_str()), (125, ""), "{words:?}: {err}");
        assert!(
            err.contains(why)
                && err.contains("; use ka run without --via, or --via seccomp; or ka behind it: "),
            "{err}"
        );
    }
    // ka preloads into wrappers that keep the shim.
    for words in [
        &["su", "-s", "/bin/sh", "nobody", "-c", &command][..],
        &["runuser", "-u", "nobody", "--", seen, "listen"],
        &["env", "A=1", seen, "listen"],
        &["setpriv", "--reuid", "65534", seen, "listen"],
        &["unshare", "--net", seen, "listen"],
    ] {
        let (status, out, err) =
            outcome(ka().args(["run", "-v", "-d", "97", "--"]).args(words).env("KA_PRELOAD", &shim));
        assert_eq!((status, out.as_str()), (0, "1 97 10 6 0\n"), "{words:?}: {err}");
        assert!(err.starts_with("ka: via preload: "), "{words:?}: {err}");
    }
}

/// In another root folder the loader does not find the shim.
#[test]
fn programs_in_another_root_folder_are_run_under_a_supervisor() {
    if !is_root() {
        skip("only root changes its root folder");
        return;
    }
    let (_made, _, fixed) = visible("roots");
    let folder = fixed.parent().unwrap().to_str().unwrap();
    for words in [
        &["chroot", folder, "/static", "listen"][..],
        &["unshare", "--root", folder, "/static", "listen"],
        &["unshare", "-nR", folder, "/static", "listen"],
        &["nsenter", "-t", "1", &format!("--root={folder}"), "/static", "listen"],
        &["bwrap", "--bind", folder, "/", "/static", "listen"],
    ] {
        if !has_tool(words[0]) {
            continue;
        }
        let alone = bare(words[0]).args(&words[1..]).output().unwrap();
        if !alone.status.success() {
            skip(&format!("{words:?} does not work here: {}", stderr(&alone)));
            continue;
        }
        assert!(alone.stdout.starts_with(b"0 "), "{words:?}");
        let (status, out, err) = outcome(ka().args(["run", "-v", "-d", "97", "--"]).args(words));
        assert_eq!((status, out.as_str()), (0, "1 97 10 6 0\n"), "{words:?}: {err}");
        let why =
            format!("ka: preload does not reach it: {} starts its program in another root folder", words[0]);
        assert!(err.starts_with(&why), "{words:?}: {err}");
    }
}

/// doas reads its rules from /etc, and pkexec asks a daemon.
#[test]
fn doas_and_pkexec() {
    if !is_root() {
        skip("only root is somebody else without a password");
        return;
    }
    let (_made, dynamic, _) = visible("doas");
    let run = format!("{} run -d 97 -- ", release().join("ka").display());
    if has_tool("doas") {
        let output = with_own_etc(&format!(
            "echo permit nopass root >/etc/doas.conf; {run} doas -u nobody {} listen",
            dynamic.display()
        ));
        assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), "1 97 10 6 0\n", "{}", stderr(&output));
    }
    if has_tool("pkexec") {
        match bare("pkexec").arg("true").output() {
            Ok(output) if output.status.success() => {
                assert_eq!(
                    stdout(ka().args(["run", "-d", "97", "pkexec"]).arg(&dynamic).arg("listen")),
                    "1 97 10 6 0\n"
                );
            }
            _ => skip("pkexec does not work here: its daemon does not run"),
        }
    }
}

/// ka reaches the program of an ordinary user's wrapper that is not setuid. A setuid one would lose its rights under
/// the filter, so ka refuses to start it, even behind another program.
#[test]
fn wrappers_of_an_ordinary_user() {
    if !is_root() {
        skip("only root becomes somebody else");
        return;
    }
    let (_made, dynamic, _) = visible("ordinary");
    let own = dynamic.with_file_name("ka");
    fs::copy(release().join("ka"), &own).unwrap();
    fs::copy(shim(), dynamic.with_file_name("libka_preload.so")).unwrap();
    let run =
        |words: &[&str]| outcome(&mut as_nobody(bare(&own).args(["run", "-d", "97", "--"]).args(words)));
    let seen = dynamic.to_str().unwrap();
    for words in [&["env", "-i", seen, "listen"][..], &["setpriv", "--reset-env", seen, "listen"]] {
        assert_eq!(run(words), (0, "1 97 10 6 0\n".to_owned(), String::new()), "{words:?}");
    }
    // A setuid program with the name of a wrapper.
    let setuid = dynamic.with_file_name("sudo");
    fs::copy(&dynamic, &setuid).unwrap();
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let setuid = setuid.to_str().unwrap();
    for words in [&[setuid, "listen"][..], &["nice", setuid, "listen"], &["env", "-i", setuid, "listen"]] {
        let (status, out, err) = run(words);
        assert_eq!((status, out.as_str()), (125, ""), "{words:?}: {err}");
        let why = "and a filter without CAP_SYS_ADMIN would take its rights from it; use sudo ka run\n";
        assert!(err.ends_with(why), "{words:?}: {err}");
    }
}

/// Go turns keepalive on by itself, with 15 s, after it has connected or accepted; unless it is told not to.
#[test]
fn go_s_own_keepalive() {
    // Who is told nothing: both ends, the server's, the dialer's, neither.
    const OWN: [bool; 8] = [true, true, false, true, true, false, false, false];
    // Later releases set the number of probes too, as their default: 9.
    for (mode, own, given) in [
        ("none", "1 15 15 9", "0 7200 75 9"),
        ("force", "1 60 10 6", "1 60 10 6"),
        // Its 15 s are stricter than 60, and 10 than its 15.
        ("floor", "1 15 10 6", "1 60 10 6"),
        ("default", "1 15 15 6", "1 60 10 6"),
    ] {
        for cgo in [false, true] {
            let program = go_program("keepalive", cgo);
            let mut command = if mode == "none" { bare(&program) } else { run() };
            if mode != "none" {
                command.args(["--mode", mode]).arg(&program);
            }
            let go = Staying::start(command.arg("stay"));
            let expected = OWN.map(|is_own| if is_own { own } else { given });
            let said: Vec<_> = go.said.lines().map(|line| line.replace("15 15 9", "15 15 6")).collect();
            let expected: Vec<_> = expected.iter().map(|line| line.replace("15 15 9", "15 15 6")).collect();
            assert_eq!(said, expected, "{mode}, cgo {cgo}");
            // And two listeners, of which Go sets nothing.
            let mut outside: Vec<_> = go.sockets().iter().map(|told| (told.on, told.timers[0])).collect();
            outside.sort_unstable();
            let listener = (mode != "none", if mode == "none" { 7200 } else { 60 });
            let line = |line: &String| {
                let numbers: Vec<i32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
                (numbers[0] == 1, numbers[1])
            };
            let mut inside: Vec<_> = said.iter().map(line).chain([listener, listener]).collect();
            inside.sort_unstable();
            assert_eq!(outside, inside, "{mode}, cgo {cgo}");
            assert_eq!(go.end(), 0);
        }
    }
}

/// Its own sockets and its channels, by the shim and by a supervisor.
#[test]
fn java_too() {
    let (Ok(_), Ok(_)) = (bare("javac").arg("-version").output(), bare("java").arg("-version").output())
    else {
        skip("there is no Java development kit here");
        return;
    };
    let folder = scratch("java");
    succeed(bare("javac").arg("-d").arg(&folder).arg(root().join("crates/ka-cli/tests/java/Keepalive.java")));
    for via in ["preload", "seccomp"] {
        for (mode, own) in [("force", 60), ("default", 30)] {
            let mut command = ka();
            command.args([
                "run",
                "--via",
                via,
                "--mode",
                mode,
                "java",
                "-Xshare:auto",
                "-XX:TieredStopAtLevel=1",
                "-cp",
            ]);
            let java = Staying::start(command.arg(&folder).arg("Keepalive"));
            let mut idle: Vec<_> = java.sockets().iter().map(|told| (told.on, told.timers[0])).collect();
            idle.sort_unstable();
            assert_eq!(idle, [[(true, own)].as_slice(), &[(true, 60); 5]].concat(), "{via}, {mode}");
            assert_eq!(java.end(), 0);
        }
    }
}

#[test]
fn sockets_that_connect_listen_and_accept_have_the_policy() {
    assert_eq!(told("listen", &[]), STANDARD);
    assert_eq!(told("connect", &["-p", "280,30,5", "-u", "auto"]), "1 280 30 5 430000\n".repeat(2));
    assert_eq!(told("fastopen", &[]), STANDARD.repeat(3), "sendto, sendmsg, sendmmsg");
    // The environment's word counts too.
    assert_eq!(stdout(run().env("KA_POLICY", "99,9,9").arg(seen()).arg("listen")), "1 99 9 9 0\n");
}

/// As by the shim, which is not there.
#[test]
fn a_variable_that_is_wrong_is_named() {
    let wrong = |quiet: &str| {
        let mut command = run();
        command.env("KA_POLICY", "often\x1b").env("KA_IDLE", "0").env("KA_INTVL", "9").env("KA_QUIET", quiet);
        outcome(command.arg(seen()).arg("listen"))
    };
    let (status, out, err) = wrong("0");
    assert_eq!((status, out.as_str()), (0, "1 60 9 6 0\n"));
    let lines: Vec<_> = err.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ka: KA_POLICY=\"often\\u{1b}\": must be "), "{err}");
    assert_eq!(lines[1], "ka: KA_IDLE=\"0\": idle must be 1..32767 s; it does not count");
    assert_eq!(wrong("1").2, "");
}

#[test]
fn a_mode_says_what_the_program_may() {
    for (mode, after, before) in [
        // Its own values come to nothing, and a user timeout finds a dead peer no later than the policy.
        ("force", "1 60 10 6 120000\n", "1 60 10 6 0\n"),
        ("floor", "1 15 10 6 120000\n", "1 30 10 5 0\n"),
        ("default", "0 15 15 9 3600000\n", "1 30 50 5 0\n"),
    ] {
        assert_eq!(told("set", &["--mode", mode]), after, "{mode}");
        assert_eq!(told("before", &["--mode", mode]), before, "{mode}");
    }
    // A call that fails without ka also fails with it.
    for mode in ["force", "floor", "default"] {
        let expected = format!(
            "range {0} {0}\npointer {1}\nlength {2}\ndescriptor {3} {4} {5}\nudp 0 {6}\n",
            libc::EINVAL,
            libc::EFAULT,
            libc::EINVAL,
            libc::EBADF,
            libc::ENOTSOCK,
            libc::ENOPROTOOPT,
            1,
        );
        let mut run = run();
        let input = fs::File::open("/dev/null").unwrap();
        let told = stdout(run.args(["--mode", mode]).arg(seen()).arg("judge").stdin(input));
        assert_eq!(told, expected, "{mode}");
    }
}

/// As in Podman's containers: the supervisor may have a program's descriptors, and process_vm_readv(2) is refused.
#[test]
fn a_mode_holds_where_memory_is_not_to_be_read_by_a_call() {
    let under = |errno, mode: &str, what: &str| {
        let mut command = refused(libc::SYS_process_vm_readv, errno, None);
        outcome(command.args(["--mode", mode]).arg(seen()).arg(what))
    };
    for errno in [libc::EPERM, libc::ENOSYS] {
        for (mode, after) in [("force", "1 60 10 6 120000\n"), ("floor", "1 15 10 6 120000\n")] {
            assert_eq!(under(errno, mode, "set"), (0, after.to_owned(), String::new()));
        }
    }
    let (_, told, _) = under(libc::EPERM, "floor", "judge");
    assert!(told.contains(&format!("pointer {}\n", libc::EFAULT)), "{told}");
}

/// Threads, forks, namespaces, descriptors of a thread's own, none left, none to be had, signals each 50 us.
#[test]
fn whatever_the_program_is_made_of() {
    // What it says of itself, and how many sockets it has, which are judged from outside.
    for (what, expected, sockets) in [
        ("threads", "200\n", 201),
        ("storm", "200\n", 201),
        // They are in a table of the thread's own, which has ended.
        ("task", STANDARD, 0),
        ("closed", STANDARD, 1),
        ("forks", STANDARD, 1),
        ("limit", STANDARD, 1),
        ("unshare", STANDARD, 2),
        ("nested", STANDARD, 2),
    ] {
        if sockets == 2 {
            let (status, out, err) = outcome(bare(seen()).arg(what));
            if status != 0 {
                skip(&format!("no namespaces of its own here: {err}"));
                continue;
            }
            assert_eq!(out, "0 7200 75 9 0\n");
        }
        let errors = scratch("errors");
        let file = fs::File::create(&errors).unwrap();
        let staying = Staying::start(run().arg(seen()).args([what, "stay"]).stderr(file));
        assert_eq!(staying.said, expected, "{what}");
        staying.assert_all(sockets, 60, 10, 6);
        assert_eq!(staying.end(), if what == "forks" { 5 } else { 0 }, "{what}");
        assert_eq!(fs::read_to_string(errors).unwrap(), "", "{what}");
    }
}

/// Not even the first three: then a socket has one of their numbers.
#[test]
fn a_program_that_closes_all_descriptors() {
    let mut child = run().arg(seen()).arg("bare").spawn().unwrap();
    let pid = child.id().try_into().unwrap();
    let policy = Told { fd: 0, on: true, timers: [60, 10, 6, 0] };
    eventually("its two sockets have the policy", || {
        let mut sockets = command::outside(pid);
        sockets.sort_unstable_by_key(|told| told.fd);
        sockets == [policy, Told { fd: 1, ..policy }]
    });
    kill(pid, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

#[test]
fn programs_that_the_program_starts_are_reached() {
    let script = format!("{0} listen; python3 -c '{1}'; {0} connect", seen().display(), PYTHON);
    assert_eq!(stdout(run().args(["sh", "-c", &script])), "1 60 10 6 0\n1 60\n1 60 10 6 0\n1 60 10 6 0\n");
}

const PYTHON: &str =
    "import socket; s = socket.socket(); s.listen(); print(s.getsockopt(1, 9), s.getsockopt(6, 4))";

/// Before Linux 6.9 there are pidfds of processes only. A thread's number may be another process's when it has ended.
#[test]
fn a_thread_s_number_that_is_used_again_on_an_older_kernel() {
    if !on_a_machine_of_its_own("a_thread_s_number_that_is_used_again_on_an_older_kernel") {
        return;
    }
    let again = "import os, socket, threading\n\
                 kept, number = [], []\n\
                 def listen(fd=None):\n\
                 \x20   made = socket.socket()\n\
                 \x20   if fd: os.dup2(made.fileno(), fd); made = socket.socket(fileno=fd)\n\
                 \x20   made.listen(); kept.append(made); number.append(threading.get_native_id())\n\
                 \x20   return made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)\n\
                 thread = threading.Thread(target=listen); thread.start(); thread.join()\n\
                 for turn in range(10000):\n\
                 \x20   with open('/proc/sys/kernel/ns_last_pid', 'w') as last: last.write(str(number[0] - 1))\n\
                 \x20   child = os.fork()\n\
                 \x20   if not child and os.getpid() != number[0]: os._exit(1)\n\
                 \x20   if not child: print('again', listen(50), flush=True); os._exit(0)\n\
                 \x20   if os.waitpid(child, 0)[1] == 0: break";
    // pidfd_open(2) with PIDFD_THREAD is EINVAL.
    let mut command = refused(libc::SYS_pidfd_open, libc::EINVAL, Some((1, libc::O_EXCL)));
    command.args(["python3", "-c", again]);
    assert_eq!(stdout(&mut command), "again 1\n");
}

/// What it was given is open when it starts, without a call that could be seen.
#[test]
fn inherited_sockets_have_the_policy() {
    let script = "import socket, os, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); os.dup2(s.fileno(), 9); \
                  os.set_inheritable(9, True); os.execvp(sys.argv[1], sys.argv[1:])";
    let look = "import socket; s = socket.socket(fileno=9); print(s.getsockopt(1, 9), s.getsockopt(6, 4))";
    let mut command = bare("python3");
    command.args(["-c", script]).arg(release().join("ka"));
    command.args(["run", "--via", "seccomp", "python3", "-c", look]);
    assert_eq!(stdout(&mut command), "1 60\n");
}

/// A service takes what systemd has opened for it only where the number that comes with it is its own.
#[test]
fn what_systemd_hands_to_a_process_is_the_program_s() {
    let ka = release().join("ka");
    let look = "echo $((LISTEN_PID == $$)) $((WATCHDOG_PID == $$)) $LISTEN_FDS ${LISTEN_PIDFDID-none}";
    let script = "LISTEN_FDS=1 LISTEN_PIDFDID=7 LISTEN_PID=$$ WATCHDOG_PID=$$ \
                  exec \"$0\" run --via seccomp sh -c \"$1\"";
    assert_eq!(stdout(bare("sh").args(["-c", script]).arg(&ka).arg(look)), "1 1 1 none\n");
    // What is for another stays so.
    let script =
        "LISTEN_PID=1 WATCHDOG_PID=1 \"$0\" run --via seccomp sh -c 'echo $LISTEN_PID $WATCHDOG_PID'";
    assert_eq!(stdout(bare("sh").args(["-c", script]).arg(&ka)), "1 1\n");
}

#[test]
fn a_daemon_is_followed_and_waited_for() {
    let file = scratch("daemon");
    let mut daemon = run();
    daemon.arg("-v").arg(seen()).arg("daemon").arg(&file);
    let begin = Instant::now();
    let (status, out, err) = outcome(&mut daemon);
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    // The program has ended, and so has ka, and whoever reads its output; the daemon has not.
    assert!(begin.elapsed() < Duration::from_millis(450), "{:?}", begin.elapsed());
    let supervisor = number_behind(&err, "supervisor ");
    assert!(is_there(supervisor), "{err}");
    eventually("the daemon's socket has the policy", || fs::read_to_string(&file).unwrap() == STANDARD);
    let spare = number_behind(&err, "spare ");
    eventually("supervisor and spare have ended with the last process", || {
        !is_there(supervisor) && !is_there(spare)
    });
}

#[test]
fn daemons_of_daemons_are_followed() {
    let file = scratch("daemons");
    fs::write(&file, "").unwrap();
    let (status, out, err) = outcome(run().arg("-v").arg(seen()).arg("daemons").arg(&file));
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    let supervisor = number_behind(&err, "supervisor ");
    let policy = |told: &Told| (told.on, told.timers) == (true, [60, 10, 6, 0]);
    eventually("five daemons listen, and have the policy", || {
        let sockets = command::outside(supervisor);
        sockets.len() == 5 && sockets.iter().all(policy)
    });
    fs::remove_file(&file).unwrap();
    eventually("the supervisor has ended with the last of them", || !is_there(supervisor));
}

/// A program under `ka run -v`, and the numbers of those who look after it.
struct Supervised {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    supervisor: i32,
    spare: i32,
}

impl Supervised {
    fn start(program: &mut Command) -> Self {
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        let (supervisor, spare) = (number_behind(&line, "supervisor "), number_behind(&line, "spare "));
        Self { child, errors, supervisor, spare }
    }

    /// Status, standard output, and what is left of standard error.
    fn end(mut self) -> (std::process::ExitStatus, String, String) {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        let Output { status, stdout, .. } = self.child.wait_with_output().unwrap();
        (status, String::from_utf8(stdout).unwrap(), text)
    }
}

/// A call that it was seeing to when it was killed is not left to wait for ever.
#[test]
fn the_supervisor_may_be_killed_at_any_moment() {
    for round in 0..12 {
        // A call that nobody answers waits until it is killed.
        let bounded = ["-v", "timeout", "-s", "KILL", "20"];
        let supervised = Supervised::start(run().args(bounded).arg(seen()).arg("busy"));
        sleep(Duration::from_micros(100_000 + 7919 * round));
        let (supervisor, spare) = (supervised.supervisor, supervised.spare);
        kill(supervisor, libc::SIGKILL);
        let (status, out, err) = supervised.end();
        assert!(status.success(), "{status}");
        assert!(out.starts_with("0 of "), "{out}");
        assert_eq!(
            err,
            format!(
                "ka: run: supervisor {supervisor} was killed: {spare} takes over, and there is no further spare\n"
            )
        );
    }
    let supervised = Supervised::start(run().arg("-v").arg(seen()).arg("loop"));
    sleep(Duration::from_millis(300));
    kill(supervised.supervisor, libc::SIGKILL);
    assert_eq!(supervised.end().1, "100 of 100\n");
    // Without the spare, or without who stands in for it, the program goes on.
    let supervised = Supervised::start(run().arg("-v").arg(seen()).arg("loop"));
    kill(supervised.spare, libc::SIGKILL);
    assert_eq!(supervised.end().1, "100 of 100\n");
    let supervised = Supervised::start(run().arg("-v").arg(seen()).arg("loop"));
    kill(supervised.child.id().try_into().unwrap(), libc::SIGKILL);
    assert_eq!(supervised.end().1, "100 of 100\n");
}

/// As timeout(1) and shells kill a job: who is in another group goes on, and has the policy.
#[test]
fn who_kills_the_whole_job_leaves_nobody_without_an_answer() {
    let file = scratch("job");
    let script = format!(
        "setsid sh -c 'echo >{0}; sleep 1; {1} listen >{0}' & sleep 20",
        file.display(),
        seen().display()
    );
    let mut child = run().args(["sh", "-c", &script]).process_group(0).stderr(Stdio::null()).spawn().unwrap();
    eventually("there is somebody in another session", || file.exists());
    kill(-i32::try_from(child.id()).unwrap(), libc::SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    eventually("its socket has the policy", || fs::read_to_string(&file).is_ok_and(|told| told == STANDARD));
}

/// Where nobody waits for orphans, as a container's first process may not, they would stay for ever.
#[test]
fn nothing_of_ka_s_is_left_when_the_program_has_ended() {
    // PR_SET_CHILD_SUBREAPER
    let init = "import ctypes, os, subprocess, sys, time\n\
                ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n\
                print(subprocess.run(sys.argv[1:]).returncode, flush=True)\n\
                time.sleep(0.3)\n\
                try: print(os.waitpid(-1, os.WNOHANG))\n\
                except ChildProcessError: print('nothing')";
    for (script, status) in [("exit 3", "3"), ("kill -USR1 $$", "-10")] {
        let mut command = bare("python3");
        command.args(["-c", init]).arg(release().join("ka"));
        let told = stdout(command.args(["run", "--via", "seccomp", "sh", "-c", script]));
        assert_eq!(told, format!("{status}\nnothing\n"));
    }
}

#[test]
fn the_death_of_supervisor_and_spare_is_reported() {
    let supervised = Supervised::start(run().args(["-v", "sleep", "1"]));
    kill(supervised.spare, libc::SIGKILL);
    kill(supervised.supervisor, libc::SIGKILL);
    let (status, _, err) = supervised.end();
    assert_eq!(status.code(), Some(125), "{err}");
    assert!(err.contains("were killed: the program's calls of connect and listen fail now"), "{err}");
}

#[test]
fn a_second_one_inside_says_that_the_outer_one_is_in_force() {
    let own = release().join("ka");
    let inner = |outer: &[&str], inner: &[&str]| {
        let (status, out, err) =
            outcome(run().args(outer).arg(&own).arg("run").args(inner).arg(seen()).arg("listen"));
        assert_eq!(status, 0, "{err}");
        (out, err)
    };
    let said = "ka: run: an outer ka run --via seccomp is in force here: 99,10,6\n";
    let outer_holds = ("1 99 10 6 0\n".to_owned(), said.to_owned());
    assert_eq!(inner(&["-d", "99"], &["-d", "30", "--via", "seccomp"]), outer_holds);
    assert_eq!(inner(&["-d", "99"], &["-d", "30"]), outer_holds);
    // A shim inside would set what does not hold.
    let inside = |mode: &str| {
        let mut command = run();
        command
            .args(["-d", "99", "--mode", mode])
            .arg(&own)
            .args(["run", "-d", "30", "python3", "-c", PYTHON]);
        outcome(&mut command)
    };
    assert_eq!(inside("force"), (0, "1 99\n".to_owned(), said.to_owned()));
    // Here it does hold.
    assert_eq!(inside("default"), (0, "1 30\n".to_owned(), String::new()));
}

/// What it does to another's socket comes to nothing there, and it says why.
#[test]
fn ka_attach_inside_is_held_too() {
    // PR_SET_PTRACER: whoever asks may look into it, for Yama.
    let script = "import ctypes, os, socket, subprocess, sys\n\
                  ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1 & 2**64 - 1), 0, 0, 0)\n\
                  s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n\
                  subprocess.run([sys.argv[1], 'attach', '-d', '30', str(os.getpid())])\n\
                  print(s.getsockopt(6, 4))";
    let (status, out, err) =
        outcome(run().args(["python3", "-c", script]).arg(release().join("ka")).env("PYTHONUNBUFFERED", "1"));
    assert!(status == 0 && err.contains("the policy of the supervisor "), "{out}{err}");
    assert!(out.contains("the policy of ka run --via seccomp overrides this command"), "{out}");
    assert!(out.ends_with("0 sockets set to 30,10,6 (mode force), 0 unchanged, 1 failed\n60\n"), "{out}");
}

/// Of each call, the result and errno; with a loader, so that the shim reaches it too.
///
/// What arrives over loopback arrives when the kernel gets to it: now and then two runs without ka differ too. What ka does
/// to a call it does every time.
#[test]
fn in_the_default_mode_no_call_is_any_different() {
    let calls = compile(&mut cc(), &root().join("crates/ka-cli/tests/c/calls.c"), Link::Nothing);
    for seed in 1..=60 {
        let arguments = [seed.to_string(), "3000".to_owned()];
        let alone = || {
            let told = stdout(bare(&calls).args(&arguments));
            assert!(told.lines().count() >= 3000, "seed {seed}");
            told
        };
        let first = alone();
        for via in ["seccomp", "preload"] {
            let under = || {
                let mut ka = ka();
                ka.args(["run", "--via", via, "--mode", "default"]).arg(&calls).args(&arguments);
                stdout(&mut ka)
            };
            if under() == first || (0..5).any(|_| under() == alone()) {
                continue;
            }
            let (alone, under) = (alone(), under());
            for (number, (alone, under)) in alone.lines().zip(under.lines()).enumerate() {
                assert_eq!(alone, under, "via {via}, seed {seed}, line {number}");
            }
            assert_eq!(alone.lines().count(), under.lines().count(), "via {via}, seed {seed}");
        }
    }
}

/// Its filters are over ka attach too, whosever socket it has in hand.
#[test]
fn ka_attach_inside_tells_the_truth() {
    let attach = |mode: &str, policy: &[&str], holder: &Holder| {
        let mut command = run();
        command.args(["-p", "99,9,9", "--mode", mode]).arg(release().join("ka")).arg("attach");
        outcome(command.args(policy).arg(holder.pid().to_string()))
    };
    let own: &[&str] = &["-p", "30,5,3"];
    let mut outside = Holder::start(&mut bare(holder()));
    for policy in [own, &["-p", "intvl=5"], &["-p", "cnt=3"], &["-p", "off"]] {
        let (status, out, err) = attach("force", policy, &outside);
        assert_eq!((status, err.as_str()), (1, ""), "{policy:?} {out}");
        assert!(
            out.contains("\n0 sockets set to ") && out.ends_with(" (mode force), 0 unchanged, 3 failed\n"),
            "{policy:?} {out}"
        );
        assert!(out.contains("the policy of ka run --via seccomp overrides this command"), "{out}");
    }
    // What is in force already, and a user timeout that is stricter, which is let through.
    let (status, out, err) = attach("force", &["-p", "99,9,9", "-u", "5000ms"], &outside);
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (
            0,
            "3 sockets set to idle=99,intvl=9,cnt=9,user_timeout=5000 (mode force), 0 unchanged, 0 failed\n",
            ""
        )
    );
    let there = outside.look();
    assert!(there.iter().all(|told| told.on && told.timers == [99, 9, 9, 5000]), "{there:?}");
    let mut outside = Holder::start(&mut bare(holder()));
    assert_eq!(
        attach("default", own, &outside).1,
        // The program runs with the variables of ka run.
        "3 sockets set to 30,5,3 (mode default), 0 unchanged, 0 failed\n"
    );
    outside.assert_all(30, 5, 3);
}

/// By whose word: the process's filter, and who is above it.
#[test]
fn ka_check_names_the_supervisor() {
    let errors = scratch("errors");
    let file = fs::File::create(&errors).unwrap();
    let staying = Staying::start(run().arg("-v").arg(seen()).args(["listen", "stay"]).stderr(file));
    let supervisor = number_behind(&fs::read_to_string(errors).unwrap(), "supervisor ");
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let program = children.trim();
    let (status, out, err) = outcome(ka().args(["check", "--json", program]));
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["supervisor"], supervisor);
    assert_eq!(report["ways"][0]["way"], "seccomp");
    assert_eq!(report["command"], format!("nothing: it is under ka already (ka ls --pid {program})"));
    let text = outcome(ka().args(["check", program])).1;
    assert!(
        text.contains(&format!("\nseccomp  yes     it is under the supervisor {supervisor}\n")),
        "{text}"
    );
    // Neither is the supervisor itself, nor who is under none.
    for other in [supervisor.to_string(), std::process::id().to_string()] {
        let report: serde_json::Value =
            serde_json::from_str(&outcome(ka().args(["check", "--json", &other])).1).unwrap();
        assert!(report["supervisor"].is_null(), "{report}");
    }
    assert_eq!(staying.end(), 0);
}

#[test]
fn io_uring_is_said_once_and_can_be_denied() {
    let ring = |flags: &[&str]| outcome(run().args(flags).arg(seen()).arg("ring"));
    let (status, out, err) = outcome(bare(seen()).arg("ring"));
    if out != "0\n" {
        skip(&format!("no io_uring here: {status} {out}{err}"));
        return;
    }
    let (status, out, err) = ring(&[]);
    assert_eq!((status, out.as_str()), (0, "0\n"));
    assert!(err.contains(") uses io_uring") && err.lines().count() == 1, "{err}");
    // Once of each program, however often it does.
    let folder = scratch("rings");
    fs::create_dir(&folder).unwrap();
    for name in ["one", "other"] {
        fs::copy(seen(), folder.join(name)).unwrap();
    }
    let (_, _, err) = outcome(
        run().args(["sh", "-c", "for name in one other one one; do \"$0/$name\" ring; done"]).arg(&folder),
    );
    let names: Vec<_> = err.lines().map(|line| line.split(['(', ')']).nth(1).unwrap()).collect();
    assert_eq!(names, ["one", "other"], "{err}");
    assert_eq!(ring(&["--no-io-uring"]), (0, format!("{}\n", libc::ENOSYS), String::new()));
    // What it connects has nothing, as is said; what it accepts has what the listener had. The ring is driven by hand in C:
    // in Rust without liburing the calls are the same two.
    let connects = compile(&mut cc(), &root().join("crates/ka-cli/tests/c/ring.c"), Link::Nothing);
    let told = stdout(run().arg(connects));
    let told: Vec<_> = told.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(told, ["0 7200 75 9 0", "1 60 10 6 0"]);
    let twice = format!("{0} ring; {0} ring", seen().display());
    assert_eq!(outcome(run().args(["sh", "-c", &twice])).2.lines().count(), 1);
    // It needs this way, and gets it.
    let (_, out, err) = outcome(ka().args(["run", "-v", "--no-io-uring", "sh", "-c", &twice]));
    assert!(out == "38\n38\n" && err.contains("\nka: via seccomp: "), "{out}{err}");
}

#[test]
fn calls_of_another_architecture_are_reached_and_said() {
    if !cfg!(target_arch = "x86_64") || outcome(bare(seen()).arg("ia32")).1.lines().next() != Some("0") {
        skip("this machine makes no calls of i386");
        return;
    }
    let (_, out, err) = outcome(run().arg(seen()).arg("ia32"));
    assert_eq!(out, format!("0\n{STANDARD}0\n{STANDARD}"));
    assert!(err.contains(") makes calls of i386") && err.lines().count() == 1, "{err}");
}

#[test]
fn somebody_who_is_not_root() {
    if !is_root() {
        skip("the tests run as an ordinary user: the others show it");
        return;
    }
    let folder = public("seccomp");
    let _clean = CleanUp(folder.clone());
    for (from, to) in
        [(release().join("ka"), "ka"), (seen().to_path_buf(), "seen"), (go_holder().to_path_buf(), "go")]
    {
        fs::copy(from, folder.join(to)).unwrap();
        fs::set_permissions(folder.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let ka = |program: &str| {
        let mut command = Command::new(folder.join("ka"));
        command.args(["run", "--via", "seccomp"]).arg(folder.join(program));
        as_nobody(&command)
    };
    assert_eq!(stdout(ka("seen").arg("connect")), STANDARD.repeat(2));
    Holder::start(&mut ka("go")).assert_all(60, 10, 6);
    // Nobody but root may look inside: it is run, and said.
    let (status, out, err) = outcome(ka("seen").arg("undumpable"));
    assert_eq!((status, out.as_str()), (0, "0 7200 75 9 0\n"));
    assert!(err.contains("(seen) is not reached, and its sockets have no policy"), "{err}");
    assert_eq!(told("undumpable", &[]), STANDARD);

    // setuid: its rights would be taken from it, so it is not run; as root's child it keeps them.
    let setuid = folder.join("setuid");
    fs::copy("/usr/bin/id", &setuid).unwrap();
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let (status, out, err) = outcome(&mut ka("setuid"));
    assert_eq!((status, out.as_str()), (125, ""), "{err}");
    assert!(err.contains("it is setuid, and a filter without CAP_SYS_ADMIN would take its rights"), "{err}");
    let as_another = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {} -u", setuid.display());
    assert_eq!(stdout(run().args(["sh", "-c", &as_another])), "0\n");
    let drops = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups {} listen",
        folder.join("seen").display()
    );
    assert_eq!(stdout(run().args(["sh", "-c", &drops])), STANDARD);
}

#[test]
fn the_status_is_the_program_s() {
    assert_eq!(run().args(["sh", "-c", "exit 42"]).status().unwrap().code(), Some(42));
    for signal in [libc::SIGKILL, libc::SIGUSR1, libc::SIGSEGV] {
        let script = format!("kill -{signal} $$");
        assert_eq!(run().args(["sh", "-c", &script]).status().unwrap().signal(), Some(signal));
    }
    let text = scratch("text");
    fs::write(&text, "exit $1").unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run().arg(&text).arg("9").status().unwrap().code(), Some(9));
}

/// Once where the process group is sent it, as the terminal does and a shell's kill %1, and once where ka alone is.
#[test]
fn a_signal_comes_once() {
    let script =
        "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    for to_group in [false, true] {
        let mut child =
            run().args(["sh", "-c", script]).process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(lines.next().unwrap(), "ready");
        let pid = i32::try_from(child.id()).unwrap();
        let to = if to_group { -pid } else { pid };
        for _ in 0..3 {
            kill(to, libc::SIGUSR1);
            sleep(Duration::from_millis(200));
        }
        kill(to, libc::SIGTERM);
        assert_eq!(lines.collect::<Vec<_>>(), ["usr1", "usr1", "usr1", "term"], "to the group: {to_group}");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
    // With what came with it.
    let mut child = run().arg(seen()).arg("queue").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(4711) };
    // SAFETY: numbers.
    assert_eq!(unsafe { libc::sigqueue(child.id().try_into().unwrap(), libc::SIGRTMIN() + 2, value) }, 0);
    assert_eq!(lines.next().unwrap(), "2 4711");
    child.wait().unwrap();
}

/// timeout(1) goes into a group of its own where it does not lead one, and so has not what the job is sent.
#[test]
fn a_program_in_a_group_of_its_own_has_the_job_s_signals() {
    let mut child = run().args(["timeout", "20.125", "sleep", "20"]).process_group(0).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // Whom it starts with a duration of the test's own.
    eventually("timeout leads a group", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.into_iter().any(|other| {
            let line = fs::read(format!("/proc/{other}/cmdline")).unwrap_or_default();
            // SAFETY: takes no pointer.
            line.starts_with(b"timeout\x0020.125\0") && unsafe { libc::getpgid(other) } == other
        })
    });
    kill(-pid, libc::SIGTERM);
    let mut status = None;
    eventually("it has ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().signal(), Some(libc::SIGTERM));
}

/// What a shell sees of a job that is stopped, and continued.
#[test]
fn who_stands_in_stops_and_continues_as_the_program_does() {
    let child = run().args(["sleep", "30"]).process_group(0).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let state = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    let mut sleeper = None;
    eventually("the program is there", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        sleeper = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|other| {
            let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
            let group = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)?.parse().ok());
            stat.contains("(sleep)") && group == Some(pid)
        });
        sleeper.is_some()
    });
    let sleeper = sleeper.unwrap();
    for (stop, to) in [(libc::SIGTSTP, -pid), (libc::SIGSTOP, sleeper), (libc::SIGTSTP, pid)] {
        kill(to, stop);
        let mut status = 0;
        // SAFETY: an int.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == stop, "{status:x}");
        assert_eq!(state(sleeper), Some('T'));
        // The whole group as fg(1) does it, or the program alone.
        kill(if stop == libc::SIGSTOP { sleeper } else { -pid }, libc::SIGCONT);
        eventually("both go on", || state(sleeper) == Some('S') && state(pid) == Some('S'));
    }
    // Not SIGINT, which a shell has those ignore that it starts in the background.
    kill(-pid, libc::SIGTERM);
    let status = child.wait_with_output().unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

/// Signals that are ignored or blocked, descriptors that are closed, the terminal: as they were.
#[test]
fn the_program_has_what_ka_was_given() {
    for given in [
        "",
        "trap '' PIPE;",
        "trap '' HUP PIPE;",
        "exec 0<&-;",
        "exec 1>&2 2>&-;",
        "exec 7</dev/null;",
        "cd /tmp;",
    ] {
        let show = |ka: &str| {
            let what = "grep -E ^Sig(Ign|Blk) /proc/self/status >&7; pwd >&7;";
            let script = format!(
                "exec 7>$OUT; {given} {ka} sh -c '{} exec {} fd >&7'",
                what.replace("^Sig(Ign|Blk)", "\"^Sig(Ign|Blk)\""),
                seen().display()
            );
            let out = scratch("given");
            let script = script.replace("exec 7</dev/null;", "exec 8</dev/null;");
            assert!(
                bare("sh")
                    .env("OUT", &out)
                    .args(["-c", &script])
                    .stdin(Stdio::null())
                    .status()
                    .unwrap()
                    .success()
            );
            fs::read_to_string(out).unwrap()
        };
        let under = format!("{} run --via seccomp --", release().join("ka").display());
        // In a process of its own here too, as under ka.
        assert_eq!(show(&under), show(""), "{given}");
    }
    // Debian's shell does not ignore SIGCHLD, whatever it is told: without one.
    let ignored = |ka: &[&str]| {
        let mut env = bare("env");
        stdout(env.arg("--ignore-signal=CHLD").args(ka).args(["grep", "^SigIgn", "/proc/self/status"]))
    };
    let own = release().join("ka");
    assert_eq!(ignored(&[own.to_str().unwrap(), "run", "--via", "seccomp", "--"]), ignored(&[]));
    let command = format!("{} run --via seccomp -- sh -c 'test -t 0 && tty'", release().join("ka").display());
    let output = stdout(bare("script").args(["-qec", &command, "/dev/null"]));
    assert!(output.starts_with("/dev/pts/"), "{output}");
}

/// Who reads what the program writes sees its end when the program closes it, not when ka ends.
#[test]
fn nobody_else_holds_what_the_program_writes_to() {
    let mut child =
        run().args(["sh", "-c", "echo out; exec >&-; sleep 20"]).stdout(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\n");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    kill(child.id().try_into().unwrap(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

/// As under the shim: the port that a socket is bound to when it connects or listens decides.
#[test]
fn rules_choose_by_local_port() {
    // What a listener, and a connection from a port of its own and one from anywhere, have from birth and after the program's
    // own word.
    let script = "import socket\n\
        def see(s): return s.getsockopt(1, 9), s.getsockopt(6, 4)\n\
        def own(s): s.setsockopt(1, 9, 1); s.setsockopt(6, 4, 77)\n\
        l = socket.socket(); l.bind(('127.0.0.2', 0)); l.listen()\n\
        b = socket.socket(); b.bind(('127.0.0.3', 0)); b.connect(l.getsockname())\n\
        u = socket.socket(); u.connect(l.getsockname())\n\
        a = l.accept()[0]; l.accept\n\
        print([see(s) for s in (l, b, u, a)])\n\
        for s in (l, b, u, a): own(s)\n\
        print([see(s) for s in (l, b, u, a)])";
    let told = |via: &str, mode: &str, rules: &str| {
        let mut command = ka();
        command.env("KA_RULES", rules).args(["run", "--via", via, "--mode", mode, "python3", "-c", script]);
        let (status, out, err) = outcome(&mut command);
        assert_eq!(status, 0, "{err}");
        (out, err)
    };
    // All ports that the kernel gives out, none of them, and one rule that is for any port.
    let is_ours = |via: &str, mode: &str, rules: &str, expected: [&str; 2]| {
        let (out, err) = told(via, mode, rules);
        assert_eq!(
            (out.lines().collect::<Vec<_>>(), err.as_str()),
            (expected.to_vec(), ""),
            "{via} {mode} {rules}"
        );
    };
    let off = "(0, 7200)";
    let all = |l: &str, b: &str, u: &str, a: &str| format!("[{l}, {b}, {u}, {a}]");
    let same = |one: &str| all(one, one, one, one);
    for (mode, rules, first, then) in [
        ("force", "lport=1024-65535 idle=33", all("(1, 33)", "(1, 33)", "(1, 60)", "(1, 33)"), None),
        ("force", "lport=1-1023 idle=33", same("(1, 60)"), Some(same("(1, 60)"))),
        ("force", "lport=1-1023 idle=33; skip", same(off), Some(same("(1, 77)"))),
        ("default", "lport=1024-65535 skip", all(off, off, "(1, 60)", off), Some(same("(1, 77)"))),
    ] {
        let then = then.unwrap_or_else(|| first.replace("(1, 60)", "(1, 33)"));
        is_ours("seccomp", mode, rules, [&first, &then]);
    }
    // And where the shim reaches, it says the same of what it sees.
    let rules = "lport=1024-65535 idle=33";
    assert_eq!(
        told("preload", "force", rules).0.lines().next(),
        told("seccomp", "force", rules).0.lines().next()
    );
    let (out, err) = told("seccomp", "default", "lport=x skip; skip");
    assert!(out.starts_with(&same(off)), "{out}");
    assert!(
        err.starts_with("ka: KA_RULES=\"") && err.contains("1..65535") && err.lines().count() == 1,
        "{err}"
    );
}

#[test]
fn rules_that_it_cannot_follow_are_not_passed_over_in_silence() {
    let mut command = run();
    command.env("KA_RULES", "peer=10.0.0.0/8 skip").args(["true"]);
    let (status, _, err) = outcome(&mut command);
    assert_eq!(status, 125, "{err}");
    assert!(err.contains("KA_RULES"), "{err}");
}
