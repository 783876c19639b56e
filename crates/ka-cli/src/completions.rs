//! `ka completions`: prints a completion script for a shell. clap_complete generates it from the definition of the
//! arguments.
//!
//! The script of clap_complete completes options and fixed values. The shell itself must list processes, users, network
//! namespaces, and the arguments of the program after `ka run`. In the script for zsh, this module replaces
//! placeholders with functions of the shell. It appends code to the scripts for bash and fish. In bash, the appended
//! function runs first, and calls the function of clap_complete for the rest. In fish, the appended lines add
//! candidates.

use std::io::{self, Write as _};

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use crate::args::{self, Ka};
use crate::failure::CommandResult;

pub(crate) fn completions(args: &args::CompletionsArgs) -> CommandResult {
    let mut command = definition();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ka", &mut text);
    let text = String::from_utf8_lossy(&text);
    let text = match args.shell {
        Shell::Zsh => {
            // The function _pids of zsh would list only the processes of the terminal.
            const PIDS: &str = "compadd -- $(cd /proc; echo <->)";
            text.replace(":_urls'", &format!(":{{{PIDS}}}'"))
                .replace(":_email_addresses'", ":_path_files -W /run/netns'")
                .replace(":_cmdstring'", &format!(":{{_command_names -e; {PIDS}}}'"))
                .replace(":_cmdambivalent'", ":_normal'")
        }
        Shell::Bash => text.replace("complete -F _ka ", "complete -F _ka_and_more ") + &bash(&command),
        Shell::Fish => text.into_owned() + &fish(&command),
        _ => text.into_owned(),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}

/// Returns the definition of the arguments, with a hint for each value.
fn definition() -> Command {
    let command = Ka::command();
    // clap takes only static strings as names.
    let name = |part: &Command| &*part.get_name().to_owned().leak();
    let names: Vec<_> = command.get_subcommands().map(name).collect();
    // clap's own help command would list the subcommands twice.
    let help = Command::new("help")
        .about("Print the help of a command")
        .arg(Arg::new("command").value_parser(PossibleValuesParser::new(names)));
    let presets = PossibleValuesParser::new(ka_core::PRESETS.iter().map(|preset| preset.name));
    with_hints(command).subcommand(help).mut_subcommand("plan", |plan| {
        plan.mut_arg("preset", |preset| preset.value_parser(presets).value_hint(ValueHint::Unknown))
    })
}

fn with_hints(command: Command) -> Command {
    let hinted = |arg: Arg| {
        // A flag without a value needs no hint, and neither does an argument with a fixed list of values.
        if arg.get_action().takes_values() && arg.get_possible_values().is_empty() {
            let hint = hint(arg.get_id().as_str());
            arg.value_hint(hint)
        } else {
            arg
        }
    };
    command.disable_help_subcommand(true).mut_args(hinted).mut_subcommands(with_hints)
}

/// Returns the hint for an argument's value. clap has no hint for a PID, a network namespace, or a program or PID. The
/// hints for URLs, e-mail addresses and command strings are placeholders for these three.
fn hint(argument: &str) -> ValueHint {
    match argument {
        "pid" | "pids" => ValueHint::Url,
        "netns" => ValueHint::EmailAddress,
        "target" => ValueHint::CommandString,
        "program" => ValueHint::CommandWithArguments,
        "user" => ValueHint::Username,
        "cgroup" => ValueHint::DirPath,
        "persist" | "undo" => ValueHint::FilePath,
        // Numbers and policies. By default, the shells would offer files for these.
        _ => ValueHint::Other,
    }
}

/// Returns the flags of a command that take the next word as their value, short flags first.
fn valued(command: &Command) -> Vec<String> {
    let valued =
        || command.get_arguments().filter(|arg| arg.get_action().takes_values() && !arg.is_positional());
    let short = valued().filter_map(|arg| arg.get_short().map(|short| format!("-{short}")));
    let separate = valued().filter(|arg| !arg.is_require_equals_set());
    let long = separate.filter_map(|arg| arg.get_long().map(|long| format!("--{long}")));
    short.chain(long).collect()
}

/// Returns the code to append for bash. The package bash-completion defines `_command_offset`.
fn bash(command: &Command) -> String {
    const SCRIPT: &str = r#"
_ka_and_more() {
    local cur=$2 prev=$3 sub=${COMP_WORDS[1]} at=2
    # bash splits --flag=value into three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if [[ $sub == run ]]; then
        # The program is the first word that is neither a flag nor a flag's value.
        while ((at < COMP_CWORD)); do
            case ${COMP_WORDS[at]} in
            --) ((at += 1)) && break ;;
            @RUN@) [[ ${COMP_WORDS[at + 1]} == = ]] && ((at += 3)) || ((at += 2)) ;;
            -*) ((at += 1)) ;;
            *) break ;;
            esac
        done
        if ((at < COMP_CWORD)) || ((at == COMP_CWORD)) && [[ $cur != -* ]]; then
            if declare -F _command_offset >/dev/null; then
                _command_offset "$at"
            elif ((at == COMP_CWORD)); then
                COMPREPLY=($(compgen -c -- "$cur"))
            fi
            return
        fi
    fi
    case $prev in
    --pid) COMPREPLY=($(compgen -W "$(_ka_pids)" -- "$cur")); return ;;
    --user) COMPREPLY=($(compgen -u -- "$cur")); return ;;
    --netns) COMPREPLY=($(cd /run/netns 2>/dev/null && compgen -f -- "$cur")); return ;;
    @ALL@) ;;
    *)
        case $sub$cur in
        attach-* | check-* | ls-* | ping-* | top-*) ;;
        attach* | ls* | ping* | top*) COMPREPLY=($(compgen -W "$(_ka_pids)" -- "$cur")); return ;;
        check*) COMPREPLY=($(compgen -c -W "$(_ka_pids)" -- "$cur")); return ;;
        esac
        ;;
    esac
    _ka "$1" "$cur" "$prev"
}

_ka_pids() {
    (cd /proc && echo [0-9]*)
}
"#;
    let flags = |command: &Command| valued(command);
    let mut all: Vec<_> = command.get_subcommands().flat_map(flags).collect();
    all.sort_unstable();
    all.dedup();
    let run = command.find_subcommand("run").map(flags).unwrap_or_default();
    SCRIPT.replace("@RUN@", &run.join(" | ")).replace("@ALL@", &all.join(" | "))
}

/// Returns the code to append for fish.
fn fish(command: &Command) -> String {
    // Short flags come first: if the first flag is long, `__fish_complete_subcommand` takes it for an option of its
    // own.
    let flags = command.find_subcommand("run").map(valued).unwrap_or_default().join(" ");
    let names: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
    let lines = [
        ("help", "-f", &*names.join(" ")),
        ("run", "-x", &*format!("(__fish_complete_subcommand --fcs-skip=2 {flags})")),
        ("attach", "-f", "(__fish_complete_pids)"),
        ("check", "-f", "(__fish_complete_pids) (__fish_complete_command)"),
        ("ls", "-f", "(__fish_complete_pids)"),
        ("ls", "-x -l pid", "(__fish_complete_pids)"),
        ("ping", "-f", "(__fish_complete_pids)"),
        ("ping", "-x -l pid", "(__fish_complete_pids)"),
        ("top", "-f", "(__fish_complete_pids)"),
        ("ls", "-x -l netns", "(ls /run/netns 2>/dev/null)"),
    ];
    let line = |(part, flags, values)| {
        format!("complete -c ka -n \"__fish_ka_using_subcommand {part}\" {flags} -a \"{values}\"\n")
    };
    lines.map(line).concat()
}
