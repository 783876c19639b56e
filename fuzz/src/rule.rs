//! The reference for ka-policy's rules: KA_RULES and the addresses in them, written from ka-preload(7) with the parsers
//! of the standard library.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::policy::{KEEP, Policy, number};

/// The action of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Skip,
    Apply(Policy),
}

/// An address, and the length of its prefix in bits.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// A rule.
#[derive(Debug)]
pub struct Rule {
    pub peer: Option<Network>,
    pub rport: Option<RangeInclusive<u16>>,
    pub lport: Option<RangeInclusive<u16>>,
    pub action: Action,
}

impl Rule {
    /// Reads a rule. Returns `None` if it is invalid.
    pub fn parse(text: &[u8], base: &Policy) -> Option<Self> {
        let words = words(std::str::from_utf8(text).ok()?);
        let (action, conditions) = words.split_last()?;
        let (mut peer, mut rport, mut lport) = (None, None, None);
        for condition in conditions {
            let is_first = match condition.split_once('=')? {
                ("peer", network) => peer.replace(Network::parse(network)?).is_none(),
                ("rport", ports) => rport.replace(parse_ports(ports)?).is_none(),
                ("lport", ports) => lport.replace(parse_ports(ports)?).is_none(),
                _ => return None,
            };
            if !is_first {
                return None;
            }
        }
        let action = if *action == "skip" {
            Action::Skip
        } else {
            let policy =
                Policy::parse_typed(action.as_bytes()).ok().filter(|policy| policy.enabled != KEEP)?.on(base);
            if !policy.is_sound() {
                return None;
            }
            if policy.enabled == 1 { Action::Apply(policy) } else { Action::Skip }
        };
        Some(Self { peer, rport, lport, action })
    }

    pub fn looks_at_peer(&self) -> bool {
        self.peer.is_some() || self.rport.is_some()
    }

    /// Returns whether the rule matches a connection with this peer, if it has one yet, and this local port, if not 0.
    pub fn matches(&self, peer: Option<(Ipv6Addr, u16)>, lport: u16) -> bool {
        let of_peer = match peer {
            Some((address, port)) => {
                self.peer.is_none_or(|network| network.contains(address))
                    && self.rport.as_ref().is_none_or(|ports| ports.contains(&port))
            }
            None => !self.looks_at_peer(),
        };
        of_peer && self.lport.as_ref().is_none_or(|ports| ports.contains(&lport))
    }
}

/// Splits a rule into words. A comma joins the words beside it, and so does a colon after a number.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for part in text.split(|letter: char| letter.is_ascii_whitespace()).filter(|part| !part.is_empty()) {
        match words.last_mut() {
            Some(word) => {
                let is_number = word.starts_with(|letter: char| letter.is_ascii_digit());
                let joins = |letter: char| letter == ',' || letter == ':' && is_number;
                if word.ends_with(joins) || part.starts_with(joins) {
                    word.push_str(part);
                } else {
                    words.push(part.to_owned());
                }
            }
            None => words.push(part.to_owned()),
        }
    }
    words
}

impl Network {
    /// `ADDRESS[/BITS]`
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => number(bits, 0, most).ok()??,
            None => most,
        };
        Some(Self { address, bits: bits.unsigned_abs() })
    }

    /// Returns whether the network contains an address. A network contains IPv4 addresses if its prefix is IPv4, or if
    /// it covers the common prefix of all mapped IPv4 addresses.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        match (self.address, address.to_ipv4_mapped()) {
            (IpAddr::V4(network), Some(address)) => (0..self.bits)
                .all(|n| bit(network.to_bits().into(), 31 - n) == bit(address.to_bits().into(), 31 - n)),
            (IpAddr::V4(_), None) => false,
            (IpAddr::V6(_), Some(_)) if self.bits < 96 => false,
            (IpAddr::V6(network), _) => {
                (0..self.bits).all(|n| bit(network.to_bits(), 127 - n) == bit(address.to_bits(), 127 - n))
            }
        }
    }
}

fn bit(bits: u128, n: u32) -> bool {
    bits & (1_u128 << n) != 0
}

/// `N[-M]`
fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |digits| u16::try_from(number(digits, 1, 65535).ok()??).ok();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

/// Returns whether a name matches a pattern with `*` and `?`.
pub fn glob(pattern: &[u8], name: &[u8]) -> bool {
    // For each beginning of the name: whether it matches the part of the pattern that was read.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for wanted in pattern {
        let before = fits.clone();
        for n in 0..=name.len() {
            let is_next = n > 0 && before[n - 1] && (*wanted == b'?' || name[n - 1] == *wanted);
            fits[n] = if *wanted == b'*' { before[n] || (n > 0 && fits[n - 1]) } else { is_next };
        }
    }
    fits[name.len()]
}
