//! The rule list of `KA_RULES`: its syntax, its limit, and the order of its rules.

use ka_core::bytes::{cut, trim};
use ka_core::{Config, Timer};

use crate::rule::{Conditions, Endpoint, Rule, RuleError};

/// Memory for the rules of a list.
pub type RuleBuffer = [Rule; MAX];

/// A list of rules. The first rule that matches a connection decides.
///
/// The list does not own its rules, because the shim must not allocate: the caller of [`Rules::parse`] has room for
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules<'r> {
    rules: &'r [Rule],
    /// The conditions of all rules together.
    conditions: Conditions,
}

impl<'r> Rules<'r> {
    /// No rules.
    pub const NONE: Self = Self { rules: &[], conditions: Conditions::NONE };

    /// The largest number of rules in a list.
    pub const MAX: usize = MAX;

    /// Reads a list: rules with semicolons between them, as [`Rule::parse`] reads them. Empty rules are skipped.
    ///
    /// `base` has the values that the rules do not name. `retries` returns net.ipv4.tcp_retries2, from which an
    /// automatic `TCP_RTO_MAX_MS` is computed ([`Config::resolved`]).
    ///
    /// A wrong rule is left out, and passed to `wrong` with its text. The same holds for each rule after the first
    /// [`Rules::MAX`].
    ///
    /// ```
    /// use ka_core::Config;
    /// use ka_policy::{Rule, Rules};
    ///
    /// let base = Config::new(60, 10, 6)?;
    /// let mut room = [Rule::SKIP; Rules::MAX];
    /// let rules = Rules::parse(b"rport=22 skip; lport=443 idle=30", &base, || 15, &mut room, |rule, error| {
    ///     panic!("{}: {error}", rule.escape_ascii())
    /// });
    /// assert_eq!(rules.iter().count(), 2);
    /// # Ok::<(), ka_core::Error>(())
    /// ```
    pub fn parse<'t>(
        text: &'t [u8],
        base: &Config,
        retries: impl Fn() -> u8,
        room: &'r mut RuleBuffer,
        mut wrong: impl FnMut(&'t [u8], RuleError<'t>),
    ) -> Self {
        let (mut rest, mut len, mut conditions) = (Some(text), 0_usize, Conditions::NONE);
        while let Some(rules) = rest {
            let (rule, behind) = cut(rules, b';');
            rest = behind;
            let rule = trim(rule);
            if rule.is_empty() {
                continue;
            }
            let parsed = Rule::parse(rule, base);
            let kept = parsed.and_then(|parsed| match room.get_mut(len) {
                Some(slot) => {
                    *slot = parsed.resolved(&retries);
                    conditions = conditions.or(parsed.conditions());
                    Ok(())
                }
                None => Err(RuleError { word: rule, message: TOO_MANY }),
            });
            match kept {
                Ok(()) => len = len.saturating_add(1),
                Err(error) => wrong(rule, error),
            }
        }
        Self { rules: room.get(..len).unwrap_or_default(), conditions }
    }

    /// Returns the first rule that matches a connection.
    #[must_use]
    pub fn first_match(self, peer: Option<Endpoint>, local_port: u16) -> Option<&'r Rule> {
        self.iter().find(|rule| rule.matches(peer, local_port))
    }

    /// Returns whether there are no rules.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.rules.is_empty()
    }

    /// Returns the rules, in their order.
    pub fn iter(self) -> core::slice::Iter<'r, Rule> {
        self.rules.iter()
    }

    /// Returns whether a rule looks at the peer.
    #[must_use]
    #[inline]
    pub const fn look_at_peer(self) -> bool {
        self.conditions.looks_at_peer()
    }

    /// Returns whether a rule looks at the local port.
    #[must_use]
    #[inline]
    pub const fn look_at_local_port(self) -> bool {
        self.conditions.looks_at_local_port()
    }
}

/// Returns the policy with a number in place of an automatic `TCP_RTO_MAX_MS`. `retries` reads a file, so it is called
/// only for such a policy.
pub(crate) fn resolved(config: Config, retries: &impl Fn() -> u8) -> Config {
    if config.is_auto(Timer::RtoMax) { config.resolved(retries()) } else { config }
}

const MAX: usize = 64;
const TOO_MANY: &str = "at most 64 rules";
const _: () = assert!(MAX == 64, "the message names the limit");
