//! Tests `ka run --via seccomp`: every socket of the program and of its descendants has the policy, and the program
//! is otherwise unchanged.

mod command;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use command::{
    Holder, Options, WaitingProgram, as_nobody, bare, go_holder, go_program, holder, holder_with, ka,
    number_after, outcome, refusing, source, static_holder,
};
use ka_test::artifact::{release, shim};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, in_own_network_namespace, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, root, scratch, write_script};
use ka_test::process::{children, is_running, kill, state};
use ka_test::wait::eventually;

/// Builds a static program of tests/c.
fn made(name: &str) -> PathBuf {
    compile(cc().arg("-static"), &source(name), Linkage::Nothing)
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

/// Returns `ka run` with a system call that fails, always or for one value of an argument, as on an older kernel or
/// in a container.
fn refused(call: libc::c_long, errno: i32, argument: Option<(u32, i32)>) -> Command {
    let mut command = refusing(call, errno, argument);
    command.arg(release().join("ka")).args(["run", "--via", "seccomp"]);
    command
}

/// Returns the options of the program's socket, which the program prints.
fn options(what: &str, flags: &[&str]) -> String {
    stdout(run().args(flags).arg(seen()).arg(what))
}

const STANDARD: &str = "1 60 10 6 0\n";

#[test]
fn programs_that_preload_does_not_reach_are_run_under_a_supervisor() {
    let musl = holder_with(&mut Command::new("musl-gcc"), &["-static"]);
    for program in [static_holder(), go_holder(), musl.as_path()] {
        let mut holder = Holder::start(ka().args(["run", "-p", "90,20,3"]).arg(program));
        holder.open();
        holder.assert_all(90, 20, 3);
        holder.end();
    }
    let (status, out, err) = outcome(ka().args(["run", "-v", "-d", "33"]).arg(seen()).arg("listen"));
    assert_eq!((status, out.as_str()), (0, "1 33 10 6 0\n"), "{err}");
    // The output first says why preload is not used, then which way is used.
    let (passed, taken) = err.split_once('\n').unwrap();
    assert!(
        passed.starts_with("ka: preload does not reach the program: ") && passed.contains("it is static"),
        "{err}"
    );
    assert!(taken.starts_with("ka: via seccomp: idle=33,intvl=10,cnt=6, mode force, supervisor "), "{err}");
    // On request, the supervisor also runs programs that preload would reach.
    Holder::start(run().args(["-d", "90"]).arg(holder())).assert_all(90, 10, 6);
}

/// A folder that every user may enter, with a program that prints its sockets' options: dynamic and static.
fn visible(name: &str) -> (PublicFolder, PathBuf, PathBuf) {
    let folder = PublicFolder::new(name);
    let (dynamic, fixed) = (folder.join("dynamic"), folder.join("static"));
    copy_program(compile(&mut cc(), &source("seen"), Linkage::Nothing), &dynamic);
    copy_program(seen(), &fixed);
    (folder, dynamic, fixed)
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
        skip("only root can become another user without a password");
        return;
    }
    let (_made, dynamic, _) = visible("wrappers");
    let shim = dynamic.with_file_name("libka_preload.so");
    copy_program(ka_test::artifact::shim(), &shim);
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
            "bwrap starts its program in another root directory",
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
        assert!(
            err.starts_with(&format!("ka: preload does not reach the program: {why}")),
            "{words:?}: {err}"
        );
        // If the user asks for preload, ka does not silently run the program without the shim.
        let (status, out, err) = outcome(ka().args(["run", "--via", "preload", "--"]).args(words));
        assert_eq!((status, out.as_str()), (125, ""), "{words:?}: {err}");
        assert!(
            err.contains(why) && err.contains("; use ka run without --via, or --via seccomp; or "),
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

/// In another root directory the loader does not find the shim.
#[test]
fn programs_in_another_root_folder_are_run_under_a_supervisor() {
    if !is_root() {
        skip("only root can call chroot(2)");
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
        let why = format!(
            "ka: preload does not reach the program: {} starts its program in another root directory",
            words[0]
        );
        assert!(err.starts_with(&why), "{words:?}: {err}");
    }
}

/// doas reads its rules from /etc, and pkexec asks a daemon.
#[test]
fn doas_and_pkexec_are_supported() {
    if !is_root() {
        skip("only root can become another user without a password");
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

/// If an ordinary user's wrapper is not setuid, ka reaches the program that it starts. A setuid program would lose its
/// rights under the filter, so ka refuses to start it, even through a wrapper.
#[test]
fn wrappers_of_an_ordinary_user_are_supported_unless_setuid() {
    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let (_made, dynamic, _) = visible("ordinary");
    let own = dynamic.with_file_name("ka");
    copy_program(release().join("ka"), &own);
    copy_program(shim(), dynamic.with_file_name("libka_preload.so"));
    let run =
        |words: &[&str]| outcome(&mut as_nobody(bare(&own).args(["run", "-d", "97", "--"]).args(words)));
    let seen = dynamic.to_str().unwrap();
    for words in [&["env", "-i", seen, "listen"][..], &["setpriv", "--reset-env", seen, "listen"]] {
        assert_eq!(run(words), (0, "1 97 10 6 0\n".to_owned(), String::new()), "{words:?}");
    }
    // A setuid program with the name of a wrapper.
    let setuid = dynamic.with_file_name("sudo");
    copy_program(&dynamic, &setuid);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let setuid = setuid.to_str().unwrap();
    for words in [&[setuid, "listen"][..], &["nice", setuid, "listen"], &["env", "-i", setuid, "listen"]] {
        let (status, out, err) = run(words);
        assert_eq!((status, out.as_str()), (125, ""), "{words:?}: {err}");
        let why = "and without CAP_SYS_ADMIN the seccomp filter would keep it from gaining privileges; use sudo ka run\n";
        assert!(err.ends_with(why), "{words:?}: {err}");
    }
}

/// Go turns keepalive on by itself, with 15 s, after connect or accept, unless the program disables that.
#[test]
fn the_mode_decides_about_keepalive_of_go() {
    // The program makes four connections. It leaves Go's keepalive on, or disables it for the dialer, for the listener,
    // or for both. For each connection, the dialer's end comes first. True if Go sets its own keepalive on this end.
    const OWN: [bool; 8] = [true, true, false, true, true, false, false, false];
    if !in_own_network_namespace("the_mode_decides_about_keepalive_of_go") {
        return;
    }
    // Later releases of Go also set the count of probes, to their default of 9.
    for (mode, own, given) in [
        ("none", "1 15 15 9", "0 7200 75 9"),
        ("force", "1 60 10 6", "1 60 10 6"),
        // Go's idle time of 15 s is stricter than 60, and the policy's interval of 10 s is stricter than Go's 15.
        ("floor", "1 15 10 6", "1 60 10 6"),
        ("default", "1 15 15 6", "1 60 10 6"),
    ] {
        for cgo in [false, true] {
            let program = go_program("keepalive", cgo);
            let mut command = if mode == "none" { bare(&program) } else { run() };
            if mode != "none" {
                command.args(["--mode", mode]).arg(&program);
            }
            let go = WaitingProgram::start(command.arg("stay"));
            let expected = OWN.map(|is_own| if is_own { own } else { given });
            let said: Vec<_> = go.said.lines().map(|line| line.replace("15 15 9", "15 15 6")).collect();
            let expected: Vec<_> = expected.iter().map(|line| line.replace("15 15 9", "15 15 6")).collect();
            assert_eq!(said, expected, "{mode}, cgo {cgo}");
            // Go also has two listeners, on which it sets nothing.
            let mut outside: Vec<_> =
                go.sockets().iter().map(|options| (options.on, options.timers[0])).collect();
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

/// Tests Java's sockets and channels, by the shim and by a supervisor.
#[test]
fn sockets_of_java_have_the_policy() {
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
            let java = WaitingProgram::start(command.arg(&folder).arg("Keepalive"));
            let mut idle: Vec<_> =
                java.sockets().iter().map(|options| (options.on, options.timers[0])).collect();
            idle.sort_unstable();
            assert_eq!(idle, [[(true, own)].as_slice(), &[(true, 60); 5]].concat(), "{via}, {mode}");
            assert_eq!(java.end(), 0);
        }
    }
}

#[test]
fn sockets_that_connect_listen_and_accept_have_the_policy() {
    assert_eq!(options("listen", &[]), STANDARD);
    assert_eq!(options("connect", &["-p", "280,30,5", "-u", "auto"]), "1 280 30 5 430000\n".repeat(2));
    assert_eq!(options("fastopen", &[]), STANDARD.repeat(3), "sendto, sendmsg, sendmmsg");
    // The variables apply as well.
    assert_eq!(stdout(run().env("KA_POLICY", "99,9,9").arg(seen()).arg("listen")), "1 99 9 9 0\n");
}

/// ka prints the same messages as the shim, which is not used here.
#[test]
fn wrong_variables_are_reported() {
    let wrong = |quiet: &str| {
        let mut command = run();
        command.env("KA_POLICY", "often\x1b").env("KA_IDLE", "0").env("KA_INTVL", "9").env("KA_QUIET", quiet);
        outcome(command.arg(seen()).arg("listen"))
    };
    let (status, out, err) = wrong("0");
    assert_eq!((status, out.as_str()), (0, "1 60 9 6 0\n"));
    let lines: Vec<_> = err.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ka: KA_POLICY=\"often\\u{1b}\": must be "), "{err}");
    assert_eq!(lines[1], "ka: KA_IDLE=\"0\": idle must be 1..32767 s; ignored");
    assert_eq!(wrong("1").2, "");
}

#[test]
fn the_mode_decides_about_calls_of_the_program() {
    for (mode, after, before) in [
        // The program's own values have no effect. A user timeout is clamped to the detection time of the policy.
        ("force", "1 60 10 6 120000\n", "1 60 10 6 0\n"),
        ("floor", "1 15 10 6 120000\n", "1 30 10 5 0\n"),
        ("default", "0 15 15 9 3600000\n", "1 30 50 5 0\n"),
    ] {
        assert_eq!(options("set", &["--mode", mode]), after, "{mode}");
        assert_eq!(options("before", &["--mode", mode]), before, "{mode}");
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
        let options = stdout(run.args(["--mode", mode]).arg(seen()).arg("judge").stdin(input));
        assert_eq!(options, expected, "{mode}");
    }
}

/// As in Podman's containers, the supervisor may duplicate the program's descriptors, but process_vm_readv(2) fails.
#[test]
fn the_mode_is_enforced_without_process_vm_readv() {
    let under = |errno, mode: &str, what: &str| {
        let mut command = refused(libc::SYS_process_vm_readv, errno, None);
        outcome(command.args(["--mode", mode]).arg(seen()).arg(what))
    };
    for errno in [libc::EPERM, libc::ENOSYS] {
        for (mode, after) in [("force", "1 60 10 6 120000\n"), ("floor", "1 15 10 6 120000\n")] {
            assert_eq!(under(errno, mode, "set"), (0, after.to_owned(), String::new()));
        }
    }
    let (_, options, _) = under(libc::EPERM, "floor", "judge");
    assert!(options.contains(&format!("pointer {}\n", libc::EFAULT)), "{options}");
}

/// Tests threads, forks, namespaces, a thread's own descriptor table, closed or exhausted descriptors, and a signal
/// every 50 us.
#[test]
fn threads_forks_and_namespaces_are_supervised() {
    // The output of the program, and the number of its sockets. Another process checks their options.
    for (what, expected, sockets) in [
        ("threads", "200\n", 201),
        ("storm", "200\n", 201),
        // The sockets are in the descriptor table of a thread that has ended.
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
        let staying = WaitingProgram::start(run().arg(seen()).args([what, "stay"]).stderr(file));
        assert_eq!(staying.said, expected, "{what}");
        staying.assert_all(sockets, 60, 10, 6);
        assert_eq!(staying.end(), if what == "forks" { 5 } else { 0 }, "{what}");
        assert_eq!(fs::read_to_string(errors).unwrap(), "", "{what}");
    }
}

/// The program closes the first three descriptors too, so a socket gets one of these numbers.
#[test]
fn a_program_that_closes_all_descriptors_is_supervised() {
    let mut child = run().arg(seen()).arg("bare").spawn().unwrap();
    let pid = child.id().try_into().unwrap();
    let policy = Options { fd: 0, on: true, timers: [60, 10, 6, 0] };
    eventually("its two sockets have the policy", || {
        let mut sockets = command::socket_options(pid);
        sockets.sort_unstable_by_key(|options| options.fd);
        sockets == [policy, Options { fd: 1, ..policy }]
    });
    kill(pid, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

#[test]
fn descendants_of_the_program_are_supervised() {
    let script = format!("{0} listen; python3 -c '{1}'; {0} connect", seen().display(), PYTHON);
    assert_eq!(stdout(run().args(["sh", "-c", &script])), "1 60 10 6 0\n1 60\n1 60 10 6 0\n1 60 10 6 0\n");
}

const PYTHON: &str =
    "import socket; s = socket.socket(); s.listen(); print(s.getsockopt(1, 9), s.getsockopt(6, 4))";

/// Before Linux 6.9, pidfds refer to processes only. When a thread has ended, another process may get its number.
#[test]
fn a_reused_thread_id_is_handled_on_older_kernels() {
    if !in_own_namespaces("a_reused_thread_id_is_handled_on_older_kernels") {
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
    // pidfd_open(2) with PIDFD_THREAD fails with EINVAL.
    let mut command = refused(libc::SYS_pidfd_open, libc::EINVAL, Some((1, libc::O_EXCL)));
    command.args(["python3", "-c", again]);
    assert_eq!(stdout(&mut command), "again 1\n");
}

/// An inherited socket is open when the program starts, so the supervisor sees no call that creates it.
#[test]
fn inherited_sockets_get_the_policy() {
    let script = "import socket, os, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); os.dup2(s.fileno(), 9); \
                  os.set_inheritable(9, True); os.execvp(sys.argv[1], sys.argv[1:])";
    let look = "import socket; s = socket.socket(fileno=9); print(s.getsockopt(1, 9), s.getsockopt(6, 4))";
    let mut command = bare("python3");
    command.args(["-c", script]).arg(release().join("ka"));
    command.args(["run", "--via", "seccomp", "python3", "-c", look]);
    assert_eq!(stdout(&mut command), "1 60\n");
}

/// A service uses the sockets of systemd only if LISTEN_PID is its own PID.
#[test]
fn variables_of_systemd_name_the_pid_of_the_program() {
    let ka = release().join("ka");
    let look = "echo $((LISTEN_PID == $$)) $((WATCHDOG_PID == $$)) $LISTEN_FDS ${LISTEN_PIDFDID-none}";
    let script = "LISTEN_FDS=1 LISTEN_PIDFDID=7 LISTEN_PID=$$ WATCHDOG_PID=$$ \
                  exec \"$0\" run --via seccomp sh -c \"$1\"";
    assert_eq!(stdout(bare("sh").args(["-c", script]).arg(&ka).arg(look)), "1 1 1 none\n");
    // Variables that are addressed to another process stay unchanged.
    let script =
        "LISTEN_PID=1 WATCHDOG_PID=1 \"$0\" run --via seccomp sh -c 'echo $LISTEN_PID $WATCHDOG_PID'";
    assert_eq!(stdout(bare("sh").args(["-c", script]).arg(&ka)), "1 1\n");
}

#[test]
fn a_daemon_is_supervised_until_it_ends() {
    let file = scratch("daemon");
    let mut daemon = run();
    daemon.arg("-v").arg(seen()).arg("daemon").arg(&file);
    let (status, out, err) = outcome(&mut daemon);
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    // The program and ka have ended, and the output is closed. The daemon still runs, and waits for its file.
    let supervisor = number_after(&err, "supervisor ");
    assert!(is_running(supervisor), "{err}");
    fs::write(file.with_extension("go"), "").unwrap();
    eventually("the daemon's socket has the policy", || fs::read_to_string(&file).unwrap() == STANDARD);
    let spare = number_after(&err, "spare ");
    eventually("supervisor and spare have ended with the last process", || {
        !is_running(supervisor) && !is_running(spare)
    });
}

#[test]
fn daemons_of_daemons_are_supervised() {
    let file = scratch("daemons");
    fs::write(&file, "").unwrap();
    let (status, out, err) = outcome(run().arg("-v").arg(seen()).arg("daemons").arg(&file));
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    let supervisor = number_after(&err, "supervisor ");
    let policy = |options: &Options| (options.on, options.timers) == (true, [60, 10, 6, 0]);
    eventually("five daemons listen, and have the policy", || {
        let sockets = command::socket_options(supervisor);
        sockets.len() == 5 && sockets.iter().all(policy)
    });
    fs::remove_file(&file).unwrap();
    eventually("the supervisor has ended with the last of them", || !is_running(supervisor));
}

/// A program under `ka run -v`, and the PIDs of its supervisor and spare.
struct Supervised {
    child: Child,
    errors: Lines<std::process::ChildStderr>,
    supervisor: i32,
    spare: i32,
}

impl Supervised {
    fn start(program: &mut Command) -> Self {
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = Lines::new("ka", child.stderr.take().unwrap());
        let line = errors.expect("the PIDs of the supervisor and the spare");
        let (supervisor, spare) = (number_after(&line, "supervisor "), number_after(&line, "spare "));
        Self { child, errors, supervisor, spare }
    }

    /// Returns the exit status, standard output, and the rest of standard error.
    fn end(mut self) -> (std::process::ExitStatus, String, String) {
        let text = self.errors.rest();
        let Output { status, stdout, .. } = self.child.wait_with_output().unwrap();
        (status, String::from_utf8(stdout).unwrap(), text)
    }
}

/// If the supervisor is killed during a call, the spare handles the call, so it does not block forever.
#[test]
fn the_spare_takes_over_when_the_supervisor_is_killed() {
    for round in 0..12 {
        // Without an answer, the call would block until timeout(1) kills the program.
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
    // If the spare or the front process is killed, the program continues.
    let supervised = Supervised::start(run().arg("-v").arg(seen()).arg("loop"));
    kill(supervised.spare, libc::SIGKILL);
    assert_eq!(supervised.end().1, "100 of 100\n");
    let supervised = Supervised::start(run().arg("-v").arg(seen()).arg("loop"));
    kill(supervised.child.id().try_into().unwrap(), libc::SIGKILL);
    assert_eq!(supervised.end().1, "100 of 100\n");
}

/// timeout(1) and shells kill a job like this. A process in another process group continues, and has the policy.
#[test]
fn killing_the_job_leaves_other_groups_supervised() {
    let file = scratch("job");
    let script = format!(
        "setsid sh -c 'echo >{0}; sleep 1; {1} listen >{0}' & sleep 20",
        file.display(),
        seen().display()
    );
    let mut child = run().args(["sh", "-c", &script]).process_group(0).stderr(Stdio::null()).spawn().unwrap();
    eventually("a process in another session runs", || file.exists());
    kill(-i32::try_from(child.id()).unwrap(), libc::SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    eventually("its socket has the policy", || {
        fs::read_to_string(&file).is_ok_and(|options| options == STANDARD)
    });
}

/// If nothing reaps orphans, as the first process of a container may not, they would remain forever.
#[test]
fn no_process_of_ka_remains_after_the_program_ends() {
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
        let options = stdout(command.args(["run", "--via", "seccomp", "sh", "-c", script]));
        assert_eq!(options, format!("{status}\nnothing\n"));
    }
}

#[test]
fn the_death_of_supervisor_and_spare_is_reported() {
    let supervised = Supervised::start(run().args(["-v", "sleep", "1"]));
    kill(supervised.spare, libc::SIGKILL);
    kill(supervised.supervisor, libc::SIGKILL);
    let (status, _, err) = supervised.end();
    assert_eq!(status.code(), Some(125), "{err}");
    assert!(
        err.contains("were killed: the program's calls of connect and listen fail from now on; restart it"),
        "{err}"
    );
}

#[test]
fn an_inner_ka_run_reports_the_outer_policy() {
    let own = release().join("ka");
    let inner = |outer: &[&str], inner: &[&str]| {
        let (status, out, err) =
            outcome(run().args(outer).arg(&own).arg("run").args(inner).arg(seen()).arg("listen"));
        assert_eq!(status, 0, "{err}");
        (out, err)
    };
    let said = "ka: run: the policy of an outer ka run --via seccomp applies: 99,10,6\n";
    let outer_holds = ("1 99 10 6 0\n".to_owned(), said.to_owned());
    assert_eq!(inner(&["-d", "99"], &["-d", "30", "--via", "seccomp"]), outer_holds);
    assert_eq!(inner(&["-d", "99"], &["-d", "30"]), outer_holds);
    // A shim inside would set a policy that the supervisor overrides.
    let inside = |mode: &str| {
        let mut command = run();
        command
            .args(["-d", "99", "--mode", mode])
            .arg(&own)
            .args(["run", "-d", "30", "python3", "-c", PYTHON]);
        outcome(&mut command)
    };
    assert_eq!(inside("force"), (0, "1 99\n".to_owned(), said.to_owned()));
    // In the default mode, the inner policy is in force.
    assert_eq!(inside("default"), (0, "1 30\n".to_owned(), String::new()));
}

/// ka attach runs under the supervisor, which overrides what it sets on sockets of other processes. ka reports that.
#[test]
fn ka_attach_under_a_supervisor_reports_the_override() {
    // PR_SET_PTRACER with any process, because Yama would deny pidfd_getfd(2).
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

/// Compares the result and errno of each call. The program is dynamic, so the shim reaches it too.
///
/// The time at which data arrives over loopback varies, so two runs without ka sometimes differ too. A difference
/// that ka causes occurs in every run.
#[test]
fn default_mode_changes_the_result_of_no_call() {
    let calls = compile(&mut cc(), &source("calls"), Linkage::Nothing);
    for seed in 1..=60 {
        let arguments = [seed.to_string(), "3000".to_owned()];
        let alone = || {
            let options = stdout(bare(&calls).args(&arguments));
            assert!(options.lines().count() >= 3000, "seed {seed}");
            options
        };
        let first = alone();
        for via in ["seccomp", "preload"] {
            let under = || {
                let mut ka = ka();
                ka.args(["run", "--via", via, "--mode", "default"]).arg(&calls).args(&arguments);
                stdout(&mut ka)
            };
            if under() == first || (0..20).any(|_| under() == alone()) {
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

/// The filter of the supervisor also applies to ka attach, for sockets of any process.
#[test]
fn ka_attach_under_a_supervisor_reports_true_results() {
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
    // Tests values that are in force already, and a stricter user timeout, which the supervisor passes.
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
    assert!(there.iter().all(|options| options.on && options.timers == [99, 9, 9, 5000]), "{there:?}");
    let mut outside = Holder::start(&mut bare(holder()));
    assert_eq!(
        attach("default", own, &outside).1,
        // The program runs with the variables of ka run.
        "3 sockets set to 30,5,3 (mode default), 0 unchanged, 0 failed\n"
    );
    outside.assert_all(30, 5, 3);
}

/// ka finds the supervisor by the filter of the process and by its ancestors.
#[test]
fn ka_check_names_the_supervisor() {
    let errors = scratch("errors");
    let file = fs::File::create(&errors).unwrap();
    let staying = WaitingProgram::start(run().arg("-v").arg(seen()).args(["listen", "stay"]).stderr(file));
    let supervisor = number_after(&fs::read_to_string(errors).unwrap(), "supervisor ");
    let [program] = children(supervisor)[..] else { panic!("{:?}", children(supervisor)) };
    let program = program.to_string();
    let program = program.as_str();
    let (status, out, err) = outcome(ka().args(["check", "--json", program]));
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["supervisor"], supervisor);
    assert_eq!(report["ways"][0]["way"], "seccomp");
    assert_eq!(report["command"], format!("none: a policy of ka applies already (ka ls --pid {program})"));
    let text = outcome(ka().args(["check", program])).1;
    assert!(
        text.contains(&format!("\nseccomp  yes     the supervisor {supervisor} applies its policy\n")),
        "{text}"
    );
    // Neither the supervisor itself, nor a process outside, is under a supervisor.
    for other in [supervisor.to_string(), std::process::id().to_string()] {
        let report: serde_json::Value =
            serde_json::from_str(&outcome(ka().args(["check", "--json", &other])).1).unwrap();
        assert!(report["supervisor"].is_null(), "{report}");
    }
    assert_eq!(staying.end(), 0);
}

#[test]
fn io_uring_is_reported_once_and_can_be_denied() {
    if !in_own_network_namespace("io_uring_is_reported_once_and_can_be_denied") {
        return;
    }
    let ring = |flags: &[&str]| outcome(run().args(flags).arg(seen()).arg("ring"));
    let (status, out, err) = outcome(bare(seen()).arg("ring"));
    if out != "0\n" {
        skip(&format!("no io_uring here: {status} {out}{err}"));
        return;
    }
    let (status, out, err) = ring(&[]);
    assert_eq!((status, out.as_str()), (0, "0\n"));
    assert!(err.contains(") uses io_uring") && err.lines().count() == 1, "{err}");
    // ka reports io_uring once for each program, even if the program uses it often.
    let folder = scratch("rings");
    fs::create_dir(&folder).unwrap();
    for name in ["one", "other"] {
        copy_program(seen(), folder.join(name));
    }
    let (_, _, err) = outcome(
        run().args(["sh", "-c", "for name in one other one one; do \"$0/$name\" ring; done"]).arg(&folder),
    );
    let names: Vec<_> = err.lines().map(|line| line.split(['(', ')']).nth(1).unwrap()).collect();
    assert_eq!(names, ["one", "other"], "{err}");
    assert_eq!(ring(&["--no-io-uring"]), (0, format!("{}\n", libc::ENOSYS), String::new()));
    // A socket that io_uring connects has no policy, as the message says. An accepted socket inherits the policy of
    // the listener. The C program uses the ring without liburing, by the two system calls.
    let connects = compile(&mut cc(), &source("ring"), Linkage::Nothing);
    let options = stdout(run().arg(connects));
    let options: Vec<_> = options.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(options, ["0 7200 75 9 0", "1 60 10 6 0"]);
    let twice = format!("{0} ring; {0} ring", seen().display());
    assert_eq!(outcome(run().args(["sh", "-c", &twice])).2.lines().count(), 1);
    // The option requires this way, so ka chooses it.
    let (_, out, err) = outcome(ka().args(["run", "-v", "--no-io-uring", "sh", "-c", &twice]));
    assert!(out == "38\n38\n" && err.contains("\nka: via seccomp: "), "{out}{err}");
}

#[test]
fn calls_of_another_architecture_are_supervised_and_reported() {
    if !cfg!(target_arch = "x86_64") || outcome(bare(seen()).arg("ia32")).1.lines().next() != Some("0") {
        skip("this machine does not support system calls of i386");
        return;
    }
    let (_, out, err) = outcome(run().arg(seen()).arg("ia32"));
    assert_eq!(out, format!("0\n{STANDARD}0\n{STANDARD}"));
    assert!(err.contains(") makes system calls of i386") && err.lines().count() == 1, "{err}");
}

#[test]
fn ordinary_users_can_run_a_supervisor() {
    if !is_root() {
        skip("the tests run as an ordinary user already, so the other tests cover this");
        return;
    }
    if !in_own_network_namespace("ordinary_users_can_run_a_supervisor") {
        return;
    }
    let folder = PublicFolder::new("seccomp");
    for (from, to) in
        [(release().join("ka"), "ka"), (seen().to_path_buf(), "seen"), (go_holder().to_path_buf(), "go")]
    {
        copy_program(from, folder.join(to));
        fs::set_permissions(folder.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let ka = |program: &str| {
        let mut command = Command::new(folder.join("ka"));
        command.args(["run", "--via", "seccomp"]).arg(folder.join(program));
        as_nobody(&command)
    };
    assert_eq!(stdout(ka("seen").arg("connect")), STANDARD.repeat(2));
    Holder::start(&mut ka("go")).assert_all(60, 10, 6);
    // Only root may read the memory of such a program. ka runs it, and reports that it is not reached.
    let (status, out, err) = outcome(ka("seen").arg("undumpable"));
    assert_eq!((status, out.as_str()), (0, "0 7200 75 9 0\n"));
    assert!(err.contains("(seen) is not reached, and its sockets have no policy"), "{err}");
    assert_eq!(options("undumpable", &[]), STANDARD);

    // Under the filter, a setuid program would lose its rights, so ka does not run it. As a child of root's process
    // it keeps them.
    let setuid = folder.join("setuid");
    copy_program("/usr/bin/id", &setuid);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let (status, out, err) = outcome(&mut ka("setuid"));
    assert_eq!((status, out.as_str()), (125, ""), "{err}");
    assert!(
        err.contains("it is setuid, and without CAP_SYS_ADMIN the seccomp filter would keep it from gaining"),
        "{err}"
    );
    let as_another = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {} -u", setuid.display());
    assert_eq!(stdout(run().args(["sh", "-c", &as_another])), "0\n");
    let drops = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups {} listen",
        folder.join("seen").display()
    );
    assert_eq!(stdout(run().args(["sh", "-c", &drops])), STANDARD);
}

#[test]
fn the_exit_status_is_that_of_the_program() {
    assert_eq!(run().args(["sh", "-c", "exit 42"]).status().unwrap().code(), Some(42));
    for signal in [libc::SIGKILL, libc::SIGUSR1, libc::SIGSEGV] {
        let script = format!("kill -{signal} $$");
        assert_eq!(run().args(["sh", "-c", &script]).status().unwrap().signal(), Some(signal));
    }
    let text = scratch("text");
    write_script(&text, "exit $1");
    assert_eq!(run().arg(&text).arg("9").status().unwrap().code(), Some(9));
}

/// The signal may be sent to the process group, as the terminal and `kill %1` do, or to ka alone.
#[test]
fn a_signal_reaches_the_program_once() {
    let script =
        "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    for to_group in [false, true] {
        let mut child =
            run().args(["sh", "-c", script]).process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::new("the program", child.stdout.take().unwrap());
        assert_eq!(lines.expect("`ready`"), "ready");
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
    // A queued signal arrives with its value.
    let mut child = run().arg(seen()).arg("queue").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = Lines::new("the program", child.stdout.take().unwrap());
    assert_eq!(lines.expect("`ready`"), "ready");
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(4711) };
    // SAFETY: the call takes no pointer that is dereferenced.
    assert_eq!(unsafe { libc::sigqueue(child.id().try_into().unwrap(), libc::SIGRTMIN() + 2, value) }, 0);
    assert_eq!(lines.expect("the signal and its value"), "2 4711");
    child.wait().unwrap();
}

/// In a cron job, the process group has no link to another group of its session. If such a link ends while a process of
/// the group is stopped, the kernel sends SIGHUP and SIGCONT to the whole group (kernel/exit.c, `kill_orphaned_pgrp`).
#[test]
fn stopped_processes_of_an_orphaned_job_are_left_alone() {
    let script = "trap 'echo hangup' HUP; sleep 30 & kill -STOP $!; wait_for() { \
        while [ \"$(ps -o state= -p \"$1\")\" != T ]; do sleep 0.05; done; }; wait_for $!; \
        \"$@\" && sleep 0.3 && ps -o state= -p $!; kill -KILL $!";
    let mut session = Command::new("setsid");
    session.args(["--wait", "sh", "-c", script, "sh"]).arg(release().join("ka"));
    session.args(["run", "--via", "seccomp", "--", "true"]);
    assert_eq!(stdout(&mut session), "T\n");
}

/// timeout(1) starts its own process group unless it leads one, so signals to the job do not reach it directly.
#[test]
fn signals_to_the_job_reach_a_program_in_its_own_group() {
    let mut child = run().args(["timeout", "20.125", "sleep", "20"]).process_group(0).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // The duration of this timeout process is unique to this test.
    eventually("timeout leads a group", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.into_iter().any(|other| {
            let line = fs::read(format!("/proc/{other}/cmdline")).unwrap_or_default();
            // SAFETY: getpgid(2) takes no pointer.
            line.starts_with(b"timeout\x0020.125\0") && unsafe { libc::getpgid(other) } == other
        })
    });
    kill(-pid, libc::SIGTERM);
    let mut status = None;
    eventually("ka has ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().signal(), Some(libc::SIGTERM));
}

/// Checks the status that a shell sees when the job is stopped and continued.
#[test]
fn the_front_process_stops_and_continues_like_the_program() {
    let child = run().args(["sleep", "30"]).process_group(0).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
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
        // SAFETY: the kernel writes an int to `status`.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == stop, "{status:x}");
        assert_eq!(state(sleeper), Some('T'));
        // Continues the whole group, as fg(1) does, or the program alone.
        kill(if stop == libc::SIGSTOP { sleeper } else { -pid }, libc::SIGCONT);
        eventually("both go on", || state(sleeper) == Some('S') && state(pid) == Some('S'));
    }
    // SIGINT would not do: a shell ignores it in programs that it starts in the background.
    kill(-pid, libc::SIGTERM);
    let status = child.wait_with_output().unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

/// Ignored and blocked signals, closed descriptors, the working directory and the terminal are inherited unchanged.
#[test]
fn the_program_inherits_signals_and_descriptors_unchanged() {
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
        // Without ka, sh is a child process here too, as it is under ka.
        assert_eq!(show(&under), show(""), "{given}");
    }
    // Debian's shell never ignores SIGCHLD, so env(1) does it here.
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

/// The reader of the program's output sees the end when the program closes it, not when ka ends.
#[test]
fn no_other_process_holds_the_output_of_the_program() {
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

/// As with the shim, the local port at connect or listen decides.
#[test]
fn rules_select_by_local_port() {
    if !in_own_network_namespace("rules_select_by_local_port") {
        return;
    }
    // Prints the options of a listener, of a connection from a bound port, of one from any port, and of the accepted
    // socket: first as created, then after the program has set its own values.
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
    let options = |via: &str, mode: &str, rules: &str| {
        let mut command = ka();
        command.env("KA_RULES", rules).args(["run", "--via", via, "--mode", mode, "python3", "-c", script]);
        let (status, out, err) = outcome(&mut command);
        assert_eq!(status, 0, "{err}");
        (out, err)
    };
    // Tests rules for all ephemeral ports, for no ephemeral port, and for any port.
    let is_ours = |via: &str, mode: &str, rules: &str, expected: [&str; 2]| {
        let (out, err) = options(via, mode, rules);
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
    // Sockets that the shim reaches get the same values from it.
    let rules = "lport=1024-65535 idle=33";
    assert_eq!(
        options("preload", "force", rules).0.lines().next(),
        options("seccomp", "force", rules).0.lines().next()
    );
    let (out, err) = options("seccomp", "default", "lport=x skip; skip");
    assert!(out.starts_with(&same(off)), "{out}");
    assert!(
        err.starts_with("ka: KA_RULES=\"") && err.contains("1..65535") && err.lines().count() == 1,
        "{err}"
    );
}

#[test]
fn rules_that_the_supervisor_does_not_support_are_rejected() {
    let mut command = run();
    command.env("KA_RULES", "peer=10.0.0.0/8 skip").args(["true"]);
    let (status, _, err) = outcome(&mut command);
    assert_eq!(status, 125, "{err}");
    assert!(err.contains("KA_RULES"), "{err}");
}
