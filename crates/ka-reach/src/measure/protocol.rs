//! The protocol between `ka measure --from-server` and `ka measure --serve`.
//!
//! The messages are lines of text, at most [`LONGEST`] bytes long. The first line of a connection begins with the magic
//! word and the version. The server keeps all other connections, and discards their data.
//!
//! | sender | line | meaning |
//! |---|---|---|
//! | client | `ka-measure 1 control` | this connection is the control connection of a measurement |
//! | server | `ka-measure 1 session KEY` | answer: trials of this measurement name KEY |
//! | client | `ka-measure 1 trial KEY ID IDLE_MS` | first line of another connection: after this idle time, probe it |
//! | server | `result ID RESULT IDLE_MS AFTER_MS` | on the control connection: the trial has ended. `-` means no time |
//! | both | `tick` | on the control connection, each second: it must not become idle itself |
//! | server | `ka-measure 1 error TEXT` | the first line has another version, or is not one of these |

use std::str::FromStr;
use std::time::Duration;

use super::trial::{Sample, TrialResult};

/// The first word of a connection that uses the protocol.
pub(super) const MAGIC: &str = "ka-measure ";
const VERSION: &str = "1";
/// The longest line, without its newline.
pub(super) const LONGEST: usize = 120;
/// A message that only keeps the control connection busy.
pub(super) const TICK: &str = "tick\n";

/// The first line of a connection to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The control connection of a measurement.
    Control,
    /// A connection to probe after an idle time.
    Trial {
        /// The measurement.
        key: u64,
        /// The number of the trial in the measurement.
        id: u64,
        /// The idle time.
        rung: Duration,
    },
}

impl Opening {
    pub(super) fn line(self) -> String {
        match self {
            Self::Control => format!("{MAGIC}{VERSION} control\n"),
            Self::Trial { key, id, rung } => {
                format!("{MAGIC}{VERSION} trial {key:016x} {id} {}\n", rung.as_millis())
            }
        }
    }

    /// Parses a line. The error is the answer of the server.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{MAGIC}{VERSION} error {what}\n");
        let words: Vec<_> = line.strip_prefix(MAGIC).unwrap_or_default().split(' ').collect();
        match words[..] {
            [VERSION, "control"] => Ok(Self::Control),
            [VERSION, "trial", key, id, idle] => {
                let key = u64::from_str_radix(key, 16).map_err(|_| wrong("the key is wrong"))?;
                let id = id.parse().map_err(|_| wrong("the number is wrong"))?;
                let rung = milliseconds(idle).ok_or_else(|| wrong("the idle time is wrong"))?;
                Ok(Self::Trial { key, id, rung })
            }
            [VERSION, ..] => Err(wrong("unknown request")),
            _ => Err(wrong("this server has version 1 of the protocol")),
        }
    }
}

/// Returns the answer of the server to a control connection.
pub(super) fn session_line(key: u64) -> String {
    format!("{MAGIC}{VERSION} session {key:016x}\n")
}

/// Parses the answer of the server to a control connection. The error is the text of the server, if it sent one.
pub(super) fn parse_session(line: &str) -> Result<u64, Option<String>> {
    let text = line.strip_prefix(MAGIC).and_then(|rest| rest.split_once(' ')).ok_or(None)?;
    match text {
        (VERSION, session) if session.starts_with("session ") => {
            session.strip_prefix("session ").and_then(|key| u64::from_str_radix(key, 16).ok()).ok_or(None)
        }
        (_, error) => Err(error.strip_prefix("error ").map(str::to_owned)),
    }
}

/// Returns the line that reports a trial.
pub(super) fn result_line(id: u64, sample: &Sample) -> String {
    let after = sample.after.map_or_else(|| "-".to_owned(), |after| after.as_millis().to_string());
    format!("result {id} {} {} {after}\n", sample.result.name(), sample.idle.as_millis())
}

/// Parses a line that reports a trial: its number, its result, its idle time, and the time until the answer.
pub(super) fn parse_result(line: &str) -> Option<(u64, TrialResult, Duration, Option<Duration>)> {
    let words: Vec<_> = line.split(' ').collect();
    let ["result", id, result, idle, after] = words[..] else { return None };
    let result = TrialResult::ALL.into_iter().find(|known| known.name() == result)?;
    let after = if after == "-" { None } else { Some(milliseconds(after)?) };
    Some((id.parse().ok()?, result, milliseconds(idle)?, after))
}

/// Parses a time in milliseconds, at most a day.
fn milliseconds(text: &str) -> Option<Duration> {
    u64::from_str(text).ok().filter(|time| *time <= 86_400_000).map(Duration::from_millis)
}

/// The lines that arrive on a connection.
#[derive(Debug, Default)]
pub(super) struct LineBuffer(Vec<u8>);

impl LineBuffer {
    /// Adds bytes that have arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes the next whole line. The error means that the line is too long or not text.
    pub(super) fn line(&mut self) -> Result<Option<String>, ()> {
        let Some(end) = self.0.iter().position(|byte| *byte == b'\n') else {
            return if self.0.len() > LONGEST { Err(()) } else { Ok(None) };
        };
        let rest = self.0.split_off(end.saturating_add(1));
        let mut line = std::mem::replace(&mut self.0, rest);
        line.truncate(end);
        if line.len() > LONGEST { Err(()) } else { String::from_utf8(line).map(Some).map_err(|_| ()) }
    }

    /// Returns whether the first line may still become one that begins with the magic word.
    pub(super) fn may_be_magic(&self) -> bool {
        let known = self.0.len().min(MAGIC.len());
        self.0.get(..known) == MAGIC.as_bytes().get(..known)
    }
}

#[cfg(test)]
mod tests {
    use super::{LineBuffer, Opening, parse_result, parse_session, result_line, session_line};
    use crate::measure::trial::{Sample, TrialResult};
    use std::time::Duration;

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn lines_are_read_back() {
        for opening in [Opening::Control, Opening::Trial { key: u64::MAX - 1, id: 7, rung: ms(12_500) }] {
            assert_eq!(Opening::parse(opening.line().trim_end()), Ok(opening));
        }
        assert_eq!(parse_session(session_line(0xab).trim_end()), Ok(0xab));
        for result in TrialResult::ALL {
            for after in [None, Some(ms(3))] {
                let sample = Sample { rung: ms(1000), idle: ms(1003), result, after };
                let parsed = parse_result(result_line(9, &sample).trim_end());
                assert_eq!(parsed, Some((9, result, ms(1003), after)));
            }
        }
    }

    #[test]
    fn wrong_lines_are_rejected() {
        for line in [
            "",
            "ka-measure",
            "ka-measure ",
            "ka-measure 2 control",
            "ka-measure 1 contro",
            "ka-measure 1 trial 0 0",
            "ka-measure 1 trial x 0 5",
            "ka-measure 1 trial 0 -1 5",
            "ka-measure 1 trial 0 1 99999999999",
            "GET / HTTP/1.1",
        ] {
            let answer = Opening::parse(line).unwrap_err();
            assert!(parse_session(answer.trim_end()).unwrap_err().is_some(), "{line}: {answer}");
        }
        for line in ["", "SSH-2.0-OpenSSH_9.2", "ka-measure 1 session", "ka-measure 1 session x"] {
            assert_eq!(parse_session(line), Err(None), "{line}");
        }
        for line in ["", "tick", "result", "result 1 lost 5 -", "result 1 silent 5", "result 1 silent x -"] {
            assert_eq!(parse_result(line), None, "{line}");
        }
    }

    #[test]
    fn lines_are_split_and_limited() {
        let mut buffer = LineBuffer::default();
        buffer.push(b"ti");
        assert_eq!((buffer.line(), buffer.may_be_magic()), (Ok(None), false));
        buffer.push(b"ck\nka-meas");
        assert_eq!(buffer.line(), Ok(Some("tick".to_owned())));
        assert!(buffer.may_be_magic());
        buffer.push(&[b'x'; 200]);
        assert_eq!((buffer.line(), buffer.may_be_magic()), (Err(()), false));
        let mut buffer = LineBuffer::default();
        buffer.push(b"\xff\n");
        assert_eq!(buffer.line(), Err(()));
    }
}
