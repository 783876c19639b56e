//! A peer that is dead, in each way that this happens, and a frozen peer, which only seems dead.

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
            CableOfServer => "server_cable_pulled",
            CableOfClient => "client_cable_pulled",
            LostOnTheWayOut => "packets_to_the_server_lost",
            LostOnTheWayBack => "packets_from_the_server_lost",
            Unreachable => "router_reports_host_unreachable",
            Killed => "peer_process_killed",
            Rebooted => "peer_machine_rebooted",
            Frozen => "peer_process_frozen",
        }
    }

    /// Returns the errors that the program may get, and after how many seconds of silence. `None` if the peer is alive.
    fn outcome(self, policy: Policy) -> Option<(&'static [&'static str], f64)> {
        Some(match self {
            // The router's error quotes a probe, whose sequence number was acknowledged long ago. So tcp_v4_err ignores
            // the error.
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
            LostOnTheWayOut => network.drop_packets(r#"iifname "client""#),
            LostOnTheWayBack => network.drop_packets(r#"iifname "server""#),
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
                None => "alive: its kernel answers".to_owned(),
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
                    .expect("the connection is still alive, long after its time")
            });
            let flows = story.flows(&["libka", "preload"]);
            for (place, (time, ending)) in endings.into_iter().enumerate() {
                story.ended(place, time, ending.clone());
                let since = if seconds == 0.0 { happens } else { flows[place].last_heard() };
                let measured = time - since;
                story.seconds.push(measured);
                story.saw(format!("{ending} after {measured:.1} s"));
                // On a busy machine, the reboot can take longer than all probes. The router then also has to find the
                // address of the new machine.
                let is_late = event == Rebooted
                    && ending == "ETIMEDOUT"
                    && flows[place].probes().last().is_some_and(|last| *last < happened + 1.0);
                assert!(is_late || errors.contains(&ending.as_str()), "{ending}, not {errors:?}");
                // On a slow machine, the answer to the last probe before the event is late.
                assert!(measured > seconds - 0.1, "too soon: {measured:.2} s, not {seconds} s");
                // A machine that needs a while to come back misses a probe or two. The last one is answered, or the
                // connection ends an interval later.
                let missed = if event == Rebooted {
                    probes_after(&flows[place], flows[place].last_heard()) - usize::from(!is_late)
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

/// After the peer's last packet, the kernel sends a probe after the idle time, and one after each interval. When the
/// probe after the last one is due, the connection ends instead. If the client's own cable is pulled, no packet leaves
/// the machine once its kernel has noticed (linkwatch looks once a second).
fn probes_agree(event: Event, policy: Policy, flow: &Flow, happened: f64) {
    let unanswered = probes_after(flow, flow.last_heard());
    match event {
        CableOfClient => {
            assert!(probes_after(flow, happened + 1.1) == 0, "a probe went through a pulled cable");
        }
        Killed => assert_eq!(unanswered, 0, "probes to a peer that has closed the connection"),
        Rebooted => assert!(unanswered >= 1, "no probe"),
        _ => assert_eq!(unanswered, usize::try_from(policy.cnt).unwrap(), "unanswered probes"),
    }
}

/// A frozen program does not answer, but its kernel does.
fn frozen(story: &mut Story, policy: Policy, programs: &[Program], mut peer: Program) {
    let long = policy.seconds() * 3.0;
    sleep(long);
    assert!(peer.is_stopped(), "the peer is not frozen");
    peer.tell("awake");
    for program in programs {
        let heard = program.line(&["awake", "ETIMEDOUT", "ECONNRESET", "closed"], 0.3);
        assert_eq!(heard, None, "the connection to a frozen peer has ended, although its kernel answers");
    }
    story.mark("peer process continues");
    peer.signal(libc::SIGCONT);
    for program in programs {
        assert!(program.line(&["awake"], 10.0).is_some(), "data of the peer after its sleep does not arrive");
    }
    for flow in story.flows(&["libka", "preload"]) {
        let (probes, answers) = (flow.probes().len(), flow.answers().len());
        assert!(probes >= 2 && answers + 1 >= probes, "{probes} probes, {answers} answers");
    }
    story.seconds.push(long);
    story.saw(format!("alive after {long} s"));
}
