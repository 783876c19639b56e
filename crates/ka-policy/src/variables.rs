//! The KA_ variables: the settings of an environment or of /etc/ka.conf.

use core::ffi::CStr;

use ka_core::bytes::{cut, nth, place, trim};
use ka_core::{Config, Error, Reason, Timer, parse_typed};

use crate::glob::glob;
use crate::mode::Mode;
use crate::policy::Policy;
use crate::rule::RuleError;
use crate::rules::{RuleBuffer, Rules, resolved};

/// The file with the settings of a whole machine.
pub const CONF: &CStr = c"/etc/ka.conf";

/// The size in bytes of the buffer for the file. The file must be shorter.
pub const CONF_ROOM: usize = 16384;

/// The message for a file that another user could have written, or that this user cannot read.
pub const CONF_OWNER: &str =
    "must be a regular file that belongs to root, readable by all, writable by nobody else";

/// The message for a file of [`CONF_ROOM`] bytes or more.
pub const CONF_LENGTH: &str = "must be shorter than 16384 bytes";
const _: () = assert!(CONF_ROOM == 16384, "the message names the limit");

/// The message for a line of the file that sets no variable.
pub const CONF_LINE: &str = "must be a KA_ variable and its value";

/// The message for a log that cannot be opened.
pub const LOG_WRITE: &str = "must be a file that this user can write";

/// The message for an `rto_max` on a kernel that lacks `TCP_RTO_MAX_MS`.
pub const RTO_MAX_KERNEL: &str = "needs Linux 6.15 or later";

/// A KA_ variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// A whole policy.
    Policy,
    /// The idle time of the policy.
    Idle,
    /// The interval of the policy.
    Intvl,
    /// The count of the policy.
    Cnt,
    /// The user timeout of the policy.
    UserTimeout,
    /// The longest time between two retransmissions of the policy.
    RtoMax,
    /// The name of a [`Mode`].
    Mode,
    /// Policies by peer and port: [`Rules`].
    Rules,
    /// Patterns of the names of programs that are left alone.
    Skip,
    /// The path of the log.
    Log,
    /// `1` if mistakes are not to be reported.
    Quiet,
}

impl Variable {
    const COUNT: usize = Self::Quiet as usize + 1;

    /// Returns the names of all variables.
    pub fn names() -> impl Iterator<Item = &'static [u8]> {
        Self::NAMES.split(|byte| *byte == b',')
    }

    /// The names as one string, because the loader would have to relocate an array of strings.
    const NAMES: &'static [u8] =
        b"KA_POLICY,KA_IDLE,KA_INTVL,KA_CNT,KA_USER_TIMEOUT,KA_RTO_MAX,KA_MODE,KA_RULES,KA_SKIP,KA_LOG,KA_QUIET";

    /// The variables that change a policy, in the order in which they apply: a whole policy before its parts.
    pub const IN_ORDER: [Self; 10] = [
        Self::Policy,
        Self::Idle,
        Self::Intvl,
        Self::Cnt,
        Self::UserTimeout,
        Self::RtoMax,
        Self::Mode,
        Self::Rules,
        Self::Skip,
        Self::Log,
    ];

    /// Returns the name, as in an environment.
    #[must_use]
    pub fn name(self) -> &'static [u8] {
        nth(Self::NAMES, self as usize)
    }
}

/// The values that one source has for the variables: an environment, or /etc/ka.conf.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a>([Option<&'a [u8]>; Variable::COUNT]);

impl<'a> Source<'a> {
    /// Returns the value of a variable.
    #[must_use]
    #[inline(never)]
    pub fn get(&self, variable: Variable) -> Option<&'a [u8]> {
        self.0.get(variable as usize).copied().flatten()
    }

    /// Stores a value, if the name is that of a variable. Returns whether it is.
    #[inline(never)]
    pub fn keep(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        let slot = place(Variable::NAMES, name).and_then(|n| self.0.get_mut(n));
        // If the environment has a name twice, getenv(3) finds the first.
        slot.map(|slot| slot.get_or_insert(value)).is_some()
    }

    /// Stores the values of a text in the syntax of /etc/ka.conf: one `NAME=value` on each line, with optional quotes
    /// around the value. `#` begins a comment. Lines that set no variable are passed to `unknown`.
    pub fn keep_lines(&mut self, text: &'a [u8], mut unknown: impl FnMut(&'a [u8])) {
        let mut rest = Some(text);
        while let Some(lines) = rest {
            let (line, behind) = cut(lines, b'\n');
            rest = behind;
            let line = trim(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let (name, value) = cut(line, b'=');
            let known = value.is_some_and(|value| {
                let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
                self.keep(name, quoted.unwrap_or(value))
            });
            if !known {
                unknown(line);
            }
        }
    }

    /// Returns whether mistakes are not to be reported.
    #[inline(never)]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.get(Variable::Quiet) == Some(b"1")
    }
}

/// The settings that all sources together name.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    /// The values for sockets that no rule matches. If keepalive is off in them, the program is left alone.
    pub config: Config,
    /// The right of the program to override the values.
    pub mode: Mode,
    /// The text of the rules. [`Variables::policy`] reads it.
    pub rules: &'a [u8],
    /// Patterns of the names of programs that are left alone. [`skips`] reads them.
    pub skip: &'a [u8],
    /// The path of the log. Empty if there is none.
    pub log: &'a [u8],
}

impl Default for Variables<'_> {
    /// Returns the settings without any source: the policy [`Config::STANDARD`] in [`Mode::Force`].
    fn default() -> Self {
        Self { config: Config::STANDARD, mode: Mode::Force, rules: b"", skip: b"", log: b"" }
    }
}

impl<'a> Variables<'a> {
    /// Returns the policy. `room` is for its rules. `retries` returns net.ipv4.tcp_retries2, from which an automatic
    /// `TCP_RTO_MAX_MS` is computed ([`Config::resolved`]). Wrong rules are left out, and passed to `wrong` with their
    /// text.
    #[inline]
    pub fn policy<'r>(
        &self,
        room: &'r mut RuleBuffer,
        retries: impl Fn() -> u8,
        wrong: impl FnMut(&'a [u8], RuleError<'a>),
    ) -> Policy<'r> {
        let config = resolved(self.config, &retries);
        let rules = Rules::parse(self.rules, &self.config, retries, room, wrong);
        Policy { config, mode: self.mode, rules }
    }

    /// Takes the values of all sources. `sources` begins with the strongest source, which overrides the others.
    /// `KA_POLICY` names a whole policy, so it also overrides the parts that weaker sources name. A wrong value is
    /// ignored, and passed to `wrong` with a description of a valid one.
    #[inline]
    pub fn take_all(
        &mut self,
        sources: &[Source<'a>],
        mut wrong: impl FnMut(Variable, &'a [u8], &'static str),
    ) {
        for values in sources.iter().rev() {
            for variable in Variable::IN_ORDER {
                if let Some(value) = values.get(variable)
                    && let Err(right) = self.take(variable, value)
                {
                    wrong(variable, value, right);
                }
            }
        }
    }

    /// Takes the value of a variable.
    ///
    /// # Errors
    /// A description of a valid value. Nothing is changed.
    #[inline(never)]
    pub fn take(&mut self, variable: Variable, value: &'a [u8]) -> Result<(), &'static str> {
        match variable {
            Variable::Policy => {
                let config = parse_typed(value).map_err(|error| error.reason.message())?;
                if config.enabled().is_none() {
                    return Err("must turn keepalive on, or be off");
                }
                self.config = config.on_top_of(&Config::STANDARD).map_err(too_long)?;
            }
            Variable::Idle => self.timer(Timer::Idle, value)?,
            Variable::Intvl => self.timer(Timer::Intvl, value)?,
            Variable::Cnt => self.timer(Timer::Cnt, value)?,
            Variable::UserTimeout => self.timer_or_keep(Timer::UserTimeout, value)?,
            Variable::RtoMax => self.timer_or_keep(Timer::RtoMax, value)?,
            Variable::Mode => {
                self.mode = Mode::named(value).ok_or("must be force, floor or default")?;
            }
            Variable::Log if value.first() != Some(&b'/') || value.len() > 1023 => {
                return Err("must be an absolute path of at most 1023 bytes");
            }
            Variable::Log => self.log = value,
            Variable::Rules => self.rules = value,
            Variable::Skip => self.skip = value,
            Variable::Quiet => {}
        }
        Ok(())
    }

    /// Takes the value of a timer. `keep` leaves that of the sockets alone, even if a weaker source names one.
    fn timer_or_keep(&mut self, timer: Timer, value: &[u8]) -> Result<(), &'static str> {
        if value == b"keep" {
            self.config = self.config.without(timer);
            return Ok(());
        }
        self.timer(timer, value)
    }

    fn timer(&mut self, timer: Timer, value: &[u8]) -> Result<(), &'static str> {
        self.config.take_text(timer, trim(value), true).map_err(Reason::message)
    }
}

/// The message for a policy whose values are each in range: only an automatic user timeout can be wrong.
fn too_long(_: Error) -> &'static str {
    Reason::AutoTooLong.message()
}

/// Returns whether a comma-separated list of patterns matches one of the names of a program.
#[must_use]
pub fn skips(patterns: &[u8], names: [&[u8]; 2]) -> bool {
    let mut rest = Some(patterns);
    while let Some(patterns) = rest {
        let (pattern, behind) = cut(patterns, b',');
        rest = behind;
        let pattern = trim(pattern);
        if !pattern.is_empty() && names.iter().any(|name| glob(pattern, name)) {
            return true;
        }
    }
    false
}
