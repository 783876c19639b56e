//! The program's sockets: detects TCP sockets, records which ones have the policy, and sets the policy.

use core::sync::atomic::{AtomicU16, Ordering};

use ka_core::{Config, Kernel as _, SockOpt, Socket, Timer};
use ka_policy::{Action, Endpoint, Mode, due};
use libc::{c_int, sockaddr, socklen_t};

use crate::raw::{self, Raw};
use crate::shim::{Shim, active};
use crate::{address, filter, log};

/// The recorded state of a descriptor. It is a hint that saves system calls. It may be stale, because a descriptor
/// can be closed and reused without a hooked call. So the shim asks the kernel wherever a stale state would do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    Nothing = 0,
    /// A hook saw the socket being created, and rules will decide about it later. Until then, the shim records the
    /// options that the program sets.
    AwaitsRules = 1,
    /// The descriptor is not a TCP socket, or a rule leaves it alone.
    LeftAlone = 2,
    /// The socket got its policy.
    Set = 3,
    /// The socket got its policy, but already had keepalive on. Connections in its accept queue may have inherited
    /// the old values.
    Changed = 4,
    /// The socket came from a process that may belong to another user, and the program has not used it yet. The other
    /// user may hold the lock of the socket, so a call of the shim could wait forever. The socket gets the policy when
    /// the program itself makes a call that takes the lock.
    Foreign = 5,
}

/// The state of each descriptor that a program is likely to have, two bytes each. The state of higher descriptors is
/// not recorded. The lower bits are a [`Known`]. In the state [`Known::AwaitsRules`], the upper bits are the options
/// that the program has set on the socket.
static KNOWN: [AtomicU16; 65536] = [const { AtomicU16::new(0) }; 65536];

/// The bits that are a [`Known`].
const STATE: u16 = 0x07;
/// The bit of `SO_KEEPALIVE`.
const KEEPALIVE: u16 = 0x08;
/// The bit of the first timer.
const FIRST_TIMER: u16 = 0x10;
const _: () =
    assert!((FIRST_TIMER as u32) << (Timer::ALL.len() - 1) <= u16::MAX as u32, "each timer needs a bit");

#[inline(never)]
fn slot(fd: c_int) -> Option<&'static AtomicU16> {
    // A negative descriptor becomes a number beyond the table.
    KNOWN.get(fd.cast_unsigned() as usize)
}

fn bits(fd: c_int) -> u16 {
    slot(fd).map_or(0, |slot| slot.load(Ordering::Relaxed))
}

#[inline(never)]
fn known(fd: c_int) -> Known {
    match bits(fd) & STATE {
        1 => Known::AwaitsRules,
        2 => Known::LeftAlone,
        3 => Known::Set,
        4 => Known::Changed,
        5 => Known::Foreign,
        _ => Known::Nothing,
    }
}

#[inline(never)]
fn record(fd: c_int, known: Known) {
    if let Some(slot) = slot(fd) {
        slot.store(known as u16, Ordering::Relaxed);
    }
}

/// Returns the bit that records that the program has set an option.
const fn bit(option: SockOpt) -> u16 {
    match option {
        SockOpt::Timer(timer) => FIRST_TIMER << timer as u8,
        _ => KEEPALIVE,
    }
}

/// Returns whether a hook saw the socket being created, and rules have not decided about it yet.
pub(crate) fn awaits_rules(fd: c_int) -> bool {
    known(fd) == Known::AwaitsRules
}

/// Records that the program has set an option of a socket that awaits rules.
pub(crate) fn record_option(fd: c_int, option: SockOpt) {
    if let Some(slot) = slot(fd) {
        // A load and a store instead of `fetch_or`, which on aarch64 is a function of libgcc and adds code. If two
        // threads set options of one socket before it connects, one record may be lost.
        slot.store(slot.load(Ordering::Relaxed) | bit(option), Ordering::Relaxed);
    }
}

/// Returns the policy without the options that the program has set, for a socket that awaits rules in the default mode.
/// Returns `None` if the program has turned keepalive off.
fn without_own_options(fd: c_int, policy: &Config, is_on: bool) -> Option<Config> {
    let bits = bits(fd);
    let was_set = |option| bits & bit(option) != 0;
    let mut config = *policy;
    for timer in Timer::ALL {
        if was_set(SockOpt::Timer(timer)) {
            config = config.without(timer);
        }
    }
    (is_on || !was_set(SockOpt::KeepAlive)).then_some(config)
}

#[inline(never)]
fn read(fd: c_int, option: SockOpt) -> Option<c_int> {
    let mut value = [0; size_of::<c_int>()];
    Raw.get(fd, option, &mut value).ok()?;
    Some(c_int::from_ne_bytes(value))
}

/// Returns whether this is a TCP or Multipath TCP socket. Returns false if the kernel does not report it, for example
/// because a filter denies the shim's calls.
#[inline(never)]
pub(crate) fn is_tcp(fd: c_int) -> bool {
    Socket::with_kernel(fd, Raw).is_tcp().unwrap_or(false)
}

/// Returns whether socket(2) with these arguments creates a TCP socket. `kind` may contain flags such as
/// `SOCK_CLOEXEC`.
const fn makes_tcp(domain: c_int, kind: c_int, protocol: c_int) -> bool {
    const TYPE: c_int = 0xf;
    matches!(domain, libc::AF_INET | libc::AF_INET6)
        && kind & TYPE == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
}

/// Decides the action for a connection.
fn decide(shim: &Shim, fd: c_int, peer: Option<Endpoint>) -> Action {
    let local_port = if shim.policy.rules.look_at_local_port() { address::local_port(fd) } else { 0 };
    shim.policy.decide(peer, local_port)
}

/// Decides the action for a TCP socket in its current state. Returns `None` if a rule looks at the peer or the local
/// port, and the socket does not have it yet.
pub(crate) fn decide_now(shim: &Shim, fd: c_int) -> Option<Action> {
    let rules = shim.policy.rules;
    let peer = if rules.look_at_peer() { Some(address::peer(fd)?) } else { None };
    if rules.look_at_local_port() && address::local_port(fd) == 0 {
        return None;
    }
    Some(decide(shim, fd, peer))
}

/// Handles a descriptor that socket(2) has just returned.
#[inline]
pub fn created(shim: &Shim, fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    if fd < 0 {
        return;
    }
    if !makes_tcp(domain, kind, protocol) {
        record(fd, Known::LeftAlone);
    } else if shim.policy.rules.is_empty() {
        give(shim, fd, shim.policy.config, true);
        record(fd, Known::Set);
    } else {
        // The peer or the local port will decide, at connect or listen.
        record(fd, Known::AwaitsRules);
    }
}

/// Handles a descriptor before the program connects it, or sends its first data, to an address.
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

/// Handles a descriptor before it listens. Accepted sockets inherit the options that it has then.
pub(crate) fn listening(shim: &Shim, fd: c_int) {
    if shim.policy.rules.look_at_peer() || (shim.policy.mode == Mode::Default && !is_undecided(fd)) {
        return;
    }
    // Every connection inherits the result, and listen is rare. So this asks the kernel.
    set_policy(shim, fd);
    if known(fd) == Known::Changed {
        // The accept queue is empty before listen.
        record(fd, Known::Set);
    }
}

/// Returns whether no hook has seen this descriptor.
pub(crate) fn is_unknown(fd: c_int) -> bool {
    known(fd) == Known::Nothing
}

/// Returns whether no rule or policy has decided about this descriptor yet.
fn is_undecided(fd: c_int) -> bool {
    matches!(known(fd), Known::Nothing | Known::AwaitsRules | Known::Foreign)
}

/// Returns whether the socket got its policy, and has keepalive on.
#[inline(never)]
pub(crate) fn is_set_and_on(fd: c_int) -> bool {
    matches!(known(fd), Known::Set | Known::Changed) && read(fd, SockOpt::KeepAlive) == Some(1)
}

/// Makes sure that a descriptor has its policy before it is used. No hook may have seen it yet. The state
/// [`Known::LeftAlone`] proves nothing: by dup2(2), or in the child of vfork(2), the descriptor may have become another
/// socket.
fn ensure(shim: &Shim, fd: c_int) {
    // In the default mode, the program may have changed the policy since it was set.
    let program_decides =
        shim.policy.mode == Mode::Default && matches!(known(fd), Known::Set | Known::Changed);
    if !program_decides && !is_set_and_on(fd) {
        set_policy(shim, fd);
    }
}

/// Sets the policy on a TCP socket that is about to connect or listen.
fn set_policy(shim: &Shim, fd: c_int) {
    if is_tcp(fd) {
        act(shim, fd, decide(shim, fd, None));
    } else {
        record(fd, Known::LeftAlone);
    }
}

/// The sender of a message. It is determined at most once, and only if a socket comes with the message.
pub(crate) struct Sender {
    socket: c_int,
    is_trusted: Option<bool>,
}

impl Sender {
    /// Returns the sender of messages that are received through this socket.
    pub(crate) const fn of(socket: c_int) -> Self {
        Self { socket, is_trusted: None }
    }

    /// Returns whether only this process's own user can share a descriptor that comes from this sender.
    ///
    /// `SO_PEERCRED` names the user who made the other end: the caller of connect(2), listen(2) or socketpair(2). The
    /// other end may have been passed to another process since. So a process of root never trusts a sender. Sockets
    /// of root are often passed to unprivileged processes, and every client of the system bus has root as its peer,
    /// whichever process sends.
    fn is_trusted(&mut self, shim: &Shim) -> bool {
        let socket = self.socket;
        *self.is_trusted.get_or_insert_with(|| {
            // A user namespace reports this ID for every user that it does not map.
            const UNMAPPED: u32 = 65534;
            !shim.has_more_rights
                && raw::own_user()
                    .is_some_and(|user| user != 0 && user != UNMAPPED && raw::peer_user(socket) == Some(user))
        })
    }
}

/// Handles a descriptor that came with a message. If it is not a socket, or if the program has installed a filter, it
/// is left alone without a call that could block or be filtered.
pub(crate) fn received(shim: &Shim, sender: &mut Sender, fd: c_int) {
    if filter::is_installed() {
        record(fd, Known::Nothing);
    } else if !raw::may_be_a_socket(fd) {
        record(fd, Known::LeftAlone);
    } else if sender.is_trusted(shim) {
        arrived(shim, fd);
    } else {
        foreign(fd);
    }
}

/// Handles a descriptor that a process of another user may share.
pub(crate) fn foreign(fd: c_int) {
    record(fd, Known::Foreign);
}

/// Sets the policy on a foreign socket, before the program makes a call that takes the lock of the socket. If another
/// process holds the lock, the program's own call would block too. For other descriptors, this costs one table look-up.
#[inline(never)]
pub(crate) fn before_use(fd: c_int) {
    if bits(fd) == Known::Foreign as u16 {
        record(fd, Known::Nothing);
        if !filter::is_installed()
            && let Some(shim) = active()
        {
            arrived(shim, fd);
        }
    }
}

/// Handles a descriptor that this process did not create: inherited, or sent by another process of the same user.
pub(crate) fn arrived(shim: &Shim, fd: c_int) {
    if !is_tcp(fd) {
        record(fd, Known::LeftAlone);
    } else if let Some(action) = decide_now(shim, fd) {
        act(shim, fd, action);
    } else {
        record(fd, Known::Nothing);
    }
}

/// Handles a descriptor that accept(2) has just returned. It has inherited the options that the listener had at the
/// handshake.
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
        Known::LeftAlone => record(fd, Known::LeftAlone),
        Known::Set if shim.policy.mode == Mode::Default || read(fd, SockOpt::KeepAlive) == Some(1) => {
            record(fd, Known::Set);
        }
        // The handshake may have been before the listener got the policy.
        Known::Set | Known::Changed => arrived(shim, fd),
        Known::Nothing | Known::AwaitsRules | Known::Foreign => {
            arrived(shim, listener);
            arrived(shim, fd);
        }
    }
}

fn act(shim: &Shim, fd: c_int, action: Action) {
    match action {
        Action::Skip => record(fd, Known::LeftAlone),
        Action::Apply(policy) => adopt(shim, fd, &policy),
    }
}

/// Sets the policy on a socket whose keepalive the program may have set itself.
fn adopt(shim: &Shim, fd: c_int, policy: &Config) {
    let was_on = read(fd, SockOpt::KeepAlive) == Some(1);
    let due = if shim.policy.mode == Mode::Default && awaits_rules(fd) {
        without_own_options(fd, policy, was_on)
    } else {
        due(Socket::with_kernel(fd, Raw), policy, shim.policy.mode, was_on)
    };
    if let Some(config) = due {
        give(shim, fd, config, false);
    }
    record(fd, if was_on { Known::Changed } else { Known::Set });
}

/// Sets these values on a socket, and logs the result. `fresh` says that keepalive is known to be off.
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

    use ka_core::{Config, Kernel as _, SockOpt, Timer};
    use ka_policy::{Action, Mode};
    use libc::{AF_INET, AF_INET6, AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOCK_STREAM};
    use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

    use super::{
        Known, STATE, Sender, accepted, arrived, awaits_rules, bit, connecting, created, decide_now,
        is_set_and_on, is_tcp, known, listening, makes_tcp, received, record, record_option,
    };
    use crate::raw::Raw;
    use crate::raw::tests::rto_max;
    use crate::shim::tests::{POLICY, shim_with};

    fn tcp() -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Another test may have recorded a state for this descriptor.
        record(socket.as_raw_fd(), Known::Nothing);
        socket
    }

    /// Returns the idle time of a socket as the kernel reports it, or `None` if keepalive is off.
    fn idle(socket: &impl AsFd) -> Option<u64> {
        let socket = SockRef::from(socket);
        socket.keepalive().unwrap().then(|| socket.tcp_keepalive_time().unwrap().as_secs())
    }

    fn connect(socket: &Socket, shim: &crate::shim::Shim, to: &str) {
        let to = SockAddr::from(to.parse::<SocketAddr>().unwrap());
        connecting(shim, socket.as_raw_fd(), to.as_ptr().cast(), to.len());
    }

    fn pair() -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for fd in [listener.as_raw_fd(), client.as_raw_fd(), server.as_raw_fd()] {
            record(fd, Known::Nothing);
        }
        (listener, client, server)
    }

    #[test]
    fn makes_tcp_recognizes_tcp_sockets() {
        for (domain, kind, protocol) in [
            (AF_INET, SOCK_STREAM, 0),
            (AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, libc::IPPROTO_TCP),
            (AF_INET, SOCK_STREAM, libc::IPPROTO_MPTCP),
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
    fn each_descriptor_has_its_own_state() {
        let socket = tcp();
        for what in
            [Known::LeftAlone, Known::Set, Known::Changed, Known::AwaitsRules, Known::Foreign, Known::Nothing]
        {
            record(socket.as_raw_fd(), what);
            assert_eq!(known(socket.as_raw_fd()), what);
        }
        record(-1, Known::Set);
        record(65536, Known::Set);
        assert_eq!((known(-1), known(65536)), (Known::Nothing, Known::Nothing));
        record(65535, Known::Set);
        assert_eq!(known(65535), Known::Set);
    }

    #[test]
    fn a_new_tcp_socket_gets_the_policy_unless_rules_must_decide() {
        let shim = shim_with(Mode::Force, POLICY, "");
        let socket = tcp();
        let fd = socket.as_raw_fd();
        created(&shim, fd, AF_INET, SOCK_STREAM, 0);
        assert_eq!((idle(&socket), known(fd)), (Some(60), Known::Set));
        created(&shim, -1, AF_INET, SOCK_STREAM, 0);
        let other = tcp();
        created(&shim, other.as_raw_fd(), AF_UNIX, SOCK_STREAM, 0);
        assert_eq!((idle(&other), known(other.as_raw_fd())), (None, Known::LeftAlone));
        let shim = shim_with(Mode::Force, POLICY, "lport=1 skip");
        created(&shim, other.as_raw_fd(), AF_INET, SOCK_STREAM, 0);
        assert_eq!((idle(&other), known(other.as_raw_fd())), (None, Known::AwaitsRules));
    }

    #[test]
    fn in_default_mode_a_rule_sets_only_options_that_the_program_has_not_set() {
        let shim = shim_with(Mode::Default, POLICY, "idle=20,user_timeout=9000");
        let all = |socket: &Socket| {
            let timeout = socket.tcp_user_timeout().unwrap().map_or(0, |time| time.as_millis());
            (idle(socket), socket.tcp_keepalive_interval().unwrap().as_secs(), timeout)
        };
        let with_options = |options: &[SockOpt]| {
            let socket = tcp();
            created(&shim, socket.as_raw_fd(), AF_INET, SOCK_STREAM, 0);
            assert!(awaits_rules(socket.as_raw_fd()));
            for option in options {
                record_option(socket.as_raw_fd(), *option);
            }
            socket
        };
        let only_on = with_options(&[SockOpt::KeepAlive]);
        only_on.set_keepalive(true).unwrap();
        connect(&only_on, &shim, "192.0.2.1:1");
        assert_eq!(all(&only_on), (Some(20), 10, 9000), "the program has only turned keepalive on");
        let own = TcpKeepalive::new().with_interval(Duration::from_secs(77)).with_retries(8);
        let off = with_options(&[SockOpt::KeepAlive]);
        off.set_tcp_keepalive(&own).unwrap();
        off.set_keepalive(false).unwrap();
        connect(&off, &shim, "192.0.2.1:1");
        assert_eq!(all(&off), (None, 77, 0), "the program has turned keepalive off");
        let word = with_options(&[SockOpt::Timer(Timer::Idle), SockOpt::Timer(Timer::UserTimeout)]);
        word.set_tcp_user_timeout(Some(Duration::from_secs(7))).unwrap();
        word.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(33))).unwrap();
        listening(&shim, word.as_raw_fd());
        assert_eq!(all(&word), (Some(33), 10, 7000), "the program has set idle and user timeout");
        assert!(!awaits_rules(word.as_raw_fd()));
        let parts = with_options(&[SockOpt::Timer(Timer::Intvl), SockOpt::Timer(Timer::Cnt)]);
        parts.set_tcp_keepalive(&own).unwrap();
        connect(&parts, &shim, "192.0.2.1:1");
        assert_eq!(all(&parts), (Some(20), 77, 9000), "the program has set the interval");
        assert_eq!(parts.tcp_keepalive_retries().unwrap(), 8, "the program has set the count");
    }

    #[test]
    fn in_default_mode_a_rule_does_not_override_an_rto_max_of_the_program() {
        let Some(system) = rto_max(&tcp()) else {
            eprintln!("skipped: this kernel lacks TCP_RTO_MAX_MS");
            return;
        };
        let shim = shim_with(Mode::Default, POLICY, "idle=20,rto_max=2s");
        let option = SockOpt::Timer(Timer::RtoMax);
        for (own, others) in [(None, &[][..]), (Some(5000), &[option]), (Some(1500), &[option])] {
            let socket = tcp();
            let fd = socket.as_raw_fd();
            created(&shim, fd, AF_INET, SOCK_STREAM, 0);
            assert_eq!(rto_max(&socket), Some(system), "the rules decide later");
            if let Some(own) = own {
                Raw.set(fd, option, own).unwrap();
            }
            for option in others {
                record_option(fd, *option);
            }
            assert_eq!(known(fd), Known::AwaitsRules, "the bits of options are no states");
            connect(&socket, &shim, "192.0.2.1:1");
            assert_eq!((idle(&socket), rto_max(&socket)), (Some(20), Some(own.unwrap_or(2000))));
        }
        // Each option has its own bit, and none has one of the state.
        let bits = SockOpt::ALL.map(bit);
        assert!(bits.iter().all(|bit| bit.is_power_of_two() && bit & STATE == 0), "{bits:x?}");
        assert_eq!(bits.iter().fold(0, |all, bit| all | bit).count_ones() as usize, bits.len(), "{bits:x?}");
    }

    #[test]
    fn a_lower_rto_max_of_the_program_stays() {
        if rto_max(&tcp()).is_none() {
            eprintln!("skipped: this kernel lacks TCP_RTO_MAX_MS");
            return;
        }
        let policy = POLICY.with_timer(Timer::RtoMax, Some(3000)).unwrap();
        for mode in [Mode::Force, Mode::Floor] {
            for (own, expected) in [(2000, 2000), (3000, 3000), (5000, 3000)] {
                let socket = tcp();
                Raw.set(socket.as_raw_fd(), SockOpt::Timer(Timer::RtoMax), own).unwrap();
                arrived(&shim_with(mode, policy, ""), socket.as_raw_fd());
                assert_eq!((idle(&socket), rto_max(&socket)), (Some(60), Some(expected)), "{mode:?} {own}");
            }
        }
    }

    /// A program that has closed its standard input gets descriptor 0 for its next socket.
    #[test]
    fn descriptor_0_is_handled() {
        let shim = shim_with(Mode::Force, POLICY, "");
        record(0, Known::Nothing);
        created(&shim, 0, AF_UNIX, SOCK_STREAM, 0);
        assert_eq!(known(0), Known::LeftAlone);
        let listener = tcp();
        record(listener.as_raw_fd(), Known::LeftAlone);
        record(0, Known::Nothing);
        accepted(&shim, listener.as_raw_fd(), 0);
        assert_eq!(known(0), Known::LeftAlone);
    }

    #[test]
    fn a_connecting_socket_gets_the_policy_in_any_state() {
        for mode in [Mode::Force, Mode::Floor, Mode::Default] {
            let shim = shim_with(mode, POLICY, "");
            for before in [Known::Nothing, Known::LeftAlone, Known::Set, Known::Changed, Known::Foreign] {
                let socket = tcp();
                record(socket.as_raw_fd(), before);
                connect(&socket, &shim, "192.0.2.1:1");
                // In the default mode, if such a socket has keepalive off, the program has turned it off.
                let program_decides = mode == Mode::Default && matches!(before, Known::Set | Known::Changed);
                assert_eq!(
                    idle(&socket),
                    if program_decides { None } else { Some(60) },
                    "{mode:?} {before:?}"
                );
            }
        }
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        connect(&udp, &shim_with(Mode::Force, POLICY, ""), "192.0.2.1:1");
        assert_eq!(known(udp.as_raw_fd()), Known::LeftAlone);
        assert!(!udp.keepalive().unwrap());
    }

    #[test]
    fn a_socket_with_its_own_keepalive_is_not_taken_for_one_with_the_policy() {
        let socket = tcp();
        socket.set_keepalive(true).unwrap();
        assert!(!is_set_and_on(socket.as_raw_fd()));
        connect(&socket, &shim_with(Mode::Default, POLICY, ""), "192.0.2.1:1");
        assert_ne!(idle(&socket), Some(60), "the default mode does not change it");
        assert_eq!(known(socket.as_raw_fd()), Known::Changed);
        record(socket.as_raw_fd(), Known::Nothing);
        connect(&socket, &shim_with(Mode::Force, POLICY, ""), "192.0.2.1:1");
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (Some(60), Known::Changed));
        assert!(is_set_and_on(socket.as_raw_fd()));
        socket.set_keepalive(false).unwrap();
        assert!(!is_set_and_on(socket.as_raw_fd()));
    }

    #[test]
    fn a_received_socket_is_set_at_once_only_if_the_same_ordinary_user_sent_it() {
        let mut shim = shim_with(Mode::Force, POLICY, "");
        let (carrier, _other) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let is_root = crate::raw::own_user() == Some(0);
        let socket = tcp();
        received(&shim, &mut Sender::of(carrier.as_raw_fd()), socket.as_raw_fd());
        let expected = if is_root { (None, Known::Foreign) } else { (Some(60), Known::Set) };
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), expected);
        shim.has_more_rights = true;
        let socket = tcp();
        received(&shim, &mut Sender::of(carrier.as_raw_fd()), socket.as_raw_fd());
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (None, Known::Foreign));
        // The user of the peer is unknown for a datagram socket, and for an unconnected socket.
        shim.has_more_rights = false;
        let datagrams = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        received(&shim, &mut Sender::of(datagrams.as_raw_fd()), socket.as_raw_fd());
        assert_eq!((idle(&socket), known(socket.as_raw_fd())), (None, Known::Foreign));
        let (pipe, _writer) = std::io::pipe().unwrap();
        received(&shim, &mut Sender::of(-1), pipe.as_raw_fd());
        assert_eq!(known(pipe.as_raw_fd()), Known::LeftAlone);
    }

    #[test]
    fn rules_decide_by_the_address_of_connect() {
        let shim = shim_with(Mode::Force, POLICY, "rport=22 skip; peer=192.0.2.0/24 idle=30");
        for (to, expected) in
            [("192.0.2.1:22", None), ("192.0.2.1:1", Some(30)), ("198.51.100.1:1", Some(60))]
        {
            let socket = tcp();
            connect(&socket, &shim, to);
            assert_eq!(idle(&socket), expected, "{to}");
        }
        // The kernel rejects an invalid address. Sockets that are not TCP are left alone.
        let socket = tcp();
        connecting(&shim, socket.as_raw_fd(), std::ptr::null(), 16);
        assert_eq!(idle(&socket), None);
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        record(udp.as_raw_fd(), Known::Nothing);
        connect(&udp, &shim, "192.0.2.1:1");
        assert_eq!(known(udp.as_raw_fd()), Known::Nothing);
        // In the default mode, the policy is set only once.
        let shim = shim_with(Mode::Default, POLICY, "rport=22 skip");
        let socket = tcp();
        record(socket.as_raw_fd(), Known::Set);
        connect(&socket, &shim, "192.0.2.1:1");
        assert_eq!(idle(&socket), None);
        record(socket.as_raw_fd(), Known::Nothing);
        connect(&socket, &shim, "192.0.2.1:1");
        assert_eq!(idle(&socket), Some(60));
    }

    #[test]
    fn rules_decide_about_connected_sockets_and_wait_for_others() {
        let (listener, client, server) = pair();
        let port = listener.local_addr().unwrap().port();
        let thirty = Action::Apply(POLICY.with_idle(Some(30)).unwrap());
        let decided = |shim: &crate::shim::Shim, socket: &dyn AsRawFd| decide_now(shim, socket.as_raw_fd());
        let shim = shim_with(Mode::Force, POLICY, &format!("lport={port} idle=30"));
        assert_eq!(decided(&shim, &listener), Some(thirty));
        assert_eq!(decided(&shim, &server), Some(thirty));
        assert_eq!(decided(&shim, &client), Some(Action::Apply(POLICY)));
        assert_eq!(decided(&shim, &tcp()), None, "the socket has no port yet");
        let shim = shim_with(Mode::Force, POLICY, &format!("rport={port} skip"));
        assert_eq!(decided(&shim, &client), Some(Action::Skip));
        assert_eq!(decided(&shim, &server), Some(Action::Apply(POLICY)));
        assert_eq!(decided(&shim, &listener), None, "a listener never has a peer");
        arrived(&shim, client.as_raw_fd());
        arrived(&shim, server.as_raw_fd());
        record(listener.as_raw_fd(), Known::Set);
        arrived(&shim, listener.as_raw_fd());
        assert_eq!((idle(&client), idle(&server), idle(&listener)), (None, Some(60), None));
        assert_eq!(known(client.as_raw_fd()), Known::LeftAlone);
        assert_eq!(known(listener.as_raw_fd()), Known::Nothing);
        let shim = shim_with(Mode::Force, POLICY, "");
        assert_eq!(decided(&shim, &tcp()), Some(Action::Apply(POLICY)));
    }

    #[test]
    fn a_listener_gets_the_policy_before_listen() {
        let force = shim_with(Mode::Force, POLICY, "");
        let socket = tcp();
        socket.set_keepalive(true).unwrap();
        listening(&force, socket.as_raw_fd());
        assert_eq!(
            (idle(&socket), known(socket.as_raw_fd())),
            (Some(60), Known::Set),
            "the accept queue is empty"
        );
        for before in [Known::LeftAlone, Known::Set, Known::Changed, Known::Nothing] {
            let socket = tcp();
            record(socket.as_raw_fd(), before);
            listening(&force, socket.as_raw_fd());
            assert_eq!(idle(&socket), Some(60));
            let socket = tcp();
            record(socket.as_raw_fd(), before);
            listening(&shim_with(Mode::Default, POLICY, ""), socket.as_raw_fd());
            assert_eq!(idle(&socket).is_some(), before == Known::Nothing, "{before:?}");
        }
        let socket = tcp();
        listening(&shim_with(Mode::Force, POLICY, "rport=22 skip"), socket.as_raw_fd());
        assert_eq!(idle(&socket), None, "the rules decide at accept");
    }

    #[test]
    fn an_accepted_socket_inherits_or_gets_the_policy() {
        let force = shim_with(Mode::Force, POLICY, "");
        let lax = shim_with(Mode::Default, POLICY, "");
        // The state of the listener is trusted if it cannot be stale.
        let (listener, _client, server) = pair();
        record(listener.as_raw_fd(), Known::LeftAlone);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&server), known(server.as_raw_fd())), (None, Known::LeftAlone));
        record(listener.as_raw_fd(), Known::Set);
        accepted(&lax, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&server), known(server.as_raw_fd())), (None, Known::Set));
        // In the force mode, the listener may have got the policy after the handshake.
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(60));
        let (listener, _client, server) = pair();
        SockRef::from(&server).set_keepalive(true).unwrap();
        SockRef::from(&server)
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(99)))
            .unwrap();
        record(listener.as_raw_fd(), Known::Set);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(
            (idle(&server), known(server.as_raw_fd())),
            (Some(99), Known::Set),
            "only SO_KEEPALIVE is read"
        );
        record(listener.as_raw_fd(), Known::Changed);
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(60));
        // No hook has seen this listener.
        let (listener, _client, server) = pair();
        accepted(&force, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!((idle(&listener), idle(&server)), (Some(60), Some(60)));
        // A failed accept(2) does not set the policy on the listener.
        let (listener, _client, _server) = pair();
        accepted(&force, listener.as_raw_fd(), -1);
        assert_eq!(idle(&listener), None);
        // Rules that look at the peer decide about each connection separately.
        let (listener, client, server) = pair();
        let port = client.local_addr().unwrap().port();
        let shim = shim_with(Mode::Force, POLICY, &format!("rport={port} idle=30"));
        record(listener.as_raw_fd(), Known::LeftAlone);
        accepted(&shim, listener.as_raw_fd(), server.as_raw_fd());
        assert_eq!(idle(&server), Some(30));
    }

    #[test]
    fn floor_keeps_stricter_values_of_the_program() {
        let socket = tcp();
        ka_core::Socket::new(socket.as_raw_fd()).apply(&Config::new(30, 99, 3).unwrap()).unwrap();
        arrived(&shim_with(Mode::Floor, POLICY, ""), socket.as_raw_fd());
        assert_eq!(idle(&socket), Some(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 10);
    }
}
