//! Checks each packet of the probes and when it is sent. tshark, which is independent of ka, must report the same.

use std::path::Path;
use std::process::Command;

use ka_test::child::stdout;

use crate::endpoint::{Policy, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Story, sleep};
use crate::wire::{Flow, Kind, Packet, flag};

pub fn cases(family: Family) -> Vec<Case> {
    [Policy::new(1, 1, 5), Policy::new(1, 3, 3), Policy::new(2, 2, 4)]
        .into_iter()
        .map(|policy| {
            Case::new(
                format!(
                    "wire::probes_are_bare_acks_for_the_last_acknowledged_byte::{}::{}",
                    policy.name().replace('/', "_"),
                    family.name()
                ),
                format!("seq = next - 1, length 0, ACK; answered the same; then one each {} s", policy.intvl),
                move |story| run(story, policy, family),
            )
        })
        .collect()
}

fn run(story: &mut Story, policy: Policy, family: Family) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, server) = network.pair(&listener, family);
    // Exchange data first, so that the sequence numbers are those of a connection in use.
    for _ in 0..3 {
        assert!(talks(&client, &server, 5.0));
    }
    policy.enable(&client);
    // Wait for two answered probes, and a bit longer.
    sleep(f64::from(policy.idle + policy.idle.max(policy.intvl)) * 1.127 + 1.0);
    network.drop_packets(r#"iifname "server""#);
    story.mark("packets from the server dropped");
    let (time, how) = crate::endpoint::ending(&client, 2.0 * policy.seconds() + 10.0).expect("still alive");
    let file = story.file();
    let flow = story.flows(&["libka"]).remove(0);
    story.ended(0, time, how);

    let unanswered = check_probes(&flow);
    assert_eq!(unanswered.len(), usize::try_from(policy.cnt).unwrap(), "unanswered probes");
    assert!(flow.answers().len() >= 2, "answered probes: {}", flow.answers().len());
    let intvl = f64::from(policy.intvl);
    let gaps: Vec<f64> = unanswered.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for gap in &gaps {
        assert!(
            *gap > intvl - 0.02 && *gap < intvl * 1.127 + 0.3,
            "{gap:.3} s between two probes, not {intvl}"
        );
    }
    let longest = gaps.iter().copied().fold(0.0, f64::max);
    story.seconds.push(longest);
    story.saw(format!("{} probes; at most {longest:.2} s between the unanswered", flow.probes().len()));
    tshark_agrees(&file, &flow);
}

/// Checks the sent bytes against RFC 1122, 4.2.3.6, and `tcp_xmit_probe_skb`. Returns the times of the unanswered
/// probes.
pub fn check_probes(flow: &Flow) -> Vec<f64> {
    let mut next = [0_u32, 0];
    let mut unanswered = vec![];
    for Packet { time, from_client, kind, flags, seq, ack, length, .. } in flow.packets.iter().copied() {
        let (me, other) = (usize::from(from_client), usize::from(!from_client));
        match kind {
            Kind::Probe => {
                assert!(from_client, "a probe from the server, which has no keepalive");
                assert_eq!((flags, length), (flag::ACK, 0), "a probe");
                assert_eq!((seq, ack), (next[me].wrapping_sub(1), next[other]), "a probe's numbers");
                unanswered.push(time);
            }
            Kind::Answer => {
                assert_eq!((flags, length), (flag::ACK, 0), "an answer");
                assert_eq!((seq, ack), (next[me], next[other]), "an answer's numbers");
                unanswered.clear();
            }
            _ => {
                let begins_or_ends = u32::from(flags & (flag::SYN | flag::FIN) != 0);
                next[me] = seq.wrapping_add(length).wrapping_add(begins_or_ends);
            }
        }
    }
    unanswered
}

fn tshark_agrees(file: &Path, flow: &Flow) {
    // tshark reports an answer with a new window as a window update.
    let answer = "tcp.analysis.keep_alive_ack or tcp.analysis.window_update";
    for (filter, kind) in [("tcp.analysis.keep_alive", Kind::Probe), (answer, Kind::Answer)] {
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-e", "frame.number"]);
        let theirs = stdout(&mut tshark);
        let theirs: Vec<usize> = theirs.lines().map(|frame| frame.parse().unwrap()).collect();
        let ours: Vec<usize> =
            flow.packets.iter().filter(|packet| packet.kind == kind).map(|packet| packet.frame).collect();
        assert_eq!(theirs, ours, "{filter}: the frames of tshark, and ours");
    }
}
