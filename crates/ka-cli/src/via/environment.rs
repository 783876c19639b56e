//! The policy that a command applies: from its flags, the environment's KA_ variables and /etc/ka.conf. Also the
//! environment and the call with which `ka run` starts a program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use ka_core::bytes::cut;
use ka_core::{Config, Timer, UserTimeout};
use ka_policy::{CONF, CONF_LINE, Mode, Rule, RuleError, Rules, Source, Variable, Variables, skips};

use super::Launch;
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::policy::PolicyFlags;
use crate::start;
use ka_reach::conf;
use ka_reach::text::{self, reason};

/// Why what was ordered of programs elsewhere leaves this one alone.
pub(super) fn is_off(launch: &Launch<'_>) -> Option<(String, String)> {
    let file = conf::text().unwrap_or_default();
    let environment = Environment::of(launch, &file);
    let variables = environment.variables(&file);
    if variables.config.enabled() != Some(true) {
        return Some((
            "KA_POLICY=off, in the environment or /etc/ka.conf, says to do nothing".to_owned(),
            "a policy: ka run -p 60,10,6".to_owned(),
        ));
    }
    let called = launch.arguments.first().map(|name| Path::new(name).file_name().unwrap_or_default());
    let executable = launch.program.executable.file_name().unwrap_or_default();
    let names = [called.unwrap_or_default().as_bytes(), executable.as_bytes()];
    skips(variables.skip, names).then(|| {
        let skip = variables.skip.escape_ascii();
        (
            format!("KA_SKIP={skip}, in the environment or /etc/ka.conf, leaves it alone"),
            "KA_SKIP= ka run".to_owned(),
        )
    })
}

/// The policy and mode that the flags of a command name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// Only the named values. `None` if no policy is named.
    pub(crate) said: Option<Config>,
    /// Whether `said` is a whole policy. Then values from the environment and /etc/ka.conf are ignored.
    pub(crate) is_whole: bool,
    pub(crate) mode: Option<Mode>,
}

/// The policy that a command applies to sockets.
pub(crate) struct Chosen {
    pub(crate) policy: Config,
    pub(crate) mode: Mode,
    /// The names of programs that KA_SKIP leaves alone.
    pub(crate) skip: Vec<u8>,
}

/// Chooses the policy and the mode for a command that sets sockets itself. The sources, in this order, are its flags,
/// the KA_ variables, /etc/ka.conf, and the defaults 60,10,6 and force. Prints wrong values on standard error, and
/// settings that only `ka run` applies.
///
/// The policy turns keepalive on, unless the flags say otherwise.
pub(crate) fn choose(command: &str, flags: &PolicyFlags, mode: Option<Mode>) -> Result<Chosen, Failure> {
    let file = conf::text().unwrap_or_default();
    let mut environment = Environment(start::environment());
    let whole = if flags.whole.is_some() { Some(flags.config()?) } else { None };
    let said = if whole.is_none() && flags.is_named() { Some(flags.said()?) } else { None };
    environment.say(&Flags { said, is_whole: false, mode }, &file);
    environment.complain(&file);
    environment.complain_of_names(&file);
    let variables = environment.variables(&file);
    let policy = match whole {
        Some(whole) => whole,
        None if variables.config.enabled() != Some(true) => {
            return Err(Failure::new(format_args!(
                "{command}: KA_POLICY=off, in the environment or /etc/ka.conf, says to do nothing; name a policy: ka \
                 {command} -p 60,10,6"
            )));
        }
        None => variables.config,
    };
    if !variables.rules.is_empty() && !environment.is_quiet(&file) {
        let _ = writeln!(
            io::stderr(),
            "ka: {command}: KA_RULES, in the environment or /etc/ka.conf, is ignored here: all sockets get one policy"
        );
    }
    Ok(Chosen { policy, mode: variables.mode, skip: variables.skip.to_vec() })
}

/// Returns whether KA_POLICY is off in this process's environment or in /etc/ka.conf.
pub(crate) fn is_off_here() -> bool {
    let file = conf::text().unwrap_or_default();
    Environment(start::environment()).variables(&file).config.enabled() != Some(true)
}

/// Prints the mistakes in the KA_ variables of this process and in /etc/ka.conf.
pub(crate) fn complain() {
    let file = conf::text().unwrap_or_default();
    let environment = Environment(start::environment());
    environment.complain(&file);
    environment.complain_of_names(&file);
}

/// Prints the environment variables of this process that are probably misspelled KA_ variables.
pub(crate) fn complain_of_names() {
    Environment(start::environment()).complain_of_names(&conf::text().unwrap_or_default());
}

/// The variable that a name probably means, if it is not one itself. Other names that begin with KA_ may belong to the
/// program.
fn meant(name: &str) -> Option<&'static str> {
    const SHIM: &[u8] = b"KA_PRELOAD";
    // A short name is similar to many other names.
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

/// What the program gets for its environment: entries as they came.
pub(super) struct Environment(pub(super) Vec<OsString>);

impl Environment {
    /// Ours, with what was said on the command line.
    pub(super) fn of(launch: &Launch<'_>, file: &[u8]) -> Self {
        let mut environment = Self(start::environment());
        environment.say(&launch.flags, file);
        environment
    }

    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.0.push(OsString::from_vec([name, b"=", value].concat()));
    }

    fn remove(&mut self, name: &[u8]) {
        self.0.retain(|entry| value_of(entry, name).is_none());
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find_map(|entry| value_of(entry, name))
    }

    /// What systemd gives to one process, which it names by its number, is for the program, which has another than it was
    /// started with. sd_listen_fds(3), sd_watchdog_enabled(3)
    pub(super) fn hand_on(&mut self, from: i32) {
        let (from, to) = (from.to_string(), std::process::id().to_string());
        for name in [&b"LISTEN_PID"[..], b"WATCHDOG_PID", b"SYSTEMD_EXEC_PID"] {
            if self.get(name) == Some(from.as_bytes()) {
                self.set(name, to.as_bytes());
                if name == b"LISTEN_PID" {
                    // It names the process once more, by the inode of its pidfd, where it is there.
                    self.remove(b"LISTEN_PIDFDID");
                }
            }
        }
    }

    /// What the environment and the file say.
    fn values<'a>(&'a self, file: &'a [u8]) -> [Source<'a>; 2] {
        let mut environment = Source::default();
        for entry in &self.0 {
            let (name, value) = cut(entry.as_bytes(), b'=');
            environment.keep(name, value.unwrap_or_default());
        }
        let mut conf = Source::default();
        conf.keep_lines(file, |_| {});
        [environment, conf]
    }

    /// Returns the settings that the shim follows in this environment.
    pub(super) fn variables<'a>(&'a self, file: &'a [u8]) -> Variables<'a> {
        let mut variables = Variables::default();
        // What is wrong the shim names itself, and who starts a program without it by `complain`.
        variables.take_all(&self.values(file), |_, _, _| {});
        variables
    }

    /// Returns whether the settings disable messages.
    pub(super) fn is_quiet(&self, file: &[u8]) -> bool {
        self.values(file).iter().any(Source::is_quiet)
    }

    /// Prints names that are probably misspelled KA_ variables, and a KA_QUIET that has no effect. The shim has no room
    /// for these checks.
    fn complain_of_names(&self, file: &[u8]) {
        if self.is_quiet(file) {
            return;
        }
        for values in self.values(file) {
            if let Some(value) = values.get(Variable::Quiet).filter(|value| !matches!(*value, b"" | b"0")) {
                let value = text::visible(value);
                let _ = writeln!(io::stderr(), "ka: KA_QUIET=\"{value}\": must be 0 or 1; it does not count");
            }
        }
        for name in self.0.iter().filter_map(|entry| std::str::from_utf8(cut(entry.as_bytes(), b'=').0).ok())
        {
            if let Some(meant) = meant(name) {
                let name = text::visible(name.as_bytes());
                let _ = writeln!(io::stderr(), "ka: {name} is not a variable of ka: did you mean {meant}?");
            }
        }
    }

    /// Prints a message that this way does not write the requested log.
    pub(super) fn complain_of_log(&self, file: &[u8], way: &str) {
        let log = self.variables(file).log;
        if !log.is_empty() && !self.is_quiet(file) {
            let log = text::visible(log);
            let _ = writeln!(
                io::stderr(),
                "ka: KA_LOG=\"{log}\": ka run --via {way} writes no log (ka run --via preload does)"
            );
        }
    }

    /// Names what is wrong, in the shim's words, where there is no shim to do it.
    pub(super) fn complain(&self, file: &[u8]) {
        if self.is_quiet(file) {
            return;
        }
        let values = self.values(file);
        let conf_name = CONF.to_string_lossy();
        if let Err(right) = conf::text() {
            let _ = writeln!(io::stderr(), "ka: {conf_name}: {right}; it is not read");
        }
        Source::default().keep_lines(file, |line| {
            let line = text::visible(line);
            let _ = writeln!(io::stderr(), "ka: {conf_name}: \"{line}\": {CONF_LINE}; it does not count");
        });
        let say = |variable: Variable, value: &[u8], right: &str| {
            let (name, value) = (text::visible(variable.name()), text::visible(value));
            let _ = writeln!(io::stderr(), "ka: {name}=\"{value}\": {right}; it does not count");
        };
        let mut variables = Variables::default();
        variables.take_all(&values, say);
        let _ = variables.policy(&mut [Rule::SKIP; Rules::MAX], |rule, RuleError { word, message }| {
            let word = if word == rule { String::new() } else { format!("\"{}\": ", text::visible(word)) };
            say(Variable::Rules, rule, &format!("{word}{message}"));
        });
    }

    /// Puts what was said on the command line over what the environment and the file say, part by part.
    fn say(&mut self, flags: &Flags, file: &[u8]) {
        const PARTS: [(Timer, Variable); 4] = [
            (Timer::Idle, Variable::Idle),
            (Timer::Intvl, Variable::Intvl),
            (Timer::Cnt, Variable::Cnt),
            (Timer::UserTimeout, Variable::UserTimeout),
        ];
        if let Some(mode) = flags.mode {
            self.set(Variable::Mode.name(), mode.name().as_bytes());
        }
        let Some(said) = flags.said else { return };
        if flags.is_whole {
            self.set(Variable::Policy.name(), ka_core::Text::typed(&said).as_bytes());
        } else if self.variables(file).config.enabled() != Some(true) {
            self.set(Variable::Policy.name(), b"on");
        }
        // Each by its name too: the environment or /etc/ka.conf may name it, and goes by names.
        for (timer, variable) in PARTS {
            let value = match (said.timer(timer), timer) {
                // The variables take a user timeout below 1000 only with its unit.
                (Some(value), Timer::UserTimeout) => format!("{value}ms"),
                (Some(value), _) => value.to_string(),
                (None, Timer::UserTimeout) if said.user_timeout() == UserTimeout::Auto => "auto".to_owned(),
                // None is a part of a whole policy, too.
                (None, Timer::UserTimeout) if flags.is_whole => "keep".to_owned(),
                (None, _) => continue,
            };
            self.set(variable.name(), value.as_bytes());
        }
    }
}

/// The value in an entry of an environment, if it is of this name.
fn value_of<'a>(entry: &'a OsStr, name: &[u8]) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name)?.strip_prefix(b"=")
}

/// Becomes the program, in this environment. It returns only where that failed.
pub(super) fn execute(launch: &Launch<'_>, environment: &Environment) -> Failure {
    let program = launch.program;
    let mut error = start::exec(&program.path, launch.arguments, &environment.0);
    if program.is_plain_text && error.raw_os_error() == Some(libc::ENOEXEC) {
        // The shell runs what the kernel does not know, as execvp(3) has it.
        let script = program.path.clone().into_os_string();
        let rest = launch.arguments.iter().skip(1).cloned();
        let arguments: Vec<_> = ["/bin/sh".into(), script].into_iter().chain(rest).collect();
        error = start::exec(&program.executable, &arguments, &environment.0);
    }
    let status = if error.raw_os_error() == Some(libc::ENOENT) { NOT_FOUND } else { NOT_EXECUTABLE };
    Failure::new(format_args!("{}: {}", program.path.display(), reason(&error))).with_status(status)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use ka_core::{Config, UserTimeout, parse};

    use super::{Environment, Flags};

    fn policy(entries: &[&str], file: &str, said: Option<&str>, is_whole: bool) -> Config {
        let said = said.map(|text| parse(text.as_bytes()).unwrap());
        let mut environment = Environment(entries.iter().map(OsString::from).collect());
        environment.say(&Flags { said, is_whole, mode: None }, file.as_bytes());
        environment.variables(file.as_bytes()).config
    }

    #[test]
    fn only_a_misspelled_name_of_ours_is_recognized() {
        for (name, meant) in [
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
            assert_eq!(super::meant(name), meant, "{name}");
        }
    }

    #[test]
    fn the_command_line_overrides_the_environment_and_that_the_file() {
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
            let said = Some("idle=30,intvl=5,cnt=3,user_timeout=9");
            assert_eq!(policy(&["KA_USER_TIMEOUT=8ms"], "", said, is_whole), timeout);
        }
        assert_eq!(policy(&["KA_IDLE=7"], "", Some("cnt=3"), false), expect(7, 10, 3));
        assert_eq!(policy(&["KA_POLICY=off"], "", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&[], "KA_POLICY=off", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&["KA_POLICY=off"], "", None, false).enabled(), Some(false));
    }
}
