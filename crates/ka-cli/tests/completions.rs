//! `ka completions`: the candidates that bash, zsh and fish offer with the script that ka prints for them.

mod command;

use std::fs;
use std::path::Path;
use std::process::Command;

use command::{bare, ka};
use ka_test::artifact::release;
use ka_test::child::stdout;
use ka_test::log::skip;
use ka_test::namespace::user_namespace;
use ka_test::path::scratch;

/// A line up to the cursor, a candidate that the shell must offer, and a candidate that it must not offer.
const CASES: [(&str, &str, &str); 26] = [
    ("ka pl", "plan", "run"),
    ("ka measure --from-", "--from-server", "--from"),
    ("ka plan --preset aws-n", "aws-nlb", "azure-lb"),
    ("ka attach --user roo", "root", "run"),
    ("ka attach 1", "1", "Cargo.toml"),
    ("ka attach -v 1", "1", "Cargo.toml"),
    ("ka attach --po", "--port", "1"),
    ("ka ls --pid 1", "1", "Cargo.toml"),
    ("ka ls --netns ka-b", "ka-blue", "Cargo.toml"),
    ("ka check unam", "uname", "Cargo.toml"),
    ("ka check 1", "1", "Cargo.toml"),
    ("ka check --js", "--json", "uname"),
    ("ka run --via sec", "seccomp", "preload"),
    ("ka run --best", "--best-effort", "uname"),
    ("ka run unam", "uname", "unshare"),
    ("ka run -- unam", "uname", "unshare"),
    ("ka run -v -p 60,10,6 --via seccomp unam", "uname", "seccomp"),
    ("ka help at", "attach", "run"),
    ("ka cgroup det", "detach", "attach"),
    ("ka ls ", "1", "Cargo.toml"),
    ("ka ping 1", "1", "Cargo.toml"),
    ("ka ping --dry", "--dry-run", "1"),
    ("ka to", "top", "attach"),
    ("ka top 1", "1", "Cargo.toml"),
    ("ka top --mode fl", "floor", "1"),
    ("ka watch --me", "--metrics", "--port"),
];

/// Candidates of git's own completion, which comes with the shells.
const OF_PROGRAMS: [(&str, &str, &str); 2] =
    [("ka run git stas", "stash", "status"), ("ka run -v -p 60,10,6 -- git stas", "stash", "status")];

fn script(shell: &str) -> std::path::PathBuf {
    let path = scratch(&format!("completions-{shell}"));
    fs::create_dir(&path).unwrap();
    let path = path.join("_ka");
    fs::write(&path, stdout(ka().args(["completions", shell]))).unwrap();
    path
}

/// Returns whether a program is installed: a shell, or git. Skips loudly if not.
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\""]).arg(program).output().unwrap();
    if !found.status.success() {
        skip(&format!("{program} is not installed, so its completion was not tested"));
    }
    found.status.success()
}

fn check(cases: &[(&str, &str, &str)], offered: impl Fn(&str) -> Vec<String>) {
    for (line, wanted, unwanted) in cases {
        let offered = offered(line);
        let has = |wanted: &str| offered.iter().any(|word| word.trim_end() == wanted);
        assert!(has(wanted), "{line}: {offered:?}");
        assert!(!has(unwanted), "{line}: {offered:?}");
    }
}

/// Returns a command that runs a shell with its own /run, where ip-netns(8) has the name `ka-blue`.
fn shell(name: &str) -> Command {
    const RUN: &str =
        "mount -t tmpfs none /run && mkdir /run/netns && : >/run/netns/ka-blue && exec \"$0\" \"$@\"";
    let mut command = bare("unshare");
    command.args(user_namespace()).args(["--mount", "sh", "-c", RUN, name]);
    command
}

fn in_bash(script: &Path, before: &str, line: &str) -> Vec<String> {
    // bash splits a line at = too, and makes = a word.
    const ASK: &str = "line=$2; COMP_LINE=$line; COMP_POINT=${#line}; COMP_WORDS=(${line//=/ = }); \
        [[ $line != *' ' ]] || COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
        set -- $(complete -p ka); while [[ $1 != -F ]]; do shift; done; \
        $2 ka \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\" 2>/dev/null; \
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let ask = format!("{before}source \"$1\"; {ASK}");
    let mut bash = shell("bash");
    bash.args(["--norc", "-c", &ask, "bash"]).arg(script).arg(line);
    stdout(&mut bash).lines().map(str::to_owned).collect()
}

#[test]
fn bash_offers_the_right_candidates() {
    if !has("bash") {
        return;
    }
    let script = script("bash");
    check(&CASES, |line| in_bash(&script, "", line));
    let after_equals = [
        ("ka plan --preset=aws-n", "aws-nlb", "azure-lb"),
        ("ka run --via=seccomp unam", "uname", "seccomp"),
        ("ka ls --pid=1", "1", "Cargo.toml"),
    ];
    check(&after_equals, |line| in_bash(&script, "", line));
    let package = "/usr/share/bash-completion/bash_completion";
    if !Path::new(package).exists() {
        skip("bash-completion is not installed, so completion of other programs was not tested");
        return;
    }
    check(&CASES, |line| in_bash(&script, &format!("source {package}; "), line));
    if has("git") {
        check(&OF_PROGRAMS, |line| in_bash(&script, &format!("source {package}; "), line));
    }
}

#[test]
fn fish_offers_the_right_candidates() {
    if !has("fish") {
        return;
    }
    let script = script("fish");
    let home = scratch("fish-home");
    fs::create_dir(&home).unwrap();
    let offered = |line: &str| {
        let mut fish = shell("fish");
        fish.args(["-c", "source $argv[1]; complete -C $argv[2]"]).arg(&script).arg(line);
        let path = format!("{}:{}", release().display(), std::env::var("PATH").unwrap());
        let offered = stdout(fish.env("HOME", &home).env("PATH", path));
        offered.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    check(&CASES, offered);
    if has("git") {
        check(&OF_PROGRAMS, offered);
    }
}

/// zsh completes only in a terminal. The test writes each candidate to a file when zsh adds it.
#[test]
fn zsh_offers_the_right_candidates() {
    const ASK: &str = "zmodload zsh/zpty; zpty shell zsh -i; zpty -n -w shell \"$1\"$'\\t'; \
        repeat 200; do zpty -r -t shell seen; [[ -s $OFFERED ]] && sleep 0.3 && break; sleep 0.05; done; \
        zpty -d shell";
    const START: &str = "PS1=\nfpath=($FOLDER $fpath)\nautoload -Uz compinit\ncompinit -u -D\n\
        bindkey '^I' complete-word\n\
        compadd() {\n\
            if [[ \" $* \" != *' -'[ODA]' '* ]]; then\n\
                local -a matches\n\
                builtin compadd -O matches \"$@\"\n\
                print -rl -- $matches >>$OFFERED\n\
            fi\n\
            builtin compadd \"$@\"\n\
        }\n";
    if !has("zsh") {
        return;
    }
    let script = script("zsh");
    let offered = |line: &str| {
        let folder = scratch("zsh");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(".zshrc"), START).unwrap();
        let found = folder.join("offered");
        let mut zsh = shell("zsh");
        zsh.args(["-f", "-c", ASK, "zsh", line])
            .env("OFFERED", &found)
            .env("FOLDER", script.parent().unwrap());
        let path = format!("{}:{}", release().display(), std::env::var("PATH").unwrap());
        stdout(zsh.env("PATH", path).env("ZDOTDIR", &folder));
        fs::read_to_string(&found).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    check(&CASES, offered);
    if has("git") {
        check(&OF_PROGRAMS, offered);
    }
}
