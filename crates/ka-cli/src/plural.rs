//! Numbers with their nouns, for messages.

use std::fmt;

/// Formats a number and its noun: "1 socket", "2 sockets", "2 processes".
pub fn count(number: impl Copy + fmt::Display + PartialEq + From<u8>, noun: &str) -> String {
    let ending = match noun {
        _ if number == 1.into() => "",
        noun if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn only_one_is_singular() {
        assert_eq!([0_usize, 1, 2].map(|n| count(n, "socket")), ["0 sockets", "1 socket", "2 sockets"]);
    }
}
