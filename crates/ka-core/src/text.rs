//! A policy as text: `60,10,5` or `idle=60,intvl=10,cnt=5`.

use core::error;
use core::fmt;
use core::ops::Deref;

use crate::config::{Config, UserTimeout};
use crate::cut::cut;
use crate::error::Errno;
use crate::option::Timer;

/// Reads a policy from its text.
///
/// Items with commas between them: either exactly three numbers, idle, intvl and cnt; or, in any order and
/// each at most once, `idle=`, `intvl=`, `cnt=` and `user_timeout=` with a number (`user_timeout=auto` too), and
/// one of `on`, `off` and `keep`, where none means `on`. Numbers are decimal digits without leading zeros. There
/// are no blanks. What is not named is left as it is.
///
/// ```
/// use ka_core::{Config, parse};
///
/// assert_eq!(parse(b"60,10,5")?, Config::new(60, 10, 5)?);
///
/// let error = parse(b"idle=60,intvl=0").unwrap_err();
/// assert_eq!(error.to_string(), "\"intvl=0\": intvl must be 1..32767 s");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first mistake in the form; where there is none, the first number out of range.
pub fn parse(text: &[u8]) -> Result<Config, ParseError<'_>> {
    let mut fields = Fields { config: Config::KEEP.with_enabled(Some(true)), seen: 0 };
    let mut out_of_range = None;
    let positional = text.first().is_some_and(u8::is_ascii_digit);
    let (mut rest, mut n) = (Some(text), 0_usize);
    while let Some(items) = rest {
        let (item, behind) = cut(items, b',');
        let taken = if positional { fields.take_number(n, item) } else { fields.take_named(item) };
        (rest, n) = (behind, n.saturating_add(1));
        match taken {
            Ok(()) => {}
            Err(reason @ Reason::OutOfRange(_)) => {
                out_of_range.get_or_insert(ParseError { item, reason });
            }
            Err(reason) => return Err(ParseError { item, reason }),
        }
    }
    if positional && fields.seen != Fields::POSITIONAL {
        return Err(ParseError { item: text, reason: Reason::NotThree });
    }
    match out_of_range {
        Some(error) => Err(error),
        None => Ok(fields.config),
    }
}

/// Why a text is no policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParseError<'a> {
    /// The item that is wrong, or the whole text.
    pub item: &'a [u8],
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with an item of a policy's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Neither a name with a value, nor `on`, `off` or `keep`.
    Unknown,
    /// Numbers without names, but not exactly three.
    NotThree,
    /// Not decimal digits without leading zeros.
    NotANumber,
    /// Said before, or a second one of `on`, `off` and `keep`.
    Twice,
    /// An automatic user timeout of more milliseconds than there can be.
    AutoTooLong,
    /// A number that this value cannot have.
    OutOfRange(Timer),
}

impl Reason {
    /// What would be right.
    #[must_use]
    #[inline(never)]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Unknown => "must be idle=, intvl=, cnt= or user_timeout= with a number, or on, off or keep",
            Self::NotThree => "numbers without names must be three: idle,intvl,cnt",
            Self::NotANumber => "must be a number in decimal digits, without leading zeros",
            Self::Twice => "says again what was said before",
            Self::AutoTooLong => "user_timeout=auto would be more than 2147483647 ms",
            Self::OutOfRange(Timer::Idle) => "idle must be 1..32767 s",
            Self::OutOfRange(Timer::Intvl) => "intvl must be 1..32767 s",
            Self::OutOfRange(Timer::Cnt) => "cnt must be 1..127 probes",
            Self::OutOfRange(Timer::UserTimeout) => "user_timeout must be 0..2147483647 ms",
        }
    }
}

impl ParseError<'_> {
    /// The `errno` of this error in C: ERANGE for a number out of range, else EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno(if matches!(self.reason, Reason::OutOfRange(_)) { libc::ERANGE } else { libc::EINVAL })
    }
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}", self.item.escape_ascii(), self.reason.message())
    }
}

impl fmt::Debug for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParseError({self})")
    }
}

impl error::Error for ParseError<'_> {}

/// What the items have said so far, and which have been said. A number out of range counts as said, so that the form is
/// judged to its end.
struct Fields {
    config: Config,
    seen: u8,
}

impl Fields {
    /// The three that may stand without a name.
    const POSITIONAL: u8 = 1 << Timer::Idle as u8 | 1 << Timer::Intvl as u8 | 1 << Timer::Cnt as u8;
    const ENABLED: u8 = 1 << 7;

    fn take_number(&mut self, n: usize, item: &[u8]) -> Result<(), Reason> {
        match n {
            0 => self.take_timer(Timer::Idle, item),
            1 => self.take_timer(Timer::Intvl, item),
            2 => self.take_timer(Timer::Cnt, item),
            _ => Err(Reason::NotThree),
        }
    }

    fn take_named(&mut self, item: &[u8]) -> Result<(), Reason> {
        if let (name, Some(value)) = cut(item, b'=') {
            return self.take_timer(Timer::named(name).ok_or(Reason::Unknown)?, value);
        }
        let enabled = match item {
            b"on" => Some(true),
            b"off" => Some(false),
            b"keep" => None,
            _ => return Err(Reason::Unknown),
        };
        self.config = self.config.with_enabled(enabled);
        self.once(Self::ENABLED)
    }

    fn take_timer(&mut self, timer: Timer, text: &[u8]) -> Result<(), Reason> {
        let value = if timer == Timer::UserTimeout && text == b"auto" {
            self.config.with_user_timeout(UserTimeout::Auto)
        } else {
            match timer.parse(text) {
                Ok(value) => self.config.with_timer(timer, Some(value)),
                Err(Reason::NotANumber) => return Err(Reason::NotANumber),
                Err(out_of_range) => return self.once(1 << timer as u8).and(Err(out_of_range)),
            }
        };
        self.once(1 << timer as u8)?;
        // The value is in its range, so what is left to be wrong is an automatic user timeout that is too long.
        self.config = value.map_err(|_| Reason::AutoTooLong)?;
        Ok(())
    }

    fn once(&mut self, field: u8) -> Result<(), Reason> {
        if self.seen & field != 0 {
            return Err(Reason::Twice);
        }
        self.seen |= field;
        Ok(())
    }
}

impl Timer {
    /// Reads a value from its text: decimal digits without leading zeros, in the range of this timer.
    ///
    /// # Errors
    /// [`Reason::NotANumber`], [`Reason::OutOfRange`]
    pub fn parse(self, digits: &[u8]) -> Result<i32, Reason> {
        let leading_zero = digits.len() > 1 && digits.first() == Some(&b'0');
        if digits.is_empty() || leading_zero || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Reason::NotANumber);
        }
        let value = digits.iter().try_fold(0_i32, |value, digit| {
            value.checked_mul(10)?.checked_add(i32::from(digit.wrapping_sub(b'0')))
        });
        value.filter(|value| self.accepts(*value)).ok_or(Reason::OutOfRange(self))
    }
}

/// The text of a policy, in place: [`parse`] reads it back to the same policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Text {
    /// The longest text there is has 59 bytes: `keep,idle=32767,intvl=32767,cnt=127,user_timeout=2147483647`.
    const CAPACITY: usize = 64;

    /// Adds an item, with a comma before it where it is not the first.
    #[inline(never)]
    fn item(&mut self, name: &str) {
        if self.len > 0 {
            self.push(b',');
        }
        name.bytes().for_each(|byte| self.push(byte));
    }

    #[inline(never)]
    fn value(&mut self, timer: Timer, value: i32) {
        self.item(timer.name());
        self.push(b'=');
        self.digits(value.unsigned_abs());
    }

    fn digits(&mut self, value: u32) {
        if value >= 10 {
            self.digits(value / 10);
        }
        self.push(b'0'.wrapping_add((value % 10) as u8));
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len = self.len.saturating_add(1);
        }
    }

    /// The text's bytes, all of them ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl From<u32> for Text {
    /// A number in decimal digits.
    fn from(number: u32) -> Self {
        let mut text = Self { bytes: [0; Self::CAPACITY], len: 0 };
        text.digits(number);
        text
    }
}

impl From<&Config> for Text {
    fn from(config: &Config) -> Self {
        let mut text = Self { bytes: [0; Self::CAPACITY], len: 0 };
        match config.enabled() {
            Some(true) => {}
            Some(false) => text.item("off"),
            None => text.item("keep"),
        }
        for timer in [Timer::Idle, Timer::Intvl, Timer::Cnt, Timer::UserTimeout] {
            if let Some(value) = config.timer(timer) {
                text.value(timer, value);
            }
        }
        if config.user_timeout() == UserTimeout::Auto {
            text.item(Timer::UserTimeout.name());
            "=auto".bytes().for_each(|byte| text.push(byte));
        }
        if text.len == 0 {
            text.item("on");
        }
        text
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Text::from(self))
    }
}
