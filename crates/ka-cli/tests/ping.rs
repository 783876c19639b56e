//! Tests `ka ping`. The kernel is the judge: nft(8) counts the probes, getsockopt(2) reads the settings back, and ss(8)
//! shows which connections are left.

mod command;

use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::cgroups::{Cgroup, attaching, in_own_cgroup_tree};
use command::json::{assert_described, described};
use command::{as_nobody, bare, ka, outcome};
use ka_test::artifact::{release, shim};
use ka_test::child::{Running, stdout, succeed};
use ka_test::kernel::has_mptcp;
use ka_test::lines::Lines;
use ka_test::namespace::{in_own_namespaces, in_own_network_namespace, is_root};
use ka_test::path::{PublicFolder, copy_program};
use ka_test::process::{children, kill, raise_descriptor_limit, signal_child};
use ka_test::socket::{established, keepalive_options, set_option, socket};
use ka_test::wait::eventually;
use serde_json::Value;

fn own_pid() -> String {
    std::process::id().to_string()
}

/// Runs `ka ping` about this process. Returns its exit status and its rows.
#[track_caller]
fn pinged(args: &[&str]) -> (i32, Vec<Value>) {
    pinged_by(ka().args(["ping", "--json", &own_pid()]).args(args))
}

#[track_caller]
fn pinged_by(command: &mut Command) -> (i32, Vec<Value>) {
    let (status, out, err) = outcome(command);
    let rows = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (status, rows)
}

#[track_caller]
fn of_fd(rows: &[Value], socket: &TcpStream) -> Value {
    let fd = socket.as_raw_fd();
    rows.iter().find(|row| row["fd"] == fd).unwrap_or_else(|| panic!("no fd {fd} in {rows:?}")).clone()
}

/// Returns both ends of a connection over loopback.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Waits until the kernel sends probes on connections that are silent from now on.
fn idle() {
    thread::sleep(Duration::from_millis(1100));
}

fn nft(commands: &str) -> String {
    stdout(Command::new("nft").env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg(commands))
}

/// Counts the packets to these ports, and drops them if `verdict` is `drop`.
fn filter(verdict: &str, ports: &[u16]) {
    nft("add table ip t; flush table ip t; add chain ip t in { type filter hook input priority 0; }");
    for port in ports {
        nft(&format!("add rule ip t in tcp dport {port} counter {verdict}"));
    }
}

/// Returns the number of packets that each rule of [`filter`] has counted.
fn counted() -> Vec<u32> {
    let rules = nft("list table ip t");
    let count = |rule: &str| {
        rule.split_once("packets ").map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
    };
    rules.lines().filter_map(count).collect()
}

fn port(socket: &TcpStream) -> u16 {
    socket.local_addr().unwrap().port()
}

fn set(socket: &TcpStream, on: bool, timers: [i32; 4]) {
    let names = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT, libc::TCP_USER_TIMEOUT];
    for (name, value) in names.into_iter().zip(timers) {
        set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, name, value);
    }
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, on.into());
}

/// The policies that a probe must not change.
const POLICIES: [(bool, [i32; 4]); 5] = [
    (false, [7200, 75, 9, 0]),
    (false, [50, 5, 1, 3000]),
    (true, [100, 20, 4, 180_000]),
    (true, [3000, 75, 1, 0]),
    (true, [2, 30, 1, 0]),
];

/// Returns connections whose clients have these policies.
fn with_policies() -> Vec<(TcpStream, TcpStream)> {
    let connections: Vec<_> = POLICIES.iter().map(|_| connection()).collect();
    for ((client, _), (on, timers)) in connections.iter().zip(POLICIES) {
        set(client, on, timers);
    }
    connections
}

/// Returns the settings of both ends of connections.
fn settings(connections: &[(TcpStream, TcpStream)]) -> Vec<[Result<i32, i32>; 6]> {
    let ends = connections.iter().flat_map(|(client, server)| [client, server]);
    ends.map(|end| keepalive_options(end.as_raw_fd())).collect()
}

#[test]
fn live_peers_answer_and_settings_are_restored() {
    if !in_own_network_namespace("live_peers_answer_and_settings_are_restored") {
        return;
    }
    let connections = with_policies();
    let before = settings(&connections);
    filter("accept", &connections.iter().map(|(_, server)| port(server)).collect::<Vec<_>>());
    idle();
    let (status, rows) = pinged(&[]);
    assert_eq!((status, rows.len()), (0, 2 * connections.len()), "{rows:?}");
    assert_eq!(settings(&connections), before);
    for (client, server) in &connections {
        for (one, other) in [(client, server), (server, client)] {
            let row = of_fd(&rows, one);
            assert_eq!((&row["result"], &row["error"]), (&"answered".into(), &Value::Null), "{row}");
            assert_eq!(row["local"], one.local_addr().unwrap().to_string());
            assert_eq!(row["peer"], other.local_addr().unwrap().to_string());
            assert_eq!(row["pid"], std::process::id());
            assert!((0.0..2000.0).contains(&row["rtt_ms"].as_f64().unwrap()), "{row}");
        }
    }
    // For each server, its probe was a sign of life of the client, or the client sent its own.
    let probes = counted();
    assert!(probes.iter().all(|probes| (1..=4).contains(probes)), "{probes:?}");
    // The peers have just sent something, so ka sends no probes.
    let (status, rows) = pinged(&[]);
    assert_eq!(status, 0, "{rows:?}");
    let rtt = rows.iter().map(|row| row["rtt_ms"].as_f64().unwrap());
    assert!(rtt.clone().all(|rtt| rtt > 0.0), "{rows:?}");
    drop(rtt);
    assert_eq!(settings(&connections), before);
    let (status, table, _) = outcome(ka().args(["ping", &own_pid()]));
    assert_eq!(status, 0);
    assert!(table.ends_with("\n10 connections: 10 answered, 0 silent, 0 dead, 0 skipped\n"), "{table}");
}

#[test]
fn a_silent_peer_gets_all_probes_within_the_timeout() {
    if !in_own_network_namespace("a_silent_peer_gets_all_probes_within_the_timeout") {
        return;
    }
    let connections = with_policies();
    let live = connection();
    // A short idle time would make the kernel send its own probes.
    let connections = &connections[..4];
    let before = settings(connections);
    idle();
    filter("drop", &connections.iter().map(|(_, server)| port(server)).collect::<Vec<_>>());
    for (count, seconds) in [(3, 2), (1, 1), (5, 1)] {
        let sent = counted();
        let clients: Vec<_> = connections.iter().map(|(client, _)| port(client).to_string()).collect();
        let begun = Instant::now();
        let children: Vec<Child> = clients
            .iter()
            .map(|client| {
                let args = ["ping", "--json", &own_pid(), "--port", client].map(str::to_owned);
                let more =
                    ["--count".to_owned(), count.to_string(), "--timeout".to_owned(), seconds.to_string()];
                ka().args(args).args(more).stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for (child, (client, _)) in children.into_iter().zip(connections) {
            let output = child.wait_with_output().unwrap();
            let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
            let row = of_fd(&rows, client);
            assert_eq!(output.status.code(), Some(1), "{rows:?}");
            let expected = (&"silent".into(), &Value::Null, &Value::Null);
            assert_eq!((&row["result"], &row["rtt_ms"], &row["error"]), expected, "{row}");
        }
        assert!(begun.elapsed() >= Duration::from_secs(seconds), "{:?}", begun.elapsed());
        // Each end was probed: packets to the server are the client's probes and the server's answers.
        let probes: Vec<_> = counted().iter().zip(sent).map(|(now, before)| now - before).collect();
        assert!(probes.iter().all(|probes| *probes >= count && *probes <= 2 * count), "{count}: {probes:?}");
        assert_eq!(settings(connections), before);
    }
    assert_eq!(pinged(&["--port", &port(&live.0).to_string()]).0, 0);
    // The unanswered probes have ended no connection.
    assert_eq!(established("").lines().count(), 12, "{}", established(""));
}

/// Returns the client of a connection that its peer has forgotten.
fn half_open() -> TcpStream {
    let (client, server) = connection();
    filter("drop", &[port(&client), port(&server)]);
    drop(server);
    forget(&client);
    filter("accept", &[]);
    client
}

/// Makes the kernel forget the closed end of a client's connection.
fn forget(client: &TcpStream) {
    let peer = client.peer_addr().unwrap().port();
    succeed(Command::new("ss").args(["-K", "-tn", "sport", "=", &format!(":{peer}")]));
    eventually("the peer has forgotten the connection", || {
        stdout(Command::new("ss").args(["-tanH", "sport", "=", &format!(":{peer}")])).is_empty()
    });
}

#[test]
fn a_reset_shows_that_a_connection_is_dead() {
    if !in_own_network_namespace("a_reset_shows_that_a_connection_is_dead") {
        return;
    }
    let client = half_open();
    idle();
    let (status, rows) = pinged(&[]);
    let row = of_fd(&rows, &client);
    assert_eq!((status, &row["result"]), (1, &"dead".into()), "{row}");
    assert_eq!((&row["error"], &row["rtt_ms"]), (&"Connection reset by peer".into(), &Value::Null));
    // It is dead until its program reads the error. ka has left it pending.
    assert_eq!(pinged(&[]).0, 1);
    assert_eq!((&client).read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    assert_eq!(pinged(&[]), (0, vec![]));

    // The program reads the error at once.
    let client = half_open();
    idle();
    let reader = client.try_clone().unwrap();
    let reader = thread::spawn(move || (&reader).read(&mut [0]).unwrap_err().raw_os_error());
    thread::sleep(Duration::from_millis(200));
    let (status, rows) = pinged(&[]);
    assert_eq!((status, rows.len(), &rows[0]["result"]), (1, 1, &"dead".into()), "{rows:?}");
    assert_eq!(reader.join().unwrap(), Some(libc::ECONNRESET));
}

#[test]
fn connections_that_cannot_be_probed_are_explained() {
    if !in_own_network_namespace("connections_that_cannot_be_probed_are_explained") {
        return;
    }
    let (client, server) = connection();
    let _fresh = ka_test::socket::fresh();
    drop(server);
    thread::sleep(Duration::from_millis(100));
    let (status, rows) = pinged(&[]);
    let why = "close-wait: the peer has closed the connection, and the program has not closed its side";
    assert_eq!((status, rows.len()), (3, 1), "{rows:?}");
    assert_eq!((&rows[0]["result"], &rows[0]["error"]), (&"skipped".into(), &why.into()));
    drop(client);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    filter("drop", &[listener.local_addr().unwrap().port()]);
    let connecting: OwnedFd = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
    let connecting = socket2::Socket::from(connecting);
    assert!(connecting.connect(&listener.local_addr().unwrap().into()).is_err());
    let (status, rows) = pinged(&[]);
    let why = "the connection is not established yet";
    assert_eq!((status, rows.len()), (3, 1), "{rows:?}");
    assert_eq!((&rows[0]["result"], &rows[0]["error"]), (&"skipped".into(), &why.into()));
    drop((connecting, listener));
    // Without connections, all connections are alive.
    let (status, out, err) = outcome(ka().args(["ping", &own_pid()]));
    let none = "0 connections: 0 answered, 0 silent, 0 dead, 0 skipped\n";
    assert_eq!((status, out.as_str(), err.as_str()), (0, none, ""));
}

#[test]
fn an_acknowledgement_of_data_in_flight_is_an_answer() {
    if !in_own_network_namespace("an_acknowledgement_of_data_in_flight_is_an_answer") {
        return;
    }
    let (client, server) = connection();
    idle();
    filter("drop", &[port(&server)]);
    io::Write::write_all(&mut &client, b"question").unwrap();
    let of_client = port(&client).to_string();
    let (status, rows) =
        pinged(&["--port", &of_client, "--timeout", "300ms", "--count", "9", "--destroy", "--dry-run"]);
    let row = of_fd(&rows, &client);
    let error = row["error"].as_str().unwrap();
    assert_eq!((status, &row["result"]), (1, &"silent".into()), "{row}");
    assert!(
        error.starts_with("not destroyed: ") && error.ends_with("; data in flight is not acknowledged"),
        "{error}"
    );
    filter("accept", &[]);
    // The acknowledgement of the next retransmission is the answer.
    let (status, rows) = pinged(&["--port", &of_client, "--timeout", "30s"]);
    assert_eq!((status, &of_fd(&rows, &client)["result"]), (0, &"answered".into()), "{rows:?}");
}

/// A peer that does not read closes its window. The kernel then sends no keepalive probes, so ka must not take its
/// silence for death.
#[test]
fn a_closed_window_is_not_reported_as_silence() {
    if !in_own_network_namespace("a_closed_window_is_not_reported_as_silence") {
        return;
    }
    let (client, server) = connection();
    client.set_nonblocking(true).unwrap();
    let full = vec![0; 65536];
    let end = Instant::now() + Duration::from_secs(8);
    // By then, the kernel probes the window only every few seconds.
    while Instant::now() < end {
        let _ = io::Write::write(&mut &client, &full);
        thread::sleep(Duration::from_millis(50));
    }
    let of_client = port(&client).to_string();
    let args = ["--port", &of_client, "--timeout", "100ms", "--destroy"];
    let results: Vec<_> = (0..20)
        .map(|_| {
            let (_, rows) = pinged(&args);
            of_fd(&rows, &client)["result"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(results.iter().all(|result| ["answered", "skipped"].contains(&result.as_str())), "{results:?}");
    assert!(results.iter().any(|result| result == "skipped"), "{results:?}");
    drop(server);
}

#[test]
fn a_shared_socket_is_probed_once() {
    if !in_own_namespaces("a_shared_socket_is_probed_once") {
        return;
    }
    let script = "import os, socket, sys, time\n\
        listener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\n\
        server = listener.accept()[0]\n\
        children = [pid for pid in (os.fork(), os.fork()) if pid]\n\
        if len(children) == 2: print(listener.getsockname()[1], os.getpid(), flush=True)\n\
        sys.stdin.read()";
    let mut child = Running(
        bare("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap(),
    );
    let line = Lines::new("python3", child.0.stdout.take().unwrap()).expect("its port and PID");
    let (port, pid) = line.split_once(' ').unwrap();
    eventually("both children have forked", || {
        stdout(Command::new("pgrep").args(["-c", "python3"])).trim() == "4"
    });
    idle();
    filter("accept", &[port.parse().unwrap()]);
    let (status, rows) = pinged_by(ka().args(["ping", "--json", "--all"]));
    assert_eq!((status, rows.len()), (0, 2), "{rows:?}");
    assert!(rows.iter().all(|row| row["pid"] == pid.parse::<i32>().unwrap()), "{rows:?}");
    // One probe of the client, and its answer to the probe of the server.
    assert!(counted()[0] <= 2, "{:?}", counted());
    let (_, table, _) = outcome(ka().args(["ping", "--all"]));
    assert_eq!(table.matches(&format!("python3/{pid}+3 ")).count(), 2, "{table}");
}

/// Opens connections between this process and itself.
fn many(count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (0..count).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0)).collect()
}

#[test]
fn a_thousand_connections_take_about_one_timeout() {
    if !in_own_network_namespace("a_thousand_connections_take_about_one_timeout") {
        return;
    }
    assert!(raise_descriptor_limit() > 2100, "the hard limit of descriptors is too low");
    let (live, cut) = (many(400), many(100));
    idle();
    filter("drop", &[port(&cut[0].1)]);
    let begun = Instant::now();
    let (status, rows) = pinged(&["--timeout", "3s"]);
    let took = begun.elapsed();
    let number = |result: &str| rows.iter().filter(|row| row["result"] == result).count();
    assert_eq!((status, number("answered"), number("silent")), (1, 2 * live.len(), 2 * cut.len()));
    // One after the other, the silent connections alone would take 10 minutes.
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn connections_are_probed_in_batches_if_descriptors_are_scarce() {
    if !in_own_network_namespace("connections_are_probed_in_batches_if_descriptors_are_scarce") {
        return;
    }
    assert!(raise_descriptor_limit() > 700, "the hard limit of descriptors is too low");
    let connections = many(150);
    idle();
    let mut command = bare("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]).arg(release().join("ka"));
    let (status, rows) = pinged_by(command.args(["ping", "--json", &own_pid()]));
    let answered = rows.iter().filter(|row| row["result"] == "answered").count();
    assert_eq!((status, answered), (0, 2 * connections.len()), "{rows:?}");
}

#[test]
fn only_silent_connections_are_destroyed() {
    if !in_own_network_namespace("only_silent_connections_are_destroyed") {
        return;
    }
    let (live, cut) = (connection(), connection());
    let half = half_open();
    let (waiting, closed) = connection();
    drop(closed);
    idle();
    filter("drop", &[port(&cut.1)]);
    let before = settings(&[(live.0.try_clone().unwrap(), cut.0.try_clone().unwrap())]);
    let of = |args: &[&str]| {
        let (status, rows) = pinged(&[args, &["--timeout", "1s"]].concat());
        assert_eq!(status, 1, "{rows:?}");
        let result = |socket| {
            let row = of_fd(&rows, socket);
            [&row["result"], &row["error"]].map(|value| value.as_str().unwrap_or_default().to_owned())
        };
        [&live.0, &cut.0, &cut.1, &half, &waiting].map(result)
    };
    let starts = |result: &[String; 2], name: &str, error: &str| {
        assert!(result[0] == name && result[1].starts_with(error), "{result:?}");
    };
    let connections = established("").lines().count();
    let [live_result, cut_result, other, ..] = of(&["--destroy", "--dry-run"]);
    starts(&live_result, "answered", "");
    for result in [cut_result, other] {
        starts(&result, "silent", "would be destroyed: ");
        assert!(result[1].contains("ECONNABORTED"), "{result:?}");
    }
    assert_eq!(settings(&[(live.0.try_clone().unwrap(), cut.0.try_clone().unwrap())]), before);
    // The half-open connection is dead now.
    assert_eq!(established("").lines().count(), connections - 1, "{}", established(""));

    let [live_result, cut_result, other, dead, waiting_result] = of(&["--destroy"]);
    starts(&live_result, "answered", "");
    starts(&cut_result, "silent", "destroyed: ");
    starts(&other, "silent", "destroyed: ");
    starts(&dead, "dead", "Connection reset");
    starts(&waiting_result, "skipped", "close-wait: ");
    assert_eq!((&cut.0).read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
    assert_eq!((&cut.1).read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
    assert_eq!(established("").lines().count(), connections - 3, "{}", established(""));
    let ends = [&live.0, &live.1].map(|end| port(end).to_string());
    assert!(ends.iter().all(|end| established("").contains(end)), "{}", established(""));
    assert_eq!(pinged(&["--port", &ends[0]]).0, 0);
    let (_, out, _) = outcome(ka().args(["ping", "--destroy", "--timeout", "500ms", &own_pid()]));
    assert!(!out.contains("destroyed"), "{out}");
}

#[test]
fn destroy_reports_missing_rights_before_it_probes() {
    if !is_root() || !in_own_network_namespace("destroy_reports_missing_rights_before_it_probes") {
        return;
    }
    // Every user may run the program there, even if the repository is private.
    let folder = PublicFolder::new("ping");
    copy_program(release().join("ka"), folder.join("ka"));
    let script = "import os, socket, subprocess, sys, time\n\
        listener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\n\
        server = listener.accept()[0]\n\
        time.sleep(1.1)\n\
        done = subprocess.run([sys.argv[1], 'ping', '--destroy', str(os.getpid())], capture_output=True, text=True)\n\
        print(done.returncode, repr(done.stdout), done.stderr)\n\
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)\n\
        print('silent since', int.from_bytes(info[56:60], sys.byteorder), 'ms')";
    let mut python = bare("/usr/bin/python3");
    python.args(["-c", script]).arg(folder.join("ka"));
    let out = stdout(&mut as_nobody(&python));
    assert!(
        out.starts_with("2 '' ka: ping: --destroy: process ") && out.contains("needs CAP_NET_ADMIN"),
        "{out}"
    );
    assert!(command::number_after(&out, "silent since ") >= 1100, "{out}");
}

#[test]
fn connections_of_another_network_namespace_are_probed_and_destroyed() {
    if !in_own_network_namespace("connections_of_another_network_namespace_are_probed_and_destroyed") {
        return;
    }
    let script = "import socket, sys\n\
        listener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\n\
        server = listener.accept()[0]\n\
        print(listener.getsockname()[1], flush=True)\n\
        sys.stdin.readline()\n\
        try: client.recv(1)\n\
        except OSError as error: print(error.errno, flush=True)\n\
        sys.stdin.readline()";
    let mut command = bare("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec python3 -c \"$0\"", script]);
    let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = Lines::new("python3", child.0.stdout.take().unwrap());
    let port = lines.expect("its port");
    let pid = child.0.id().to_string();
    idle();
    let (status, rows) = pinged_by(ka().args(["ping", "--json", &pid]));
    assert_eq!((status, rows.len()), (0, 2), "{rows:?}");
    let rules = format!(
        "add table ip t; add chain ip t in {{ type filter hook input priority 0; }}; \
         add rule ip t in tcp dport {port} drop"
    );
    let mut command = Command::new("nsenter");
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["--target", &pid, "--net", "nft", &rules]);
    succeed(&mut command);
    idle();
    let (status, rows) = pinged_by(ka().args(["ping", "--json", "--destroy", "--timeout", "1s", &pid]));
    assert_eq!((status, rows.len()), (1, 2), "{rows:?}");
    assert!(rows.iter().all(|row| row["error"].as_str().unwrap().starts_with("destroyed: ")), "{rows:?}");
    io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"\n").unwrap();
    assert_eq!(lines.expect("the error"), libc::ECONNABORTED.to_string());
}

#[test]
fn a_signal_ends_the_wait_and_restores_the_settings() {
    if !in_own_network_namespace("a_signal_ends_the_wait_and_restores_the_settings") {
        return;
    }
    let (live, cut) = (connection(), with_policies());
    let cut = &cut[..4];
    let before = settings(cut);
    filter("drop", &cut.iter().flat_map(|(client, server)| [port(client), port(server)]).collect::<Vec<_>>());
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGKILL, libc::SIGQUIT] {
        idle();
        let before_probes: u32 = counted().iter().sum();
        let mut command = ka();
        command.args(["ping", "--json", "--timeout", "100s", &own_pid()]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        eventually("the worker has probed", || counted().iter().sum::<u32>() >= before_probes + 8);
        let workers = children(child.id().try_into().unwrap());
        signal_child(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
        if [libc::SIGKILL, libc::SIGQUIT].contains(&signal) {
            let ended = |worker: &i32| !ka_test::process::is_running(*worker);
            eventually("the workers have ended", || workers.iter().all(ended));
        } else {
            let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((output.status.code(), rows.len()), (Some(3), 12), "{rows:?}");
            assert_eq!(of_fd(&rows, &live.0)["result"], "answered");
            let row = of_fd(&rows, &cut[0].0);
            let why = "a signal came before ka had a result";
            assert_eq!((&row["result"], &row["error"]), (&"skipped".into(), &why.into()));
        }
        assert_eq!(settings(cut), before, "signal {signal}");
    }
}

/// strace delays the calls of ka, so that the signal comes while the settings are changed.
#[test]
fn changed_settings_are_restored_when_a_signal_ends_ka() {
    if !in_own_network_namespace("changed_settings_are_restored_when_a_signal_ends_ka") {
        return;
    }
    for (signal, (on, timers)) in
        [(libc::SIGINT, POLICIES[0]), (libc::SIGKILL, POLICIES[2]), (libc::SIGKILL, POLICIES[1])]
    {
        let (client, _server) = connection();
        set(&client, on, timers);
        let before = keepalive_options(client.as_raw_fd());
        idle();
        let mut strace = bare("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=getsockopt", "-e"]);
        strace.arg("inject=getsockopt:delay_enter=50000").arg(release().join("ka"));
        strace.args(["ping", &own_pid(), "--port", &port(&client).to_string()]);
        let mut child = Running::start(&mut strace);
        let end = Instant::now() + Duration::from_secs(60);
        while keepalive_options(client.as_raw_fd()) == before {
            assert!(Instant::now() < end, "ka has not changed the settings");
        }
        let ka = children(child.0.id().try_into().unwrap())[0];
        kill(ka, signal);
        eventually("the settings are restored", || keepalive_options(client.as_raw_fd()) == before);
        child.0.wait().unwrap();
        assert_eq!(keepalive_options(client.as_raw_fd()), before);
    }
}

#[test]
fn a_hangup_that_is_ignored_does_not_end_ka() {
    if !in_own_network_namespace("a_hangup_that_is_ignored_does_not_end_ka") {
        return;
    }
    let (_client, server) = connection();
    idle();
    filter("drop", &[port(&server)]);
    let mut command = bare("nohup");
    command.arg(release().join("ka")).args(["ping", "--json", "--timeout", "3s", &own_pid()]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the worker has probed", || counted()[0] > 0);
    signal_child(&child, libc::SIGHUP);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn processes_that_ka_may_not_examine_are_named() {
    if !is_root() || !in_own_namespaces("processes_that_ka_may_not_examine_are_named") {
        return;
    }
    let (_client, _server) = connection();
    let folder = PublicFolder::new("ping");
    copy_program(release().join("ka"), folder.join("ka"));
    let as_user = |args: &[&str]| {
        let mut command = bare(folder.join("ka"));
        command.arg("ping").args(args);
        as_nobody(&command)
    };
    let (status, out, err) = outcome(&mut as_user(&[&own_pid()]));
    let why = "it belongs to user 0: needs CAP_SYS_PTRACE (run ka as root)\n";
    assert!(
        status == 2 && err.starts_with(&format!("ka: ping: {} (", own_pid())) && err.ends_with(why),
        "{out}{err}"
    );
    let (status, rows) = pinged_by(&mut as_user(&["--json", "--all"]));
    assert_eq!(status, 2, "{rows:?}");
    let of_this = rows.iter().find(|row| row["pid"] == std::process::id()).unwrap();
    assert_eq!((&of_this["fd"], &of_this["result"]), (&Value::Null, &"skipped".into()), "{rows:?}");
    assert_eq!(outcome(&mut as_user(&["--user", "nobody"])).0, 0);
}

#[test]
fn wrong_arguments_are_explained() {
    let pid = own_pid();
    for (args, message) in [
        (&[][..], "<PID|--pid <PID>|--all|--user <USER>>"),
        (&["2147483647"], "ka: ping: process 2147483647: there is no such process\n"),
        (&["--pid", "2147483647", &pid], "ka: ping: process 2147483647: there is no such process\n"),
        (&["0"], "must be a PID, such as 1234 (pidof NAME finds it)"),
        (&["--count", "0", &pid], "must be a number of probes, 1..100"),
        (&["--count", "101", &pid], "must be a number of probes, 1..100"),
        (&["--count", "-1", &pid], "must be a number of probes, 1..100"),
        (&["--timeout", "0", &pid], "must be 1..4294967295 ms"),
        (&["--timeout", "soon", &pid], "must be a time"),
        (&["--port", "0", &pid], "must be a port number, 1..65535"),
        (&["--port", "65536", &pid], "must be a port number, 1..65535"),
        (&["--port", "+80", &pid], "must be a port number, 1..65535"),
        (&["--count", "+3", &pid], "must be a number of probes, 1..100"),
        (&["+1"], "must be a PID"),
        (&["--user", "no-such-user"], "ka: ping: --user no-such-user: no such user\n"),
        (&["--user", "+0"], "ka: ping: --user +0: no such user\n"),
        (&["--dry-run", &pid], "--destroy"),
        (&["--all", &pid], "cannot be used with"),
        (&["--user", "root", "--all"], "cannot be used with"),
    ] {
        let (status, out, err) = outcome(ka().arg("ping").args(args));
        assert!(status == 2 && out.is_empty() && err.contains(message), "{args:?}: {out}{err}");
    }
}

/// Runs `ka ping` about a program under a policy. Returns its rows and the settings that the program reads.
fn under(command: &mut Command) -> (Vec<Value>, [String; 2]) {
    let script = "import os, socket, sys\n\
        listener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\n\
        server = listener.accept()[0]\n\
        def look():\n\
        \x20   names = [(1, 9), (6, 4), (6, 5), (6, 6), (6, 18)]\n\
        \x20   print(os.getpid(), *(end.getsockopt(*name) for end in (client, server) for name in names), flush=True)\n\
        look()\n\
        sys.stdin.readline()\n\
        look()";
    command.args(["python3", "-c", script]);
    let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = Lines::new("python3", child.0.stdout.take().unwrap());
    let before = lines.expect("its settings");
    idle();
    let pid = before.split(' ').next().unwrap();
    let (_, rows) = pinged_by(ka().args(["ping", "--json", pid]));
    io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"\n").unwrap();
    (rows, [before, lines.expect("its settings afterwards")])
}

#[test]
fn programs_under_a_policy_are_probed() {
    if !in_own_network_namespace("programs_under_a_policy_are_probed") {
        return;
    }
    for via in ["preload", "seccomp"] {
        let mut command = ka();
        command.args(["run", "--via", via, "--mode", "force", "-p", "100,20,4", "--"]);
        let (rows, [before, after]) = under(&mut command);
        assert!(before.contains(" 1 100 20 4 0 1 100 20 4 0"), "{via}: {before}");
        assert_eq!(before, after, "{via}");
        assert_eq!(rows.len(), 2, "{via}: {rows:?}");
        assert!(rows.iter().all(|row| row["result"] == "answered"), "{via}: {rows:?}");
    }
    // The shim may be loaded into ka, too.
    let (client, _server) = connection();
    idle();
    let (status, rows) = pinged_by(ka().env("LD_PRELOAD", shim()).env("KA_POLICY", "77,7,7").args([
        "ping",
        "--json",
        &own_pid(),
    ]));
    assert_eq!(
        (status, rows.len(), &of_fd(&rows, &client)["result"]),
        (0, 2, &"answered".into()),
        "{rows:?}"
    );
}

#[test]
fn a_forced_policy_of_a_cgroup_is_named() {
    if !in_own_cgroup_tree("a_forced_policy_of_a_cgroup_is_named") {
        return;
    }
    let cgroup = Cgroup::new();
    let mut command = ka();
    command.args(["cgroup", "attach", "--foreground", "--mode", "force", "-p", "100,20,4"]).arg(&cgroup.0);
    let (_running, _) = attaching(&mut command);
    let mut command = bare("sh");
    command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&cgroup.0);
    let (rows, [before, after]) = under(&mut command);
    assert!(before.contains(" 1 100 20 4 0 1 100 20 4 0"), "{before}");
    assert_eq!(before, after);
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        let error = row["error"].as_str().unwrap();
        assert!(
            row["result"] == "skipped" && error.contains("a policy in mode force holds its settings"),
            "{row}"
        );
    }
}

#[test]
fn multipath_connections_are_probed() {
    if !has_mptcp() || !in_own_network_namespace("multipath_connections_are_probed") {
        return;
    }
    let new =
        || socket2::Socket::from(socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap());
    let (listener, client) = (new(), new());
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    client.connect(&listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    idle();
    let before = [&client, &server].map(|end| keepalive_options(end.as_raw_fd()));
    let (status, rows) = pinged(&[]);
    assert_eq!((status, rows.len()), (0, 2), "{rows:?}");
    assert_eq!([&client, &server].map(|end| keepalive_options(end.as_raw_fd())), before);
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    idle();
    filter("drop", &[port]);
    let (status, rows) = pinged(&["--timeout", "1s", "--destroy"]);
    assert_eq!(status, 1, "{rows:?}");
    let why = "not destroyed: the kernel cannot end a Multipath TCP connection of another process";
    assert!(rows.iter().all(|row| row["error"].as_str().unwrap().starts_with(why)), "{rows:?}");
}

#[test]
fn the_manual_page_describes_each_json_key() {
    if !in_own_network_namespace("the_manual_page_describes_each_json_key") {
        return;
    }
    let (_live, cut, half) = (connection(), connection(), half_open());
    let (_waiting, closed) = connection();
    drop(closed);
    idle();
    filter("drop", &[port(&cut.1)]);
    let (status, rows) = pinged(&["--timeout", "500ms"]);
    assert_eq!(status, 1, "{rows:?}");
    let results: Vec<_> = rows.iter().map(|row| row["result"].as_str().unwrap()).collect();
    for result in ["answered", "silent", "dead", "skipped"] {
        assert!(results.contains(&result), "{rows:?}");
    }
    let [keys] = described("ka-ping.1");
    let names: Vec<_> = keys.keys().map(String::as_str).collect();
    assert_eq!(names, ["comm", "error", "fd", "local", "peer", "pid", "result", "rtt_ms"]);
    assert_described(&keys, &[Value::Array(rows)]);
    drop(half);
}

/// Standard error shows the progress only if it is a terminal that can replace a line.
#[test]
fn progress_is_shown_on_a_terminal() {
    if !in_own_network_namespace("progress_is_shown_on_a_terminal") {
        return;
    }
    let (_live, cut) = (connection(), connection());
    idle();
    filter("drop", &[port(&cut.1)]);
    let script = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    for (terminal, is_shown) in [("xterm", true), ("dumb", false)] {
        let mut command = bare("python3");
        command.args(["-c", script]).arg(release().join("ka")).args(["ping", "--timeout", "1s", &own_pid()]);
        let (status, out, _) = outcome(command.env("TERM", terminal));
        let shows = out.contains("2 answered, 0 silent, 2 left, ");
        assert_eq!((status, shows), (1, is_shown), "{terminal}: {out:?}");
        assert!(is_shown || !out.contains('\x1b'), "{out:?}");
    }
    let (_, _, err) = outcome(ka().args(["ping", "--timeout", "1s", &own_pid()]));
    assert_eq!(err, "");
}
