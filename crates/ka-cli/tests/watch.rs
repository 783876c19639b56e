//! Tests that `ka watch` reports each connection that ends abnormally, with the owner and the cause, and no other. The
//! kernel is asked by SO_ERROR, by its counters, and by nft rules that make the cause.

mod command;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::json::{assert_described, described};
use command::{as_nobody, bare, counter, ka, outcome};
use ka_test::child::{Running, start_service, succeed};
use ka_test::kernel::has_ipv6;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root};
use ka_test::path::{PublicFolder, scratch};
use ka_test::process::{raise_descriptor_limit, signal_child};
use ka_test::socket::{RTO_MAX, has_rto_max, set_option};
use ka_test::wait::{eventually, eventually_within};
use serde_json::Value;
use socket2::SockRef;

/// A running `ka watch --json`.
struct Watching {
    child: Child,
    /// The output. `None` after the test has closed it.
    lines: Option<Lines<ChildStdout>>,
}

impl Watching {
    /// Starts ka, and waits until it watches.
    fn start(command: &mut Command) -> Self {
        let mut child = start_service(command);
        let lines = child.stdout.take().map(|output| Lines::new("ka watch", output));
        Self { child, lines }
    }

    /// Starts `ka watch --json` with these arguments.
    fn json(args: &[&str]) -> Self {
        Self::start(ka().args(["watch", "--json"]).args(args))
    }

    /// Returns the next line, which must come.
    #[track_caller]
    fn line(&mut self) -> String {
        self.lines.as_mut().unwrap().expect("an event")
    }

    /// Returns the next event, which must come.
    #[track_caller]
    fn event(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Ends ka by a signal, and returns its other events and its standard error. Its exit status must be 0.
    #[track_caller]
    fn end(mut self, signal: i32) -> (Vec<Value>, String) {
        signal_child(&self.child, signal);
        let rest = self.lines.take().unwrap().rest();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{err}");
        (rest.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), err)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listener, and connections to it.
struct Server(TcpListener);

impl Server {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Returns both ends of a new connection, the client first.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.0.local_addr().unwrap()).unwrap();
        (client, self.0.accept().unwrap().0)
    }
}

fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

/// Closes a socket so that its peer gets a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Turns keepalive on.
fn keepalive(stream: &TcpStream, idle: i32, intvl: i32, cnt: i32) {
    for (name, value) in [(libc::TCP_KEEPIDLE, idle), (libc::TCP_KEEPINTVL, intvl), (libc::TCP_KEEPCNT, cnt)]
    {
        set_option(stream.as_raw_fd(), libc::IPPROTO_TCP, name, value);
    }
    set_option(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
}

fn user_timeout(stream: &TcpStream, milliseconds: i32) {
    set_option(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, milliseconds);
}

/// Adds a rule of nft(8) in this network namespace.
fn rule(hook: &str, rule: &str) {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = nft.spawn().unwrap();
    let chain = format!(
        "add table ip t\nadd chain ip t {hook} {{ type filter hook {hook} priority 0 ; }}\nadd rule ip t {hook} {rule}\n"
    );
    nft.stdin.take().unwrap().write_all(chain.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{chain}");
}

/// Connections that have ended in different ways.
struct EndedConnections {
    /// The name of each abnormal end, the client's socket, and the error that the kernel must have set.
    clients: Vec<(&'static str, TcpStream, i32)>,
    /// The ports of clients that have ended normally.
    normal: Vec<u16>,
    /// The socket of one of these clients. The client had shut down both directions before a reset arrived.
    shut_down: TcpStream,
    /// The servers' ends of the others.
    servers: Vec<TcpStream>,
    port: u16,
}

const CASES: [&str; 9] = [
    "keepalive",
    "idle user timeout",
    "automatic user timeout",
    "data user timeout",
    "retransmission",
    "retransmission with rto_max",
    "middlebox",
    "reset",
    "destroyed",
];

/// Makes connections end in all ways. Returns when all have ended.
fn end_in_all_ways(server: &Server) -> EndedConnections {
    std::fs::write("/proc/sys/net/ipv4/tcp_retries2", "3").unwrap();
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    let mut connect = |name| {
        let (client, server_end) = server.connect();
        servers.push((name, server_end));
        client
    };
    for name in CASES {
        if name.ends_with("rto_max") && !has_rto_max() {
            continue;
        }
        let client = connect(name);
        match name {
            "keepalive" => keepalive(&client, 1, 1, 2),
            "idle user timeout" => {
                keepalive(&client, 1, 1, 5);
                user_timeout(&client, 2500);
            }
            "automatic user timeout" => {
                keepalive(&client, 1, 1, 2);
                user_timeout(&client, 3000);
            }
            "data user timeout" => user_timeout(&client, 2000),
            "retransmission with rto_max" => {
                set_option(client.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, 1000);
            }
            _ => {}
        }
        let errno = match name {
            "middlebox" | "reset" => libc::ECONNRESET,
            "destroyed" => libc::ECONNABORTED,
            _ => libc::ETIMEDOUT,
        };
        clients.push((name, client, errno));
    }
    let unreachable = connect("unreachable");
    clients.push(("unreachable", unreachable, libc::EHOSTUNREACH));

    // These end normally.
    let mut normal = Vec::new();
    let mut ends = |name| {
        let client = connect(name);
        normal.push(port(&client));
        client
    };
    drop(ends("closed by the client"));
    let both = ends("shut down by both");
    both.shutdown(Shutdown::Write).unwrap();
    reset(ends("aborted by the client"));
    let shut_down = ends("shut down by the client, and then reset");
    let unread = ends("closed with data unread");
    let killed = ends("killed");
    // Both ends of a connection that its process has until it is killed.
    let mut child = Command::new("python3");
    child.args(["-c", "import os; os.read(0, 1)"]).stdin(OwnedFd::from(killed));
    let mut child = child.spawn().unwrap();
    signal_child(&child, libc::SIGKILL);
    child.wait().unwrap();
    let (mut left, mut of_shut_down) = (Vec::new(), None);
    for (name, mut server_end) in servers {
        match name {
            "reset" => reset(server_end),
            "shut down by the client, and then reset" => of_shut_down = Some(server_end),
            "closed with data unread" => {
                server_end.write_all(b"data").unwrap();
                unread.peek(&mut [0]).unwrap();
                left.push(server_end);
            }
            "shut down by both" => drop(server_end),
            _ => left.push(server_end),
        }
    }
    assert_eq!((&both).read(&mut [0]).unwrap(), 0);
    unread.set_nonblocking(true).unwrap();
    drop(unread);
    // ka has learned the owners by then, also on a busy machine.
    thread::sleep(Duration::from_secs(8));
    shut_down.shutdown(Shutdown::Both).unwrap();
    reset(of_shut_down.unwrap());
    let is_reset = || ka_reach::socket(&shut_down).has_error();
    eventually("the socket that was shut down is reset", is_reset);
    for (name, client, _) in &mut clients {
        let own = port(client);
        match *name {
            "middlebox" => rule("output", &format!("tcp sport {own} reject with tcp reset")),
            "unreachable" => {
                rule("output", &format!("tcp sport {own} reject with icmp type host-unreachable"));
            }
            "destroyed" => drop(succeed(Command::new("ss").args(["-K", "sport", "=", &own.to_string()]))),
            "reset" => {}
            _ => rule("input", &format!("tcp sport {} tcp dport {own} drop", server.port())),
        }
        if ["middlebox", "unreachable", "data user timeout"].contains(name) || name.starts_with("retr") {
            client.write_all(b"data").unwrap();
        }
    }
    for (name, client, _) in &clients {
        // The error stays pending.
        let has_error = || ka_reach::socket(client).has_error();
        eventually_within(Duration::from_secs(40), &format!("{name}: an error on the socket"), has_error);
    }
    EndedConnections { clients, normal, shut_down, servers: left, port: server.port() }
}

impl EndedConnections {
    /// Returns the causes in the events by the cases' names, and checks what all events have in common.
    fn causes(&self, events: &[Value]) -> BTreeMap<&'static str, String> {
        let mut causes = BTreeMap::new();
        for event in events {
            assert_eq!(event["event"], "died", "{event}");
            let local: u16 =
                event["local"].as_str().unwrap().strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
            assert!(!self.normal.contains(&local), "a normal end is no event: {event}");
            let cause = event["cause"].as_str().unwrap().to_owned();
            if local == self.port {
                // The other end of a connection that its client has aborted, or that ss(8) has destroyed.
                assert_eq!(cause, "reset", "{event}");
                continue;
            }
            assert_eq!(event["pid"], std::process::id(), "{event}");
            assert_eq!(event["peer"], format!("127.0.0.1:{}", self.port), "{event}");
            let (name, ..) = self.clients.iter().find(|(_, client, _)| port(client) == local).unwrap();
            assert_eq!(causes.insert(*name, cause), None, "{name} is reported twice");
        }
        causes
    }

    /// Checks that each client has the error that its case is about.
    fn check_errors(&self) {
        for (name, client, errno) in &self.clients {
            let error = client.take_error().unwrap().and_then(|error| error.raw_os_error());
            assert_eq!(error, Some(*errno), "{name}");
        }
    }

    /// Returns the causes that a source must report.
    fn expected(&self, other: &[(&'static str, &'static str)]) -> BTreeMap<&'static str, String> {
        let cause = |name: &'static str| {
            let other = other.iter().find(|(of, _)| *of == name).map(|(_, cause)| *cause);
            other.unwrap_or(match name {
                "keepalive" | "automatic user timeout" => "keepalive",
                "idle user timeout" | "data user timeout" => "user-timeout",
                "retransmission" | "retransmission with rto_max" => "retransmission",
                "middlebox" | "reset" => "reset",
                name => name,
            })
        };
        self.clients.iter().map(|(name, ..)| (*name, cause(name).to_owned())).collect()
    }
}

/// Returns whether the test runs as root, who may change sysctls of its namespace, use nft(8) and load BPF programs.
fn is_allowed() -> bool {
    if !is_root() {
        skip("only root may watch by eBPF and change the sysctls");
    }
    is_root()
}

#[test]
fn ebpf_reports_the_exact_cause_of_each_end() {
    if !is_allowed() || !in_own_network_namespace("ebpf_reports_the_exact_cause_of_each_end") {
        return;
    }
    let mut watching = Watching::json(&["--source", "ebpf"]);
    let (server, timeouts) = (Server::new(), counter("TcpExtTCPAbortOnTimeout"));
    let ended = end_in_all_ways(&server);
    let timeouts = counter("TcpExtTCPAbortOnTimeout") - timeouts;
    let mut events: Vec<_> = ended.clients.iter().map(|_| watching.event()).collect();
    // After the next lists, ka must not report more ends.
    thread::sleep(Duration::from_secs(5));
    let (rest, err) = watching.end(libc::SIGTERM);
    events.extend(rest);
    // In some virtual machines, the kernel runs no BPF program in an interrupt that arrives while the host's agent runs.
    // ka must print a message for each end that was not recorded.
    let is_unrecorded = |event: &&Value| err.contains(&unrecorded(event));
    let examined: Vec<_> = events.iter().filter(is_unrecorded).cloned().collect();
    assert_eq!(err.lines().count(), examined.len(), "{err}");
    let examined = ended.causes(&examined);
    let other = [("destroyed", "reset"), ("unreachable", "retransmission")];
    let other: Vec<_> = other.into_iter().filter(|(name, _)| examined.contains_key(name)).collect();
    assert_eq!(ended.causes(&events), ended.expected(&other));
    ended.check_errors();
    let resets = ["reset", "destroyed"];
    let timed_out = events.iter().filter(|event| !resets.contains(&event["cause"].as_str().unwrap()));
    assert_eq!(timed_out.count(), usize::try_from(timeouts).unwrap(), "TCPAbortOnTimeout");
    let by_cause = |cause: &str| events.iter().find(|event| event["cause"] == cause).unwrap();
    let dead = by_cause("keepalive");
    let values = ["keepalive", "idle", "intvl", "cnt", "unanswered_probes"].map(|key| dead[key].to_string());
    assert_eq!(values, ["true", "1", "1", "2", "2"], "{dead}");
    // Two probes after a second of idleness, and a second for the answer to the last.
    assert!((2900..20_000).contains(&dead["silent_ms"].as_u64().unwrap()), "{dead}");
    let unacknowledged = by_cause("retransmission");
    assert_eq!(unacknowledged["keepalive"], false);
    assert!(unacknowledged["silent_ms"].as_u64().unwrap() >= 3000, "{unacknowledged}");
}

/// Without eBPF, a destroyed connection looks like one that was reset. The client of the case "reset" ended before ka
/// could learn its owner.
#[test]
fn destroyed_sockets_are_reported_without_ebpf() {
    if !is_allowed() || !in_own_network_namespace("destroyed_sockets_are_reported_without_ebpf") {
        return;
    }
    without_ebpf("diag");
}

#[test]
fn sockets_that_programs_keep_are_examined() {
    if !is_allowed() || !in_own_network_namespace("sockets_that_programs_keep_are_examined") {
        return;
    }
    without_ebpf("poll");
}

fn without_ebpf(source: &str) {
    let mut watching = Watching::json(&["--source", source]);
    let server = Server::new();
    let ended = end_in_all_ways(&server);
    let mut expected = ended.expected(&[("destroyed", "reset"), ("unreachable", "retransmission")]);
    // It ended before ka could learn its owner.
    expected.remove("reset");
    let mut causes = BTreeMap::new();
    let mut events = Vec::new();
    let end = Instant::now() + Duration::from_secs(30);
    while causes.len() < expected.len() && Instant::now() < end {
        let event = watching.event();
        // Only eBPF sees that the client had shut down its socket.
        let is_shut_down = event["local"] == format!("127.0.0.1:{}", port(&ended.shut_down));
        if event["pid"].is_number() && !is_shut_down {
            events.push(event);
        }
        causes = ended.causes(&events);
        causes.remove("reset");
    }
    assert_eq!(causes, expected);
    ended.check_errors();
    drop(ended.servers);
    let (_, err) = watching.end(libc::SIGINT);
    assert!(err.contains("reports unreachable as retransmission"), "{err}");
}

/// The program closes each socket as soon as it gets the error, so ka cannot examine the socket. The cause comes from
/// the kernel's report of the destroyed socket.
#[test]
fn sockets_that_programs_close_at_once_are_reported_without_ebpf() {
    if !is_allowed()
        || !in_own_network_namespace("sockets_that_programs_close_at_once_are_reported_without_ebpf")
    {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/tcp_retries2", "3").unwrap();
    let mut watching = Watching::json(&["--source", "diag"]);
    let server = Server::new();
    let ends =
        ["keepalive", "user-timeout", "retransmission", "reset"].map(|cause| (cause, server.connect()));
    keepalive(&ends[0].1.0, 1, 1, 2);
    user_timeout(&ends[1].1.0, 2000);
    // ka has learned the owners and the settings by then.
    thread::sleep(Duration::from_secs(8));
    let mut expected = BTreeMap::new();
    let mut servers = Vec::new();
    for (cause, (mut client, server_end)) in ends {
        expected.insert(client.local_addr().unwrap().to_string(), cause.to_owned());
        if cause == "reset" {
            reset(server_end);
        } else {
            rule("input", &format!("tcp sport {} tcp dport {} drop", server.port(), port(&client)));
            servers.push(server_end);
        }
        if ["user-timeout", "retransmission"].contains(&cause) {
            client.write_all(b"data").unwrap();
        }
        thread::spawn(move || client.read(&mut [0]).unwrap_err());
    }
    let mut causes = BTreeMap::new();
    while causes.len() < expected.len() {
        let event = watching.event();
        assert_eq!(event["pid"], std::process::id(), "{event}");
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        // The kernel resets the server's end of a connection that timed out.
        if text("local").ends_with(&format!(":{}", server.port())) {
            continue;
        }
        if event["cause"] == "keepalive" {
            assert_eq!([&event["unanswered_probes"], &event["cnt"]], [2, 2], "{event}");
        }
        causes.insert(text("local"), text("cause"));
    }
    assert_eq!(causes, expected);
}

/// A program that resets a connection of its own when it reads a byte, and keeps the end that was reset.
const VICTIM: &str = "import socket, struct, sys
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
c = socket.create_connection(l.getsockname()); s, _ = l.accept()
print(c.getsockname()[1], flush=True)
sys.stdin.read(1)
s.setsockopt(1, 13, struct.pack('ii', 1, 0)); s.close()
sys.stdin.read()";

struct Victim {
    child: Child,
    port: u16,
}

impl Victim {
    /// Starts the program. `prefix` is a command that executes the words after it.
    fn start(prefix: &mut Command) -> Self {
        let mut child = prefix.arg(VICTIM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let port = Lines::new("the victim", child.stdout.take().unwrap()).expect("its port").parse().unwrap();
        Self { child, port }
    }

    fn reset(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python that every user may execute.
const PYTHON: &str = "/usr/bin/python3";

fn python() -> Command {
    let mut python = bare(PYTHON);
    python.arg("-c");
    python
}

/// Returns a command that starts Python in a new network namespace.
fn contained_python() -> Command {
    let mut unshare = bare("unshare");
    unshare.args(["--net", "sh", "-c", "ip link set lo up && exec python3 -c \"$1\"", "sh"]);
    unshare
}

#[test]
fn other_namespaces_are_watched_on_request() {
    if !is_allowed() || !in_own_network_namespace("other_namespaces_are_watched_on_request") {
        return;
    }
    let mut victims = [Victim::start(&mut contained_python()), Victim::start(&mut python())];
    let pids = victims.each_ref().map(|victim| victim.child.id());
    let [other, own] = pids.map(|pid| pid.to_string());
    let watch = |args: &[&str]| Watching::json(args);
    let mut all = watch(&["--netns", "all"]);
    let mut by_netns = watch(&["--netns", &other]);
    let mut by_pid = watch(&["--pid", &other]);
    let mut here = watch(&[]);
    let mut by_port = watch(&["--port", &victims[1].port.to_string()]);
    let wrong_port = watch(&["--port", "1"]);
    victims.iter_mut().for_each(Victim::reset);
    // Programs of other tests lose connections at the same time.
    let mut expected = pids.to_vec();
    while !expected.is_empty() {
        let event = all.event();
        expected.retain(|pid| event["pid"] != *pid);
    }
    for (watching, pid) in
        [(&mut by_netns, &other), (&mut by_pid, &other), (&mut here, &own), (&mut by_port, &own)]
    {
        let event = watching.event();
        assert_eq!(event["pid"].to_string(), *pid, "{event}");
    }
    assert_eq!(wrong_port.end(libc::SIGTERM), (vec![], String::new()));
    for watching in [by_netns, here] {
        assert_eq!(watching.end(libc::SIGTERM), (vec![], String::new()));
    }
    // With --pid, ka ends when the process has ended.
    drop(victims);
    eventually("ka has ended", || by_pid.child.try_wait().unwrap().is_some());
    assert_eq!(by_pid.child.wait().unwrap().code(), Some(0));
}

#[test]
fn ends_over_ipv6_have_their_addresses() {
    if !is_allowed() || !in_own_network_namespace("ends_over_ipv6_have_their_addresses") {
        return;
    }
    if !has_ipv6() {
        skip("this machine has no IPv6");
        return;
    }
    for source in ["ebpf", "diag"] {
        let mut watching = Watching::json(&["--source", source]);
        let server = Server(TcpListener::bind("[::1]:0").unwrap());
        let (client, server_end) = server.connect();
        let ends = [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().to_string());
        // ka has learned the owner by then.
        thread::sleep(Duration::from_secs(3));
        reset(server_end);
        let event = watching.event();
        assert_eq!([&event["local"], &event["peer"]], [ends[0].as_str(), ends[1].as_str()], "{event}");
        assert_eq!(
            (&event["cause"], &event["pid"]),
            (&"reset".into(), &std::process::id().into()),
            "{event}"
        );
    }
}

/// The program closes its socket as soon as it is reset, often before ka could learn whose it is.
#[test]
fn an_unknown_owner_is_null_and_never_another_process() {
    if !is_allowed() || !in_own_network_namespace("an_unknown_owner_is_null_and_never_another_process") {
        return;
    }
    let mut watching = Watching::json(&[]);
    let server = Server::new();
    for _ in 0..50 {
        let (mut client, server_end) = server.connect();
        reset(server_end);
        assert_eq!(client.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    }
    for _ in 0..50 {
        let event = watching.event();
        assert_eq!(event["cause"], "reset");
        assert!(event["pid"].is_null() || event["pid"] == std::process::id(), "{event}");
        assert_eq!(event["pid"].is_null(), event["comm"].is_null(), "{event}");
    }
}

#[test]
fn ordinary_users_watch_their_own_processes() {
    if !is_allowed() || !in_own_network_namespace("ordinary_users_watch_their_own_processes") {
        return;
    }
    let folder = PublicFolder::new("watch");
    let program = folder.join("ka");
    std::fs::copy(ka().get_program(), &program).unwrap();
    let mut victim = Victim::start(&mut as_nobody(bare(PYTHON).arg("-c")));
    let mut command = bare(&program);
    let mut watching = Watching::start(as_nobody(command.args(["watch", "--json"])).env_remove("KA_POLICY"));
    // ka learns the owner from the first list.
    thread::sleep(Duration::from_secs(3));
    victim.reset();
    let event = watching.event();
    assert_eq!((&event["pid"], &event["cause"]), (&victim.child.id().into(), &"reset".into()), "{event}");
    let (rest, err) = watching.end(libc::SIGTERM);
    assert!(rest.is_empty(), "{rest:?}");
    assert!(err.contains("; it can examine only the sockets of your own processes"), "{err}");
    assert!(err.contains("ebpf: needs CAP_BPF") && err.lines().count() == 1, "{err}");
}

/// Each of the two ring buffers holds 5,957 records.
#[test]
fn ends_that_the_kernel_could_not_record_are_counted() {
    const COUNT: usize = 6500;
    if !is_allowed() || !in_own_network_namespace("ends_that_the_kernel_could_not_record_are_counted") {
        return;
    }
    if raise_descriptor_limit() < 2 * COUNT + 100 {
        skip("needs 13,100 descriptors");
        return;
    }
    let mut watching = Watching::json(&[]);
    let server = Server::new();
    let (clients, servers): (Vec<_>, Vec<_>) = (0..COUNT).map(|_| server.connect()).unzip();
    // ka has learned the owners by then.
    thread::sleep(Duration::from_secs(5));
    signal_child(&watching.child, libc::SIGSTOP);
    servers.into_iter().for_each(reset);
    signal_child(&watching.child, libc::SIGCONT);
    let (mut died, mut missed) = (0, 0);
    while died + missed < COUNT {
        let event = watching.event();
        match event["event"].as_str().unwrap() {
            "died" => died += 1,
            "missed" => missed += usize::try_from(event["count"].as_u64().unwrap()).unwrap(),
            other => panic!("{other}"),
        }
    }
    assert_eq!(died + missed, COUNT);
    assert!(missed > 0 && died > 5000, "{died} {missed}");
    // After the next lists, ka must not report an end that it has counted as missed.
    thread::sleep(Duration::from_secs(5));
    let (rest, err) = watching.end(libc::SIGTERM);
    assert!(rest.is_empty(), "{rest:?}");
    assert!(err.contains("reports missed: the kernel dropped them"), "{err}");
    drop(clients);
}

/// Returns the message that ka prints about an end that the kernel has not recorded.
fn unrecorded(event: &Value) -> String {
    let local = event["local"].as_str().unwrap();
    format!(
        "eBPF has no record of the end of {local}: its time and cause are those that --source poll reports"
    )
}

/// strace replaces the two calls that attach the BPF programs, and lets them succeed. So the kernel records no end.
#[test]
fn an_end_without_a_record_is_found_if_the_program_keeps_the_socket() {
    const NAME: &str = "an_end_without_a_record_is_found_if_the_program_keeps_the_socket";
    if !is_allowed() || !in_own_network_namespace(NAME) {
        return;
    }
    let log = scratch("watch-strace");
    let start = |injection: &[&str]| {
        let mut strace = bare("strace");
        strace.args(["-D", "-e", "trace=bpf", "-o"]).arg(&log).args(injection);
        Watching::start(strace.arg(ka().get_program()).args(["watch", "--json", "--source", "ebpf"]))
    };
    let attaching = || -> Vec<usize> {
        let calls = std::fs::read_to_string(&log).unwrap();
        let calls = calls.lines().zip(1..).filter(|(call, _)| call.contains("BPF_RAW_TRACEPOINT_OPEN"));
        calls.map(|(call, number)| if call.contains("(INJECTED)") { 0 } else { number }).collect()
    };
    drop(start(&[]));
    let [first, second] = *attaching() else { panic!("ka attaches two programs") };
    let calls = format!("inject=bpf:retval=0:when={first}..{second}+{}", second - first);
    let mut victim = Victim::start(&mut python());
    let mut watching = start(&["-e", &calls]);
    assert_eq!(attaching(), [0, 0]);
    // ka learns the owner from the first list.
    thread::sleep(Duration::from_secs(3));
    victim.reset();
    let event = watching.event();
    assert_eq!((&event["pid"], &event["cause"]), (&victim.child.id().into(), &"reset".into()), "{event}");
    assert_eq!(event["local"], format!("127.0.0.1:{}", victim.port), "{event}");
    // After three more lists, ka must not report the end again.
    thread::sleep(Duration::from_secs(4));
    let (rest, err) = watching.end(libc::SIGTERM);
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(err, format!("ka: watch: {}\n", unrecorded(&event)));
    std::fs::remove_file(log).unwrap();
}

/// 2: CAP_DAC_READ_SEARCH, 19: CAP_SYS_PTRACE, 39: CAP_BPF
#[test]
fn ka_keeps_only_the_capabilities_that_it_needs() {
    if !is_allowed() || !in_own_network_namespace("ka_keeps_only_the_capabilities_that_it_needs") {
        return;
    }
    let watching = Watching::json(&[]);
    let path = format!("/proc/{}/status", watching.child.id());
    let needed: u64 = 1 << 2 | 1 << 19 | 1 << 39;
    eventually("ka has dropped its other capabilities", || {
        let status = std::fs::read_to_string(&path).unwrap();
        let sets = ["CapPrm:", "CapEff:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        });
        sets == [needed; 2] && status.contains("NoNewPrivs:\t1")
    });
}

/// bench/watch.py measures 50,000 sockets.
#[test]
fn watching_idle_connections_costs_little() {
    if !is_allowed() || !in_own_network_namespace("watching_idle_connections_costs_little") {
        return;
    }
    let server = Server::new();
    let connections: Vec<_> = (0..400).map(|_| server.connect()).collect();
    let watching = Watching::json(&[]);
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", watching.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum()
    };
    thread::sleep(Duration::from_secs(3));
    let before = ticks();
    thread::sleep(Duration::from_secs(10));
    // A tick is 10 ms: at most 3 % of a core on a busy machine.
    assert!(ticks() - before <= 30, "{} ticks in 10 s", ticks() - before);
    drop(connections);
    drop(watching);
}

#[test]
fn process_names_are_escaped_in_sentences() {
    if !is_allowed() || !in_own_network_namespace("process_names_are_escaped_in_sentences") {
        return;
    }
    let mut watching = Watching::start(ka().arg("watch"));
    let script = format!("open('/proc/self/comm', 'w').write('a\\x1b[2J\\nb')\n{VICTIM}");
    let mut command = bare("python3");
    let mut child =
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    Lines::new("the victim", child.stdout.take().unwrap()).expect("its port");
    let mut victim = Victim { child, port: 0 };
    victim.reset();
    let line = watching.line();
    let (time, sentence) = line.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 24, "{line}");
    let owner = format!("a\\u{{1b}}[2J\\nb/{} lost 127.0.0.1:", victim.child.id());
    assert!(sentence.starts_with(&owner), "{line}");
    assert!(sentence.ends_with(": reset by the peer or a middlebox"), "{line}");
}

#[test]
fn json_has_the_keys_of_the_manual_page() {
    if !is_allowed() || !in_own_network_namespace("json_has_the_keys_of_the_manual_page") {
        return;
    }
    let [died, _missed] = described("ka-watch.1");
    let mut watching = Watching::json(&[]);
    let mut victim = Victim::start(&mut python());
    victim.reset();
    let event = watching.event();
    let keys: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        "cause cnt comm event idle intvl keepalive local peer pid silent_ms time unanswered_probes";
    assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
    assert_described(&died, &[event]);
}

#[test]
fn a_closed_output_ends_ka_quietly() {
    if !is_allowed() || !in_own_network_namespace("a_closed_output_ends_ka_quietly") {
        return;
    }
    let mut watching = Watching::json(&[]);
    drop(watching.lines.take());
    eventually("ka has ended", || watching.child.try_wait().unwrap().is_some());
    let mut err = String::new();
    watching.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((watching.child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn wrong_arguments_are_rejected() {
    let none = Running::start(&mut Command::new("true"));
    let pid = none.0.id().to_string();
    drop(none);
    for (args, words) in [
        (&["--pid", "x"][..], "must be a PID"),
        (&["--pid", &pid], "there is no such process"),
        (&["--port", "0"], "must be a port number"),
        (&["--source", "x"], "possible values: ebpf, diag, poll"),
        (&["--netns", "/nowhere"], "network namespace /nowhere: No such file or directory"),
        (&["1234"], "unexpected argument"),
    ] {
        let (status, out, err) = outcome(ka().arg("watch").args(args));
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
}
