//! The program's sockets: which of them are TCP, which were seen to, and how the policy gets into one.

use core::sync::atomic::{AtomicU8, Ordering};

use ka_core::{Action, Config, Endpoint, Kernel, Mode, SockOpt, Socket};
use libc::{c_int, sockaddr, socklen_t};

use crate::address;
use crate::log;
use crate::raw::Raw;
use crate::settings::Settings;

/// What is known of a descriptor. It is a hint that saves system calls: a number may be closed and come back as
/// something else without a call that is hooked. So whatever would be wrong with a stale hint asks the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// No TCP socket, or one that a rule leaves alone.
    LeftAlone,
    /// It was given the policy that is for it.
    SeenTo,
    /// So too, but it had another keepalive before: what waits to be accepted from it has inherited that.
    Changed,
}

/// A byte for each descriptor that a program is likely to have; of those beyond, nothing is ever known.
static KNOWN: [AtomicU8; 65536] = [const { AtomicU8::new(0) }; 65536];

#[inline(never)]
fn known(fd: c_int) -> Known {
    let slot = usize::try_from(fd).ok().and_then(|index| KNOWN.get(index));
    match slot.map_or(0, |slot| slot.load(Ordering::Relaxed)) {
        1 => Known::LeftAlone,
        2 => Known::SeenTo,
        3 => Known::Changed,
        _ => Known::Nothing,
    }
}

#[inline(never)]
fn learn(fd: c_int, known: Known) {
    if let Some(slot) = usize::try_from(fd).ok().and_then(|index| KNOWN.get(index)) {
        slot.store(
            match known {
                Known::Nothing => 0,
                Known::LeftAlone => 1,
                Known::SeenTo => 2,
                Known::Changed => 3,
            },
            Ordering::Relaxed,
        );
    }
}

#[inline(never)]
fn read(fd: c_int, option: SockOpt) -> Option<c_int> {
    let mut value = [0; size_of::<c_int>()];
    Raw.get(fd, option, &mut value).ok()?;
    Some(c_int::from_ne_bytes(value))
}

/// Whether this is a TCP or Multipath TCP socket. Where the kernel does not say, as under a filter that refuses our
/// calls, it is none.
#[inline(never)]
pub(crate) fn is_tcp(fd: c_int) -> bool {
    let protocol = read(fd, SockOpt::Protocol);
    matches!(protocol, Some(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP))
        && read(fd, SockOpt::Type) == Some(libc::SOCK_STREAM)
}

/// Whether socket(2) with these arguments makes a TCP socket. The type has flags in it.
const fn makes_tcp(domain: c_int, kind: c_int, protocol: c_int) -> bool {
    const TYPE: c_int = 0xf;
    matches!(domain, libc::AF_INET | libc::AF_INET6)
        && kind & TYPE == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
}

/// What the rules, or the base policy where there are none that match, say of a connection.
fn decide(settings: &Settings, fd: c_int, peer: Option<Endpoint>) -> Action {
    let local_port = if settings.rules.look_at_local_port { address::local_port(fd) } else { 0 };
    let rule = settings.rules.as_slice().iter().find(|rule| rule.matches(peer, local_port));
    rule.map_or(Action::Apply(settings.base), ka_core::Rule::action)
}

/// The same, of a TCP socket as it is now. `None` while it has no peer, or no local port, and a rule asks for one.
pub(crate) fn decide_now(settings: &Settings, fd: c_int) -> Option<Action> {
    if settings.rules.is_empty() {
        return Some(Action::Apply(settings.base));
    }
    let peer = address::peer(fd);
    let unbound = settings.rules.look_at_local_port && address::local_port(fd) == 0;
    if unbound || (settings.rules.look_at_peer && peer.is_none()) {
        return None;
    }
    Some(decide(settings, fd, peer))
}

/// A descriptor that socket(2) has just made.
#[inline]
pub(crate) fn born(settings: &Settings, fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    if fd < 0 {
        return;
    }
    if !makes_tcp(domain, kind, protocol) {
        learn(fd, Known::LeftAlone);
    } else if settings.rules.is_empty() {
        give(settings, fd, settings.base, true);
        learn(fd, Known::SeenTo);
    } else {
        // Where it goes, or what it listens to, decides.
        learn(fd, Known::Nothing);
    }
}

/// A descriptor that is about to connect to, or send its first data to, an address of the program's.
#[inline]
pub(crate) fn connecting(settings: &Settings, fd: c_int, to: *const sockaddr, size: socklen_t) {
    if !settings.rules.look_at_peer {
        ensure(settings, fd);
    } else if (settings.mode != Mode::Default || known(fd) == Known::Nothing)
        && is_tcp(fd)
        && let Some(peer) = address::given(to, size)
    {
        act(settings, fd, decide(settings, fd, Some(peer)));
    }
}

/// A descriptor that is about to listen. What it has then, its connections inherit.
pub(crate) fn listening(settings: &Settings, fd: c_int) {
    if settings.rules.look_at_peer || (settings.mode == Mode::Default && known(fd) != Known::Nothing) {
        return;
    }
    // Nothing is as important to get right, and it happens once: ask the kernel.
    see_to(settings, fd);
    if known(fd) == Known::Changed {
        // Nothing waits to be accepted yet.
        learn(fd, Known::SeenTo);
    }
}

/// Whether it was given a policy, and has keepalive on.
#[inline(never)]
pub(crate) fn is_held(fd: c_int) -> bool {
    matches!(known(fd), Known::SeenTo | Known::Changed) && read(fd, SockOpt::KeepAlive) == Some(1)
}

/// Sees to a descriptor that is about to be used, and may have come without being seen. That it was left alone proves
/// nothing: the number may have become another's, by dup2(2) or in the child of vfork(2).
fn ensure(settings: &Settings, fd: c_int) {
    // In the default mode, what the program did since is its right.
    let its_right = settings.mode == Mode::Default && matches!(known(fd), Known::SeenTo | Known::Changed);
    if !its_right && !is_held(fd) {
        see_to(settings, fd);
    }
}

/// Gives a TCP socket, that is about to connect or listen, the policy that is for it.
fn see_to(settings: &Settings, fd: c_int) {
    if is_tcp(fd) {
        act(settings, fd, decide(settings, fd, None));
    } else {
        learn(fd, Known::LeftAlone);
    }
}

/// A descriptor that came from somewhere else: inherited, or sent by another process.
pub(crate) fn arrived(settings: &Settings, fd: c_int) {
    if !is_tcp(fd) {
        learn(fd, Known::LeftAlone);
    } else if let Some(action) = decide_now(settings, fd) {
        act(settings, fd, action);
    } else {
        learn(fd, Known::Nothing);
    }
}

/// A descriptor that accept(2) has just made. It has inherited what the listener had at the handshake.
#[inline]
pub(crate) fn accepted(settings: &Settings, listener: c_int, fd: c_int) {
    if fd < 0 {
        return;
    }
    if settings.rules.look_at_peer {
        arrived(settings, fd);
        return;
    }
    match known(listener) {
        Known::LeftAlone => learn(fd, Known::LeftAlone),
        Known::SeenTo if settings.mode == Mode::Default || read(fd, SockOpt::KeepAlive) == Some(1) => {
            learn(fd, Known::SeenTo);
        }
        // Its handshake may have been before the listener was seen to.
        Known::SeenTo | Known::Changed => arrived(settings, fd),
        Known::Nothing => {
            arrived(settings, listener);
            arrived(settings, fd);
        }
    }
}

fn act(settings: &Settings, fd: c_int, action: Action) {
    match action {
        Action::Skip => learn(fd, Known::LeftAlone),
        Action::Apply(policy) => adopt(settings, fd, &policy),
    }
}

/// Gives the policy to a socket that may have a keepalive of its own.
fn adopt(settings: &Settings, fd: c_int, policy: &Config) {
    let was_on = read(fd, SockOpt::KeepAlive) == Some(1);
    if let Some(config) = Socket::with_kernel(fd, Raw).due(policy, settings.mode, was_on) {
        give(settings, fd, config, false);
    }
    learn(fd, if was_on { Known::Changed } else { Known::SeenTo });
}

/// Sets what is to be set, on a socket that is known to be fresh or is not.
#[inline(never)]
fn give(settings: &Settings, fd: c_int, config: Config, fresh: bool) {
    let (config, result) = Socket::with_kernel(fd, Raw).give(config, fresh);
    if settings.log.as_c_str().is_some() {
        log::set(settings, fd, &config, result);
    }
}
