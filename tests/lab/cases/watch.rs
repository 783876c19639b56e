//! `ka watch` must report the cause of each abnormal end. The lab makes the cause on a real path, and records the time.
//! tcpdump shows the silence of the peer and the number of unanswered probes.
//!
//! Each case has a `ka watch --json` for each source, all at the same time. Only eBPF tells all causes.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ka_test::artifact::release;
use ka_test::child::{remove_ka_variables, start_service, stdout, succeed};
use ka_test::kernel::has_ipv6;
use ka_test::log::skip;
use ka_test::namespace::is_root;
use ka_test::socket::{RTO_MAX, has_rto_max, keepalive_options, set_option};
use serde_json::Value;
use socket2::SockRef;

use crate::endpoint::{Policy, Program, late, plain_client, run_script, settle};
use crate::network::{Family, Machine, Network, PORT};
use crate::story::{Case, Needs, Story, now, sleep};
use crate::wire::{Flow, Kind};

/// The time in seconds after which ka has learned the owners of new connections, also on a busy machine.
const LEARNS: f64 = 8.0;
/// The time in seconds after the cause within which the connection must end, and ka must report it.
const REPORTS: f64 = 20.0;
/// The longest pause in seconds between two lists of connections. Lists of many namespaces and processes, such as those
/// of the whole lab, cost much, so ka makes them rarely.
const LONGEST_PAUSE: f64 = 60.0;
/// The idle time after which the load balancer drops a connection.
const FORGETS: Duration = Duration::from_secs(5);
/// The client's net.ipv4.tcp_retries2. The kernel gives up when the timer of a retransmission fires after 0.2 + 0.4 +
/// 0.8 + 1.6 + 3.2 s. If ICMP errors have shifted the retransmissions, that is up to an interval later.
const RETRIES: u64 = 4;
const GIVES_UP: f64 = 6.2;
/// The time with a longest interval of a second (`TCP_RTO_MAX_MS`): 0.2 + 0.4 + 0.8 + 1 + 1 s.
const GIVES_UP_WITH_RTO_MAX: f64 = 3.4;

pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("watch::{name}"), should, run);
    vec![
        case(
            "a_silent_peer_ends_connections_by_three_rules",
            "keepalive, user-timeout or retransmission, with tcpdump's silence and probes",
            silent,
        ),
        case("resets_of_the_peer_and_of_a_middlebox_are_resets", "reset, with tcpdump's probes", reset),
        case(
            "a_router_that_reports_the_peer_as_unreachable_is_the_cause",
            "unreachable if data was unacknowledged, otherwise keepalive",
            |story| {
                unreachable(story, |network| {
                    network.filters("refusal", "meta l4proto tcp reject with icmpx host-unreachable");
                });
            },
        ),
        case(
            "a_server_that_does_not_answer_arp_is_unreachable",
            "unreachable if data was unacknowledged, otherwise keepalive",
            |story| {
                unreachable(story, |network| {
                    network.server.ip("link set eth0 arp off");
                    network.router.ip("neigh flush dev server");
                });
            },
        ),
        case("a_router_that_does_not_answer_arp_is_unreachable", "unreachable", router_is_gone),
        case(
            "destroyed_connections_are_distinguished_from_reset_ones",
            "destroyed, by ss -K and by ka ping --destroy",
            destroyed,
        ),
        case("normal_ends_are_no_events", "no event", normal),
        case(
            "a_death_in_a_container_is_reported_with_netns_all",
            "reported with the PID of the program, only with --netns all",
            container,
        )
        .needs(Needs::Machine),
        case(
            "an_owner_that_ka_could_not_learn_is_null",
            "each death has the right owner or none",
            unknown_owner,
        ),
    ]
}

/// A source of `ka watch`, as `--source` takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Ebpf,
    Diag,
    Poll,
    /// eBPF, but the kernel has not recorded the end. ka has examined the socket instead, and says so. In some virtual
    /// machines, the kernel runs no BPF program in an interrupt that arrives while the host's agent runs.
    Unrecorded,
}

impl Source {
    const ALL: [Self; 3] = [Self::Ebpf, Self::Diag, Self::Poll];

    /// Returns the arguments that select the source. eBPF is the default, but an ordinary user may not use it.
    const fn args(self) -> &'static [&'static str] {
        match self {
            Self::Ebpf | Self::Unrecorded => &[],
            Self::Diag => &["--source", "diag"],
            Self::Poll => &["--source", "poll"],
        }
    }

    /// Returns the seconds by which the time of an event may be wrong. Only a record of eBPF has the time of the end. If
    /// the record is missing, ka examines the socket after the second list.
    const fn imprecision(self) -> f64 {
        match self {
            Self::Ebpf => 0.3,
            Self::Diag | Self::Poll => 1.5,
            Self::Unrecorded => 3.0,
        }
    }
}

/// The output of a `ka watch --json`.
struct Report {
    source: Source,
    events: Vec<Value>,
    /// The lines that are not JSON.
    messages: Vec<String>,
}

impl Report {
    fn read(&mut self, line: String) {
        if line.starts_with('{') {
            self.events.push(serde_json::from_str(&line).unwrap());
        } else {
            let is_limited = line.contains("reports unreachable as retransmission");
            assert!(!is_limited || self.source != Source::Ebpf, "ka does not use eBPF: {line}");
            self.messages.push(line);
        }
    }

    fn has(&self, local: &str) -> bool {
        self.events.iter().any(|event| event["local"] == *local)
    }

    /// Returns the event about this local address, and its source. There must be exactly one such event.
    fn only(&self, local: &str) -> (Source, &Value) {
        let Self { source, events, messages } = self;
        let mut about = events.iter().filter(|event| event["local"] == *local);
        let (Some(event), None) = (about.next(), about.next()) else {
            panic!("{source:?}: no event or more than one about {local}: {events:?}");
        };
        let unrecorded = format!("eBPF has no record of the end of {local}: ");
        let is_unrecorded = messages.iter().any(|message| message.contains(&unrecorded));
        (if is_unrecorded { Source::Unrecorded } else { *source }, event)
    }
}

/// A running `ka watch --json`.
struct Watching {
    program: Program,
    report: Report,
}

impl Watching {
    fn start(machine: &Machine, source: Source, args: &[&str]) -> Self {
        let mut command = machine.command(release().join("ka"));
        remove_ka_variables(&mut command);
        command.args(["watch", "--json"]).args(source.args()).args(args);
        let report = Report { source, events: vec![], messages: vec![] };
        Self { program: Program::of(start_service(&mut command)), report }
    }

    /// Starts one for each of these sources.
    fn each(machine: &Machine, sources: &[Source], args: &[&str]) -> Vec<Self> {
        let allowed = sources.iter().filter(|source| **source != Source::Ebpf || is_root());
        if !is_root() {
            skip("only root may watch by eBPF");
        }
        allowed.map(|source| Self::start(machine, *source, args)).collect()
    }

    /// Waits until each of these local addresses has an event, at most this time.
    fn wait(&mut self, locals: &[String], seconds: f64) {
        let until = now() + seconds;
        while let Some(missing) = locals.iter().find(|local| !self.report.has(local)) {
            let line = self.program.line(&[""], (until - now()).max(0.0));
            let Some((_, line)) = line else {
                let Report { source, events, messages } = &self.report;
                panic!("{source:?}: no event about {missing}, but {events:?}, {messages:?}")
            };
            self.report.read(line);
        }
    }

    /// Ends ka. Returns its whole output.
    fn end(self) -> Report {
        let Self { program, mut report } = self;
        program.end().into_iter().for_each(|line| report.read(line));
        report
    }
}

/// A connection of this process that ends.
struct Victim {
    name: &'static str,
    client: TcpStream,
    server: Option<TcpStream>,
    local: String,
    peer: String,
    /// The cause, as only eBPF always tells it.
    cause: &'static str,
    /// The error that the kernel must set.
    errno: i32,
    /// The fewest and the most seconds of silence, or from the data to the end. `None` if a packet ends the connection.
    seconds: Option<(f64, f64)>,
    /// The time at which data was written. The peer never acknowledges it.
    written: Option<f64>,
}

impl Victim {
    /// Makes a connection that a timer ends.
    fn new(
        network: &Network,
        listener: &TcpListener,
        family: Family,
        name: &'static str,
        cause: &'static str,
    ) -> Self {
        let (client, server) = network.pair(listener, family);
        let [local, peer] = [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().to_string());
        Self {
            name,
            local,
            peer,
            client,
            server: Some(server),
            cause,
            errno: libc::ETIMEDOUT,
            seconds: None,
            written: None,
        }
    }

    /// Makes the first retransmission follow after 200 ms.
    fn settled(self) -> Self {
        settle(&self.client, self.server.as_ref().unwrap());
        self
    }

    fn with_policy(self, policy: Policy) -> Self {
        policy.set_by_hand(&self.client);
        self
    }

    fn with_option(self, name: i32, value: i32) -> Self {
        set_option(self.client.as_raw_fd(), libc::IPPROTO_TCP, name, value);
        self
    }

    /// Sets the error of a connection that a packet ends.
    fn ends_with(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// Sets the seconds after which the kernel gives up, and the longest interval of its timer until it does so.
    fn ends_after(self, seconds: f64, interval: f64) -> Self {
        Self { seconds: Some((seconds, seconds + interval + late(seconds))), ..self }
    }

    fn write(&mut self) {
        self.client.write_all(b"data").unwrap();
        self.written = Some(now());
    }

    fn cause(&self, source: Source) -> &'static str {
        match self.cause {
            "unreachable" if source != Source::Ebpf => "retransmission",
            "destroyed" if source != Source::Ebpf => "reset",
            cause => cause,
        }
    }

    /// Checks an event against the socket and the packets.
    fn check(&self, source: Source, event: &Value, flow: &Flow) {
        let name = format!("{}, {source:?}: {event}", self.name);
        assert_eq!(event["cause"], self.cause(source), "{name}");
        assert_eq!(event["peer"], self.peer, "{name}");
        assert_eq!(event["pid"], std::process::id(), "{name}");
        let [keepalive, idle, intvl, cnt, ..] =
            keepalive_options(self.client.as_raw_fd()).map(Result::unwrap_or_default);
        assert_eq!(event["keepalive"], keepalive == 1, "{name}");
        assert_eq!([&event["idle"], &event["intvl"], &event["cnt"]], [idle, intvl, cnt], "{name}");
        check_packets(source, event, flow, REPORTS, &name);
        let Some((least, most)) = self.seconds else { return };
        let silent = self.silence(event, flow);
        let most = most + source.imprecision();
        assert!(silent > least - 0.1 && silent < most, "{silent:.2} s, not {least} to {most}: {name}");
    }

    /// Returns the reported seconds of silence. If data was written later than the last segment of the peer, counts
    /// from then.
    fn silence(&self, event: &Value, flow: &Flow) -> f64 {
        milliseconds(event, "silent_ms") - self.written.map_or(0.0, |written| written - flow.last_heard())
    }
}

/// Checks the probes, the silence and the time of an event against the packets. The sources that list connections
/// report a reset within `seconds`.
fn check_packets(source: Source, event: &Value, flow: &Flow, seconds: f64, name: &str) {
    let heard = flow.last_heard();
    let unanswered = flow.probes().into_iter().filter(|time| *time > heard).count();
    assert_eq!(event["unanswered_probes"], unanswered, "tcpdump saw {unanswered} probes: {name}");
    let (time, silent) = (seconds_of(event), milliseconds(event, "silent_ms"));
    let seen = time - heard;
    assert!((seen - silent).abs() < source.imprecision(), "tcpdump saw a silence of {seen:.2} s: {name}");
    if let Some(reset) = flow.packets.iter().find(|packet| packet.kind == Kind::Reset) {
        let delay = time - reset.time;
        let most = if source == Source::Ebpf { source.imprecision() } else { seconds };
        assert!(delay > -0.3 && delay < most, "{delay:.2} s after the reset: {name}");
    }
}

fn milliseconds(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("{event}")) / 1000.0
}

/// Returns the time of an event in seconds since 1970.
fn seconds_of(event: &Value) -> f64 {
    let text = stdout(Command::new("date").args(["+%s.%N", "-d", event["time"].as_str().unwrap()]));
    text.trim().parse().unwrap()
}

/// Waits until all sources have reported the victims, and checks the events, one for each victim. Returns the flows.
fn check(story: &mut Story, watchings: Vec<Watching>, victims: &[Victim]) {
    let locals: Vec<_> = victims.iter().map(|victim| victim.local.clone()).collect();
    let mut reports = vec![];
    for mut watching in watchings {
        watching.wait(&locals, REPORTS);
        reports.push(watching.end());
    }
    let labels: Vec<_> = victims.iter().map(|victim| victim.name).collect();
    let flows = story.flows(&labels);
    for report in &reports {
        for (victim, flow) in victims.iter().zip(&flows) {
            let (source, event) = report.only(&victim.local);
            victim.check(source, event, flow);
        }
        let Report { source, events, .. } = report;
        assert_eq!(events.len(), victims.len(), "{source:?}: an event about another connection: {events:?}");
    }
    for (place, victim) in victims.iter().enumerate() {
        let error = victim.client.take_error().unwrap().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(victim.errno), "{}", victim.name);
        let Some(report) = reports.first() else { continue };
        let (source, event) = report.only(&victim.local);
        story.ended(place, seconds_of(event), victim.cause(source));
        let silent = victim.silence(event, &flows[place]);
        story.seconds.push(silent);
        story.saw(format!("{}: {}, {silent:.1} s", victim.name, victim.cause(source)));
    }
}

fn silent(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    network.client.sysctl("ipv4/tcp_retries2", RETRIES);
    story.watch(&network.client);
    let watchings = Watching::each(&network.client, &Source::ALL, &[]);
    let new = |family, name, cause| Victim::new(&network, &listener, family, name, cause);
    let mut families = vec![Family::V4];
    families.extend(has_ipv6().then_some(Family::V6));
    let policy = Policy::new(2, 1, 4);
    let mut victims = vec![];
    for family in families {
        let keepalive = new(family, "2/1/4", "keepalive").with_policy(policy);
        victims.push(keepalive.ends_after(policy.seconds(), 0.0));
        let data = new(family, "data", "retransmission").settled();
        victims.push(data.ends_after(GIVES_UP, GIVES_UP));
    }
    // The kernel compares the user timeout when the timer of a probe fires.
    let idle = new(Family::V4, "2/1/9, user timeout 5500", "user-timeout").with_policy(Policy::new(2, 1, 9));
    victims.push(idle.with_option(libc::TCP_USER_TIMEOUT, 5500).ends_after(6.0, 0.0));
    let data = new(Family::V4, "data, user timeout 2000", "user-timeout").settled();
    victims.push(data.with_option(libc::TCP_USER_TIMEOUT, 2000).ends_after(2.0, 0.0));
    if has_rto_max() {
        let data = new(Family::V4, "data, rto_max 1000", "retransmission").settled();
        victims.push(data.with_option(RTO_MAX, 1000).ends_after(GIVES_UP_WITH_RTO_MAX, 1.0));
    }
    sleep(LEARNS);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    victims.iter_mut().filter(|victim| victim.name.starts_with("data")).for_each(Victim::write);
    check(story, watchings, &victims);
}

fn reset(story: &mut Story) {
    let network = Network::with_load_balancer(FORGETS);
    let listener = network.listen();
    story.watch(&network.client);
    let watchings = Watching::each(&network.client, &Source::ALL, &[]);
    let new = |name, policy: Policy| {
        let victim = Victim::new(&network, &listener, Family::V4, name, "reset").with_policy(policy);
        victim.ends_with(libc::ECONNRESET)
    };
    // These probes come too late: the load balancer answers them with RST.
    let late_probe = new("a probe, reset by the balancer", Policy::new(10, 1, 3));
    let data = new("data, reset by the balancer", Policy::new(60, 1, 3));
    let peer = new("reset by the peer", Policy::new(1, 1, 5));
    let mut victims = vec![late_probe, data, peer];
    sleep(LEARNS);
    victims[1].write();
    abort(victims[2].server.take().unwrap());
    story.mark("the server aborts a connection, the client writes to another");
    check(story, watchings, &victims);
    let reset = |place: usize| {
        let flow = &story.flows[place].flow;
        flow.packets.iter().find(|packet| packet.kind == Kind::Reset).map(|packet| packet.from_client)
    };
    assert_eq!([0, 1, 2].map(reset), [Some(false); 3], "the resets come from the other side");
    assert_eq!(story.flows[0].flow.probes().len(), 1, "a probe was reset");
}

/// Closes a socket so that its peer gets a reset.
fn abort(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
}

/// Runs a case in which ICMP errors come from the router.
fn unreachable(story: &mut Story, fault: fn(&Network)) {
    let network = Network::routed();
    let listener = network.listen();
    network.client.sysctl("ipv4/tcp_retries2", RETRIES);
    story.watch(&network.client);
    let watchings = Watching::each(&network.client, &Source::ALL, &[]);
    let policy = Policy::new(1, 1, 6);
    let mut data = Victim::new(&network, &listener, Family::V4, "data", "unreachable")
        .settled()
        .ends_with(libc::EHOSTUNREACH)
        .ends_after(GIVES_UP, GIVES_UP);
    // The kernel ignores ICMP errors about probes.
    let idle = Victim::new(&network, &listener, Family::V4, "1/1/6", "keepalive")
        .with_policy(policy)
        .ends_after(policy.seconds(), 0.0);
    sleep(LEARNS);
    fault(&network);
    story.mark("the server is unreachable");
    data.write();
    check(story, watchings, &[data, idle]);
    for shown in &story.flows {
        let is_told = shown.flow.packets.iter().any(|packet| packet.kind == Kind::Icmp);
        assert!(is_told, "{}: the router sent no ICMP error", shown.label);
    }
}

/// The client itself finds that its router is gone. No packet leaves it.
fn router_is_gone(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    network.client.sysctl("ipv4/tcp_retries2", RETRIES);
    story.watch(&network.client);
    let watchings = Watching::each(&network.client, &Source::ALL, &[]);
    let mut data = Victim::new(&network, &listener, Family::V4, "data", "unreachable")
        .settled()
        .ends_with(libc::EHOSTUNREACH)
        .ends_after(GIVES_UP, GIVES_UP);
    sleep(LEARNS);
    network.router.ip("link set client arp off");
    network.client.ip("neigh flush dev eth0");
    story.mark("the router does not answer ARP");
    data.write();
    check(story, watchings, &[data]);
}

fn destroyed(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let mut watchings = Watching::each(&network.client, &[Source::Ebpf, Source::Diag], &[]);
    let kept =
        Victim::new(&network, &listener, Family::V4, "ss -K", "destroyed").ends_with(libc::ECONNABORTED);
    let program = plain_client(&network, Family::V4, Command::new("python3"));
    let server = listener.accept().unwrap().0;
    let local = server.peer_addr().unwrap();
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    sleep(LEARNS);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped, both connections destroyed");
    let port = kept.client.local_addr().unwrap().port().to_string();
    succeed(network.client.command("ss").args(["-K", "sport", "=", &port]));
    let mut ping = network.client.command(release().join("ka"));
    remove_ka_variables(&mut ping);
    let output =
        ping.args(["ping", "--destroy", "--timeout", "2s", &program.pid().to_string()]).output().unwrap();
    // 1: a connection was silent
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(program.line(&["ECONNABORTED"], 5.0).is_some(), "the program got no ECONNABORTED");
    let locals = [kept.local.clone(), local.to_string()];
    for watching in &mut watchings {
        watching.wait(&locals, REPORTS);
    }
    let flows = story.flows(&["ss -K", "ka ping --destroy"]);
    for watching in watchings {
        let report = watching.end();
        let (source, event) = report.only(&locals[0]);
        kept.check(source, event, &flows[0]);
        let (source, event) = report.only(&locals[1]);
        let name = format!("ka ping --destroy, {source:?}: {event}");
        assert_eq!([&event["cause"], &event["comm"]], [kept.cause(source), "python3"], "{name}");
        assert_eq!(event["pid"], program.pid(), "{name}");
        check_packets(source, event, &flows[1], REPORTS, &name);
        story.saw(format!("{source:?}: {}", event["cause"]));
    }
}

fn normal(story: &mut Story) {
    const EXIT: &str = "
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('connected', flush=True)
sys.stdin.readline()
";
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let watchings = Watching::each(&network.client, &Source::ALL, &[]);
    let mut servers = vec![];
    let mut pair = || {
        let (client, server) = network.pair(&listener, Family::V4);
        servers.push(server);
        client
    };
    let [by_client, by_server, by_both, with_linger, unread, used] = std::array::from_fn(|_| pair());
    let mut exits = run_script(&network, Family::V4, Command::new("python3"), EXIT).connected();
    let killed = plain_client(&network, Family::V4, Command::new("python3"));
    let closes = plain_client(&network, Family::V4, Command::new("python3"));
    for _ in 0..3 {
        servers.push(listener.accept().unwrap().0);
    }
    sleep(LEARNS);
    story.mark("all connections end");
    let closing = servers.pop().unwrap();
    drop(by_client);
    servers[1].shutdown(Shutdown::Write).unwrap();
    assert_eq!((&by_server).read(&mut [0]).unwrap(), 0);
    drop(by_server);
    by_both.shutdown(Shutdown::Write).unwrap();
    servers[2].shutdown(Shutdown::Write).unwrap();
    assert_eq!((&by_both).read(&mut [0]).unwrap(), 0);
    drop(by_both);
    abort(with_linger);
    servers[4].write_all(b"data").unwrap();
    unread.peek(&mut [0]).unwrap();
    drop(unread);
    drop(closing);
    assert!(closes.line(&["closed"], 10.0).is_some(), "the program did not see the end");
    exits.tell("exit");
    killed.signal(libc::SIGKILL);
    // A report would come by then.
    sleep(LEARNS / 2.0);
    drop(used);
    for watching in watchings {
        let Report { source, events, .. } = watching.end();
        assert!(events.is_empty(), "{source:?}: {events:?}");
    }
    story.saw("no event");
}

fn container(story: &mut Story) {
    let network = Network::routed();
    let container = network.container();
    let listener = network.listen();
    story.watch(&network.client);
    let policy = Policy::new(2, 1, 4);
    let clients = || {
        let mut command = Command::new("python3");
        container.moves(&mut command);
        // Another run of the lab at the same time uses the same addresses, and ka reports its connections too. So the
        // port is random. The program keeps the socket after the end of the connection.
        let script = format!(
            "
import random, socket, sys
own = ('', random.randrange(2000, 30000))
c = socket.create_connection((sys.argv[1], int(sys.argv[2])), source_address=own)
c.setsockopt(6, socket.TCP_KEEPIDLE, {}); c.setsockopt(6, socket.TCP_KEEPINTVL, {})
c.setsockopt(6, socket.TCP_KEEPCNT, {}); c.setsockopt(1, socket.SO_KEEPALIVE, 1)
print('connected', c.getsockname()[1], flush=True)
sys.stdin.readline()
",
            policy.idle, policy.intvl, policy.cnt
        );
        command.args(["-c", &script, &network.host(Family::V4).to_string(), &PORT.to_string()]);
        let program = Program::start(&mut command);
        let (_, line) = program.line(&["connected"], 20.0).expect("the program did not connect");
        let port = line.rsplit(' ').next().unwrap().parse().unwrap();
        let local = SocketAddr::new(IpAddr::from([172, 17, 0, 2]), port);
        (program, listener.accept().unwrap().0, local)
    };
    let silent = clients();
    let sources = [Source::Ebpf, Source::Diag];
    let mut everywhere = Watching::each(&network.client, &sources, &["--netns", "all"]);
    let here = Watching::each(&network.client, &sources, &[]);
    let reset = clients();
    sleep(LEARNS);
    network.drop_packets(&format!(r#"iifname "server" tcp dport {}"#, port_on_the_wire(&silent.1)));
    abort(reset.1);
    story.mark("a connection is reset, and another is cut");
    let victims = [(&silent.0, silent.2, "keepalive"), (&reset.0, reset.2, "reset")];
    let locals = victims.map(|(_, local, _)| local.to_string());
    // Other cases of the lab use the same addresses, so these events may be about other containers.
    for watching in &mut everywhere {
        watching.wait(&locals, LONGEST_PAUSE + REPORTS);
    }
    let flows = story.flows(&["2/1/4", "reset by the peer"]);
    for watching in everywhere {
        let report = watching.end();
        for ((program, local, cause), flow) in victims.iter().zip(&flows) {
            let (source, event) = report.only(&local.to_string());
            let name = format!("{source:?}: {event}");
            assert_eq!([&event["cause"], &event["comm"]], [*cause, "python3"], "{name}");
            assert_eq!(event["pid"], program.pid(), "{name}");
            assert_eq!(event["peer"], SocketAddr::new(network.host(Family::V4), PORT).to_string(), "{name}");
            let settings = ["idle", "intvl", "cnt"].map(|key| &event[key]);
            assert_eq!(settings, [policy.idle, policy.intvl, policy.cnt], "{name}");
            check_packets(source, event, flow, LONGEST_PAUSE + REPORTS, &name);
            story.saw(format!("{source:?}: {cause}"));
        }
    }
    for watching in here {
        let Report { source, events, .. } = watching.end();
        assert_eq!(events, Vec::<Value>::new(), "{source:?}");
    }
}

/// Returns the port of the client, as the server sees it.
fn port_on_the_wire(server: &TcpStream) -> u16 {
    server.peer_addr().unwrap().port()
}

/// Two programs connect again and again to a server that resets them at once, and close their sockets. So descriptors,
/// ports and inodes are reused by another program while ka still searches for the owner.
fn unknown_owner(story: &mut Story) {
    const COUNT: usize = 30;
    const SCRIPT: &str = "
import socket, sys, time
for _ in range(30):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    port = connection.getsockname()[1]
    try:
        connection.recv(1)
    except ConnectionResetError:
        print('reset', port, flush=True)
    connection.close()
sys.stdin.readline()
";
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let mut watchings = Watching::each(&network.client, &[Source::Ebpf, Source::Diag], &[]);
    let programs = [(); 2].map(|()| run_script(&network, Family::V4, Command::new("python3"), SCRIPT));
    let server = thread::spawn(move || (0..COUNT * 2).for_each(|_| abort(listener.accept().unwrap().0)));
    let mut owners = vec![];
    for program in &programs {
        for _ in 0..COUNT {
            let (_, line) = program.line(&["reset"], 20.0).expect("a connection was not reset");
            let port: u16 = line.rsplit(' ').next().unwrap().parse().unwrap();
            owners.push((SocketAddr::from(([192, 0, 2, 2], port)).to_string(), program.pid()));
        }
    }
    server.join().unwrap();
    let locals: Vec<_> = owners.iter().map(|(local, _)| local.clone()).collect();
    assert_eq!(locals.iter().collect::<BTreeSet<_>>().len(), COUNT * 2, "a port was used twice");
    for watching in &mut watchings {
        watching.wait(&locals, REPORTS);
    }
    for watching in watchings {
        let report = watching.end();
        let mut unknown = 0;
        for (local, pid) in &owners {
            let (source, event) = report.only(local);
            assert_eq!(event["cause"], "reset", "{source:?}: {event}");
            assert!(
                event["pid"].is_null() || event["pid"] == *pid,
                "{source:?}: the owner is {pid}: {event}"
            );
            assert_eq!(event["pid"].is_null(), event["comm"].is_null(), "{source:?}: {event}");
            unknown += usize::from(event["pid"].is_null());
        }
        // Without eBPF, ka knows only the owners from its lists. It makes at most one a second.
        let source = report.source;
        assert!(unknown > 0 || source == Source::Ebpf, "ka cannot have known all owners");
        story.saw(format!("{source:?}: {unknown} of {} without an owner, none wrong", owners.len()));
    }
    story.file();
    story.flows.truncate(4);
}
