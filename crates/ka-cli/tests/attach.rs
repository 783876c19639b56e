//! Tests `ka attach` on running processes. The processes report the options of their own sockets, and ss(8) checks
//! them.

mod command;

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::json::{assert_described, described};
use command::{Holder, armed, as_nobody, bare, go_holder, holder, ka, outcome, static_holder};
use ka_test::artifact::release;
use ka_test::child::{Running, preloaded, stdout, succeed};
use ka_test::kernel::has_mptcp;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, scratch};
use ka_test::process::{children, signal_child};
use ka_test::server::{nginx, redis_arguments};
use ka_test::socket::{
    fresh, has_rto_max, is_rounded_rto_max, keepalive_options, option, rto_max, set_option,
};
use ka_test::wait::{eventually, listening};
use serde_json::Value;

fn attach(args: &[&str], pid: i32) -> (i32, String, String) {
    outcome(ka().arg("attach").args(args).arg(pid.to_string()))
}

/// Tests a dynamic, a static and a Go program, whose listeners get the policy too. Go sets its own keepalive.
#[test]
fn attach_sets_every_socket_of_a_process() {
    for program in [holder(), static_holder(), go_holder()] {
        let mut holder = Holder::start(&mut Command::new(program));
        let (status, out, err) = attach(&["-p", "280,30,5", "-u", "auto"], holder.pid());
        assert_eq!(
            (status, out.as_str(), err.as_str()),
            (
                0,
                "3 sockets set to idle=280,intvl=30,cnt=5,user_timeout=auto (mode force), 0 unchanged, 0 failed\n",
                ""
            )
        );
        for options in holder.look() {
            assert_eq!((options.on, options.timers), (true, [280, 30, 5, 430_000]), "{options:?}");
        }
        // Connections that the listener accepts later inherit the policy. Go, however, sets its own 15 s on them.
        if program == go_holder() {
            holder.end();
            continue;
        }
        holder.open();
        let options = holder.look();
        assert_eq!((options[4].on, options[4].timers), (true, [280, 30, 5, 430_000]));
        assert_ne!(options[3].timers[0], 280);

        let (_, out, _) = attach(&["-p", "280,30,5", "-u", "auto"], holder.pid());
        assert!(
            out.starts_with("1 socket set to idle=280,")
                && out.ends_with("(mode force), 4 unchanged, 0 failed\n"),
            "{out}"
        );
        let (_, out, _) = attach(&["-p", "off"], holder.pid());
        assert_eq!(out, "5 sockets set to off (mode force), 0 unchanged, 0 failed\n");
        assert!(holder.look().iter().all(|options| !options.on && options.timers[0] == 280));
        holder.end();
    }
}

#[test]
fn the_policy_comes_from_flags_then_variables_then_the_file_then_60_10_6() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let pid = holder.pid().to_string();
    let attach = |variables: &[(&str, &str)], args: &[&str]| {
        outcome(ka().envs(variables.iter().copied()).arg("attach").args(args).arg(&pid))
    };
    let set = |policy: &str, mode: &str| {
        (0, format!("3 sockets set to {policy} (mode {mode}), 0 unchanged, 0 failed\n"), String::new())
    };
    assert_eq!(attach(&[], &[]), set("60,10,6", "force"));
    holder.assert_all(60, 10, 6);
    assert_eq!(attach(&[("KA_POLICY", "50,9,5"), ("KA_MODE", "floor")], &[]), set("50,9,5", "floor"));
    holder.assert_all(50, 9, 5);
    // A flag overrides a part.
    assert_eq!(attach(&[("KA_POLICY", "50,9,5"), ("KA_CNT", "4")], &["-d", "40"]), set("40,9,4", "force"));
    holder.assert_all(40, 9, 4);
    // A whole policy takes nothing from the variables.
    let variables = [("KA_IDLE", "1"), ("KA_USER_TIMEOUT", "1000"), ("KA_MODE", "floor")];
    assert_eq!(attach(&variables, &["-p", "30,8,3", "--mode", "force"]), set("30,8,3", "force"));
    holder.assert_all(30, 8, 3);

    // Off and wrong values are named, and nothing is set.
    let (status, out, err) = attach(&[("KA_POLICY", "off")], &[]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("KA_POLICY=off") && err.contains("ka attach -p 60,10,6"), "{err}");
    let (status, _, err) = attach(&[("KA_POLICY", "30,8")], &["-n"]);
    assert!(status == 0 && err.contains("ka: KA_POLICY=\"30,8\": "), "{err}");
    let (status, _, err) = attach(&[("KA_RULES", "lport=1 skip")], &["-n"]);
    assert!(
        status == 0 && err.contains("KA_RULES, in the environment or /etc/ka.conf, is ignored: "),
        "{err}"
    );
    holder.assert_all(30, 8, 3);

    if !is_root() {
        skip("only root has an /etc of its own");
        return;
    }
    let ka = release().join("ka");
    let with_file = |variables: &str| {
        let script = format!(
            "printf 'KA_POLICY=280,30,5\\nKA_CNT=7\\n' >/etc/ka.conf; {variables} {} attach {pid}",
            ka.display()
        );
        String::from_utf8(with_own_etc(&script).stdout).unwrap()
    };
    assert_eq!(with_file("env"), set("280,30,7", "force").1);
    holder.assert_all(280, 30, 7);
    // The file's parts do not change the whole policy of a variable.
    assert_eq!(with_file("KA_POLICY=281,30,5"), set("281,30,5", "force").1);
    holder.assert_all(281, 30, 5);
}

/// If the process already has a policy of ka, that policy applies to sockets that are opened later. So attach names it.
#[test]
fn attach_names_the_policy_of_ka_run() {
    let mut run = ka();
    run.args(["run", "-p", "280,30,5", "--via"]);
    for (via, of) in [("preload", "libka_preload.so"), ("seccomp", "the supervisor ")] {
        let mut command = bare(run.get_program());
        let mut holder = Holder::start(command.args(run.get_args()).arg(via).arg(holder()));
        holder.assert_all(280, 30, 5);
        let listing = stdout(Command::new("ss").args(["-tlnpH", "sport", "=", &holder.port.to_string()]));
        let pid = listing.split_once("pid=").unwrap().1.split(',').next().unwrap().to_owned();
        let (status, out, err) = outcome(ka().args(["attach", &pid]));
        assert_eq!(
            (status, out.as_str()),
            (0, "3 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n")
        );
        let policy = ": 280,30,5 (mode force) applies to sockets that the process opens later\n";
        assert!(err.contains(of) && err.ends_with(policy) && err.lines().count() == 1, "{err}");
        let (_, out, _) = outcome(ka().args(["attach", "--json", &pid]));
        let report: Value = serde_json::from_str(&out).unwrap();
        let other = &report["others"][0];
        assert_eq!(
            (&other["way"], &other["policy"]),
            (&via.into(), &"idle=280,intvl=30,cnt=5".into()),
            "{out}"
        );
        let (_, _, err) = outcome(ka().args(["attach", "-p", "280,30,5", &pid]));
        assert_eq!(err, "", "the same policy");
    }
}

/// `ka attach --undo` reads the output of `ka attach --json`, and restores the earlier values.
#[test]
fn undo_restores_the_earlier_values() {
    let mut holder = Holder::start(Command::new(holder()).arg("keepalive"));
    let before = holder.look();
    let file = scratch("undo.json");
    let (status, out, _) = attach(&["--json", "-p", "280,30,5", "-u", "9000"], holder.pid());
    fs::write(&file, &out).unwrap();
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (status, &report["policy"], &report["mode"]),
        (0, &"idle=280,intvl=30,cnt=5,user_timeout=9000".into(), &"force".into())
    );
    for (socket, before) in report["sockets"].as_array().unwrap().iter().zip(&before) {
        assert_eq!(
            (&socket["result"], &socket["before"]["keepalive"]),
            (&"set".into(), &before.on.into()),
            "{out}"
        );
        let timers = ["idle", "intvl", "cnt", "user_timeout_ms"]
            .map(|key| i32::try_from(socket["before"][key].as_i64().unwrap()).unwrap());
        assert_eq!(timers, before.timers, "{out}");
        assert_eq!(
            (&socket["after"]["idle"], &socket["after"]["user_timeout_ms"]),
            (&280.into(), &9000.into()),
            "{out}"
        );
    }
    holder.assert_all(280, 30, 5);
    holder.open();
    let undo = |args: &[&str]| outcome(ka().arg("attach").arg("--undo").arg(&file).args(args));
    let (status, out, err) = undo(&["--dry-run"]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.ends_with("3 sockets would be set back to the earlier settings, 0 unchanged, 0 failed\n"),
        "{out}"
    );
    assert!(holder.look()[..3].iter().all(|told| told.timers[0] == 280));
    assert_eq!(
        undo(&[]),
        (0, "3 sockets set back to the earlier settings, 0 unchanged, 0 failed\n".to_owned(), String::new())
    );
    assert_eq!(holder.look()[..3], before[..], "and the connection that was opened since is left alone");
    assert_eq!(
        undo(&[]),
        (0, "0 sockets set back to the earlier settings, 3 unchanged, 0 failed\n".to_owned(), String::new())
    );
    holder.end();
    assert_eq!(
        undo(&[]),
        (
            0,
            "0 sockets set back to the earlier settings, 0 unchanged, 0 failed; 3 sockets not found (closed, or the process has ended)\n".to_owned(),
            String::new()
        )
    );

    for (text, why) in [
        ("", "must be the output of ka attach --json"),
        ("[]", "must be the output of ka attach --json"),
        ("nonsense", "must be the output of ka attach --json"),
        (
            r#"{"sockets":[{"pid":1,"inode":1,"result":"set","before":null}]}"#,
            "it lacks the earlier settings of 1 socket: --via bpf",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let (status, out, err) = undo(&[]);
        assert!(status == 2 && out.is_empty() && err.contains(why), "{text:?}: {err}");
    }
    // Nothing was set, so there is nothing to undo.
    fs::write(&file, "{\"sockets\": []}").unwrap();
    assert_eq!(
        undo(&[]),
        (0, "0 sockets set back to the earlier settings, 0 unchanged, 0 failed\n".to_owned(), String::new())
    );
    // This FIFO has no writer, so a read would block forever.
    fs::remove_file(&file).unwrap();
    succeed(Command::new("mkfifo").arg(&file));
    let (status, _, err) = undo(&[]);
    assert!(status == 2 && err.contains(": it is not a regular file"), "{err}");
    let (status, _, err) = outcome(ka().args(["attach", "--undo", "/no/such/file"]));
    assert!(status == 2 && err.contains("/no/such/file: No such file"), "{err}");
}

/// ka leaves a process of KA_SKIP alone, unless the command line has its PID.
#[test]
fn attach_all_and_user_leave_skipped_programs_alone() {
    if !in_own_namespaces("attach_all_and_user_leave_skipped_programs_alone") {
        return;
    }
    let mut holder = Holder::start(&mut Command::new(holder()));
    let (status, out, _) = outcome(ka().env("KA_SKIP", "holder-*").args(["attach", "--all"]));
    assert_eq!(status, 0);
    assert!(out.ends_with("; 1 process left alone (KA_SKIP)\n"), "{out}");
    assert!(holder.look().iter().all(|options| !options.on));
    assert_eq!(outcome(ka().env("KA_SKIP", "holder-*").args(["attach", &holder.pid().to_string()])).0, 0);
    holder.assert_all(60, 10, 6);
}

#[test]
fn the_mode_decides_about_keepalive_that_the_program_has_set() {
    // The program's own policy is 10, 5, 2, on the end that connected.
    let own = |mode: &str, policy: &str| {
        let mut holder = Holder::start(Command::new(holder()).arg("keepalive"));
        let (status, _, err) = attach(&["--mode", mode, "-p", policy], holder.pid());
        assert_eq!((status, err.as_str()), (0, ""));
        let options = holder.look();
        assert!(options.iter().all(|options| options.on), "{options:?}");
        (options[0].timers, options[1].timers)
    };
    assert_eq!(own("force", "60,4,6"), ([60, 4, 6, 0], [60, 4, 6, 0]));
    assert_eq!(own("floor", "60,4,6"), ([60, 4, 6, 0], [10, 4, 2, 0]));
    assert_eq!(own("default", "60,4,6"), ([60, 4, 6, 0], [10, 5, 2, 0]));
}

/// Such a user timeout would detect a dead peer later than the policy does.
#[test]
fn a_user_timeout_longer_than_the_policy_is_shortened() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    for (mode, before, after) in [
        ("force", 900_000, 120_000),
        ("floor", 900_000, 120_000),
        ("floor", 5000, 5000),
        ("default", 900_000, 900_000),
    ] {
        set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
        set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, before);
        let port = listener.local_addr().unwrap().port().to_string();
        assert_eq!(attach(&["--mode", mode, "--port", &port], pid).0, 0);
        assert_eq!(
            keepalive_options(listener.as_raw_fd())[..5],
            [Ok(1), Ok(60), Ok(10), Ok(6), Ok(after)],
            "{mode} {before}"
        );
    }
}

#[test]
fn port_selects_sockets_by_either_port() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, out, _) = attach(&["--port", &other.local_addr().unwrap().port().to_string()], holder.pid());
    assert_eq!(out, "0 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n");
    assert!(holder.look().iter().all(|options| !options.on));
    // The port of the listener is also a port of both ends of a connection: the local port of one, the peer's of the
    // other.
    let (_, out, _) = attach(&["--port", &holder.port.to_string()], holder.pid());
    assert_eq!(out, "3 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n");
    holder.assert_all(60, 10, 6);
}

#[test]
fn dry_run_changes_no_socket() {
    let mut holder = Holder::start(Command::new(holder()).arg("udp"));
    let before = holder.look();
    let (status, out, _) = attach(&["--dry-run"], holder.pid());
    assert_eq!(
        (status, out.lines().last()),
        (0, Some("3 sockets would be set to 60,10,6 (mode force), 0 unchanged, 0 failed"))
    );
    assert_eq!(out.matches(": would be set from off to 60,10,6\n").count(), 3, "{out}");
    let (_, out, _) = attach(&["--dry-run", "--json"], holder.pid());
    let report: Value = serde_json::from_str(&out).unwrap();
    for socket in report["sockets"].as_array().unwrap() {
        assert_eq!(socket["result"], "would-set");
        assert_eq!(
            (&socket["before"]["keepalive"], &socket["after"]["keepalive"]),
            (&false.into(), &true.into())
        );
        assert_eq!(
            (&socket["before"]["idle"], &socket["after"]["idle"]),
            (&before[0].timers[0].into(), &60.into())
        );
    }
    assert_eq!(holder.look(), before);
}

/// SO_KEEPALIVE succeeds on any socket. Sockets that are not TCP must not get it.
#[test]
fn sockets_that_are_not_tcp_are_left_alone() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (unix, _peer) = UnixStream::pair().unwrap();
    let raw = ka_test::socket::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP);
    let pid = i32::try_from(std::process::id()).unwrap();
    for policy in ["60,10,6", "off", "on", "idle=9"] {
        for mode in ["force", "floor", "default"] {
            let (status, _, err) = attach(&["-p", policy, "--mode", mode], pid);
            if policy == "off" && mode != "force" {
                assert!(status == 2 && err.contains("changes nothing in mode"), "{policy} {mode}: {err}");
                continue;
            }
            assert_eq!((status, err.as_str()), (0, ""), "{policy} {mode}");
        }
    }
    for fd in
        [udp.as_raw_fd(), unix.as_raw_fd()].into_iter().chain(raw.iter().map(std::os::fd::AsRawFd::as_raw_fd))
    {
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE), Ok(0));
    }
    let holder = Holder::start(Command::new(holder()).arg("udp"));
    assert_eq!(attach(&[], holder.pid()).1, "3 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n");
}

#[test]
fn multipath_tcp_sockets_get_the_policy() {
    const NOTE: &str = "without the user timeout: Multipath TCP does not support it";
    if !has_mptcp() {
        return;
    }
    let socket = ka_test::socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    // Multipath TCP has no user timeout. ka sets the other values.
    let (status, _, err) = attach(&["-p", "280,30,5", "-u", "5000"], pid);
    assert_eq!((status, err.as_str()), (0, ""));
    let [on, idle, intvl, cnt, ..] = keepalive_options(socket.as_raw_fd());
    assert_eq!([on, idle, intvl, cnt], [Ok(1), Ok(280), Ok(30), Ok(5)]);
    // The output names the missing user timeout for each socket, even if the socket already has the policy. If the
    // policy has no user timeout, the output does not mention it.
    let (_, out, _) = attach(&["-v", "-p", "281,30,5", "-u", "5000"], pid);
    assert!(
        out.contains(&format!(": set from 280,30,5 to 281,30,5, {NOTE}\n"))
            && out.ends_with(&format!("\n1 of them {NOTE}\n")),
        "{out}"
    );
    let (_, out, _) = attach(&["--json", "-p", "281,30,5", "-u", "auto"], pid);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["without_user_timeout"], 1, "{out}");
    let sockets = report["sockets"].as_array().unwrap();
    let noted: Vec<_> = sockets.iter().filter(|socket| socket["note"] == NOTE).collect();
    assert_eq!(noted.iter().map(|socket| &socket["fd"]).collect::<Vec<_>>(), [socket.as_raw_fd()], "{out}");
    for args in [&["-v", "-p", "281,30,5"][..], &["-v", "-p", "281,30,5", "-u", "0"]] {
        let (_, out, _) = attach(args, pid);
        assert!(!out.contains(NOTE), "{out}");
    }
}

#[test]
fn attach_sets_rto_max_and_undo_restores_it() {
    if !has_rto_max() {
        return;
    }
    let system = rto_max(fresh().as_raw_fd());
    let mut holder = Holder::start(&mut Command::new(holder()));
    let pid = holder.pid();
    let set = |args: &[&str], policy: &str, mode: &str, counts: [usize; 2], values: [i32; 3]| {
        let (status, out, err) = attach(args, pid);
        let [set, unchanged] = counts;
        let plural = if set == 1 { "" } else { "s" };
        assert_eq!(
            (status, out, err),
            (
                0,
                format!(
                    "{set} socket{plural} set to {policy} (mode {mode}), {unchanged} unchanged, 0 failed\n"
                ),
                String::new()
            )
        );
        let found = command::rto_maxima(pid);
        assert!(
            found.len() == 3
                && found.iter().zip(values).all(|(found, value)| is_rounded_rto_max(*found, value)),
            "{found:?}"
        );
    };
    // A policy without it leaves it alone.
    set(&["-p", "70,7,7"], "70,7,7", "force", [3, 0], [system; 3]);
    let file = scratch("undo.json");
    let (_, json, _) = attach(&["--json", "-p", "280,30,5", "-r", "2s"], pid);
    fs::write(&file, &json).unwrap();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&report["set"], &report["without_rto_max"]), (&3.into(), &0.into()), "{json}");
    for socket in report["sockets"].as_array().unwrap() {
        let values = ["before", "after"].map(|when| socket[when]["rto_max_ms"].clone());
        assert_eq!(values, [Value::from(system), Value::from(2000)], "{json}");
    }
    let policy = "idle=280,intvl=30,cnt=5,rto_max=2000";
    set(&["-p", "280,30,5", "-r", "2000"], policy, "force", [0, 3], [2000; 3]);
    set(&["-p", policy], policy, "force", [0, 3], [2000; 3]);
    // The mode force sets it exactly. The mode floor keeps a lower value.
    set(&["-p", "280,30,5", "-r", "5s"], "idle=280,intvl=30,cnt=5,rto_max=5000", "force", [3, 0], [5000; 3]);
    let floor = |rto_max| ["--mode", "floor", "-p", "280,30,5", "-r", rto_max];
    set(&floor("9s"), "idle=280,intvl=30,cnt=5,rto_max=9000", "floor", [0, 3], [5000; 3]);
    set(&floor("3s"), "idle=280,intvl=30,cnt=5,rto_max=3000", "floor", [3, 0], [3000; 3]);
    // The second time, the sockets have the automatic value, which the kernel may have rounded up.
    let (_, out, _) = attach(&["-v", "-p", "14,2,5", "-r", "auto"], pid);
    assert!(
        out.ends_with(
            "3 sockets set to idle=14,intvl=2,cnt=5,rto_max=auto (mode force), 0 unchanged, 0 failed\n"
        ),
        "{out}"
    );
    let automatic = command::rto_maxima(pid);
    let exact = command::automatic_rto_max("idle=14,intvl=2,cnt=5,rto_max=auto");
    assert!(automatic.iter().all(|value| is_rounded_rto_max(*value, exact)), "{automatic:?} {exact}");
    let (_, out, _) = attach(&["-p", "14,2,5", "-r", "auto"], pid);
    assert_eq!(
        out,
        "0 sockets set to idle=14,intvl=2,cnt=5,rto_max=auto (mode force), 3 unchanged, 0 failed\n"
    );

    let undo = || outcome(ka().arg("attach").arg("--undo").arg(&file));
    let back = "3 sockets set back to the earlier settings, 0 unchanged, 0 failed\n";
    assert_eq!(undo(), (0, back.to_owned(), String::new()));
    assert_eq!(command::rto_maxima(pid), [system; 3]);
    holder.assert_all(70, 7, 7);
    // The output of 0.1.0 does not have the key. Then the value stays.
    attach(&["-p", "280,30,5", "-r", "4s"], pid);
    let mut old = report;
    old.as_object_mut().unwrap().remove("without_rto_max").unwrap();
    for socket in old["sockets"].as_array_mut().unwrap() {
        for when in ["before", "after"] {
            socket[when].as_object_mut().unwrap().remove("rto_max_ms").unwrap();
        }
    }
    fs::write(&file, old.to_string()).unwrap();
    assert_eq!(undo(), (0, back.to_owned(), String::new()));
    assert_eq!(command::rto_maxima(pid), [4000; 3]);
    holder.assert_all(70, 7, 7);
}

/// A socket that has fallen back to TCP reports a value, but the kernel rejects every write.
#[test]
fn multipath_tcp_sockets_get_the_policy_without_rto_max() {
    const NOTE: &str = "without rto_max: it needs Linux 6.15, and Multipath TCP does not support it";
    if !has_mptcp() || !has_rto_max() {
        return;
    }
    let mptcp = || ka_test::socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let fresh = mptcp();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fallen_back = socket2::Socket::from(mptcp());
    fallen_back.connect(&listener.local_addr().unwrap().into()).unwrap();
    let _peer = listener.accept().unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    let (status, out, err) = attach(&["-v", "-p", "280,30,5", "-r", "2s"], pid);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    for socket in [fresh.as_raw_fd(), fallen_back.as_raw_fd()] {
        assert_eq!(keepalive_options(socket)[..4], [Ok(1), Ok(280), Ok(30), Ok(5)]);
        let line = out.lines().find(|line| line.contains(&format!("fd {socket} "))).unwrap();
        assert!(line.ends_with(NOTE), "{out}");
    }
    assert_eq!(rto_max(listener.as_raw_fd()), 2000);
    assert!(out.ends_with(&format!("2 of them {NOTE}\n")), "{out}");
    let (_, out, _) = attach(&["--json", "-p", "280,30,5", "-u", "5000", "-r", "auto"], pid);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&report["without_rto_max"], &report["without_user_timeout"]),
        (&2.into(), &1.into()),
        "{out}"
    );
    let (_, out, _) = attach(&["-v", "-p", "280,30,5"], pid);
    assert!(!out.contains(NOTE), "{out}");
}

/// Tests a thread with its own descriptor table, and a process whose first thread has ended.
#[test]
fn threads_with_their_own_descriptor_table_are_set() {
    for argument in ["task", "leaderless"] {
        let mut holder = Holder::start(Command::new(holder()).arg(argument));
        let (status, out, err) = attach(&["-p", "280,30,5"], holder.pid());
        if err.contains("only Linux 6.9 and later") {
            skip(
                "this kernel cannot duplicate descriptors of threads with their own table (needs Linux 6.9)",
            );
            continue;
        }
        assert_eq!(
            (status, out.as_str(), err.as_str()),
            (0, "3 sockets set to 280,30,5 (mode force), 0 unchanged, 0 failed\n", ""),
            "{argument}"
        );
        holder.assert_all(280, 30, 5);
        let listed = stdout(ka().args(["ls", "--json", "--pid", &holder.pid().to_string()]));
        assert_eq!(listed.matches("\"idle\":280").count(), 3, "{listed}");
    }
}

/// Forks share sockets, and so do duplicates of a descriptor. Each socket is counted once.
#[test]
fn shared_sockets_are_counted_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _duplicate = listener.try_clone().unwrap();
    let port = listener.local_addr().unwrap().port();
    set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
    // Only these processes inherit the descriptor. Processes that other tests start at the same time must not inherit
    // it.
    let fd = listener.as_raw_fd();
    let child = || {
        let mut sleep = Command::new("sleep");
        // SAFETY: fcntl(2) may be called after fork, and changes only the child's own flag.
        unsafe { sleep.arg("60").pre_exec(move || Ok(_ = libc::fcntl(fd, libc::F_SETFD, 0))) };
        Running::start(&mut sleep)
    };
    let children: Vec<_> = (0..3).map(|_| child()).collect();
    let pids: Vec<_> = children.iter().map(|child| child.0.id().to_string()).collect();
    let own = std::process::id().to_string();
    let (_, out, _) = outcome(ka().args(["attach", "--port", &port.to_string(), &own, &own]).args(&pids));
    assert_eq!(out, "1 socket set to 60,10,6 (mode force), 0 unchanged, 0 failed\n");
}

#[test]
fn messages_about_inaccessible_processes_name_what_is_needed() {
    let (status, out, err) = outcome(ka().args(["attach", "99999999"]));
    assert_eq!((status, out.as_str()), (1, "0 sockets set to 60,10,6 (mode force), 0 unchanged, 1 failed\n"));
    assert_eq!(err, "ka: attach: 99999999 (?): there is no such process\n");
    for args in
        [&["attach", "nginx"][..], &["attach", "0"], &["attach", "99999999999"], &["ls", "--pid", "nginx"]]
    {
        let (status, _, err) = outcome(ka().args(args));
        assert!(status == 2 && err.contains("must be a PID, such as 1234 (pidof NAME finds it)"), "{err}");
    }
    // Tests the ID of a thread of this process.
    thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // SAFETY: gettid(2) has no arguments and cannot fail.
            send.send(unsafe { libc::gettid() }).unwrap();
            let _ = wait.recv();
        });
        let (status, _, err) = attach(&[], receive.recv().unwrap());
        assert!(status == 1 && err.contains("it is a thread of process"), "{err}");
        drop(done);
    });
    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let folder = PublicFolder::new("attach");
    for program in [release().join("ka"), holder().to_path_buf()] {
        copy_program(
            &program,
            folder.join(program.file_name().unwrap().to_str().unwrap().split('-').next().unwrap()),
        );
    }
    let nobodys = |args: &[&str]| as_nobody(Command::new(folder.join("holder")).args(args));
    let as_nobody_attach = |pid: i32| {
        let mut ka = Command::new(folder.join("ka"));
        outcome(&mut as_nobody(ka.args(["attach", "-p", "280,30,5"]).arg(pid.to_string())))
    };

    // Tests a process of root.
    let mut roots = Holder::start(&mut Command::new(holder()));
    let (status, _, err) = as_nobody_attach(roots.pid());
    assert_eq!(status, 1);
    assert!(err.contains("it belongs to user 0: needs CAP_SYS_PTRACE (run ka as root)"), "{err}");
    assert!(roots.look().iter().all(|options| !options.on));
    // Tests a process of the same user that only root may inspect, as on systems that restrict ptrace(2).
    let mut undumpable = Holder::start(&mut nobodys(&["undumpable"]));
    let (status, _, err) = as_nobody_attach(undumpable.pid());
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("not dumpable") || err.contains("ptrace_scope"), "{err}");
    assert!(undumpable.look().iter().all(|options| !options.on));
    assert_eq!(attach(&["-p", "280,30,5"], undumpable.pid()).0, 0);
    undumpable.assert_all(280, 30, 5);
    // Tests an ordinary process of the same user, which needs no privilege.
    let mut own = Holder::start(&mut nobodys(&[]));
    let (status, out, err) = as_nobody_attach(own.pid());
    if fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0") {
        assert!(err.contains("kernel.yama.ptrace_scope"), "{err}");
    } else {
        assert_eq!(
            (status, out.as_str()),
            (0, "3 sockets set to 280,30,5 (mode force), 0 unchanged, 0 failed\n"),
            "{err}"
        );
        own.assert_all(280, 30, 5);
    }
}

#[test]
fn all_and_user_select_processes() {
    if !in_own_namespaces("all_and_user_select_processes") {
        return;
    }
    let mut roots = Holder::start(&mut Command::new(holder()));
    if is_root() {
        let folder = PublicFolder::new("user");
        copy_program(holder(), folder.join("holder"));
        let mut nobodys = Holder::start(&mut as_nobody(&Command::new(folder.join("holder"))));
        assert_eq!(
            outcome(ka().args(["attach", "--user", "nobody", "-d", "90"])).1,
            "3 sockets set to 90,10,6 (mode force), 0 unchanged, 0 failed\n"
        );
        nobodys.assert_all(90, 10, 6);
        assert!(roots.look().iter().all(|options| !options.on));
        assert_eq!(
            outcome(ka().args(["attach", "--user", "65534", "-d", "90"])).1,
            "0 sockets set to 90,10,6 (mode force), 3 unchanged, 0 failed\n"
        );
        nobodys.end();
    } else {
        skip("only root can become another user");
    }
    let (status, out, err) = outcome(ka().args(["attach", "--all"]));
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "3 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n", "")
    );
    roots.assert_all(60, 10, 6);
    let (status, _, err) = outcome(ka().args(["attach", "--user", "no such user"]));
    assert_eq!((status, err.as_str()), (2, "ka: attach: --user no such user: no such user\n"));
    for args in
        [&["attach"][..], &["attach", "--all", "1"], &["attach", "0"], &["attach", "--interval", "1s", "1"]]
    {
        assert_eq!(outcome(ka().args(args)).0, 2, "{args:?}");
    }
}

#[test]
fn attach_sets_sockets_of_nginx_redis_and_python() {
    // The workers of nginx survive the sudden end of their master, but not the end of the PID namespace.
    if !in_own_namespaces("attach_sets_sockets_of_nginx_redis_and_python") {
        return;
    }
    let conf = nginx("listen 127.0.0.1:8080 so_keepalive=off;");
    let nginx = Running::start(Command::new("nginx").arg("-c").arg(conf));
    let redis = Running::start(Command::new("redis-server").args(redis_arguments("0")));
    let python = "import socket, time\nl = socket.create_server(('127.0.0.1', 7000))\n\
                  a = [l.accept() for n in range(2)]\ntime.sleep(600)";
    let python = Running::start(Command::new("python3").args(["-c", python]));
    for port in [8080, 6379, 7000] {
        listening(port);
    }
    let _clients = [8080, 6379, 7000].map(|port| TcpStream::connect(("127.0.0.1", port)).unwrap());
    // The connections that tested whether the servers listen were closed at once. Only Python keeps the connection
    // that it accepted.
    eventually("only these three connections", || armed(0.0) == (6, 0));
    let mut pids = [&nginx, &redis, &python].map(|server| i32::try_from(server.0.id()).unwrap()).to_vec();
    pids.extend(children(pids[0]));
    let pids = pids.iter().map(ToString::to_string);
    let (status, _, err) = outcome(ka().args(["attach", "-d", "45"]).args(pids));
    assert_eq!((status, err.as_str()), (0, ""));
    eventually("the servers' ends have a keepalive of 45 s", || armed(45.0) == (6, 3));
    // Tests a connection that is made later.
    let _late = TcpStream::connect("127.0.0.1:8080").unwrap();
    eventually("the server's end of the late connection has it too", || armed(45.0) == (8, 4));
}

#[test]
fn follow_sets_sockets_that_are_opened_later() {
    let mut holder = Holder::start(&mut Command::new(go_holder()));
    let mut follow = ka();
    follow
        .args(["attach", "--follow", "--interval", "200ms", "-p", "280,30,5"])
        .arg(holder.pid().to_string());
    let mut child = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let all = |holder: &mut Holder, count: usize| {
        let options = holder.look();
        options.len() == count
            && options.iter().all(|options| options.on && options.timers[..3] == [280, 30, 5])
    };
    eventually("the first three sockets have the policy", || all(&mut holder, 3));
    holder.open();
    holder.open();
    eventually("the sockets that were opened later have the policy", || all(&mut holder, 7));
    holder.end();
    // `ka attach --follow` ends when the process ends.
    eventually("ka ends after the process has ended", || child.try_wait().unwrap().is_some());
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(out.ends_with(", 0 failed\n"), "{out}");
}

#[test]
fn the_manual_page_describes_each_json_key() {
    let [keys] = described("ka-attach.1");
    // Its policy differs from that of ka attach, so ka names it in `others`.
    let mut command = preloaded(holder());
    let mut holder = Holder::start(command.env("KA_POLICY", "30,5,3"));
    let json = |args: &[&str], pid: i32| -> Value {
        let (_, out, err) = attach(args, pid);
        serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}{err}"))
    };
    let dry = json(&["--json", "--dry-run", "-p", "280,30,5"], holder.pid());
    let set = json(&["--json", "-p", "280,30,5", "--mode", "floor"], holder.pid());
    assert_eq!(set["others"][0]["policy"], "idle=30,intvl=5,cnt=3", "{set}");
    let unchanged = json(&["--json", "-p", "280,30,5"], holder.pid());
    // No process has PID 4194304, because it is the kernel's limit.
    let failed = json(&["--json"], 4_194_304);
    let file = scratch("before.json");
    fs::write(&file, set.to_string()).unwrap();
    let (_, undone, err) = outcome(ka().args(["attach", "--json", "--undo"]).arg(&file));
    let undone = serde_json::from_str(&undone).unwrap_or_else(|why| panic!("{why}: {undone}{err}"));
    assert_described(&keys, &[dry, set, unchanged, failed, undone]);

    let mut follow = ka();
    follow.args(["attach", "--follow", "--json"]).arg(holder.pid().to_string());
    let child = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    eventually("ka has set the sockets", || holder.look().iter().all(|options| options.timers[0] == 60));
    holder.end();
    let out = child.wait_with_output().unwrap().stdout;
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_socket = |(key, text): (&String, &String)| {
        key.strip_prefix("sockets[].").map(|key| (key.to_owned(), text.clone()))
    };
    assert_described(&keys.iter().filter_map(of_socket).collect(), &lines);
}

#[test]
fn a_signal_ends_follow_with_success() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut holder = Holder::start(&mut Command::new(holder()));
        let mut follow = ka();
        follow.args(["attach", "-f", "--json"]).arg(holder.pid().to_string());
        let mut child = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        eventually("ka has set the sockets", || holder.look().iter().all(|options| options.on));
        thread::sleep(Duration::from_millis(200));
        signal_child(&child, signal);
        assert!(child.wait().unwrap().success());
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(
            out.lines().filter(|line| line.starts_with("{\"pid\":") && line.ends_with('}')).count(),
            3,
            "{out}"
        );
    }
}

#[test]
fn spread_delays_the_writes() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let start = Instant::now();
    assert_eq!(attach(&["--spread", "900ms"], holder.pid()).0, 0);
    assert!(start.elapsed() >= Duration::from_millis(900));
    holder.assert_all(60, 10, 6);
}

/// A signal also ends the delay of --spread at once.
#[test]
fn a_signal_ends_spread_at_once() {
    for (signal, options, status) in [(libc::SIGINT, &["--follow"][..], 1), (libc::SIGTERM, &[], 1)] {
        let mut holder = Holder::start(&mut Command::new(holder()));
        let mut follow = ka();
        follow.args(["attach", "--spread", "60s"]).args(options).arg(holder.pid().to_string());
        let mut child = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        eventually("the first socket has the policy", || holder.look()[0].on);
        let sent = Instant::now();
        signal_child(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert!(sent.elapsed() < Duration::from_secs(8), "{:?}", sent.elapsed());
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(
            out,
            "1 socket set to 60,10,6 (mode force), 0 unchanged, 0 failed; 2 sockets of any type not examined, because a signal came\n"
        );
        assert_eq!(holder.look().iter().filter(|options| options.on).count(), 1);
    }
}

#[test]
fn dry_run_ignores_spread() {
    // Build first, so that the build time does not count.
    release();
    let holder = Holder::start(&mut Command::new(holder()));
    let start = Instant::now();
    let (status, out, _) = attach(&["--dry-run", "--spread", "20s"], holder.pid());
    assert_eq!(
        (status, out.lines().last()),
        (0, Some("3 sockets would be set to 60,10,6 (mode force), 0 unchanged, 0 failed"))
    );
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Hundreds of processes start and end between any two scans.
#[test]
fn short_lived_processes_cause_no_errors() {
    if !in_own_namespaces("short_lived_processes_cause_no_errors") {
        return;
    }
    // Each process has sockets for a moment. python3 starts too slowly for this, so bash opens them.
    let server = TcpListener::bind("127.0.0.1:7000").unwrap();
    let churn = "n=0; while [ $n -lt 400 ]; do (exec 3<>/dev/tcp/127.0.0.1/7000; read -t 0.02 <&3) & n=$((n + 1)); \
                 [ $((n % 20)) -eq 0 ] && wait; done 2>/dev/null; wait";
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in server.incoming() {
            kept.extend(stream);
            if kept.len() > 50 {
                kept.clear();
            }
        }
    });
    let follow = ka()
        .args(["attach", "--all", "--follow", "--interval", "10ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shells: Vec<_> =
        (0..2).map(|_| Command::new("bash").args(["-c", churn]).spawn().unwrap()).collect();
    let mut looks = 0;
    while looks <= 3 || shells.iter_mut().any(|shell| shell.try_wait().unwrap().is_none()) {
        let (status, out, err) = outcome(ka().args(["ls", "--json"]));
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(out.starts_with('[') && out.ends_with("]\n"));
        let (status, _, err) = outcome(ka().args(["attach", "--all"]));
        assert_eq!((status, err.as_str()), (0, ""));
        looks += 1;
    }
    signal_child(&follow, libc::SIGTERM);
    let output = follow.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    // The signal may interrupt a pass, which then names what it leaves out.
    let mut parts = said.trim_end().split("; ");
    assert!(parts.next().unwrap().ends_with(", 0 failed"), "{said}");
    assert!(parts.all(|part| part.ends_with(" not examined, because a signal came")), "{said}");
    assert!(err.starts_with("ka: attach: following ") && err.lines().count() == 1, "{err}");
    // The number of sockets that a pass finds depends on the load of the machine.
    let set: usize = said.split(' ').next().unwrap().parse().unwrap();
    assert!(set > 0, "{said}");
}

/// The processes have as many descriptors as the limit allows, and a name that is not UTF-8.
#[test]
fn a_hundred_thousand_descriptors_are_examined() {
    let program = r#"
import ctypes, os, resource, socket, time
want = 100_000
have = want + 1000
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (have, have))
except (ValueError, PermissionError):
    have = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (have, have))
libc = ctypes.CDLL(None)
libc.prctl(15, b"a\xff\x1b[31mb\n", 0, 0, 0)
s = socket.socket()
each = have - 1000
for n in range(each):
    os.dup(s.fileno() if n % 2 else 0)
pids = [os.getpid()]
while len(pids) * each < want and pids[-1]:
    pids.append(os.fork())
if not pids[-1]:
    libc.prctl(1, 9)
else:
    print("ready", *pids, flush=True)
time.sleep(600)
"#;
    let mut python = Command::new("python3");
    python.args(["-c", program]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running(python.spawn().unwrap());
    let line = Lines::new("python3", running.0.stdout.take().unwrap()).expect("`ready` and PIDs");
    let pids: Vec<_> = line.strip_prefix("ready ").unwrap().split(' ').collect();
    let (status, out, err) = outcome(ka().args(["attach", "-v"]).args(&pids));
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.ends_with("1 socket set to 60,10,6 (mode force), 0 unchanged, 0 failed\n")
            && !out.contains('\u{1b}'),
        "{out}"
    );
    assert!(out.contains("(a\\xff\\u{1b}[31mb\\n) fd 3 "), "{out}");
    let (_, out, _) = outcome(ka().args(["attach", "--json"]).args(&pids));
    assert!(out.contains(r#""comm": "a\\xff\u001b[31mb\n""#), "{out}");
    drop(running);
}

/// A policy that would change no socket is rejected. A policy that turns keepalive off is accepted.
#[test]
fn a_policy_that_changes_nothing_is_rejected() {
    let mut holder = Holder::start(Command::new(holder()).arg("keepalive"));
    let before = holder.look();
    for (args, why) in [
        (&["-p", "keep"][..], "--policy keep: changes nothing; name the values to set, such as -p 60,10,6\n"),
        (&["-p", "keep", "--mode", "default"], "changes nothing; name the values to set"),
        (
            &["-p", "off", "--mode", "floor"],
            "--policy off: changes nothing in mode floor; a policy that does not turn keepalive on needs --mode force",
        ),
        (&["-p", "off", "--mode", "default"], "changes nothing in mode default; "),
        (&["-p", "keep,idle=30", "--mode", "floor"], "changes nothing in mode floor; "),
    ] {
        let (status, out, err) = attach(args, holder.pid());
        assert!(status == 2 && out.is_empty() && err.contains(why), "{args:?}: {status} {out}{err}");
        assert_eq!(holder.look(), before);
    }
    assert_eq!(attach(&["-p", "off"], holder.pid()).0, 0);
    assert!(holder.look().iter().all(|options| !options.on));
    assert_eq!(attach(&["-p", "keep", "-d", "33"], holder.pid()).0, 0);
    assert!(holder.look().iter().all(|options| !options.on && options.timers[0] == 33));
}
