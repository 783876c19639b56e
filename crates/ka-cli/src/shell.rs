//! Words of shell commands.

use std::ffi::OsStr;

use ka_reach::escape;

/// Quotes a word for the shell, if the shell needs it.
pub(crate) fn quoted(word: &OsStr) -> String {
    let text = escape::lossless(word.as_encoded_bytes()).into_owned();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./+:@%,=".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
