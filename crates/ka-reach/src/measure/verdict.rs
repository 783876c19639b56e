//! The verdict of a measurement.

use std::time::Duration;

use super::trial::TrialResult;

/// The conclusion from the trials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The connections survived all idle times.
    Keeps,
    /// The path forgets a connection after an idle time, and is silent or resets it.
    Forgets(TrialResult),
    /// The server closes idle connections, or rejects connections, and the path lives at least as long.
    ServerCloses,
    /// No conclusion is possible.
    Unclear(Doubt),
}

/// The reason why a measurement is unclear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A signal ended the measurement.
    Interrupted,
    /// Connections survived longer idle times, and not shorter ones, also when ka repeated these.
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
    /// The longest idle time that a connection survived.
    pub survives: Option<Duration>,
    /// The shortest idle time that a connection did not survive.
    pub fails: Option<Duration>,
    /// The result at this idle time: silent or reset.
    pub failure: Option<TrialResult>,
    /// True if this was a reset without a probe.
    pub is_unasked: bool,
    /// The idle time after which the server closed connections.
    pub server_closed: Option<Duration>,
}
