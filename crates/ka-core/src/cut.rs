//! Text cut at a separator: what every form of text here is read with.
//!
//! One function and not an iterator, because what is built into everybody's process should be small: an adaptor of
//! the standard library is compiled anew at each use.

/// What is before the first separator, and what is behind it, if there is one.
#[inline(never)]
#[must_use]
pub fn cut(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    let mut before = 0_usize;
    for byte in text {
        if *byte == separator {
            let (front, back) = text.split_at_checked(before).unwrap_or((text, b""));
            return (front, back.get(1..));
        }
        before = before.saturating_add(1);
    }
    (text, None)
}

/// Returns the text without leading and trailing blanks: spaces, tabs and line ends.
#[inline(never)]
#[must_use]
pub const fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// Returns the position of a name in a comma-separated list.
#[inline(never)]
#[must_use]
pub fn place(names: &[u8], name: &[u8]) -> Option<usize> {
    let (mut rest, mut n) = (Some(names), 0_usize);
    while let Some(names) = rest {
        let (known, behind) = cut(names, b',');
        if known == name {
            return Some(n);
        }
        (rest, n) = (behind, n.saturating_add(1));
    }
    None
}
