//! Functions that convert a policy to and from text.

#![expect(unsafe_code, reason = "C calls these functions")]

use core::ffi::CStr;

use ka_core::Text;
use libc::{c_char, c_int};

use crate::config::{ka_config, values};
use crate::errno::{EINVAL, answer};

/// Read a policy from a text, for example from a configuration file, an option or the environment.
///
///   text    has one of two forms. Blanks and line ends around an item are ignored. Values that are not named are
///           KA_KEEP.
///             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
///             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt=",
///               "user_timeout=" and (since 0.2.0) "rto_max=" with a value, and one of "on", "off" and "keep" for
///               keepalive. Without one of these three, keepalive is KA_ON. Example: "idle=5m, intvl=30s, rto_max=2s".
///           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
///           a unit, idle and intvl are in seconds, and user_timeout and rto_max are in milliseconds. idle and intvl
///           must be whole seconds. cnt has no unit. "user_timeout=auto" and "rto_max=auto" are KA_AUTO.
///           "user_timeout=none" and "user_timeout=0" are KA_NONE.
///   config  receives the policy. Its size must be set (KA_CONFIG_INIT).
///
/// Returns 0, or -1 with errno. ka_explain explains the error in words:
///   EINVAL       an argument is NULL; the size of config is below 8 or not a multiple of 4; the text has another
///                form; idle or intvl is not whole seconds; the value of "user_timeout=auto" would be above
///                2147483647; the text names a value that is newer than 0.1.0, such as rto_max, and config is too
///                small for its field (ka_explain does not explain this last error, because it does not know the size).
///   ERANGE       the form is right, but a number is out of its range.
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_parse(text: *const c_char, config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states. The text is NULL or a C
    // string.
    unsafe {
        ka_config::fill(config, || {
            if text.is_null() {
                return Err(EINVAL);
            }
            let values = values(&ka_core::parse(CStr::from_ptr(text).to_bytes())?);
            // A value that the caller's struct has no field for must not be lost in silence.
            ka_config::has_room(config, &values)?.then_some(values).ok_or(EINVAL)
        })
    }
}

/// Write a policy as a text that ka_parse reads back to the same policy: "idle=60,intvl=10,cnt=5", "off".
///
/// The text has neither blanks nor units. ka_parse reads a user_timeout without a unit as milliseconds. The command ka
/// and the KA_ variables reject one below 1000 without a unit, because a person could mean seconds.
///
///   config  a policy that ka_apply would accept.
///   text    receives the text and a NUL, at most size bytes in all, as snprintf(3) does. A longer text is truncated.
///           May be NULL if size is 0. 80 bytes are enough for every text of this version.
///   size    the size of text in bytes.
///
/// Returns the length of the whole text without its NUL. If the length is size or more, the text was truncated. Or
/// returns -1 with errno:
///   EINVAL       config is NULL; text is NULL and size is not 0; ka_apply would reject config with EINVAL.
///   E2BIG        ka_apply would reject config with E2BIG.
/// After a failure text is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_format(config: *const ka_config, text: *mut c_char, size: usize) -> c_int {
    answer(|| {
        // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
        let config = unsafe { ka_config::read(config) }?;
        if text.is_null() && size > 0 {
            return Err(EINVAL);
        }
        // SAFETY: the C caller guarantees `size` bytes of `text`.
        let mut out = unsafe { TextBuffer::new(text, size) };
        out.push(Text::from(&config).as_bytes());
        Ok(out.end())
    })
}

/// Explain why ka_parse rejects a text, in a message for the person who wrote the text.
///
/// The message names the wrong item and describes a valid one: "\"cnt=0\": cnt must be 1..127 probes". It has no
/// line end, and only printable ASCII characters. Other characters of the text are written as escapes.
///
///   text     the text that ka_parse has rejected.
///   message  receives the message and a NUL, at most size bytes in all, as snprintf(3) does. A longer message is
///            truncated. May be NULL if size is 0.
///   size     the size of message in bytes.
///
/// Returns the length of the whole message without its NUL. If the length is size or more, the message was truncated.
/// If ka_parse accepts the text, the message is empty and the length is 0. Or returns -1 with errno:
///   EINVAL       text is NULL; message is NULL and size is not 0.
/// After a failure message is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_explain(text: *const c_char, message: *mut c_char, size: usize) -> c_int {
    answer(|| {
        if text.is_null() || message.is_null() && size > 0 {
            return Err(EINVAL);
        }
        // SAFETY: `text` is not NULL, so it is a C string, which the C caller keeps unchanged during this call.
        let text = unsafe { CStr::from_ptr(text) };
        // SAFETY: the C caller guarantees `size` bytes of `message`.
        let mut out = unsafe { TextBuffer::new(message, size) };
        if let Err(error) = ka_core::parse(text.to_bytes()) {
            error.write(&mut |piece| out.push(piece));
        }
        Ok(out.end())
    })
}

/// A writer that fills a caller's buffer as snprintf(3) does.
struct TextBuffer {
    buffer: *mut c_char,
    size: usize,
    length: usize,
}

impl TextBuffer {
    /// # Safety
    /// `size` bytes of `buffer` can be written as long as this value lives. If `size` is 0, `buffer` may be NULL.
    const unsafe fn new(buffer: *mut c_char, size: usize) -> Self {
        Self { buffer, size, length: 0 }
    }

    /// Appends bytes, and counts those that do not fit. The last byte of the buffer is for the NUL.
    #[inline(never)]
    fn push(&mut self, bytes: &[u8]) {
        let room = self.size.saturating_sub(1).saturating_sub(self.length);
        let fits = bytes.get(..room).unwrap_or(bytes);
        if !fits.is_empty() {
            // SAFETY: the sum of `length` and the number of bytes that fit is less than `size`.
            unsafe {
                let place = self.buffer.cast::<u8>().add(self.length);
                place.copy_from_nonoverlapping(fits.as_ptr(), fits.len());
            }
        }
        self.length = self.length.saturating_add(bytes.len());
    }

    /// Writes the NUL and returns the length of the whole text.
    fn end(self) -> c_int {
        if let Some(last) = self.size.checked_sub(1) {
            // SAFETY: the offset is below `size`.
            unsafe { self.buffer.add(self.length.min(last)).write(0) };
        }
        c_int::try_from(self.length).unwrap_or(c_int::MAX)
    }
}
