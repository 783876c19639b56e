//! The packets that tcpdump has captured.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::{env, fs};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ka_test::lines::Lines;
use ka_test::path::scratch;
use ka_test::process::signal_child;

use crate::INSIDE;
use crate::network::{Machine, PORT};

/// A running tcpdump on an interface of a machine.
pub struct Capture {
    tcpdump: Child,
    path: PathBuf,
}

impl Capture {
    /// Starts tcpdump. Returns when it captures packets.
    pub fn start(machine: &Machine, interface: &str) -> Self {
        let path = scratch(&format!("lab-{}", env::var(INSIDE).unwrap())).with_extension("pcap");
        let mut tcpdump = machine
            .command("tcpdump")
            .args([
                "-i",
                interface,
                "-n",
                "-U",
                "--immediate-mode",
                "-s",
                "128",
                "-B",
                "16384",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&path)
            .arg("tcp or icmp or icmp6[0] < 128") // only errors of ICMPv6
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = Lines::new("tcpdump", tcpdump.stderr.take().unwrap());
        while !messages.expect("`listening on`").contains("listening on") {}
        // Read and discard tcpdump's further messages, so that the pipe stays open until its end.
        std::thread::spawn(move || std::io::copy(&mut messages.into_pipe(), &mut std::io::sink()));
        Self { tcpdump, path }
    }

    /// Returns the file, which may still grow.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends tcpdump. Returns the complete file.
    pub fn stop(mut self) -> PathBuf {
        self.end();
        std::mem::take(&mut self.path)
    }

    fn end(&mut self) {
        signal_child(&self.tcpdump, libc::SIGTERM);
        let _ = self.tcpdump.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            self.end();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Handshake,
    Data,
    /// A segment without data, with the sequence number before the next one, which makes the peer answer.
    Probe,
    /// The first bare ACK after a probe from the other side.
    Answer,
    /// Another bare ACK.
    Ack,
    End,
    Reset,
    /// An error about a packet of this connection.
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packet {
    /// Seconds since 1970.
    pub time: f64,
    pub from_client: bool,
    pub kind: Kind,
    /// The number in the file, from 1, as in tshark.
    pub frame: usize,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// Bytes of data.
    pub length: u32,
}

/// The flags of a TCP header (RFC 9293, 3.1).
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// The packets of one connection.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    pub packets: Vec<Packet>,
}

impl Flow {
    fn of(&self, kind: Kind, from_client: bool) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(move |packet| packet.kind == kind && packet.from_client == from_client)
    }

    /// Returns the times of the client's probes.
    pub fn probes(&self) -> Vec<f64> {
        self.of(Kind::Probe, true).map(|packet| packet.time).collect()
    }

    /// Returns the times of the server's probes.
    pub fn server_probes(&self) -> Vec<f64> {
        self.of(Kind::Probe, false).map(|packet| packet.time).collect()
    }

    /// Returns the times of the server's answers to the client's probes.
    pub fn answers(&self) -> Vec<f64> {
        self.of(Kind::Answer, false).map(|packet| packet.time).collect()
    }

    /// Returns the time of the server's last segment that is not RST.
    pub fn last_heard(&self) -> f64 {
        let heard =
            |packet: &&Packet| !packet.from_client && !matches!(packet.kind, Kind::Reset | Kind::Icmp);
        self.packets.iter().rfind(heard).map_or(0.0, |packet| packet.time)
    }
}

/// A parsed packet, before its kind is known.
struct Segment {
    client: SocketAddr,
    packet: Packet,
}

/// Returns the connections in a capture, in the order of their first packets, each with the client's address.
pub fn read(path: &Path) -> Vec<(SocketAddr, Flow)> {
    let mut order = vec![];
    let mut flows: BTreeMap<SocketAddr, (Flow, Tracker)> = BTreeMap::new();
    for segment in segments(&fs::read(path).unwrap()) {
        let (flow, tracker) = flows.entry(segment.client).or_insert_with(|| {
            order.push(segment.client);
            Default::default()
        });
        flow.packets.push(tracker.classify(segment.packet));
    }
    order.into_iter().map(|client| (client, flows.remove(&client).unwrap().0)).collect()
}

/// The next sequence number of each side of a connection.
#[derive(Default)]
struct Tracker {
    next: [Option<u32>; 2],
    asked: [bool; 2],
}

impl Tracker {
    fn classify(&mut self, mut packet: Packet) -> Packet {
        if packet.kind == Kind::Icmp {
            return packet;
        }
        let (me, other) = (usize::from(packet.from_client), usize::from(!packet.from_client));
        let [syn, fin, rst] = [flag::SYN, flag::FIN, flag::RST].map(|flag| packet.flags & flag != 0);
        packet.kind = if rst {
            Kind::Reset
        } else if syn {
            Kind::Handshake
        } else if fin {
            Kind::End
        } else if packet.length > 0 {
            Kind::Data
        } else if self.next[me].is_some_and(|next| packet.seq == next.wrapping_sub(1)) {
            self.asked[me] = true;
            Kind::Probe
        } else if std::mem::take(&mut self.asked[other]) {
            Kind::Answer
        } else {
            Kind::Ack
        };
        if !rst {
            let end = packet.seq.wrapping_add(packet.length).wrapping_add(u32::from(syn) + u32::from(fin));
            let later = |next: u32| end.wrapping_sub(next) < 1 << 31;
            if self.next[me].is_none_or(later) {
                self.next[me] = Some(end);
            }
        }
        packet
    }
}

fn segments(file: &[u8]) -> Vec<Segment> {
    let (mut rest, header) = pcap_parser::parse_pcap_header(file).expect("a capture");
    assert_eq!(header.network, pcap_parser::Linktype::ETHERNET);
    let mut found = vec![];
    let mut frame = 0;
    while let Ok((after, block)) = pcap_parser::parse_pcap_frame(rest) {
        rest = after;
        frame += 1;
        let time = f64::from(block.ts_sec) + f64::from(block.ts_usec) / 1e6;
        found.extend(segment(block.data, time, frame));
    }
    found
}

fn segment(bytes: &[u8], time: f64, frame: usize) -> Option<Segment> {
    let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    let (source, destination, size): (IpAddr, IpAddr, u32) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => {
            let ip = ip.header();
            let size = u32::from(ip.total_len()) - u32::from(ip.ihl()) * 4;
            (ip.source_addr().into(), ip.destination_addr().into(), size)
        }
        LaxNetSlice::Ipv6(ip) => {
            let ip = ip.header();
            (ip.source_addr().into(), ip.destination_addr().into(), ip.payload_length().into())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let blank = |from_client| Packet {
        time,
        from_client,
        kind: Kind::Icmp,
        frame,
        flags: 0,
        seq: 0,
        ack: 0,
        length: 0,
    };
    match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            let from_client = tcp.destination_port() == PORT;
            let client = if from_client {
                SocketAddr::new(source, tcp.source_port())
            } else {
                SocketAddr::new(destination, tcp.destination_port())
            };
            let packet = Packet {
                kind: Kind::Ack,
                flags: tcp.slice()[13],
                seq: tcp.sequence_number(),
                ack: tcp.acknowledgment_number(),
                length: size - u32::try_from(tcp.header_len()).unwrap(),
                ..blank(from_client)
            };
            Some(Segment { client, packet })
        }
        // The error quotes the client's packet: the IP header with the source address, and at least the ports.
        TransportSlice::Icmpv4(icmp) => {
            let address: [u8; 4] = bytes_at(icmp.payload(), 12)?;
            let port = u16::from_be_bytes(bytes_at(icmp.payload(), 20)?);
            Some(Segment { client: (address, port).into(), packet: blank(false) })
        }
        TransportSlice::Icmpv6(icmp) => {
            let address: [u8; 16] = bytes_at(icmp.payload(), 8)?;
            let port = u16::from_be_bytes(bytes_at(icmp.payload(), 40)?);
            Some(Segment { client: (address, port).into(), packet: blank(false) })
        }
        _ => None,
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
