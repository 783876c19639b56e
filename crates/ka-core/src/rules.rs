//! Rules: which policy for which connection, by its peer and its ports.

use core::error;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::cut::{cut, place, trim};
use crate::text::{Reason, parse_typed};

/// What a rule says to do with a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it alone.
    Skip,
    /// Give it this policy, in which nothing of the base policy is missing.
    Apply(Config),
}

/// A condition on a connection's ends, and what to do where it holds.
///
/// ```
/// use ka_core::{Action, Config, Rule};
///
/// let base = Config::new(60, 10, 6)?;
/// let rule = Rule::parse(b"peer=10.0.0.0/8 rport=5432 idle=30", &base)?;
/// assert_eq!(rule.action(), Action::Apply(Config::new(30, 10, 6)?));
/// let peer = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
/// assert!(rule.matches(Some(peer("10.1.2.3:5432")), 0));
/// assert!(!rule.matches(Some(peer("192.0.2.1:5432")), 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which of the three conditions there are.
    conditions: u8,
    peer: Cidr,
    rport: Ports,
    lport: Ports,
    /// Keepalive off: leave it alone.
    config: Config,
}

const PEER: u8 = 1;
const RPORT: u8 = 2;
const LPORT: u8 = 4;

impl Rule {
    /// A rule that matches everything and leaves it alone.
    pub const SKIP: Self = Self {
        conditions: 0,
        peer: Cidr { network: 0, bits: 0 },
        rport: Ports::NONE,
        lport: Ports::NONE,
        config: OFF,
    };

    /// Reads a rule: conditions and an action, with blanks between them.
    ///
    /// The conditions, each at most once, all of which must hold: `peer=ADDRESS[/BITS]`, `rport=N[-M]`,
    /// `lport=N[-M]`. The action, last: `skip` (or `off`), or a policy's text as [`parse_typed`] reads it. Values that
    /// the text does not name come from the base policy.
    ///
    /// # Errors
    /// The first word that is wrong.
    pub fn parse<'a>(text: &'a [u8], base: &Config) -> Result<Self, RuleError<'a>> {
        let mut rule = Self::SKIP;
        let mut has_action = false;
        let mut rest = trim(text);
        while !rest.is_empty() {
            let (word, behind) = rest.split_at_checked(word_end(rest)).unwrap_or((rest, b""));
            rest = trim(behind);
            let taken = if has_action { Err(AFTER_ACTION) } else { rule.take(word, base) };
            has_action = taken.map_err(|message| RuleError { word, message })?;
        }
        if has_action { Ok(rule) } else { Err(RuleError { word: text, message: NO_ACTION }) }
    }

    /// Takes a word: whether it was the action.
    #[inline(never)]
    fn take(&mut self, word: &[u8], base: &Config) -> Result<bool, &'static str> {
        let (name, value) = cut(word, b'=');
        let is_name = value.is_none();
        let value = value.unwrap_or_default();
        let condition = match place(b"peer,rport,lport,skip", name) {
            Some(0) => {
                self.peer = Cidr::parse(value).ok_or(NOT_AN_ADDRESS)?;
                PEER
            }
            Some(1) => {
                self.rport = Ports::parse(value).ok_or(NOT_PORTS)?;
                RPORT
            }
            Some(2) => {
                self.lport = Ports::parse(value).ok_or(NOT_PORTS)?;
                LPORT
            }
            Some(_) if is_name => return Ok(true),
            _ => {
                let config = parse_typed(word).map_err(|error| error.reason.message())?;
                if config.enabled().is_none() {
                    return Err(KEEP);
                }
                self.config = config.on_top_of(base).map_err(|_| Reason::AutoTooLong.message())?;
                return Ok(true);
            }
        };
        if self.conditions & condition != 0 {
            return Err(Reason::Twice.message());
        }
        self.conditions |= condition;
        Ok(false)
    }

    /// What to do where it matches.
    #[must_use]
    pub fn action(&self) -> Action {
        if self.config.enabled() == Some(true) { Action::Apply(self.config) } else { Action::Skip }
    }

    /// Whether it looks at the other end, which a listener does not know.
    #[must_use]
    pub const fn looks_at_peer(&self) -> bool {
        self.conditions & (PEER | RPORT) != 0
    }

    /// Whether it looks at the local port.
    #[must_use]
    pub const fn looks_at_local_port(&self) -> bool {
        self.conditions & LPORT != 0
    }

    /// Whether all its conditions hold. A peer that is not known, and a local port of 0, meet none.
    #[must_use]
    pub fn matches(&self, peer: Option<Endpoint>, lport: u16) -> bool {
        let holds = |condition, met: bool| self.conditions & condition == 0 || met;
        let peer_fits = match peer {
            Some(peer) => {
                holds(PEER, self.peer.contains(peer.address)) && holds(RPORT, self.rport.contain(peer.port))
            }
            None => !self.looks_at_peer(),
        };
        peer_fits && holds(LPORT, self.lport.contain(lport))
    }
}

/// Returns the length of the first word of a rule. A blank ends the word, except beside a comma of a policy or a colon
/// of three numbers.
fn word_end(text: &[u8]) -> usize {
    let separator = |byte: u8| byte == b',' || byte == b':' && text.first().is_some_and(u8::is_ascii_digit);
    let (mut end, mut before, mut last) = (0, 0_usize, 0_u8);
    for byte in text {
        if !byte.is_ascii_whitespace() {
            if before > end && !separator(last) && !separator(*byte) {
                return end;
            }
            last = *byte;
            end = before.saturating_add(1);
        }
        before = before.saturating_add(1);
    }
    end
}

const OFF: Config = Config::KEEP.with_enabled(Some(false));

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleError<'a> {
    /// The word that is wrong, or the whole rule.
    pub word: &'a [u8],
    /// What would be right.
    pub message: &'static str,
}

const NOT_AN_ADDRESS: &str = "peer must be an address or a network, as 10.0.0.0/8";
const NOT_PORTS: &str = "must be a port or a range, 1..65535, as 22 or 8000-8999";
const AFTER_ACTION: &str = "the action must be last";
const NO_ACTION: &str = "must end with skip or a policy, as 60,10,6";
const KEEP: &str = "keep is not an action, use skip";

impl fmt::Display for RuleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}", self.word.escape_ascii(), self.message)
    }
}

impl error::Error for RuleError<'_> {}

/// One end of a connection. An IPv4 address is its IPv6 form, ::ffff:a.b.c.d, as the kernel itself has it on a socket
/// for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address's bits.
    pub address: u128,
    /// The port.
    pub port: u16,
}

/// What every IPv4 address begins with, ::ffff:0:0/96.
const IPV4: u128 = 0xffff_0000_0000;
const IPV4_BITS: u32 = 96;

impl Endpoint {
    /// An end with this IPv4 address, as it is on the wire.
    #[must_use]
    pub const fn v4(octets: [u8; 4], port: u16) -> Self {
        Self { address: IPV4 | u32::from_be_bytes(octets) as u128, port }
    }

    /// An end with this IPv6 address, as it is on the wire.
    #[must_use]
    pub const fn v6(octets: [u8; 16], port: u16) -> Self {
        Self { address: u128::from_be_bytes(octets), port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) => Self::v4(ip.octets(), address.port()),
            IpAddr::V6(ip) => Self::v6(ip.octets(), address.port()),
        }
    }
}

/// Addresses that begin with the same bits. A prefix shorter than what every IPv4 address begins with has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u128,
    bits: u32,
}

impl Cidr {
    /// Reads `ADDRESS` or `ADDRESS/BITS`. Bits of the address beyond the prefix do not count.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (address, bits) = cut(text, b'/');
        let (network, before) = match ipv4(address) {
            Some(address) => (IPV4 | u128::from(address), IPV4_BITS),
            None => (ipv6(address)?, 0),
        };
        let bits = match bits {
            Some(digits) => u32::from(decimal(digits)?).checked_add(before)?,
            None => u128::BITS,
        };
        (bits <= u128::BITS).then_some(Self { network, bits })
    }

    /// Whether the address, with these bits, is one of them.
    #[must_use]
    pub fn contains(&self, address: u128) -> bool {
        let differ = self.network ^ address;
        // A shift by the whole width, of a prefix without bits, leaves nothing to differ.
        let alike = differ.checked_shr(u128::BITS.saturating_sub(self.bits)).unwrap_or(0) == 0;
        alike && (self.bits >= IPV4_BITS || address >> 32 != IPV4 >> 32)
    }
}

// core::net has parsers of addresses, but such as can panic, and these must not: they read what an environment says.

/// Four numbers up to 255, with dots between them.
#[inline(never)]
fn ipv4(text: &[u8]) -> Option<u32> {
    let (mut address, mut count, mut rest) = (0_u32, 0_u32, Some(text));
    while let Some(numbers) = rest {
        let (digits, behind) = cut(numbers, b'.');
        rest = behind;
        address = address << 8 | u32::from(u8::try_from(decimal(digits)?).ok()?);
        count = count.checked_add(1)?;
    }
    (count == 4).then_some(address)
}

/// RFC 4291, section 2.2: eight groups of hexadecimal digits, the last two of which may be an IPv4 address, and a
/// double colon in place of one or more that are zero.
fn ipv6(text: &[u8]) -> Option<u128> {
    match text.windows(2).position(|pair| pair == b"::") {
        None => groups(text, true).and_then(|(address, count)| (count == 8).then_some(address)),
        Some(at) => {
            let (front, before) = groups(text.get(..at)?, false)?;
            let (back, behind) = groups(text.get(at.checked_add(2)?..)?, true)?;
            let zeros = 8_u32.checked_sub(before)?.checked_sub(behind)?;
            let front = front.checked_shl(16_u32.checked_mul(zeros.checked_add(behind)?)?).unwrap_or(0);
            (zeros >= 1).then_some(front | back)
        }
    }
}

/// Groups with colons between them, none in an empty text: their bits, and how many they are. Where they are an address's
/// end, the last may be an IPv4 address.
#[inline(never)]
fn groups(text: &[u8], is_end: bool) -> Option<(u128, u32)> {
    let (mut address, mut count) = (0_u128, 0_u32);
    let mut rest = Some(text).filter(|text| !text.is_empty());
    while let Some(parts) = rest {
        let (part, behind) = cut(parts, b':');
        rest = behind;
        let (bits, groups) = match ipv4(part) {
            Some(last) if is_end && behind.is_none() => (last, 2_u32),
            _ => (u32::from(hexadecimal(part)?), 1),
        };
        address = address.checked_shl(16_u32.checked_mul(groups)?)? | u128::from(bits);
        count = count.checked_add(groups).filter(|count| *count <= 8)?;
    }
    Some((address, count))
}

/// One to four hexadecimal digits.
fn hexadecimal(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 4 {
        return None;
    }
    digits.iter().try_fold(0_u16, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        value.checked_mul(16)?.checked_add(u16::try_from(digit).ok()?)
    })
}

/// A port, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    const NONE: Self = Self { first: 0, last: 0 };

    fn parse(text: &[u8]) -> Option<Self> {
        let (first, last) = cut(text, b'-');
        let first = decimal(first)?;
        let last = match last {
            Some(digits) => decimal(digits)?,
            None => first,
        };
        (first >= 1 && first <= last).then_some(Self { first, last })
    }

    const fn contain(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Decimal digits without leading zeros, up to 65535.
fn decimal(digits: &[u8]) -> Option<u16> {
    let leading_zero = digits.len() > 1 && digits.first() == Some(&b'0');
    if leading_zero || digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u16, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}
