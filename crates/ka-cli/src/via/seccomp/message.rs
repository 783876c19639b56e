//! What the front process and the supervisor tell each other, over a socket that only they have.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::sys::{Change, Signal};

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To the supervisor: the front process was sent this.
    Signal(Signal),
    /// To the front process: what has become of the program.
    Program(Change),
    /// To the front process, before the last of those: nothing that the program started is left.
    Alone,
}

const SIZE: usize = 24;

impl Message {
    pub(super) fn send(self, mut to: &UnixStream) -> io::Result<()> {
        let (kind, number, sender, value) = match self {
            Self::Signal(Signal { number, sender, value: None }) => (0, number, sender, 0),
            Self::Signal(Signal { number, sender, value: Some(value) }) => (1, number, sender, value),
            Self::Program(Change::Exited(status)) => (2, status, 0, 0),
            Self::Program(Change::Killed(signal)) => (3, signal, 0, 0),
            Self::Program(Change::Stopped(signal)) => (4, signal, 0, 0),
            Self::Program(Change::Continued) => (5, 0, 0, 0),
            Self::Alone => (6, 0, 0, 0),
        };
        let mut bytes = Vec::with_capacity(SIZE);
        for word in [kind, number, sender, 0] {
            bytes.extend(i32::to_ne_bytes(word));
        }
        bytes.extend(value.to_ne_bytes());
        to.write_all(&bytes)
    }

    /// The next message; none where the other end is gone.
    pub(super) fn receive(mut from: &UnixStream) -> Option<Self> {
        let mut bytes = [0; SIZE];
        from.read_exact(&mut bytes).ok()?;
        let (words, value) = bytes.split_at_checked(16)?;
        let mut words =
            words.chunks_exact(4).filter_map(|word| Some(i32::from_ne_bytes(*word.first_chunk()?)));
        let (kind, number, sender) = (words.next()?, words.next()?, words.next()?);
        let value = u64::from_ne_bytes(*value.first_chunk()?);
        Some(match kind {
            0 => Self::Signal(Signal { number, sender, value: None }),
            1 => Self::Signal(Signal { number, sender, value: Some(value) }),
            2 => Self::Program(Change::Exited(number)),
            3 => Self::Program(Change::Killed(number)),
            4 => Self::Program(Change::Stopped(number)),
            6 => Self::Alone,
            _ => Self::Program(Change::Continued),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{Change, Message, Signal};

    #[test]
    fn what_is_sent_arrives() {
        let (one, other) = UnixStream::pair().unwrap();
        for message in [
            Message::Signal(Signal { number: 15, sender: 7, value: None }),
            Message::Signal(Signal { number: 64, sender: -1, value: Some(u64::MAX) }),
            Message::Program(Change::Exited(255)),
            Message::Program(Change::Killed(9)),
            Message::Program(Change::Stopped(20)),
            Message::Program(Change::Continued),
            Message::Alone,
        ] {
            message.send(&one).unwrap();
            assert_eq!(Message::receive(&other), Some(message));
        }
        drop(one);
        assert_eq!(Message::receive(&other), None);
    }
}
