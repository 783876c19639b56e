//! Writes JSON that is safe to print on a terminal: all control characters in it are escaped.
//!
//! serde_json escapes the control characters of ASCII except DEL. It does not escape the other control characters of
//! Unicode, such as those that change the direction of text. A JSON string may contain any character as an escape, and
//! parsers read the same string.

use std::io::{self, Write};

use serde::Serialize;

use ka_reach::escape::controls_terminal;

/// Writes a value on one line.
pub(crate) fn to_writer(out: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer(Escaper(out), value)
}

/// Writes a value on several lines, indented.
pub(crate) fn to_writer_pretty(out: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer_pretty(Escaper(out), value)
}

/// Writes an array with one row per line.
pub(crate) fn write_rows(out: &mut impl Write, rows: impl Iterator<Item = impl Serialize>) -> io::Result<()> {
    let mut start: &[u8] = b"[\n";
    let mut end: &[u8] = b"[]\n";
    for row in rows {
        out.write_all(start)?;
        to_writer(&mut *out, &row)?;
        (start, end) = (b",\n", b"\n]\n");
    }
    out.write_all(end)
}

/// Writes JSON to `W`, and escapes control characters. These occur only inside JSON strings, apart from newlines.
/// serde_json never splits a character between two writes.
struct Escaper<W>(W);

impl<W: Write> Write for Escaper<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        // Most pieces are ASCII, and serde_json has already escaped all ASCII control characters except DEL.
        let text = if piece.iter().all(|byte| *byte < 0x7f) { None } else { std::str::from_utf8(piece).ok() };
        let Some(text) = text else {
            self.0.write_all(piece)?;
            return Ok(piece.len());
        };
        for letter in text.chars() {
            if letter != '\n' && controls_terminal(letter) {
                write!(self.0, "\\u{:04x}", u32::from(letter))?;
            } else {
                write!(self.0, "{letter}")?;
            }
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{to_writer, to_writer_pretty};

    /// Unicode's Cc, Zl, Zp and Bidi_Control.
    fn is_control(letter: char) -> bool {
        matches!(
            u32::from(letter),
            0..=0x1f | 0x7f..=0x9f | 0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069
        )
    }

    /// Writes a text as a key and as a value. Checks that a parser reads the same text back, and that no control
    /// character is written except newlines between the items. Returns what was written.
    fn written(text: &str) -> [String; 2] {
        let value = serde_json::json!({ text: [text, 1] });
        let (mut one, mut many) = (Vec::new(), Vec::new());
        to_writer(&mut one, &value).unwrap();
        to_writer_pretty(&mut many, &value).unwrap();
        [one, many].map(|out| {
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), value);
            let out = String::from_utf8(out).unwrap();
            assert!(!out.contains(|letter| letter != '\n' && is_control(letter)), "{out:?}");
            out
        })
    }

    #[test]
    fn control_characters_are_escaped() {
        for out in written("é\"\\ \u{1b}[31m\n\u{7f}\u{9b}2J\u{202e}\u{61c}\u{10ffff}") {
            assert!(out.contains("é") && out.contains("\\u009b2J\\u202e\\u061c"), "{out}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_back(text in "[\\x00-\\xa0\\u{61c}\\u{200e}-\\u{2069}]{0,8}|\\PC{0,8}") {
            let [one, _] = written(&text);
            prop_assert_eq!(one.lines().count(), 1);
        }
    }
}
