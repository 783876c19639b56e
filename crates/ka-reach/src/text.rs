//! Foreign bytes as text: names of processes and files are whatever somebody chose.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

use ka_core::{Config, Settings, UserTimeout};

/// Valid text of any bytes: those that are no UTF-8 are written \xNN.
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

/// The reason for an error as strerror(3) gives it, without the number that Rust adds: "No such file or directory".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|number| format!(" (os error {number})"));
    match number.and_then(|number| text.strip_suffix(&number)) {
        Some(reason) => reason.to_owned(),
        None => text,
    }
}

/// A number and its noun: "1 socket", "2 sockets", "2 processes".
pub fn count(number: impl Copy + fmt::Display + PartialEq + From<u8>, noun: &str) -> String {
    let ending = match noun {
        _ if number == 1.into() => "",
        noun if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

/// What a terminal may take for more than a letter: control characters, and those that turn the direction of writing.
pub fn is_order(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same for a terminal, which must not take orders from it: those are written as escapes.
pub fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let text = lossless(bytes);
    if text.contains(is_order) { escape(&text, is_order).into() } else { text }
}

/// A message of ours for a terminal, which may have several lines, and names in it that are whatever somebody chose.
pub fn visible_lines(message: &str) -> Cow<'_, str> {
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

/// Formats a policy as people write it: as `60,10,6` if it has these three values and no others.
pub fn brief(config: &Config) -> String {
    match (config.enabled(), config.idle(), config.intvl(), config.cnt(), config.user_timeout()) {
        (Some(true), Some(idle), Some(intvl), Some(cnt), UserTimeout::Keep) => {
            format!("{idle},{intvl},{cnt}")
        }
        _ => ka_core::Text::typed(config).to_string(),
    }
}

/// A socket's settings: `off`, or `60,10,6`.
pub fn brief_settings(settings: &Settings) -> String {
    let Settings { enabled, idle, intvl, cnt, user_timeout } = settings;
    match (enabled, user_timeout.filter(|timeout| *timeout > 0)) {
        (true, None) => format!("{idle},{intvl},{cnt}"),
        (false, None) => "off".to_owned(),
        (true, Some(timeout)) => format!("idle={idle},intvl={intvl},cnt={cnt},user_timeout={timeout}ms"),
        (false, Some(timeout)) => format!("off,user_timeout={timeout}ms"),
    }
}

/// The reason for an error of ka-core, which has no strerror(3).
pub fn socket_reason(error: &ka_core::Error) -> String {
    let reason = |number| reason(&io::Error::from_raw_os_error(number));
    match error {
        ka_core::Error::NoSocket(errno) => format!("no TCP socket: {}", reason(errno.0)),
        ka_core::Error::System { option, errno } => format!("{option}: {}", reason(errno.0)),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{count, lossless, reason, socket_reason, visible, visible_lines};

    #[test]
    fn a_reason_has_no_number() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOENT)), "No such file or directory");
        assert_eq!(reason(&io::Error::other("it has ended")), "it has ended");
        assert_eq!(reason(&io::ErrorKind::IsADirectory.into()), "is a directory");
    }

    #[test]
    fn one_thing_has_no_plural() {
        assert_eq!([0_usize, 1, 2].map(|n| count(n, "socket")), ["0 sockets", "1 socket", "2 sockets"]);
    }

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
    #[test]
    fn an_error_of_a_socket_has_no_number() {
        let refused = ka_core::Error::System {
            option: ka_core::SockOpt::KeepAlive,
            errno: ka_core::Errno(libc::EPERM),
        };
        assert_eq!(socket_reason(&refused), "SO_KEEPALIVE: Operation not permitted");
    }
}
