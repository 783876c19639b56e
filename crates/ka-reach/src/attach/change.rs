//! The change that a worker makes to one socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use ka_core::{Config, Errno, Error, Socket, Timer};
use ka_policy::{Mode, due, give};

use super::finding::{Effect, Examined, Finding};
use super::writes::Writes;
use super::{Outcome, Unsupported};
use crate::ends::{ends, has_port};
use crate::process::HeldSocket;
use crate::reason::socket_reason;
use crate::seccomp;
use crate::worker::Reply;

/// A change to make to sockets.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The settings for sockets that are not in `before`.
    pub policy: Config,
    /// The mode, which decides whether a socket keeps the settings that its program made.
    pub mode: Mode,
    /// If not `None`, only sockets whose local or peer port is this one are set.
    pub port: Option<u16>,
    /// If true, ka sets nothing, and reports the changes that it would make.
    pub dry_run: bool,
    /// If true, ka reports each socket with its addresses and settings. Otherwise, it reports only failures.
    pub describe: bool,
    /// The settings to restore, by inode. Only these sockets are set.
    pub before: Option<&'a HashMap<u32, Config>>,
}

impl Change<'_> {
    /// Makes the change to one socket, in a worker. `is_again` is true if an earlier round examined the socket. Returns
    /// whether the socket is selected.
    pub(super) fn make(&self, target: &HeldSocket, is_again: bool, reply: &Reply<'_>) -> bool {
        let change = Self {
            policy: self.before.and_then(|before| before.get(&target.inode)).copied().unwrap_or(self.policy),
            ..*self
        };
        let refused = |error: io::Error| Finding::Refused(error.raw_os_error().unwrap_or(libc::EIO));
        let socket = match target.table.duplicate(target.fd) {
            Ok(socket) => socket,
            Err(error) => {
                reply.answer(refused(error).to_record());
                return false;
            }
        };
        let finding = match change.examine(socket.as_fd(), is_again, reply) {
            Ok(Some(examined)) => Finding::Examined(examined),
            Ok(None) => Finding::NotSelected,
            Err(error) => refused(error),
        };
        // Closing the duplicate may block, so the answer comes first.
        reply.answer(finding.to_record());
        matches!(finding, Finding::Examined(_))
    }

    fn examine(
        &self,
        socket: BorrowedFd<'_>,
        is_again: bool,
        reply: &Reply<'_>,
    ) -> io::Result<Option<Examined>> {
        let read = || Socket::new(socket.as_raw_fd()).settings().ok();
        let settings = || if self.describe { read() } else { None };
        let before = settings();
        let is_restored =
            self.before.is_some() && read().is_some_and(|now| Config::try_from(now) == Ok(self.policy));
        let writes = Writes::new(self.dry_run);
        let set = if is_restored {
            Some((Effect::Unchanged, None, self.policy))
        } else {
            self.set(socket, is_again, &writes)?
        };
        let Some((effect, error, given)) = set else { return Ok(None) };
        let after = if self.dry_run {
            before.map(|before| writes.after(before))
        } else {
            before.and_then(|_| settings())
        };
        let unsupported =
            if error.is_none() { self.unsupported(socket, effect, &given) } else { Unsupported::default() };
        if let Some(error) = &error {
            reply.send(error);
        }
        let examined = Examined { effect, unsupported, local: None, peer: None, before, after };
        if !(self.describe || error.is_some()) {
            return Ok(Some(examined));
        }
        // The kernel takes the socket's lock to report its addresses. If that blocks, this answer remains. On a dry run
        // there is no such answer: no earlier call took the lock, so the socket must be reported as blocked.
        if !self.dry_run {
            reply.answer(Finding::Examined(examined).to_record());
        }
        let (local, peer) = ends(socket);
        Ok(Some(Examined { local, peer, ..examined }))
    }

    /// Sets one socket. Returns the effect, the text of the error if it failed, and the policy without the values that
    /// the socket does not support. Returns `None` if the socket is not selected.
    fn set(
        &self,
        socket: BorrowedFd<'_>,
        is_again: bool,
        writes: &Writes,
    ) -> io::Result<Option<(Effect, Option<String>, Config)>> {
        if let Some(port) = self.port
            && !has_port(socket, port)?
        {
            return Ok(None);
        }
        let (given, result) = self.give(Socket::with_kernel(socket.as_raw_fd(), writes));
        let (effect, error) = match result {
            // After ka listed the descriptor, the process may have closed it and reused its number for a file.
            Err(Error::NotTcp | Error::System { errno: Errno(libc::ENOTSOCK), .. }) => return Ok(None),
            Err(error) => (Effect::Failed, Some(socket_reason(&error))),
            Ok(()) if !writes.is_empty() && !self.is_in_force(socket, &given) => {
                (Effect::Failed, Some(overridden_by().to_owned()))
            }
            Ok(()) if !writes.is_empty() => (Effect::Set, None),
            Ok(()) if is_again => return Ok(None),
            Ok(()) => (Effect::Unchanged, None),
        };
        Ok(Some((effect, error, given)))
    }

    /// Sets the policy on a socket. Returns the policy without the values that the socket does not support.
    fn give(&self, socket: Socket<&Writes>) -> (Config, Result<(), Error>) {
        let policy = self.policy;
        // In mode force, the writes fail for descriptors that are not TCP sockets. Otherwise this read fails for them.
        let is_written = self.mode == Mode::Force && !self.dry_run;
        let was_on = match if is_written { Ok(false) } else { socket.is_enabled() } {
            Ok(is_on) => is_on,
            Err(error) => return (policy, Err(error)),
        };
        let Some(mut config) = due(socket, &policy, self.mode, was_on) else { return (policy, Ok(())) };
        if self.mode == Mode::Force {
            // `due` keeps a lower value of the program. Here it may be that of an earlier ka attach.
            config = config.with_rto_max(policy.rto_max()).unwrap_or(config);
        }
        let (tried, result) = give(socket, config, false);
        let lacks = |timer: &Timer| config.names(*timer) && !tried.names(*timer);
        (Timer::ALL.into_iter().filter(lacks).fold(policy, Config::without), result)
    }

    /// Returns whether a socket with this outcome has the policy, instead of its own keepalive.
    pub(super) fn is_given(&self, outcome: Outcome) -> bool {
        outcome == Outcome::Set || outcome == Outcome::Unchanged && self.mode == Mode::Force
    }

    /// Returns the values of the policy that the socket does not support.
    fn unsupported(&self, socket: BorrowedFd<'_>, effect: Effect, given: &Config) -> Unsupported {
        let is_wanted = |timer| {
            let removes = self.policy.timer(timer) == Some(0);
            self.is_given(effect.into()) && self.policy.names(timer) && !removes
        };
        let timeout = || Socket::new(socket.as_raw_fd()).timer(Timer::UserTimeout);
        Unsupported {
            user_timeout: is_wanted(Timer::UserTimeout)
                && matches!(timeout(), Err(Error::Unsupported { .. })),
            // A Multipath TCP socket that has fallen back to TCP reports this value, but cannot be given one.
            rto_max: is_wanted(Timer::RtoMax) && !given.names(Timer::RtoMax),
        }
    }

    /// Returns whether the socket has the written values. If the socket's cgroup has a policy in mode force, or a
    /// supervisor enforces one on ka itself, setsockopt(2) reports success but changes nothing.
    fn is_in_force(&self, socket: BorrowedFd<'_>, given: &Config) -> bool {
        let socket = Socket::new(socket.as_raw_fd());
        let has_value = |timer| match (given.timer(timer), socket.timer(timer)) {
            (Some(wanted), Ok(actual)) if self.mode == Mode::Floor => actual <= *timer.reported(wanted).end(),
            (Some(wanted), Ok(actual)) => timer.reported(wanted).contains(&actual),
            _ => true,
        };
        // If a value cannot be read, assume that the socket has it.
        let has_state = |on| socket.is_enabled().map_or(true, |is_on| is_on == on);
        self.dry_run || self.policy.enabled().is_none_or(has_state) && Timer::ALL.into_iter().all(has_value)
    }
}

/// Returns the error text that names the policy which overrides the values that ka has just written.
fn overridden_by() -> &'static str {
    if seccomp::is_enforced() {
        "the policy of ka run --via seccomp overrides this command: use ka attach outside of it, or ka attach --all --via bpf"
    } else {
        "its cgroup has a policy in mode force (ka cgroup ls), which overrides this; use ka attach --all --via bpf"
    }
}
