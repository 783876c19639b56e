//! A policy as text.

#![expect(unsafe_code, reason = "it is what C calls")]

use core::ffi::CStr;

use ka_core::Text;
use libc::{c_char, c_int};

use crate::config::{ka_config, values};
use crate::errno::{EINVAL, answer};

/// Reads a policy from its text, as from a configuration file, an option or the environment.
///
///   text    one of two forms. Blanks and line ends around an item are ignored. Values that are not named are KA_KEEP.
///             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
///             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt="
///               and "user_timeout=" with a value, and one of "on", "off" and "keep" for enabled. Without one
///               of these three, enabled is 1. "idle=5m, intvl=30s, user_timeout=auto".
///           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
///           a unit, idle and intvl are seconds and user_timeout is milliseconds. idle and intvl must be whole
///           seconds. cnt has no unit. "user_timeout=auto" is KA_AUTO, "user_timeout=none" is 0.
///   config  where to put it; its size must be set (KA_CONFIG_INIT).
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; config's size is not a multiple of 4 from 8 up; the text has another form;
///                idle or intvl is not whole seconds; "user_timeout=auto" would be more than 2147483647.
///   ERANGE       the form is right, but a number is out of its range.
/// After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_parse(text: *const c_char, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the config, and the text, where it is not NULL, is a C string.
    unsafe {
        ka_config::fill(config, || {
            if text.is_null() {
                return Err(EINVAL);
            }
            let config = ka_core::parse(CStr::from_ptr(text).to_bytes()).map_err(|error| error.errno())?;
            Ok(values(&config))
        })
    }
}

/// Writes a policy as the text that ka_parse reads back to the same policy: "idle=60,intvl=10,cnt=5", "off".
///
/// The text has neither blanks nor units. For a user_timeout below 1000 the command ka and the KA_ variables
/// require a unit, because a person could mean seconds. ka_parse reads the bare number as milliseconds.
///
///   config  a config that ka_apply would take.
///   text    where to put the text and a NUL, as snprintf(3): at most size bytes in all, cut off where it is
///           longer. May be NULL where size is 0. 64 bytes hold any text of this version.
///   size    how many bytes text has.
///
/// Returns the length of the whole text without its NUL (size or more: it was cut off), or -1 with errno:
///   EINVAL       config is NULL; text is NULL and size is not 0; ka_apply would refuse the config with EINVAL.
///   E2BIG        ka_apply would refuse the config with E2BIG.
/// After a failure the text is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_format(config: *const ka_config, text: *mut c_char, size: usize) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer.
        let config = unsafe { ka_config::read(config) }?;
        if text.is_null() && size > 0 {
            return Err(EINVAL);
        }
        let whole = Text::from(&config);
        let whole = whole.as_bytes();
        if let Some(room) = size.checked_sub(1) {
            let cut = whole.get(..room).unwrap_or(whole);
            // SAFETY: `cut` and the NUL after it are at most `size` bytes, for which C vouches.
            unsafe {
                text.cast::<u8>().copy_from_nonoverlapping(cut.as_ptr(), cut.len());
                text.add(cut.len()).write(0);
            }
        }
        Ok(c_int::try_from(whole.len()).unwrap_or(c_int::MAX))
    })
}
