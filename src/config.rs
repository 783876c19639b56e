//! struct ka_config: a policy in C.

#![expect(unsafe_code, reason = "C calls it")]

use ka_core::{Config, Errno, Settings, Timer, UserTimeout};
use libc::c_int;

use crate::errno::{EINVAL, answer};
use crate::words;

/// Leave this value as it is. In struct ka_config, 0 means the same.
pub const KA_KEEP: i32 = -1;
const _: () = assert!(KA_KEEP == words::KEEP);

/// For user_timeout only: 1000 * (idle + intvl * cnt) milliseconds, of the values in force.
pub const KA_AUTO: i32 = -2;

/// For user_timeout only: no user timeout.
pub const KA_NONE: i32 = -3;

/// For keepalive only: turn it on.
pub const KA_ON: i32 = 1;

/// For keepalive only: turn it off.
pub const KA_OFF: i32 = 2;

/// The longest idle time, in seconds (MAX_TCP_KEEPIDLE of the kernel).
pub const KA_IDLE_MAX: i32 = 32767;

/// The longest interval between probes, in seconds (MAX_TCP_KEEPINTVL of the kernel).
pub const KA_INTVL_MAX: i32 = 32767;

/// The most probes (MAX_TCP_KEEPCNT of the kernel).
pub const KA_CNT_MAX: i32 = 127;

// cbindgen needs literals. These assertions compare them with the ranges of ka-core.
const _: () = assert!(KA_IDLE_MAX == *Timer::Idle.range().end());
const _: () = assert!(KA_INTVL_MAX == *Timer::Intvl.range().end());
const _: () = assert!(KA_CNT_MAX == *Timer::Cnt.range().end());

/// A keepalive policy, or the settings that are in force.
///
/// In each field 0 means the same as KA_KEEP, so a struct that is all zero except for its size changes nothing. Make
/// one with KA_CONFIG_INIT or KA_CONFIG.
///
/// A later version may add fields at the end. The size tells the library which fields the caller has.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_config {
    /// sizeof (struct ka_config). KA_CONFIG_INIT and KA_CONFIG set it.
    pub size: u32,
    /// KA_ON, KA_OFF, KA_KEEP. SO_KEEPALIVE
    pub keepalive: i32,
    /// s, 1..KA_IDLE_MAX, KA_KEEP. TCP_KEEPIDLE
    pub idle: i32,
    /// s, 1..KA_INTVL_MAX, KA_KEEP. TCP_KEEPINTVL
    pub intvl: i32,
    /// probes, 1..KA_CNT_MAX, KA_KEEP. TCP_KEEPCNT
    pub cnt: i32,
    /// ms, 1..2147483647, KA_KEEP, KA_AUTO, KA_NONE. TCP_USER_TIMEOUT
    pub user_timeout: i32,
}

/// The words of a `ka_config`, including the size.
const WORDS: usize = size_of::<ka_config>() / size_of::<u32>();
const _: () = assert!(WORDS == 2 + Timer::ALL.len(), "each timer has a word in struct ka_config");

/// All words except the size: keepalive, idle, intvl, cnt, user_timeout.
pub(crate) type Values = [i32; WORDS - 1];

impl ka_config {
    /// Reads the policy of a caller's config.
    ///
    /// # Safety
    /// NULL, or `config` can be read for as many bytes as its size says.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Config, Errno> {
        // SAFETY: the caller vouches for the pointer.
        let words: [i32; WORDS] = unsafe { words::read(config) }?;
        let [_, keepalive, idle, intvl, cnt, milliseconds] = words;
        let keepalive = match keepalive {
            0 | KA_KEEP => None,
            KA_ON => Some(true),
            KA_OFF => Some(false),
            _ => return Err(EINVAL),
        };
        let named = |value| named(value).filter(|value| *value != 0);
        let milliseconds = if milliseconds == 0 { KA_KEEP } else { milliseconds };
        let config = Config::KEEP.with_enabled(keepalive).with_idle(named(idle))?.with_intvl(named(intvl))?;
        Ok(config.with_cnt(named(cnt))?.with_user_timeout(user_timeout(milliseconds))?)
    }

    /// Fills a caller's config on success, and leaves it unchanged on failure. Returns the result of the C function.
    ///
    /// # Safety
    /// NULL, or `config` can be read and written for as many bytes as its size says.
    pub(crate) unsafe fn fill(config: *mut Self, values: impl FnOnce() -> Result<Values, Errno>) -> c_int {
        answer(|| {
            // SAFETY: the caller vouches for the pointer.
            let count = unsafe { words::count(config) }?;
            // SAFETY: the caller vouches for as many words as the size gives.
            unsafe { Self::write(config, count, &values()?) };
            Ok(0)
        })
    }

    /// Writes the values. Not inlined, because five functions call it and none of them is hot.
    ///
    /// # Safety
    /// `config` has `count` words that can be written.
    #[inline(never)]
    unsafe fn write(config: *mut Self, count: usize, values: &Values) {
        // A sysctl may hold 0, which no socket can have. In the struct 0 means KA_KEEP.
        let [keepalive, idle, intvl, cnt, user_timeout] =
            values.map(|value| if value == 0 { KA_KEEP } else { value });
        // The first word is not written: the size is the caller's.
        let words: [i32; WORDS] = [0, keepalive, idle, intvl, cnt, user_timeout];
        // SAFETY: as the caller says.
        unsafe { words::write(config, count, words) };
    }
}

/// Returns the words of a policy.
pub(crate) fn values(config: &Config) -> Values {
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
    ]
}

/// Returns the words of the settings that are in force on a socket.
pub(crate) fn in_force(settings: &Settings) -> Values {
    let Settings { enabled, idle, intvl, cnt, user_timeout } = *settings;
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
    ]
}

/// Returns the value of an argument that may be KA_KEEP.
pub(crate) fn named(value: c_int) -> Option<i32> {
    (value != KA_KEEP).then_some(value)
}

/// Returns the user timeout of an argument.
pub(crate) const fn user_timeout(milliseconds: c_int) -> UserTimeout {
    match milliseconds {
        KA_KEEP => UserTimeout::Keep,
        KA_AUTO => UserTimeout::Auto,
        KA_NONE => UserTimeout::Milliseconds(0),
        value => UserTimeout::Milliseconds(value),
    }
}

/// Gets the settings of a new socket of the calling thread's network namespace.
///
/// keepalive is KA_OFF, user_timeout is KA_NONE, and the timers are those of the sysctls net.ipv4.tcp_keepalive_time,
/// _intvl and _probes. A sysctl may hold a value that no program can set on a socket, such as 86400. For 0 and -1 the
/// timer is KA_KEEP.
///
///   config  receives the settings. Its size must be set (KA_CONFIG_INIT).
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
///   EMFILE, ENFILE, ENOMEM, EACCES, EPERM, EAFNOSUPPORT
///                /proc does not show the sysctls and a socket to ask could not be made: socket(2).
/// After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_defaults(config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe {
        ka_config::fill(config, || {
            let defaults = ka_core::defaults()?;
            Ok([KA_OFF, defaults.idle, defaults.intvl, defaults.cnt, KA_NONE])
        })
    }
}
