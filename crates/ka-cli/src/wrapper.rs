//! Programs that ka recognizes by name, because preload does not reach their work through the program itself. Wrappers
//! start another program without the preloaded library. Launchers start another program and keep the library. The work
//! of clients is done by a server that may already be running.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// A program that starts another one without the preloaded library.
struct Wrapper {
    names: &'static [&'static str],
    when: When,
    loss: Loss,
}

/// The arguments with which a wrapper loses the library.
enum When {
    Always,
    /// One of these options. The second string lists the short options that take an argument: the letters after such an
    /// option are its argument.
    Options(&'static [&'static str], &'static str),
    /// su(1) and runuser(1): a login shell, unless `-w` names LD_PRELOAD.
    Login,
    /// env(1): an empty environment, or a changed LD_PRELOAD.
    Env,
}

/// How a wrapper keeps the library out of the program that it starts.
#[derive(Clone, Copy)]
enum Loss {
    Environment,
    Replaced,
    Root,
}

impl Loss {
    const fn text(self) -> &'static str {
        match self {
            Self::Environment => "starts its program without LD_PRELOAD",
            Self::Replaced => "replaces LD_PRELOAD with its own library",
            Self::Root => {
                "starts its program in another root folder, where libka_preload.so may not be at the same path"
            }
        }
    }
}

const fn wrapper(names: &'static [&'static str], when: When, loss: Loss) -> Wrapper {
    Wrapper { names, when, loss }
}

/// Tried on Debian 12, except pkexec, run0, login, flatpak, systemd-nspawn, schroot and the container tools, which need
/// more than a test can provide. On Debian 12, faketime, fakeroot, fakechroot, eatmydata, stdbuf, torsocks and
/// proxychains4 keep the contents of LD_PRELOAD. su, runuser, setpriv, unshare and nsenter keep them too without the
/// options listed here.
static WRAPPERS: [Wrapper; 13] = [
    wrapper(CHANGES_USER, When::Always, Loss::Environment),
    wrapper(&["sudoedit", "login"], When::Always, Loss::Environment),
    wrapper(&["su", "runuser"], When::Login, Loss::Environment),
    wrapper(&["newgrp"], When::Options(&["-", "-l"], ""), Loss::Environment),
    wrapper(&["env"], When::Env, Loss::Environment),
    wrapper(&["setpriv"], When::Options(&["--reset-env"], ""), Loss::Environment),
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

/// Programs that start the first program among their arguments and keep its environment and root folder.
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

/// Explains why a preloaded library does not get into the program that this one starts. `None` if it does.
pub(crate) fn loss(
    name: &OsStr,
    arguments: &[OsString],
    is_program: impl Fn(&OsStr) -> bool,
) -> Option<String> {
    let wrapper = find(name)?;
    let is_lost = match wrapper.when {
        When::Always => true,
        When::Options(wanted, with_argument) => has_option(arguments, wanted, with_argument, is_program),
        When::Login => {
            // The name of a user may also be the name of a program.
            let is_login = has_option(arguments, &["-", "-l", "--login"], "cgGsuTw", |_| false);
            let has_name = |word: &OsString| word.as_bytes().windows(10).any(|part| part == b"LD_PRELOAD");
            is_login && !arguments.iter().any(has_name)
        }
        When::Env => Env::read(arguments.iter().map(|word| word.as_bytes())).drops,
    };
    is_lost.then(|| format!("{} {}", name.display(), wrapper.loss.text()))
}

/// Describes the arguments with which this program loses a preloaded library. `None` if it always or never does.
pub(crate) fn fact(name: &OsStr) -> Option<String> {
    let wrapper = find(name)?;
    let with = match wrapper.when {
        When::Always => return None,
        When::Options(wanted, _) => wanted.join(" or "),
        When::Login => "-, -l or --login".to_owned(),
        When::Env => "-i, -u LD_PRELOAD or LD_PRELOAD=".to_owned(),
    };
    Some(format!("with {with} it {}: ka run takes seccomp then", wrapper.loss.text()))
}

/// Programs that start their arguments as another user.
const CHANGES_USER: &[&str] = &["sudo", "doas", "pkexec", "run0"];

/// Returns whether this program starts its arguments as another user.
pub(crate) fn changes_user(name: &OsStr) -> bool {
    CHANGES_USER.iter().any(|known| OsStr::new(known) == name)
}

/// Returns whether this program is a wrapper that can also start ka, as in `sudo ka run -- PROGRAM`.
pub(crate) fn is_wrapper(name: &OsStr) -> bool {
    find(name).is_some()
}

fn find(name: &OsStr) -> Option<&'static Wrapper> {
    WRAPPERS.iter().find(|wrapper| wrapper.names.iter().any(|known| OsStr::new(known) == name))
}

/// Returns the program that a launcher starts, and its arguments.
pub(crate) fn started(
    name: &OsStr,
    arguments: &[OsString],
    is_program: impl Fn(&OsStr) -> bool,
) -> Option<Vec<OsString>> {
    if !LAUNCHERS.iter().any(|launcher| OsStr::new(launcher) == name) {
        return None;
    }
    if name == "env" {
        let rest = Env::read(arguments.iter().map(|word| word.as_bytes())).rest;
        return (!rest.is_empty()).then_some(rest);
    }
    let is_option = |word: &OsString| word.as_bytes().starts_with(b"-");
    let place = arguments.iter().position(|word| !is_option(word) && is_program(word))?;
    arguments.get(place..).map(<[OsString]>::to_vec)
}

/// Returns whether one of these options precedes the program that is started.
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
        // Letters after an option that takes an argument are its argument.
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

/// The effect of env(1)'s arguments.
#[derive(Debug, Default)]
pub(crate) struct Env {
    /// Whether env removes or changes LD_PRELOAD.
    pub(crate) drops: bool,
    /// The program that env starts, and its arguments.
    pub(crate) rest: Vec<OsString>,
}

impl Env {
    /// Parses env(1)'s arguments: `[option]... [name=value]... [program [argument]...]`.
    pub(crate) fn read<'a>(arguments: impl Iterator<Item = &'a [u8]>) -> Self {
        const NAME: &[u8] = b"LD_PRELOAD";
        let mut words: VecDeque<&[u8]> = arguments.collect();
        let mut found = Self::default();
        // -S: the words of the option's argument replace it.
        let split = |words: &mut VecDeque<&'a [u8]>, text: &'a [u8]| {
            for word in text.split(u8::is_ascii_whitespace).rev().filter(|word| !word.is_empty()) {
                words.push_front(word);
            }
        };
        let mut is_over = false;
        while let Some(word) = words.pop_front() {
            if word == b"--" {
                is_over = true;
            } else if let Some(long) = word.strip_prefix(b"--").filter(|_| !is_over) {
                let (name, value) = ka_core::bytes::cut(long, b'=');
                let is = |option: &[u8]| name.len() > 1 && option.starts_with(name);
                if is(b"ignore-environment") {
                    found.drops = true;
                } else if is(b"unset") {
                    found.drops |= value.or_else(|| words.pop_front()) == Some(NAME);
                } else if is(b"chdir") || is(b"argv0") {
                    let _ = value.or_else(|| words.pop_front());
                } else if is(b"split-string")
                    && let Some(text) = value.or_else(|| words.pop_front())
                {
                    split(&mut words, text);
                }
            } else if word == b"-" && !is_over {
                found.drops = true;
            } else if let Some(letters) = word.strip_prefix(b"-").filter(|_| !is_over) {
                for (place, letter) in letters.iter().enumerate() {
                    let behind = letters.get(place.saturating_add(1)..).filter(|rest| !rest.is_empty());
                    match letter {
                        b'i' => found.drops = true,
                        b'u' => found.drops |= behind.or_else(|| words.pop_front()) == Some(NAME),
                        b'C' | b'a' => {
                            let _ = behind.or_else(|| words.pop_front());
                        }
                        b'S' => {
                            if let Some(text) = behind.or_else(|| words.pop_front()) {
                                split(&mut words, text);
                            }
                        }
                        _ => continue,
                    }
                    if *letter != b'i' {
                        break;
                    }
                }
            } else if let (name, Some(_)) = ka_core::bytes::cut(word, b'=') {
                found.drops |= name == NAME;
                // No option follows an assignment.
                is_over = true;
            } else {
                words.push_front(word);
                break;
            }
        }
        found.rest = words.into_iter().map(|word| OsString::from_vec(word.to_vec())).collect();
        found
    }
}

/// A program whose work is done by a server. The server may already be running and has its own sockets.
#[derive(Debug)]
pub(crate) struct Client {
    names: &'static [&'static str],
    when: Asks,
    /// The server that does the work.
    server: &'static str,
    /// How to find the PID of the server, or another way to reach it.
    how: &'static str,
}

/// The arguments with which a client uses a server.
#[derive(Debug)]
enum Asks {
    Always,
    Without(&'static str),
    /// ssh(1): a control path is configured.
    Ssh,
}

static CLIENTS: [Client; 17] = [
    Client {
        names: &["ssh", "scp", "sftp", "sshfs"],
        when: Asks::Ssh,
        server: "an ssh master, if one runs for this host (ControlPath), which has the connection",
        how: "`ssh -O check HOST` prints its PID",
    },
    Client {
        names: &["docker", "nerdctl", "ctr", "podman-remote"],
        when: Asks::Always,
        server: "the container engine's daemon, which starts the containers",
        how: "`docker inspect -f '{{.State.Pid}}' NAME` prints the PID of a container's first process; ka cgroup attach \
              reaches all of a container",
    },
    Client {
        names: &["lxc", "incus"],
        when: Asks::Always,
        server: "a daemon, which starts the containers",
        how: "`lxc info NAME` prints the PID of a container's first process; ka cgroup attach reaches all of a container",
    },
    Client {
        names: &["adb"],
        when: Asks::Always,
        server: "the adb server, which has the connections to devices",
        how: "`pidof adb` prints its PID",
    },
    Client {
        names: &["tmux", "byobu"],
        when: Asks::Always,
        server: "the tmux server, which starts the programs",
        how: "`tmux display-message -p '#{pid}'` prints its PID",
    },
    Client {
        names: &["screen"],
        when: Asks::Always,
        server: "a screen session, which starts the programs",
        how: "`screen -ls` prints PID.NAME of each session",
    },
    Client {
        names: &["dtach", "abduco", "zellij"],
        when: Asks::Always,
        server: "the server of a session, which starts the programs",
        how: "`pidof dtach abduco zellij` prints its PID",
    },
    Client {
        names: &["systemd-run"],
        when: Asks::Without("--scope"),
        server: "systemd, which starts the program as a service",
        how: "`systemctl show -P MainPID UNIT` prints its PID; or systemd-run ... ka run -- PROGRAM",
    },
    Client {
        names: &["systemctl", "service", "machinectl"],
        when: Asks::Always,
        server: "systemd, which starts services",
        how: "ka cgroup attach system.slice/NAME.service reaches all of a service",
    },
    Client {
        names: &["at", "batch"],
        when: Asks::Always,
        server: "atd, which starts the program later",
        how: "put `ka run --` before the program in the job",
    },
    Client {
        names: &["gpg", "gpg2"],
        when: Asks::Always,
        server: "dirmngr, which has the connections to key servers",
        how: "`pidof dirmngr` prints its PID",
    },
    Client {
        names: &["emacsclient"],
        when: Asks::Always,
        server: "the Emacs server",
        how: "`emacsclient -e '(emacs-pid)'` prints its PID",
    },
    Client {
        names: &["code", "codium", "code-insiders"],
        when: Asks::Always,
        server: "the editor, if it runs already",
        how: "`pidof code` prints the PIDs of its processes",
    },
    Client {
        names: &["firefox", "firefox-esr", "thunderbird"],
        when: Asks::Always,
        server: "the program itself, if it runs already for this profile",
        how: "`pidof firefox firefox-esr thunderbird` prints its PID",
    },
    Client {
        names: &["chromium", "google-chrome", "google-chrome-stable"],
        when: Asks::Always,
        server: "the browser, if it runs already for this profile",
        how: "`pidof chromium chrome` prints the PIDs of its processes",
    },
    Client {
        names: &["bazel", "bazelisk"],
        when: Asks::Always,
        server: "the Bazel server, which fetches what a build needs",
        how: "`bazel info server_pid` prints its PID",
    },
    Client {
        names: &["gradle", "gradlew", "mvnd"],
        when: Asks::Always,
        server: "the build daemon, which fetches what a build needs",
        how: "`gradle --status` and `mvnd --status` print the PIDs of the daemons",
    },
];

impl Client {
    /// Returns the client with this name, whatever its arguments.
    pub(crate) fn named(name: &OsStr) -> Option<&'static Self> {
        CLIENTS.iter().find(|client| client.names.iter().any(|known| OsStr::new(known) == name))
    }

    /// Returns the client if it uses a server with these arguments.
    pub(crate) fn find(name: &OsStr, arguments: &[OsString]) -> Option<&'static Self> {
        let client =
            CLIENTS.iter().find(|client| client.names.iter().any(|known| OsStr::new(known) == name))?;
        let asks = match client.when {
            Asks::Always => true,
            Asks::Without(option) => !arguments.iter().any(|word| word == option),
            Asks::Ssh => may_have_master(arguments),
        };
        asks.then_some(client)
    }

    /// Explains that a server may do the work, and how to reach the server.
    pub(crate) fn text(&self) -> String {
        format!(
            "it may hand its work to {}. ka run does not reach a server that runs already: ka attach --follow PID does; {}",
            self.server, self.how
        )
    }
}

/// Returns whether ssh(1)'s arguments or configuration files set a control path.
fn may_have_master(arguments: &[OsString]) -> bool {
    let names_path = |text: &[u8]| {
        let text = text.to_ascii_lowercase();
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        lines.filter(|line| !line.starts_with(b"#")).any(|line| {
            let word = |word: &[u8]| line.windows(word.len()).position(|part| part == word);
            word(b"controlpath").is_some_and(|_| word(b"none").is_none())
        })
    };
    let mut words = arguments.iter().map(|word| word.as_bytes()).peekable();
    let mut file = None;
    while let Some(word) = words.next() {
        match word {
            b"-F" => file = words.peek().map(|path| PathBuf::from(OsStr::from_bytes(path))),
            // -S gives the path of the control socket.
            b"-S" => return words.peek() != Some(&&b"none"[..]),
            _ if word.starts_with(b"-") && names_path(word) => return true,
            b"-o" if words.peek().is_some_and(|option| names_path(option)) => return true,
            _ => {}
        }
    }
    let files = if let Some(file) = file {
        vec![file]
    } else {
        let own = env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/config"));
        let more = fs::read_dir("/etc/ssh/ssh_config.d").into_iter().flatten().flatten();
        let more = more.map(|entry| entry.path());
        own.into_iter().chain(["/etc/ssh/ssh_config".into()]).chain(more).collect()
    };
    files.iter().any(|file| fs::read(file).is_ok_and(|text| names_path(&text)))
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};

    use super::{CLIENTS, Client, Env, LAUNCHERS, WRAPPERS, loss, started};

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn is_program(word: &OsStr) -> bool {
        ["sh", "sudo", "ssh", "git"].iter().any(|name| OsStr::new(name) == word)
    }

    fn is_lost(line: &str) -> bool {
        let words = words(line);
        let (name, arguments) = words.split_first().unwrap();
        loss(name, arguments, is_program).is_some()
    }

    #[test]
    fn wrappers_lose_the_library_only_with_these_arguments() {
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
            let found = started(name, arguments, is_program);
            assert_eq!(found, rest.map(self::words), "{line}");
        }
        assert!(Env::read([&b"-S"[..], b"-i sh -x"].into_iter()).drops);
    }

    #[test]
    fn each_name_is_in_one_row_only() {
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

    #[test]
    fn clients_are_recognized_by_their_arguments() {
        let is_client = |line: &str| {
            let words = words(line);
            let (name, arguments) = words.split_first().unwrap();
            Client::find(name, arguments).is_some()
        };
        for line in [
            "tmux",
            "docker run x",
            "systemd-run sh",
            "ssh -F none -S /x host",
            "ssh -F none -oControlPath=/x host",
            "ssh -F none -o controlpath=/x host",
        ] {
            assert!(is_client(line), "{line}");
        }
        for line in [
            "sh",
            "systemd-run --scope sh",
            "ssh -F none host",
            "ssh -S none host",
            "ssh -F none -oControlPath=none h",
        ] {
            assert!(!is_client(line), "{line}");
        }
    }
}
