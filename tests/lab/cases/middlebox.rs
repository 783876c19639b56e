//! Middleboxes that drop idle connections. Address translation then drops packets of unknown connections. Load
//! balancers answer them with RST.

use std::time::Duration;

use crate::endpoint::{Policy, ending, late, preloaded_client, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Story, sleep};

/// The idle time after which the middleboxes drop a connection.
const FORGETS: Duration = Duration::from_secs(5);
/// A policy whose first probe comes after that time, too late.
const TOO_SLOW: Policy = Policy::new(10, 1, 1);
/// The number of timeouts that a connection with a good policy must survive.
const TIMEOUTS: u32 = 5;

#[derive(Clone, Copy, PartialEq)]
enum Middlebox {
    Nat,
    Balancer,
}

impl Middlebox {
    fn network(self) -> Network {
        match self {
            Self::Nat => Network::with_nat(FORGETS),
            Self::Balancer => Network::with_load_balancer(FORGETS),
        }
    }
}

pub fn cases(family: Family) -> Vec<Case> {
    let mut cases = vec![];
    for middlebox in [Middlebox::Nat, Middlebox::Balancer] {
        let name = |what: &str| {
            let middlebox = if middlebox == Middlebox::Nat { "nat" } else { "balancer" };
            format!("{middlebox}::{what}::{}", family.name())
        };
        let (forgotten, noticed) = match middlebox {
            Middlebox::Nat => ("data sent after 8 s is lost", "ETIMEDOUT after 11 s"),
            Middlebox::Balancer => ("data sent after 8 s is answered with RST", "ECONNRESET after 10 s"),
        };
        cases.extend([
            Case::new(name("drops_a_connection_without_keepalive"), forgotten, move |story| {
                without_keepalive(story, middlebox, family);
            }),
            Case::new(
                name("keeps_a_connection_with_a_policy_for_its_timeout"),
                "alive after five timeouts, each probe answered",
                move |story| planned(story, middlebox, family),
            ),
            Case::new(
                name("drops_a_connection_with_a_policy_slower_than_its_timeout"),
                noticed,
                move |story| {
                    too_slow(story, middlebox, family);
                },
            ),
        ]);
    }
    cases
}

fn without_keepalive(story: &mut Story, middlebox: Middlebox, family: Family) {
    let network = middlebox.network();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, server) = network.pair(&listener, family);
    assert!(talks(&client, &server, 5.0), "a new connection does not work");
    sleep(8.0);
    story.mark("the client sends data again");
    assert!(!talks(&client, &server, 3.0), "the middlebox still knows the connection");
    let ended = ending(&client, 0.1);
    let flow = story.flows(&["no keepalive"]).remove(0);
    assert!(flow.probes().is_empty());
    match middlebox {
        Middlebox::Nat => {
            assert_eq!(ended, None, "the client was told about the end");
            story.saw("no answer, no error");
        }
        Middlebox::Balancer => {
            let (time, how) = ended.expect("the client was not told about the end");
            assert_eq!(how, "ECONNRESET");
            story.ended(0, time, how);
            story.saw("ECONNRESET");
        }
    }
}

fn planned(story: &mut Story, middlebox: Middlebox, family: Family) {
    let network = middlebox.network();
    let listener = network.listen();
    let policy = Policy::planned(FORGETS);
    story.watch(&network.client);
    let (client, server) = network.pair(&listener, family);
    policy.enable(&client);
    let program = preloaded_client(&network, family, policy);
    let program_server = listener.accept().unwrap().0;
    let seconds = (FORGETS * TIMEOUTS).as_secs_f64();
    sleep(seconds);
    story.mark("both speak");
    assert!(talks(&client, &server, 5.0), "libka: the connection did not survive {policy:?}");
    std::io::Write::write_all(&mut &program_server, b"still there\n").unwrap();
    assert!(
        program.line(&["still there"], 5.0).is_some(),
        "preload: the connection did not survive {policy:?}"
    );
    for flow in story.flows(&["libka", "preload"]) {
        let (probes, answers) = (flow.probes().len(), flow.answers().len());
        // The capture may end between a probe and its answer.
        assert!(answers == probes || answers + 1 == probes, "{probes} probes, {answers} answers");
        // There is one probe per idle time, and the kernel's timers are up to an eighth late.
        let idle = f64::from(policy.idle);
        let (least, most) = ((seconds / (idle * 1.127 + 0.1)).floor() - 1.0, (seconds / idle).ceil());
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let seen = probes as f64;
        assert!((least..=most).contains(&seen), "{probes} probes in {seconds} s, not {least} to {most}");
    }
    story.seconds.push(seconds);
    story.saw(format!("alive after {seconds} s with {}", policy.name()));
}

fn too_slow(story: &mut Story, middlebox: Middlebox, family: Family) {
    let network = middlebox.network();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, _server) = network.pair(&listener, family);
    TOO_SLOW.enable(&client);
    let (time, how) = ending(&client, 30.0).expect("the connection is still alive, long after its time");
    let flow = story.flows(&["too slow"]).remove(0);
    let seconds = time - flow.last_heard();
    story.ended(0, time, how.clone());
    story.seconds.push(seconds);
    story.saw(format!("{how} after {seconds:.1} s with {}", TOO_SLOW.name()));
    let (error, due) = match middlebox {
        Middlebox::Nat => ("ETIMEDOUT", TOO_SLOW.seconds()),
        Middlebox::Balancer => ("ECONNRESET", f64::from(TOO_SLOW.idle)),
    };
    assert_eq!(how, error);
    assert!(seconds > due - 0.1 && seconds < due + late(due), "after {seconds:.2} s, not {due} s");
    assert_eq!((flow.probes().len(), flow.answers().len()), (1, 0), "probes, answers");
}
