//! Tests that `ka watch --metrics` serves numbers that agree with the kernel's, in the formats that promtool(1)
//! accepts, and that no client can disturb it.

mod command;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::{counter, ka, outcome};
use ka_test::child::{stdout, succeed};
use ka_test::kernel::has_ipv6;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root};
use ka_test::path::root;
use ka_test::process::{children, is_running, raise_descriptor_limit, signal_child};
use ka_test::socket::set_option;
use ka_test::wait::{eventually, eventually_within};
use serde_json::Value;
use socket2::SockRef;

/// The header Accept of a client that prefers OpenMetrics.
const OPEN_METRICS: &str = "Accept: application/openmetrics-text\r\n";

/// A running `ka watch --metrics`.
struct Served {
    child: Child,
    err: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Served {
    /// Starts ka with these arguments after --metrics, and waits until it serves.
    fn start(args: &[&str]) -> Self {
        let mut command = ka();
        command.args(["watch", "--metrics"]).args(args);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        let address = loop {
            let size = err.read_line(&mut text).unwrap();
            assert!(size > 0, "ka does not serve: {text}");
            if let Some((_, rest)) = text.split_once("http://") {
                break rest.strip_suffix("/metrics\n").unwrap().parse().unwrap();
            }
        };
        Self { child, err, address }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect_timeout(&self.address, Duration::from_secs(20)).unwrap()
    }

    /// Sends a request, and returns the whole response.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    /// Returns the metrics, after a request with these header lines.
    fn metrics(&self, headers: &str) -> String {
        let response = self.ask(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response:?}"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        body.to_owned()
    }

    /// Returns the value of a sample, such as `ka_deaths_total{cause="reset"}`.
    #[track_caller]
    fn value(&self, sample: &str) -> f64 {
        let text = self.metrics("");
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{sample} is not in {text}")).parse().unwrap()
    }

    /// Waits until samples have these values.
    #[track_caller]
    fn await_values(&self, samples: &[(&str, f64)]) {
        for (sample, value) in samples {
            eventually_within(Duration::from_secs(40), &format!("{sample} is {value}"), || {
                (self.value(sample) - value).abs() < 0.5
            });
        }
    }

    /// Returns the PID of the program that serves.
    fn server(&self) -> i32 {
        let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let pid = i32::try_from(self.child.id()).unwrap();
        children(pid).into_iter().find(|pid| comm(pid) == "ka-metrics\n").unwrap()
    }

    /// Waits until ka has ended, and returns its exit status, its standard output and the rest of its standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        eventually("ka has ended", || self.child.try_wait().unwrap().is_some());
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.err.read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns both ends of new connections to a listener.
fn connections<const N: usize>(listener: &TcpListener) -> [(TcpStream, TcpStream); N] {
    [(); N]
        .map(|()| (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0))
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Turns keepalive on.
fn keepalive(stream: &TcpStream, idle: i32) {
    let values = [(libc::TCP_KEEPIDLE, idle), (libc::TCP_KEEPINTVL, 1), (libc::TCP_KEEPCNT, 2)];
    for (name, value) in values {
        set_option(stream.as_raw_fd(), libc::IPPROTO_TCP, name, value);
    }
    set_option(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
}

/// Closes a socket so that its peer gets a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Returns promtool(1), or `None` and prints why the test is skipped.
fn promtool() -> Option<Command> {
    let is_there =
        Command::new("promtool").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        skip("promtool is not installed: it is in Debian's package prometheus");
    }
    is_there.then(|| Command::new("promtool"))
}

#[test]
fn connections_and_probes_agree_with_the_kernel() {
    if !in_own_network_namespace("connections_and_probes_agree_with_the_kernel") {
        return;
    }
    let listener = listener();
    let ends = connections::<5>(&listener);
    keepalive(&ends[0].0, 1);
    keepalive(&ends[1].0, 3600);
    set_option(ends[2].0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    // Unacknowledged data: the peer's window is closed.
    keepalive(&ends[3].0, 600);
    ends[3].0.set_nonblocking(true).unwrap();
    while (&ends[3].0).write(&[0; 16384]).is_ok() {}
    let served = Served::start(&["0"]);
    let rows = stdout(Command::new("ss").args(["-tnoH", "state", "established"]));
    let on = rows.lines().filter(|row| row.contains("timer:(keepalive")).count();
    let off = rows.lines().filter(|row| !row.contains("timer:")).count();
    assert_eq!((on, off), (3, 6), "{rows}");
    served.await_values(&[
        ("ka_connections{keepalive=\"on\"}", 4.0),
        ("ka_connections{keepalive=\"off\"}", 6.0),
        ("ka_connections_at_risk{risk=\"off\"}", 6.0),
        // One has an idle time of 3600 s, the other one the default of the kernel, 7200 s.
        ("ka_connections_at_risk{risk=\"slow\"}", 3.0),
        ("ka_connections_at_risk{risk=\"suspended\"}", 1.0),
        ("ka_connections_at_risk{risk=\"unanswered\"}", 0.0),
    ]);
    let probes = || f64::from(counter("TcpExtTCPKeepAlive"));
    let before = probes();
    eventually("the kernel has sent more probes", || probes() > before + 1.0);
    // Lists are at least a second apart.
    eventually("ka has counted these probes", || served.value("ka_keepalive_probes_total") > before);
    let counted = served.value("ka_keepalive_probes_total");
    assert!(counted <= probes(), "{counted}");
    // The settings of connections are read again.
    keepalive(&ends[1].0, 60);
    keepalive(&ends[2].0, 60);
    keepalive(&ends[4].0, 60);
    served.await_values(&[
        ("ka_connections{keepalive=\"off\"}", 5.0),
        ("ka_connections_at_risk{risk=\"slow\"}", 1.0),
    ]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - served.value("ka_last_list_timestamp_seconds")).abs() < 30.0);
    assert!(served.value("ka_last_list_duration_seconds") < 10.0);
}

#[test]
fn deaths_are_counted_by_cause() {
    if !is_root() {
        skip("only root may watch by eBPF and use nft(8)");
        return;
    }
    if !in_own_network_namespace("deaths_are_counted_by_cause") {
        return;
    }
    let listener = listener();
    let served = Served::start(&["0", "--json"]);
    served.await_values(&[
        ("ka_deaths_total{cause=\"keepalive\"}", 0.0),
        ("ka_deaths_total{cause=\"user-timeout\"}", 0.0),
        ("ka_deaths_total{cause=\"retransmission\"}", 0.0),
        ("ka_deaths_total{cause=\"reset\"}", 0.0),
        ("ka_deaths_total{cause=\"unreachable\"}", 0.0),
        ("ka_deaths_total{cause=\"destroyed\"}", 0.0),
        ("ka_missed_deaths_total{reason=\"dropped\"}", 0.0),
        ("ka_missed_deaths_total{reason=\"unclear\"}", 0.0),
    ]);
    let [first, second, third, normal, silent] = connections::<5>(&listener);
    for (client, server) in [first, second] {
        reset(server);
        drop(client);
    }
    drop(normal);
    let port = third.0.local_addr().unwrap().port();
    succeed(Command::new("ss").args(["-K", "sport", "=", &format!(":{port}")]));
    keepalive(&silent.0, 1);
    let port = silent.0.local_addr().unwrap().port();
    for words in [
        "add table ip t".to_owned(),
        "add chain ip t input { type filter hook input priority 0 ; }".to_owned(),
        format!("add rule ip t input tcp dport {port} drop"),
    ] {
        succeed(Command::new("nft").arg(&words));
    }
    served.await_values(&[
        ("ka_deaths_total{cause=\"keepalive\"}", 1.0),
        ("ka_deaths_total{cause=\"destroyed\"}", 1.0),
        // The kernel resets the peers of the destroyed and of the silent connection too.
        ("ka_deaths_total{cause=\"reset\"}", 4.0),
    ]);
    signal_child(&served.child, libc::SIGINT);
    assert_eq!(served.printed_events(), [("destroyed", 1), ("keepalive", 1), ("reset", 4)]);
}

impl Served {
    /// Waits for the end of ka, and counts the events that it has printed, by cause.
    fn printed_events(self) -> Vec<(&'static str, usize)> {
        let (status, out, err) = self.end();
        assert_eq!(status, Some(0), "{err}");
        let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let count = |cause| (cause, events.iter().filter(|event| event["cause"] == cause).count());
        let counts = ["destroyed", "keepalive", "reset"].map(count).to_vec();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<usize>(), events.len(), "{out}");
        counts
    }
}

#[test]
fn hostile_clients_do_no_harm() {
    if !in_own_network_namespace("hostile_clients_do_no_harm") {
        return;
    }
    assert!(raise_descriptor_limit() >= 2048);
    let served = Served::start(&["0", "--json"]);
    let text = served.metrics("");
    assert!(
        ["ebpf", "diag"]
            .iter()
            .any(|source| text.contains(&format!("ka_watch_info{{source=\"{source}\"}} 1")))
    );
    let server = served.server();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    // Clients that send nothing. They are more than the server serves at a time, and than the kernel's queue holds.
    let address = served.address;
    let silent = thread::spawn(move || {
        (0..1000)
            .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(20)).ok())
            .collect::<Vec<_>>()
    });
    // Clients that send a byte now and then.
    let slow: Vec<_> = (0..50).map(|_| served.connect()).collect();
    for client in &slow {
        let _ = (&*client).write_all(b"G");
    }
    // Clients that never read, that send without end, garbage, half a request, and that go away.
    let unread: Vec<_> = (0..50).map(|_| served.connect()).collect();
    for client in &unread {
        let _ = (&*client).write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    }
    let endless = thread::spawn(move || {
        let mut client = TcpStream::connect(address).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) && client.write_all(&[b'a'; 16384]).is_ok() {}
        start.elapsed()
    });
    for bytes in [&[0; 100][..], b"\x16\x03\x01\x02\x00\x01", b"GET /metrics HTTP/1.1\r\nHost", b"\r\n\r\n"] {
        let mut client = served.connect();
        let _ = client.write_all(bytes);
        let _ = client.shutdown(Shutdown::Write);
        reset(client);
    }
    // Others are served at once, or after the oldest clients have been disconnected.
    for _ in 0..20 {
        let start = Instant::now();
        let text = served.ask_until_answered();
        assert!(text.contains("ka_deaths_total"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    let open = fs::read_dir(format!("/proc/{server}/fd")).unwrap().count();
    assert!(open <= 64 + 8, "{open} descriptors");
    let silent = silent.join().unwrap();
    assert!(endless.join().unwrap() < Duration::from_secs(25));
    let after = memory();
    assert!(after < before + 8192, "{before} KiB, then {after} KiB");
    // ka itself watches as before.
    let listener = listener();
    let [(client, other)] = connections(&listener);
    reset(other);
    drop(client);
    eventually("the death is counted", || served.value("ka_deaths_total{cause=\"reset\"}") >= 1.0);
    // Each client is disconnected after a few seconds.
    drop(silent);
    for client in slow.iter().chain(&unread) {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let end = (&*client).read_to_end(&mut rest);
        assert!(!matches!(end, Err(ref error) if error.kind() == std::io::ErrorKind::WouldBlock), "{end:?}");
    }
    let start = Instant::now();
    let _many: Vec<_> = (0..100).map(|_| served.connect()).collect();
    signal_child(&served.child, libc::SIGTERM);
    assert_eq!(served.end().0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

impl Served {
    /// Asks for the metrics, again if the server disconnects this client in favour of others.
    fn ask_until_answered(&self) -> String {
        let mut response = String::new();
        eventually("a response comes", || {
            let mut stream = self.connect();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let request = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
            request.and_then(|()| stream.read_to_string(&mut response)).is_ok_and(|size| size > 0)
        });
        response
    }
}

#[test]
fn only_get_and_head_of_the_metrics_are_answered() {
    if !in_own_network_namespace("only_get_and_head_of_the_metrics_are_answered") {
        return;
    }
    let served = Served::start(&["0"]);
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "405 Method Not Allowed"),
        ("DELETE / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("nonsense\r\n\r\n", "400 Bad Request"),
        (
            &format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(20_000)),
            "431 Request Header Fields Too Large",
        ),
    ] {
        let response = served.ask(request);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {response}");
        let has_metrics = response.contains("ka_connections");
        assert_eq!(has_metrics, status == "200 OK" && request.starts_with("GET"), "{request}: {response}");
    }
    let response = served.ask(&format!("GET /metrics HTTP/1.1\r\n{OPEN_METRICS}\r\n"));
    let kind = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(response.contains(kind) && response.ends_with("\n# EOF\n"), "{response}");
    assert!(response.contains("\n# TYPE ka_deaths counter\n"), "{response}");
    // A client may send its request in parts.
    let mut stream = served.connect();
    for part in ["GET /met", "rics HTTP/1.1\r", "\n\r", "\n"] {
        stream.write_all(part.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
}

#[test]
fn ka_listens_only_at_the_given_address() {
    if !in_own_network_namespace("ka_listens_only_at_the_given_address") {
        return;
    }
    let addresses =
        [("9500", "127.0.0.1:9500"), (":9501", "127.0.0.1:9501"), ("0.0.0.0:9502", "0.0.0.0:9502")];
    let ipv6 = [("[::1]:9503", "[::1]:9503")];
    let ipv6: &[_] = if has_ipv6() { &ipv6 } else { &[] };
    for (given, expected) in addresses.iter().chain(ipv6) {
        let served = Served::start(&[given]);
        assert_eq!(served.address.to_string(), *expected);
        let listeners = stdout(Command::new("ss").args(["-ltnH"]));
        let local: Vec<_> = listeners.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
        assert_eq!(local, [*expected]);
        signal_child(&served.child, libc::SIGTERM);
        let (status, out, err) = served.end();
        assert_eq!((status, out.as_str()), (Some(0), ""), "{err}");
        // The port is free again.
        TcpListener::bind(expected).unwrap();
    }
}

#[test]
fn addresses_that_cannot_be_used_are_explained() {
    let listener = listener();
    let used = listener.local_addr().unwrap().to_string();
    for (address, words) in [
        ("x", "not a port"),
        ("65536", "not a port"),
        ("*:9500", "0.0.0.0:9500 or [::]:9500"),
        ("::1:9500", "[::1]:9500"),
        ("example.com:9500", "an address and a port are expected"),
        (&used, "another program listens there"),
        ("192.0.2.1:9500", "this machine does not have the address"),
    ] {
        let (status, out, err) = outcome(ka().args(["watch", "--metrics", address]));
        assert_eq!((status, out.as_str()), (2, ""), "{address}: {err}");
        assert!(err.contains(words), "{address}: {err}");
    }
}

#[test]
fn the_server_has_no_privileges_and_ends_with_ka() {
    if !in_own_network_namespace("the_server_has_no_privileges_and_ends_with_ka") {
        return;
    }
    let mut served = Served::start(&["0"]);
    served.metrics("");
    let server = served.server();
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Threads:"), "1");
    if is_root() {
        assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Gid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Groups:"), "");
    }
    assert_eq!(fs::read(format!("/proc/{server}/environ")).unwrap_or_default(), b"");
    // SIGKILL gives ka no time to end the server.
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    eventually("the server has ended", || !is_running(server));
}

#[test]
fn ka_fails_if_the_server_is_killed() {
    if !in_own_network_namespace("ka_fails_if_the_server_is_killed") {
        return;
    }
    let served = Served::start(&["0"]);
    served.metrics("");
    ka_test::process::kill(served.server(), libc::SIGKILL);
    let (status, _, err) = served.end();
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("ka-metrics has ended (signal: 9 (SIGKILL))"), "{err}");
}

#[test]
fn promtool_accepts_the_metrics() {
    let Some(mut promtool) = promtool() else { return };
    if !in_own_network_namespace("promtool_accepts_the_metrics") {
        return;
    }
    let served = Served::start(&["0"]);
    let promtool = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(served.metrics("").as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.is_empty(), "{text}");
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let Some(mut command) = promtool() else { return };
    let folder = root().join("deploy/prometheus");
    succeed(command.args(["check", "rules"]).arg(folder.join("ka-rules.yml")));
    let mut command = Command::new("promtool");
    succeed(command.current_dir(&folder).args(["test", "rules", "ka-rules-test.yml"]));
}

#[test]
fn the_dashboard_and_the_rules_use_metrics_that_exist() {
    if !in_own_network_namespace("the_dashboard_and_the_rules_use_metrics_that_exist") {
        return;
    }
    let served = Served::start(&["0"]);
    let text = served.metrics("");
    let names: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let folder = root().join("deploy/prometheus");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let dashboard: Value = serde_json::from_str(&read(&folder.join("ka-dashboard.json"))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut used: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    for metric in
        ["ka_connections{", "ka_connections_at_risk{", "ka_deaths_total{", "ka_keepalive_probes_total{"]
    {
        assert!(used.iter().any(|expression| expression.contains(metric)), "no panel has {metric}");
    }
    let rules = read(&folder.join("ka-rules.yml"));
    used.extend(rules.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned));
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    for word in used.iter().flat_map(|text| text.split(|letter| !is_of_name(letter))) {
        assert!(!word.starts_with("ka_") || names.contains(&word), "{word} is not a metric: {names:?}");
    }
}
