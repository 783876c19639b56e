//! A policy: the values, the mode, and the rules.

use ka_core::{Config, SockOpt, Timer};

use crate::mode::{Mode, Verdict, judge};
use crate::rule::{Action, Endpoint, Rule};
use crate::rules::Rules;

/// A keepalive policy for a program that somebody else wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy<'r> {
    /// The values for sockets that no rule matches.
    pub config: Config,
    /// The right of the program to override the values.
    pub mode: Mode,
    /// Other values for some sockets, by peer and port.
    pub rules: Rules<'r>,
}

impl Policy<'static> {
    /// Returns a policy without rules.
    #[must_use]
    pub const fn new(config: Config, mode: Mode) -> Self {
        Self { config, mode, rules: Rules::NONE }
    }
}

impl Policy<'_> {
    /// Decides the action for a socket by its peer and local port. A rule that names a peer does not match an unknown
    /// peer, and a rule that names a local port does not match port 0.
    #[must_use]
    pub fn decide(&self, peer: Option<Endpoint>, local_port: u16) -> Action {
        self.rules.first_match(peer, local_port).map_or(Action::Apply(self.config), Rule::action)
    }

    /// Returns whether the policy, or a rule, sets this timer.
    #[must_use]
    pub fn names(&self, timer: Timer) -> bool {
        let by_rule = |rule: &Rule| matches!(rule.action(), Action::Apply(config) if config.names(timer));
        self.config.names(timer) || self.rules.iter().any(by_rule)
    }

    /// Decides the verdict on a program's setsockopt(2), as [`judge`] does. `config` holds the values that
    /// [`Policy::decide`] chose for the socket.
    #[must_use]
    #[inline]
    pub fn judge(&self, config: &Config, option: SockOpt, value: i32) -> Verdict {
        judge(self.mode, config, option, value)
    }
}
