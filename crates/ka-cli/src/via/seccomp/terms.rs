//! What holds for the sockets: the policy, what a program may say of it, and which sockets have another.
//!
//! A rule that looks at the peer cannot be followed here. Before a call of connect the peer is in the program's memory, and
//! while the connection is being made the kernel does not tell it: getpeername(2) is ENOTCONN until the handshake is over,
//! and of what is accepted the supervisor hears nothing. The local port is the kernel's own word, of a socket that is bound.

use std::os::fd::RawFd;

use ka_core::{Action, Config, Mode, Orders, Rule};

use super::sys;
use crate::via::orders::rules;

/// What holds for all sockets.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) policy: Config,
    pub(super) mode: Mode,
    pub(super) rules: Vec<Rule>,
}

impl Terms {
    pub(super) fn new(orders: &Orders<'_>) -> Self {
        let rules = rules(orders).flatten().collect();
        Self { policy: orders.policy, mode: orders.mode, rules }
    }

    pub(super) fn look_at_peer(&self) -> bool {
        self.rules.iter().any(Rule::looks_at_peer)
    }

    /// What a socket is to have that is about to connect or to listen. One that is not bound has no port, and no rule that
    /// asks for one is for it.
    pub(super) fn decide(&self, fd: RawFd) -> Action {
        let asks = self.rules.iter().any(Rule::looks_at_local_port);
        let port = if asks { sys::local_port(fd) } else { 0 };
        let rule = self.rules.iter().find(|rule| rule.matches(None, port));
        rule.map_or(Action::Apply(self.policy), Rule::action)
    }

    /// The same, of a socket whose program says something of it: `None` while it is not bound, and a rule asks for a port.
    pub(super) fn decide_now(&self, fd: RawFd) -> Option<Action> {
        let asks = self.rules.iter().any(Rule::looks_at_local_port);
        (!asks || sys::local_port(fd) != 0).then(|| self.decide(fd))
    }
}
