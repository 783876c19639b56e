//! Surprising rules of the kernel. Each case shows a connection without ka beside one with ka's solution, in one
//! network.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ka_test::libka::{AUTO, enable, times};
use ka_test::socket::set_option;
use socket2::SockRef;

use crate::endpoint::{Policy, ending, fill, is_open, late, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Story, now, sleep};
use crate::wire::{Flow, Kind};

const FAMILY: Family = Family::V4;

pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("rules::{name}"), should, run);
    vec![
        case(
            "data_in_flight_suspends_keepalive_but_not_a_user_timeout",
            "1/1/3 alone: alive after 12 s without a probe; with KA_AUTO: ETIMEDOUT after 4 s",
            data_in_flight,
        ),
        case(
            "a_user_timeout_ends_a_connection_with_a_closed_window_and_a_plan_does_not",
            "user timeout of 3 s: ETIMEDOUT after 3 s; a plan: alive after 12 s, and continues",
            closed_window,
        ),
        case(
            "a_user_timeout_replaces_the_count_and_auto_equals_the_policy",
            "1/1/5 with 1000 ms: ETIMEDOUT after 2 s, as ka_detect_time says; with KA_AUTO: after 6 s",
            count_replaced,
        ),
        case(
            "a_lower_interval_while_probing_applies_at_once_only_with_ka",
            "setsockopt: next probe after 12 s; ka_enable: at once",
            interval_lowered,
        ),
        case(
            "a_policy_repeated_while_probing_ends_the_connection_only_without_ka",
            "setsockopt: dead in about 1 s of a 46 s policy; ka_enable: one probe, alive when the path is back",
            applied_again,
        ),
        case(
            "keepalive_turned_on_late_probes_at_once_only_without_ka",
            "SO_KEEPALIVE first: probe at once; ka_enable: after idle",
            enabled_late,
        ),
        case(
            "a_listener_set_after_the_handshake_misses_queued_connections",
            "queued: off; queued and set after accept, or connected after: probes from the server",
            listener_late,
        ),
        case(
            "an_interval_longer_than_the_idle_time_replaces_it_after_the_first_answer",
            "1/3/2: probes each 3 s, not each second; if the peer dies then: ETIMEDOUT after 9 s, not 7 s",
            long_interval,
        ),
        case(
            "icmp_errors_are_ignored_for_probes_and_reported_for_data",
            "idle: ETIMEDOUT after 4 s; with data in flight and KA_AUTO: EHOSTUNREACH after 4 s",
            unreachable,
        ),
    ]
}

fn raw_user_timeout(socket: &TcpStream, milliseconds: i32) {
    set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, milliseconds);
}

fn apply(socket: &TcpStream, policy: Policy, user_timeout: i32) {
    let config = ka_test::libka::config(1, policy.idle, policy.intvl, policy.cnt, user_timeout);
    ka_test::libka::apply(socket.as_raw_fd(), &config).unwrap();
}

/// Makes a router between two machines, a capture at the client, and two connections: one for setsockopt, one for ka.
fn two(story: &mut Story) -> (Network, [TcpStream; 2], [TcpStream; 2]) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (without, without_server) = network.pair(&listener, FAMILY);
    let (with, with_server) = network.pair(&listener, FAMILY);
    (network, [without, with], [without_server, with_server])
}

/// Checks that a connection ends with ETIMEDOUT about `seconds` after the moment `since`.
fn dead(story: &mut Story, socket: &TcpStream, label: &str, since: f64, seconds: f64) -> (f64, String) {
    let (time, how) = ended(story, socket, label, since, seconds);
    assert_eq!(how, "ETIMEDOUT", "{label}");
    (time, how)
}

fn ended(story: &mut Story, socket: &TcpStream, label: &str, since: f64, seconds: f64) -> (f64, String) {
    let (time, how) = ending(socket, 2.0 * seconds + 10.0).unwrap_or_else(|| panic!("{label}: still alive"));
    let after = time - since;
    story.seconds.push(after);
    story.saw(format!("{label}: {how} after {after:.1} s"));
    assert!(
        after > seconds - 0.1 && after < seconds + late(seconds),
        "{label}: after {after:.2} s, not {seconds} s"
    );
    (time, how)
}

fn alive(story: &mut Story, socket: &TcpStream, label: &str, seconds: f64) {
    assert!(is_open(socket), "{label}");
    story.saw(format!("{label}: alive after {seconds} s"));
}

fn data_in_flight(story: &mut Story) {
    let policy = Policy::new(1, 1, 3);
    let (network, [without, with], _servers) = two(story);
    policy.set_by_hand(&without);
    apply(&with, policy, AUTO);
    network.drop_packets(r#"iifname "client""#);
    let lost = story.mark("packets to the server dropped, data sent");
    (&without).write_all(b"!").unwrap();
    (&with).write_all(b"!").unwrap();
    let end = dead(story, &with, "KA_AUTO", lost, policy.seconds());
    sleep(lost + 12.0 - now());
    alive(story, &without, "keepalive alone", 12.0);
    let flows = story.flows(&["keepalive alone", "with KA_AUTO"]);
    story.ended(1, end.0, end.1);
    assert!(flows[0].probes().iter().all(|time| *time < lost), "there was a probe while data was in flight");
}

fn closed_window(story: &mut Story) {
    let (_network, [without, with], [_without_server, mut with_server]) = two(story);
    let policy = Policy::planned(Duration::from_secs(5));
    for socket in [&without, &with] {
        SockRef::from(socket).set_send_buffer_size(4096).unwrap();
    }
    policy.set_by_hand(&without);
    policy.enable(&with);
    raw_user_timeout(&without, 3000);
    let full = story.mark("the server reads nothing");
    fill(&without);
    let written = fill(&with);
    // The user timeout starts at the first window probe, after the window was filled (tcp_probe_timer).
    let (time, how) = ending(&without, 20.0).expect("a user timeout alone: still alive");
    let after = time - full;
    story.seconds.push(after);
    story.saw(format!("user timeout: {how} after {after:.1} s"));
    assert_eq!(how, "ETIMEDOUT");
    assert!(after > 3.0 && after < 3.0 + 2.0 * late(3.0), "after {after:.2} s, not 3 s");
    sleep(full + 12.0 - now());
    alive(story, &with, "plan", 12.0);
    story.mark("the server reads");
    with_server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = vec![0; written];
    with_server.read_exact(&mut all).expect("the data that was written before the window closed");
    assert!(talks(&with, &with_server, 5.0), "plan: the connection does not continue");
    story.flows(&["user timeout 3000", "planned"]);
    story.ended(0, time, how);
}

fn count_replaced(story: &mut Story) {
    let policy = Policy::new(1, 1, 5);
    let (network, [without, with], _servers) = two(story);
    policy.set_by_hand(&without);
    raw_user_timeout(&without, 1000);
    apply(&with, policy, AUTO);
    let config = ka_test::libka::config(1, policy.idle, policy.intvl, policy.cnt, 1000);
    let [typical, _] = times(&config, |ka| ka.ka_detect_time).unwrap();
    assert_eq!(typical, 2000, "the result of ka_detect_time");
    network.drop_packets(r#"iifname "client""#);
    let lost = story.mark("packets to the server dropped");
    // The idle time started at the handshake, shortly before the packets were lost.
    let first = dead(story, &without, "1000 ms", lost, 2.0);
    let second = dead(story, &with, "KA_AUTO", lost, policy.seconds());
    let flows = story.flows(&["user timeout 1000", "with KA_AUTO"]);
    for (place, (time, how)) in [first, second].into_iter().enumerate() {
        story.ended(place, time, how);
    }
    assert_eq!(flows[0].probes().len(), 1, "probes before a user timeout of idle");
    assert_eq!(flows[1].probes().len(), 5, "probes with KA_AUTO");
}

fn interval_lowered(story: &mut Story) {
    const OLD: Policy = Policy::new(1, 12, 3);
    let (network, [without, with], _servers) = two(story);
    OLD.set_by_hand(&without);
    OLD.enable(&with);
    network.drop_packets(r#"iifname "client""#);
    story.mark("packets to the server dropped");
    sleep(2.0);
    let lowered = story.mark("interval from 12 s to 1 s");
    set_option(without.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1);
    Policy::new(1, 1, 3).enable(&with);
    // The kernel has sent one probe. When ka writes TCP_KEEPIDLE, the kernel sends the second probe at once, the third
    // 1 s later, and ends the connection 1 s after that.
    let end = dead(story, &with, "ka_enable", lowered, 2.0);
    let late_end = ending(&without, 30.0).expect("still alive");
    let flows = story.flows(&["setsockopt", "ka_enable"]);
    story.ended(0, late_end.0, late_end.1);
    story.ended(1, end.0, end.1);
    let without = flows[0].probes()[1] - flows[0].probes()[0];
    let with = flows[1].probes()[1] - lowered;
    story.saw(format!("setsockopt: next probe after {without:.1} s"));
    assert!(without > 11.9 && without < 12.0 + late(12.0), "setsockopt: second probe after {without:.2} s");
    assert!(with < 0.5, "ka_enable: second probe after {with:.2} s");
}

fn applied_again(story: &mut Story) {
    const POLICY: Policy = Policy::new(1, 5, 9);
    let (network, [without, with], [_without_server, with_server]) = two(story);
    POLICY.set_by_hand(&without);
    POLICY.enable(&with);
    network.drop_packets(r#"iifname "client""#);
    let lost = story.mark("packets to the server dropped");
    sleep(1.5);
    let from = story.mark("1/5/9 again each 100 ms");
    let mut end = None;
    while now() < from + 3.0 {
        if end.is_none() {
            POLICY.set_by_hand(&without);
            end = ending(&without, 0.001);
        }
        POLICY.enable(&with);
        sleep(0.1);
    }
    network.stop_dropping();
    story.mark("path restored");
    let (time, how) = end.expect("setsockopt: alive");
    assert_eq!(how, "ETIMEDOUT", "setsockopt");
    assert!(time - from > 0.5 && time - from < 2.0, "setsockopt: after {:.2} s", time - from);
    story.seconds.push(time - from);
    story.saw(format!("setsockopt: {how} after {:.1} s", time - from));
    assert!(talks(&with, &with_server, 5.0), "ka_enable: the connection is dead");
    story.saw("ka_enable: alive");
    let flows = story.flows(&["setsockopt", "ka_enable"]);
    story.ended(0, time, how);
    let probes = flows[1].probes().iter().filter(|time| **time > lost).count();
    assert_eq!(probes, 1, "ka_enable: probes while the path was cut");
}

fn enabled_late(story: &mut Story) {
    const POLICY: Policy = Policy::new(3, 1, 3);
    let (_network, [without, with], _servers) = two(story);
    sleep(4.0);
    let enabled = story.mark("keepalive on");
    POLICY.set_by_hand(&without);
    POLICY.enable(&with);
    sleep(5.0);
    let firsts: Vec<f64> =
        story.flows(&["setsockopt", "ka_enable"]).iter().map(|flow| flow.probes()[0] - enabled).collect();
    for (label, first) in ["setsockopt", "ka_enable"].into_iter().zip(&firsts) {
        story.saw(format!("{label}: first probe after {first:.1} s"));
        story.seconds.push(*first);
    }
    assert!(firsts[0] < 1.0, "setsockopt: not at once");
    assert!(firsts[1] > 2.9 && firsts[1] < 3.0 + late(3.0), "ka_enable: not after idle");
}

fn listener_late(story: &mut Story) {
    const POLICY: Policy = Policy::new(1, 1, 3);
    let network = Network::routed();
    let listener: TcpListener = network.listen();
    story.watch(&network.client);
    let _clients = [network.connect(FAMILY), network.connect(FAMILY)];
    // When connect returns at the client, the last ACK of the handshake is still on its way.
    sleep(0.5);
    story.mark("listener set");
    enable(listener.as_raw_fd(), POLICY.idle, POLICY.intvl, POLICY.cnt).unwrap();
    let _after = network.connect(FAMILY);
    let servers: Vec<TcpStream> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    POLICY.enable(&servers[1]);
    let on: Vec<bool> = servers.iter().map(|server| SockRef::from(server).keepalive().unwrap()).collect();
    assert_eq!(on, [false, true, true], "SO_KEEPALIVE of the accepted connections");
    sleep(4.0);
    let flows = story.flows(&["queued", "queued, set after accept", "connected after"]);
    let probes: Vec<usize> = flows.iter().map(|flow| flow.server_probes().len()).collect();
    story.saw(format!("the server's probes: {probes:?}"));
    assert!(probes[0] == 0 && probes[1] >= 2 && probes[2] >= 2, "{probes:?}");
}

/// Returns how many ICMP errors the client's kernel has ignored: because of their sequence number, and because a call
/// had locked the socket.
fn ignored(network: &Network) -> [usize; 2] {
    let netstat = network.client.within(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let value = |counter| {
        let mut both = names.split(' ').zip(values.split(' '));
        both.find(|(name, _)| *name == counter).unwrap().1.parse::<usize>().unwrap()
    };
    [value("OutOfWindowIcmps"), value("LockDroppedIcmps")]
}

/// An ICMP error quotes the packet. The sequence number of a probe was acknowledged long ago, so tcp_v4_err ignores the
/// error as forged. For data, tcp_v4_err stores the error, and tcp_write_err reports it when the kernel gives up.
fn unreachable(story: &mut Story) {
    let policy = Policy::new(1, 1, 3);
    let (network, [idle, busy], _servers) = two(story);
    policy.enable(&idle);
    apply(&busy, policy, AUTO);
    network.filters("refuse", r#"iifname "client" reject with icmpx type host-unreachable"#);
    let refused = story.mark("router answers: host unreachable; data sent");
    (&busy).write_all(b"!").unwrap();
    let first = dead(story, &idle, "idle", refused, policy.seconds());
    let second = ended(story, &busy, "data in flight", refused, policy.seconds());
    let [by_number, by_lock] = ignored(&network);
    let flows = story.flows(&["idle", "data in flight"]);
    story.ended(0, first.0, first.1);
    story.ended(1, second.0, second.1.clone());
    assert_eq!(second.1, "EHOSTUNREACH");
    // The router limits how many ICMP errors it sends, so a probe may have none (net.ipv4.icmp_ratelimit).
    let errors = |flow: &Flow| flow.packets.iter().filter(|packet| packet.kind == Kind::Icmp).count();
    let came: Vec<usize> = flows.iter().map(errors).collect();
    assert!(came[0] >= 1 && came[1] >= 1, "no ICMP error came: {came:?}");
    let ignored = by_number..=by_number + by_lock;
    assert!(ignored.contains(&came[0]), "{came:?} ICMP errors came, and {ignored:?} were ignored");
}

/// After a probe, the timer runs for an interval. An answer does not shorten it (tcp_keepalive_timer).
fn long_interval(story: &mut Story) {
    const POLICY: Policy = Policy::new(1, 3, 2);
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, _server) = network.pair(&listener, FAMILY);
    POLICY.enable(&client);
    sleep(8.5);
    network.drop_packets(r#"iifname "client""#);
    story.mark("packets to the server dropped");
    let (time, how) = ending(&client, 30.0).expect("still alive");
    let flow = story.flows(&["1/3/2"]).remove(0);
    story.ended(0, time, how.clone());
    let after = time - flow.last_heard();
    story.seconds.push(after);
    story.saw(format!("{how} after {after:.1} s"));
    let probes = flow.probes();
    let gaps: Vec<f64> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(flow.answers().len() >= 2, "no two answers");
    assert!(gaps.iter().all(|gap| *gap > 2.98 && *gap < 3.8), "seconds between probes: {gaps:?}");
    assert_eq!(how, "ETIMEDOUT");
    assert!(after > 8.9 && after < 9.0 + late(9.0), "after {after:.2} s");
}
