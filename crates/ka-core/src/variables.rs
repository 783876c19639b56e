//! The KA_ variables: what an environment or /etc/ka.conf says to whoever starts a program under a policy.

use core::ffi::CStr;

use crate::config::Config;
use crate::cut::{cut, place, trim};
use crate::error::Error;
use crate::mode::Mode;
use crate::option::Timer;
use crate::text::{Reason, parse_typed};

/// The file that speaks for a whole machine. Whoever reads it says what is wrong with it, in these words for what would be
/// right.
pub const CONF: &CStr = c"/etc/ka.conf";

/// The file could have been written by another user, or this user cannot read it.
pub const CONF_OWNER: &str =
    "must be a regular file that belongs to root, readable by all, writable by nobody else";

/// It is longer than there is room for.
pub const CONF_LENGTH: &str = "must be shorter than 16384 bytes";

/// A line says nothing of ours.
pub const CONF_LINE: &str = "must be a KA_ variable and its value";

/// The log cannot be opened.
pub const LOG_WRITE: &str = "must be a file that this user can write";

/// How many bytes there is room for, one more than it may have.
pub const CONF_ROOM: usize = 16384;

/// A variable, by its place among the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// A policy's text.
    Policy,
    /// One part of it.
    Idle,
    /// One part of it.
    Intvl,
    /// One part of it.
    Cnt,
    /// One part of it.
    UserTimeout,
    /// force, floor or default.
    Mode,
    /// Policies by peer and port.
    Rules,
    /// Programs to leave alone.
    Skip,
    /// Where a line for each socket goes.
    Log,
    /// Whether mistakes are named.
    Quiet,
}

impl Variable {
    const COUNT: usize = Self::Quiet as usize + 1;

    /// The names of all variables.
    pub fn names() -> impl Iterator<Item = &'static [u8]> {
        Self::NAMES.split(|byte| *byte == b',')
    }

    /// One text and not an array of them, which the loader would have to relocate.
    const NAMES: &'static [u8] =
        b"KA_POLICY,KA_IDLE,KA_INTVL,KA_CNT,KA_USER_TIMEOUT,KA_MODE,KA_RULES,KA_SKIP,KA_LOG,KA_QUIET";

    /// Those that say what to do, in the order in which they are taken: a policy comes before its parts.
    pub const IN_ORDER: [Self; 9] = [
        Self::Policy,
        Self::Idle,
        Self::Intvl,
        Self::Cnt,
        Self::UserTimeout,
        Self::Mode,
        Self::Rules,
        Self::Skip,
        Self::Log,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static [u8] {
        let mut names = Self::NAMES;
        for _ in 0..self as usize {
            names = cut(names, b',').1.unwrap_or_default();
        }
        cut(names, b',').0
    }
}

/// The values of the variables, from one source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Values<'a>([Option<&'a [u8]>; Variable::COUNT]);

impl<'a> Values<'a> {
    /// The value of a variable, if the source has it.
    #[must_use]
    #[inline(never)]
    pub fn get(&self, variable: Variable) -> Option<&'a [u8]> {
        self.0.get(variable as usize).copied().flatten()
    }

    /// Keeps `NAME=value` if the name is one of ours: whether it was.
    #[inline(never)]
    pub fn keep(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        let slot = place(Variable::NAMES, name).and_then(|n| self.0.get_mut(n));
        // If the environment has a name twice, getenv(3) finds the first.
        slot.map(|slot| slot.get_or_insert(value)).is_some()
    }

    /// Takes the text of /etc/ka.conf: `NAME=value` a line, with or without quotes around the value; # begins a
    /// comment. Lines that say nothing of ours are handed to `unknown`.
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

    /// Whether mistakes are not to be named.
    #[inline(never)]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.get(Variable::Quiet) == Some(b"1")
    }
}

/// What the variables have said so far.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    /// The policy where no rule says otherwise. Off: nothing is to be done at all.
    pub policy: Config,
    /// How much the program may say.
    pub mode: Mode,
    /// The text of the rules, as it came.
    pub rules: &'a [u8],
    /// The names of programs to leave alone, as they came.
    pub skip: &'a [u8],
    /// The path of the log; none where empty.
    pub log: &'a [u8],
}

impl Default for Orders<'_> {
    fn default() -> Self {
        Self { policy: Config::STANDARD, mode: Mode::Force, rules: b"", skip: b"", log: b"" }
    }
}

impl<'a> Orders<'a> {
    /// Takes the values of all sources. `sources` begins with the strongest source, which overrides the others.
    /// `KA_POLICY` names a whole policy, so it also overrides the parts that weaker sources name. A wrong value is
    /// ignored, and passed to `wrong` with a description of a valid one.
    #[inline]
    pub fn take_all(
        &mut self,
        sources: &[Values<'a>],
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

    /// Takes a value.
    ///
    /// # Errors
    /// What would be right.
    #[inline(never)]
    pub fn take(&mut self, variable: Variable, value: &'a [u8]) -> Result<(), &'static str> {
        match variable {
            Variable::Policy => {
                let config = parse_typed(value).map_err(|error| error.reason.message())?;
                if config.enabled().is_none() {
                    return Err("must turn keepalive on, or be off");
                }
                self.policy = config.on_top_of(&Config::STANDARD).map_err(too_long)?;
            }
            Variable::Idle => self.timer(Timer::Idle, value)?,
            Variable::Intvl => self.timer(Timer::Intvl, value)?,
            Variable::Cnt => self.timer(Timer::Cnt, value)?,
            // Leaves the user timeout alone, whatever a weaker source names.
            Variable::UserTimeout if value == b"keep" => {
                self.policy = self.policy.without(Timer::UserTimeout);
            }
            Variable::UserTimeout => self.timer(Timer::UserTimeout, value)?,
            Variable::Mode => {
                self.mode = Mode::named(value).ok_or("must be force, floor or default")?;
            }
            Variable::Log if value.first() != Some(&b'/') || value.len() > 1023 => {
                return Err("must be a path from / on, of at most 1023 bytes");
            }
            Variable::Log => self.log = value,
            Variable::Rules => self.rules = value,
            Variable::Skip => self.skip = value,
            Variable::Quiet => {}
        }
        Ok(())
    }

    fn timer(&mut self, timer: Timer, value: &[u8]) -> Result<(), &'static str> {
        self.policy.take_text(timer, trim(value), true).map_err(Reason::message)
    }
}

/// All that is left to be wrong with a policy whose values are each in range.
fn too_long(_: Error) -> &'static str {
    Reason::AutoTooLong.message()
}

/// Whether a program of one of these names is to be left alone: patterns with commas between them.
#[must_use]
pub fn skips(patterns: &[u8], names: [&[u8]; 2]) -> bool {
    let mut rest = Some(patterns);
    while let Some(patterns) = rest {
        let (pattern, behind) = cut(patterns, b',');
        rest = behind;
        let pattern = trim(pattern);
        if !pattern.is_empty() && names.iter().any(|name| crate::glob::glob(pattern, name)) {
            return true;
        }
    }
    false
}
