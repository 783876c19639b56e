//! `ka_probe` checks by one probe whether a peer is alive. It must distinguish each kind of dead path from a live one.
//! It must not change the settings and the keepalive of the connection.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ka_test::kernel::has_mptcp;
use ka_test::libka::call;
use ka_test::socket::{keepalive_options, option, set_option};
use socket2::Protocol;

use super::probe::check_probes;
use crate::endpoint::{Policy, is_open, late, peer, proxy, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Story, now, sleep};
use crate::wire::{Flow, Kind};

/// A segment of the peer within the last second counts as an answer. After this time in seconds, a call sends a probe.
const QUIET: f64 = 1.3;
/// A timeout in milliseconds that no answer needs, not even on a busy machine.
const LONG: u64 = 10_000;
/// A timeout in milliseconds for a peer that does not answer.
const SHORT: u64 = 1000;
/// The delay in seconds that a busy machine may add to a call.
const BUSY: f64 = 1.5;
/// The time in seconds for which a loop probes.
const MINUTE: f64 = 60.0;
/// The time in seconds between two calls of a loop.
const PERIOD: f64 = 0.2;

const ALIVE: Result<i32, i32> = Ok(1);
const SILENT: Result<i32, i32> = Ok(0);
const RESET: Result<i32, i32> = Err(libc::ECONNRESET);

/// The settings of a connection before the call.
#[derive(Clone, Copy)]
struct Setup {
    /// `None` if keepalive is off.
    policy: Option<Policy>,
    /// `TCP_USER_TIMEOUT` in milliseconds, 0 for none.
    user_timeout: i32,
}

impl Setup {
    const OFF: Self = Self { policy: None, user_timeout: 0 };

    const fn on(idle: i32, intvl: i32, cnt: i32) -> Self {
        Self { policy: Some(Policy::new(idle, intvl, cnt)), user_timeout: 0 }
    }

    const fn with_user_timeout(self, user_timeout: i32) -> Self {
        Self { user_timeout, ..self }
    }

    fn name(self) -> String {
        let policy = self.policy.map_or("keepalive off".to_owned(), Policy::name);
        match self.user_timeout {
            0 => policy,
            limit => format!("{policy}, user timeout {limit}"),
        }
    }

    fn set(self, socket: &TcpStream) {
        if let Some(policy) = self.policy {
            policy.set_by_hand(socket);
        }
        set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, self.user_timeout);
    }

    /// Returns the seconds of silence after which the kernel ends a connection without calls of `ka_probe`.
    fn seconds(self) -> Option<f64> {
        let Policy { idle, intvl, .. } = self.policy?;
        let (idle, intvl, limit) = (f64::from(idle), f64::from(intvl), f64::from(self.user_timeout) / 1000.0);
        Some(match self.user_timeout {
            0 => self.policy?.seconds(),
            // The kernel compares the user timeout when the timer of a probe fires. The first one is not unanswered.
            _ => idle + intvl * ((limit - idle) / intvl).ceil().max(1.0),
        })
    }
}

/// The kinds of settings that a probe must put back. No natural probe is due during these cases.
const KINDS: [Setup; 4] =
    [Setup::OFF, Setup::on(60, 5, 3), Setup::on(60, 5, 1), Setup::on(60, 5, 3).with_user_timeout(4000)];

/// Returns the cases that run over IPv4 only.
pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("ka_probe::{name}"), should, run);
    vec![
        case(
            "a_minute_of_probes_leaves_a_live_connection_as_it_was",
            "alive at each call; at most one probe per second; then the next probe after the idle time, or none",
            minute_alive,
        ),
        case(
            "a_minute_of_probes_neither_ends_a_connection_before_its_idle_time_nor_keeps_a_dead_one",
            "on a cut path, ETIMEDOUT after idle to idle + intvl * cnt; keepalive off: open, alive when mended",
            minute_cut,
        ),
        case(
            "an_unanswered_probe_counts_when_the_idle_time_expires",
            "path cut during the probe, mended before the idle time ends: dead with cnt=1 or a user timeout up to \
             idle, unless a segment arrives first; others alive",
            counted,
        ),
        case(
            "a_call_after_the_idle_time_sends_one_probe",
            "alive, then silent on a cut path: one probe per call besides the one of keepalive",
            after_idle,
        ),
        case("a_proxy_answers_for_its_dead_peer", "alive, although data never arrives", proxied),
        case("a_frozen_process_is_alive", "alive: its kernel answers", frozen),
        case(
            "32_threads_probe_32_sockets",
            "alive or silent as each path is, one probe per call, no longer than one timeout",
            threads,
        ),
        case(
            "an_acknowledgement_of_data_in_flight_is_an_answer",
            "silent while the path is cut; alive when the acknowledgement arrives; no probe",
            in_flight,
        ),
        case(
            "multipath_tcp_is_probed_like_tcp",
            "alive, then silent on a cut path: one probe each, settings as before",
            multipath,
        ),
    ]
}

/// Returns the cases for each family.
pub fn cases_of(family: Family) -> Vec<Case> {
    let case = |name: &str, should: &str, run: fn(&mut Story, Family)| {
        Case::new(format!("ka_probe::{name}::{}", family.name()), should, move |story| run(story, family))
    };
    vec![
        case("a_healthy_peer_is_alive", "alive; one probe with seq = next - 1, and none later", healthy),
        case(
            "a_cut_path_is_silent_and_the_connection_stays_open",
            "no answer in time, one probe; data passes once the path is mended",
            cut,
        ),
        case(
            "a_rebooted_peer_resets_and_the_error_stays_pending",
            "ECONNRESET by each call, and still by SO_ERROR",
            rebooted,
        ),
        case(
            "a_nat_that_forgot_is_silent",
            "alive at first; no answer once the NAT forgot",
            |story, family| {
                let network = Network::with_nat(FORGETS);
                let (client, server) = forgotten(story, &network, family, SILENT);
                assert!(is_open(&client), "the connection has ended");
                assert!(!talks(&client, &server, 2.0), "the NAT still knows the connection");
            },
        ),
        case(
            "a_balancer_that_forgot_resets",
            "alive at first; ECONNRESET once the balancer forgot",
            |story, family| {
                let network = Network::with_load_balancer(FORGETS);
                let (client, _server) = forgotten(story, &network, family, RESET);
                assert_pending(&client, libc::ECONNRESET);
            },
        ),
    ]
}

/// The idle time after which the middleboxes drop a connection.
const FORGETS: Duration = Duration::from_secs(4);

/// Calls `ka_probe`: 1 if the peer is alive, 0 if it did not answer in time, or the errno.
fn ka_probe(socket: &impl AsRawFd, timeout_ms: u64) -> Result<i32, i32> {
    let timeout_ms = timeout_ms.try_into().unwrap();
    // SAFETY: the call takes no pointer.
    call(|ka| unsafe { (ka.ka_probe)(socket.as_raw_fd(), timeout_ms) })
}

/// Calls `ka_probe`, and checks that it puts the settings back and keeps its timeout. Returns its result and the
/// seconds that it took.
fn probe(socket: &TcpStream, timeout_ms: u64) -> (Result<i32, i32>, f64) {
    let before = keepalive_options(socket.as_raw_fd());
    let began = Instant::now();
    let result = ka_probe(socket, timeout_ms);
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(keepalive_options(socket.as_raw_fd()), before, "settings after and before a probe");
    let timeout = Duration::from_millis(timeout_ms).as_secs_f64();
    assert!(seconds < timeout + BUSY, "a call with a timeout of {timeout_ms} ms took {seconds:.2} s");
    if result == SILENT {
        assert!(seconds > timeout - 0.01, "a call with a timeout of {timeout_ms} ms took {seconds:.2} s");
    }
    (result, seconds)
}

/// Makes a connection with each of these settings. Returns both ends.
fn connect(network: &Network, family: Family, settings: &[Setup]) -> Vec<(TcpStream, TcpStream)> {
    let listener = network.listen();
    settings.iter().map(|settings| pair(network, &listener, family, *settings)).collect()
}

fn pair(
    network: &Network,
    listener: &TcpListener,
    family: Family,
    settings: Setup,
) -> (TcpStream, TcpStream) {
    let (client, server) = network.pair(listener, family);
    assert!(talks(&client, &server, 5.0), "a new connection does not work");
    settings.set(&client);
    (client, server)
}

/// Ends the capture. Checks the bytes of each probe. Returns the connections.
fn flows(story: &mut Story, settings: &[Setup]) -> Vec<Flow> {
    // tcpdump drops the packets that it has not read when it ends.
    sleep(0.3);
    let names: Vec<String> = settings.iter().map(|settings| settings.name()).collect();
    let flows = story.flows(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for flow in &flows {
        check_probes(flow);
    }
    flows
}

/// Checks that this error is pending, and clears it.
fn assert_pending(socket: &TcpStream, errno: i32) {
    let pending = socket.take_error().unwrap().and_then(|error| error.raw_os_error());
    assert_eq!(pending, Some(errno), "the pending error");
}

fn counts(flow: &Flow) -> (usize, usize) {
    (flow.probes().len(), flow.answers().len())
}

fn healthy(story: &mut Story, family: Family) {
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, family, &KINDS);
    sleep(QUIET);
    for ((client, _), settings) in pairs.iter().zip(KINDS) {
        let (result, seconds) = probe(client, LONG);
        assert_eq!(result, ALIVE, "{}", settings.name());
        assert_eq!(probe(client, LONG).0, ALIVE, "right after an answer, {}", settings.name());
        assert!(seconds < BUSY, "the answer took {seconds:.2} s");
        story.seconds.push(seconds);
    }
    // A probe that keepalive sends by itself would leave after a second.
    sleep(3.0);
    for (flow, settings) in flows(story, &KINDS).iter().zip(KINDS) {
        assert_eq!(counts(flow), (1, 1), "probes and answers, {}", settings.name());
    }
    story.saw("alive, one probe");
}

fn cut(story: &mut Story, family: Family) {
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, family, &KINDS);
    sleep(QUIET);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    for ((client, _), settings) in pairs.iter().zip(KINDS) {
        let (result, seconds) = probe(client, SHORT);
        assert_eq!(result, SILENT, "{}", settings.name());
        story.seconds.push(seconds);
    }
    sleep(2.0);
    assert!(pairs.iter().all(|(client, _)| is_open(client)), "a connection has ended");
    network.stop_dropping();
    story.mark("path mended, both speak");
    assert!(pairs.iter().all(|(client, server)| talks(client, server, 5.0)), "a connection is dead");
    for (flow, settings) in flows(story, &KINDS).iter().zip(KINDS) {
        assert_eq!(flow.probes().len(), 1, "probes, {}", settings.name());
    }
    story.saw("no answer, one probe; alive when mended");
}

fn rebooted(story: &mut Story, family: Family) {
    let mut network = Network::routed();
    let the_peer = peer(&network);
    story.watch(&network.client);
    let clients = KINDS.map(|settings| {
        let client = network.connect(family);
        assert!(the_peer.line(&["accepted"], 20.0).is_some(), "the peer does not accept");
        settings.set(&client);
        client
    });
    network.reboot_server(|| drop(the_peer));
    story.mark("peer rebooted");
    sleep(QUIET);
    for (client, settings) in clients.iter().zip(KINDS) {
        // A machine that needs a while to come back misses a probe or two.
        let (result, seconds) = (0..5).map(|_| probe(client, SHORT)).find(|seen| seen.0 != SILENT).unwrap();
        assert_eq!(result, RESET, "{}", settings.name());
        assert_eq!(probe(client, SHORT).0, RESET, "the second call, {}", settings.name());
        assert_pending(client, libc::ECONNRESET);
        story.seconds.push(seconds);
    }
    for flow in flows(story, &KINDS) {
        assert!(
            flow.packets.iter().any(|packet| packet.kind == Kind::Reset && !packet.from_client),
            "no RST"
        );
    }
    story.saw("ECONNRESET, still pending");
}

/// Probes a connection before and after the middlebox drops it. Returns both ends.
fn forgotten(
    story: &mut Story,
    network: &Network,
    family: Family,
    expected: Result<i32, i32>,
) -> (TcpStream, TcpStream) {
    let settings = [Setup::on(60, 5, 3)];
    story.watch(&network.client);
    let pair = connect(network, family, &settings).remove(0);
    sleep(QUIET);
    assert_eq!(probe(&pair.0, LONG).0, ALIVE, "before the middlebox forgot");
    sleep(FORGETS.as_secs_f64() + 2.0);
    let marked = story.mark("the middlebox has forgotten the connection");
    let (result, seconds) = probe(&pair.0, 2 * SHORT);
    assert_eq!(result, expected, "after the middlebox forgot");
    let flow = flows(story, &settings).remove(0);
    let later = flow.probes().iter().filter(|time| **time > marked).count();
    assert_eq!((counts(&flow), later), ((2, 1), 1), "probes and answers; probes after it forgot");
    story.seconds.push(seconds);
    story.saw(if expected == SILENT { "alive, then no answer" } else { "alive, then ECONNRESET" });
    pair
}

/// Puts back an idle time that is already over. The kernel must not take this for a reason to send another probe.
fn after_idle(story: &mut Story) {
    // Keepalive sends its first probe after 2 s, and the next one after 20 s more.
    let settings = [Setup::on(2, 20, 5), Setup::on(2, 20, 5).with_user_timeout(100_000)];
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    sleep(2.0 + late(2.0) + 2.2);
    for (client, _) in &pairs {
        assert_eq!(probe(client, LONG).0, ALIVE);
    }
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    sleep(2.2);
    for (client, _) in pairs.iter().chain(&pairs) {
        assert_eq!(probe(client, SHORT).0, SILENT);
    }
    for (flow, settings) in flows(story, &settings).iter().zip(settings) {
        assert_eq!(counts(flow), (4, 2), "probes and answers, {}", settings.name());
    }
    story.saw("one probe of keepalive, one for each of three calls");
}

fn proxied(story: &mut Story) {
    let network = Network::with_proxy();
    let _proxy = proxy(&network);
    let settings = [Setup::on(60, 5, 3)];
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    let (client, server) = &pairs[0];
    network.router.ip("link set server down");
    story.mark("server's cable pulled behind the proxy");
    sleep(QUIET);
    let (result, seconds) = probe(client, LONG);
    assert_eq!(result, ALIVE, "the proxy answers");
    assert!(!talks(client, server, 2.0), "the server is still reachable");
    assert_eq!(counts(&flows(story, &settings)[0]), (1, 1), "probes and answers");
    story.seconds.push(seconds);
    story.saw("alive, but data does not arrive");
}

fn frozen(story: &mut Story) {
    let network = Network::routed();
    let the_peer = peer(&network);
    let settings = [Setup::OFF];
    story.watch(&network.client);
    let client = network.connect(Family::V4);
    assert!(the_peer.line(&["accepted"], 20.0).is_some(), "the peer does not accept");
    the_peer.signal(libc::SIGSTOP);
    story.mark("peer process stopped");
    sleep(QUIET);
    assert!(the_peer.is_stopped(), "the peer is not frozen");
    let (result, seconds) = probe(&client, LONG);
    assert_eq!(result, ALIVE, "the kernel of a frozen process answers");
    assert!(the_peer.is_stopped(), "the peer is not frozen");
    assert_eq!(counts(&flows(story, &settings)[0]), (1, 1), "probes and answers");
    story.seconds.push(seconds);
    story.saw("alive");
}

fn threads(story: &mut Story) {
    const THREADS: usize = 32;
    const ROUNDS: usize = 3;
    let network = Network::routed();
    let settings: Vec<_> = KINDS.into_iter().cycle().take(THREADS).collect();
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    network.drop_packets(r#"iifname "client" tcp sport & 2 == 2"#); // most ports of clients are even
    story.mark("packets from some ports dropped");
    let together = Barrier::new(THREADS);
    thread::scope(|scope| {
        for (client, _) in &pairs {
            let together = &together;
            scope.spawn(move || {
                let is_cut = client.local_addr().unwrap().port() & 2 == 2;
                for round in 0..ROUNDS {
                    together.wait();
                    sleep(QUIET);
                    together.wait();
                    let (result, _) = probe(client, SHORT);
                    assert_eq!(result, if is_cut { SILENT } else { ALIVE }, "round {round}");
                }
            });
        }
    });
    network.stop_dropping();
    let flows = flows(story, &settings);
    let silent = flows.iter().filter(|flow| flow.answers().is_empty()).count();
    assert!((1..THREADS).contains(&silent), "{silent} of {THREADS} paths are cut");
    for flow in &flows {
        let (probes, answers) = counts(flow);
        assert!(
            probes == ROUNDS && (answers == 0 || answers == ROUNDS),
            "{probes} probes, {answers} answers"
        );
    }
    story.flows.truncate(2);
    story.saw(format!("{} alive, {silent} silent, {ROUNDS} probes each", THREADS - silent));
}

fn in_flight(story: &mut Story) {
    let network = Network::routed();
    let settings = [Setup::on(60, 5, 3), Setup::OFF];
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    sleep(QUIET);
    network.drop_packets(r#"iifname "client""#);
    story.mark("packets to the server dropped, data sent");
    for (client, _) in &pairs {
        (&*client).write_all(b"!").unwrap();
    }
    for (client, _) in &pairs {
        assert_eq!(probe(client, SHORT).0, SILENT, "on the cut path");
    }
    let results = thread::scope(|scope| {
        let calls: Vec<_> =
            pairs.iter().map(|(client, _)| scope.spawn(move || probe(client, 2 * LONG))).collect();
        sleep(1.0);
        network.stop_dropping();
        story.mark("path mended");
        calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
    });
    for (result, seconds) in results {
        assert_eq!(result, ALIVE, "on the mended path");
        story.seconds.push(seconds);
    }
    for flow in flows(story, &settings) {
        assert_eq!(flow.probes().len(), 0, "probes");
    }
    story.saw("no answer, then alive, no probe");
}

fn multipath(story: &mut Story) {
    const SOL_MPTCP: i32 = 284;
    const MPTCP_INFO: i32 = 1;
    if !has_mptcp() {
        story.saw("skipped: the kernel has no Multipath TCP");
        return;
    }
    let network = Network::routed();
    let listener = network.listen_for(Protocol::MPTCP);
    story.watch(&network.client);
    let policies = [None, Some(Policy::new(60, 5, 3)), Some(Policy::new(60, 5, 1))];
    let settings = policies.map(|policy| Setup { policy, user_timeout: 0 });
    let pairs = policies.map(|policy| {
        let client = network.connect_by(Protocol::MPTCP, Family::V4, |_| {});
        let server = listener.accept().unwrap().0;
        assert!(talks(&client, &server, 5.0), "a new connection does not work");
        if let Some(policy) = policy {
            policy.set_by_hand(&client);
        }
        assert!(option(client.as_raw_fd(), SOL_MPTCP, MPTCP_INFO).is_ok(), "the connection fell back to TCP");
        (client, server)
    });
    sleep(QUIET);
    for (client, _) in &pairs {
        assert_eq!(probe(client, LONG).0, ALIVE);
    }
    sleep(QUIET);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    for (client, _) in &pairs {
        assert_eq!(probe(client, SHORT).0, SILENT);
    }
    network.stop_dropping();
    story.mark("path mended, both speak");
    assert!(pairs.iter().all(|(client, server)| talks(client, server, 5.0)), "a connection is dead");
    for (flow, settings) in flows(story, &settings).iter().zip(settings) {
        assert_eq!(counts(flow), (2, 1), "probes and answers, {}", settings.name());
    }
    story.saw("alive, then no answer; alive when mended");
}

/// Calls `ka_probe` each `PERIOD`, until this time, or until the connection ends. Returns when a call has failed, and
/// its error.
fn probe_until(socket: &TcpStream, until: f64, expected: Result<i32, i32>) -> Option<(f64, i32)> {
    const TIMEOUT_MS: u64 = 100;
    while now() < until {
        let next = now() + PERIOD;
        match probe(socket, if expected == ALIVE { LONG } else { TIMEOUT_MS }).0 {
            Err(errno) => return Some((now(), errno)),
            result => assert_eq!(result, expected),
        }
        sleep((next - now()).max(0.0));
    }
    None
}

fn minute_alive(story: &mut Story) {
    let settings =
        [Setup::OFF, Setup::on(4, 2, 3), Setup::on(4, 2, 1), Setup::on(4, 2, 3).with_user_timeout(3000)];
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    let until = now() + MINUTE;
    let endings: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> =
            pairs.iter().map(|(client, _)| scope.spawn(move || probe_until(client, until, ALIVE))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let stopped = story.mark("the calls end");
    assert!(endings.iter().all(Option::is_none), "calls failed: {endings:?}");
    let longest = 4.0 + late(4.0);
    sleep(longest);
    let last = now();
    assert!(pairs.iter().all(|(client, server)| talks(client, server, 5.0)), "a connection is dead");
    for (flow, settings) in flows(story, &settings).iter().zip(settings) {
        let (during, after): (Vec<f64>, Vec<f64>) =
            flow.probes().into_iter().partition(|time| *time < stopped);
        let most = (stopped - (until - MINUTE)) + 1.0;
        let number = f64::from(u32::try_from(during.len()).unwrap());
        assert!(number > MINUTE / 3.0 && number <= most, "{number} probes in a minute, {}", settings.name());
        let Some(policy) = settings.policy else {
            assert_eq!(after.len(), 0, "probes after the calls, although keepalive is off");
            continue;
        };
        let heard = flow.answers().into_iter().rfind(|time| *time < stopped).unwrap();
        let first = *after.first().expect("keepalive sends no probe by itself any more");
        let gap = first - heard;
        let idle = f64::from(policy.idle);
        assert!(
            gap > idle - 0.02 && gap < idle + late(idle),
            "next probe after {gap:.2} s, {}",
            settings.name()
        );
        assert!(last > first, "the connections spoke before the probe");
        story.seconds.push(gap);
    }
    story.saw("alive; the next probe after the idle time");
}

fn minute_cut(story: &mut Story) {
    let settings = [
        Setup::OFF,
        Setup::on(4, 2, 3),
        Setup::on(3, 1, 5),
        Setup::on(2, 5, 2),
        Setup::on(8, 1, 1),
        Setup::on(20, 5, 4),
        Setup::on(4, 2, 3).with_user_timeout(10_000),
        Setup::on(4, 2, 3).with_user_timeout(2000),
    ];
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    sleep(QUIET);
    network.drop_packets(r#"iifname "server""#);
    let until = story.mark("packets from the server dropped") + MINUTE;
    let endings: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> =
            pairs.iter().map(|(client, _)| scope.spawn(move || probe_until(client, until, SILENT))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    network.stop_dropping();
    story.mark("path mended");
    let [(client, server), ..] = pairs.as_slice() else { unreachable!() };
    assert!(endings[0].is_none() && talks(client, server, 5.0), "keepalive off: the connection is dead");
    let flows = flows(story, &settings);
    for (place, ending) in endings.into_iter().enumerate().skip(1) {
        let (name, policy) = (settings[place].name(), settings[place].policy.unwrap());
        let (time, errno) = ending.unwrap_or_else(|| panic!("{name}: alive after a minute of silence"));
        assert_pending(&pairs[place].0, libc::ETIMEDOUT);
        // ka_probe derives the errno. With a count of 1, it may take the end for a reset.
        assert!(errno == libc::ETIMEDOUT || policy.cnt == 1 && errno == libc::ECONNRESET, "{name}: {errno}");
        let seconds = time - flows[place].last_heard();
        let most = settings[place].seconds().unwrap();
        story.ended(place, time, "ETIMEDOUT");
        story.seconds.push(seconds);
        story.saw(format!("{name}: {seconds:.1} s"));
        assert!(
            seconds > f64::from(policy.idle) - 0.05 && seconds < most + late(most) + PERIOD,
            "{name}: dead after {seconds:.2} s"
        );
    }
}

fn counted(story: &mut Story) {
    const IDLE: i32 = 7;
    /// The events on the connection.
    #[derive(Clone, Copy, PartialEq)]
    enum Events {
        /// No call of `ka_probe`.
        None,
        Unanswered,
        UnansweredThenAnswered,
        UnansweredThenData,
    }
    use Events::{Unanswered, UnansweredThenAnswered, UnansweredThenData};
    let once = Setup::on(IDLE, 2, 1);
    let kinds = [
        (once, Events::None, true),
        (once, Unanswered, false),
        (once, UnansweredThenAnswered, true),
        (once, UnansweredThenData, true),
        (Setup::on(IDLE, 2, 2), Unanswered, true),
        (Setup::on(IDLE, 2, 3).with_user_timeout(3000), Unanswered, false),
        (Setup::on(IDLE, 2, 3).with_user_timeout(13_000), Unanswered, true),
        (Setup::OFF, Unanswered, true),
    ];
    let settings = kinds.map(|(settings, ..)| settings);
    let network = Network::routed();
    story.watch(&network.client);
    let pairs = connect(&network, Family::V4, &settings);
    let began = Instant::now();
    sleep(QUIET);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    thread::scope(|scope| {
        for ((client, _), (_, events, _)) in pairs.iter().zip(kinds) {
            if events != Events::None {
                scope.spawn(move || assert_eq!(probe(client, SHORT).0, SILENT));
            }
        }
    });
    network.stop_dropping();
    story.mark("path mended");
    for ((client, server), (_, events, _)) in pairs.iter().zip(kinds) {
        match events {
            UnansweredThenAnswered => assert_eq!(probe(client, LONG).0, ALIVE),
            UnansweredThenData => assert!(talks(client, server, 5.0), "the mended path does not work"),
            _ => {}
        }
    }
    let idle = f64::from(IDLE);
    let elapsed = began.elapsed().as_secs_f64();
    assert!(elapsed < idle - 0.5, "this machine is too slow: the path was mended after {elapsed:.1} s");
    sleep(idle - elapsed + late(idle));
    for ((client, server), (settings, _, lives)) in pairs.iter().zip(kinds) {
        let pending = client.take_error().unwrap().and_then(|error| error.raw_os_error());
        let expected = (!lives).then_some(libc::ETIMEDOUT);
        assert_eq!(pending, expected, "the error after the idle time, {}", settings.name());
        assert!(!lives || talks(client, server, 5.0), "{}: the connection does not work", settings.name());
    }
    for (flow, (settings, events, lives)) in flows(story, &settings).iter().zip(kinds) {
        // Keepalive sends a probe when the idle time ends, unless it ends the connection.
        let expected = match events {
            Events::None => 1,
            Unanswered => 1 + usize::from(lives && settings.policy.is_some()),
            // The answer and the data restart the idle time, which may end before the capture.
            _ => continue,
        };
        assert_eq!(flow.probes().len(), expected, "probes, {}", settings.name());
    }
    story.saw("cnt=1 and a user timeout of 3 s: dead at the idle time without a further probe; others alive");
}
