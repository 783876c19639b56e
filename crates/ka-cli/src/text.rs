//! Foreign bytes as text: names of processes and files are whatever somebody chose.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Valid text of any bytes: those that are no UTF-8 are written \xNN.
pub(crate) fn lossless(bytes: &[u8]) -> Cow<'_, str> {
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

/// What a terminal may take for more than a letter: control characters, and those that turn the direction of writing.
pub(crate) fn is_order(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same for a terminal, which must not take orders from it: those are written as escapes.
pub(crate) fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let text = lossless(bytes);
    if text.contains(is_order) { escape(&text, is_order).into() } else { text }
}

/// A message of ours for a terminal, which may have several lines, and names in it that are whatever somebody chose.
pub(crate) fn visible_lines(message: &str) -> Cow<'_, str> {
    let is_foreign = |letter| letter != '\n' && is_order(letter);
    if message.contains(is_foreign) { escape(message, is_foreign).into() } else { message.into() }
}

fn escape(text: &str, what: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if what(letter) {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

/// A number of things: `1 socket`, `2 sockets`, `2 processes`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = match what {
        _ if count == 1 => "",
        what if what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::{lossless, visible, visible_lines};

    #[test]
    fn nothing_foreign_reaches_the_terminal() {
        assert_eq!(lossless(b"a\xffb"), "a\\xffb");
        assert_eq!(visible("é\u{1b}[31m\n".as_bytes()), "é\\u{1b}[31m\\n");
        assert_eq!(visible("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(visible("a\u{61c}b".as_bytes()), "a\\u{61c}b");
        assert_eq!(visible(b"\xc3"), "\\xc3");
        assert_eq!(visible("\u{9b}31m\u{61c}\u{7f}".as_bytes()), "\\u{9b}31m\\u{61c}\\u{7f}");
        assert_eq!(visible_lines("a\nb\u{1b}c\r"), "a\nb\\u{1b}c\\r");
    }
}
