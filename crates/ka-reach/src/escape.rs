//! Conversion of untrusted bytes to text. Names of processes and files may contain any bytes, and a terminal would
//! execute control characters in them.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Converts bytes to text. Bytes that are not UTF-8 become `\xNN`. Control characters stay.
pub fn lossless(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.into()
}

/// Returns whether this character can change a terminal's display: a control character, or one that changes the text
/// direction.
pub fn controls_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Converts bytes to one line that is safe to print to a terminal. Control characters, including newlines, are escaped.
pub fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let text = lossless(bytes);
    if text.contains(controls_terminal) { escape(&text, controls_terminal).into() } else { text }
}

/// Makes a message of one or more lines safe to print to a terminal. The message may contain names with any characters,
/// so all control characters except newlines are escaped.
pub fn visible_lines(message: &str) -> Cow<'_, str> {
    let is_unsafe = |letter| letter != '\n' && controls_terminal(letter);
    if message.contains(is_unsafe) { escape(message, is_unsafe).into() } else { message.into() }
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_escaped(letter) {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{lossless, visible, visible_lines};

    #[test]
    fn control_characters_and_invalid_utf8_are_escaped() {
        assert_eq!(lossless(b"a\xffb"), "a\\xffb");
        assert_eq!(visible("é\u{1b}[31m\n".as_bytes()), "é\\u{1b}[31m\\n");
        assert_eq!(visible("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(visible("a\u{61c}b".as_bytes()), "a\\u{61c}b");
        assert_eq!(visible(b"\xc3"), "\\xc3");
        assert_eq!(visible("\u{9b}31m\u{61c}\u{7f}".as_bytes()), "\\u{9b}31m\\u{61c}\\u{7f}");
        assert_eq!(visible_lines("a\nb\u{1b}c\r"), "a\nb\\u{1b}c\\r");
    }
}
