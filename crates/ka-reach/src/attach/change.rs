//! A change, as a worker makes it to one socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use ka_core::{Config, Errno, Error, Socket, Timer, UserTimeout};
use ka_policy::{Mode, due, give};

use super::finding::{Effect, Examined, Finding};
use super::writes::Writes;
use crate::ends::{ends, has_port};
use crate::process::Target;
use crate::seccomp;
use crate::worker::Reply;

/// A change to make to sockets.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The settings for sockets that are not in `before`.
    pub policy: Config,
    /// Whether sockets may keep settings of their program.
    pub mode: Mode,
    /// Only sockets whose local or peer port is this one.
    pub port: Option<u16>,
    /// Whether to set nothing, and report what would be set.
    pub dry_run: bool,
    /// Whether to report each socket with its addresses and settings. Otherwise, only failures are reported.
    pub describe: bool,
    /// The settings to restore, by inode. Only these sockets are set.
    pub before: Option<&'a HashMap<u32, Config>>,
}

impl Change<'_> {
    /// Makes the change to one socket, in a worker. `is_again` says that an earlier round examined the socket. Returns
    /// whether the socket is selected.
    pub(super) fn make(&self, target: &Target, is_again: bool, reply: &Reply<'_>) -> bool {
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
        // The socket must still be open here: closing it may block.
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
        let set =
            if is_restored { Some((Effect::Unchanged, None)) } else { self.set(socket, is_again, &writes)? };
        let Some((effect, error)) = set else { return Ok(None) };
        let after = if self.dry_run {
            before.map(|before| writes.after(before))
        } else {
            before.and_then(|_| settings())
        };
        let lacks_user_timeout = error.is_none() && self.lacks_user_timeout(socket, effect);
        if let Some(error) = &error {
            reply.send(error);
        }
        let examined = Examined { effect, lacks_user_timeout, local: None, peer: None, before, after };
        if !(self.describe || error.is_some()) {
            return Ok(Some(examined));
        }
        // Reading the addresses takes the socket's lock too. If that blocks, this answer remains. On a dry run, no
        // earlier call has taken the lock.
        if !self.dry_run {
            reply.answer(Finding::Examined(examined).to_record());
        }
        let (local, peer) = ends(socket);
        Ok(Some(Examined { local, peer, ..examined }))
    }

    /// Sets one socket. Returns the effect and the text of an error. Returns `None` if the socket is not selected.
    fn set(
        &self,
        socket: BorrowedFd<'_>,
        is_again: bool,
        writes: &Writes,
    ) -> io::Result<Option<(Effect, Option<String>)>> {
        if let Some(port) = self.port
            && !has_port(socket, port)?
        {
            return Ok(None);
        }
        Ok(Some(match self.give(Socket::with_kernel(socket.as_raw_fd(), writes)) {
            // The descriptor may have been closed since it was listed, and its number used again for a file.
            Err(Error::NotTcp | Error::System { errno: Errno(libc::ENOTSOCK), .. }) => return Ok(None),
            Err(error) => (Effect::Failed, Some(error.to_string())),
            Ok(()) if !writes.is_empty() && !self.is_in_force(socket) => {
                (Effect::Failed, Some(overridden_by().to_owned()))
            }
            Ok(()) if !writes.is_empty() => (Effect::Set, None),
            Ok(()) if is_again => return Ok(None),
            Ok(()) => (Effect::Unchanged, None),
        }))
    }

    fn give(&self, socket: Socket<&Writes>) -> Result<(), Error> {
        // The write rejects descriptors that are not TCP. If nothing may be written, the read does.
        let is_written = self.mode == Mode::Force && !self.dry_run;
        let was_on = if is_written { false } else { socket.is_enabled()? };
        due(socket, &self.policy, self.mode, was_on).map_or(Ok(()), |config| give(socket, config, false).1)
    }

    /// Returns whether the policy has a user timeout that the socket cannot have (Multipath TCP). False if the socket
    /// kept its own keepalive.
    fn lacks_user_timeout(&self, socket: BorrowedFd<'_>, effect: Effect) -> bool {
        let is_given = self.mode == Mode::Force || effect == Effect::Set;
        let is_named =
            !matches!(self.policy.user_timeout(), UserTimeout::Keep | UserTimeout::Milliseconds(0));
        let timeout = || Socket::new(socket.as_raw_fd()).timer(Timer::UserTimeout);
        is_given && is_named && matches!(timeout(), Err(Error::Unsupported { .. }))
    }

    /// Returns whether the written values are in force. If a cgroup or a supervisor of ka's own process has a policy,
    /// setsockopt reports success but changes nothing.
    fn is_in_force(&self, socket: BorrowedFd<'_>) -> bool {
        let socket = Socket::new(socket.as_raw_fd());
        let is_there = |timer| match (self.policy.timer(timer), socket.timer(timer)) {
            (Some(ours), Ok(theirs)) if self.mode == Mode::Floor => theirs <= ours,
            (Some(ours), Ok(theirs)) => theirs == ours,
            _ => true,
        };
        // If the value cannot be read, assume that it is in force.
        let is_as_set = |on| socket.is_enabled().map_or(true, |is_on| is_on == on);
        self.dry_run || self.policy.enabled().is_none_or(is_as_set) && Timer::ALL.into_iter().all(is_there)
    }
}

/// Names the policy that overrides the values that ka has just written.
fn overridden_by() -> &'static str {
    if seccomp::is_enforced() {
        "the policy of ka run --via seccomp overrides this command: use ka attach outside of it, or ka attach --all --via bpf"
    } else {
        "its cgroup has a policy in mode force (ka cgroup ls), which overrides this; use ka attach --all --via bpf"
    }
}
