//! A worker's finding about a socket, and its form in the shared memory.

use std::net::SocketAddr;

use ka_core::Settings;

use super::{Outcome, Unsupported};
use crate::record::{Reader, Writer};
use crate::worker::Record;

/// A worker's finding about a socket. The worker sends the text of an error in a separate message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The socket is not TCP, has another port, or has not changed since an earlier round examined it.
    NotSelected,
    /// The socket could not be duplicated or read. The number is the errno.
    Refused(i32),
    /// The socket was examined, and set if necessary.
    Examined(Examined),
}

/// The result of examining a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Examined {
    pub(super) effect: Effect,
    pub(super) unsupported: Unsupported,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) before: Option<Settings>,
    pub(super) after: Option<Settings>,
}

/// The effect of a change on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Set,
    Unchanged,
    Failed,
}

impl From<Effect> for Outcome {
    fn from(effect: Effect) -> Self {
        match effect {
            Effect::Set => Self::Set,
            Effect::Unchanged => Self::Unchanged,
            Effect::Failed => Self::Failed,
        }
    }
}

// The values of the first half of a record's first word.
const NOT_SELECTED: u32 = 0;
const REFUSED: u32 = 1;
const SET: u32 = 2;
const UNCHANGED: u32 = 3;
const FAILED: u32 = 4;

impl Finding {
    pub(super) fn to_record(self) -> Record {
        match self {
            Self::NotSelected => Writer::new().pair(NOT_SELECTED, 0),
            Self::Refused(errno) => Writer::new().pair(REFUSED, errno.cast_unsigned()),
            Self::Examined(Examined { effect, unsupported, local, peer, before, after }) => {
                let kind = match effect {
                    Effect::Set => SET,
                    Effect::Unchanged => UNCHANGED,
                    Effect::Failed => FAILED,
                };
                let Unsupported { user_timeout, rto_max } = unsupported;
                Writer::new()
                    .pair(kind, u32::from(user_timeout) | u32::from(rto_max) << 1)
                    .address(local)
                    .address(peer)
                    .settings(before)
                    .settings(after)
            }
        }
        .finish()
    }

    pub(super) fn from_record(record: &Record) -> Self {
        let mut record = Reader::new(record);
        let (kind, rest) = record.pair();
        let effect = match kind {
            NOT_SELECTED => return Self::NotSelected,
            SET => Effect::Set,
            UNCHANGED => Effect::Unchanged,
            FAILED => Effect::Failed,
            _ => return Self::Refused(rest.cast_signed()),
        };
        // The fields are read in the order in which they were written.
        Self::Examined(Examined {
            effect,
            unsupported: Unsupported { user_timeout: rest & 1 != 0, rto_max: rest & 2 != 0 },
            local: record.address(),
            peer: record.address(),
            before: record.settings(),
            after: record.settings(),
        })
    }
}

#[cfg(test)]
mod tests {
    use ka_core::Settings;

    use super::{Effect, Examined, Finding, Unsupported};

    #[test]
    fn findings_are_read_as_written() {
        let settings =
            Settings { enabled: true, idle: 1, intvl: 2, cnt: 3, user_timeout: Some(4), rto_max: Some(5) };
        let examined = |effect| Examined {
            effect,
            unsupported: Unsupported {
                user_timeout: effect == Effect::Set,
                rto_max: effect == Effect::Unchanged,
            },
            local: "192.0.2.1:1".parse().ok(),
            peer: "[2001:db8::1]:2".parse().ok(),
            before: None,
            after: Some(settings),
        };
        let effects = [Effect::Set, Effect::Unchanged, Effect::Failed];
        let examined = effects.map(|effect| Finding::Examined(examined(effect)));
        for finding in examined.into_iter().chain([Finding::NotSelected, Finding::Refused(libc::EPERM)]) {
            assert_eq!(Finding::from_record(&finding.to_record()), finding);
        }
    }
}
