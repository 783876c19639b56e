//! The messages between the proxy and the supervisor, and how they are encoded.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::children::StateChange;
use super::signals::Signal;

/// A message between the proxy and the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To the supervisor: the proxy has received this signal.
    Signal(Signal),
    /// To the proxy: the program's state has changed.
    Program(StateChange),
    /// To the proxy, before the message that the program has ended: no process that the program started is left.
    NoDescendants,
}

/// The size of an encoded message in bytes.
const SIZE: usize = 24;

impl Message {
    /// Sends the message.
    pub(super) fn send(self, mut to: &UnixStream) -> io::Result<()> {
        let (kind, number, sender, value) = match self {
            Self::Signal(Signal { number, sender, value: None }) => (0, number, sender, 0),
            Self::Signal(Signal { number, sender, value: Some(value) }) => (1, number, sender, value),
            Self::Program(StateChange::Exited(status)) => (2, status, 0, 0),
            Self::Program(StateChange::Killed(signal)) => (3, signal, 0, 0),
            Self::Program(StateChange::Stopped(signal)) => (4, signal, 0, 0),
            Self::Program(StateChange::Continued) => (5, 0, 0, 0),
            Self::NoDescendants => (6, 0, 0, 0),
        };
        let mut bytes = Vec::with_capacity(SIZE);
        for word in [kind, number, sender, 0] {
            bytes.extend(i32::to_ne_bytes(word));
        }
        bytes.extend(value.to_ne_bytes());
        // A message is smaller than the socket's buffer, so the kernel writes all of it or nothing.
        retry(|| to.write(&bytes).map(drop))
    }

    /// Waits for the next message. Returns `None` if the other process has closed the socket.
    pub(super) fn receive(mut from: &UnixStream) -> Option<Self> {
        let mut bytes = [0; SIZE];
        if retry(|| from.read(&mut bytes)).ok()? != SIZE {
            return None;
        }
        let (words, value) = bytes.split_at_checked(16)?;
        let mut words =
            words.chunks_exact(4).filter_map(|word| Some(i32::from_ne_bytes(*word.first_chunk()?)));
        let (kind, number, sender) = (words.next()?, words.next()?, words.next()?);
        let value = u64::from_ne_bytes(*value.first_chunk()?);
        Some(match kind {
            0 => Self::Signal(Signal { number, sender, value: None }),
            1 => Self::Signal(Signal { number, sender, value: Some(value) }),
            2 => Self::Program(StateChange::Exited(number)),
            3 => Self::Program(StateChange::Killed(number)),
            4 => Self::Program(StateChange::Stopped(number)),
            5 => Self::Program(StateChange::Continued),
            6 => Self::NoDescendants,
            _ => return None,
        })
    }
}

/// Repeats a call that a signal interrupts, or that fails for lack of memory. Gives up after one second. If a message
/// is lost, the receiver concludes that the sender has died.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..TRIES {
        match call() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS)) => {
                thread::sleep(PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{Message, Signal, StateChange};

    #[test]
    fn messages_are_received_as_they_were_sent() {
        let (one, other) = UnixStream::pair().unwrap();
        for message in [
            Message::Signal(Signal { number: 15, sender: 7, value: None }),
            Message::Signal(Signal { number: 64, sender: -1, value: Some(u64::MAX) }),
            Message::Program(StateChange::Exited(255)),
            Message::Program(StateChange::Killed(9)),
            Message::Program(StateChange::Stopped(20)),
            Message::Program(StateChange::Continued),
            Message::NoDescendants,
        ] {
            message.send(&one).unwrap();
            assert_eq!(Message::receive(&other), Some(message));
        }
        drop(one);
        assert_eq!(Message::receive(&other), None);
    }
}
