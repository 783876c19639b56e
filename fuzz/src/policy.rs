//! The reference for policies and their text form, written from the documentation in ka.h. The targets compare
//! `ka_parse`, `ka_format`, the plans and the variables with it. It shares no code with them.

pub const KEEP: i32 = -1;
pub const AUTO: i32 = -2;
/// No user timeout, as C writes it.
pub const NONE: i32 = -3;

const LONGEST_S: i32 = 32767;
const MOST_PROBES: i32 = 127;
const RTO_MAX: std::ops::RangeInclusive<i32> = 1000..=120_000;

/// The meaning of a `struct ka_config`. `enabled` is 0, 1 or `KEEP`. A `user_timeout` of 0 means that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enabled: i32,
    pub idle: i32,
    pub intvl: i32,
    pub cnt: i32,
    pub user_timeout: i32,
    pub rto_max: i32,
}

/// The kind of error in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// EINVAL
    Form,
    /// ERANGE
    Range,
}

impl Policy {
    pub const KEEP: Self =
        Self { enabled: KEEP, idle: KEEP, intvl: KEEP, cnt: KEEP, user_timeout: KEEP, rto_max: KEEP };

    pub const fn from_words(words: [i32; 6]) -> Self {
        let [enabled, idle, intvl, cnt, user_timeout, rto_max] = words;
        Self { enabled, idle, intvl, cnt, user_timeout, rto_max }
    }

    pub const fn words(&self) -> [i32; 6] {
        [self.enabled, self.idle, self.intvl, self.cnt, self.user_timeout, self.rto_max]
    }

    /// Reads the words of a `struct ka_config` after its size. Invalid words stay as they are.
    pub fn from_c(words: [i32; 6]) -> Self {
        let [keepalive, idle, intvl, cnt, user_timeout, rto_max] =
            words.map(|word| if word == 0 { KEEP } else { word });
        let enabled = if keepalive == 2 { 0 } else { keepalive };
        let user_timeout = if user_timeout == NONE { 0 } else { user_timeout };
        Self { enabled, idle, intvl, cnt, user_timeout, rto_max }
    }

    /// Returns the words of a `struct ka_config` after its size.
    pub fn to_c(&self) -> [i32; 6] {
        let or_keep = |value| if value == 0 { KEEP } else { value };
        [
            if self.enabled == 0 { 2 } else { self.enabled },
            or_keep(self.idle),
            or_keep(self.intvl),
            or_keep(self.cnt),
            if self.user_timeout == 0 { NONE } else { self.user_timeout },
            self.rto_max,
        ]
    }

    /// Returns whether every value is valid in a config, as far as this is known without a socket.
    pub fn is_sound(&self) -> bool {
        let in_range = |value: i32, most: i32| value == KEEP || (value >= 1 && value <= most);
        (-1..=1).contains(&self.enabled)
            && in_range(self.idle, LONGEST_S)
            && in_range(self.intvl, LONGEST_S)
            && in_range(self.cnt, MOST_PROBES)
            && self.user_timeout >= AUTO
            && (matches!(self.rto_max, KEEP | AUTO) || RTO_MAX.contains(&self.rto_max))
            && (self.user_timeout != AUTO || self.is_open() || self.automatic().is_some())
    }

    /// Returns whether idle, intvl or cnt is `KEEP`.
    pub fn is_open(&self) -> bool {
        [self.idle, self.intvl, self.cnt].contains(&KEEP)
    }

    /// Returns the user timeout for `KA_AUTO`. The values may be any numbers that a sysctl may have.
    pub fn automatic(&self) -> Option<i32> {
        let milliseconds = 1000 * (i128::from(self.idle) + i128::from(self.intvl) * i128::from(self.cnt));
        i32::try_from(milliseconds).ok().filter(|milliseconds| *milliseconds >= 1)
    }

    /// Returns the rto_max for `KA_AUTO`, if the kernel gives up after this many retransmissions.
    pub fn automatic_rto_max(&self, retries: u8) -> i32 {
        let time = 1000 * (i128::from(self.idle) + i128::from(self.intvl) * i128::from(self.cnt));
        let [least, most] = [RTO_MAX.start(), RTO_MAX.end()].map(|limit| u64::from(limit.unsigned_abs()));
        let found = largest(|value| value <= most && i128::from(retransmission_ms(retries, value)) <= time);
        i32::try_from(found.max(least)).unwrap()
    }

    /// Returns the policy with a number in place of an automatic rto_max, if it names all that this is computed from.
    pub fn resolved(&self, retries: u8) -> Self {
        if self.rto_max == AUTO && !self.is_open() {
            return Self { rto_max: self.automatic_rto_max(retries), ..*self };
        }
        *self
    }

    /// Returns the typical and the worst result of `ka_data_time`, or `None` for EINVAL.
    pub fn data_time(&self, retries: u8, system: i32) -> Option<(u64, u64)> {
        if !self.is_sound() || ([self.user_timeout, self.rto_max].contains(&AUTO) && self.is_open()) {
            return None;
        }
        let rto_max = match self.resolved(retries).rto_max {
            KEEP => system,
            value => value,
        };
        let rto_max = u64::from(rto_max.unsigned_abs());
        Some(match self.user_timeout {
            KEEP | 0 => {
                let typical = retransmission_ms(retries, rto_max);
                (typical, typical + rto_max)
            }
            value => {
                let value = if value == AUTO { self.automatic().unwrap() } else { value };
                (u64::from(value.unsigned_abs()), u64::from(value.unsigned_abs()) + rto_max)
            }
        })
    }

    /// Returns this policy, with each `KEEP` replaced by the value of `base`.
    pub fn on(&self, base: &Self) -> Self {
        let mut words = self.words();
        for (word, theirs) in words.iter_mut().zip(base.words()) {
            if *word == KEEP {
                *word = theirs;
            }
        }
        Self::from_words(words)
    }

    /// Returns the text of a policy according to ka.h.
    pub fn text(&self) -> String {
        let mut items = Vec::new();
        match self.enabled {
            0 => items.push("off".to_owned()),
            KEEP => items.push("keep".to_owned()),
            _ => {}
        }
        for (name, value) in [("idle", self.idle), ("intvl", self.intvl), ("cnt", self.cnt)] {
            if value != KEEP {
                items.push(format!("{name}={value}"));
            }
        }
        match self.user_timeout {
            KEEP => {}
            AUTO => items.push("user_timeout=auto".to_owned()),
            value => items.push(format!("user_timeout={value}")),
        }
        match self.rto_max {
            KEEP => {}
            AUTO => items.push("rto_max=auto".to_owned()),
            value => items.push(format!("rto_max={value}")),
        }
        if items.is_empty() { "on".to_owned() } else { items.join(",") }
    }

    /// Parses a policy as `ka_parse` does.
    pub fn parse(text: &[u8]) -> Result<Self, Wrong> {
        Self::parse_as(text, false)
    }

    /// Parses a policy that a person wrote: a user timeout below 1000 needs a unit.
    pub fn parse_typed(text: &[u8]) -> Result<Self, Wrong> {
        Self::parse_as(text, true)
    }

    fn parse_as(text: &[u8], typed: bool) -> Result<Self, Wrong> {
        let text = std::str::from_utf8(text).map_err(|_| Wrong::Form)?;
        let text = text.trim_matches(BLANKS);
        let is_three = text.starts_with(|letter: char| letter.is_ascii_digit());
        let separator = if is_three && text.contains(':') { ':' } else { ',' };
        let items: Vec<&str> = text.split(separator).map(|item| item.trim_matches(BLANKS)).collect();
        let mut policy = Self { enabled: 1, ..Self::KEEP };
        let mut ranges = Vec::new();
        if is_three {
            // The check for three values comes last. Both errors are EINVAL.
            let [idle, intvl, cnt] = items[..] else { return Err(Wrong::Form) };
            for (name, value) in [("idle", idle), ("intvl", intvl), ("cnt", cnt)] {
                ranges.push(policy.set(name, value, typed)?);
            }
        } else {
            let mut said = std::collections::BTreeSet::new();
            for item in items {
                let (name, value) =
                    item.split_once('=').map_or(("enabled", item), |(name, value)| (name, value));
                if !said.insert(name) || (name == "enabled" && item.contains('=')) {
                    return Err(Wrong::Form);
                }
                match (name, value) {
                    ("enabled", "on") => policy.enabled = 1,
                    ("enabled", "off") => policy.enabled = 0,
                    ("enabled", "keep") => policy.enabled = KEEP,
                    _ => ranges.push(policy.set(name, value, typed)?),
                }
            }
        }
        if ranges.contains(&None) {
            return Err(Wrong::Range);
        }
        if policy.is_sound() { Ok(policy) } else { Err(Wrong::Form) }
    }

    /// Sets a value by its name. Returns `None` if it is out of range.
    pub fn set(&mut self, name: &str, value: &str, typed: bool) -> Result<Option<()>, Wrong> {
        let (slot, found) = match (name, value) {
            ("idle", _) => (&mut self.idle, seconds(value)?),
            ("intvl", _) => (&mut self.intvl, seconds(value)?),
            ("cnt", _) => (&mut self.cnt, number(value, 1, MOST_PROBES)?),
            ("user_timeout", "auto") => (&mut self.user_timeout, Some(AUTO)),
            ("user_timeout", "none") => (&mut self.user_timeout, Some(0)),
            ("user_timeout", _) => {
                let (count, unit) = quantity(value)?;
                if typed && unit.is_none() && (1..1000).contains(&count) {
                    return Err(Wrong::Form);
                }
                (&mut self.user_timeout, i32::try_from(count.saturating_mul(unit.unwrap_or(1))).ok())
            }
            ("rto_max", "auto") => (&mut self.rto_max, Some(AUTO)),
            ("rto_max", _) => {
                let (count, unit) = quantity(value)?;
                let milliseconds = i32::try_from(count.saturating_mul(unit.unwrap_or(1))).ok();
                (&mut self.rto_max, milliseconds.filter(|value| RTO_MAX.contains(value)))
            }
            _ => return Err(Wrong::Form),
        };
        Ok(found.map(|found| *slot = found))
    }

    /// Returns the typical and the worst result of `ka_detect_time`, or `None` for EINVAL.
    pub fn detection(&self) -> Option<(u64, u64)> {
        if !self.is_sound() || self.enabled != 1 || self.is_open() {
            return None;
        }
        let limit = match self.user_timeout {
            KEEP | 0 => None,
            AUTO => self.automatic(),
            value => Some(value),
        };
        let (idle, intvl) = (i64::from(self.idle), i64::from(self.intvl));
        // With a user timeout, the connection ends at the first probe time at or after it. At least one is sent.
        let probes = match limit {
            None => self.cnt.into(),
            Some(limit) => {
                let left = i64::from(limit) - 1000 * idle;
                let probes = left / (1000 * intvl) + i64::from(left % (1000 * intvl) > 0);
                probes.max(1)
            }
        };
        // In the worst case the peer has just answered a probe. The next probe comes after the longer of idle and
        // intvl.
        let [typical, worst] = [idle, idle.max(intvl)].map(|first| (first + intvl * probes).unsigned_abs());
        Some((1000 * typical, worst_ms(worst, probes.unsigned_abs() + 1)))
    }
}

/// Returns the longest time for `seconds` if they are split over this many timers, which may be late.
pub fn worst_ms(seconds: u64, timers: u64) -> u64 {
    let wheel = u128::from(seconds) * 1000 * 71;
    u64::try_from(wheel / 63 + u128::from(wheel % 63 > 0)).unwrap() + 10 * timers
}

/// Returns the time after which the kernel gives up on unacknowledged data: the sum of the times between
/// retransmissions, which double from 200 ms up to `rto_max`.
pub fn retransmission_ms(retries: u8, rto_max: u64) -> u64 {
    let mut wait = 200;
    let mut total = wait;
    for _ in 0..retries {
        wait = if 2 * wait <= rto_max { 2 * wait } else { rto_max.max(200) };
        total += wait;
    }
    total
}

/// Returns the policy that finds a dead peer within this time, if there is one.
pub fn plan_detect(within_ms: u32) -> Option<Policy> {
    let most = |cnt: u64| largest(|seconds| worst_ms(seconds, cnt + 1) <= within_ms.into());
    let (cnt, seconds) =
        [3_u64, 2, 1].into_iter().map(|cnt| (cnt, most(cnt))).find(|(cnt, most)| most > cnt)?;
    let intvl = (seconds / (2 * cnt)).clamp(1, 32767);
    let idle = (seconds - intvl * cnt).clamp(1, 32767);
    Some(plan(idle, intvl, cnt))
}

/// Returns the policy for a path that drops connections after this idle time, if there is one.
pub fn plan_path(path_idle_s: u32) -> Option<Policy> {
    let intvl = u64::from(path_idle_s / 10).clamp(1, 30);
    let most = largest(|seconds| worst_ms(seconds, 2) <= 1000 * u64::from(path_idle_s));
    (most > intvl).then(|| plan((most - intvl).min(32767), intvl, 5))
}

fn plan(idle: u64, intvl: u64, cnt: u64) -> Policy {
    let [idle, intvl, cnt] = [idle, intvl, cnt].map(|value| i32::try_from(value).unwrap());
    Policy { enabled: 1, idle, intvl, cnt, user_timeout: KEEP, rto_max: KEEP }
}

/// Returns the largest number for which a condition holds, or 0. If it holds for a number, it holds for all smaller
/// ones.
fn largest(holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, u64::from(u32::MAX) + 1);
    while low + 1 < high {
        let middle = low.midpoint(high);
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

/// The blanks that may surround an item.
pub const BLANKS: [char; 5] = [' ', '\t', '\n', '\r', '\x0c'];

/// Returns a time in whole seconds. `None` if it is out of range.
fn seconds(text: &str) -> Result<Option<i32>, Wrong> {
    let (count, unit) = quantity(text)?;
    let milliseconds = count.saturating_mul(unit.unwrap_or(1000));
    match i32::try_from(milliseconds / 1000).ok().filter(|seconds| *seconds <= LONGEST_S) {
        Some(_) if milliseconds % 1000 > 0 => Err(Wrong::Form),
        found => Ok(found.filter(|seconds| *seconds > 0)),
    }
}

/// Returns a number, and its unit in milliseconds. If the number is too large for any range, the result is `i128::MAX`
/// or another number that is too large.
fn quantity(text: &str) -> Result<(i128, Option<i128>), Wrong> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let unit = units.into_iter().find(|(name, _)| {
        text.strip_suffix(name).is_some_and(|digits| digits.ends_with(|letter: char| letter.is_ascii_digit()))
    });
    let digits = unit.map_or(text, |(name, _)| &text[..text.len() - name.len()]);
    check_digits(digits)?;
    Ok((digits.parse().unwrap_or(i128::MAX), unit.map(|(_, scale)| scale)))
}

/// Reads a decimal number without leading zeros. Returns `None` if it is out of range.
pub fn number(digits: &str, least: i32, most: i32) -> Result<Option<i32>, Wrong> {
    check_digits(digits)?;
    Ok(digits.parse::<i32>().ok().filter(|value| (least..=most).contains(value)))
}

fn check_digits(digits: &str) -> Result<(), Wrong> {
    let is_number = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if is_number { Ok(()) } else { Err(Wrong::Form) }
}
