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

/// The same for a terminal, which must not take orders from it: control characters, and those that turn the direction
/// of writing, are written as escapes.
pub(crate) fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let orders = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let text = lossless(bytes);
    if !text.contains(orders) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if orders(letter) {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::{lossless, visible};

    #[test]
    fn nothing_foreign_reaches_the_terminal() {
        assert_eq!(lossless(b"a\xffb"), "a\\xffb");
        assert_eq!(visible("é\u{1b}[31m\n".as_bytes()), "é\\u{1b}[31m\\n");
        assert_eq!(visible("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(visible(b"\xc3"), "\\xc3");
    }
}
