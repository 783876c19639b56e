//! A TCP keepalive policy for a program that somebody else wrote.
//!
//! A program that nobody can change gets its keepalive from outside: from a preloaded library, from a supervisor of its
//! system calls, or from a BPF program of its cgroup. All three need the same decisions, which are here:
//!
//! - [`Policy`]: the values, the [`Mode`] and the [`Rules`].
//! - [`Variables`]: the policy that the KA_ variables of an environment and of /etc/ka.conf describe.
//! - [`judge`]: the verdict on a setsockopt(2) of the program.
//! - [`due`] and [`give`]: the values for a socket on which the program may already have set some.
//!
//! ```
//! use std::os::fd::AsRawFd;
//!
//! use ka_core::{Socket, SockOpt};
//! use ka_policy::{Action, Rule, Rules, Source, Variables, Verdict, due, give};
//!
//! // The environment of the program.
//! let mut environment = Source::default();
//! environment.keep(b"KA_POLICY", b"120,30,4");
//! environment.keep(b"KA_RULES", b"rport=22 skip");
//! let mut variables = Variables::default();
//! variables.take_all(&[environment], |variable, value, right| panic!("{variable:?} {right}: {value:?}"));
//! let mut room = [Rule::SKIP; Rules::MAX];
//! let policy = variables.policy(&mut room, || 15, |rule, error| panic!("{error}: {rule:?}"));
//!
//! // A connection to port 443 gets the policy, and one to port 22 is left alone.
//! let peer = |port| Some(std::net::SocketAddr::from(([192, 0, 2, 1], port)).into());
//! assert_eq!(policy.decide(peer(22), 0), Action::Skip);
//! let Action::Apply(config) = policy.decide(peer(443), 0) else { unreachable!() };
//!
//! // Set it on a socket.
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let socket = Socket::new(listener.as_raw_fd());
//! if let Some(config) = due(socket, &config, policy.mode, socket.is_enabled()?) {
//!     give(socket, config, false).1?;
//! }
//! assert_eq!(socket.settings()?.idle, 120);
//!
//! // The program cannot turn it off again.
//! assert_eq!(policy.judge(&config, SockOpt::KeepAlive, 0), Verdict::Ignore);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is `no_std`, and neither allocates nor keeps state, so that a preloaded library can use it.

#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects
)]

mod glob;
mod mode;
mod policy;
mod rule;
mod rules;
mod variables;

pub use glob::glob;
pub use mode::{Mode, Verdict, due, give, judge, user_timeout_limit};
pub use policy::Policy;
pub use rule::{Action, Cidr, Endpoint, Rule, RuleError};
pub use rules::{RuleBuffer, Rules};
pub use variables::{
    CONF, CONF_LENGTH, CONF_LINE, CONF_OWNER, CONF_ROOM, LOG_WRITE, RTO_MAX_KERNEL, Source, Variable,
    Variables, skips,
};
