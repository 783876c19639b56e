//! Tests that `ka ls` reports the values that the kernel reports by getsockopt(2) and through ss(8).

mod command;

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::json::{assert_described, described};
use command::{Holder, as_nobody, bare, holder, ka, outcome};
use ka_test::artifact::release;
use ka_test::child::{Running, stdout, succeed};
use ka_test::kernel::{has_ipv6, has_mptcp};
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, in_own_network_namespace, is_root};
use ka_test::path::{PublicFolder, copy_program, root};
use ka_test::socket::{RTO_MAX, established, fresh, has_rto_max, keepalive_options, set_option};
use ka_test::wait::{eventually, listening};
use serde_json::Value;

fn own_pid() -> String {
    std::process::id().to_string()
}

fn listed(args: &[&str]) -> Vec<Value> {
    let (_, out, err) = outcome(ka().args(["ls", "--json"]).args(args));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

fn of_fd(sockets: &[Value], fd: i32) -> &Value {
    sockets.iter().find(|socket| socket["fd"] == fd).unwrap_or_else(|| panic!("no fd {fd} in {sockets:?}"))
}

/// Returns both ends of a connection over loopback.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn set(fd: i32, on: bool, timers: [i32; 4]) {
    let names = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT, libc::TCP_USER_TIMEOUT];
    for (name, value) in names.into_iter().zip(timers) {
        set_option(fd, libc::IPPROTO_TCP, name, value);
    }
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on.into());
}

#[test]
fn ls_reports_the_values_of_the_kernel() {
    let (client, server) = connection();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set(client.as_raw_fd(), true, [100, 20, 4, 180_000]);
    set(listener.as_raw_fd(), false, [7, 6, 5, 0]);
    if has_rto_max() {
        set_option(client.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, 3000);
    }
    let sockets = listed(&["--pid", &own_pid()]);
    for (fd, state, peer) in [
        (client.as_raw_fd(), "established", client.peer_addr().ok()),
        (server.as_raw_fd(), "established", server.peer_addr().ok()),
        (listener.as_raw_fd(), "listen", None),
    ] {
        let socket = of_fd(&sockets, fd);
        let [on, timers @ .., rto_max] = keepalive_options(fd);
        assert_eq!(socket["keepalive"], on == Ok(1), "{socket}");
        let options = ["idle", "intvl", "cnt", "user_timeout_ms"].map(|key| socket[key].as_i64().unwrap());
        assert_eq!(options, timers.map(|timer| i64::from(timer.unwrap())), "{socket}");
        assert_eq!(socket["rto_max_ms"], rto_max.map_or(Value::Null, Value::from), "{socket}");
        assert_eq!(socket["state"], state);
        assert_eq!(socket["pid"], std::process::id());
        assert_eq!(socket["peer"], peer.map_or(Value::Null, |peer| peer.to_string().into()));
        assert_eq!(socket["unanswered_probes"], 0);
    }
    let socket = of_fd(&sockets, client.as_raw_fd());
    assert_eq!(socket["local"], client.local_addr().unwrap().to_string());
    // The last packet was a moment ago, so the next probe is due in about 100 s.
    assert!((90_000..=114_000).contains(&socket["next_probe_ms"].as_u64().unwrap()), "{socket}");
    assert_eq!(socket["risks"], serde_json::json!([]), "{socket}");
    assert_eq!(of_fd(&sockets, listener.as_raw_fd())["risks"], serde_json::json!(["off"]));
    assert!(of_fd(&sockets, server.as_raw_fd())["next_probe_ms"].is_null());
}

#[test]
fn risky_settings_are_marked() {
    let (client, server) = connection();
    set(client.as_raw_fd(), true, [351, 20, 4, 0]);
    set(server.as_raw_fd(), true, [350, 20, 4, 5000]);
    let sockets = listed(&["--pid", &own_pid()]);
    assert_eq!(of_fd(&sockets, client.as_raw_fd())["risks"], serde_json::json!(["slow"]));
    assert_eq!(of_fd(&sockets, server.as_raw_fd())["risks"], serde_json::json!(["user-timeout"]));
    // A user timeout equal to the detection time of the probes overrides nothing.
    set(server.as_raw_fd(), true, [350, 20, 4, 430_000]);
    let sockets = listed(&["--pid", &own_pid()]);
    assert_eq!(of_fd(&sockets, server.as_raw_fd())["risks"], serde_json::json!([]));
    let (_, table, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    assert!(table.lines().any(|line| line.contains("  351s  ") && line.ends_with("  slow")), "{table}");
}

/// Tests `ka ls --off` as a monitor would use it.
#[test]
fn off_lists_sockets_without_keepalive_and_sets_the_status() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let pid = holder.pid().to_string();
    let off = |more: &[&str]| outcome(ka().args(["ls", "--off", "--json", "--pid", &pid]).args(more));
    let count = |out: &str| serde_json::from_str::<Vec<Value>>(out).unwrap().len();
    let (status, out, _) = off(&[]);
    assert_eq!((status, count(&out)), (1, 3));
    let (status, out, _) = off(&["--state", "listen"]);
    assert_eq!((status, count(&out)), (1, 1));
    let (status, out, _) = off(&["--state", "close-wait,syn-sent"]);
    assert_eq!((status, out.as_str()), (0, "[]\n"));
    let (status, out, _) = off(&["--state", "established"]);
    assert_eq!((status, count(&out)), (1, 2));
    assert_eq!(outcome(ka().args(["attach", &pid])).0, 0);
    let (status, out, err) = off(&[]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "[]\n", ""));
    let (status, out, _) = outcome(ka().args(["ls", "--off", "--pid", &pid]));
    assert_eq!((status, out.as_str()), (0, "0 of 3 sockets listed. Not listed: 3 on\n"));
    holder.assert_all(60, 10, 6);
    // ka cannot examine this process, which may have sockets without keepalive.
    let (status, out, err) = off(&["2147483647"]);
    assert_eq!((status, out.as_str()), (3, "[]\n"), "{err}");
    assert_eq!(err, "ka: ls: process 2147483647: there is no such process\n");
    let (status, _, err) = outcome(ka().args(["ls", &pid, "2147483647"]));
    assert_eq!(status, 1, "{err}");
    let (status, out, err) = outcome(ka().args(["ls", "2147483646", "2147483647"]));
    assert!(status == 2 && out.is_empty() && err.matches("there is no such process").count() == 2, "{err}");
}

#[test]
fn sockets_are_selected_by_port_risk_and_several_pids() {
    let (one, two) =
        (Holder::start(&mut Command::new(holder())), Holder::start(Command::new(holder()).arg("keepalive")));
    let [first, second] = [&one, &two].map(|holder| holder.pid().to_string());
    for args in [
        &[&*first, &*second][..],
        &["--pid", &first, "--pid", &second],
        &["--pid", &first, &second],
        &[&second, "--pid", &first, &first],
    ] {
        let pids: Vec<_> = listed(args).iter().map(|socket| socket["pid"].as_i64().unwrap()).collect();
        let mut expected = [[i64::from(one.pid()); 3], [i64::from(two.pid()); 3]].concat();
        expected.sort_unstable();
        assert_eq!(pids, expected, "{args:?}");
    }
    let sockets = listed(&[&second]);
    let peer = sockets.iter().find_map(|socket| socket["peer"].as_str()).unwrap();
    let ports = [two.port.to_string(), peer.rsplit(':').next().unwrap().to_owned(), one.port.to_string()];
    for port in &ports {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let kernels = stdout(
            Command::new("ss").args(["-tnaH", "state", "established", "state", "listening"]).arg(filter),
        );
        let sockets = listed(&["--state", "established,listen", "--port", port]);
        assert_eq!(sockets.len(), kernels.lines().count(), "{port}: {sockets:?} {kernels}");
        let has_port =
            |socket: &Value, end| socket[end].as_str().is_some_and(|end| end.ends_with(&format!(":{port}")));
        assert!(
            sockets.iter().all(|socket| has_port(socket, "local") || has_port(socket, "peer")),
            "{sockets:?}"
        );
    }
    assert_eq!(listed(&["--port", &ports[0], &second]).len(), 3);
    assert_eq!(listed(&["--port", &ports[2], &second]).len(), 0);
    // One end of the connection has 10,5,2. The listener and the accepted socket have keepalive off.
    let risky = listed(&["--risk", &second]);
    assert_eq!(risky.len(), 2, "{risky:?}");
    assert!(risky.iter().all(|socket| socket["risks"] == serde_json::json!(["off"])), "{risky:?}");
    let (status, out, _) = outcome(ka().args(["ls", "--risk", &second]));
    assert_eq!((status, out.lines().last().unwrap()), (0, "2 of 3 sockets listed: 2 off. Not listed: 1 on"));
    let (_, out, _) = outcome(ka().args(["ls", "--state", "listen", &second]));
    assert!(out.ends_with("\n1 socket: 0 on, 1 off\n"), "{out}");
    let (status, _, err) = outcome(ka().args(["ls", "--port", "0"]));
    assert!(status == 2 && err.contains("--port"), "{err}");
}

/// Returns a Python that has a module: the first one on the path, or Debian's.
fn python_with(module: &str) -> &'static str {
    let has = |python: &str| {
        let import = Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has("python3") { "python3" } else { "/usr/bin/python3" }
}

#[test]
fn json_output_matches_its_schema() {
    let (client, _server) = connection();
    set(client.as_raw_fd(), true, [100, 20, 4, 5000]);
    let v6 = has_ipv6().then(|| TcpListener::bind("[::1]:0").unwrap());
    let states = "established,syn-sent,syn-recv,fin-wait-1,fin-wait-2,time-wait,close,close-wait,last-ack,listening,closing";
    let program = "import json, jsonschema, sys; jsonschema.validate(json.load(sys.stdin), json.load(open(sys.argv[1])))";
    for args in [&[][..], &["--state", states], &["--off"], &["--pid", &own_pid()]] {
        let (_, out, _) = outcome(ka().args(["ls", "--json"]).args(args));
        let mut python = Command::new(python_with("jsonschema"));
        python.args(["-c", program]).arg(root().join("crates/ka-cli/tests/schema/ls.json"));
        let mut child = python.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(out.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}: {out}");
    }
    let sockets = listed(&["--pid", &own_pid()]);
    if let Some(v6) = &v6 {
        assert_eq!(of_fd(&sockets, v6.as_raw_fd())["local"], v6.local_addr().unwrap().to_string());
    }
}

/// Loopback is down, so probes get no answer, and data is not acknowledged.
#[test]
fn a_silent_peer_is_shown() {
    if !in_own_network_namespace("a_silent_peer_is_shown") {
        return;
    }
    // Build first, so that a build does not delay the test while probes are under way.
    release();
    let ((probing, _one), (sending, _other), (dying, _third)) = (connection(), connection(), connection());
    set(probing.as_raw_fd(), true, [1, 1, 100, 0]);
    set(sending.as_raw_fd(), true, [1, 1, 100, 0]);
    set(dying.as_raw_fd(), true, [1, 1, 12, 0]);
    // The peer does not read, so its window closes, and the kernel sends zero-window probes.
    let (full, _unread) = connection();
    set(full.as_raw_fd(), true, [1, 1, 2, 0]);
    full.set_nonblocking(true).unwrap();
    while (&full).write(&[0; 1 << 14]).is_ok() {}
    // The peer limits the rate of its answers, so a probe is unanswered for a moment.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let sockets = listed(&["--pid", &own_pid()]);
        let full = of_fd(&sockets, full.as_raw_fd());
        assert_eq!(full["risks"], serde_json::json!(["suspended"]), "{full}");
        if full["unanswered_probes"] != 0 {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    succeed(Command::new("ip").args(["link", "set", "lo", "down"]));
    (&sending).write_all(b"lost").unwrap();
    eventually("two probes are out and data is on its way", || {
        let sockets = listed(&["--pid", &own_pid()]);
        let probes = of_fd(&sockets, probing.as_raw_fd());
        let suspended = of_fd(&sockets, sending.as_raw_fd());
        probes["unanswered_probes"].as_u64().is_some_and(|probes| probes >= 2)
            && probes["next_probe_ms"].as_u64().is_some_and(|left| left <= 1200)
            && suspended["risks"] == serde_json::json!(["suspended"])
            && suspended["next_probe_ms"].is_null()
    });
    eventually("half of the probes are lost", || {
        let sockets = listed(&["--pid", &own_pid()]);
        assert_eq!(of_fd(&sockets, probing.as_raw_fd())["risks"], serde_json::json!([]));
        let dying = of_fd(&sockets, dying.as_raw_fd());
        let is_half = dying["unanswered_probes"].as_u64().unwrap() >= 6;
        assert_eq!(
            dying["risks"],
            if is_half { serde_json::json!(["unanswered"]) } else { serde_json::json!([]) }
        );
        is_half
    });
    let port = dying.local_addr().unwrap().port();
    let filter = format!("sport = :{port}");
    let kernels = established(&filter);
    let probes = kernels.split_once("timer:(keepalive,").unwrap().1.split([',', ')']).nth(1).unwrap();
    assert!(probes.parse::<u32>().unwrap() >= 6, "{kernels}");
}

/// For sockets that ka may not examine, it reports only what the kernel's list proves.
#[test]
fn sockets_of_other_users_are_inferred() {
    if !is_root() {
        skip("only root can become another user");
        return;
    }
    if !in_own_network_namespace("sockets_of_other_users_are_inferred") {
        return;
    }
    let folder = PublicFolder::new("ls");
    copy_program(release().join("ka"), folder.join("ka"));
    let (client, server) = connection();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set(client.as_raw_fd(), true, [100, 20, 4, 0]);
    let as_stranger =
        |args: &[&str]| outcome(&mut as_nobody(Command::new(folder.join("ka")).arg("ls").args(args)));
    let (status, out, _) = as_stranger(&["--json"]);
    assert_eq!(status, 0);
    let sockets: Vec<Value> = serde_json::from_str(&out).unwrap();
    let local =
        |address: std::net::SocketAddr| sockets.iter().find(|s| s["local"] == address.to_string()).unwrap();
    let (on, off) = (local(client.local_addr().unwrap()), local(server.local_addr().unwrap()));
    assert_eq!((&on["keepalive"], &off["keepalive"]), (&true.into(), &false.into()));
    assert!((80_000..=114_000).contains(&on["next_probe_ms"].as_u64().unwrap()), "{on}");
    // A listener has no timer that could prove it.
    assert!(local(listener.local_addr().unwrap())["keepalive"].is_null());
    for socket in &sockets {
        assert!(
            ["pid", "fd", "comm", "idle", "intvl", "cnt", "user_timeout_ms", "rto_max_ms"]
                .iter()
                .all(|key| socket[key].is_null())
        );
    }
    let hint = "ka: ls: the process or the settings of 2 sockets are unknown: run ka as root (needs CAP_SYS_PTRACE)\n";
    let (status, out, err) = as_stranger(&["--off"]);
    assert_eq!((status, err.as_str()), (1, hint));
    assert!(out.ends_with("\n2 of 3 sockets listed: 1 off, 1 unknown. Not listed: 1 on\n"), "{out}");
    let keeps = |out: &str| -> Vec<String> {
        let rows = out.lines().skip(1).take_while(|line| !line.is_empty());
        rows.map(|row| row.split_whitespace().nth(5).unwrap().to_owned()).collect()
    };
    let mut kept = keeps(&out);
    kept.sort_unstable();
    assert_eq!(kept, ["?", "off"], "{out}");
    // A monitor must not succeed only because ka may not examine a socket.
    set(server.as_raw_fd(), true, [100, 20, 4, 0]);
    let (status, out, err) = as_stranger(&["--off"]);
    assert_eq!((status, err), (3, hint.replace("2 sockets are", "1 socket are")));
    assert!(out.ends_with("\n1 of 3 sockets listed: 1 unknown. Not listed: 2 on\n"), "{out}");
    assert_eq!(keeps(&out), ["?"], "{out}");
    let (status, out, _) = as_stranger(&["--off", "--json"]);
    let unknown: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert!(status == 3 && unknown.len() == 1 && unknown[0]["keepalive"].is_null(), "{out}");
    let (status, out, _) = as_stranger(&["--off", "--state", "established"]);
    assert_eq!((status, out.as_str()), (0, "0 of 2 sockets listed. Not listed: 2 on\n"));
    let (status, out, err) = as_stranger(&[]);
    assert!(status == 0 && out.ends_with("\n3 sockets: 2 on, 0 off, 1 unknown\n"), "{out}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let (status, _, err) = outcome(ka().args(["ls", "--off"]));
    assert_eq!((status, err.as_str()), (1, ""), "the listener is off, and root sees all");
    let (status, _, err) = as_stranger(&["--pid", &own_pid()]);
    assert!(status == 2 && err.contains("it belongs to user 0: needs CAP_SYS_PTRACE"), "{err}");
    let (status, _, err) = as_stranger(&["--netns", "/proc/self/ns/net"]);
    assert!(status == 2 && err.contains("needs CAP_SYS_ADMIN"), "{err}");
}

#[test]
fn netns_lists_another_network_namespace() {
    if !in_own_namespaces("netns_lists_another_network_namespace") {
        return;
    }
    let mut other = Command::new("unshare");
    other.args(["-n", "sh", "-c", "ip link set lo up; exec \"$0\""]).arg(holder());
    let holder = Holder::start(&mut other);
    let pid = holder.pid().to_string();
    let ports = |args: &[&str]| listed(args).iter().filter(|socket| socket["pid"] == holder.pid()).count();
    assert_eq!(ports(&[]), 0);
    assert_eq!(ports(&["--pid", &pid]), 3);
    assert_eq!(ports(&["--netns", &pid]), 3);
    let path = format!("/proc/{pid}/ns/net");
    assert_eq!(ports(&["--netns", &path]), 3);
    let name = format!("ka-test-{pid}");
    succeed(Command::new("ip").args(["netns", "attach", &name, &pid]));
    let named = ports(&["--netns", &name]);
    succeed(Command::new("ip").args(["netns", "delete", &name]));
    assert_eq!(named, 3);
    for (netns, why) in [("no-such", "No such file"), ("/etc/passwd", "it is not a network namespace")] {
        let (status, _, err) = outcome(ka().args(["ls", "--netns", netns]));
        assert!(status == 2 && err.contains(why), "{err}");
    }
}

#[test]
fn all_network_namespaces_are_listed() {
    if !in_own_namespaces("all_network_namespaces_are_listed") {
        return;
    }
    // ip-netns(8) keeps names in /run. Other tests must not see the names of this test.
    succeed(Command::new("mount").args(["-t", "tmpfs", "none", "/run"]));
    let start = || {
        let mut other = Command::new("unshare");
        other.args(["-n", "sh", "-c", "ip link set lo up; exec \"$0\""]).arg(holder());
        Holder::start(&mut other)
    };
    let (own, named, unnamed) = (Holder::start(&mut Command::new(holder())), start(), start());
    let pid = |holder: &Holder| holder.pid().to_string();
    let attach = |name: &str, holder: &Holder| {
        succeed(Command::new("ip").args(["netns", "attach", name, &pid(holder)]));
    };
    attach("blue", &named);
    let sockets = listed(&["--all-netns"]);
    assert_eq!(sockets.len(), 9, "{sockets:?}");
    // PID 1 is this test, in the network namespace of `own`.
    for (holder, netns) in [(&own, "1"), (&named, "blue"), (&unnamed, &*pid(&unnamed))] {
        let is_its = |socket: &&Value| socket["pid"] == holder.pid() && socket["netns"] == netns;
        let its: Vec<_> = sockets.iter().filter(is_its).collect();
        assert_eq!(its.len(), 3, "{netns}: {sockets:?}");
        assert!(its.iter().all(|socket| socket["idle"] == 7200), "{its:?}");
        let again = listed(&["--netns", netns]);
        assert!(again.len() == 3 && again.iter().all(|socket| is_its(&socket)), "{again:?}");
    }
    let (status, out, err) = outcome(ka().args(["ls", "--all-netns"]));
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with("NETNS ") && out.contains("\nblue   holder"), "{out}");
    assert!(out.ends_with("\n9 sockets: 0 on, 9 off\n"), "{out}");

    // Without the option, ka lists this namespace, without the column. With PIDs, it lists the namespaces of these
    // processes.
    let (_, out, _) = outcome(ka().arg("ls"));
    assert!(out.starts_with("PROCESS ") && out.ends_with("\n3 sockets: 0 on, 3 off\n"), "{out}");
    assert!(listed(&[]).iter().all(|socket| socket["netns"].is_null()));
    let pids = listed(&[&pid(&own), &pid(&unnamed)]);
    assert_eq!(pids.iter().filter(|socket| socket["netns"] == *pid(&unnamed)).count(), 3, "{pids:?}");
    assert_eq!(pids.len(), 6, "{pids:?}");
    assert_eq!(listed(&["--all-netns", &pid(&unnamed)]).len(), 3);

    // Only the system call that enters a namespace fails.
    let ka_path = ka().get_program().to_owned();
    let without_setns = |args: &[&str]| {
        let mut command = command::refusing(libc::SYS_setns, libc::EPERM, None);
        outcome(command.arg(&ka_path).arg("ls").args(args))
    };
    let why = "needs CAP_SYS_ADMIN (run ka as root)";
    let (status, out, err) = without_setns(&["--all-netns"]);
    assert!(status == 1 && out.ends_with("\n3 sockets: 0 on, 3 off\n"), "{out}{err}");
    let refused = ["blue", &pid(&unnamed)].map(|netns| format!("ka: ls: network namespace {netns}: {why}\n"));
    assert_eq!(err, refused.concat());
    for pids in [&[pid(&unnamed)][..], &[pid(&named), pid(&unnamed)]] {
        let args: Vec<_> = pids.iter().map(String::as_str).collect();
        let (status, out, err) = without_setns(&args);
        assert!(status == 2 && out.is_empty() && err.matches(why).count() == pids.len(), "{out}{err}");
    }
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set", "-sys_admin"]).arg(&ka_path).args(["ls", "--all-netns"]);
    let (status, out, err) = outcome(&mut without);
    assert!(status == 2 && out.is_empty() && err.contains("--all-netns needs CAP_SYS_ADMIN"), "{out}{err}");
    let (status, _, err) = outcome(ka().args(["ls", "--all-netns", "--netns", "blue"]));
    assert!(status == 2 && err.contains("cannot be used with"), "{err}");

    // A namespace may have a name that is also the PID of a process in another namespace.
    succeed(Command::new("ip").args(["netns", "delete", "blue"]));
    attach(&pid(&unnamed), &named);
    let sockets = listed(&["--all-netns"]);
    for holder in [&named, &unnamed] {
        let socket = sockets.iter().find(|socket| socket["pid"] == holder.pid()).unwrap();
        let again = listed(&["--netns", socket["netns"].as_str().unwrap()]);
        assert!(again.len() == 3 && again.iter().all(|socket| socket["pid"] == holder.pid()), "{again:?}");
    }
}

#[test]
fn forks_and_multipath_tcp_are_listed_correctly() {
    if !in_own_namespaces("forks_and_multipath_tcp_are_listed_correctly") {
        return;
    }
    let redis = Running::start(Command::new("redis-server").args(["--port", "6379", "--save", ""]));
    listening(6379);
    let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
    // SAFETY: fcntl(2) changes only the flag of this descriptor.
    unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_SETFD, 0) };
    let children: Vec<_> = (0..2).map(|_| Running::start(Command::new("sleep").arg("60"))).collect();
    let sockets = listed(&[]);
    let shared = sockets.iter().find(|socket| socket["local"] == "127.0.0.1:7000").unwrap();
    let pids: Vec<_> = children.iter().map(|child| child.0.id()).collect();
    assert_eq!((&shared["pid"], &shared["others"]), (&std::process::id().into(), &serde_json::json!(pids)));
    let (_, table, _) = outcome(ka().arg("ls"));
    assert_eq!(table.matches("127.0.0.1:7000 ").count(), 1, "{table}");
    assert!(table.lines().any(|line| line.contains("+2 ") && line.contains("127.0.0.1:7000 ")), "{table}");
    assert!(table.contains(&format!("redis-server/{} ", redis.0.id())), "{table}");

    if !has_mptcp() {
        return;
    }
    let socket = ka_test::socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let socket = socket2_of(socket);
    let client = ka_test::socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let client = socket2_of(client);
    socket.bind(&"127.0.0.1:7100".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(8).unwrap();
    set_option(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77);
    client.connect(&"127.0.0.1:7100".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let sockets = listed(&["--pid", &own_pid()]);
    let found = of_fd(&sockets, client.as_raw_fd());
    assert_eq!((&found["keepalive"], &found["idle"]), (&true.into(), &77.into()), "{found}");
    // The kernel cannot report the user timeout of the Multipath TCP socket. It can report that of the subflow, if ka
    // asks the kernel for it.
    assert!(found["user_timeout_ms"].is_null() || found["user_timeout_ms"] == 0, "{found}");
    assert_eq!(of_fd(&sockets, socket.as_raw_fd())["state"], "listen");
}

fn socket2_of(fd: OwnedFd) -> socket2::Socket {
    fd.into()
}

/// Returns the output of `ka ls` about this process in a terminal with this many columns.
fn in_a_terminal(columns: u32, environment: &str, args: &str) -> Vec<String> {
    let ka = release().join("ka");
    let command = format!(
        "stty cols {columns}; {environment} TERM=xterm {} ls {args} --pid {}",
        ka.display(),
        std::process::id()
    );
    let out = stdout(bare("script").args(["-qc", &command, "/dev/null"]).stdin(Stdio::null()));
    out.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
}

/// The test uses a process with a long name, and IPv4 and IPv6 addresses.
#[test]
fn a_narrow_terminal_keeps_names_and_ports() {
    if !in_own_network_namespace("a_narrow_terminal_keeps_names_and_ports") {
        return;
    }
    let mut addresses = vec!["127.123.123.123".to_owned()];
    if has_ipv6() {
        let long = "2001:db8:1234:5678:9abc:def0:1234:5678";
        succeed(Command::new("ip").args(["address", "add", &format!("{long}/128"), "dev", "lo", "nodad"]));
        addresses.push(format!("[{long}]"));
    }
    let connections: Vec<_> = addresses
        .iter()
        .map(|address| {
            let listener = TcpListener::bind(format!("{address}:0")).unwrap();
            let mut client = None;
            // The kernel adds the route of a new address a moment later.
            eventually("the address has a route", || {
                client = TcpStream::connect(listener.local_addr().unwrap()).ok();
                client.is_some()
            });
            let server = listener.accept().unwrap().0;
            (client.unwrap(), server, listener)
        })
        .collect();
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let process = format!("{}/{} ", comm.trim_end(), std::process::id());
    // A longer RISK leaves less room.
    for (columns, args, user_timeout) in
        [(80, "", 0), (80, "", 9000), (80, "--all-netns", 9000), (100, "", 9000), (120, "", 9000)]
    {
        for (client, ..) in &connections {
            set(client.as_raw_fd(), true, [7200, 7200, 100, user_timeout]);
        }
        let mut lines = in_a_terminal(columns, "NO_COLOR=1", args);
        // The machine may have processes that even root may not examine.
        lines.retain(|line| !line.starts_with("ka: "));
        let table = lines.join("\n");
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns as usize, "{widest} of {columns}: {table}");
        for (client, server, _) in &connections {
            let [local, peer] = [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().port());
            for (local, peer) in
                [(local, format!(":{peer} ")), (peer, format!(":{local} ")), (peer, " * ".to_owned())]
            {
                let row =
                    lines.iter().find(|line| line.contains(&format!(":{local} ")) && line.contains(&peer));
                let row = row.unwrap_or_else(|| panic!("{local} {peer}: {table}"));
                assert!(args == "--all-netns" || row.contains(&process), "{process}: {table}");
                assert!(row.contains(&format!("/{} ", std::process::id())), "{process}: {table}");
            }
            if client.local_addr().unwrap().is_ipv4() && user_timeout == 0 {
                assert!(table.contains(&client.local_addr().unwrap().to_string()), "{table}");
                assert!(table.contains(&server.peer_addr().unwrap().to_string()), "{table}");
            }
            assert!(table.contains(" on ") && table.contains(" off"), "{table}");
        }
    }
    // Without a terminal, ka prints all columns.
    let (_, plain, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    for (client, ..) in &connections {
        assert!(plain.contains(&client.local_addr().unwrap().to_string()), "{plain}");
    }
    let head = "PROCESS FD STATE LOCAL PEER KEEP IDLE INTVL CNT TIMEOUT RTO_MAX NEXT LOST RISK";
    assert_eq!(plain.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" "), head);
}

/// The column has `-` for the kernel's default.
#[test]
fn the_table_has_an_rto_max_that_is_not_the_default() {
    let (client, server) = connection();
    if !has_rto_max() {
        return;
    }
    set_option(client.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, 3000);
    set_option(server.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, 120_000);
    set(client.as_raw_fd(), true, [100, 20, 4, 0]);
    set(server.as_raw_fd(), true, [100, 20, 4, 0]);
    let (_, table, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    let column = head.iter().position(|name| *name == "RTO_MAX").unwrap();
    for (socket, expected) in [(&client, "3000ms"), (&server, "-")] {
        let local = socket.local_addr().unwrap().to_string();
        let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = row.into_iter().find(|row| row.get(3) == Some(&local.as_str())).unwrap();
        assert_eq!(row[column], expected, "{table}");
    }
}

/// The manual page and the schema describe exactly the keys that are printed, with type, unit, and the meaning of null.
#[test]
fn the_manual_page_describes_each_json_key() {
    let _connection = connection();
    let [keys] = described("ka-ls.1");
    assert_described(&keys, &[listed(&["--pid", &own_pid()]).into()]);
    let schema = fs::read(root().join("crates/ka-cli/tests/schema/ls.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let schema = schema["items"]["properties"].as_object().unwrap();
    for (key, text) in &keys {
        let types = match &schema[key] {
            Value::Object(property) => property.get("type").cloned().unwrap_or_else(|| "string".into()),
            other => panic!("{key}: {other}"),
        };
        let types = types.as_array().cloned().unwrap_or_else(|| vec![types]);
        assert!(text.starts_with(types[0].as_str().unwrap()), "{key}: {text}");
        assert_eq!(text.contains("null:"), types.contains(&"null".into()), "{key}: {text}");
    }
    assert_eq!(schema.len(), keys.len());
}

#[test]
fn a_terminal_gets_colours_and_fitting_columns() {
    let (client, _server) = connection();
    let _listener = has_ipv6().then(|| TcpListener::bind("[::1]:0").unwrap());
    set(client.as_raw_fd(), true, [100, 20, 4, 0]);
    let wide = in_a_terminal(200, "", "");
    assert!(wide.iter().any(|line| line.contains("\x1b[32mon\x1b[0m")), "{wide:?}");
    assert!(wide.iter().any(|line| line.contains("\x1b[31moff\x1b[0m")), "{wide:?}");
    assert!(in_a_terminal(200, "NO_COLOR=1", "").iter().all(|line| !line.contains('\x1b')));
    for columns in [120, 100, 80] {
        let lines = in_a_terminal(columns, "NO_COLOR=1", "");
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns as usize, "{widest} of {columns}: {lines:#?}");
    }
    // Without a terminal, there are no colours, and nothing is cut off.
    let (_, plain, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    assert!(!plain.contains('\x1b') && !plain.contains('…'), "{plain}");
}

#[test]
fn a_closed_pipe_ends_ka_silently() {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut child = ka().args(["plan", "--list"]).stdout(write).stderr(Stdio::piped()).spawn().unwrap();
    let said = Lines::new("ka", child.stderr.take().unwrap()).rest();
    let status = child.wait().unwrap();
    assert_eq!((status.signal(), said.as_str()), (Some(libc::SIGPIPE), ""), "{status}");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = ka().args(["plan", "--list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"ka: standard output: No space left on device\n");
}

/// A message must not be written to a socket that got the number of a closed standard descriptor.
#[test]
fn closed_standard_descriptors_are_not_reused() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let ka = release().join("ka");
    let script = format!("exec {} attach -v {} <&- >&- 2>&-", ka.display(), holder.pid());
    assert!(bare("sh").args(["-c", &script]).status().unwrap().success());
    holder.assert_all(60, 10, 6);
    // ka has written nothing to this connection.
    let options = holder.look();
    assert_eq!(options.len(), 3);
    let (_, table, _) =
        outcome(Command::new("ss").args(["-tnH", "sport", "=", &format!(":{}", holder.port)]));
    assert!(table.lines().all(|line| line.split_whitespace().nth(1) == Some("0")), "{table}");
}

/// ka rejects a state that the kernel never lists. An empty list would look as if no socket had this state.
#[test]
fn states_that_cannot_be_listed_are_rejected() {
    let _unconnected = fresh();
    let (status, out, err) = outcome(ka().args(["ls", "--state", "close"]));
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("the kernel does not list closed and unconnected sockets; ka check PID"), "{err}");
}
