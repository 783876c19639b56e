//! Tests `ka measure`: the verdicts on paths through middleboxes (conntrack in a router's kernel), and on servers that
//! close, reset, limit or probe connections.

mod command;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use command::json::{assert_described, described};
use command::{as_nobody, bare, ka, outcome};
use ka_test::artifact::{release, shim};
use ka_test::child::{Running, stdout, succeed};
use ka_test::kernel::has_ipv6;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root};
use ka_test::path::{copy_program, scratch};
use ka_test::wait::eventually;
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};

/// Runs `ka measure --json` with these arguments, and returns its exit status and its output.
fn measured(command: &mut Command) -> (i32, Value, String) {
    parsed(outcome(command))
}

fn measure(args: &[&str]) -> Command {
    let mut command = ka();
    command.args(["measure", "--json"]).args(args);
    command
}

/// Runs two commands at the same time.
fn both(one: &mut Command, other: &mut Command) -> [(i32, String, String); 2] {
    thread::scope(|scope| {
        let one = scope.spawn(|| outcome(one));
        let other = outcome(other);
        [one.join().unwrap(), other]
    })
}

/// Parses the output of `ka measure --json`.
fn parsed((status, out, err): (i32, String, String)) -> (i32, Value, String) {
    let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (status, json, err)
}

/// Returns the results of the trials, in the order of their ends.
fn results(json: &Value) -> Vec<&str> {
    json["trials"].as_array().unwrap().iter().map(|trial| trial["result"].as_str().unwrap()).collect()
}

#[track_caller]
fn assert_between(json: &Value, key: &str, low: f64, high: f64) {
    let value = json[key].as_f64().unwrap_or_else(|| panic!("no {key}: {json}"));
    assert!((low..=high).contains(&value), "{key} is not in {low}..{high}: {json}");
}

/// Starts a server whose connections are each handled by a thread. Returns its address.
fn server(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let handle = Arc::new(handle);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let handle = Arc::clone(&handle);
            thread::spawn(move || handle(stream.unwrap()));
        }
    });
    address
}

/// Reads until the connection ends. Returns its error, if it has one, and the received data.
fn read_all(mut stream: &TcpStream) -> (io::Result<()>, Vec<u8>) {
    let mut sent = Vec::new();
    (stream.read_to_end(&mut sent).map(drop), sent)
}

/// A network: this namespace is the client; a router; and a server that keeps connections to port 5050.
struct Network {
    // The namespaces end with these processes.
    router: Running,
    server: Running,
    _program: Running,
}

const HOSTS: [&str; 2] = ["198.51.100.2:5050", "[2001:db8:2::2]:5050"];
/// A server that sends nothing.
const KEEPER: &str = "import socket
s = socket.socket(socket.AF_INET6); s.setsockopt(41, 26, 0); s.bind(('', 5050)); s.listen(99)
kept = []
while True: kept.append(s.accept())";

impl Network {
    /// Makes a network. `rules` are nft(8) rules for packets that the router forwards, and `loose` is its
    /// `nf_conntrack_tcp_loose`. Its connections time out after 4 s.
    fn with_nat(rules: &str, loose: u8, server: &[&str]) -> Self {
        let mut namespaces = [(); 2].map(|()| {
            let mut command = bare("unshare");
            let child = command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = child.spawn().unwrap();
            // The program answers, so it runs in its namespace.
            child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            Some(Running(child))
        });
        let [router, far] = &mut namespaces;
        let (router, far) = (router.take().unwrap(), far.take().unwrap());
        let script = format!(
            "set -e
            ip link add eth0 type veth peer name client netns {router}
            ip link set eth0 up
            ip address add 192.0.2.2/24 dev eth0
            ip route add default via 192.0.2.1
            nsenter -t {router} -n sh -ec '
                ip link set lo up
                ip link set client up
                ip link add server type veth peer name eth0 netns {server}
                ip link set server up
                ip address add 192.0.2.1/24 dev client
                ip address add 198.51.100.1/24 dev server
                echo 1 >/proc/sys/net/ipv4/ip_forward
                nft -f -' <<'END'
            table inet translation {{
                chain hide {{
                    type nat hook postrouting priority srcnat
                    oifname \"server\" masquerade
                }}
                chain known {{
                    type filter hook forward priority filter
                    {rules}
                }}
            }}
END
            nsenter -t {router} -n sh -ec '
                cd /proc/sys/net/netfilter
                echo 4 >nf_conntrack_tcp_timeout_established
                echo {loose} >nf_conntrack_tcp_loose
                echo 0 >nf_conntrack_tcp_be_liberal'
            nsenter -t {server} -n sh -ec '
                ip link set lo up
                ip link set eth0 up
                ip address add 198.51.100.2/24 dev eth0
                ip route add default via 198.51.100.1'
            {v6}",
            router = router.0.id(),
            server = far.0.id(),
            v6 = if has_ipv6() { V6 } else { "" }
        );
        let script = script.replace("ROUTER", &router.0.id().to_string());
        succeed(bare("sh").arg("-c").arg(script.replace("SERVER", &far.0.id().to_string())));
        let mut program = bare("nsenter");
        program.args(["-t", &far.0.id().to_string(), "-n"]).args(server);
        let program = Running::start(&mut program);
        let network = Self { router, server: far, _program: program };
        eventually("the server listens", || {
            stdout(network.on_server("ss").args(["-Hltn"])).contains(":5050 ")
        });
        network
    }

    /// Makes a network whose router silently drops packets of connections that it has forgotten.
    fn with_strict_nat() -> Self {
        Self::with_nat("ct state invalid drop", 0, &["python3", "-c", KEEPER])
    }

    /// Returns a command that runs on the server.
    fn on_server(&self, program: &str) -> Command {
        let mut command = bare("nsenter");
        command.args(["-t", &self.server.0.id().to_string(), "-n", program]);
        command
    }

    /// Returns a command that runs on the router.
    fn on_router(&self, program: &str) -> Command {
        let mut command = bare("nsenter");
        command.args(["-t", &self.router.0.id().to_string(), "-n", program]);
        command
    }
}

/// Commands that add IPv6 to the network.
const V6: &str = "
    ip address add 2001:db8:1::2/64 dev eth0 nodad
    ip route add default via 2001:db8:1::1
    nsenter -t ROUTER -n sh -ec '
        ip address add 2001:db8:1::1/64 dev client nodad
        ip address add 2001:db8:2::1/64 dev server nodad
        echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    nsenter -t SERVER -n sh -ec '
        ip address add 2001:db8:2::2/64 dev eth0 nodad
        ip route add default via 2001:db8:2::1'";

/// Idle times around the timeout of the network.
const AROUND: [&str; 6] = ["--from", "2s", "--to", "12s", "--precision", "1s"];

/// Asserts that a measurement found the timeout of 4 s.
#[track_caller]
fn assert_found(json: &Value, how: &str) {
    assert_eq!((json["verdict"].as_str(), json["how"].as_str()), (Some("forgets"), Some(how)), "{json}");
    // The machine may be busy, so packets can leave late.
    assert_between(json, "survives_s", 2.0, 4.3);
    assert_between(json, "fails_s", 3.9, 5.5);
    let gap = json["fails_s"].as_f64().unwrap() - json["survives_s"].as_f64().unwrap();
    assert!(gap > 0.0 && gap < 1.7, "{json}");
    assert!(results(json).iter().filter(|result| **result == how).count() >= 2, "not repeated: {json}");
    for trial in json["trials"].as_array().unwrap() {
        let (idle, result) = (trial["idle_s"].as_f64().unwrap(), trial["result"].as_str().unwrap());
        assert!(if result == "answered" { idle < 4.3 } else { idle > 3.9 }, "{trial}");
    }
}

#[test]
fn a_nat_that_drops_is_found_over_ipv4_and_ipv6() {
    if !in_own_network_namespace("a_nat_that_drops_is_found_over_ipv4_and_ipv6") {
        return;
    }
    let network = Network::with_strict_nat();
    thread::scope(|scope| {
        for host in HOSTS {
            scope.spawn(move || {
                if host.starts_with('[') && !has_ipv6() {
                    return skip("this machine has no IPv6");
                }
                let (status, json, lines) = measured(measure(&AROUND).arg(host));
                assert_eq!(status, 0, "{json}");
                assert_found(&json, "silent");
                assert_eq!((json["target"].as_str(), json["address"].as_str()), (Some(host), Some(host)));
                assert!(lines.contains(": silent: no probe was answered\n"), "{lines}");
                // The path survives 3 s and more, so a policy exists. It is that of ka plan.
                let path = format!("{}s", json["survives_s"].as_f64().unwrap().floor());
                let plan = stdout(ka().args(["plan", "--json", "--path", &path]));
                let plan: Value = serde_json::from_str(&plan).unwrap();
                for key in ["idle", "intvl", "cnt"] {
                    assert_eq!(json["policy"][key], plan[key], "{key}");
                }
            });
        }
    });
    // No connection is left that sends its FIN in vain.
    let left = stdout(bare("ss").args(["-Htan", "dport = :5050"]));
    assert!(
        left.lines().all(|line| line.starts_with("TIME-WAIT") || line.starts_with("FIN-WAIT-2")),
        "{left}"
    );
    drop(network);
}

#[test]
fn a_middlebox_that_resets_is_found() {
    if !in_own_network_namespace("a_middlebox_that_resets_is_found") {
        return;
    }
    let rules = "meta l4proto tcp ct state invalid reject with tcp reset";
    let _network = Network::with_nat(rules, 0, &["python3", "-c", KEEPER]);
    let (status, json, lines) = measured(measure(&AROUND).arg(HOSTS[0]));
    assert_eq!(status, 0, "{json}");
    assert_found(&json, "reset");
    let resets = json["trials"].as_array().unwrap().iter().filter(|trial| trial["result"] == "reset");
    assert!(resets.clone().count() > 0 && resets.clone().all(|trial| trial["after_ms"].is_u64()), "{json}");
    assert!(lines.contains(": reset after "), "{lines}");
}

/// conntrack with loose pick-up accepts a probe from the inside as a new connection, but no probe from the outside.
#[test]
fn a_nat_with_loose_pick_up_is_found_from_the_server() {
    if !in_own_network_namespace("a_nat_with_loose_pick_up_is_found_from_the_server") {
        return;
    }
    let path = ka();
    let serve = [path.get_program().to_str().unwrap(), "measure", "--serve", "5050"];
    // The packets from the server to the router's own address are dropped, as a router of the internet would.
    let network = Network::with_nat("ct state invalid drop", 1, &serve);
    succeed(network.on_router("nft").arg(
        "table inet own { chain input { type filter hook input priority filter; tcp sport 5050 drop; }; }",
    ));
    thread::scope(|scope| {
        scope.spawn(|| {
            let range = ["--from", "2s", "--to", "7s", "--precision", "1s"];
            let (status, out, _) = outcome(ka().arg("measure").args(range).arg(HOSTS[0]));
            assert_eq!(status, 0, "{out}");
            assert!(out.contains("\nVerdict: keeps\n") && out.contains("loose pick-up"), "{out}");
            assert!(out.contains("ka measure --from-server"), "{out}");
        });
        let (status, json, _) = measured(measure(&AROUND).args(["--from-server", HOSTS[0]]));
        assert_eq!(status, 0, "{json}");
        assert_found(&json, "silent");
    });
}

#[test]
fn a_path_that_keeps_is_found_without_privileges_and_its_connections_end_with_fin() {
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let ends = Arc::new(Mutex::new(Vec::new()));
    let (now_open, most_open, all_ends) = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&ends));
    let address = server(move |stream| {
        most_open.fetch_max(now_open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (end, sent) = read_all(&stream);
        now_open.fetch_sub(1, Ordering::SeqCst);
        all_ends.lock().unwrap().push((end.map_err(|error| error.kind()), sent));
    });
    let mut command = measure(&["--from", "1500ms", "--to", "3500ms", "--connections", "2", &address]);
    if is_root() {
        command = as_nobody(&command);
    } else {
        skip("the tests do not run as root, so the command already runs without privileges");
    }
    let begin = Instant::now();
    let (status, json, lines) = measured(&mut command);
    let took = begin.elapsed().as_secs_f64();
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    assert_between(&json, "survives_s", 3.5, 4.5);
    assert_between(&json, "took_s", 3.5, took);
    assert!(json["fails_s"].is_null() && json["how"].is_null(), "{json}");
    assert_eq!(json["policy"], serde_json::json!({ "idle": 1, "intvl": 1, "cnt": 5 }));
    let trials = json["trials"].as_array().unwrap();
    assert_eq!(lines.lines().filter(|line| line.starts_with("idle ")).count(), trials.len(), "{lines}");
    eventually("all connections end", || open.load(Ordering::SeqCst) == 0);
    assert!(most.load(Ordering::SeqCst) <= 2, "more than 2 connections at a time");
    let ends = ends.lock().unwrap();
    assert!(ends.len() == trials.len() && ends.iter().all(|end| *end == (Ok(()), Vec::new())), "{ends:?}");
}

#[test]
fn a_server_that_closes_idle_connections_is_found() {
    let address = server(|stream| {
        thread::sleep(Duration::from_millis(3200));
        drop(stream);
    });
    let (status, json, lines) = measured(&mut measure(&["--from", "1s", "--to", "20s", &address]));
    assert_eq!((status, json["verdict"].as_str()), (1, Some("server-closes")), "{json}");
    assert_between(&json, "server_closed_s", 3.1, 4.0);
    assert_between(&json, "survives_s", 3.1, 4.0);
    assert!(json["took_s"].as_f64().unwrap() < 10.0, "{json}");
    assert!(results(&json).contains(&"answered") && results(&json).contains(&"closed"), "{json}");
    assert!(lines.contains(": closed by the server\n"), "{lines}");
}

#[test]
fn a_server_that_closes_at_once_is_found() {
    let address = server(drop);
    let args = ["--from", "3s", "--to", "9s", &address];
    let [json, (_, out, _)] = both(&mut measure(&args), ka().arg("measure").args(args));
    let (status, json, _) = parsed(json);
    assert_eq!((status, json["verdict"].as_str()), (1, Some("server-closes")), "{json}");
    assert_between(&json, "server_closed_s", 0.0, 1.0);
    assert!(json["survives_s"].is_null() && json["policy"].is_null(), "{json}");
    assert!(out.contains("ends each connection at once (FIN)") && out.contains("try --send"), "{out}");
}

#[test]
fn resets_without_a_probe_are_reported_as_an_idle_timeout() {
    let address = server(|stream| {
        thread::sleep(Duration::from_millis(2600));
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let args = ["--from", "1s", "--to", "20s", "--precision", "2s", &address];
    let [json, (_, out, _)] = both(&mut measure(&args), ka().arg("measure").args(args));
    let (status, json, lines) = parsed(json);
    assert_eq!((status, json["verdict"].as_str(), json["how"].as_str()), (0, Some("forgets"), Some("reset")));
    assert_between(&json, "fails_s", 2.5, 3.5);
    assert!(lines.contains(": reset without a probe\n"), "{lines}");
    assert!(out.contains("without a probe") && out.contains("or of the server"), "{out}");
}

#[test]
fn send_makes_a_server_keep_the_connection() {
    const GREETING: &[u8] = b"hi\r\n\x00\\";
    let address = server(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(800))).unwrap();
        let mut sent = [0; GREETING.len()];
        if stream.read_exact(&mut sent).is_ok() && sent == GREETING {
            // The answer comes late, and in two parts.
            for part in ["well", "come\r\n"] {
                thread::sleep(Duration::from_millis(400));
                stream.write_all(part.as_bytes()).unwrap();
            }
            stream.set_read_timeout(None).unwrap();
            let _ = read_all(&stream);
        }
    });
    let range = ["--from", "2s", "--to", "3s"];
    let [right, wrong] = both(
        measure(&range).args(["--send", "hi\\r\\n\\x00\\\\", &address]),
        measure(&range).args(["--send", "hello\\n", &address]),
    );
    let (status, json, _) = parsed(right);
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    // The idle time began after the answer.
    assert_between(&json, "took_s", 3.8, 15.0);
    assert_between(&json, "survives_s", 3.0, 4.0);
    let (status, json, _) = parsed(wrong);
    assert_eq!((status, json["verdict"].as_str()), (1, Some("server-closes")), "{json}");
}

#[test]
fn a_server_that_accepts_few_connections_is_measured_with_fewer() {
    let open = Arc::new(AtomicUsize::new(0));
    let address = server(move |stream| {
        if open.fetch_add(1, Ordering::SeqCst) < 2 {
            let _ = read_all(&stream);
        }
        open.fetch_sub(1, Ordering::SeqCst);
    });
    let args = ["--from", "3s", "--to", "6s", &address];
    let (status, json, lines) = measured(&mut measure(&args));
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    assert!(results(&json).iter().all(|result| *result == "answered"), "{json}");
    assert!(
        lines.contains("the server accepts only 2 connections at a time: it closed others at once\n"),
        "{lines}"
    );
}

/// Keepalive probes of the server are invisible to programs. They show only in the kernel's counters of segments.
#[test]
fn probes_of_the_server_are_noticed() {
    let address = server(|stream| {
        let policy =
            TcpKeepalive::new().with_time(Duration::from_secs(2)).with_interval(Duration::from_secs(2));
        SockRef::from(&stream).set_tcp_keepalive(&policy).unwrap();
        let _ = read_all(&stream);
    });
    let (status, json, lines) = measured(&mut measure(&["--from", "1s", "--to", "30s", &address]));
    assert_eq!((status, json["verdict"].as_str()), (1, Some("unclear")), "{json}");
    assert_between(&json, "survives_s", 1.5, 3.5);
    assert!(lines.contains("the server sent a packet by itself"), "{lines}");
}

#[test]
fn a_signal_ends_the_measurement_with_the_results_so_far() {
    let address = server(|stream| drop(read_all(&stream)));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut command = measure(&["--from", "1s", "--to", "60s", &address]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::new("ka measure", child.stderr.take().unwrap());
        assert!(lines.any(|line| line.starts_with("idle 1.")), "no trial has ended");
        let json = end(child, signal);
        assert_eq!((json.0, json.1["verdict"].as_str()), (Some(1), Some("unclear")), "{json:?}");
        assert_between(&json.1, "survives_s", 1.0, 10.0);
        assert!(json.1["fails_s"].is_null(), "{json:?}");
    }
}

/// Sends a signal to `ka measure --json`, and returns its exit status and output.
fn end(child: Child, signal: i32) -> (Option<i32>, Value) {
    send(&child, signal);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

fn send(child: &Child, signal: i32) {
    succeed(bare("kill").arg(format!("-{signal}")).arg(child.id().to_string()));
}

#[test]
fn bind_chooses_the_local_address() {
    let (sender, peers) = mpsc::channel();
    let address = server(move |stream| {
        sender.send(stream.peer_addr().unwrap().ip()).unwrap();
        drop(read_all(&stream));
    });
    let args = ["--from", "1s", "--to", "2s", "--bind", "127.0.0.2", &address];
    let (status, json, _) = measured(&mut measure(&args));
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    let peers: Vec<_> = peers.try_iter().collect();
    assert!(peers.len() == json["trials"].as_array().unwrap().len(), "{peers:?}: {json}");
    assert!(peers.iter().all(|peer| *peer == Ipv4Addr::new(127, 0, 0, 2)), "{peers:?}");
}

/// If standard error is a terminal that can replace a line, it shows the progress, and a line per trial only with -v.
#[test]
fn progress_is_shown_on_a_terminal() {
    let address = server(|stream| drop(read_all(&stream)));
    let script = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let run = |terminal: &str, flags: &[&str]| {
        let mut command = bare("python3");
        command
            .args(["-c", script])
            .arg(release().join("ka"))
            .args(["measure", "--from", "1s", "--to", "4s"]);
        let (status, out, _) = outcome(command.args(flags).arg(&address).env("TERM", terminal));
        assert_eq!(status, 0, "{out:?}");
        [" s elapsed, about ", " s: answered after "].map(|text| out.contains(text))
    };
    thread::scope(|scope| {
        let cases = [
            ("xterm", &[][..], [true, false]),
            ("xterm", &["-v"], [true, true]),
            ("dumb", &[], [false, true]),
        ];
        for (terminal, flags, expected) in cases {
            scope.spawn(move || assert_eq!(run(terminal, flags), expected, "{terminal} {flags:?}"));
        }
    });
}

#[test]
fn wrong_arguments_are_rejected() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&[], "HOST:PORT"),
        (&["127.0.0.1"], "must be HOST:PORT"),
        (&["127.0.0.1:0"], "must be a port number, 1..65535"),
        (&["127.0.0.1:+80"], "must be a port number, 1..65535"),
        (&["--connections", "+3", &unused], "must be a number, 1..200"),
        (&["::1:80"], "[2001:db8::7]:22"),
        (&["no-such-host.invalid:80"], "ka: measure: no-such-host.invalid: "),
        (&[&unused], "Connection refused"),
        (&["--from-server", &unused], "Connection refused"),
        (&["--from", "20s", "--to", "10s", &unused], "--from 20 s is longer than --to 10 s"),
        (&["--from", "0", &unused], "must be 1.."),
        (&["--from", "900ms", &unused], "--from 900 ms: must be 1 s or more"),
        (&["--to", "10h", &unused], "--to 10 h: must be 9 h or less"),
        (&["--precision", "499ms", &unused], "--precision 499 ms: must be 500 ms or more"),
        (&["--precision", "10m", &unused], "--precision 10 min: must be at most 9 min 50 s"),
        (&["--precision", "0", &unused], "must be 1.."),
        (&["--connections", "0", &unused], "must be a number, 1..200"),
        (&["--send", "\\q", &unused], "the escapes are"),
        (&["--bind", "here", &unused], "must be an address of this machine"),
        (&["--bind", "192.0.2.1", &unused], "cannot connect from 192.0.2.1"),
        (&["-6", &unused], "127.0.0.1: it has no IPv6 address"),
        (&["-4", "[::1]:80"], "::1: it has no IPv4 address"),
        (&["-6", "--bind", "127.0.0.1", &unused], "--bind 127.0.0.1 is not an address for -6"),
        (&["-4", "-6", &unused], "cannot be used with"),
        (&["--serve", "host:80"], "must be PORT or ADDR:PORT"),
        (&["--serve", "192.0.2.1:80"], "ka: measure: --serve: 192.0.2.1:80: "),
        (&["--serve", "80", "--json"], "cannot be used with"),
    ];
    for (args, message) in cases {
        let (status, out, err) = outcome(ka().arg("measure").args(*args));
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
    }
}

/// A running `ka measure --serve`.
struct Serve {
    program: Running,
    address: SocketAddr,
}

impl Serve {
    fn start(address: &str) -> Self {
        Self::by(&mut ka(), address, 1000)
    }

    /// Starts the server by a command, which must keep at most this number of connections.
    fn by(command: &mut Command, address: &str, most: usize) -> Self {
        // The port is free, and another program is unlikely to take it in between.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = command
            .args(["measure", "--serve", &format!("{address}{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = Lines::new("the server", child.stdout.take().unwrap()).expect("its address");
        assert!(
            line.contains(&format!(":{port}")) && line.contains(&format!(" {most} connections,")),
            "{line}"
        );
        Self { program: Running(child), address: ([127, 0, 0, 1], port).into() }
    }
}

#[test]
fn serve_keeps_connections_and_survives_garbage() {
    let serve = Serve::start("");
    let connect = |text: &[u8]| {
        let mut stream = TcpStream::connect(serve.address).unwrap();
        stream.write_all(text).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream
    };
    let answer = |stream: &mut TcpStream| {
        let mut buffer = [0; 200];
        match stream.read(&mut buffer) {
            Ok(size) => Some(String::from_utf8_lossy(&buffer[..size]).into_owned()),
            Err(_) => None,
        }
    };
    let long = [b"ka-measure 1 ".to_vec(), vec![b'x'; 100_000]].concat();
    for text in [&b""[..], b"\0\xff\n\n\n", b"GET / HTTP/1.1\r\n\r\n", b"ka-measure", &long] {
        let mut stream = connect(text);
        assert_eq!(answer(&mut stream), None, "{:?}", String::from_utf8_lossy(text));
        // The server still reads.
        stream.write_all(b"more").unwrap();
        assert_eq!(answer(&mut stream), None);
    }
    for line in ["ka-measure 2 control\n", "ka-measure 1 trial 0 0\n", "ka-measure  \n"] {
        let answer = answer(&mut connect(line.as_bytes()));
        assert!(
            answer.as_deref().is_some_and(|text| text.starts_with("ka-measure 1 error ")),
            "{line}: {answer:?}"
        );
    }
    // No measurement has this key.
    assert_eq!(answer(&mut connect(b"ka-measure 1 trial 00 1 1000\n")).as_deref(), Some(""));
    let (status, json, _) = measured(measure(&["--from", "1s", "--to", "2s"]).arg(serve.address.to_string()));
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    send(&serve.program.0, libc::SIGTERM);
    let mut serve = serve;
    assert_eq!(serve.program.0.wait().unwrap().code(), Some(0));
}

/// A client may vanish without a FIN. The kernel probes it, but later than the longest idle time of a measurement.
#[test]
fn serve_turns_keepalive_on_for_connections_that_it_keeps() {
    let serve = Serve::start("127.0.0.1:");
    let _client = TcpStream::connect(serve.address).unwrap();
    let timer = || {
        let out = stdout(bare("ss").args(["-Htno", &format!("sport = :{}", serve.address.port())]));
        let (minutes, _) = out.split_once("timer:(keepalive,")?.1.split_once("min,")?;
        Some(minutes.parse::<u32>().unwrap())
    };
    eventually("a timer runs", || timer().is_some());
    assert!(timer().unwrap() >= 9 * 60, "{:?}", timer());
}

/// The number of connections that a server keeps under [`with_few_places`].
const PLACES: usize = 24;

/// Returns a command that runs ka with a low limit of descriptors.
fn with_few_places() -> Command {
    let mut command = bare("sh");
    command.args(["-c", "ulimit -n 40 && exec \"$@\"", "sh"]).arg(release().join("ka"));
    command
}

/// Connects from a local address.
fn connect_from(host: &str, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(host.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Discards received data. Returns whether the peer has left the connection open.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 100]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// One client must neither keep out others nor fill the log.
#[test]
fn serve_closes_connections_of_the_greediest_client_for_new_ones() {
    let mut command = with_few_places();
    command.stderr(Stdio::piped());
    let begin = Instant::now();
    let mut serve = Serve::by(&mut command, "", PLACES);
    let connect = |host: &str| connect_from(host, serve.address);
    // The oldest connections belong to a modest client, and to a measurement from the server.
    let modest = [(); 2].map(|()| connect("127.0.0.2"));
    let control = connect("127.0.0.3");
    (&control).write_all(b"ka-measure 1 control\n").unwrap();
    assert!((&control).read(&mut [0; 100]).unwrap() > 0);
    let greedy: Vec<_> = (0..300).map(|_| connect("127.0.0.3")).collect();
    let places = PLACES - modest.len() - 1;
    let (closed, kept) = greedy.split_at(greedy.len() - places);
    eventually("the oldest connections are closed", || !closed.iter().any(is_open));
    let (_, newest) = kept.split_at(1);
    let another = connect("127.0.0.4");
    eventually("one more is closed", || !is_open(&kept[0]));
    assert!(newest.iter().all(is_open) && is_open(&another), "a newer connection is closed");
    assert!(modest.iter().all(is_open), "a connection of the modest client is closed");
    assert!(is_open(&control), "the connection of a measurement is closed");
    send(&serve.program.0, libc::SIGTERM);
    let mut err = String::new();
    serve.program.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let seconds = usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!((1..=seconds + 1).contains(&err.lines().count()), "{seconds} s: {err}");
    let first = err.lines().next().unwrap();
    assert!(first.starts_with("ka: measure: 127.0.0.3:") && first.contains(": closed, because "), "{first}");
}

/// A host with IPv6 has very many addresses.
#[test]
fn serve_counts_the_addresses_of_an_ipv6_network_together() {
    if !has_ipv6() || !in_own_network_namespace("serve_counts_the_addresses_of_an_ipv6_network_together") {
        return;
    }
    let mut command = with_few_places();
    command.stderr(Stdio::null());
    let serve = Serve::by(&mut command, "", PLACES);
    let ip = |address: &str| succeed(bare("ip").args(["address", "add", address, "dev", "lo", "nodad"]));
    ip("2001:db8:1::1/64");
    let address = (Ipv6Addr::LOCALHOST, serve.address.port()).into();
    let modest = [(); 2].map(|()| connect_from("2001:db8:1::1", address));
    let greedy: Vec<_> = (1..=PLACES)
        .map(|number| {
            ip(&format!("2001:db8:2::{number:x}/64"));
            connect_from(&format!("2001:db8:2::{number:x}"), address)
        })
        .collect();
    eventually("two are closed", || !greedy[..2].iter().any(is_open));
    assert!(greedy[2..].iter().chain(&modest).all(is_open), "a wrong connection is closed");
}

#[test]
fn from_server_makes_the_server_send_the_probes() {
    let serve = Serve::start("127.0.0.1:");
    let args = ["--from", "1s", "--to", "3200ms", "--from-server"];
    let address = serve.address.to_string();
    let [json, (_, out, _)] =
        both(measure(&args).arg(&address), ka().arg("measure").args(args).arg(&address));
    assert!(out.contains(", probes from the server)"), "{out}");
    let (status, json, _) = parsed(json);
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    assert_between(&json, "survives_s", 3.2, 4.2);
    for trial in json["trials"].as_array().unwrap() {
        assert!(trial["result"] == "answered" && trial["after_ms"].is_u64(), "{trial}");
    }
    // Another server does not know the protocol.
    for habit in [
        |stream: TcpStream| drop(read_all(&stream)),
        |mut stream: TcpStream| {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
            drop(read_all(&stream));
        },
    ] {
        let (status, out, err) = outcome(ka().args(["measure", "--from-server", &server(habit)]));
        assert_eq!((status, out.as_str()), (2, ""), "{err}");
        assert!(err.contains("no ka measure --serve answers there"), "{err}");
    }
    let newer = server(|mut stream| {
        stream.write_all(b"ka-measure 2 error this server has \x1b[31mversion 2\n").unwrap();
        drop(read_all(&stream));
    });
    let (status, _, err) = outcome(ka().args(["measure", "--from-server", &newer]));
    assert_eq!(status, 2, "{err}");
    assert!(err.contains(r"is of another version: this server has \u{1b}[31mversion 2"), "{err}");
}

#[test]
fn a_server_that_reports_without_end_does_not_stop_a_signal() {
    let address = server(|mut stream| {
        let reports = "result 9 silent 5 -\n".repeat(5000);
        let mut written = stream.write_all(b"ka-measure 1 session 00000000000000ff\n");
        while written.is_ok() {
            written = stream.write_all(reports.as_bytes());
        }
    });
    let mut child = measure(&["--from", "1s", "--to", "4s", "--from-server", &address])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(2));
    // Without a limit, ka reads until no memory is left.
    let deadline = Instant::now() + Duration::from_secs(10);
    send(&child, libc::SIGINT);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let (status, json) = (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap());
    assert_eq!((status, json["verdict"].as_str()), (Some(1), Some("unclear")), "{json}");
}

/// A policy that keeps keepalive on would falsify each idle time.
#[test]
fn a_policy_that_keeps_keepalive_on_is_an_error() {
    let address = server(|stream| drop(read_all(&stream)));
    let path = ka();
    let mut run = ka();
    run.args(["run", "--via", "seccomp", "-d", "1", "--"]).arg(path.get_program());
    // ka overrides the shim, which is only a library.
    let mut preload = ka();
    preload.args(["run", "--via", "preload", "-d", "1", "--"]).arg(path.get_program());
    let [(status, out, err), json] = both(
        run.args(["measure", "--from", "2s", "--to", "2s", &address]),
        preload.args(["measure", "--json", "--from", "3s", "--to", "3s", &address]),
    );
    assert_eq!((status, out.as_str()), (2, ""), "{err}");
    assert!(err.contains("a policy keeps keepalive on"), "{err}");
    let (status, json, _) = parsed(json);
    assert_eq!((status, json["verdict"].as_str()), (0, Some("keeps")), "{json}");
    assert_between(&json, "survives_s", 3.0, 4.0);
}

#[test]
fn the_policy_names_the_same_shim_as_ka_plan() {
    let address = server(|stream| drop(read_all(&stream)));
    let folder = scratch("alone");
    let odd = scratch("with blank");
    for folder in [&folder, &odd] {
        fs::create_dir(folder).unwrap();
        copy_program(release().join("ka"), folder.join("ka"));
    }
    copy_program(shim(), odd.join("libka_preload.so"));
    let printed = |folder: &Path| {
        let args = ["measure", "--from", "3s", "--to", "3s", &address];
        stdout(bare(folder.join("ka")).args(args))
    };
    let plan = stdout(bare(folder.join("ka")).args(["plan", "--path", "3s"]));
    let shim = plan.lines().find_map(|line| line.trim().strip_prefix("LD_PRELOAD=")).unwrap();
    let shim = shim.split(' ').next().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let out = printed(&odd);
            assert!(
                out.contains("    # LD_PRELOAD cannot contain the path ") && !out.contains("LD_PRELOAD="),
                "{out}"
            );
        });
        let out = printed(&folder);
        assert!(out.contains(&format!("Environment=LD_PRELOAD={shim}\n")), "{shim}: {out}");
    });
}

#[test]
fn json_has_the_described_keys() {
    let [keys] = described("ka-measure.1");
    let wanted = "target address verdict how survives_s fails_s server_closed_s policy policy.idle policy.intvl \
                  policy.cnt took_s trials trials[].idle_s trials[].result trials[].after_ms";
    let mut wanted: Vec<_> = wanted.split_whitespace().collect();
    wanted.sort_unstable();
    assert_eq!(keys.keys().collect::<Vec<_>>(), wanted);
    let keeps = server(|stream| drop(read_all(&stream)));
    let closes = server(drop);
    let outputs =
        [&keeps, &closes].map(|address| measured(&mut measure(&["--from", "1s", "--to", "3s", address])).1);
    assert_described(&keys, &outputs);
}
