//! A policy as C has it: a struct that begins with its size.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_core::{Config, Errno, Timer, UserTimeout};
use libc::c_int;

use crate::errno::{EINVAL, answer};
use crate::words;

/// Leave this value as it is.
pub const KA_KEEP: i32 = -1;

/// For user_timeout only: 1000 * (idle + intvl * cnt) milliseconds, of the values in force.
pub const KA_AUTO: i32 = -2;

/// The longest idle time, in seconds (MAX_TCP_KEEPIDLE of the kernel).
pub const KA_IDLE_MAX: i32 = 32767;

/// The longest interval between probes, in seconds (MAX_TCP_KEEPINTVL of the kernel).
pub const KA_INTVL_MAX: i32 = 32767;

/// The most probes (MAX_TCP_KEEPCNT of the kernel).
pub const KA_CNT_MAX: i32 = 127;

// The header needs literals; these hold them to the rules.
const _: () = assert!(KA_IDLE_MAX == *Timer::Idle.range().end());
const _: () = assert!(KA_INTVL_MAX == *Timer::Intvl.range().end());
const _: () = assert!(KA_CNT_MAX == *Timer::Cnt.range().end());

/// A keepalive policy, or what is in force. Make it with KA_CONFIG_INIT: zero is not a value of idle, intvl and
/// cnt, so a config that was only cleared is refused, not misread.
///
/// It may grow at its end in a later version; size tells the two versions apart. A program built against an
/// older, smaller one keeps working: what it lacks is KA_KEEP, or is not written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_config {
    /// sizeof (struct ka_config): KA_CONFIG_INIT sets it.
    pub size: u32,
    /// 1 on, 0 off, KA_KEEP. SO_KEEPALIVE
    pub enabled: i32,
    /// s, 1..KA_IDLE_MAX, KA_KEEP. TCP_KEEPIDLE
    pub idle: i32,
    /// s, 1..KA_INTVL_MAX, KA_KEEP. TCP_KEEPINTVL
    pub intvl: i32,
    /// probes, 1..KA_CNT_MAX, KA_KEEP. TCP_KEEPCNT
    pub cnt: i32,
    /// ms, 0..2147483647, 0 is the kernel's own rule; KA_KEEP, KA_AUTO. TCP_USER_TIMEOUT
    pub user_timeout: i32,
}

/// The words of a `ka_config`, the size among them.
const WORDS: usize = size_of::<ka_config>() / size_of::<u32>();

const _: () = assert!(WORDS == 2 + Timer::ALL.len(), "each timer has a word in struct ka_config");

/// All but the size: enabled, idle, intvl, cnt, user_timeout.
pub(crate) type Values = [i32; WORDS - 1];

impl ka_config {
    /// The policy that a caller's config asks for.
    ///
    /// # Safety
    /// NULL, or `config` can be read for as many bytes as its size says.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Config, Errno> {
        // SAFETY: the caller vouches for the pointer.
        let words: [i32; WORDS] = unsafe { words::read(config, KA_KEEP) }?;
        let [_, enabled, idle, intvl, cnt, milliseconds] = words;
        let enabled = match enabled {
            KA_KEEP => None,
            0 => Some(false),
            1 => Some(true),
            _ => return Err(EINVAL),
        };
        let config = Config::KEEP.with_enabled(enabled).with_idle(named(idle))?.with_intvl(named(intvl))?;
        Ok(config.with_cnt(named(cnt))?.with_user_timeout(user_timeout(milliseconds))?)
    }

    /// Answers for a function that fills a caller's config: its values without the size, on success only.
    ///
    /// # Safety
    /// NULL, or `config` can be read and written for as many bytes as its size says.
    pub(crate) unsafe fn fill(config: *mut Self, values: impl FnOnce() -> Result<Values, Errno>) -> c_int {
        answer(|| {
            // SAFETY: the caller vouches for the pointer.
            let count = unsafe { words::count(config) }?;
            let [enabled, idle, intvl, cnt, user_timeout] = values()?;
            // The size stays the caller's: the first word is not written.
            let words: [i32; WORDS] = [0, enabled, idle, intvl, cnt, user_timeout];
            // SAFETY: the caller vouches for as many words as the size gives.
            unsafe { words::write(config, count, words) };
            Ok(0)
        })
    }
}

/// The values of a policy, as `ka_config::fill` takes them.
pub(crate) fn values(config: &Config) -> Values {
    [
        config.enabled().map_or(KA_KEEP, i32::from),
        config.idle().unwrap_or(KA_KEEP),
        config.intvl().unwrap_or(KA_KEEP),
        config.cnt().unwrap_or(KA_KEEP),
        match config.user_timeout() {
            UserTimeout::Keep => KA_KEEP,
            UserTimeout::Auto => KA_AUTO,
            UserTimeout::Milliseconds(value) => value,
        },
    ]
}

pub(crate) fn named(value: c_int) -> Option<i32> {
    (value != KA_KEEP).then_some(value)
}

pub(crate) const fn user_timeout(milliseconds: c_int) -> UserTimeout {
    match milliseconds {
        KA_KEEP => UserTimeout::Keep,
        KA_AUTO => UserTimeout::Auto,
        value => UserTimeout::Milliseconds(value),
    }
}

/// Gets what a fresh socket of the calling thread's network namespace has: keepalive off, no user timeout, and
/// the timers of the sysctls net.ipv4.tcp_keepalive_time, _intvl and _probes. They may hold what could not be
/// set on a socket, as 86400, 0 or -1.
///
///   config  where to put it; its size must be set (KA_CONFIG_INIT).
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
            Ok([0, defaults.idle, defaults.intvl, defaults.cnt, 0])
        })
    }
}
