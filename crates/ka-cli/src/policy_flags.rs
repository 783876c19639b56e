//! The policy flags, which are the same for every subcommand that takes a policy.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args};
use ka_core::{Config, Reason, RtoMax, Timer, UserTimeout};
use ka_policy::Mode;

use crate::duration;
use crate::failure::Failure;

/// The flags of a policy.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyFlags {
    /// Idle time before the first probe: seconds, or with a unit: 30s, 5m, 2h. 1 to 32767 s
    #[arg(help_heading = "Policy", short = 'd', long, value_name = "S", value_parser = duration::idle,
          allow_negative_numbers = true)]
    pub(crate) idle: Option<i32>,
    /// Time from an unanswered probe to the next: seconds, or with a unit: 30s, 5m, 2h. 1 to 32767 s
    #[arg(help_heading = "Policy", short = 'i', long, value_name = "S", value_parser = duration::intvl,
          allow_negative_numbers = true)]
    pub(crate) intvl: Option<i32>,
    /// Number of unanswered probes after which the connection is dead: 1 to 127
    #[arg(help_heading = "Policy", short = 'c', long, value_name = "N", value_parser = duration::cnt,
          allow_negative_numbers = true)]
    pub(crate) cnt: Option<i32>,
    /// TCP_USER_TIMEOUT, such as 1500ms or 30s, at most 2147483647 ms. A number without a unit is milliseconds, and
    /// must be 1000 or more. 0 or none: no timeout. auto: 1000 * (idle + intvl * cnt)
    #[arg(help_heading = "Policy", short = 'u', long, value_name = "MS", value_parser = duration::user_timeout,
          allow_negative_numbers = true)]
    pub(crate) user_timeout: Option<UserTimeout>,
    /// TCP_RTO_MAX_MS of Linux 6.15, the longest time between two retransmissions: 1000 to 120000 ms, such as 2000 or
    /// 2s. It limits how long unacknowledged data hides a dead peer. auto: at most idle + intvl * cnt, if possible. See
    /// ka-run(1)
    #[arg(help_heading = "Policy", short = 'r', long, value_name = "MS", value_parser = duration::rto_max,
          allow_negative_numbers = true)]
    pub(crate) rto_max: Option<RtoMax>,
    /// A whole policy: 60,10,6, or any of idle=, intvl=, cnt=, user_timeout= and rto_max=, separated by commas, or off.
    /// Times may have units, such as 1m,10s,6: see ka-run(1). The other flags override parts of it. Default: 60,10,6
    #[arg(help_heading = "Policy", short = 'p', long = "policy", value_name = "TEXT", value_parser = policy)]
    pub(crate) whole: Option<Config>,
}

/// Parses the name of a mode.
pub(crate) fn mode() -> impl TypedValueParser<Value = Mode> {
    modes([Mode::Force, Mode::Floor, Mode::Default], |mode| match mode {
        Mode::Force => "The program cannot override the policy",
        Mode::Floor => "The program's values are kept only if they are stricter",
        Mode::Default => "Applies only to sockets whose program has not turned keepalive on",
    })
}

/// Parses the name of a mode that a cgroup can have.
pub(crate) fn cgroup_mode() -> impl TypedValueParser<Value = Mode> {
    modes([Mode::Force, Mode::Default], |mode| match mode {
        Mode::Force | Mode::Floor => "The programs cannot override the policy",
        Mode::Default => "Applies only to sockets whose program has not turned keepalive on",
    })
}

fn modes<const N: usize>(
    modes: [Mode; N],
    help: impl Fn(Mode) -> &'static str,
) -> impl TypedValueParser<Value = Mode> {
    let values = modes.map(|mode| PossibleValue::new(mode.name()).help(help(mode)));
    PossibleValuesParser::new(values).try_map(|name| Mode::named(name.as_bytes()).ok_or("not a mode"))
}

/// Parses a policy's text, in the syntax of KA_POLICY.
pub(crate) fn policy(text: &str) -> Result<Config, String> {
    ka_core::parse_typed(text.as_bytes()).map_err(|error| error.to_string())
}

/// Returns the flag --policy for subcommands whose policy must turn keepalive on: its help does not offer `off`.
pub(crate) fn on_only(whole: Arg) -> Arg {
    whole.help(
        "A whole policy: 60,10,6, or any of idle=, intvl=, cnt=, user_timeout= and rto_max=, separated by commas. \
         Times may have units, such as 1m,10s,6: see ka-run(1). The other flags override parts of it. Default: \
         60,10,6",
    )
}

impl PolicyFlags {
    /// Returns whether any of the flags is given.
    pub(crate) fn is_named(&self) -> bool {
        self.whole.is_some()
            || self.named_parts() != Config::KEEP
            || self.user_timeout.is_some()
            || self.rto_max.is_some()
    }

    /// Returns the values of the flags for idle, intvl and cnt.
    fn named_parts(&self) -> Config {
        [(Timer::Idle, self.idle), (Timer::Intvl, self.intvl), (Timer::Cnt, self.cnt)]
            .into_iter()
            .fold(Config::KEEP, |config, (timer, value)| config.with_timer(timer, value).unwrap_or(config))
    }

    /// Returns only the values of the flags. The flags for single values override the values of --policy.
    pub(crate) fn named_values(&self) -> Result<Config, Failure> {
        let base = self.whole.unwrap_or(Config::KEEP.with_enabled(Some(true)));
        self.named_parts()
            .with_user_timeout(self.user_timeout.unwrap_or_default())
            .and_then(|config| config.with_rto_max(self.rto_max.unwrap_or_default()))
            .and_then(|config| config.on_top_of(&base))
            .map_err(too_long)
    }

    /// Returns the values of the flags, and the defaults for the others. A policy that turns keepalive off, or does not
    /// change it, gets no defaults.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let named = self.named_values()?;
        if named.enabled() == Some(true) {
            named.on_top_of(&Config::STANDARD).map_err(too_long)
        } else {
            Ok(named)
        }
    }

    /// Returns the policy, or an error if it does not turn keepalive on.
    pub(crate) fn config_on(&self) -> Result<Config, Failure> {
        let config = self.config()?;
        // Only --policy can turn keepalive off, so the error prints the text of --policy without the other flags.
        check_on(if config.enabled() == Some(true) {
            &config
        } else {
            self.whole.as_ref().unwrap_or(&config)
        })?;
        Ok(config)
    }
}

/// Rejects a policy that cannot change any socket in this mode.
pub(crate) fn check_effect(config: &Config, mode: Mode) -> Result<(), Failure> {
    let rejected =
        |why: &str| Err(Failure::new(format_args!("--policy {}: {why}", &*ka_core::Text::typed(config))));
    if *config == Config::KEEP {
        rejected("changes nothing; name the values to set, such as -p 60,10,6")
    } else if config.enabled() != Some(true) && mode != Mode::Force {
        rejected(&format!(
            "changes nothing in mode {}; a policy that does not turn keepalive on needs --mode force",
            mode.name()
        ))
    } else {
        Ok(())
    }
}

/// Rejects a policy that does not turn keepalive on.
pub(crate) fn check_on(config: &Config) -> Result<(), Failure> {
    if config.enabled() == Some(true) {
        Ok(())
    } else {
        Err(Failure::new(format_args!(
            "--policy {}: the policy must turn keepalive on here",
            &*ka_core::Text::typed(config)
        )))
    }
}

/// Returns the error of a policy whose values are each in range. Only the automatic user timeout can be too long then.
fn too_long(_: ka_core::Error) -> Failure {
    Failure::new(format_args!("--user-timeout: {}", Reason::AutoTooLong.message()))
}

#[cfg(test)]
mod tests {
    use ka_core::{Config, RtoMax, UserTimeout};

    use super::{PolicyFlags, policy};

    #[test]
    fn flags_override_parts_of_a_policy() {
        let mut flags = PolicyFlags { whole: Some(policy("60,10,5").unwrap()), ..PolicyFlags::default() };
        flags.cnt = Some(3);
        assert_eq!(flags.config().unwrap(), Config::new(60, 10, 3).unwrap());
        flags.whole = None;
        assert_eq!(flags.config().unwrap(), Config::new(60, 10, 3).unwrap());
        flags.cnt = None;
        assert_eq!(flags.config().unwrap(), Config::STANDARD);
        assert!(!flags.is_named());
        flags.whole = Some(policy("off").unwrap());
        assert_eq!(flags.config().unwrap(), Config::KEEP.with_enabled(Some(false)));
        flags.config_on().unwrap_err();
        flags.idle = Some(5);
        assert!(
            flags.config_on().unwrap_err().message.starts_with("--policy off: "),
            "the message names only the text that the user typed"
        );
    }

    #[test]
    fn flags_override_automatic_values_of_a_policy() {
        let whole = policy("user_timeout=auto,rto_max=auto").unwrap();
        let flags = PolicyFlags {
            idle: Some(32767),
            intvl: Some(32767),
            cnt: Some(127),
            user_timeout: Some(UserTimeout::Milliseconds(5000)),
            rto_max: Some(RtoMax::Milliseconds(2000)),
            whole: Some(whole),
        };
        let named = flags.named_values().unwrap();
        assert_eq!(named.user_timeout(), UserTimeout::Milliseconds(5000));
        assert_eq!(named.rto_max(), RtoMax::Milliseconds(2000));
        let too_long = PolicyFlags { user_timeout: None, ..flags };
        assert!(too_long.named_values().unwrap_err().message.starts_with("--user-timeout: "));
    }
}
