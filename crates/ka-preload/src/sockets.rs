//! The program's sockets: which of them are TCP, which were seen to, and how the policy gets into one.

use core::sync::atomic::{AtomicU8, Ordering};

use ka_core::{Config, Kernel as _, SockOpt, Socket, Timer};
use ka_policy::{Action, Endpoint, Mode, due};
use libc::{c_int, sockaddr, socklen_t};

use crate::raw::{self, Raw};
use crate::shim::{Shim, active};
use crate::{address, filter, log};

/// What is known of a descriptor. It is a hint that saves system calls: a number may be closed and come back as
/// something else without a call that is hooked. So whatever would be wrong with a stale hint asks the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    Nothing = 0,
    /// It was made in sight, and rules will say what is for it. What the program says until then is remembered.
    Waits = 1,
    /// No TCP socket, or one that a rule leaves alone.
    LeftAlone = 2,
    /// It was given the policy that is for it.
    SeenTo = 3,
    /// So too, but it had another keepalive before: what waits to be accepted from it has inherited that.
    Changed = 4,
    /// The socket came from a process that may be another user's, and no call was made on it yet. That user may hold
    /// its lock, so a call of the shim could wait forever. The socket gets the policy when the program itself makes a
    /// call that takes the lock.
    Foreign = 5,
}

/// A byte for each descriptor that a program is likely to have; of those beyond, nothing is ever known. Its lower bits
/// are what is known, its upper ones a bit for each option that the program has set on a socket that waits.
static KNOWN: [AtomicU8; 65536] = [const { AtomicU8::new(0) }; 65536];

/// The bits of it that say what is known.
const STATE: u8 = 0x07;
/// The bit of `SO_KEEPALIVE`.
const KEEPALIVE: u8 = 0x08;
/// The bit of the first timer.
const FIRST_TIMER: u8 = 0x10;
const _: () =
    assert!((FIRST_TIMER as u32) << (Timer::ALL.len() - 1) <= u8::MAX as u32, "each timer needs a bit");

#[inline(never)]
fn slot(fd: c_int) -> Option<&'static AtomicU8> {
    // A negative one is beyond them all.
    KNOWN.get(fd.cast_unsigned() as usize)
}

fn byte(fd: c_int) -> u8 {
    slot(fd).map_or(0, |slot| slot.load(Ordering::Relaxed))
}

#[inline(never)]
fn known(fd: c_int) -> Known {
    match byte(fd) & STATE {
        1 => Known::Waits,
        2 => Known::LeftAlone,
        3 => Known::SeenTo,
        4 => Known::Changed,
        5 => Known::Foreign,
        _ => Known::Nothing,
    }
}

#[inline(never)]
fn learn(fd: c_int, known: Known) {
    if let Some(slot) = slot(fd) {
        slot.store(known as u8, Ordering::Relaxed);
    }
}

/// The bit of an option that the program has set.
const fn bit(option: SockOpt) -> u8 {
    match option {
        SockOpt::Timer(timer) => FIRST_TIMER << timer as u8,
        _ => KEEPALIVE,
    }
}

/// Whether rules are still to say what is for a socket that was made in sight.
pub(crate) fn waits(fd: c_int) -> bool {
    known(fd) == Known::Waits
}

/// The program has set an option of a socket that waits.
pub(crate) fn heed(fd: c_int, option: SockOpt) {
    if let Some(slot) = slot(fd) {
        // In two steps: in one, it would be libgcc's on aarch64, which brings more with it. Two threads that set options of
        // one socket before it connects may lose a word.
        slot.store(slot.load(Ordering::Relaxed) | bit(option), Ordering::Relaxed);
    }
}

/// What a policy leaves to set on a socket that waits, in the default mode: what the program has not said. `None` where
/// its word was off.
fn unsaid(fd: c_int, policy: &Config, is_on: bool) -> Option<Config> {
    let byte = byte(fd);
    let said = |option| byte & bit(option) != 0;
    let mut config = *policy;
    for timer in Timer::ALL {
        if said(SockOpt::Timer(timer)) {
            config = config.without(timer);
        }
    }
    (is_on || !said(SockOpt::KeepAlive)).then_some(config)
}

#[inline(never)]
fn read(fd: c_int, option: SockOpt) -> Option<c_int> {
    let mut value = [0; size_of::<c_int>()];
    Raw.get(fd, option, &mut value).ok()?;
    Some(c_int::from_ne_bytes(value))
}

/// Returns whether this is a TCP or Multipath TCP socket. It is not if the kernel does not tell, for example because a
/// filter denies the shim's calls.
#[inline(never)]
pub(crate) fn is_tcp(fd: c_int) -> bool {
    Socket::with_kernel(fd, Raw).is_tcp().unwrap_or(false)
}

/// Whether socket(2) with these arguments makes a TCP socket. The type has flags in it.
const fn makes_tcp(domain: c_int, kind: c_int, protocol: c_int) -> bool {
    const TYPE: c_int = 0xf;
    matches!(domain, libc::AF_INET | libc::AF_INET6)
        && kind & TYPE == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
}

/// Decides what a connection gets.
fn decide(shim: &Shim, fd: c_int, peer: Option<Endpoint>) -> Action {
    let local_port = if shim.policy.rules.look_at_local_port() { address::local_port(fd) } else { 0 };
    shim.policy.decide(peer, local_port)
}

/// Decides what a TCP socket gets, in its present state. Returns `None` if a rule looks at the peer or the local port and
/// the socket has none yet.
pub(crate) fn decide_now(shim: &Shim, fd: c_int) -> Option<Action> {
    let rules = shim.policy.rules;
    let peer = if rules.look_at_peer() { Some(address::peer(fd)?) } else { None };
    if rules.look_at_local_port() && address::local_port(fd) == 0 {
        return None;
    }
    Some(decide(shim, fd, peer))
}

/// A descriptor that socket(2) has just made.
#[inline]
pub fn born(shim: &Shim, fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    if fd < 0 {
        return;
    }
    if !makes_tcp(domain, kind, protocol) {
        learn(fd, Known::LeftAlone);
    } else if shim.policy.rules.is_empty() {
        give(shim, fd, shim.policy.config, true);
        learn(fd, Known::SeenTo);
    } else {
        // Where it goes, or what it listens to, decides.
        learn(fd, Known::Waits);
    }
}

/// A descriptor that is about to connect to, or send its first data to, an address of the program's.
#[inline]
pub fn connecting(shim: &Shim, fd: c_int, to: *const sockaddr, size: socklen_t) {
    if !shim.policy.rules.look_at_peer() {
        ensure(shim, fd);
    } else if (shim.policy.mode != Mode::Default || is_undecided(fd))
        && is_tcp(fd)
        && let Some(peer) = address::given(to, size)
    {
        act(shim, fd, decide(shim, fd, Some(peer)));
    }
}

/// A descriptor that is about to listen. What it has then, its connections inherit.
pub(crate) fn listening(shim: &Shim, fd: c_int) {
    if shim.policy.rules.look_at_peer() || (shim.policy.mode == Mode::Default && !is_undecided(fd)) {
        return;
    }
    // Nothing is as important to get right, and it happens once: ask the kernel.
    see_to(shim, fd);
    if known(fd) == Known::Changed {
        // Nothing waits to be accepted yet.
        learn(fd, Known::SeenTo);
    }
}

/// Whether no hook has seen this descriptor.
pub(crate) fn is_unknown(fd: c_int) -> bool {
    known(fd) == Known::Nothing
}

/// Whether nothing was decided of it yet.
fn is_undecided(fd: c_int) -> bool {
    matches!(known(fd), Known::Nothing | Known::Waits | Known::Foreign)
}

/// Whether it was given a policy, and has keepalive on.
#[inline(never)]
pub(crate) fn is_held(fd: c_int) -> bool {
    matches!(known(fd), Known::SeenTo | Known::Changed) && read(fd, SockOpt::KeepAlive) == Some(1)
}

/// Sees to a descriptor that is about to be used, and may have come without being seen. That it was left alone proves
/// nothing: the number may have become another's, by dup2(2) or in the child of vfork(2).
fn ensure(shim: &Shim, fd: c_int) {
    // In the default mode, what the program did since is its right.
    let its_right = shim.policy.mode == Mode::Default && matches!(known(fd), Known::SeenTo | Known::Changed);
    if !its_right && !is_held(fd) {
        see_to(shim, fd);
    }
}

/// Gives a TCP socket, that is about to connect or listen, the policy that is for it.
fn see_to(shim: &Shim, fd: c_int) {
    if is_tcp(fd) {
        act(shim, fd, decide(shim, fd, None));
    } else {
        learn(fd, Known::LeftAlone);
    }
}

/// The sender of a message. Determined at most once, and only if a socket comes with the message.
pub(crate) struct Sender {
    socket: c_int,
    is_trusted: Option<bool>,
}

impl Sender {
    /// The sender of messages that are received through this socket.
    pub(crate) const fn of(socket: c_int) -> Self {
        Self { socket, is_trusted: None }
    }

    /// Returns whether only this process's own user can share a descriptor that comes from this sender.
    ///
    /// `SO_PEERCRED` names the user who made the other end: the caller of connect(2), listen(2) or socketpair(2). The
    /// other end may have been passed on since. So root never trusts its own name. Root's sockets are often passed to
    /// unprivileged processes, and every client of the system bus sees root as its peer, whichever process sends.
    fn is_trusted(&mut self, shim: &Shim) -> bool {
        let socket = self.socket;
        *self.is_trusted.get_or_insert_with(|| {
            // User namespaces show this ID for any user that they do not map.
            const UNMAPPED: u32 = 65534;
            !shim.has_more_rights
                && raw::own_user()
                    .is_some_and(|user| user != 0 && user != UNMAPPED && raw::peer_user(socket) == Some(user))
        })
    }
}

/// A descriptor that came with a message. Descriptors of other kinds than sockets, and all of them once the program has
/// a filter, are left alone without a call that could wait or be filtered.
pub(crate) fn received(shim: &Shim, sender: &mut Sender, fd: c_int) {
    if filter::is_installed() {
        learn(fd, Known::Nothing);
    } else if !raw::may_be_a_socket(fd) {
        learn(fd, Known::LeftAlone);
    } else if sender.is_trusted(shim) {
        arrived(shim, fd);
    } else {
        foreign(fd);
    }
}

/// Handles a descriptor that a process of another user may share.
pub(crate) fn foreign(fd: c_int) {
    learn(fd, Known::Foreign);
}

/// Called before the program makes a call that takes the lock of a socket. Costs one look-up in the table. A foreign
/// socket gets the policy now: if another process holds the lock, the program's own call blocks too.
#[inline(never)]
pub(crate) fn before_use(fd: c_int) {
    if byte(fd) == Known::Foreign as u8 {
        learn(fd, Known::Nothing);
        if !filter::is_installed()
            && let Some(shim) = active()
        {
            arrived(shim, fd);
        }
    }
}

/// Handles a descriptor from elsewhere: inherited, or sent by another process of the same user.
pub(crate) fn arrived(shim: &Shim, fd: c_int) {
    if !is_tcp(fd) {
        learn(fd, Known::LeftAlone);
    } else if let Some(action) = decide_now(shim, fd) {
        act(shim, fd, action);
    } else {
        learn(fd, Known::Nothing);
    }
}

/// A descriptor that accept(2) has just made. It has inherited what the listener had at the handshake.
#[inline]
pub(crate) fn accepted(shim: &Shim, listener: c_int, fd: c_int) {
    if fd < 0 {
        return;
    }
    if shim.policy.rules.look_at_peer() {
        arrived(shim, fd);
        return;
    }
    match known(listener) {
        Known::LeftAlone => learn(fd, Known::LeftAlone),
        Known::SeenTo if shim.policy.mode == Mode::Default || read(fd, SockOpt::KeepAlive) == Some(1) => {
            learn(fd, Known::SeenTo);
        }
        // Its handshake may have been before the listener was seen to.
        Known::SeenTo | Known::Changed => arrived(shim, fd),
        Known::Nothing | Known::Waits | Known::Foreign => {
            arrived(shim, listener);
            arrived(shim, fd);
        }
    }
}

fn act(shim: &Shim, fd: c_int, action: Action) {
    match action {
        Action::Skip => learn(fd, Known::LeftAlone),
        Action::Apply(policy) => adopt(shim, fd, &policy),
    }
}

/// Gives the policy to a socket that may have a keepalive of its own.
fn adopt(shim: &Shim, fd: c_int, policy: &Config) {
    let was_on = read(fd, SockOpt::KeepAlive) == Some(1);
    let due = if shim.policy.mode == Mode::Default && waits(fd) {
        unsaid(fd, policy, was_on)
    } else {
        due(Socket::with_kernel(fd, Raw), policy, shim.policy.mode, was_on)
    };
    if let Some(config) = due {
        give(shim, fd, config, false);
    }
    learn(fd, if was_on { Known::Changed } else { Known::SeenTo });
}

/// Sets what is to be set, on a socket that is known to be fresh or is not.
#[inline(never)]
fn give(shim: &Shim, fd: c_int, config: Config, fresh: bool) {
    let (config, result) = ka_policy::give(Socket::with_kernel(fd, Raw), config, fresh);
    if shim.log.is_some() {
        log::set(shim, fd, &config, result);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::Duration;

    use ka_core::{Config, SockOpt, Timer};
    use ka_policy::{Action, Mode};
    use libc::{
        AF_INET, AF_INET6, AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOCK_STREAM, c_int,
    };
    use socket2::{Domain, SockAddr, SockRef, Socket, Type};

    use super::{
        Known, Sender, accepted, arrived, born, connecting, decide_now, heed, is_held, is_tcp, known, learn,
        listening, makes_tcp, received, waits,
    };
    use crate::shim::tests::{POLICY, shim};

    const MPTCP: c_int = libc::IPPROTO_MPTCP;

    fn tcp() -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Another test may have left a word on the number.
        learn(socket.as_raw_fd(), Known::Nothing);
        socket
    }

    /// The idle time that a socket has, if its keepalive is on: the kernel's word.
    fn idle(socket: &impl AsFd) -> Option<u64> {
        let socket = SockRef::from(socket);
        socket.keepalive().unwrap().then(|| socket.tcp_keepalive_time().unwrap().as_secs())
    }

    fn connect(socket: &Socket, told: &crate::shim::Shim, to: &str) {
        let to = SockAddr::from(to.parse::<SocketAddr>().unwrap());
        connecting(told, socket.as_raw_fd(), to.as_ptr().cast(), to.len());
    }

    fn pair() -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for fd in [listener.as_raw_fd(), client.as_raw_fd(), server.as_raw_fd()] {
            learn(fd, Known::Nothing);
        }
        (listener, client, server)
    }

    #[test]
    fn what_makes_a_tcp_socket() {
        for (domain, kind, protocol) in [
            (AF_INET, SOCK_STREAM, 0),
            (AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, libc::IPPROTO_TCP),
            (AF_INET, SOCK_STREAM, MPTCP),
        ] {
            assert!(makes_tcp(domain, kind, protocol));
        }
        for (domain, kind, protocol) in [
            (AF_UNIX, SOCK_STREAM, 0),
            (AF_INET, SOCK_DGRAM, 0),
            (AF_INET, SOCK_RAW, libc::IPPROTO_TCP),
            (AF_INET, SOCK_STREAM, 132),
            (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
        ] {
            assert!(!makes_tcp(domain, kind, protocol));
        }
        assert!(is_tcp(tcp().as_raw_fd()) && !is_tcp(-1));
        assert!(!is_tcp(Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().as_raw_fd()));
        assert!(!is_tcp(Socket::new(Domain::UNIX, Type::STREAM, None).unwrap().as_raw_fd()));
    }

    #[test]
    fn what_is_known_is_a_hint_for_each_number() {
        let socket = tcp();
        for what in
            [Known::LeftAlone, Known::SeenTo, Known::Changed, Known::Waits, Known::Foreign, Known::Nothing]
        {
            learn(socket.as_raw_fd(), what);
            assert_eq!(known(socket.as_raw_fd()), what);
        }
        learn(-1, Known::SeenTo);
        learn(65536, Known::SeenTo);
        assert_eq!((known(-1), known(65536)), (Known::Nothing, Known::Nothing));
        learn(65535, Known::SeenTo);
        assert_eq!(known(65535), Known::SeenTo);
    }

    #[test]
    fn a_tcp_socket_has_it_from_birth_unless_a_rule_must_decide() {
        let told = shim(Mode::Force, POLICY, "");
        let socket = tcp();
        let fd = socket.as_raw_fd();
        born(&told, fd, AF_INET, SOCK_STREAM, 0);
        assert_eq!((idle(&socket), known(fd)), (Some(60), Known::SeenTo));
        born(&told, -1, AF_INET, SOCK_STREAM, 0);
        let other = tcp();
        born(&told, other.as_raw_fd(), AF_UNIX, SOCK_STREAM, 0);
        assert_eq!((idle(&other), known(other.as_raw_fd())), (None, Known::LeftAlone));
        let told = shim(Mode::Force, POLICY, "lport=1 skip");
        born(&told, other.as_raw_fd(), AF_INET, SOCK_STREAM, 0);
        assert_eq!((idle(&other), known(other.as_raw_fd())), (None, Known::Waits));
    }

    #[test]
    fn in_the_default_mode_a_rule_s_policy_takes_the_place_of_what_the_program_has_not_said() {
        let told = shim(Mode::Default, POLICY, "idle=20,user_timeout=9000");
        let all = |socket: &Socket| {
            let timeout = socket.tcp_user_timeout().unwrap().map_or(0, |time| time.as_millis());
            (idle(socket), socket.tcp_keepalive_interval().unwrap().as_secs(), timeout)
        };
        let said = |options: &[SockOpt]| {
            let socket = tcp();
            born(&told, socket.as_raw_fd(), AF_INET, SOCK_STREAM, 0);
            assert!(waits(socket.as_raw_fd()));
            for option in options {
                heed(socket.as_raw_fd(), *option);
            }
            socket
        };
        let is_bare = said(&[SockOpt::KeepAlive]);
        is_bare.set_keepalive(true).unwrap();
        connect(&is_bare, &told, "192.0.2.1:1");
        assert_eq!(all(&is_bare), (Some(20), 10, 9000), "on, and no word of when");
        let is_off = said(&[SockOpt::KeepAlive]);
        connect(&is_off, &told, "192.0.2.1:1");
        assert_eq!(all(&is_off), (None, 75, 0), "off");
        let word = said(&[SockOpt::Timer(Timer::Idle), SockOpt::Timer(Timer::UserTimeout)]);
        word.set_tcp_user_timeout(Some(Duration::from_secs(7))).unwrap();
        word.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(33))).unwrap();
        listening(&told, word.as_raw_fd());
        assert_eq!(all(&word), (Some(33), 10, 7000), "its idle and user timeout");
        assert!(!waits(word.as_raw_fd()));
        let parts = said(&[SockOpt::Timer(Timer::Intvl), SockOpt::Timer(Timer::Cnt)]);
        parts.set_keepalive(true).unwrap();
        connect(&parts, &told, "192.0.2.1:1");
        assert_eq!(all(&parts), (Some(20), 75, 9000), "its interval");
        assert_eq!(parts.tcp_keepalive_retries().unwrap(), 9, "its count");
    }

    /// A program that has closed its standard input gets its number for a socket.
    #[test]
    fn zero_is_a_descriptor() {
        let told = shim(Mode::Force, POLICY, "");
        learn(0, Known::Nothing);
        born(&told, 0, AF_UNIX, SOCK_STREAM, 0);
        assert_eq!(known(0), Known::LeftAlone);
        let listener = tcp();
        learn(listener.as_raw_fd(), Known::LeftAlone);
        learn(0, Known::Nothing);
        accepted(&told, listener.as_raw_fd(), 0);
        assert_eq!(known(0), Known::LeftAlone);
    }

    #[test]
    fn who_connects_has_it_whatever_was_known() {
        for mode in [Mode::Force, Mode::Floor, Mode::Default] {
            let told = shim(mode, POLICY, "");
            for before in [Known::Nothing, Known::LeftAlone, Known::SeenTo, Known::Changed, Known::Foreign] {
                let socket = tcp();
                learn(socket.as_raw_fd(), before);
                connect(&socket, &told, "192.0.2.1:1");
                // In the default mode a socket that was seen to, and has it off, was turned off by the program.
                let its_right = mode == Mode::Default && matches!(before, Known::SeenTo | Known::Changed);
                assert_eq!(idle(&socket), if its_right { None } else { Some(60) }, "{mode:?} {before:?}");
            }
        }
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        connect(&udp, &shim(Mode::Force, POLICY, ""), "192.0.2.1:1");
        assert_eq!(known(udp.as_raw_fd()), Known::LeftAlone);
        assert!(!udp.keepalive().unwrap());
    }

    #[test]
    fn what_has_its_own_keepalive_is_held_only_if_it_was_seen_to() {
        let socket = tcp();
        socket.set_keepalive(true).unwrap();
        assert!(!is_held(socket.as_raw_fd()));
        connect(&socket, &shim(Mode::Default, POLICY, ""), "192.0.2.1:1");
        assert_ne!(idle(&socket), Some(60), "the default mode leaves it");
        assert_eq!(known(socket.as_raw_fd()), Known::Changed);
        learn(socket.as_raw_fd(), Known::Nothing);
        connect(&socket, &shim(Mode::Force, POLICY, ""), "192.0.2.1:1");
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (Some(60), Known::Changed));
        assert!(is_held(socket.as_raw_fd()));
        socket.set_keepalive(false).unwrap();
        assert!(!is_held(socket.as_raw_fd()));
    }

    #[test]
    fn a_received_socket_is_set_at_once_only_if_the_same_ordinary_user_sent_it() {
        let mut told = shim(Mode::Force, POLICY, "");
        let (carrier, _other) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let is_root = crate::raw::own_user() == Some(0);
        let socket = tcp();
        received(&told, &mut Sender::of(carrier.as_raw_fd()), socket.as_raw_fd());
        let expected = if is_root { (None, Known::Foreign) } else { (Some(60), Known::SeenTo) };
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), expected);
        told.has_more_rights = true;
        let socket = tcp();
        received(&told, &mut Sender::of(carrier.as_raw_fd()), socket.as_raw_fd());
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (None, Known::Foreign));
        // The user of a datagram socket's peer, or of an unconnected one, is unknown.
        told.has_more_rights = false;
        let datagrams = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        received(&told, &mut Sender::of(datagrams.as_raw_fd()), socket.as_raw_fd());
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (None, Known::Foreign));
        let (pipe, _writer) = std::io::pipe().unwrap();
        received(&told, &mut Sender::of(-1), pipe.as_raw_fd());
        assert_eq!(known(pipe.as_raw_fd()), Known::LeftAlone);
    }

    #[test]
    fn rules_decide_by_where_it_connects_to() {
        let told = shim(Mode::Force, POLICY, "rport=22 skip; peer=192.0.2.0/24 idle=30");
        for (to, expected) in
            [("192.0.2.1:22", None), ("192.0.2.1:1", Some(30)), ("198.51.100.1:1", Some(60))]
        {
            let socket = tcp();
            connect(&socket, &told, to);
            assert_eq!(idle(&socket), expected, "{to}");
        }
        // A wrong address is the kernel's to refuse, and no socket of TCP is none of ours.
        let socket = tcp();
        connecting(&told, socket.as_raw_fd(), std::ptr::null(), 16);
        assert_eq!(idle(&socket), None);
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        learn(udp.as_raw_fd(), Known::Nothing);
        connect(&udp, &told, "192.0.2.1:1");
        assert_eq!(known(udp.as_raw_fd()), Known::Nothing);
        // In the default mode, once.
        let told = shim(Mode::Default, POLICY, "rport=22 skip");
        let socket = tcp();
        learn(socket.as_raw_fd(), Known::SeenTo);
        connect(&socket, &told, "192.0.2.1:1");
        assert_eq!(idle(&socket), None);
        learn(socket.as_raw_fd(), Known::Nothing);
        connect(&socket, &told, "192.0.2.1:1");
        assert_eq!(idle(&socket), Some(60));
    }

    #[test]
    fn rules_decide_of_what_is_connected_and_wait_for_what_is_not() {
        let (listener, client, server) = pair();
        let port = listener.local_addr().unwrap().port();
        let thirty = Action::Apply(POLICY.with_idle(Some(30)).unwrap());
        let decided = |told: &crate::shim::Shim, socket: &dyn AsRawFd| decide_now(told, socket.as_raw_fd());
        let told = shim(Mode::Force, POLICY, &format!("lport={port} idle=30"));
        assert_eq!(decided(&told, &listener), Some(thirty));
        assert_eq!(decided(&told, &server), Some(thirty));
        assert_eq!(decided(&told, &client), Some(Action::Apply(POLICY)));
        assert_eq!(decided(&told, &tcp()), None, "it has no port yet");
        let told = shim(Mode::Force, POLICY, &format!("rport={port} skip"));
        assert_eq!(decided(&told, &client), Some(Action::Skip));
        assert_eq!(decided(&told, &server), Some(Action::Apply(POLICY)));
        assert_eq!(decided(&told, &listener), None, "it never has a peer");
        arrived(&told, client.as_raw_fd());
        arrived(&told, server.as_raw_fd());
        learn(listener.as_raw_fd(), Known::SeenTo);
        arrived(&told, listener.as_raw_fd());
        assert_eq!((idle(&client), idle(&server), idle(&listener)), (None, Some(60), None));
        assert_eq!(known(client.as_raw_fd()), Known::LeftAlone);
        assert_eq!(known(listener.as_raw_fd()), Known::Nothing);
        let told = shim(Mode::Force, POLICY, "");
        assert_eq!(decided(&told, &tcp()), Some(Action::Apply(POLICY)));
    }

    #[test]
    fn a_listener_has_it_before_anybody_can_connect() {
        let force = shim(Mode::Force, POLICY, "");
        let socket = tcp();
        socket.set_keepalive(true).unwrap();
        listening(&force, socket.as_raw_fd());
        assert_eq!(
            (idle(&socket), known(socket.as_raw_fd())),
            (Some(60), Known::SeenTo),
            "nothing waits yet"
        );
        for before in [Known::LeftAlone, Known::SeenTo, Known::Changed, Known::Nothing] {
            let socket = tcp();
            learn(socket.as_raw_fd(), before);
            listening(&force, socket.as_raw_fd());
            assert_eq!(idle(&socket), Some(60));
            let socket = tcp();
            learn(socket.as_raw_fd(), before);
            listening(&shim(Mode::Default, POLICY, ""), socket.as_raw_fd());
            assert_eq!(idle(&socket).is_some(), before == Known::Nothing, "{before:?}");
        }
        let socket = tcp();
        listening(&shim(Mode::Force, POLICY, "rport=22 skip"), socket.as_raw_fd());
        assert_eq!(idle(&socket), None, "accept decides");
    }

    #[test]
    fn what_is_accepted_has_it_or_gets_it() {
        let force = shim(Mode::Force, POLICY, "");
        let lax = shim(Mode::Default, POLICY, "");
        // The listener's word is believed where it must be right.
        let (listener, _client, server) = pair();
        learn(listener.as_raw_fd(), Known::LeftAlone);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&server), known(server.as_raw_fd())), (None, Known::LeftAlone));
        learn(listener.as_raw_fd(), Known::SeenTo);
        accepted(&lax, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&server), known(server.as_raw_fd())), (None, Known::SeenTo));
        // And not where it may have been given later.
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(60));
        let (listener, _client, server) = pair();
        SockRef::from(&server).set_keepalive(true).unwrap();
        SockRef::from(&server)
            .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(99)))
            .unwrap();
        learn(listener.as_raw_fd(), Known::SeenTo);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(
            (idle(&server), known(server.as_raw_fd())),
            (Some(99), Known::SeenTo),
            "one call, and no more"
        );
        learn(listener.as_raw_fd(), Known::Changed);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(60));
        // A listener that nobody has seen.
        let (listener, _client, server) = pair();
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&listener), idle(&server)), (Some(60), Some(60)));
        // A failure of accept(2) says nothing of the listener.
        let (listener, _client, _server) = pair();
        accepted(&force, listener.as_raw_fd(), -1);
        assert_eq!(idle(&listener), None);
        // Rules by peer: each connection for itself.
        let (listener, client, server) = pair();
        let port = client.local_addr().unwrap().port();
        let told = shim(Mode::Force, POLICY, &format!("rport={port} idle=30"));
        learn(listener.as_raw_fd(), Known::LeftAlone);
        accepted(&told, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(30));
    }

    #[test]
    fn a_stricter_word_of_the_program_s_stays_on_the_floor() {
        let socket = tcp();
        ka_core::Socket::new(socket.as_raw_fd()).apply(&Config::new(30, 99, 3).unwrap()).unwrap();
        arrived(&shim(Mode::Floor, POLICY, ""), socket.as_raw_fd());
        assert_eq!(idle(&socket), Some(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 10);
    }
}
