//! Clients whose work a server does, such as docker(1). ka recognizes them by name. The server has its own sockets, and
//! often runs already. `ka run` does not reach these sockets.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A program whose work a server does.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) names: &'static [&'static str],
    when: UsesServer,
    /// The server that does the work.
    server: &'static str,
    /// Advice: how to find the PID of the server, or another way to reach it.
    how: &'static str,
}

/// The condition under which a client uses a server.
#[derive(Debug)]
enum UsesServer {
    Always,
    /// The arguments do not contain this option.
    Without(&'static str),
    /// For ssh(1): a control path is configured.
    Ssh,
}

pub(crate) static CLIENTS: [Client; 17] = [
    Client {
        names: &["ssh", "scp", "sftp", "sshfs"],
        when: UsesServer::Ssh,
        server: "the ssh master of this host, if one is running (ControlPath), which has the connection",
        how: "`ssh -O check HOST` prints its PID",
    },
    Client {
        names: &["docker", "nerdctl", "ctr", "podman-remote"],
        when: UsesServer::Always,
        server: "the container engine's daemon, which starts the containers",
        how: "`docker inspect -f '{{.State.Pid}}' NAME` prints the PID of a container's first process; ka cgroup \
              attach reaches all of a container",
    },
    Client {
        names: &["lxc", "incus"],
        when: UsesServer::Always,
        server: "a daemon, which starts the containers",
        how: "`lxc info NAME` prints the PID of a container's first process; ka cgroup attach reaches all of a \
              container",
    },
    Client {
        names: &["adb"],
        when: UsesServer::Always,
        server: "the adb server, which has the connections to devices",
        how: "`pidof adb` prints its PID",
    },
    Client {
        names: &["tmux", "byobu"],
        when: UsesServer::Always,
        server: "the tmux server, which starts the programs",
        how: "`tmux display-message -p '#{pid}'` prints its PID",
    },
    Client {
        names: &["screen"],
        when: UsesServer::Always,
        server: "a screen session, which starts the programs",
        how: "`screen -ls` prints PID.NAME of each session",
    },
    Client {
        names: &["dtach", "abduco", "zellij"],
        when: UsesServer::Always,
        server: "the server of a session, which starts the programs",
        how: "`pidof dtach abduco zellij` prints its PID",
    },
    Client {
        names: &["systemd-run"],
        when: UsesServer::Without("--scope"),
        server: "systemd, which starts the program as a service",
        how: "`systemctl show -P MainPID UNIT` prints its PID; or systemd-run ... ka run -- PROGRAM",
    },
    Client {
        names: &["systemctl", "service", "machinectl"],
        when: UsesServer::Always,
        server: "systemd, which starts services",
        how: "ka cgroup attach system.slice/NAME.service reaches all of a service",
    },
    Client {
        names: &["at", "batch"],
        when: UsesServer::Always,
        server: "atd, which starts the program later",
        how: "put `ka run --` before the program in the job",
    },
    Client {
        names: &["gpg", "gpg2"],
        when: UsesServer::Always,
        server: "dirmngr, which has the connections to key servers",
        how: "`pidof dirmngr` prints its PID",
    },
    Client {
        names: &["emacsclient"],
        when: UsesServer::Always,
        server: "the Emacs server",
        how: "`emacsclient -e '(emacs-pid)'` prints its PID",
    },
    Client {
        names: &["code", "codium", "code-insiders"],
        when: UsesServer::Always,
        server: "the editor, if it is already running",
        how: "`pidof code` prints the PIDs of its processes",
    },
    Client {
        names: &["firefox", "firefox-esr", "thunderbird"],
        when: UsesServer::Always,
        server: "the program itself, if it is already running for this profile",
        how: "`pidof firefox firefox-esr thunderbird` prints its PID",
    },
    Client {
        names: &["chromium", "google-chrome", "google-chrome-stable"],
        when: UsesServer::Always,
        server: "the browser, if it is already running for this profile",
        how: "`pidof chromium chrome` prints the PIDs of its processes",
    },
    Client {
        names: &["bazel", "bazelisk"],
        when: UsesServer::Always,
        server: "the Bazel server, which fetches what a build needs",
        how: "`bazel info server_pid` prints its PID",
    },
    Client {
        names: &["gradle", "gradlew", "mvnd"],
        when: UsesServer::Always,
        server: "the build daemon, which fetches what a build needs",
        how: "`gradle --status` and `mvnd --status` print the PIDs of the daemons",
    },
];

impl Client {
    /// Returns the client with this name, for any arguments.
    pub(crate) fn named(name: &OsStr) -> Option<&'static Self> {
        CLIENTS.iter().find(|client| client.names.iter().any(|known| OsStr::new(known) == name))
    }

    /// Returns the client with this name, if it uses a server with these arguments.
    pub(crate) fn find(name: &OsStr, arguments: &[OsString]) -> Option<&'static Self> {
        let client = Self::named(name)?;
        let uses_server = match client.when {
            UsesServer::Always => true,
            UsesServer::Without(option) => !arguments.iter().any(|word| word == option),
            UsesServer::Ssh => may_have_master(arguments),
        };
        uses_server.then_some(client)
    }

    /// Explains that a server may do the work, and how to reach the server.
    pub(crate) fn text(&self) -> String {
        format!(
            "it may hand its work to {}. ka run does not reach a server that is already running; ka attach \
             --follow PID does: {}",
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
    use std::ffi::OsString;

    use super::Client;

    #[test]
    fn clients_are_recognized_by_their_arguments() {
        let is_client = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
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
