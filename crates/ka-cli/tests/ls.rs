//! `ka ls`: what it says of each socket is what the kernel says, by getsockopt(2) and by ss(8).

#[path = "../../../tests/support/mod.rs"]
mod support;

mod command;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use command::{CleanUp, Holder, as_nobody, bare, holder, ka, outcome, public};
use serde_json::Value;
use support::{
    Running, eventually, five, has_ipv6, has_mptcp, in_a_network_of_its_own, is_root, listening,
    on_a_machine_of_its_own, root, set_option, skip, stdout, succeed,
};

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

/// A connection over loopback: both ends.
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
fn it_says_what_the_kernel_says() {
    let (client, server) = connection();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set(client.as_raw_fd(), true, [100, 20, 4, 180_000]);
    set(listener.as_raw_fd(), false, [7, 6, 5, 0]);
    let sockets = listed(&["--pid", &own_pid()]);
    for (fd, state, peer) in [
        (client.as_raw_fd(), "established", client.peer_addr().ok()),
        (server.as_raw_fd(), "established", server.peer_addr().ok()),
        (listener.as_raw_fd(), "listen", None),
    ] {
        let socket = of_fd(&sockets, fd);
        let [on, idle, intvl, cnt, user_timeout] = five(fd).map(Result::unwrap);
        assert_eq!(socket["keepalive"], on == 1, "{socket}");
        let told = ["idle", "intvl", "cnt", "user_timeout_ms"].map(|key| socket[key].as_i64().unwrap());
        assert_eq!(told, [idle, intvl, cnt, user_timeout].map(i64::from), "{socket}");
        assert_eq!(socket["state"], state);
        assert_eq!(socket["pid"], std::process::id());
        assert_eq!(socket["peer"], peer.map_or(Value::Null, |peer| peer.to_string().into()));
        assert_eq!(socket["unanswered_probes"], 0);
    }
    let socket = of_fd(&sockets, client.as_raw_fd());
    assert_eq!(socket["local"], client.local_addr().unwrap().to_string());
    // 100 s since the last packet, which was a moment ago.
    assert!((90_000..=114_000).contains(&socket["next_probe_ms"].as_u64().unwrap()), "{socket}");
    assert_eq!(socket["risks"], serde_json::json!([]), "{socket}");
    assert_eq!(of_fd(&sockets, listener.as_raw_fd())["risks"], serde_json::json!(["off"]));
    assert!(of_fd(&sockets, server.as_raw_fd())["next_probe_ms"].is_null());
}

#[test]
fn what_is_risky_is_marked() {
    let (client, server) = connection();
    set(client.as_raw_fd(), true, [351, 20, 4, 0]);
    set(server.as_raw_fd(), true, [350, 20, 4, 5000]);
    let sockets = listed(&["--pid", &own_pid()]);
    assert_eq!(of_fd(&sockets, client.as_raw_fd())["risks"], serde_json::json!(["slow"]));
    assert_eq!(of_fd(&sockets, server.as_raw_fd())["risks"], serde_json::json!(["user-timeout"]));
    // What comes to the same time overrides nothing.
    set(server.as_raw_fd(), true, [350, 20, 4, 430_000]);
    let sockets = listed(&["--pid", &own_pid()]);
    assert_eq!(of_fd(&sockets, server.as_raw_fd())["risks"], serde_json::json!([]));
    let (_, table, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    assert!(table.lines().any(|line| line.contains("  351s  ") && line.ends_with("  slow")), "{table}");
}

/// A monitor's check.
#[test]
fn off_is_found_and_said_by_the_status() {
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
}

#[test]
fn the_json_is_as_its_schema_says() {
    let (client, _server) = connection();
    set(client.as_raw_fd(), true, [100, 20, 4, 5000]);
    let v6 = has_ipv6().then(|| TcpListener::bind("[::1]:0").unwrap());
    let states = "established,syn-sent,syn-recv,fin-wait-1,fin-wait-2,time-wait,close,close-wait,last-ack,listening,closing";
    let program = "import json, jsonschema, sys; jsonschema.validate(json.load(sys.stdin), json.load(open(sys.argv[1])))";
    for args in [&[][..], &["--state", states], &["--off"], &["--pid", &own_pid()]] {
        let (_, out, _) = outcome(ka().args(["ls", "--json"]).args(args));
        let mut python = Command::new(support::python_with("jsonschema"));
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

/// Probes that nobody answers, and data that nobody acknowledges: loopback is down.
#[test]
fn a_silent_peer_shows() {
    if !in_a_network_of_its_own("a_silent_peer_shows") {
        return;
    }
    let ((probing, _one), (sending, _other)) = (connection(), connection());
    set(probing.as_raw_fd(), true, [1, 1, 100, 0]);
    set(sending.as_raw_fd(), true, [1, 1, 100, 0]);
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
}

/// What one may not look into is said as far as the kernel's list proves it, and no further.
#[test]
fn others_sockets_are_inferred() {
    if !is_root() {
        skip("only root becomes somebody else");
        return;
    }
    if !in_a_network_of_its_own("others_sockets_are_inferred") {
        return;
    }
    let folder = public("ls");
    let made = CleanUp(folder.clone());
    fs::copy(support::release().join("ka"), folder.join("ka")).unwrap();
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
    // A listener's has no timer to prove it by.
    assert!(local(listener.local_addr().unwrap())["keepalive"].is_null());
    for socket in &sockets {
        assert!(
            ["pid", "fd", "comm", "idle", "intvl", "cnt", "user_timeout_ms"]
                .iter()
                .all(|key| socket[key].is_null())
        );
    }
    let hint =
        "ka: ls: the owner or the settings of 2 sockets are missing: run ka as root (needs CAP_SYS_PTRACE)\n";
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
    // A monitor must not pass because ka may not look.
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
    drop(made);
}

#[test]
fn another_network_namespace() {
    if !on_a_machine_of_its_own("another_network_namespace") {
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
    for (netns, why) in [("no-such", "No such file"), ("/etc/passwd", "it is no network namespace")] {
        let (status, _, err) = outcome(ka().args(["ls", "--netns", netns]));
        assert!(status == 2 && err.contains(why), "{err}");
    }
}

#[test]
fn forks_share_and_multipath_tcp_is_there() {
    if !on_a_machine_of_its_own("forks_share_and_multipath_tcp_is_there") {
        return;
    }
    let redis = Running::start(Command::new("redis-server").args(["--port", "6379", "--save", ""]));
    listening(6379);
    let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
    // SAFETY: the flag is the descriptor's own.
    unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_SETFD, 0) };
    let _children: Vec<_> = (0..2).map(|_| Running::start(Command::new("sleep").arg("60"))).collect();
    let (_, table, _) = outcome(ka().arg("ls"));
    assert_eq!(table.matches("127.0.0.1:7000 ").count(), 1, "{table}");
    assert!(table.lines().any(|line| line.contains("+2 ") && line.contains("127.0.0.1:7000 ")), "{table}");
    assert!(table.contains(&format!("redis-server/{} ", redis.0.id())), "{table}");

    if !has_mptcp() {
        return;
    }
    let socket = support::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let socket = socket2_of(socket);
    let client = support::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let client = socket2_of(client);
    socket.bind(&"127.0.0.1:7100".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(8).unwrap();
    set_option(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77);
    client.connect(&"127.0.0.1:7100".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let sockets = listed(&["--pid", &own_pid()]);
    let found = of_fd(&sockets, client.as_raw_fd());
    assert_eq!((&found["keepalive"], &found["idle"]), (&true.into(), &77.into()), "{found}");
    // The Multipath TCP socket cannot say; its subflow can, where the kernel is asked for that.
    assert!(found["user_timeout_ms"].is_null() || found["user_timeout_ms"] == 0, "{found}");
    assert_eq!(of_fd(&sockets, socket.as_raw_fd())["state"], "listen");
}

fn socket2_of(fd: OwnedFd) -> socket2::Socket {
    fd.into()
}

/// A terminal of script(1)'s, so many columns wide.
fn in_a_terminal(columns: u32, environment: &str) -> Vec<String> {
    let ka = support::release().join("ka");
    let command = format!(
        "stty cols {columns}; {environment} TERM=xterm {} ls --pid {}",
        ka.display(),
        std::process::id()
    );
    let out = stdout(bare("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()));
    out.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
}

#[test]
fn a_terminal_gets_colours_and_what_fits() {
    let (client, _server) = connection();
    let _listener = has_ipv6().then(|| TcpListener::bind("[::1]:0").unwrap());
    set(client.as_raw_fd(), true, [100, 20, 4, 0]);
    let wide = in_a_terminal(200, "");
    assert!(wide.iter().any(|line| line.contains("\x1b[32mon\x1b[0m")), "{wide:?}");
    assert!(wide.iter().any(|line| line.contains("\x1b[31moff\x1b[0m")), "{wide:?}");
    assert!(in_a_terminal(200, "NO_COLOR=1").iter().all(|line| !line.contains('\x1b')));
    for columns in [120, 100, 80] {
        let lines = in_a_terminal(columns, "NO_COLOR=1");
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns as usize, "{widest} of {columns}: {lines:#?}");
    }
    // No terminal: neither.
    let (_, plain, _) = outcome(ka().args(["ls", "--pid", &own_pid()]));
    assert!(!plain.contains('\x1b') && !plain.contains('…'), "{plain}");
}

#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut child = ka().args(["plan", "--list"]).stdout(write).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.signal(), said.as_str()), (Some(libc::SIGPIPE), ""), "{status}");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = ka().args(["plan", "--list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"ka: standard output: No space left on device (os error 28)\n");
}

/// A descriptor that somebody closed must not become another's socket that a message is written to.
#[test]
fn closed_standard_descriptors_do_no_harm() {
    let mut holder = Holder::start(&mut Command::new(holder()));
    let ka = support::release().join("ka");
    let script = format!("exec {} attach -v {} <&- >&- 2>&-", ka.display(), holder.pid());
    assert!(bare("sh").args(["-c", &script]).status().unwrap().success());
    holder.assert_all(60, 10, 6);
    // Nothing has been written into its connection.
    let told = holder.look();
    assert_eq!(told.len(), 3);
    let (_, table, _) =
        outcome(Command::new("ss").args(["-tnH", "sport", "=", &format!(":{}", holder.port)]));
    assert!(table.lines().all(|line| line.split_whitespace().nth(1) == Some("0")), "{table}");
}
