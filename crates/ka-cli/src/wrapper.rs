//! Programs that start another program. ka recognizes them by name. Wrappers start it without the preloaded library,
//! some of them only with certain options. Launchers keep the library.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use crate::env_arguments::EnvArguments;

/// The variable that lists preloaded libraries. ld.so(8)
pub(crate) const PRELOAD: &[u8] = b"LD_PRELOAD";

/// A program that starts another one without the preloaded library.
struct Wrapper {
    names: &'static [&'static str],
    when: When,
    loss: Loss,
}

/// The condition under which a wrapper loses the library.
enum When {
    /// Any arguments.
    Always,
    /// One of these options is given. The second string lists the short options that take an argument.
    Options(&'static [&'static str], &'static str),
    /// For su(1) and runuser(1): they start a login shell, and `-w` does not name LD_PRELOAD.
    Login,
    /// For env(1): it clears the environment, or changes LD_PRELOAD.
    Env,
}

/// The reason why the library does not reach the program that a wrapper starts.
#[derive(Clone, Copy)]
enum Loss {
    /// The wrapper removes LD_PRELOAD from the environment.
    Removed,
    /// The wrapper sets LD_PRELOAD to another library.
    Replaced,
    /// The wrapper changes the root directory, where the path of the library may not exist.
    Root,
}

impl Loss {
    const fn description(self) -> &'static str {
        match self {
            Self::Removed => "starts its program without LD_PRELOAD",
            Self::Replaced => "replaces LD_PRELOAD with its own library",
            Self::Root => {
                "starts its program in another root directory, which may not contain libka_preload.so"
            }
        }
    }
}

const fn wrapper(names: &'static [&'static str], when: When, loss: Loss) -> Wrapper {
    Wrapper { names, when, loss }
}

/// The known wrappers. We tried them on Debian 12, except pkexec, run0, login, flatpak, systemd-nspawn, schroot and the
/// container tools, which a test cannot set up. faketime, fakeroot, fakechroot, eatmydata, stdbuf, torsocks and
/// proxychains4 are not here, because on Debian 12 they keep the contents of LD_PRELOAD. Without the options listed
/// here, su, runuser, setpriv, unshare and nsenter keep them too.
static WRAPPERS: [Wrapper; 13] = [
    wrapper(CHANGES_USER, When::Always, Loss::Removed),
    wrapper(&["sudoedit", "login"], When::Always, Loss::Removed),
    wrapper(&["su", "runuser"], When::Login, Loss::Removed),
    wrapper(&["newgrp"], When::Options(&["-", "-l"], ""), Loss::Removed),
    wrapper(&["env"], When::Env, Loss::Removed),
    wrapper(&["setpriv"], When::Options(&["--reset-env"], ""), Loss::Removed),
    wrapper(&["mptcpize"], When::Always, Loss::Replaced),
    wrapper(
        &[
            "chroot",
            "bwrap",
            "flatpak",
            "systemd-nspawn",
            "firejail",
            "schroot",
            "arch-chroot",
            "proot",
            "nsjail",
        ],
        When::Always,
        Loss::Root,
    ),
    wrapper(&["runc", "crun", "lxc-attach", "lxc-execute", "lxc-start"], When::Always, Loss::Root),
    wrapper(&["unshare"], When::Options(&["-R", "--root"], "GSwR"), Loss::Root),
    wrapper(
        &["nsenter"],
        When::Options(&["-m", "--mount", "-r", "--root", "-a", "--all"], "tGS"),
        Loss::Root,
    ),
    wrapper(&["chpst"], When::Options(&["-/"], "uUbemdopfcrt/CnlL"), Loss::Root),
    wrapper(&["start-stop-daemon"], When::Options(&["-r", "--chroot"], "xnsugkNIPpdrRcOa"), Loss::Root),
];

/// Programs that start the first program among their arguments, and keep the environment and the root directory.
const LAUNCHERS: [&str; 37] = [
    "cgexec",
    "choom",
    "chpst",
    "chronic",
    "chrt",
    "dbus-run-session",
    "dumb-init",
    "eatmydata",
    "env",
    "envdir",
    "envuidgid",
    "fakeroot",
    "faketime",
    "flock",
    "ionice",
    "linux32",
    "linux64",
    "nice",
    "nohup",
    "nsenter",
    "numactl",
    "prlimit",
    "proxychains4",
    "runuser",
    "setarch",
    "setpriv",
    "setsid",
    "setuidgid",
    "stdbuf",
    "strace",
    "taskset",
    "time",
    "timeout",
    "tini",
    "torify",
    "torsocks",
    "unshare",
];

/// Explains why a preloaded library does not reach the program that this one starts. Returns `None` if it does, or if
/// this program is not a wrapper. `is_program` returns whether a word names a program. Options before this word belong
/// to the wrapper.
pub(crate) fn preload_loss(
    name: &OsStr,
    arguments: &[OsString],
    is_program: impl Fn(&OsStr) -> bool,
) -> Option<String> {
    let wrapper = find(name)?;
    let is_lost = match wrapper.when {
        When::Always => true,
        When::Options(wanted, with_argument) => has_option(arguments, wanted, with_argument, is_program),
        When::Login => {
            // The name of a user may also be the name of a program, so do not stop at programs.
            let is_login = has_option(arguments, &["-", "-l", "--login"], "cgGsuTw", |_| false);
            let has_name =
                |word: &OsString| word.as_bytes().windows(PRELOAD.len()).any(|part| part == PRELOAD);
            is_login && !arguments.iter().any(has_name)
        }
        When::Env => EnvArguments::parse(arguments.iter().map(|word| word.as_bytes())).drops_preload,
    };
    is_lost.then(|| format!("{} {}", name.display(), wrapper.loss.description()))
}

/// Describes the options with which this wrapper loses a preloaded library. Returns `None` if it always or never does.
pub(crate) fn options_fact(name: &OsStr) -> Option<String> {
    let wrapper = find(name)?;
    let with = match wrapper.when {
        When::Always => return None,
        When::Options(wanted, _) => wanted.join(" or "),
        When::Login => "-, -l or --login".to_owned(),
        When::Env => "-i, -u LD_PRELOAD or LD_PRELOAD=".to_owned(),
    };
    Some(format!("with {with}, it {}; ka run then uses seccomp", wrapper.loss.description()))
}

/// Programs that start their arguments as another user.
const CHANGES_USER: &[&str] = &["sudo", "doas", "pkexec", "run0"];

/// Returns whether this program starts its arguments as another user.
pub(crate) fn changes_user(name: &OsStr) -> bool {
    contains(CHANGES_USER, name)
}

/// Returns whether this program is a wrapper that can also start ka, as in `sudo ka run -- PROGRAM`.
pub(crate) fn is_wrapper(name: &OsStr) -> bool {
    find(name).is_some()
}

fn find(name: &OsStr) -> Option<&'static Wrapper> {
    WRAPPERS.iter().find(|wrapper| contains(wrapper.names, name))
}

fn contains(names: &[&str], name: &OsStr) -> bool {
    names.iter().any(|known| OsStr::new(known) == name)
}

/// Returns the program that a launcher starts, and its arguments. Returns `None` if this program is not a launcher.
pub(crate) fn started_command(
    name: &OsStr,
    arguments: &[OsString],
    is_program: impl Fn(&OsStr) -> bool,
) -> Option<Vec<OsString>> {
    if !contains(&LAUNCHERS, name) {
        return None;
    }
    if name == "env" {
        let command = EnvArguments::parse(arguments.iter().map(|word| word.as_bytes())).command;
        return (!command.is_empty()).then_some(command);
    }
    let is_option = |word: &OsString| word.as_bytes().starts_with(b"-");
    let place = arguments.iter().position(|word| !is_option(word) && is_program(word))?;
    arguments.get(place..).map(<[OsString]>::to_vec)
}

/// Returns whether one of these options precedes the program that is started. `with_argument` lists the short options
/// that take an argument.
fn has_option(
    arguments: &[OsString],
    wanted: &[&str],
    with_argument: &str,
    is_program: impl Fn(&OsStr) -> bool,
) -> bool {
    let mut words = arguments.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if !word.as_bytes().starts_with(b"-") && is_program(word) {
            break;
        }
        let word = word.as_bytes();
        let letters = word.strip_prefix(b"-").filter(|rest| !rest.starts_with(b"-")).unwrap_or_default();
        let takes = letters.iter().position(|letter| with_argument.as_bytes().contains(letter));
        // The letters after such an option are its argument.
        let letters = takes.map_or(letters, |end| letters.get(..end.saturating_add(1)).unwrap_or_default());
        let (name, _) = ka_core::bytes::cut(word, b'=');
        let is_given = |option: &&str| match option.as_bytes() {
            // Long options may be abbreviated.
            long @ [b'-', b'-', ..] => name.len() > 4 && long.starts_with(name),
            [b'-', letter] => letters.contains(letter),
            plain => plain == word,
        };
        if wanted.iter().any(is_given) {
            return true;
        }
        if takes.is_some() && letters.len().checked_add(1) == Some(word.len()) {
            words.next();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};

    use super::{LAUNCHERS, WRAPPERS, preload_loss, started_command};
    use crate::client::CLIENTS;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn is_program(word: &OsStr) -> bool {
        ["sh", "sudo", "ssh", "git"].iter().any(|name| OsStr::new(name) == word)
    }

    fn is_lost(line: &str) -> bool {
        let words = words(line);
        let (name, arguments) = words.split_first().unwrap();
        preload_loss(name, arguments, is_program).is_some()
    }

    #[test]
    fn some_wrappers_lose_the_library_only_with_certain_options() {
        for line in [
            "sudo sh",
            "su -",
            "su nobody -l",
            "su -lc id",
            "su --login nobody",
            "runuser - nobody",
            "env -i sh",
            "env - sh",
            "env -u LD_PRELOAD A=1 sh",
            "env -vu LD_PRELOAD sh",
            "env -uLD_PRELOAD sh",
            "env --unset LD_PRELOAD sh",
            "env --ignore sh",
            "env LD_PRELOAD=x sh",
            "env -C / -i sh",
            "setpriv --reuid 1000 --reset-env sh",
            "mptcpize run sh",
            "chroot / sh",
            "unshare -nR /x sh",
            "unshare --root=/x sh",
            "nsenter -t 1 -m sh",
            "nsenter -t1 --mount=/x sh",
            "nsenter -am sh",
            "chpst -u git -/ /x sh",
        ] {
            assert!(is_lost(line), "{line}");
        }
        for line in [
            "su nobody",
            "su nobody -c x",
            "su -sl nobody",
            "su -w LD_PRELOAD -l nobody",
            "runuser -u nobody -- sh -l",
            "env sh -i",
            "env A=1 -i sh",
            "env -Si sh",
            "env -u A sh",
            "env LD_PRELOADS=x sh",
            "env -C -i sh",
            "setpriv --reuid 1000 sh --reset-env",
            "unshare -n sh -R",
            "unshare -S git sh -R /x",
            "nsenter -t 1 -n sh -m",
            "nsenter -tm sh",
            "nice sudo",
            "sh -i",
        ] {
            assert!(!is_lost(line), "{line}");
        }
    }

    #[test]
    fn a_launcher_starts_the_first_program_among_its_arguments() {
        for (line, rest) in [
            ("nice -n 5 sudo sh", Some("sudo sh")),
            ("timeout -s KILL 5 sh -c ssh", Some("sh -c ssh")),
            ("env -i A=1 sh -x", Some("sh -x")),
            ("env -S A=1\tsh -x", Some("sh -x")),
            ("env A=1", None),
            ("nice -n 5", None),
            ("sudo sh", None),
        ] {
            let words = words(line);
            let (name, arguments) = words.split_first().unwrap();
            let found = started_command(name, arguments, is_program);
            assert_eq!(found, rest.map(self::words), "{line}");
        }
    }

    #[test]
    fn each_name_is_in_one_table_row() {
        let wrappers = WRAPPERS.iter().flat_map(|wrapper| wrapper.names);
        let clients = CLIENTS.iter().flat_map(|client| client.names);
        let mut names: Vec<_> = wrappers.chain(clients).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(LAUNCHERS.is_sorted());
    }

    #[test]
    fn the_manual_names_each_wrapper() {
        let page = include_str!("../../../man/ka-run.1").replace("\\-", "-");
        for name in WRAPPERS.iter().flat_map(|wrapper| wrapper.names) {
            let is_name = |word: &str| word.trim_end_matches([',', ';', '.', ':']) == *name;
            assert!(page.split_whitespace().any(is_name), "{name}");
        }
    }
}
