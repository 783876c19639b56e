//! The mode of a policy: whether a program may override it for its own sockets.

use ka_core::bytes::place;
use ka_core::{Config, Error, Kernel, SockOpt, Socket, Timer, UserTimeout};

/// The right of a program to override the policy for its own sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The policy is enforced. The program cannot change it.
    #[default]
    Force,
    /// The program may set values that are stricter than those of the policy.
    Floor,
    /// The program may set any value. The policy applies to sockets whose keepalive the program has not turned on.
    Default,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Force, Self::Floor, Self::Default];

    /// Returns the name, as in `KA_MODE`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Force => "force",
            Self::Floor => "floor",
            Self::Default => "default",
        }
    }

    /// Returns the mode with this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        match place(b"force,floor,default", name)? {
            0 => Some(Self::Force),
            1 => Some(Self::Floor),
            _ => Some(Self::Default),
        }
    }
}

/// The answer to a program's setsockopt(2) of a keepalive option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass the call to the kernel.
    Pass,
    /// Pass the call to the kernel, which rejects the value. Multipath TCP accepts any value before connect(2), so if
    /// the call succeeds, apply the policy again.
    Reject,
    /// Report success, and leave the socket unchanged.
    Ignore,
    /// Pass the call to the kernel with this value instead.
    Clamp(i32),
}

/// Decides the [`Verdict`] on a program's setsockopt(2) on a socket that has this policy.
///
/// The shim, the seccomp supervisor and the BPF program of a cgroup all follow this function. The caller has checked
/// that the descriptor is TCP and that the value is an `int` in readable memory: otherwise the kernel itself rejects
/// the call.
///
/// | option | [`Mode::Force`] | [`Mode::Floor`] |
/// |---|---|---|
/// | a timer out of its range | [`Reject`](Verdict::Reject) | `Reject` |
/// | idle, intvl, cnt that the policy names | [`Ignore`](Verdict::Ignore) | at most the value of the policy: `Clamp` |
/// | the user timeout, if the policy names one | `Ignore` | `Ignore` |
/// | the user timeout otherwise | at most [`user_timeout_limit`]: [`Clamp`](Verdict::Clamp) | as in `Force` |
/// | `TCP_RTO_MAX_MS`, if the policy names one | at most the value of the policy: `Clamp` | as in `Force` |
/// | `SO_KEEPALIVE` off, if the policy is on | `Ignore` | `Ignore` |
///
/// Every other call [passes](Verdict::Pass), and so do all calls in [`Mode::Default`]. An automatic `TCP_RTO_MAX_MS`
/// has no value to compare with: see [`Config::resolved`].
///
/// ```
/// use ka_core::{Config, SockOpt, Timer};
/// use ka_policy::{Mode, Verdict, judge};
///
/// let policy = Config::new(60, 10, 6)?;
/// let idle = SockOpt::Timer(Timer::Idle);
/// assert_eq!(judge(Mode::Force, &policy, idle, 7200), Verdict::Ignore);
/// assert_eq!(judge(Mode::Floor, &policy, idle, 7200), Verdict::Clamp(60));
/// assert_eq!(judge(Mode::Floor, &policy, idle, 30), Verdict::Pass);
/// assert_eq!(judge(Mode::Force, &policy, idle, 0), Verdict::Reject);
/// # Ok::<(), ka_core::Error>(())
/// ```
#[must_use]
#[inline]
pub fn judge(mode: Mode, policy: &Config, option: SockOpt, value: i32) -> Verdict {
    let at_most = |limit| if value > limit { Verdict::Clamp(limit) } else { Verdict::Pass };
    match option {
        _ if mode == Mode::Default => Verdict::Pass,
        SockOpt::KeepAlive if value == 0 && policy.enabled() == Some(true) => Verdict::Ignore,
        SockOpt::Timer(timer) if !timer.accepts(value) => Verdict::Reject,
        SockOpt::Timer(Timer::UserTimeout) if policy.user_timeout() != UserTimeout::Keep => Verdict::Ignore,
        SockOpt::Timer(Timer::UserTimeout) => at_most(user_timeout_limit(policy)),
        SockOpt::Timer(timer @ (Timer::Idle | Timer::Intvl | Timer::Cnt | Timer::RtoMax)) => {
            match policy.timer(timer) {
                None => Verdict::Pass,
                Some(_) if mode == Mode::Force && timer != Timer::RtoMax => Verdict::Ignore,
                Some(ours) => at_most(ours),
            }
        }
        // The options that ka only reads cannot be set.
        SockOpt::KeepAlive
        | SockOpt::Protocol
        | SockOpt::Type
        | SockOpt::Info
        | SockOpt::Cookie
        | SockOpt::Subflows => Verdict::Pass,
    }
}

/// Returns the longest user timeout, in milliseconds, that does not make detection slower than the policy does:
/// 1000 · (idle + intvl · cnt).
///
/// A user timeout replaces the count of probes (`tcp_keepalive_timer`). A policy that lacks one of the three values has
/// no such limit.
#[must_use]
pub fn user_timeout_limit(policy: &Config) -> i32 {
    policy.detection_ms().and_then(|limit| i32::try_from(limit).ok()).unwrap_or(i32::MAX)
}

/// Returns the values of a policy to set on a socket. The program may already have set keepalive on the socket.
/// `was_on` is true if the socket has keepalive on. Returns `None` if the socket must stay unchanged.
///
/// | | [`Mode::Force`] | [`Mode::Floor`] | [`Mode::Default`] |
/// |---|---|---|---|
/// | the policy turns keepalive on | the policy | the stricter of both values | the policy if `was_on` is false |
/// | the policy does not turn keepalive on | the policy | `None` | `None` |
///
/// Two exceptions hold in both force and floor if the policy turns keepalive on. A shorter `TCP_RTO_MAX_MS` of the
/// socket stays. If the policy names no user timeout, a longer user timeout of the socket is lowered to
/// [`user_timeout_limit`].
#[must_use]
#[inline]
pub fn due<K: Kernel + Copy>(
    socket: Socket<'_, K>,
    policy: &Config,
    mode: Mode,
    was_on: bool,
) -> Option<Config> {
    let is_on = policy.enabled() == Some(true);
    match mode {
        Mode::Force if !is_on => return Some(*policy),
        Mode::Default if is_on && !was_on => return Some(*policy),
        Mode::Force | Mode::Floor if is_on => {}
        Mode::Force | Mode::Floor | Mode::Default => return None,
    }
    let config = stricter(socket, policy, mode);
    Some(with_short_user_timeout(socket, config, policy))
}

/// Applies a policy to a socket, but leaves out the user timeout and `TCP_RTO_MAX_MS` if the socket cannot have them
/// (Multipath TCP; the latter before Linux 6.15), and the user timeout if an automatic one would be too long. `fresh`
/// says that the socket is new, so that its keepalive is off.
///
/// Returns the policy that was tried last, and its result.
#[inline]
pub fn give<K: Kernel + Copy>(
    socket: Socket<'_, K>,
    mut policy: Config,
    fresh: bool,
) -> (Config, Result<(), Error>) {
    loop {
        let result = if fresh { socket.apply_fresh(&policy) } else { socket.apply(&policy) };
        match result {
            Err(Error::Unsupported(SockOpt::Timer(timer @ (Timer::UserTimeout | Timer::RtoMax)))) => {
                policy = policy.without(timer);
            }
            Err(Error::AutoOutOfRange { .. }) => policy = policy.without(Timer::UserTimeout),
            other => return (policy, other),
        }
    }
}

/// Returns the policy with the socket's own values where those are stricter, and the mode allows them.
fn stricter<K: Kernel + Copy>(socket: Socket<'_, K>, policy: &Config, mode: Mode) -> Config {
    Timer::ALL.into_iter().fold(*policy, |config, timer| {
        match timer {
            Timer::Idle | Timer::Intvl | Timer::Cnt if mode == Mode::Floor => {}
            Timer::RtoMax => {}
            // If the policy names no user timeout, `with_short_user_timeout` handles it. Otherwise the policy decides.
            Timer::Idle | Timer::Intvl | Timer::Cnt | Timer::UserTimeout => return config,
        }
        let Some(ours) = config.timer(timer) else { return config };
        match socket.timer(timer) {
            // A sysctl's value that no program can set, such as 0, is not taken.
            Ok(theirs) if theirs < ours => config.with_timer(timer, Some(theirs)).unwrap_or(config),
            _ => config,
        }
    })
}

/// Returns `config`. If it names no user timeout, and the socket's user timeout exceeds the limit of the policy, adds
/// the limit as user timeout.
fn with_short_user_timeout<K: Kernel + Copy>(
    socket: Socket<'_, K>,
    config: Config,
    policy: &Config,
) -> Config {
    let limit = user_timeout_limit(policy);
    match socket.timer(Timer::UserTimeout) {
        Ok(theirs) if config.user_timeout() == UserTimeout::Keep && theirs > limit => {
            config.with_timer(Timer::UserTimeout, Some(limit)).unwrap_or(config)
        }
        _ => config,
    }
}
