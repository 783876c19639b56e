//! The verdict of a measurement.

use std::time::Duration;

use super::trial::TrialResult;

/// What the trials show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// Each idle time was survived.
    Keeps,
    /// The path forgets a connection after an idle time, and is silent or resets it.
    Forgets(TrialResult),
    /// The server closes idle connections, or rejects connections, and the path lives at least as long.
    ServerCloses,
    /// No conclusion is possible.
    Unclear(Doubt),
}

/// Why a measurement is unclear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A signal ended the measurement.
    Interrupted,
    /// Longer idle times survived, and shorter ones did not, also when they were repeated.
    Contradiction,
    /// The peer sends packets by itself, so the connections are not idle.
    PeerTalks,
    /// The server no longer accepts connections.
    ServerGone,
}

impl Conclusion {
    /// Returns the name of the verdict.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keeps => "keeps",
            Self::Forgets(_) => "forgets",
            Self::ServerCloses => "server-closes",
            Self::Unclear(_) => "unclear",
        }
    }
}

/// The numbers of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The longest idle time that was survived.
    pub survives: Option<Duration>,
    /// The shortest idle time that was not survived.
    pub fails: Option<Duration>,
    /// How the shortest failure failed: silent or reset.
    pub failure: Option<TrialResult>,
    /// Whether that was a reset without a probe.
    pub is_unasked: bool,
    /// The idle time after which the server closed connections.
    pub server_closed: Option<Duration>,
}
