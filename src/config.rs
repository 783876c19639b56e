//! struct ka_config, its constants, and ka_defaults.

#![expect(unsafe_code, reason = "C calls these functions")]

use ka_core::{Config, Errno, RtoMax, Settings, Timer, UserTimeout};
use libc::c_int;

use crate::errno::{EINVAL, answer};
use crate::words;

/// Leaves this value unchanged. In struct ka_config, 0 means the same.
pub const KA_KEEP: i32 = -1;
const _: () = assert!(KA_KEEP == words::KEEP);

/// For user_timeout: 1000 * (idle + intvl * cnt) milliseconds. For rto_max: the largest value with which a dead peer is
/// detected within that time while data is unacknowledged, or KA_RTO_MAX_MIN if no value is small enough
/// (ka_set_rto_max). Both are computed when the call is made, from the values that are then in force. Later changes of
/// idle, intvl and cnt do not update them.
pub const KA_AUTO: i32 = -2;

/// For user_timeout only: removes the user timeout.
pub const KA_NONE: i32 = -3;

/// For keepalive only: turns it on.
pub const KA_ON: i32 = 1;

/// For keepalive only: turns it off.
pub const KA_OFF: i32 = 2;

/// The longest idle time, in seconds. MAX_TCP_KEEPIDLE of the kernel
pub const KA_IDLE_MAX: i32 = 32767;

/// The longest interval between probes, in seconds. MAX_TCP_KEEPINTVL of the kernel
pub const KA_INTVL_MAX: i32 = 32767;

/// The largest number of probes. MAX_TCP_KEEPCNT of the kernel
pub const KA_CNT_MAX: i32 = 127;

/// The lower limit of rto_max, in milliseconds. do_tcp_setsockopt of the kernel
pub const KA_RTO_MAX_MIN: i32 = 1000;

/// The upper limit of rto_max, in milliseconds. TCP_RTO_MAX_SEC of the kernel
pub const KA_RTO_MAX_MAX: i32 = 120_000;

// cbindgen needs literals. These assertions compare them with the ranges of ka-core.
const _: () = assert!(KA_IDLE_MAX == *Timer::Idle.range().end());
const _: () = assert!(KA_INTVL_MAX == *Timer::Intvl.range().end());
const _: () = assert!(KA_CNT_MAX == *Timer::Cnt.range().end());
const _: () = assert!(KA_RTO_MAX_MIN == *Timer::RtoMax.range().start());
const _: () = assert!(KA_RTO_MAX_MAX == *Timer::RtoMax.range().end());

/// A keepalive policy, or the settings that are in force on a socket.
///
/// Create it with KA_CONFIG_INIT or KA_CONFIG. In each field 0 means the same as KA_KEEP, so a struct that is all zero
/// except for its size changes nothing. Functions that fill the struct never write 0.
///
/// A later version may add fields at the end. The size tells the library which fields the caller has (see Versions).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_config {
    /// sizeof(struct ka_config). KA_CONFIG_INIT and KA_CONFIG set it.
    pub size: u32,
    /// KA_ON, KA_OFF or KA_KEEP. SO_KEEPALIVE
    pub keepalive: i32,
    /// Idle time before the first probe, in seconds: 1..KA_IDLE_MAX or KA_KEEP. TCP_KEEPIDLE
    pub idle: i32,
    /// Time from an unanswered probe to the next, in seconds: 1..KA_INTVL_MAX or KA_KEEP. TCP_KEEPINTVL
    pub intvl: i32,
    /// Unanswered probes that end the connection: 1..KA_CNT_MAX or KA_KEEP. TCP_KEEPCNT
    pub cnt: i32,
    /// Time that data or probes may stay unacknowledged, in milliseconds: 1..2147483647, KA_KEEP, KA_AUTO or KA_NONE.
    /// TCP_USER_TIMEOUT
    pub user_timeout: i32,
    /// Longest time between two retransmissions, in milliseconds: KA_RTO_MAX_MIN..KA_RTO_MAX_MAX, KA_KEEP or KA_AUTO.
    /// TCP_RTO_MAX_MS. Since 0.2.0.
    pub rto_max: i32,
}

/// The words of a `ka_config`, including the size.
const WORDS: usize = size_of::<ka_config>() / size_of::<u32>();
const _: () = assert!(WORDS == 2 + Timer::ALL.len(), "each timer has a word in struct ka_config");

/// The words of a `ka_config` of 0.1.0.
const WORDS_0_1: usize = 6;

/// All words except the size: keepalive, idle, intvl, cnt, user_timeout, rto_max.
pub(crate) type ConfigWords = [i32; WORDS - 1];

impl ka_config {
    /// Reads the policy of a caller's config.
    ///
    /// # Safety
    /// `config` is NULL, or can be read for as many bytes as its size states.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Config, Errno> {
        // SAFETY: the caller passes NULL, or as many bytes as the size states.
        let words: [i32; WORDS] = unsafe { words::read(config) }?;
        let [_, keepalive, timers @ ..] = words;
        let keepalive = match keepalive {
            0 | KA_KEEP => None,
            KA_ON => Some(true),
            KA_OFF => Some(false),
            _ => return Err(EINVAL),
        };
        let mut config = Config::KEEP.with_enabled(keepalive);
        // A loop, because the calls of five setters would be inlined.
        for (timer, value) in Timer::ALL.into_iter().zip(timers) {
            config = match (timer, value) {
                (_, 0 | KA_KEEP) => config,
                (Timer::UserTimeout, value) => config.with_user_timeout(to_user_timeout(value))?,
                (Timer::RtoMax, value) => config.with_rto_max(to_rto_max(value))?,
                (timer, value) => config.with_timer(timer, Some(value))?,
            };
        }
        Ok(config)
    }

    /// Fills a caller's config on success, and leaves it unchanged on failure. Returns the result of the C function.
    ///
    /// # Safety
    /// `config` is NULL, or can be read and written for as many bytes as its size states.
    pub(crate) unsafe fn fill(
        config: *mut Self,
        values: impl FnOnce() -> Result<ConfigWords, Errno>,
    ) -> c_int {
        answer(|| {
            // SAFETY: the caller passes NULL, or at least the first word.
            let count = unsafe { words::count(config) }?;
            // SAFETY: the config has as many words as its size states.
            unsafe { Self::write(config, count, &values()?) };
            Ok(0)
        })
    }

    /// Returns whether a caller's config has a field for each value that is not `KA_KEEP`. Only fields that are newer
    /// than 0.1.0 are checked. A config can also be smaller than that of 0.1.0, and its missing values were always
    /// dropped without an error.
    ///
    /// # Safety
    /// `config` is NULL, or at least its first word can be read.
    pub(crate) unsafe fn has_room(config: *const Self, values: &ConfigWords) -> Result<bool, Errno> {
        // SAFETY: the caller passes NULL, or at least the first word.
        let count = unsafe { words::count(config) }?;
        Ok(values.iter().skip(count.max(WORDS_0_1).saturating_sub(1)).all(|value| *value == KA_KEEP))
    }

    /// Writes the values. Not inlined, because several functions call it and their speed does not matter.
    ///
    /// # Safety
    /// `config` can be written for `count` words.
    #[inline(never)]
    unsafe fn write(config: *mut Self, count: usize, values: &ConfigWords) {
        // A sysctl may hold 0, which no socket can have. In the struct 0 means KA_KEEP.
        let [keepalive, idle, intvl, cnt, user_timeout, rto_max] =
            values.map(|value| if value == 0 { KA_KEEP } else { value });
        // `words::write` skips the first word, because the size belongs to the caller.
        let words: [i32; WORDS] = [0, keepalive, idle, intvl, cnt, user_timeout, rto_max];
        // SAFETY: the caller guarantees `count` words.
        unsafe { words::write(config, count, words) };
    }
}

/// Returns the words of a policy.
pub(crate) fn values(config: &Config) -> ConfigWords {
    [
        match config.enabled() {
            None => KA_KEEP,
            Some(true) => KA_ON,
            Some(false) => KA_OFF,
        },
        config.idle().unwrap_or(KA_KEEP),
        config.intvl().unwrap_or(KA_KEEP),
        config.cnt().unwrap_or(KA_KEEP),
        match config.user_timeout() {
            UserTimeout::Keep => KA_KEEP,
            UserTimeout::Auto => KA_AUTO,
            UserTimeout::Milliseconds(0) => KA_NONE,
            UserTimeout::Milliseconds(value) => value,
        },
        match config.rto_max() {
            RtoMax::Keep => KA_KEEP,
            RtoMax::Auto => KA_AUTO,
            RtoMax::Milliseconds(value) => value,
        },
    ]
}

/// Returns the words of the settings that are in force on a socket.
pub(crate) fn in_force(settings: &Settings) -> ConfigWords {
    let Settings { enabled, idle, intvl, cnt, user_timeout, rto_max } = *settings;
    [
        if enabled { KA_ON } else { KA_OFF },
        idle,
        intvl,
        cnt,
        match user_timeout {
            None => KA_KEEP,
            Some(0) => KA_NONE,
            Some(milliseconds) => milliseconds,
        },
        rto_max.unwrap_or(KA_KEEP),
    ]
}

/// Returns the value of an argument that may be KA_KEEP.
pub(crate) fn named(value: c_int) -> Option<i32> {
    (value != KA_KEEP).then_some(value)
}

/// Returns the user timeout of an argument.
pub(crate) const fn to_user_timeout(milliseconds: c_int) -> UserTimeout {
    match milliseconds {
        KA_KEEP => UserTimeout::Keep,
        KA_AUTO => UserTimeout::Auto,
        KA_NONE => UserTimeout::Milliseconds(0),
        value => UserTimeout::Milliseconds(value),
    }
}

/// Returns the longest time between two retransmissions of an argument.
pub(crate) const fn to_rto_max(milliseconds: c_int) -> RtoMax {
    match milliseconds {
        KA_KEEP => RtoMax::Keep,
        KA_AUTO => RtoMax::Auto,
        value => RtoMax::Milliseconds(value),
    }
}

/// Get the settings of a new socket in the calling thread's network namespace.
///
///   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_OFF, and user_timeout is
///           KA_NONE. The timers have the values of the sysctls net.ipv4.tcp_keepalive_time, tcp_keepalive_intvl and
///           tcp_keepalive_probes. A sysctl may hold a value that cannot be set on a socket, for example 86400. A
///           sysctl of 0 or -1 is reported as KA_KEEP. rto_max is that of net.ipv4.tcp_rto_max_ms, or KA_KEEP before
///           Linux 6.15.
///
/// If /proc does not show the sysctls, for example in a chroot, the function reads the timers of a new socket instead.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
///   EMFILE, ENFILE, ENOMEM, EACCES, EPERM, EAFNOSUPPORT
///                /proc does not show the sysctls, and the kernel refused to create a socket: socket(2).
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_defaults(config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
    unsafe {
        ka_config::fill(config, || {
            let defaults = ka_core::defaults()?;
            let rto_max = defaults.rto_max.unwrap_or(KA_KEEP);
            Ok([KA_OFF, defaults.idle, defaults.intvl, defaults.cnt, KA_NONE, rto_max])
        })
    }
}
