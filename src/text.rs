//! A policy as text.

#![expect(unsafe_code, reason = "it is what C calls")]

use core::ffi::CStr;

use ka_core::Text;
use libc::{c_char, c_int};

use crate::config::{ka_config, values};
use crate::errno::{EINVAL, answer};

/// Reads a policy from its text, as from a configuration file, an option or the environment.
///
///   text    one of two forms. Blanks and line ends around an item are ignored. Values that are not named are
///           KA_KEEP.
///             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
///             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt="
///               and "user_timeout=" with a value, and one of "on", "off" and "keep" for keepalive. Without one
///               of these three, keepalive is KA_ON. "idle=5m, intvl=30s, user_timeout=auto".
///           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
///           a unit, idle and intvl are seconds and user_timeout is milliseconds. idle and intvl must be whole
///           seconds. cnt has no unit. "user_timeout=auto" is KA_AUTO. "user_timeout=none" and
///           "user_timeout=0" are KA_NONE.
///   config  where to put it; its size must be set (KA_CONFIG_INIT).
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; config's size is not a multiple of 4 from 8 up; the text has another form;
///                idle or intvl is not whole seconds; "user_timeout=auto" would be more than 2147483647.
///   ERANGE       the form is right, but a number is out of its range.
/// ka_explain has the reason in words.
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
        // SAFETY: C vouches for `size` bytes of `text`.
        let mut out = unsafe { Output::new(text, size) };
        out.push(Text::from(&config).as_bytes());
        Ok(out.end())
    })
}

/// Explains why ka_parse rejects a text, for a message to the person who wrote it.
///
/// The message names the wrong item and describes a valid one: "\"cnt=0\": cnt must be 1..127 probes". It has no
/// line end, and only printable ASCII characters: others in the text are written as escapes.
///
///   text     the text that ka_parse has rejected.
///   message  receives the message and a NUL, as snprintf(3): at most size bytes in all. A longer message is cut off.
///            May be NULL if size is 0.
///   size     the bytes of message.
///
/// Returns the length of the whole message without its NUL (size or more: it was cut off), 0 with an empty message if
/// ka_parse accepts the text, or -1 with errno:
///   EINVAL       text is NULL; message is NULL and size is not 0.
/// After a failure the message is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_explain(text: *const c_char, message: *mut c_char, size: usize) -> c_int {
    answer(|| {
        if text.is_null() || message.is_null() && size > 0 {
            return Err(EINVAL);
        }
        // SAFETY: it is not NULL, so it is a C string.
        let text = unsafe { CStr::from_ptr(text) };
        // SAFETY: C vouches for `size` bytes of `message`.
        let mut out = unsafe { Output::new(message, size) };
        if let Err(error) = ka_core::parse(text.to_bytes()) {
            error.write(&mut |piece| out.push(piece));
        }
        Ok(out.end())
    })
}

/// A text that is written into a caller's buffer, as snprintf(3) does.
struct Output {
    buffer: *mut c_char,
    size: usize,
    length: usize,
}

impl Output {
    /// # Safety
    /// `size` bytes of `buffer` can be written as long as this lives. If it is 0, `buffer` may be NULL.
    const unsafe fn new(buffer: *mut c_char, size: usize) -> Self {
        Self { buffer, size, length: 0 }
    }

    /// Appends bytes. Those that do not fit are only counted. The last byte of the buffer is for the NUL.
    #[inline(never)]
    fn push(&mut self, bytes: &[u8]) {
        let room = self.size.saturating_sub(1).saturating_sub(self.length);
        let fits = bytes.get(..room).unwrap_or(bytes);
        if !fits.is_empty() {
            // SAFETY: `length` and the bytes that fit are together less than `size`.
            unsafe {
                let place = self.buffer.cast::<u8>().add(self.length);
                place.copy_from_nonoverlapping(fits.as_ptr(), fits.len());
            }
        }
        self.length = self.length.saturating_add(bytes.len());
    }

    /// Writes the NUL. Returns the length of the whole text.
    fn end(self) -> c_int {
        if let Some(last) = self.size.checked_sub(1) {
            // SAFETY: the place is below `size`.
            unsafe { self.buffer.add(self.length.min(last)).write(0) };
        }
        c_int::try_from(self.length).unwrap_or(c_int::MAX)
    }
}
