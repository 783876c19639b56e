//! Draws a case as a picture, with time from left to right and a band for each connection. Packets from the client are
//! above the line, packets from the server below it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::story::{Shown, Story};
use crate::wire::{Kind, Packet};

pub const LEFT: f64 = 150.0;
pub const WIDTH: f64 = 820.0;
pub const TOP: f64 = 70.0;
const BAND: f64 = 84.0;
/// The largest number of connections in a picture.
const MOST: usize = 8;

/// Draws the picture in SVG. Returns `None` if there is nothing to show.
pub fn draw(story: &Story) -> Option<String> {
    if !story.rates.is_empty() {
        return Some(rates(&story.rates));
    }
    let times = || story.flows.iter().flat_map(|shown| &shown.flow.packets).map(|packet| packet.time);
    let start = times().reduce(f64::min)?;
    let ends = story.flows.iter().filter_map(|shown| shown.ended.as_ref()).map(|(time, _)| *time);
    let marks = story.marks.iter().map(|(time, _)| *time);
    let end = times().chain(ends).chain(marks).fold(start + 1.0, f64::max);
    let scale = WIDTH / (end - start);
    let x = |time: f64| LEFT + (time - start).max(0.0) * scale;

    let shown = &story.flows[..story.flows.len().min(MOST)];
    let bands: f64 = shown.iter().map(|_| BAND).sum();
    let height = TOP + bands + 60.0;
    let mut svg = head(height);
    legend(&mut svg);
    axis(&mut svg, end - start, TOP + bands, |seconds| LEFT + seconds * scale);
    for (shown, number) in shown.iter().zip(0u8..) {
        band(&mut svg, shown, TOP + BAND * (f64::from(number) + 0.5), x);
    }
    for (place, (time, what)) in story.marks.iter().enumerate() {
        let (x, y) = (x(*time), TOP - 8.0 - 13.0 * f64::from(u8::from(place % 2 == 1)));
        let anchor = if x > LEFT + WIDTH * 0.7 { "end" } else { "start" };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{y}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"#444\">{}</text>",
            TOP + bands,
            escaped(what)
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Draws the number of probes in each tenth of a second.
fn rates(rates: &[(String, Vec<f64>)]) -> String {
    const TALL: f64 = 150.0;
    let longest =
        rates.iter().filter_map(|(_, times)| Some(times.last()? - times.first()?)).fold(1.0, f64::max);
    let scale = WIDTH / longest;
    let bars = |times: &[f64]| {
        let mut bars = BTreeMap::new();
        for time in times {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundreds")]
            let place = ((time - times[0]) * 10.0) as u32;
            *bars.entry(place).or_insert(0_u32) += 1;
        }
        bars
    };
    let most = rates.iter().flat_map(|(_, times)| bars(times).into_values()).max().unwrap_or(1);
    let height = TOP + (TALL + 40.0) * rates.iter().map(|_| 1.0).sum::<f64>() + 40.0;
    let mut svg = head(height);
    axis(&mut svg, longest, height - 40.0, |seconds| LEFT + seconds * scale);
    let mut bottom = TOP + TALL;
    for (label, times) in rates {
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\">{}: probes in a tenth of a second, at most {most}</text>",
            bottom - TALL - 8.0,
            escaped(label)
        );
        for (place, count) in bars(times) {
            let tall = TALL * f64::from(count) / f64::from(most);
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"{}\"/>",
                LEFT + f64::from(place) / 10.0 * scale,
                bottom - tall,
                (scale / 10.0).max(1.0),
                colour(Kind::Probe).0
            );
        }
        let _ = writeln!(svg, "<path d=\"M{LEFT} {bottom} h{WIDTH}\" stroke=\"#333\"/>");
        bottom += TALL + 40.0;
    }
    svg.push_str("</svg>\n");
    svg
}

pub fn head(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"1000\" height=\"{height}\" fill=\"#fff\"/>\n"
    )
}

const fn colour(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Probe => ("#d9480f", "probe"),
        Kind::Answer => ("#2b8a3e", "answer"),
        Kind::Data => ("#1971c2", "data"),
        Kind::Reset => ("#c92a2a", "RST"),
        Kind::Icmp => ("#9c36b5", "ICMP error"),
        Kind::Handshake | Kind::End => ("#868e96", "SYN, FIN"),
        Kind::Ack => ("#ced4da", "ACK"),
    }
}

fn legend(svg: &mut String) {
    let kinds = [Kind::Probe, Kind::Answer, Kind::Data, Kind::Reset, Kind::Icmp, Kind::Handshake, Kind::Ack];
    let mut x = LEFT;
    for (colour, name) in kinds.map(colour) {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"10\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"20\">{name}</text>",
            x + 14.0
        );
        x += 95.0;
    }
}

/// Draws a connection. Its line ends when the connection ends.
fn band(svg: &mut String, shown: &Shown, y: f64, x: impl Fn(f64) -> f64) {
    let packets = &shown.flow.packets;
    let (Some(first), Some(last)) = (packets.first(), packets.last()) else { return };
    let until = shown.ended.as_ref().map_or(last.time, |(time, _)| time.max(last.time));
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{:.1}\">{}</text><line x1=\"{:.1}\" y1=\"{y}\" x2=\"{:.1}\" y2=\"{y}\" stroke=\"#333\"/>",
        y + 4.0,
        escaped(&shown.label),
        x(first.time),
        x(until)
    );
    for packet in packets {
        let Packet { time, from_client, kind, .. } = *packet;
        let (colour, name) = colour(kind);
        let (tip, up) = if from_client { (y - 24.0, 5.0) } else { (y + 24.0, -5.0) };
        let x = x(time);
        let _ = writeln!(
            svg,
            "<g stroke=\"{colour}\" fill=\"{colour}\"><title>{:.3} s: {name}</title>\
             <line x1=\"{x:.1}\" y1=\"{y}\" x2=\"{x:.1}\" y2=\"{tip}\" stroke-width=\"1.5\"/>\
             <path d=\"M{x:.1} {tip} l-3 {up} h6 z\"/></g>",
            time - first.time
        );
    }
    if let Some((time, how)) = &shown.ended {
        let x = x(*time);
        let anchor = if x > LEFT + WIDTH * 0.7 { "end" } else { "start" };
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} {1:.1} l10 10 m0 -10 l-10 10\" stroke=\"#c92a2a\" stroke-width=\"2.5\"/>\
             <text x=\"{x:.1}\" y=\"{2:.1}\" text-anchor=\"{anchor}\" fill=\"#c92a2a\">{3}</text>",
            x - 5.0,
            y - 5.0,
            y + 38.0,
            escaped(how)
        );
    }
}

/// Draws the time axis, with at most a dozen labels.
pub fn axis(svg: &mut String, seconds: f64, y: f64, x: impl Fn(f64) -> f64) {
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
        .into_iter()
        .find(|step| seconds / step <= 12.0)
        .unwrap_or(500.0);
    let mut at = 0.0;
    while at <= seconds {
        let x = x(at);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{y}\" stroke=\"#eee\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{at} s</text>",
            y + 18.0
        );
        at += step;
    }
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
