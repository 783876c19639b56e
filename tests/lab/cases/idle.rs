//! The idle time of Linux. It starts when a segment with data (`lrcvtime`) or an acceptable acknowledgement
//! (`rcv_tstamp`) comes in, whichever is later. `tcp_keepalive_timer` in net/ipv4/tcp_timer.c computes it with
//! `keepalive_time_elapsed` in include/net/tcp.h. Sent data restarts the idle time only when its acknowledgement comes
//! in.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use socket2::SockRef;

use crate::endpoint::{Policy, info_word};
use crate::network::{Family, Network, SlowCable};
use crate::story::{Case, Story, sleep};
use crate::wire::{Flow, Kind, Packet};

const POLICY: Policy = Policy::new(4, 1, 9);
/// The time from the handshake to the event, in seconds.
const MOMENT: f64 = 1.0;
/// The tolerance for the kernel's timer and the capture's clock, in seconds. It is less than `MOMENT`, to tell the
/// handshake and the event apart.
const LATE: f64 = 0.8;

pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("idle::{name}"), should, run);
    vec![
        case("idle_time_starts_at_the_handshake", "first probe 4 s after it", |story| {
            // Keepalive is turned on half a second before the handshake ends.
            counts(story, slow, |_, _, _| {}, |flow, _| first(flow, false, Kind::Handshake));
        }),
        case("received_data_restarts_the_idle_time", "first probe 4 s after the data", |story| {
            let speaks =
                |_: &mut Story, _: &TcpStream, mut server: &TcpStream| server.write_all(b"!").unwrap();
            counts(story, quick, speaks, |flow, _| first(flow, false, Kind::Data));
        }),
        case(
            "acknowledged_data_restarts_the_idle_time",
            "first probe 4 s after the acknowledgement, which comes half a second after the data",
            |story| {
                let speaks =
                    |_: &mut Story, mut client: &TcpStream, _: &TcpStream| client.write_all(b"!").unwrap();
                counts(story, slow, speaks, |flow, _| {
                    let (sent, acknowledged) = (first(flow, true, Kind::Data), first(flow, false, Kind::Ack));
                    assert!(acknowledged - sent > 0.45, "acknowledged after {:.2} s", acknowledged - sent);
                    acknowledged
                });
            },
        ),
        case("a_received_bare_ack_restarts_the_idle_time", "first probe 4 s after it", |story| {
            counts(story, quick, opens_its_window, |flow, read| {
                let update = |packet: &&Packet| !packet.from_client && packet.time > read;
                let update = flow.packets.iter().find(update).expect("a window update");
                assert_eq!(update.kind, Kind::Ack, "the packet that the server sends when it reads");
                update.time
            });
        }),
        case(
            "probes_of_the_peer_do_not_restart_the_idle_time",
            "first probe 4 s after the handshake",
            |story| {
                counts(
                    story,
                    quick,
                    |_, _, server| Policy::new(1, 1, 9).set_by_hand(server),
                    |flow, _| {
                        assert!(flow.server_probes().len() >= 2, "the peer has sent no probes");
                        first(flow, false, Kind::Handshake)
                    },
                );
            },
        ),
        case("unacknowledged_data_suspends_probes", "no probe in 6 s", unacknowledged),
    ]
}

type Built = (Network, Option<SlowCable>);

fn quick() -> Built {
    (Network::routed(), None)
}

/// Returns a network in which packets of the client take half a second.
fn slow() -> Built {
    let (network, cable) = Network::slow(Duration::from_millis(500));
    (network, Some(cable))
}

/// Returns when a side has first sent a packet of this kind.
fn first(flow: &Flow, from_client: bool, kind: Kind) -> f64 {
    let wanted = |packet: &&Packet| packet.from_client == from_client && packet.kind == kind;
    flow.packets.iter().find(wanted).unwrap_or_else(|| panic!("no {kind:?}")).time
}

/// Makes a connection on which an event happens after `MOMENT`. The first probe must come one idle time after the
/// moment that `since` returns. `since` gets the time of the last mark.
fn counts(
    story: &mut Story,
    build: fn() -> Built,
    happens: fn(&mut Story, &TcpStream, &TcpStream),
    since: fn(&Flow, f64) -> f64,
) {
    let (network, _cable) = build();
    let listener = network.listen();
    // With a small buffer, the kernel sends a window update when the server reads.
    SockRef::from(&listener).set_recv_buffer_size(8192).unwrap();
    story.watch(&network.client);
    let client = network.connect_with(Family::V4, |socket| POLICY.enable(socket));
    let server = listener.accept().unwrap().0;
    sleep(MOMENT);
    happens(story, &client, &server);
    let idle = f64::from(POLICY.idle);
    sleep(idle + LATE + MOMENT);
    let marked = story.marks.last().map_or(0.0, |(time, _)| *time);
    let flow = story.flows(&[&POLICY.name()]).remove(0);
    let after = first(&flow, true, Kind::Probe) - since(&flow, marked);
    story.seconds.push(after);
    story.saw(format!("first probe {after:.1} s after"));
    assert!(after > idle - 0.02 && after < idle + LATE, "{after:.2} s");
}

/// Fills the server's buffer, and lets the server read it. Then the server's kernel sends a bare ACK with the new
/// window.
fn opens_its_window(story: &mut Story, mut client: &TcpStream, mut server: &TcpStream) {
    let whole = window(client);
    let mut sent = vec![];
    // If the window was more than half open, the kernel sends no ACK (__tcp_cleanup_rbuf).
    while window(client) > whole / 3 {
        assert!(sent.len() < 100_000, "the window does not shrink");
        client.write_all(&[0; 500]).unwrap();
        sent.extend([0; 500]);
        sleep(0.02);
    }
    sleep(MOMENT);
    story.mark("the server reads");
    server.read_exact(&mut sent).unwrap();
}

/// Returns the peer's window: tcpi_snd_wnd of struct tcp_info. Linux 5.4
fn window(socket: &TcpStream) -> u32 {
    info_word(socket, 228)
}

fn unacknowledged(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, _server) = network.pair(&listener, Family::V4);
    POLICY.enable(&client);
    sleep(MOMENT);
    network.drop_packets(r#"iifname "client""#);
    story.mark("packets to the server dropped, data sent");
    (&client).write_all(b"!").unwrap();
    sleep(6.0);
    let flow = story.flows(&[&POLICY.name()]).remove(0);
    assert!(flow.probes().is_empty(), "probes");
    story.saw("no probe");
    story.seconds.push(6.0);
}
