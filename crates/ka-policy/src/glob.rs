//! Patterns with wildcards, for the names of programs.

/// Returns whether a name matches a pattern. `*` matches any number of bytes, and `?` matches one byte.
///
/// ```
/// assert!(ka_policy::glob(b"python3*", b"python3.11"));
/// assert!(!ka_policy::glob(b"chrome", b"chromedriver"));
/// ```
#[must_use]
#[inline(never)]
pub fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // If the rest of the pattern does not match, the last star matches one more byte.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                star = Some((rest, name));
                pattern = rest;
            }
            (Some((wanted, rest)), Some((byte, tail))) if *wanted == b'?' || wanted == byte => {
                (pattern, name) = (rest, tail);
            }
            (None, None) => return true,
            _ => match star.and_then(|(rest, from)| Some((rest, from.split_first()?.1))) {
                Some((rest, from)) => {
                    star = Some((rest, from));
                    (pattern, name) = (rest, from);
                }
                None => return false,
            },
        }
    }
}
