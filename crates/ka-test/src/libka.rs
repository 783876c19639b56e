//! The functions and types of libka.so, as include/ka.h declares them.
#![expect(unsafe_code, reason = "dlopen, dlsym, errno, and calls of libka")]

use std::ffi::CString;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use libc::{c_char, c_int};

use crate::artifact::release;

macro_rules! libka {
    ($(fn $name:ident($($type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of the release build's libka.so.
        pub struct Libka { $(
            #[doc = concat!("`", stringify!($name), "` of include/ka.h.")]
            pub $name: unsafe extern "C" fn($($type),*) $(-> $result)?,
        )* }

        impl Libka {
            fn open() -> Self {
                let path = CString::new(release().join("libka.so").into_os_string().into_encoded_bytes()).unwrap();
                // SAFETY: libka.so has no constructors, and is never closed.
                let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
                assert!(!library.is_null(), "libka.so does not load");
                Self { $($name: {
                    let name = CString::new(stringify!($name)).unwrap();
                    // SAFETY: the type is that of include/ka.h, which the tests in C are compiled against.
                    unsafe {
                        let symbol = libc::dlsym(library, name.as_ptr());
                        assert!(!symbol.is_null(), "libka.so has no {}", stringify!($name));
                        std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>(symbol)
                    }
                },)* }
            }
        }

        /// The names of the functions that libka.so exports.
        pub const EXPORTS: &[&str] = &[$(stringify!($name)),*];
    };
}

libka! {
    fn ka_apply(c_int, *const RawConfig) -> c_int;
    fn ka_beat_client(*const u8, *mut u64) -> c_int;
    fn ka_beat_nonce(*mut u8) -> c_int;
    fn ka_beat_sign(*const u8, usize, *const u8, *const RawBeat, *mut u8) -> c_int;
    fn ka_beat_verify(*const u8, usize, *const u8, u64, *const u8, *mut RawBeat) -> c_int;
    fn ka_data_time(*const RawConfig, *mut u64, *mut u64) -> c_int;
    fn ka_defaults(*mut RawConfig) -> c_int;
    fn ka_detect_time(*const RawConfig, *mut u64, *mut u64) -> c_int;
    fn ka_disable(c_int) -> c_int;
    fn ka_enable(c_int, c_int, c_int, c_int) -> c_int;
    fn ka_enable_lenient(c_int, c_int, c_int, c_int) -> c_int;
    fn ka_explain(*const c_char, *mut c_char, usize) -> c_int;
    fn ka_format(*const RawConfig, *mut c_char, usize) -> c_int;
    fn ka_get_cnt(c_int, *mut c_int) -> c_int;
    fn ka_get_idle(c_int, *mut c_int) -> c_int;
    fn ka_get_intvl(c_int, *mut c_int) -> c_int;
    fn ka_get_rto_max(c_int, *mut c_int) -> c_int;
    fn ka_get_status(c_int, *mut RawStatus) -> c_int;
    fn ka_get_user_timeout(c_int, *mut c_int) -> c_int;
    fn ka_is_enabled(c_int) -> c_int;
    fn ka_parse(*const c_char, *mut RawConfig) -> c_int;
    fn ka_plan_detect(u32, *mut RawConfig) -> c_int;
    fn ka_plan_path(u32, *mut RawConfig) -> c_int;
    fn ka_plan_preset(*const c_char, *mut RawConfig) -> c_int;
    fn ka_probe(c_int, c_int) -> c_int;
    fn ka_query(c_int, *mut RawConfig) -> c_int;
    fn ka_reaper_expired(*mut RawReaper, u64, *mut c_int, usize) -> c_int;
    fn ka_reaper_forget(*mut RawReaper, c_int) -> c_int;
    fn ka_reaper_free(*mut RawReaper);
    fn ka_reaper_len(*const RawReaper) -> usize;
    fn ka_reaper_new(u32) -> *mut RawReaper;
    fn ka_reaper_next(*const RawReaper, u64) -> c_int;
    fn ka_reaper_touch(*mut RawReaper, c_int, u64) -> c_int;
    fn ka_set_rto_max(c_int, c_int) -> c_int;
    fn ka_set_user_timeout(c_int, c_int) -> c_int;
    fn ka_version() -> *const c_char;
    fn ka_version_number() -> u32;
}

/// Loads libka.so on the first call, and returns its functions.
pub fn libka() -> &'static Libka {
    static LIBRARY: OnceLock<Libka> = OnceLock::new();
    LIBRARY.get_or_init(Libka::open)
}

/// `KA_KEEP`
pub const KEEP: i32 = -1;
/// `KA_AUTO`
pub const AUTO: i32 = -2;
/// `KA_NONE`
pub const NONE: i32 = -3;
/// `KA_ON`
pub const ON: i32 = 1;
/// `KA_OFF`
pub const OFF: i32 = 2;

/// `struct ka_config`: size, keepalive, idle, intvl, cnt, user_timeout, rto_max. A test in C compares the layouts.
pub type RawConfig = [i32; 7];
/// `KA_CONFIG_INIT`
pub const CONFIG_INIT: RawConfig = [28, KEEP, KEEP, KEEP, KEEP, KEEP, KEEP];
/// `struct ka_status`: size, state, probes, retransmits, unacked, last_ack_ms, last_recv_ms, last_send_ms, rtt_us.
pub type RawStatus = [u32; 9];
/// `KA_STATUS_INIT`
pub const STATUS_INIT: RawStatus = [36, 0, 0, 0, 0, 0, 0, 0, 0];
/// `struct ka_beat`: client, sequence.
pub type RawBeat = [u64; 2];
/// `struct ka_reaper`, which is opaque.
pub type RawReaper = libc::c_void;

/// Returns a config with these values, and `KA_KEEP` for rto_max.
pub const fn config(keepalive: i32, idle: i32, intvl: i32, cnt: i32, user_timeout: i32) -> RawConfig {
    [28, keepalive, idle, intvl, cnt, user_timeout, KEEP]
}

/// Returns the config with this rto_max.
pub const fn with_rto_max(config: RawConfig, rto_max: i32) -> RawConfig {
    let [size, keepalive, idle, intvl, cnt, user_timeout, _] = config;
    [size, keepalive, idle, intvl, cnt, user_timeout, rto_max]
}

/// Calls a function of libka. A call that succeeds must not change errno, and a call that fails must set it.
///
/// # Errors
///
/// Returns errno if the function returns -1.
pub fn call(function: impl FnOnce(&Libka) -> c_int) -> Result<c_int, c_int> {
    const UNTOUCHED: c_int = 9999;
    let library = libka();
    // SAFETY: errno belongs to this thread and outlives the reference.
    let errno = unsafe { &mut *libc::__errno_location() };
    *errno = UNTOUCHED;
    let result = function(library);
    let errno = *errno;
    if result == -1 {
        assert_ne!(errno, UNTOUCHED, "a call failed without setting errno");
        Err(errno)
    } else {
        assert_eq!(errno, UNTOUCHED, "a call that succeeded changed errno");
        Ok(result)
    }
}

/// Calls `ka_enable`.
///
/// # Errors
///
/// Returns errno if the call fails.
pub fn enable(fd: RawFd, idle: c_int, intvl: c_int, cnt: c_int) -> Result<c_int, c_int> {
    // SAFETY: ka_enable takes no pointer.
    call(|ka| unsafe { (ka.ka_enable)(fd, idle, intvl, cnt) })
}

/// A function that reads one value, such as `ka_get_idle`.
pub type Getter = fn(&Libka) -> unsafe extern "C" fn(c_int, *mut c_int) -> c_int;

/// Calls a function that reads one value. A call that fails must not write it.
///
/// # Errors
///
/// Returns errno if the call fails.
pub fn get(fd: RawFd, getter: Getter) -> Result<c_int, c_int> {
    const UNTOUCHED: c_int = 0x5a5a_5a5a;
    let mut value = UNTOUCHED;
    // SAFETY: `value` is an int that lives until the call returns.
    let result = call(|ka| unsafe { getter(ka)(fd, &raw mut value) });
    assert_eq!(result.is_ok(), value != UNTOUCHED, "outputs are written on success only");
    result.map(|_| value)
}

/// Calls `ka_query`. A call that fails must not write the config.
///
/// # Errors
///
/// Returns errno if the call fails.
pub fn query(fd: RawFd) -> Result<RawConfig, c_int> {
    let mut config = CONFIG_INIT;
    // SAFETY: the first field of `config` is its size.
    let result = call(|ka| unsafe { (ka.ka_query)(fd, &raw mut config) });
    assert_eq!(result.is_ok(), config != CONFIG_INIT, "outputs are written on success only");
    result.map(|_| config)
}

/// A function that computes a time from a config: `ka_detect_time` or `ka_data_time`.
pub type TimeFunction = fn(&Libka) -> unsafe extern "C" fn(*const RawConfig, *mut u64, *mut u64) -> c_int;

/// Calls a function that computes a time, and returns the typical and the worst one. A call that fails must not write
/// them.
///
/// # Errors
///
/// Returns errno if the call fails.
pub fn times(config: &RawConfig, function: TimeFunction) -> Result<[u64; 2], c_int> {
    const UNTOUCHED: [u64; 2] = [7; 2];
    let mut times = UNTOUCHED;
    let [typical, worst] = &mut times;
    // SAFETY: the first field of `config` is its size, and the two numbers live until the call returns.
    let result = call(|ka| unsafe { function(ka)(config, typical, worst) });
    assert_eq!(result.is_ok(), times != UNTOUCHED, "outputs are written on success only");
    result.map(|_| times)
}

/// Calls `ka_apply`.
///
/// # Errors
///
/// Returns errno if the call fails.
pub fn apply(fd: RawFd, config: &RawConfig) -> Result<c_int, c_int> {
    // SAFETY: the first field of `config` is its size.
    call(|ka| unsafe { (ka.ka_apply)(fd, config) })
}
