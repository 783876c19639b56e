//! Parses the arguments of env(1), which may remove LD_PRELOAD.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::wrapper::PRELOAD;

/// The arguments of env(1).
#[derive(Debug, Default)]
pub(crate) struct EnvArguments {
    /// `true` if env removes or changes LD_PRELOAD.
    pub(crate) drops_preload: bool,
    /// The program that env starts, and its arguments. Empty if env only prints the environment.
    pub(crate) command: Vec<OsString>,
}

impl EnvArguments {
    /// Parses env(1)'s arguments: `[option]... [name=value]... [program [argument]...]`.
    pub(crate) fn parse<'a>(arguments: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut words: VecDeque<&[u8]> = arguments.collect();
        let mut found = Self::default();
        // env splits the argument of -S into words, which replace the option.
        let split = |words: &mut VecDeque<&'a [u8]>, text: &'a [u8]| {
            for word in text.split(u8::is_ascii_whitespace).rev().filter(|word| !word.is_empty()) {
                words.push_front(word);
            }
        };
        let mut options_end = false;
        while let Some(word) = words.pop_front() {
            if word == b"--" {
                options_end = true;
            } else if let Some(long) = word.strip_prefix(b"--").filter(|_| !options_end) {
                let (name, value) = ka_core::bytes::cut(long, b'=');
                let is = |option: &[u8]| name.len() > 1 && option.starts_with(name);
                if is(b"ignore-environment") {
                    found.drops_preload = true;
                } else if is(b"unset") {
                    found.drops_preload |= value.or_else(|| words.pop_front()) == Some(PRELOAD);
                } else if is(b"chdir") || is(b"argv0") {
                    let _ = value.or_else(|| words.pop_front());
                } else if is(b"split-string")
                    && let Some(text) = value.or_else(|| words.pop_front())
                {
                    split(&mut words, text);
                }
            } else if word == b"-" && !options_end {
                found.drops_preload = true;
            } else if let Some(letters) = word.strip_prefix(b"-").filter(|_| !options_end) {
                for (place, letter) in letters.iter().enumerate() {
                    let value = letters.get(place.saturating_add(1)..).filter(|rest| !rest.is_empty());
                    match letter {
                        b'i' => found.drops_preload = true,
                        b'u' => found.drops_preload |= value.or_else(|| words.pop_front()) == Some(PRELOAD),
                        b'C' | b'a' => {
                            let _ = value.or_else(|| words.pop_front());
                        }
                        b'S' => {
                            if let Some(text) = value.or_else(|| words.pop_front()) {
                                split(&mut words, text);
                            }
                        }
                        _ => continue,
                    }
                    if *letter != b'i' {
                        break;
                    }
                }
            } else if let (name, Some(_)) = ka_core::bytes::cut(word, b'=') {
                found.drops_preload |= name == PRELOAD;
                // After an assignment, env parses no options.
                options_end = true;
            } else {
                words.push_front(word);
                break;
            }
        }
        found.command = words.into_iter().map(|word| OsString::from_vec(word.to_vec())).collect();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::EnvArguments;

    #[test]
    fn the_words_of_split_string_are_arguments() {
        assert!(EnvArguments::parse([&b"-S"[..], b"-i sh -x"].into_iter()).drops_preload);
    }
}
