//! Rules: which policy for which connection, by its peer and its ports.

use core::error;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::text::{ParseError, Reason, parse};

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
    peer: Option<Cidr>,
    rport: Option<Ports>,
    lport: Option<Ports>,
    action: Action,
}

impl Rule {
    /// Reads a rule: conditions and an action, with blanks between them.
    ///
    /// The conditions, each at most once, all of which must hold: `peer=ADDRESS[/BITS]`, `rport=N[-M]`,
    /// `lport=N[-M]`. The action, last: `skip` (or `off`), or a policy's text. What the text does not name
    /// comes from the base policy.
    ///
    /// # Errors
    /// The first word that is wrong.
    pub fn parse<'a>(text: &'a [u8], base: &Config) -> Result<Self, RuleError<'a>> {
        let (mut peer, mut rport, mut lport, mut action) = (None, None, None, None);
        for word in text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            let error = |reason| RuleError { word, reason };
            if action.is_some() {
                return Err(error(RuleReason::AfterAction));
            }
            if let Some(text) = word.strip_prefix(b"peer=") {
                once(&mut peer, Cidr::parse(text).ok_or(RuleReason::NotAnAddress)).map_err(error)?;
            } else if let Some(text) = word.strip_prefix(b"rport=") {
                once(&mut rport, Ports::parse(text).ok_or(RuleReason::NotPorts)).map_err(error)?;
            } else if let Some(text) = word.strip_prefix(b"lport=") {
                once(&mut lport, Ports::parse(text).ok_or(RuleReason::NotPorts)).map_err(error)?;
            } else {
                action = Some(Action::parse(word, base).map_err(error)?);
            }
        }
        let action = action.ok_or(RuleError { word: text, reason: RuleReason::NoAction })?;
        Ok(Self { peer, rport, lport, action })
    }

    /// What to do where it matches.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.action
    }

    /// Whether it looks at the other end, which a listener does not know.
    #[must_use]
    pub const fn looks_at_peer(&self) -> bool {
        self.peer.is_some() || self.rport.is_some()
    }

    /// Whether all its conditions hold. A peer that is not known, and a local port of 0, meet none.
    #[must_use]
    pub fn matches(&self, peer: Option<SocketAddr>, lport: u16) -> bool {
        self.peer.is_none_or(|cidr| peer.is_some_and(|peer| cidr.contains(peer.ip())))
            && self.rport.is_none_or(|ports| peer.is_some_and(|peer| ports.contain(peer.port())))
            && self.lport.is_none_or(|ports| ports.contain(lport))
    }
}

impl Action {
    fn parse<'a>(word: &'a [u8], base: &Config) -> Result<Self, RuleReason<'a>> {
        if word == b"skip" {
            return Ok(Self::Skip);
        }
        let config = parse(word).map_err(RuleReason::Policy)?;
        match config.enabled() {
            Some(true) => {}
            Some(false) => return Ok(Self::Skip),
            None => return Err(RuleReason::Keep),
        }
        let whole = config
            .on_top_of(base)
            .map_err(|_| RuleReason::Policy(ParseError { item: word, reason: Reason::AutoTooLong }))?;
        Ok(Self::Apply(whole))
    }
}

fn once<'a, T>(slot: &mut Option<T>, value: Result<T, RuleReason<'a>>) -> Result<(), RuleReason<'a>> {
    if slot.is_some() {
        return Err(RuleReason::Twice);
    }
    *slot = Some(value?);
    Ok(())
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleError<'a> {
    /// The word that is wrong, or the whole rule.
    pub word: &'a [u8],
    /// What is wrong with it.
    pub reason: RuleReason<'a>,
}

/// What is wrong with a word of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuleReason<'a> {
    /// Not an IPv4 or IPv6 address, alone or with the bits of its prefix.
    NotAnAddress,
    /// Not a port or a range of ports.
    NotPorts,
    /// A condition that was there already.
    Twice,
    /// A word behind the action.
    AfterAction,
    /// No action.
    NoAction,
    /// A policy that neither turns keepalive on nor leaves the connection alone.
    Keep,
    /// An action that is no policy.
    Policy(ParseError<'a>),
}

impl RuleReason<'_> {
    /// What would be right.
    #[must_use]
    pub const fn message(&self) -> &'static str {
        match self {
            Self::NotAnAddress => "peer must be an address, or one with /bits, as 10.0.0.0/8 or ::1",
            Self::NotPorts => "must be a port or a range, 1..65535, as 22 or 8000-8999",
            Self::Twice => "says again what was said before",
            Self::AfterAction => "the action must be last",
            Self::NoAction => "must end with skip or a policy, as idle=60,intvl=10,cnt=6",
            Self::Keep => "keep is no action: skip leaves a connection alone",
            Self::Policy(error) => error.reason.message(),
        }
    }
}

impl fmt::Display for RuleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}", self.word.escape_ascii(), self.reason.message())
    }
}

impl error::Error for RuleError<'_> {}

/// Addresses that begin with the same bits. An IPv4 address within IPv6 (::ffff:a.b.c.d) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u32,
}

impl Cidr {
    /// Reads `ADDRESS` or `ADDRESS/BITS`. Bits of the address beyond the prefix do not count.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(2, |byte| *byte == b'/');
        let address: IpAddr = core::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match parts.next() {
            Some(digits) => u32::from(decimal(digits)?),
            None => width,
        };
        if bits > width {
            return None;
        }
        match (address, address.to_canonical()) {
            // ::ffff:10.0.0.0/104 is 10.0.0.0/8; a shorter prefix is of IPv6 and has no IPv4 address in it.
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) if bits >= 96 => {
                Some(Self { address: canonical, bits: bits.saturating_sub(96) })
            }
            _ => Some(Self { address, bits }),
        }
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                // A shift by the whole width, of a prefix without bits, leaves nothing to differ.
                let differ = ours.to_bits() ^ theirs.to_bits();
                differ.checked_shr(32_u32.saturating_sub(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differ = ours.to_bits() ^ theirs.to_bits();
                differ.checked_shr(128_u32.saturating_sub(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A port, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
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
