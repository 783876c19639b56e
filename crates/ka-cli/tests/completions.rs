//! `ka completions`: what bash, zsh and fish offer for a beginning, with the script that ka prints for them.

#[path = "../../../tests/support/mod.rs"]
mod support;

mod command;

use std::fs;
use std::path::Path;
use std::process::Command;

use command::{bare, ka};
use support::{scratch, skip, stdout};

/// A line up to the cursor, a candidate that the shell must offer, and one that it must not.
const CASES: [(&str, &str, &str); 19] = [
    ("ka pl", "plan", "run"),
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
];

/// The program's own completion, which bash, zsh and fish bring along.
const OF_PROGRAMS: [(&str, &str, &str); 2] =
    [("ka run git stas", "stash", "status"), ("ka run -v -p 60,10,6 -- git stas", "stash", "status")];

fn script(shell: &str) -> std::path::PathBuf {
    let path = scratch(&format!("completions-{shell}"));
    fs::create_dir(&path).unwrap();
    let path = path.join("_ka");
    fs::write(&path, stdout(ka().args(["completions", shell]))).unwrap();
    path
}

/// Returns whether there is a shell, or git, whose completion is asked for.
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\""]).arg(program).output().unwrap();
    if !found.status.success() {
        skip(&format!("there is no {program}, so what it completes was not tried"));
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

/// A shell on a machine that has a network namespace of this name, as far as a name is looked for.
fn shell(name: &str) -> Command {
    const RUN: &str =
        "mount -t tmpfs none /run && mkdir /run/netns && : >/run/netns/ka-blue && exec \"$0\" \"$@\"";
    let mut command = bare("unshare");
    command.args(support::user_namespace()).args(["--mount", "sh", "-c", RUN, name]);
    command
}

fn in_bash(script: &Path, before: &str, line: &str) -> Vec<String> {
    // As bash splits a line: = is a word.
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
fn bash_completes() {
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
        skip("there is no bash-completion, which knows what programs take");
        return;
    }
    check(&CASES, |line| in_bash(&script, &format!("source {package}; "), line));
    if has("git") {
        check(&OF_PROGRAMS, |line| in_bash(&script, &format!("source {package}; "), line));
    }
}

#[test]
fn fish_completes() {
    if !has("fish") {
        return;
    }
    let script = script("fish");
    let home = scratch("fish-home");
    fs::create_dir(&home).unwrap();
    let offered = |line: &str| {
        let mut fish = shell("fish");
        fish.args(["-c", "source $argv[1]; complete -C $argv[2]"]).arg(&script).arg(line);
        let path = format!("{}:{}", support::release().display(), std::env::var("PATH").unwrap());
        let offered = stdout(fish.env("HOME", &home).env("PATH", path));
        offered.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    check(&CASES, offered);
    if has("git") {
        check(&OF_PROGRAMS, offered);
    }
}

/// In a terminal, because zsh completes nowhere else. Each candidate is written to a file as it is added.
#[test]
fn zsh_completes() {
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
        let path = format!("{}:{}", support::release().display(), std::env::var("PATH").unwrap());
        stdout(zsh.env("PATH", path).env("ZDOTDIR", &folder));
        fs::read_to_string(&found).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    check(&CASES, offered);
    if has("git") {
        check(&OF_PROGRAMS, offered);
    }
}
