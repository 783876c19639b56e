//! A healthy peer behind a bad path must not be found dead.

use std::net::TcpStream;
use std::time::Duration;

use socket2::SockRef;

use crate::endpoint::{Policy, is_open, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Needs, Story};

/// The percentage of lost packets to the server.
const LOST: u32 = 30;
const PROBES: usize = 100;
/// The seconds for all probes: one a second, each up to an eighth late, plus the delay of the path.
const LONG_ENOUGH: f64 = 165.0;
/// The delay in one direction, as netem adds it at one interface.
const DELAY: Duration = Duration::from_millis(300);
/// The number of connections with each policy. The result for a single one would depend on chance.
const CONNECTIONS: u32 = 100;
/// Returns a policy with the most frequent probes, and with the count of `ka_plan_path`.
fn planned() -> Policy {
    Policy { idle: 1, intvl: 1, ..Policy::planned(Duration::from_secs(350)) }
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "loss::a_path_that_loses_30_percent_ends_all_connections_with_count_1_and_few_with_a_planned_count",
            format!(
                "with cnt of a plan about {:.0} of {CONNECTIONS} survive {PROBES} probes; with cnt=1 none",
                f64::from(CONNECTIONS) * survival(planned().cnt)
            ),
            lossy,
        )
        .needs(Needs::Nothing),
        Case::new(
            "loss::a_path_with_300_ms_delay_ends_no_connection",
            format!("alive after {PROBES} probes"),
            slow,
        )
        .needs(Needs::Nothing),
    ]
}

/// Returns the expected share of connections that survive `PROBES` probes, that is, without `cnt` lost probes in a row.
fn survival(cnt: i32) -> f64 {
    let lost = f64::from(LOST) / 100.0;
    // The probability to be alive after n lost probes in a row, for each n.
    let mut alive = vec![0.0; usize::try_from(cnt).unwrap()];
    alive[0] = 1.0;
    for _ in 0..PROBES {
        let heard = alive.iter().sum::<f64>() * (1.0 - lost);
        alive.rotate_right(1);
        for share in &mut alive {
            *share *= lost;
        }
        alive[0] = heard;
    }
    alive.iter().sum()
}

fn lossy(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (mut labels, mut pairs) = (vec![], vec![]);
    for (label, policy) in [("cnt of a plan", planned()), ("cnt=1", Policy { cnt: 1, ..planned() })] {
        for _ in 0..CONNECTIONS {
            let (client, server) = network.pair(&listener, Family::V4);
            policy.enable(&client);
            let cnt = SockRef::from(&client).tcp_keepalive_retries().unwrap();
            assert_eq!(i32::try_from(cnt).unwrap(), policy.cnt, "TCP_KEEPCNT");
            labels.push(label);
            pairs.push((client, server));
        }
    }
    network.drop_packets(&format!(r#"iifname "client" numgen random mod 100 < {LOST}"#));
    story.mark(format!("{LOST} % of the packets to the server lost"));
    story.wait_for_probes(&pairs, PROBES, LONG_ENOUGH);
    network.stop_dropping();
    let alive = |pairs: &[(TcpStream, TcpStream)]| -> Vec<bool> {
        pairs.iter().map(|(client, server)| is_open(client) && talks(client, server, 5.0)).collect()
    };
    let lives = alive(&pairs);
    let (planned_lives, once_lives) = lives.split_at(usize::try_from(CONNECTIONS).unwrap());
    let flows = story.flows(&labels);
    for (flow, _) in flows.iter().zip(&lives).filter(|(_, lives)| **lives) {
        let probes = flow.probes().len();
        assert!(probes >= PROBES, "only {probes} probes");
    }
    let count = |lives: &[bool]| lives.iter().filter(|lives| **lives).count();
    let (with, without) = (count(planned_lives), count(once_lives));
    let (sent, heard) = flows
        .iter()
        .fold((0, 0), |(sent, heard), flow| (sent + flow.probes().len(), heard + flow.answers().len()));
    let lost = 100 * (sent - heard) / sent;
    story.saw(format!("{lost} % of {sent} probes lost"));
    assert!(lost.abs_diff(usize::try_from(LOST).unwrap()) <= 3, "{lost} % of the probes were lost");
    story.saw(format!("cnt={}: {with} of {CONNECTIONS} alive; cnt=1: {without}", planned().cnt));
    // The picture shows two connections of each policy. Prefer connections that survive.
    let mut kept: Vec<_> = std::mem::take(&mut story.flows);
    kept.truncate(usize::try_from(CONNECTIONS).unwrap() + 2);
    kept.drain(2..usize::try_from(CONNECTIONS).unwrap());
    story.flows = kept;
    assert_eq!(without, 0, "alive with cnt=1");
    // Chance alone does not cause a result five standard deviations below the expected one.
    let share = survival(planned().cnt);
    let expected = f64::from(CONNECTIONS) * share;
    let least = expected - 5.0 * (expected * (1.0 - share)).sqrt();
    assert!(f64::from(u32::try_from(with).unwrap()) > least, "only {with} of {CONNECTIONS} alive");
}

fn slow(story: &mut Story) {
    let (network, _cable) = Network::slow(DELAY);
    let listener = network.listen();
    story.watch(&network.client);
    let pair = network.pair(&listener, Family::V4);
    planned().enable(&pair.0);
    let pairs = [pair];
    story.wait_for_probes(&pairs, PROBES, LONG_ENOUGH);
    story.mark("both speak");
    let [(client, server)] = &pairs;
    assert!(talks(client, server, 10.0), "the connection is dead");
    let flow = story.flows(&["cnt of a plan"]).remove(0);
    let (probes, answers) = (flow.probes(), flow.answers());
    assert!(probes.len() >= PROBES, "only {} probes", probes.len());
    assert!(answers.len() * 100 >= probes.len() * 95, "{} answers to {} probes", answers.len(), probes.len());
    let soonest = |answer: &f64| {
        let probe = probes.iter().rfind(|probe| *probe < answer);
        answer - probe.expect("a probe before its answer")
    };
    let fastest = answers.iter().map(soonest).fold(f64::MAX, f64::min);
    assert!(fastest > DELAY.as_secs_f64(), "an answer after {fastest:.3} s: the path has no such delay");
    story.saw(format!("alive after {} probes", probes.len()));
}
