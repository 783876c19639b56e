//! Rules: which policy for which connection, by its peer and its ports.

use core::error;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::text::{Reason, parse};

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
/// assert!(rule.matches(Some("10.1.2.3:5432".parse()?), 0));
/// assert!(!rule.matches(Some("192.0.2.1:5432".parse()?), 0));
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
    /// `lport=N[-M]`. The action, last: `skip` (or `off`), or a policy's text. What the text does not name
    /// comes from the base policy.
    ///
    /// # Errors
    /// The first word that is wrong.
    pub fn parse<'a>(text: &'a [u8], base: &Config) -> Result<Self, RuleError<'a>> {
        let mut rule = Self::SKIP;
        let mut has_action = false;
        for word in text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            let taken = if has_action { Err(AFTER_ACTION) } else { rule.take(word, base) };
            has_action = taken.map_err(|message| RuleError { word, message })?;
        }
        if has_action { Ok(rule) } else { Err(RuleError { word: text, message: NO_ACTION }) }
    }

    /// Takes a word: whether it was the action.
    fn take(&mut self, word: &[u8], base: &Config) -> Result<bool, &'static str> {
        let mut parts = word.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().unwrap_or_default();
        let condition = match name {
            b"peer" => {
                self.peer = Cidr::parse(value).ok_or(NOT_AN_ADDRESS)?;
                PEER
            }
            b"rport" => {
                self.rport = Ports::parse(value).ok_or(NOT_PORTS)?;
                RPORT
            }
            b"lport" => {
                self.lport = Ports::parse(value).ok_or(NOT_PORTS)?;
                LPORT
            }
            b"skip" if word == name => return Ok(true),
            _ => {
                let config = parse(word).map_err(|error| error.reason.message())?;
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

    /// Whether all its conditions hold. A peer that is not known, and a local port of 0, meet none.
    #[must_use]
    pub fn matches(&self, peer: Option<SocketAddr>, lport: u16) -> bool {
        let holds = |condition, met: bool| self.conditions & condition == 0 || met;
        let peer_fits = match peer {
            Some(peer) => {
                holds(PEER, self.peer.contains(peer.ip())) && holds(RPORT, self.rport.contain(peer.port()))
            }
            None => !self.looks_at_peer(),
        };
        peer_fits && holds(LPORT, self.lport.contain(lport))
    }
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

const NOT_AN_ADDRESS: &str = "peer must be an address, or one with /bits, as 10.0.0.0/8 or ::1";
const NOT_PORTS: &str = "must be a port or a range, 1..65535, as 22 or 8000-8999";
const AFTER_ACTION: &str = "the action must be last";
const NO_ACTION: &str = "must end with skip or a policy, as idle=60,intvl=10,cnt=6";
const KEEP: &str = "keep is no action: skip leaves a connection alone";

impl fmt::Display for RuleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}", self.word.escape_ascii(), self.message)
    }
}

impl error::Error for RuleError<'_> {}

/// Addresses that begin with the same bits. An IPv4 address is its IPv6 form, ::ffff:a.b.c.d, and a prefix that is
/// shorter than what all of those begin with has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u128,
    bits: u32,
}

/// What every IPv4 address begins with, ::ffff:0:0/96.
const IPV4_BITS: u32 = 96;

impl Cidr {
    /// Reads `ADDRESS` or `ADDRESS/BITS`. Bits of the address beyond the prefix do not count.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(2, |byte| *byte == b'/');
        let address = parts.next()?;
        let (network, before) = match ipv4(address) {
            Some(octets) => (Ipv4Addr::from(octets).to_ipv6_mapped().to_bits(), IPV4_BITS),
            None => (Ipv6Addr::from(ipv6(address)?).to_bits(), 0),
        };
        let bits = match parts.next() {
            Some(digits) => u32::from(decimal(digits)?).checked_add(before)?,
            None => u128::BITS,
        };
        (bits <= u128::BITS).then_some(Self { network, bits })
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let differ = self.network ^ address.to_bits();
        // A shift by the whole width, of a prefix without bits, leaves nothing to differ.
        let alike = differ.checked_shr(u128::BITS.saturating_sub(self.bits)).unwrap_or(0) == 0;
        alike && (self.bits >= IPV4_BITS || address.to_ipv4_mapped().is_none())
    }
}

// core::net has parsers of addresses, but such as can panic, and these must not: they read what an environment says.

/// Four numbers up to 255, with dots between them.
fn ipv4(text: &[u8]) -> Option<[u8; 4]> {
    let mut octets = [0; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

/// RFC 4291, section 2.2: eight groups of hexadecimal digits, the last two of which may be an IPv4 address, and a
/// double colon in place of one or more that are zero.
fn ipv6(text: &[u8]) -> Option<[u16; 8]> {
    match text.windows(2).position(|pair| pair == b"::") {
        None => groups(text).and_then(|(groups, count)| (count == 8).then_some(groups)),
        Some(at) => {
            let (mut whole, front) = groups(text.get(..at)?)?;
            let (mut rest, back) = groups(text.get(at.checked_add(2)?..)?)?;
            let zeros = 8_usize.checked_sub(front)?.checked_sub(back)?;
            // What is behind the double colon goes to the end.
            rest.rotate_right(front.checked_add(zeros)? % 8);
            whole.iter_mut().zip(rest).skip(front).for_each(|(slot, group)| *slot = group);
            (zeros >= 1).then_some(whole)
        }
    }
}

/// Groups with colons between them, none in an empty text, and how many they are.
fn groups(text: &[u8]) -> Option<([u16; 8], usize)> {
    let mut groups = [0; 8];
    let mut count = 0_usize;
    if text.is_empty() {
        return Some((groups, 0));
    }
    let mut push = |group| {
        *groups.get_mut(count)? = group;
        count = count.checked_add(1)?;
        Some(())
    };
    let mut parts = text.split(|byte| *byte == b':').peekable();
    while let Some(part) = parts.next() {
        match ipv4(part) {
            Some([a, b, c, d]) if parts.peek().is_none() => {
                push(u16::from_be_bytes([a, b]))?;
                push(u16::from_be_bytes([c, d]))?;
            }
            _ => push(hexadecimal(part)?)?,
        }
    }
    Some((groups, count))
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
        let mut parts = text.splitn(2, |byte| *byte == b'-');
        let first = decimal(parts.next()?)?;
        let last = match parts.next() {
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
