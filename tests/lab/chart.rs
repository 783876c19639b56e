//! Draws measurements over time: a band for each, with one time axis.

use std::fmt::Write as _;

use crate::timeline::{LEFT, TOP, WIDTH, axis, escaped, head};

const BAND: f64 = 110.0;
const TALL: f64 = 80.0;

/// A line of measurements, one per second.
pub struct Line<'a> {
    pub label: &'a str,
    pub unit: &'a str,
    pub figures: &'a [f64],
}

/// Draws the lines and the marks (from, until, name).
#[expect(clippy::cast_precision_loss, reason = "thousands")]
pub fn draw(lines: &[Line], marks: &[(f64, f64, &str)]) -> String {
    let seconds = lines.iter().map(|line| line.figures.len()).max().unwrap_or(1).max(1) as f64;
    let scale = WIDTH / seconds;
    let bottom = TOP + BAND * lines.len() as f64;
    let mut svg = head(bottom + 30.0);
    axis(&mut svg, seconds, bottom, |at| LEFT + at * scale);
    let mut named: Vec<&str> = vec![];
    for (from, until, what) in marks {
        let colour = ["#ffe8cc", "#e5dbff", "#ffe3e3", "#d3f9d8"];
        let kind = named.iter().position(|name| name == what).unwrap_or(named.len());
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
            LEFT + from * scale,
            ((until - from) * scale).max(1.0),
            bottom - TOP,
            colour[kind % colour.len()]
        );
        if kind == named.len() {
            let x = LEFT + kind as f64 * 240.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"10\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"20\">{}</text>",
                colour[kind % colour.len()],
                x + 14.0,
                escaped(what)
            );
            named.push(what);
        }
    }
    let mut top = TOP;
    for Line { label, unit, figures } in lines {
        let most = figures.iter().copied().fold(0.0, f64::max).max(1.0) * 1.1;
        let base = top + BAND - 15.0;
        let mut path = String::new();
        for (at, figure) in figures.iter().enumerate() {
            let (x, y) = (LEFT + at as f64 * scale, base - TALL * figure / most);
            let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
        }
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{:.1}\">{}</text><text x=\"8\" y=\"{:.1}\" fill=\"#444\">0 to {most:.0} {unit}</text>\
             <path d=\"M{LEFT} {base:.1} h{WIDTH}\" stroke=\"#333\"/>\
             <path d=\"{path}\" fill=\"none\" stroke=\"#1971c2\" stroke-width=\"1.2\"/>",
            base - TALL / 2.0,
            escaped(label),
            base - TALL / 2.0 + 15.0
        );
        top += BAND;
    }
    svg.push_str("</svg>\n");
    svg
}
