//! Functions that split text. Every parser of ka uses them.
//!
//! They are functions instead of iterators to keep the libraries small. The compiler would emit the code of an iterator
//! adaptor again for each use.

/// Returns the text before the first separator, and the text after it. Without a separator, the second part is `None`.
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

/// Returns the name at a position of a comma-separated list, or the last name if there are fewer.
#[inline(never)]
#[must_use]
pub fn nth(names: &[u8], mut n: usize) -> &[u8] {
    let mut rest = names;
    loop {
        let (name, behind) = cut(rest, b',');
        rest = match (n, behind) {
            (0, _) | (_, None) => return name,
            (_, Some(behind)) => behind,
        };
        n = n.saturating_sub(1);
    }
}
