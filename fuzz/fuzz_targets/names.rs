//! Escapes names that other users choose, for a terminal. Exactly the control characters and the characters that change
//! the writing direction must be escaped.

#![no_main]

use ka_fuzz::input::Input;
use ka_reach::fuzz::{lossless, visible, visible_lines};
use libfuzzer_sys::fuzz_target;

/// Returns whether a character controls the terminal or changes the writing direction: Unicode's Cc, Zl, Zp and
/// Bidi_Control.
fn is_control(letter: char) -> bool {
    matches!(u32::from(letter), 0..=0x1f | 0x7f..=0x9f | 0x061c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    while !input.is_empty() {
        check(input.text(64));
    }
});

fn check(name: &[u8]) {
    let (lossless, visible) = (lossless(name), visible(name));
    match std::str::from_utf8(name) {
        Ok(name) => assert_eq!((&*lossless, *visible == *name), (name, !name.contains(is_control))),
        Err(_) => assert!(lossless.contains("\\x") && visible.contains("\\x")),
    }
    assert_eq!(visible, escaped(&lossless, |_| false));
    assert_eq!(visible_lines(&lossless), escaped(&lossless, |letter| letter == '\n'));
}

/// Escapes the control characters of a text, except those that are kept.
fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            letter if !is_control(letter) || is_kept(letter) => escaped.push(letter),
            '\t' => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            letter => escaped.push_str(&format!("\\u{{{:x}}}", u32::from(letter))),
        }
    }
    escaped
}
