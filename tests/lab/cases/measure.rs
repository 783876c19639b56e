//! `ka measure` measures the idle time that a path survives, without a program of ka on the server. The lab sets this
//! time, so it knows the right result. tcpdump shows the idle times that the probes have really tested.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::Duration;

use ka_test::artifact::release;
use ka_test::child::remove_ka_variables;
use serde_json::Value;

use crate::endpoint::{Policy, closing_peer, peer, proxy};
use crate::network::{Family, Network, PORT};
use crate::story::{Case, Story};
use crate::wire::{Flow, Kind};

/// The idle time after which the middleboxes drop a connection.
const FORGETS: Duration = Duration::from_secs(12);
/// The time after which the server closes a connection.
const CLOSES: Duration = Duration::from_secs(9);
/// The idle times that are tried, in seconds, and the precision.
const LADDER: [&str; 6] = ["--from", "2s", "--to", "24s", "--precision", "1s"];
const TO: f64 = 24.0;
/// The longest time of a run, for timeout(1).
const LONG: &str = "150s";
/// The delay in seconds that a busy machine may add.
const BUSY: f64 = 1.5;
/// The percentage of lost packets to the server.
const LOST: u32 = 30;
/// The number of connections that are open at the same time, at most.
const MOST_CONNECTIONS: usize = 12;

pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("measure::{name}"), should, run);
    vec![
        case("a_server_that_closes_ends_the_measurement", "server-closes after 9 s, exit status 1", closes),
        case(
            "a_path_that_forgets_before_the_server_closes_is_found",
            "forgets between 11 and 13 s, although the server closes at 20 s",
            |story| {
                let network = Network::with_nat(FORGETS);
                let _peer = closing_peer(&network, Duration::from_secs(20));
                forgets(story, &network, Family::V4, "silent");
            },
        ),
        case("a_path_that_keeps_is_found", "keeps 24 s; at most 12 connections at a time", keeps),
        case("a_proxy_keeps_and_the_output_warns_of_it", "keeps; the text names a proxy", |story| {
            let network = Network::with_proxy();
            let _programs = [peer(&network), proxy(&network)];
            explained(story, &network, "proxy");
        }),
        case(
            "a_nat_that_picks_up_connections_keeps_and_the_output_says_why",
            "keeps, although the NAT forgets after 12 s; the text names a NAT",
            |story| {
                let network = Network::with_loose_nat(FORGETS);
                let _peer = peer(&network);
                explained(story, &network, "NAT");
            },
        ),
        case("a_lossy_path_is_not_silent", "keeps 24 s with 30 % loss", lossy),
    ]
}

/// Returns the cases for each family.
pub fn cases_of(family: Family) -> Vec<Case> {
    let case = |name: &str, should: &str, run: fn(&mut Story, Family)| {
        Case::new(format!("measure::{name}::{}", family.name()), should, move |story| run(story, family))
    };
    vec![
        case("a_silent_nat_is_found", "forgets between 11 and 13 s, silent", |story, family| {
            let network = Network::with_nat(FORGETS);
            let _peer = peer(&network);
            forgets(story, &network, family, "silent");
        }),
        case("a_resetting_nat_is_found", "forgets between 11 and 13 s, reset", |story, family| {
            let network = Network::with_resetting_nat(FORGETS);
            let _peer = peer(&network);
            forgets(story, &network, family, "reset");
        }),
        case("a_balancer_that_forgot_is_found", "forgets between 11 and 13 s, reset", |story, family| {
            let network = Network::with_load_balancer(FORGETS);
            let _peer = peer(&network);
            forgets(story, &network, family, "reset");
        }),
    ]
}

/// Runs `ka measure` on the client.
fn run(network: &Network, family: Family, args: &[&str]) -> Output {
    let mut command = network.client.command("timeout");
    remove_ka_variables(&mut command);
    command.arg(LONG).arg(release().join("ka")).arg("measure");
    command.arg(SocketAddr::new(network.host(family), PORT).to_string());
    command.args(LADDER).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs `ka measure --json`. Returns its object, its exit status and the connections that it made.
fn measure(story: &mut Story, network: &Network, family: Family) -> (Value, Option<i32>, Vec<Flow>) {
    story.watch(&network.client);
    let output = run(network, family, &["--json"]);
    let result: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    story.file();
    let flows = story.flows.iter().map(|shown| shown.flow.clone()).collect();
    story.flows.truncate(MOST_CONNECTIONS);
    story.seconds.push(seconds(&result, "took_s"));
    story.saw(format!(
        "{} {}",
        result["verdict"].as_str().unwrap(),
        result["how"].as_str().unwrap_or_default()
    ));
    (result, output.status.code(), flows)
}

fn seconds(result: &Value, key: &str) -> f64 {
    result[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", result[key]))
}

/// A trial in the capture.
struct Rung {
    /// The idle time before the first probe, in seconds.
    idle: f64,
    /// True if an answer to a probe arrived.
    answered: bool,
}

/// Returns the trials that tcpdump saw. Further probes on the same connection belong to the same trial.
fn rungs(flows: &[Flow]) -> Vec<Rung> {
    flows
        .iter()
        .filter_map(|flow| {
            let probe =
                flow.packets.iter().position(|packet| packet.kind == Kind::Probe && packet.from_client)?;
            let heard = flow.packets[..probe].last()?.time;
            let answered = !flow.answers().is_empty();
            Some(Rung { idle: flow.packets[probe].time - heard, answered })
        })
        .collect()
}

/// Measures a path that forgets.
fn forgets(story: &mut Story, network: &Network, family: Family, how: &str) {
    let (result, status, flows) = measure(story, network, family);
    assert_eq!(
        (&result["verdict"], &result["how"], status),
        (&"forgets".into(), &how.into(), Some(0)),
        "{result}"
    );
    let (survives, fails) = (seconds(&result, "survives_s"), seconds(&result, "fails_s"));
    story.saw(format!("survives {survives} s, fails {fails} s"));
    let limit = FORGETS.as_secs_f64();
    assert!(survives < limit + 0.1 && survives > limit - 2.0 - BUSY, "survives {survives} s");
    assert!(fails > limit - 0.1 && fails < limit + 2.0 + BUSY, "fails {fails} s");
    agree(&result, &flows, how);
    let policy = Policy::planned(Duration::from_secs_f64(survives.floor()));
    let expected = serde_json::json!({"idle": policy.idle, "intvl": policy.intvl, "cnt": policy.cnt});
    assert_eq!(result["policy"], expected, "the policy for {survives} s");
}

/// Checks the result against the packets: the longest answered and the shortest unanswered idle time.
fn agree(result: &Value, flows: &[Flow], how: &str) {
    let (survives, fails) = (seconds(result, "survives_s"), seconds(result, "fails_s"));
    let seen = rungs(flows);
    let longest = seen.iter().filter(|trial| trial.answered).map(|trial| trial.idle).fold(0.0, f64::max);
    let shortest =
        seen.iter().filter(|trial| !trial.answered).map(|trial| trial.idle).fold(f64::INFINITY, f64::min);
    assert!(
        (survives - longest).abs() < 1.0,
        "survives_s {survives}; tcpdump saw an answer after {longest:.1} s"
    );
    assert!((fails - shortest).abs() < 1.0, "fails_s {fails}; tcpdump saw no answer after {shortest:.1} s");
    for trial in result["trials"].as_array().unwrap() {
        let idle = seconds(trial, "idle_s");
        let expected = if idle <= survives { "answered" } else { how };
        assert_eq!(trial["result"], expected, "the trial of {idle} s: {result}");
    }
}

fn closes(story: &mut Story) {
    let network = Network::routed();
    let _peer = closing_peer(&network, CLOSES);
    let (result, status, _) = measure(story, &network, Family::V4);
    assert_eq!(
        (&result["verdict"], &result["how"], status),
        (&"server-closes".into(), &Value::Null, Some(1)),
        "{result}"
    );
    let (closed, survives) = (seconds(&result, "server_closed_s"), seconds(&result, "survives_s"));
    story.saw(format!("closed after {closed} s, survives {survives} s"));
    let limit = CLOSES.as_secs_f64();
    assert!(closed > limit - 0.1 && closed < limit + BUSY, "closed after {closed} s");
    // The ladder has a rung of at least half the time.
    assert!(survives > limit / 2.0 - 1.0 && survives < closed + 0.1, "survives {survives} s");
    assert_eq!(result["fails_s"], Value::Null, "the path never failed");
}

/// Measures a path that keeps connections.
fn keeps(story: &mut Story) {
    let network = Network::routed();
    let _peer = peer(&network);
    let (result, status, flows) = measure(story, &network, Family::V4);
    assert_keeps(&result, status);
    let most = most_at_once(&flows);
    story.saw(format!("at most {most} connections at a time"));
    assert!((2..=MOST_CONNECTIONS).contains(&most), "{most} connections at a time");
}

/// Measures a path that seems to keep connections. The text for people must name the reason why that may be wrong.
fn explained(story: &mut Story, network: &Network, reason: &str) {
    story.watch(&network.client);
    let output = run(network, Family::V4, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("keeps") && text.contains(reason), "the text names no {reason}: {text}");
    story.saw(format!("keeps; the text names a {reason}"));
}

/// Returns the largest number of connections that were open at the same time.
fn most_at_once(flows: &[Flow]) -> usize {
    let span = |flow: &Flow| (flow.packets.first().unwrap().time, flow.packets.last().unwrap().time);
    let spans: Vec<_> = flows.iter().map(span).collect();
    let open = |time: f64| spans.iter().filter(|(from, to)| (*from..*to).contains(&time)).count();
    spans.iter().map(|(from, _)| open(*from)).max().unwrap_or(0)
}

fn assert_keeps(result: &Value, status: Option<i32>) {
    assert_eq!(
        (&result["verdict"], &result["how"], status),
        (&"keeps".into(), &Value::Null, Some(0)),
        "{result}"
    );
    assert_eq!(result["fails_s"], Value::Null, "{result}");
    let survives = seconds(result, "survives_s");
    assert!(survives > TO - 0.1 && survives < TO + BUSY, "survives {survives} s");
}

fn lossy(story: &mut Story) {
    let network = Network::routed();
    let _peer = peer(&network);
    network.drop_packets(&format!(r#"iifname "client" numgen random mod 100 < {LOST}"#));
    story.mark(format!("{LOST} % of the packets to the server lost"));
    let (result, status, flows) = measure(story, &network, Family::V4);
    assert_keeps(&result, status);
    let lost = flows.iter().map(|flow| flow.probes().len() - flow.answers().len()).sum::<usize>();
    story.saw(format!("{lost} probes lost"));
}
