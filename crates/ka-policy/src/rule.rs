//! A rule: the policy for the connections with a peer or a port.

use core::error;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use ka_core::bytes::{cut, place, trim};
use ka_core::{Config, Reason, parse_typed};

use crate::rules::resolved;

/// The action of a rule on the connections that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave the connection alone.
    Skip,
    /// Give it this policy. Values that the rule does not name are those of the base policy.
    Apply(Config),
}

/// Conditions on the peer and the local port of a connection, and an action.
///
/// A rule consists of integers only, so zeroed memory is a valid rule. The memory of a list of rules needs no
/// initialization.
///
/// ```
/// use ka_core::Config;
/// use ka_policy::{Action, Rule};
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
    conditions: Conditions,
    peer: Cidr,
    rport: Ports,
    lport: Ports,
    /// The policy. Keepalive is off in it if the action is [`Action::Skip`].
    config: Config,
}

/// The conditions that a rule has, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions(u8);

impl Conditions {
    pub(crate) const NONE: Self = Self(0);
    const PEER: Self = Self(1);
    const RPORT: Self = Self(2);
    const LPORT: Self = Self(4);

    pub(crate) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    pub(crate) const fn looks_at_peer(self) -> bool {
        self.has(Self::PEER.or(Self::RPORT))
    }

    pub(crate) const fn looks_at_local_port(self) -> bool {
        self.has(Self::LPORT)
    }
}

impl Rule {
    /// A rule that leaves every connection alone.
    pub const SKIP: Self = Self {
        conditions: Conditions::NONE,
        peer: Cidr { network: 0, bits: 0 },
        rport: Ports::NONE,
        lport: Ports::NONE,
        config: OFF,
    };

    /// Reads a rule: conditions and an action, with blanks between them.
    ///
    /// The conditions are `peer=ADDRESS[/BITS]`, `rport=N[-M]` and `lport=N[-M]`. Each may occur once, and all of
    /// them must hold. The action is the last word: `skip` (or `off`), or the text of a policy as [`parse_typed`]
    /// reads it. Values that the text does not name come from the base policy.
    ///
    /// # Errors
    /// The first wrong word, and a description of a valid one.
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

    /// Takes a word. Returns whether it is the action.
    #[inline(never)]
    fn take(&mut self, word: &[u8], base: &Config) -> Result<bool, &'static str> {
        let (name, value) = cut(word, b'=');
        let is_name = value.is_none();
        let value = value.unwrap_or_default();
        let condition = match place(b"peer,rport,lport,skip", name) {
            Some(0) => {
                self.peer = Cidr::parse(value).ok_or(NOT_AN_ADDRESS)?;
                Conditions::PEER
            }
            Some(1) => {
                self.rport = Ports::parse(value).ok_or(NOT_PORTS)?;
                Conditions::RPORT
            }
            Some(2) => {
                self.lport = Ports::parse(value).ok_or(NOT_PORTS)?;
                Conditions::LPORT
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
        if self.conditions.has(condition) {
            return Err(Reason::Twice.message());
        }
        self.conditions = self.conditions.or(condition);
        Ok(false)
    }

    /// Returns the rule with the value of an automatic `TCP_RTO_MAX_MS` in its place.
    pub(crate) fn resolved(mut self, retries: &impl Fn() -> u8) -> Self {
        self.config = resolved(self.config, retries);
        self
    }

    /// Returns the action.
    #[must_use]
    pub fn action(&self) -> Action {
        if self.config.enabled() == Some(true) { Action::Apply(self.config) } else { Action::Skip }
    }

    pub(crate) const fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// Returns whether a condition looks at the peer. A listener has no peer, so such a rule never matches it.
    #[must_use]
    pub const fn looks_at_peer(&self) -> bool {
        self.conditions.looks_at_peer()
    }

    /// Returns whether a condition looks at the local port.
    #[must_use]
    pub const fn looks_at_local_port(&self) -> bool {
        self.conditions.looks_at_local_port()
    }

    /// Returns whether all conditions hold. An unknown peer, and a local port of 0, meet no condition.
    #[must_use]
    pub fn matches(&self, peer: Option<Endpoint>, lport: u16) -> bool {
        let holds = |condition, met: bool| !self.conditions.has(condition) || met;
        let peer_fits = match peer {
            Some(peer) => {
                holds(Conditions::PEER, self.peer.contains(peer.address))
                    && holds(Conditions::RPORT, self.rport.contain(peer.port))
            }
            None => !self.looks_at_peer(),
        };
        peer_fits && holds(Conditions::LPORT, self.lport.contain(lport))
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

/// The reason why a text is not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleError<'a> {
    /// The wrong word, or the whole rule.
    pub word: &'a [u8],
    /// A description of a valid one.
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

/// One end of a connection. An IPv4 address has its IPv6 form, ::ffff:a.b.c.d, as on a dual-stack socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The bits of the address.
    pub address: u128,
    /// The port.
    pub port: u16,
}

/// The prefix of all IPv4 addresses: ::ffff:0:0/96.
const IPV4: u128 = 0xffff_0000_0000;
const IPV4_BITS: u32 = 96;

impl Endpoint {
    /// Returns the endpoint with this IPv4 address (network byte order) and port.
    #[must_use]
    pub const fn v4(octets: [u8; 4], port: u16) -> Self {
        Self { address: IPV4 | u32::from_be_bytes(octets) as u128, port }
    }

    /// Returns the endpoint with this IPv6 address (network byte order) and port.
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

/// The addresses with a common prefix. A prefix shorter than ::ffff:0:0/96 contains no IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u128,
    bits: u32,
}

impl Cidr {
    /// Reads `ADDRESS` or `ADDRESS/BITS`. Bits of the address beyond the prefix are ignored.
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

    /// Returns whether the address with these bits has the prefix.
    #[must_use]
    pub fn contains(&self, address: u128) -> bool {
        let differ = self.network ^ address;
        // A prefix of 0 bits would need a shift by the whole width, which `checked_shr` rejects. All addresses have
        // this prefix.
        let alike = differ.checked_shr(u128::BITS.saturating_sub(self.bits)).unwrap_or(0) == 0;
        alike && (self.bits >= IPV4_BITS || address >> 32 != IPV4 >> 32)
    }
}

// The address parsers of core::net can panic. The parsers here must not panic, because they read the environment of a
// program.

/// Reads an IPv4 address: four numbers up to 255, with dots between them.
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

/// Reads an IPv6 address (RFC 4291, section 2.2): eight groups of hexadecimal digits. An IPv4 address may replace the
/// last two groups, and a double colon may replace one or more groups of zeros.
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

/// Reads groups with colons between them, and returns their bits and their number. An empty text has no groups. If
/// `is_end` is true, the groups are the end of the address, and the last of them may be an IPv4 address.
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

/// Reads one to four hexadecimal digits.
fn hexadecimal(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 4 {
        return None;
    }
    digits.iter().try_fold(0_u16, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        value.checked_mul(16)?.checked_add(u16::try_from(digit).ok()?)
    })
}

/// A range of ports, which may be a single port.
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

/// Reads a decimal number up to 65535 without leading zeros.
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
