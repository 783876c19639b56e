//! A peer that is gone, in each way that happens, and one that only seems so.

use crate::endpoint::{Policy, Program, late, libka_client, peer, preloaded_client};
use crate::network::{Family, Network};
use crate::story::{Case, Story, now, sleep};
use crate::wire::Flow;

#[derive(Clone, Copy, PartialEq)]
enum Event {
    CableOfServer,
    CableOfClient,
    LostOnTheWayOut,
    LostOnTheWayBack,
    Unreachable,
    Killed,
    Rebooted,
    Frozen,
}

use Event::{
    CableOfClient, CableOfServer, Frozen, Killed, LostOnTheWayBack, LostOnTheWayOut, Rebooted, Unreachable,
};

const EVENTS: [Event; 8] =
    [CableOfServer, CableOfClient, LostOnTheWayOut, LostOnTheWayBack, Unreachable, Killed, Rebooted, Frozen];

impl Event {
    const fn name(self) -> &'static str {
        match self {
            CableOfServer => "cable_of_the_server_pulled",
            CableOfClient => "cable_of_the_client_pulled",
            LostOnTheWayOut => "packets_lost_on_the_way_out",
            LostOnTheWayBack => "packets_lost_on_the_way_back",
            Unreachable => "router_says_unreachable",
            Killed => "peer_process_killed",
            Rebooted => "peer_machine_rebooted",
            Frozen => "peer_process_frozen",
        }
    }

    /// What the program is told, and after how many seconds without a word from the peer.
    fn outcome(self, policy: Policy) -> Option<(&'static [&'static str], f64)> {
        Some(match self {
            // A router's error quotes a probe, whose sequence number was acknowledged long ago: tcp_v4_err takes it for
            // somebody else's.
            CableOfServer | CableOfClient | LostOnTheWayOut | LostOnTheWayBack | Unreachable => {
                (&["ETIMEDOUT"], policy.seconds())
            }
            Killed => (&["closed"], 0.0),
            Rebooted => (&["ECONNRESET"], f64::from(policy.idle)),
            Frozen => return None,
        })
    }

    fn happen(self, network: &mut Network, peer: Program) -> Option<Program> {
        match self {
            CableOfServer => network.server.ip("link set eth0 down"),
            CableOfClient => network.router.ip("link set client down"),
            LostOnTheWayOut => network.lose(r#"iifname "client""#),
            LostOnTheWayBack => network.lose(r#"iifname "server""#),
            Unreachable => {
                network.filters("refuse", r#"iifname "client" reject with icmpx type host-unreachable"#);
            }
            Killed => {
                drop(peer);
                return None;
            }
            Rebooted => {
                network.reboot_server(|| drop(peer));
                return None;
            }
            Frozen => peer.signal(libc::SIGSTOP),
        }
        Some(peer)
    }

    const fn words(self) -> &'static str {
        match self {
            CableOfServer => "server's cable pulled",
            CableOfClient => "client's cable pulled",
            LostOnTheWayOut => "packets to the server dropped",
            LostOnTheWayBack => "packets from the server dropped",
            Unreachable => "router answers: host unreachable",
            Killed => "peer process killed",
            Rebooted => "peer rebooted",
            Frozen => "peer process stopped",
        }
    }
}

pub fn cases(family: Family) -> Vec<Case> {
    let policies = [Policy::new(1, 1, 1), Policy::new(1, 1, 3), Policy::new(2, 3, 2)];
    let mut cases = vec![];
    for event in EVENTS {
        for policy in policies {
            let name = format!(
                "dead_peer::{}::{}::{}",
                event.name(),
                policy.name().replace('/', "_"),
                family.name()
            );
            let should = match event.outcome(policy) {
                Some((errors, 0.0)) => format!("{} at once", errors.join(" or ")),
                Some((errors, seconds)) => format!("{} after {seconds} s of silence", errors.join(" or ")),
                None => "lives: its kernel answers".to_owned(),
            };
            cases.push(Case::new(name, should, move |story| run(story, event, policy, family)));
        }
    }
    cases
}

fn run(story: &mut Story, event: Event, policy: Policy, family: Family) {
    let mut network = Network::routed();
    let the_peer = peer(&network);
    story.watch(&network.client);
    let programs = [libka_client(&network, family, policy), preloaded_client(&network, family, policy)];
    for _ in &programs {
        assert!(the_peer.line(&["accepted"], 20.0).is_some(), "the peer does not accept");
    }
    let happens = now();
    let the_peer = event.happen(&mut network, the_peer);
    let happened = story.mark(event.words());
    match event.outcome(policy) {
        Some((errors, seconds)) => {
            let endings = programs.each_ref().map(|program| {
                program
                    .ending(2.0 * seconds + 10.0)
                    .expect("the connection is still there, long after its time")
            });
            let flows = story.flows(&["libka", "preload"]);
            for (place, (time, ending)) in endings.into_iter().enumerate() {
                story.ended(place, time, ending.clone());
                let since = if seconds == 0.0 { happens } else { flows[place].last_heard() };
                let measured = time - since;
                story.seconds.push(measured);
                story.saw(format!("{ending} after {measured:.1} s"));
                assert!(errors.contains(&ending.as_str()), "{ending}, not {errors:?}");
                // The answer to the last probe before the event is as late as the machine is slow.
                assert!(measured > seconds - 0.1, "too soon: {measured:.2} s, not {seconds} s");
                // A machine that takes a while to come back misses a probe or two.
                let missed = if event == Rebooted {
                    probes_after(&flows[place], flows[place].last_heard()) - 1
                } else {
                    0
                };
                let most = seconds + f64::from(policy.intvl) * f64::from(u32::try_from(missed).unwrap());
                assert!(measured < most + late(most), "too late: {measured:.2} s, not {most} s");
                probes_agree(event, policy, &flows[place], happened);
            }
        }
        None => frozen(story, policy, &programs, the_peer.unwrap()),
    }
}

fn probes_after(flow: &Flow, moment: f64) -> usize {
    flow.probes().iter().filter(|time| **time > moment).count()
}

/// After the last word of the peer, the kernel sends a probe at idle, and one each interval; the last is not waited for
/// in vain: the connection dies when it is due. Nothing leaves a machine whose own cable is pulled, once it has noticed
/// (linkwatch looks once a second).
fn probes_agree(event: Event, policy: Policy, flow: &Flow, happened: f64) {
    let unanswered = probes_after(flow, flow.last_heard());
    match event {
        CableOfClient => {
            assert!(probes_after(flow, happened + 1.1) == 0, "a probe through a cable that is pulled");
        }
        Killed => assert_eq!(unanswered, 0, "probes to a peer that has said goodbye"),
        Rebooted => assert!(unanswered >= 1, "no probe"),
        _ => assert_eq!(unanswered, usize::try_from(policy.cnt).unwrap(), "unanswered probes"),
    }
}

/// A frozen program does not answer, and its kernel does.
fn frozen(story: &mut Story, policy: Policy, programs: &[Program], mut peer: Program) {
    let long = policy.seconds() * 3.0;
    sleep(long);
    assert!(peer.is_stopped(), "the peer is not frozen");
    peer.tell("awake");
    for program in programs {
        let heard = program.line(&["awake", "ETIMEDOUT", "ECONNRESET", "closed"], 0.3);
        assert_eq!(heard, None, "from a peer that is frozen and whose kernel answers");
    }
    story.mark("peer process goes on");
    peer.signal(libc::SIGCONT);
    for program in programs {
        assert!(
            program.line(&["awake"], 10.0).is_some(),
            "what the peer says after its sleep does not arrive"
        );
    }
    for flow in story.flows(&["libka", "preload"]) {
        let (probes, answers) = (flow.probes().len(), flow.answers().len());
        assert!(probes >= 2 && answers + 1 >= probes, "{probes} probes, {answers} answers");
    }
    story.seconds.push(long);
    story.saw(format!("alive after {long} s"));
}
