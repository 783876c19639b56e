//! The sources of a policy: the flags of a command, the KA_ variables of the environment, and /etc/ka.conf. A flag
//! overrides the variable, and the variable overrides the file.
//!
//! ka writes flags into the environment as KA_ variables, because the shim does not know the flags.

use std::os::unix::ffi::OsStrExt as _;

use ka_core::bytes::cut;
use ka_core::{Config, Retransmission, Timer};
use ka_policy::{CONF, CONF_LINE, Mode, RTO_MAX_KERNEL, Rule, RuleError, Rules, Source, Variable, Variables};

use crate::environment::Environment;
use crate::failure::{Failure, warn};
use crate::policy_flags::PolicyFlags;
use crate::sysctl;
use ka_reach::conf;
use ka_reach::escape;

/// The policy and the mode that the flags of a command name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// The values that the flags name. `None` if no flag of a policy is given.
    pub(crate) config: Option<Config>,
    /// `true` if `config` is a whole policy. In this case, values from the environment and /etc/ka.conf are ignored.
    pub(crate) is_whole: bool,
    pub(crate) mode: Option<Mode>,
}

/// The policy that a command applies to sockets.
pub(crate) struct Chosen {
    pub(crate) policy: Config,
    pub(crate) mode: Mode,
    /// The names of the programs in KA_SKIP, which ka skips.
    pub(crate) skip: Vec<u8>,
}

/// Chooses the policy and the mode for a command that sets sockets itself. The sources, in this order, are its flags,
/// the KA_ variables, /etc/ka.conf, and the defaults 60,10,6 and force. Prints wrong values, and settings that only
/// `ka run` applies, on standard error.
///
/// The policy turns keepalive on, unless --policy turns it off or does not change it.
pub(crate) fn choose(command: &str, flags: &PolicyFlags, mode: Option<Mode>) -> Result<Chosen, Failure> {
    let whole = if flags.whole.is_some() { Some(flags.config()?) } else { None };
    let config = if whole.is_none() && flags.is_named() { Some(flags.named_values()?) } else { None };
    let sources = PolicySources::with_flags(&Flags { config, is_whole: false, mode });
    sources.warn_of_mistakes(whole.as_ref());
    sources.warn_of_names();
    let variables = sources.variables();
    let policy = match whole {
        Some(whole) => whole,
        None if variables.config.enabled() != Some(true) => {
            return Err(Failure::new(format_args!(
                "{command}: KA_POLICY=off, in the environment or /etc/ka.conf, disables ka; to override it, name a \
                 policy: ka {command} -p 60,10,6"
            )));
        }
        None => variables.config,
    };
    if !variables.rules.is_empty() && !sources.is_quiet() {
        warn(format_args!(
            "{command}: KA_RULES, in the environment or /etc/ka.conf, is ignored: all sockets get the same policy"
        ));
    }
    Ok(Chosen { policy, mode: variables.mode, skip: variables.skip.to_vec() })
}

/// Returns whether KA_POLICY is off in this process's environment or in /etc/ka.conf.
pub(crate) fn is_off_here() -> bool {
    PolicySources::of_this_process().variables().config.enabled() != Some(true)
}

/// Returns the KA_ variable of which this name is probably a misspelling. Other unknown names that begin with KA_ may
/// be variables of the program.
fn similar_variable(name: &str) -> Option<&'static str> {
    const SHIM: &[u8] = b"KA_PRELOAD";
    // A short name is similar to many other names, so it may differ by one letter only.
    const SHORT: usize = "KA_RULES".len();
    if !name.starts_with("KA_") {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    let known = || Variable::names().chain([SHIM]).filter_map(|name| std::str::from_utf8(name).ok());
    if known().any(|known| known == name) {
        return None;
    }
    let near = known().map(|known| (strsim::osa_distance(known, &upper), known));
    let near = near.filter(|(distance, known)| *distance <= if known.len() <= SHORT { 1 } else { 2 });
    near.min().map(|(_, known)| known)
}

/// An environment and the text of /etc/ka.conf.
pub(crate) struct PolicySources {
    pub(crate) environment: Environment,
    /// The text of /etc/ka.conf. Empty if the file does not exist or was rejected.
    file: Vec<u8>,
    /// The reason why the file was rejected.
    file_error: Option<ka_reach::Error>,
}

impl PolicySources {
    /// Returns the environment of this process, and reads /etc/ka.conf.
    pub(crate) fn of_this_process() -> Self {
        let (file, file_error) = match conf::read() {
            Ok(file) => (file, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Self { environment: Environment::of_this_process(), file, file_error }
    }

    /// Returns the sources of this process, overridden by flags.
    pub(crate) fn with_flags(flags: &Flags) -> Self {
        let mut sources = Self::of_this_process();
        sources.add_flags(flags);
        sources
    }

    /// Returns the KA_ variables of the environment, and those of the file.
    fn values(&self) -> [Source<'_>; 2] {
        let mut environment = Source::default();
        for entry in &self.environment.0 {
            let (name, value) = cut(entry.as_bytes(), b'=');
            environment.keep(name, value.unwrap_or_default());
        }
        let mut file = Source::default();
        file.keep_lines(&self.file, |_| {});
        [environment, file]
    }

    /// Returns the settings that the shim takes from these sources. Wrong values are ignored.
    pub(crate) fn variables(&self) -> Variables<'_> {
        let [environment, _] = self.values();
        conf::variables(environment, &self.file)
    }

    /// Returns whether KA_QUIET disables messages.
    fn is_quiet(&self) -> bool {
        self.values().iter().any(Source::is_quiet)
    }

    /// Prints variables that are probably misspelled KA_ variables, and a KA_QUIET that has no effect. The shim must
    /// stay small, so it does not check this.
    pub(crate) fn warn_of_names(&self) {
        if self.is_quiet() {
            return;
        }
        for values in self.values() {
            if let Some(value) = values.get(Variable::Quiet).filter(|value| !matches!(*value, b"" | b"0")) {
                let value = escape::visible(value);
                warn(format_args!("KA_QUIET=\"{value}\": must be 0 or 1; ignored"));
            }
        }
        let names = self.environment.0.iter().map(|entry| cut(entry.as_bytes(), b'=').0);
        for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
            if let Some(similar) = similar_variable(name) {
                let name = escape::visible(name.as_bytes());
                warn(format_args!("{name}: unknown variable; did you mean {similar}?"));
            }
        }
    }

    /// If KA_LOG requests a log, prints that this way writes no log.
    pub(crate) fn warn_of_log(&self, way: &str) {
        let log = self.variables().log;
        if !log.is_empty() && !self.is_quiet() {
            let log = escape::visible(log);
            warn(format_args!(
                "KA_LOG=\"{log}\": ka run --via {way} writes no log (ka run --via preload does)"
            ));
        }
    }

    /// Prints the mistakes in the sources, and whether this kernel lacks rto_max, for ways that do not load the shim.
    /// The messages are those of the shim. `whole` is the policy of the command, if that is not the policy of the
    /// sources.
    pub(crate) fn warn_of_mistakes(&self, whole: Option<&Config>) {
        if self.is_quiet() {
            return;
        }
        let conf_name = CONF.to_string_lossy();
        if let Some(error) = &self.file_error {
            warn(format_args!("{conf_name}: {error}; ignored"));
        }
        Source::default().keep_lines(&self.file, |line| {
            let line = escape::visible(line);
            warn(format_args!("{conf_name}: \"{line}\": {CONF_LINE}; ignored"));
        });
        let warn_of = |variable: Variable, value: &[u8], right: &str| {
            let (name, value) = (escape::visible(variable.name()), escape::visible(value));
            warn(format_args!("{name}=\"{value}\": {right}; ignored"));
        };
        let values = self.values();
        let mut variables = Variables::default();
        variables.take_all(&values, warn_of);
        let mut room = [Rule::SKIP; Rules::MAX];
        let policy = variables.policy(&mut room, retries, |rule, RuleError { word, message }| {
            let word = if word == rule { String::new() } else { format!("\"{}\": ", escape::visible(word)) };
            warn_of(Variable::Rules, rule, &format!("{word}{message}"));
        });
        let names_rto_max =
            whole.map_or_else(|| policy.names(Timer::RtoMax), |whole| whole.names(Timer::RtoMax));
        if names_rto_max && sysctl::has_rto_max() == Some(false) {
            warn(format_args!("rto_max: {RTO_MAX_KERNEL}; ignored"));
        }
    }

    /// Writes the values of flags into the environment.
    fn add_flags(&mut self, flags: &Flags) {
        const PARTS: [(Timer, Variable); Timer::ALL.len()] = [
            (Timer::Idle, Variable::Idle),
            (Timer::Intvl, Variable::Intvl),
            (Timer::Cnt, Variable::Cnt),
            (Timer::UserTimeout, Variable::UserTimeout),
            (Timer::RtoMax, Variable::RtoMax),
        ];
        if let Some(mode) = flags.mode {
            self.environment.set(Variable::Mode.name(), mode.name().as_bytes());
        }
        let Some(config) = flags.config else { return };
        if flags.is_whole {
            self.environment.set(Variable::Policy.name(), ka_core::Text::typed(&config).as_bytes());
        } else if self.variables().config.enabled() != Some(true) {
            self.environment.set(Variable::Policy.name(), b"on");
        }
        // A variable for a single value overrides KA_POLICY, and the environment or the file may have such variables.
        // So set these variables too.
        for (timer, variable) in PARTS {
            let value = match (config.timer(timer), timer) {
                // The variables accept a user timeout below 1000 only with a unit.
                (Some(value), Timer::UserTimeout) => format!("{value}ms"),
                (Some(value), _) => value.to_string(),
                (None, timer) if config.is_auto(timer) => "auto".to_owned(),
                // A whole policy without these values leaves them as they are.
                (None, Timer::UserTimeout | Timer::RtoMax) if flags.is_whole => "keep".to_owned(),
                (None, _) => continue,
            };
            self.environment.set(variable.name(), value.as_bytes());
        }
    }
}

/// Returns net.ipv4.tcp_retries2, from which an automatic `TCP_RTO_MAX_MS` is computed.
pub(crate) fn retries() -> u8 {
    Retransmission::read().retries
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use ka_core::{Config, UserTimeout, parse};

    use super::{Environment, Flags, PolicySources};

    fn policy(entries: &[&str], file: &str, flags: Option<&str>, is_whole: bool) -> Config {
        let config = flags.map(|text| parse(text.as_bytes()).unwrap());
        let mut sources = PolicySources {
            environment: Environment(entries.iter().map(OsString::from).collect()),
            file: file.as_bytes().to_vec(),
            file_error: None,
        };
        sources.add_flags(&Flags { config, is_whole, mode: None });
        sources.variables().config
    }

    #[test]
    fn misspelled_names_of_variables_are_recognized() {
        for (name, similar) in [
            ("KA_POLCY", Some("KA_POLICY")),
            ("KA_POLIYC", Some("KA_POLICY")),
            ("KA_policy", Some("KA_POLICY")),
            ("KA_INTVAL", Some("KA_INTVL")),
            ("KA_USERTIMEOUT", Some("KA_USER_TIMEOUT")),
            ("KA_LOGS", Some("KA_LOG")),
            ("KA_PRELAOD", Some("KA_PRELOAD")),
            ("KA_POLICY", None),
            ("KA_PRELOAD", None),
            ("KA_FILE", None),
            ("KA_LOG_LEVEL", None),
            ("KA_", None),
            ("KAFKA_POLICY", None),
            ("POLICY", None),
        ] {
            assert_eq!(super::similar_variable(name), similar, "{name}");
        }
    }

    #[test]
    fn flags_override_the_environment_and_the_environment_overrides_the_file() {
        let expect = |idle, intvl, cnt| Config::new(idle, intvl, cnt).unwrap();
        assert_eq!(policy(&[], "", None, false), expect(60, 10, 6));
        assert_eq!(policy(&["KA_POLICY=280,30,5"], "KA_IDLE=99", Some("cnt=3"), false), expect(280, 30, 3));
        assert_eq!(policy(&["KA_POLICY=wrong"], "KA_IDLE=99", None, false), expect(99, 10, 6));
        assert_eq!(policy(&["KA_IDLE=9"], "KA_POLICY=280,30,5\nKA_CNT=4", None, false), expect(9, 30, 4));
        assert_eq!(policy(&["KA_IDLE=7"], "KA_IDLE=99\nKA_CNT=9", Some("30,5,3"), true), expect(30, 5, 3));
        assert_eq!(
            policy(&["KA_USER_TIMEOUT=9ms"], "KA_USER_TIMEOUT=8ms", Some("30,5,3"), true),
            expect(30, 5, 3)
        );
        let timeout = expect(30, 5, 3).with_user_timeout(UserTimeout::Milliseconds(9)).unwrap();
        for is_whole in [false, true] {
            let flags = Some("idle=30,intvl=5,cnt=3,user_timeout=9");
            assert_eq!(policy(&["KA_USER_TIMEOUT=8ms"], "", flags, is_whole), timeout);
        }
        assert_eq!(policy(&["KA_IDLE=7"], "", Some("cnt=3"), false), expect(7, 10, 3));
        assert_eq!(policy(&["KA_POLICY=off"], "", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&[], "KA_POLICY=off", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&["KA_POLICY=off"], "", None, false).enabled(), Some(false));
    }
}
