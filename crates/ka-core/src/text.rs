//! A policy as text: `60,10,5` or `idle=60,intvl=10,cnt=5`. This module also parses times for the whole workspace.

use core::error;
use core::fmt;
use core::ops::Deref;

use crate::bytes::{cut, place, trim};
use crate::config::{AUTO, Config, RtoMax, UserTimeout};
use crate::error::Errno;
use crate::option::Timer;

/// Reads a policy from its text.
///
/// The text has one of two forms:
///
/// - three values without names, idle, intvl and cnt, with commas or colons between them: `60,10,5`, `5m:30:5`;
/// - items with commas between them, in any order and each at most once: `idle=`, `intvl=`, `cnt=`, `user_timeout=`
///   and `rto_max=` with a value, and one of `on`, `off` and `keep`. Without one of these the policy is `on`.
///
/// Values are decimal digits without leading zeros. A time may end with a unit: `ms`, `s`, `m`, `h` or `d`. A bare
/// number is seconds for idle and intvl, and milliseconds for the user timeout and `rto_max`. idle and intvl are whole
/// seconds. cnt has no unit. `user_timeout=auto` is [`UserTimeout::Auto`], `rto_max=auto` is [`RtoMax::Auto`], and
/// `user_timeout=none` is 0. Blanks around items are ignored. The policy leaves values that the text does not name
/// unchanged.
///
/// ```
/// use ka_core::{Config, parse};
///
/// assert_eq!(parse(b"60,10,5")?, Config::new(60, 10, 5)?);
/// assert_eq!(parse(b"idle=1m, intvl=10s, cnt=5")?, Config::new(60, 10, 5)?);
///
/// let error = parse(b"idle=60,cnt=0").unwrap_err();
/// assert_eq!(error.to_string(), "\"cnt=0\": cnt must be 1..127 probes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first mistake in the form. If the form is right, the first number out of range.
pub fn parse(text: &[u8]) -> Result<Config, ParseError<'_>> {
    parse_as(text, false)
}

/// Reads a policy that a person wrote. Unlike [`parse`], this function requires a unit for a user timeout below 1000.
///
/// `user_timeout=30` beside `idle=30` looks like 30 seconds and would be 30 milliseconds. [`parse`] accepts the bare
/// number, because [`Text`] writes it.
///
/// # Errors
/// As [`parse`], and [`Reason::NoUnit`].
pub fn parse_typed(text: &[u8]) -> Result<Config, ParseError<'_>> {
    parse_as(text, true)
}

fn parse_as(text: &[u8], typed: bool) -> Result<Config, ParseError<'_>> {
    let mut fields = Fields { config: Config::KEEP.with_enabled(Some(true)), seen: 0, typed };
    let mut out_of_range = None;
    let text = trim(text);
    let positional = text.first().is_some_and(u8::is_ascii_digit);
    let separator = if positional && cut(text, b':').1.is_some() { b':' } else { b',' };
    let (mut rest, mut n) = (Some(text), 0_usize);
    while let Some(items) = rest {
        let (item, behind) = cut(items, separator);
        let item = trim(item);
        let taken = fields.take(item, positional.then_some(n));
        (rest, n) = (behind, n.saturating_add(1));
        match taken {
            Ok(()) => {}
            Err(reason @ Reason::OutOfRange(_)) => {
                out_of_range.get_or_insert(ParseError { item, reason });
            }
            Err(reason) => return Err(ParseError { item, reason }),
        }
    }
    if positional && fields.seen != Fields::ALL_POSITIONAL {
        return Err(ParseError { item: text, reason: Reason::NotThree });
    }
    match out_of_range {
        Some(error) => Err(error),
        None => Ok(fields.config),
    }
}

/// The reason why a text is not a policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParseError<'a> {
    /// The wrong item, or the whole text.
    pub item: &'a [u8],
    /// The reason why the item is wrong.
    pub reason: Reason,
}

/// The reason why an item in the text of a policy is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The item is neither a name with a value, nor `on`, `off` or `keep`.
    Unknown,
    /// The text has numbers without names, but not exactly three.
    NotThree,
    /// The value is not decimal digits without leading zeros, or its unit is wrong.
    NotAValue(Timer),
    /// idle or intvl is not whole seconds.
    NotWhole,
    /// A person wrote a user timeout below 1000 without a unit.
    NoUnit,
    /// The item occurs twice, or the text has two of `on`, `off` and `keep`.
    Twice,
    /// The automatic user timeout would exceed 2147483647 ms.
    AutoTooLong,
    /// The number is out of the range of this timer.
    OutOfRange(Timer),
}

impl Reason {
    /// Returns a description of a valid item.
    #[must_use]
    #[inline(never)]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Unknown => {
                "must be idle=, intvl=, cnt=, user_timeout= or rto_max= with a value, or on, off or keep"
            }
            Self::NotThree => "numbers without names must be three: idle,intvl,cnt",
            Self::NotAValue(Timer::Cnt) => "must be a number without a unit, as 6",
            Self::NotAValue(Timer::UserTimeout) => "must be a time, as 30s, or auto or none",
            Self::NotAValue(Timer::RtoMax) => "must be a time, as 2s, or auto",
            Self::NotAValue(_) => "must be a time, as 60, 60s or 5m",
            Self::NotWhole => "must be whole seconds",
            Self::NoUnit => "below 1000 it needs a unit, as 30ms or 30s",
            Self::Twice => "is given twice",
            Self::AutoTooLong => "user_timeout=auto is more than 2147483647 ms",
            Self::OutOfRange(Timer::Idle) => "idle must be 1..32767 s",
            Self::OutOfRange(Timer::Intvl) => "intvl must be 1..32767 s",
            Self::OutOfRange(Timer::Cnt) => "cnt must be 1..127 probes",
            Self::OutOfRange(Timer::UserTimeout) => "user_timeout must be 0..2147483647 ms",
            Self::OutOfRange(Timer::RtoMax) => "rto_max must be 1000..120000 ms",
        }
    }
}

/// Describes a valid item in place of a wrong one. The description may contain the wrong value.
#[derive(Clone, Copy)]
pub struct Advice<'a>(ParseError<'a>);

impl Advice<'_> {
    /// Hands the description to `write`, piece by piece.
    #[inline(never)]
    fn write(self, write: &mut dyn FnMut(&[u8])) {
        let ParseError { item, reason } = self.0;
        let (name, value) = cut(item, b'=');
        let number = Quantity::parse(value.unwrap_or(name)).map_or(0, |quantity| quantity.number);
        // The number is below 1000 with NoUnit, and below 32768000 with NotWhole.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if reason == Reason::NoUnit {
            let digits = Text::from(number);
            write(b"write ");
            write(digits.as_bytes());
            write(b"ms or ");
            write(digits.as_bytes());
            return write(b"s");
        }
        write(reason.message().as_bytes());
        match reason {
            Reason::NotWhole => {
                write(b", as ");
                write(Text::from((number / 1000).max(1)).as_bytes());
                write(b"s");
            }
            Reason::OutOfRange(Timer::Idle | Timer::Intvl) => write(b" (at most 9h 6m 7s)"),
            Reason::OutOfRange(Timer::UserTimeout) => write(b" (at most 24d 20h 31m 23s)"),
            _ => {}
        }
    }
}

/// Hands an escaped byte to `write`. The result is that of [`core::ascii::escape_default`], which needs a table.
fn write_escaped(byte: u8, write: &mut dyn FnMut(&[u8])) {
    let digit = |value: u8| {
        if value < 10 { b'0'.wrapping_add(value) } else { b'a'.wrapping_add(value).wrapping_sub(10) }
    };
    let letter = match byte {
        b'\t' => b't',
        b'\r' => b'r',
        b'\n' => b'n',
        b'"' | b'\'' | b'\\' => byte,
        b' '..=b'~' => return write(&[byte]),
        _ => return write(&[b'\\', b'x', digit(byte >> 4), digit(byte & 0xf)]),
    };
    write(&[b'\\', letter]);
}

/// Formats text that is handed over piece by piece. All of it is ASCII.
fn display(f: &mut fmt::Formatter<'_>, write: impl FnOnce(&mut dyn FnMut(&[u8]))) -> fmt::Result {
    let mut result = Ok(());
    write(&mut |piece| {
        let text = core::str::from_utf8(piece).unwrap_or_default();
        result = result.and_then(|()| f.write_str(text));
    });
    result
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, |write| self.write(write))
    }
}

impl ParseError<'_> {
    /// Returns the `errno` of this error in C: ERANGE for a number out of range, EINVAL for any other error.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno(if matches!(self.reason, Reason::OutOfRange(_)) { libc::ERANGE } else { libc::EINVAL })
    }
}

impl From<ParseError<'_>> for Errno {
    fn from(error: ParseError<'_>) -> Self {
        error.errno()
    }
}

impl<'a> ParseError<'a> {
    /// Hands the message to `write`, piece by piece: the wrong item, and the description of a valid one. All of it is
    /// printable ASCII. Unlike `Display`, this needs no formatting machinery.
    #[inline(never)]
    pub fn write(self, write: &mut dyn FnMut(&[u8])) {
        write(b"\"");
        for byte in self.item {
            write_escaped(*byte, write);
        }
        write(b"\": ");
        self.advice().write(write);
    }

    /// Describes a valid item, without the wrong one.
    #[must_use]
    pub const fn advice(self) -> Advice<'a> {
        Advice(self)
    }
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, |write| self.write(write))
    }
}

impl fmt::Debug for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParseError({self})")
    }
}

impl error::Error for ParseError<'_> {}

/// The values of the items that have been read, and the set of these items. A number out of range is also in the set,
/// so that the rest of the text is checked for mistakes in its form.
struct Fields {
    config: Config,
    seen: u8,
    /// True if a person wrote the text.
    typed: bool,
}

const _: () = assert!(Timer::ALL.len() <= 7, "each timer has a bit below `Fields::ENABLED`");

impl Fields {
    /// The number of timers that a text can name by position: idle, intvl and cnt.
    const POSITIONAL: usize = 3;
    /// Their bits in `seen`.
    const ALL_POSITIONAL: u8 = (1 << Self::POSITIONAL) - 1;
    /// The bit of `on`, `off` and `keep`. Each timer has one of the lower bits.
    const ENABLED: u8 = 1 << 7;

    /// Reads an item. `n` is its position if the text is three values without names.
    fn take(&mut self, item: &[u8], n: Option<usize>) -> Result<(), Reason> {
        let (timer, value) = match (n, cut(item, b'=')) {
            (Some(n), _) => {
                let timer = Timer::ALL.get(n).filter(|_| n < Self::POSITIONAL);
                (*timer.ok_or(Reason::NotThree)?, item)
            }
            (None, (name, Some(value))) => (Timer::named(name).ok_or(Reason::Unknown)?, value),
            (None, (name, None)) => {
                let enabled = match place(b"off,on,keep", name).ok_or(Reason::Unknown)? {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                };
                self.config = self.config.with_enabled(enabled);
                return self.once(Self::ENABLED);
            }
        };
        let taken = self.config.take_text(timer, value, self.typed);
        if matches!(taken, Ok(()) | Err(Reason::OutOfRange(_))) {
            self.once(1 << timer as u8)?;
        }
        taken
    }

    /// Records an item. Fails if it occurs a second time.
    fn once(&mut self, field: u8) -> Result<(), Reason> {
        if self.seen & field != 0 {
            return Err(Reason::Twice);
        }
        self.seen |= field;
        Ok(())
    }
}

impl Config {
    /// Sets a timer from its text. If `typed` is true, a person wrote the text, and the syntax is that of
    /// [`parse_typed`]. If it is false, the syntax is that of [`parse`].
    ///
    /// # Errors
    /// The reason why the text is wrong. The policy is unchanged.
    #[inline(never)]
    pub fn take_text(&mut self, timer: Timer, text: &[u8], typed: bool) -> Result<(), Reason> {
        let word = match text {
            b"auto" if matches!(timer, Timer::UserTimeout | Timer::RtoMax) => AUTO,
            b"none" if timer == Timer::UserTimeout => 0,
            _ => timer.parse(text, typed)?,
        };
        let before = core::mem::replace(self.word(timer), word);
        // Each value is in its range, so the only possible error is an automatic user timeout that is too long.
        self.checked().map(|_| ()).map_err(|_| {
            *self.word(timer) = before;
            Reason::AutoTooLong
        })
    }
}

impl UserTimeout {
    /// Reads a user timeout that a person wrote: a time, `auto` or `none`.
    ///
    /// # Errors
    /// [`Reason::NotAValue`], [`Reason::NoUnit`], [`Reason::OutOfRange`]
    pub fn parse_typed(text: &[u8]) -> Result<Self, Reason> {
        let mut config = Config::KEEP;
        config.take_text(Timer::UserTimeout, trim(text), true)?;
        Ok(config.user_timeout())
    }
}

impl RtoMax {
    /// Reads a longest time between two retransmissions that a person wrote: a time, or `auto`.
    ///
    /// # Errors
    /// [`Reason::NotAValue`], [`Reason::OutOfRange`]
    pub fn parse_typed(text: &[u8]) -> Result<Self, Reason> {
        let mut config = Config::KEEP;
        config.take_text(Timer::RtoMax, trim(text), true)?;
        Ok(config.rto_max())
    }
}

impl Timer {
    /// Reads a value that a person wrote, in the unit of this timer.
    ///
    /// # Errors
    /// [`Reason::NotAValue`], [`Reason::NotWhole`], [`Reason::NoUnit`], [`Reason::OutOfRange`]
    pub fn parse_typed(self, text: &[u8]) -> Result<i32, Reason> {
        self.parse(trim(text), true)
    }

    fn parse(self, text: &[u8], typed: bool) -> Result<i32, Reason> {
        let form = Reason::NotAValue(self);
        let Quantity { number, unit } = Quantity::parse(text).ok_or(form)?;
        if self == Self::Cnt && unit != 0 {
            return Err(form);
        }
        if self == Self::UserTimeout && typed && unit == 0 && (1..1000).contains(&number) {
            return Err(Reason::NoUnit);
        }
        let in_seconds = matches!(self, Self::Idle | Self::Intvl);
        let own = if in_seconds { 1000 } else { 1 };
        let total = number.saturating_mul(if unit == 0 { own } else { unit });
        let value = if in_seconds { total / 1000 } else { total };
        let value = i32::try_from(value).ok().filter(|value| value <= self.range().end());
        match value {
            Some(_) if in_seconds && !total.is_multiple_of(1000) => Err(Reason::NotWhole),
            Some(value) if self.accepts(value) => Ok(value),
            _ => Err(Reason::OutOfRange(self)),
        }
    }
}

/// A number and an optional unit. All times have this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// The number, or [`u64::MAX`] if it is larger than that.
    pub number: u64,
    /// The unit in milliseconds, or 0 without a unit.
    pub unit: u64,
}

impl Quantity {
    /// Reads decimal digits without leading zeros, and an optional unit: `ms`, `s`, `m`, `h` or `d`.
    #[must_use]
    #[inline(never)]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (mut number, mut rest) = (0_u64, text);
        while let [digit @ b'0'..=b'9', behind @ ..] = rest {
            number = number.saturating_mul(10).saturating_add(u64::from(digit.wrapping_sub(b'0')));
            rest = behind;
        }
        let digits = text.len().wrapping_sub(rest.len());
        if digits == 0 || digits > 1 && text.first() == Some(&b'0') {
            return None;
        }
        let unit = match rest {
            b"" => 0,
            _ => match place(b"ms,s,m,h,d", rest)? {
                0 => 1,
                1 => 1000,
                2 => 60_000,
                3 => 3_600_000,
                _ => 86_400_000,
            },
        };
        Some(Self { number, unit })
    }
}

/// The text of a policy, without allocation. [`parse`] reads it back to the same policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Text {
    /// The size of the buffer in bytes. The longest text has 74 bytes:
    /// `keep,idle=32767,intvl=32767,cnt=127,user_timeout=2147483647,rto_max=120000`.
    const CAPACITY: usize = 80;

    /// Adds an item, with a comma before it unless it is the first.
    #[inline(never)]
    fn item(&mut self, name: &[u8]) {
        if self.len > 0 {
            self.push(b',');
        }
        self.append(name);
    }

    fn append(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(*byte);
        }
    }

    #[inline(never)]
    fn value(&mut self, timer: Timer, value: i32) {
        self.item(timer.name_bytes());
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

    /// Returns the bytes of the text. All of them are ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl From<u32> for Text {
    /// Formats a number in decimal digits.
    fn from(number: u32) -> Self {
        let mut text = Self { bytes: [0; Self::CAPACITY], len: 0 };
        text.digits(number);
        text
    }
}

impl Text {
    /// Formats a policy as a person may write it. [`parse_typed`] reads the text back to the same policy.
    ///
    /// This text differs from the canonical form only in the unit of a user timeout below 1000.
    #[must_use]
    pub fn typed(config: &Config) -> Self {
        Self::new(config, true)
    }

    fn new(config: &Config, typed: bool) -> Self {
        let mut text = Self { bytes: [0; Self::CAPACITY], len: 0 };
        match config.enabled() {
            Some(true) => {}
            Some(false) => text.item(b"off"),
            None => text.item(b"keep"),
        }
        for timer in Timer::ALL {
            if config.is_auto(timer) {
                text.item(timer.name_bytes());
                text.append(b"=auto");
            } else if let Some(value) = config.timer(timer) {
                text.value(timer, value);
                if typed && timer == Timer::UserTimeout && (1..1000).contains(&value) {
                    text.append(b"ms");
                }
            }
        }
        if text.len == 0 {
            text.item(b"on");
        }
        text
    }
}

impl From<&Config> for Text {
    fn from(config: &Config) -> Self {
        Self::new(config, false)
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
