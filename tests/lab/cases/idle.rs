//! What Linux counts as idle: the time since a segment with data came in (`lrcvtime`), or an acceptable acknowledgement
//! (`rcv_tstamp`), whichever is later. The function is `keepalive_time_elapsed` in include/net/tcp.h; who asks it is
//! `tcp_keepalive_timer` in net/ipv4/tcp_timer.c. What we send counts only through its acknowledgement.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::SockRef;

use crate::endpoint::Policy;
use crate::network::{Family, Network, SlowCable};
use crate::story::{Case, Story, sleep};
use crate::wire::{Flow, Kind, Packet};

const POLICY: Policy = Policy::new(4, 1, 9);
/// When something happens, after the handshake.
const MOMENT: f64 = 1.0;
/// How late the kernel's timer may be, and the capture's clock: less than a moment, so that one is told from another.
const LATE: f64 = 0.8;

pub fn cases() -> Vec<Case> {
    let case =
        |name: &str, should: &str, run: fn(&mut Story)| Case::new(format!("idle::{name}"), should, run);
    vec![
        case("silence_counts_from_the_handshake", "first probe 4 s after it", |story| {
            // Keepalive is on half a second before the handshake is over.
            counts(story, slow, |_, _, _| {}, |flow, _| first(flow, false, Kind::Handshake));
        }),
        case("data_received_begins_it_anew", "first probe 4 s after the data", |story| {
            let speaks =
                |_: &mut Story, _: &TcpStream, mut server: &TcpStream| server.write_all(b"!").unwrap();
            counts(story, quick, speaks, |flow, _| first(flow, false, Kind::Data));
        }),
        case(
            "data_sent_begins_it_anew_when_it_is_acknowledged",
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
        case("a_bare_acknowledgement_received_begins_it_anew", "first probe 4 s after it", |story| {
            counts(story, quick, opens_its_window, |flow, read| {
                let update = |packet: &&Packet| !packet.from_client && packet.time > read;
                let update = flow.packets.iter().find(update).expect("a window update");
                assert_eq!(update.kind, Kind::Ack, "what comes when the server reads");
                update.time
            });
        }),
        case("the_peers_probes_do_not_count", "first probe 4 s after the handshake", |story| {
            counts(
                story,
                quick,
                |_, _, server| Policy::new(1, 1, 9).set_by_hand(server),
                |flow, _| {
                    assert!(flow.server_probes().len() >= 2, "no probes of the peer's");
                    first(flow, false, Kind::Handshake)
                },
            );
        }),
        case("data_sent_and_not_acknowledged_stops_it", "no probe in 6 s", unacknowledged),
    ]
}

type Built = (Network, Option<SlowCable>);

fn quick() -> Built {
    (Network::routed(), None)
}

/// What the client sends takes half a second.
fn slow() -> Built {
    let (network, cable) = Network::slow(Duration::from_millis(500));
    (network, Some(cable))
}

/// When a side first sent this.
fn first(flow: &Flow, from_client: bool, kind: Kind) -> f64 {
    let wanted = |packet: &&Packet| packet.from_client == from_client && packet.kind == kind;
    flow.packets.iter().find(wanted).unwrap_or_else(|| panic!("no {kind:?}")).time
}

/// A connection on which something happens after a while. The first probe comes an idle time after `since`, which is
/// told the last moment that was marked.
fn counts(
    story: &mut Story,
    build: fn() -> Built,
    happens: fn(&mut Story, &TcpStream, &TcpStream),
    since: fn(&Flow, f64) -> f64,
) {
    let (network, _cable) = build();
    let listener = network.listen();
    // Small, so that reading what is in it is told to the sender.
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

/// The server, whose buffer is nearly full, reads all: its kernel then tells of the space with a bare ACK.
fn opens_its_window(story: &mut Story, mut client: &TcpStream, mut server: &TcpStream) {
    let whole = window(client);
    let mut sent = vec![];
    // A window that has not shrunk to less than half is not worth an ACK (__tcp_cleanup_rbuf).
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

/// What the peer takes, as the kernel last heard: tcpi_snd_wnd of struct tcp_info.
fn window(socket: &TcpStream) -> u32 {
    const SND_WND: usize = 228;
    let mut info = [0_u8; SND_WND + 4];
    let mut size = info.len().try_into().unwrap();
    // SAFETY: the buffer has the size that is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!((result, usize::try_from(size)), (0, Ok(info.len())), "TCP_INFO of Linux 5.4 or newer");
    u32::from_ne_bytes(info[SND_WND..].try_into().unwrap())
}

fn unacknowledged(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let (client, _server) = network.pair(&listener, Family::V4);
    POLICY.enable(&client);
    sleep(MOMENT);
    network.lose(r#"iifname "client""#);
    story.mark("packets to the server dropped, data sent");
    (&client).write_all(b"!").unwrap();
    sleep(6.0);
    let flow = story.flows(&[&POLICY.name()]).remove(0);
    assert!(flow.probes().is_empty(), "probes");
    story.saw("no probe");
    story.seconds.push(6.0);
}
