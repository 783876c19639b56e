//! Generates the manual pages man/*.1 from the definition of the command line, and compares them with the committed
//! ones.
//!
//! `make man` runs this test with `KA_MAN=write`, which writes the pages instead of comparing them.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Ka;

/// The date of the last change of the pages.
const DATE: &str = "2026-11-30";

#[test]
fn the_manual_pages_match_the_definition() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man");
    let write = std::env::var_os("KA_MAN").is_some_and(|value| value == "write");
    // `ka help` prints the contents of the other pages, so it needs no page of its own.
    let without_help = |command: clap::Command| command.disable_help_subcommand(true);
    let mut ka = without_help(Ka::command()).mut_subcommands(without_help);
    ka.build();
    let mut commands = vec![("ka".to_owned(), &ka)];
    for command in ka.get_subcommands() {
        let name = format!("ka-{}", command.get_name());
        commands.push((name.clone(), command));
        commands.extend(command.get_subcommands().map(|part| (format!("{name}-{}", part.get_name()), part)));
    }
    let names: Vec<_> = commands.iter().map(|(name, _)| name.as_str()).collect();
    let pages: Vec<_> = commands
        .iter()
        .map(|(name, command)| (name, page(command, name) + &see_also(name, &names)))
        .collect();
    for (name, text) in &pages {
        let path = folder.join(format!("{name}.1"));
        if write {
            fs::write(&path, text).unwrap();
        } else {
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                *text == committed,
                "man/{name}.1 differs from args.rs: run `make man` and commit the page"
            );
        }
    }
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let known = pages.iter().any(|(name, _)| format!("{name}.1") == file);
        assert!(known || !file.ends_with(".1"), "man/{file}: no subcommand has this name");
    }
}

/// Returns the text of a page, except SEE ALSO.
fn page(command: &clap::Command, name: &str) -> String {
    let synopsis = synopsis(command);
    let extra = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // The name of the page has a hyphen: ka-run, not "ka run".
    let command = command.clone().display_name(name.to_owned()).after_help("");
    let man = clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .section("1")
        .date(DATE)
        .source(format!("ka {}", env!("CARGO_PKG_VERSION")))
        .manual("TCP keepalive");
    let mut text = Vec::new();
    man.render(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap().replace("\n.br\n\n.br\n", "\n.br\n");
    // `sections` writes these parts in another form.
    let body = text.split(".SH VERSION\n").next().unwrap().split(".SH EXTRA\n").next().unwrap();
    let (title, body) = body.split_once(".SH NAME\n").unwrap();
    let (summary, body) = body.split_once(".SH SYNOPSIS\n").unwrap();
    let (_, body) = body.split_once(".SH DESCRIPTION\n").unwrap();
    let summary = lower_case(summary);
    let body = format!("{title}.SH NAME\n{summary}.SH SYNOPSIS\n{synopsis}\n.SH DESCRIPTION\n{body}");
    let page: String = body.lines().map(wrapped).collect();
    page + &sections(&extra)
}

/// Returns the line of NAME with the first letter of the summary in lower case, as in Linux man-pages. If the summary
/// begins with an abbreviation, such as TCP, the line is unchanged.
fn lower_case(line: &str) -> String {
    let (name, summary) = line.split_once(" \\- ").unwrap();
    let mut rest = summary.chars();
    let first = rest.next().unwrap();
    if rest.as_str().starts_with(|second: char| second.is_lowercase() || second == ' ') {
        format!("{name} \\- {}{}", first.to_lowercase(), rest.as_str())
    } else {
        line.to_owned()
    }
}

/// Returns the line of SYNOPSIS: the options with their values, then the arguments. clap_mangen omits the values.
fn synopsis(command: &clap::Command) -> String {
    let groups: Vec<Vec<_>> = command
        .get_groups()
        .filter(|group| group.is_required_set())
        .map(|group| group.get_args().filter_map(|id| find(command, id)).collect())
        .collect();
    let is_in_group = |arg: &&clap::Arg| groups.iter().flatten().any(|other| other.get_id() == arg.get_id());
    let (positionals, mut options): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(|arg| !is_in_group(arg)).partition(|arg| arg.is_positional());
    options.sort_by_key(|option| option.get_display_order());

    let mut words = vec![format!("\\fB{}\\fR", command.get_bin_name().unwrap())];
    words.extend(options.into_iter().map(|option| {
        let repeat = if matches!(option.get_action(), clap::ArgAction::Append) { "..." } else { "" };
        format!("[{}]{repeat}", usage(option))
    }));
    for group in &groups {
        let members: Vec<_> = group.iter().map(|arg| usage(arg)).collect();
        words.push(format!("{{{}}}", members.join(" | ")));
    }
    for arg in positionals {
        words.push(if arg.is_required_set() { usage(arg) } else { format!("[{}]", usage(arg)) });
    }
    if command.has_subcommands() {
        words.push("\\fICOMMAND\\fR [\\fIARGUMENT\\fR]...".to_owned());
    }
    words.join(" ")
}

fn find<'a>(command: &'a clap::Command, id: &clap::Id) -> Option<&'a clap::Arg> {
    command.get_arguments().find(|arg| arg.get_id() == id)
}

/// Returns how an argument is typed, as `-d S`, `--persist[=FILE]` or `PID...`. A line does not break within it.
fn usage(arg: &clap::Arg) -> String {
    let value = arg.get_value_names().unwrap_or_default().join("\\~");
    let value = format!("\\fI{value}\\fR");
    let count = arg.get_num_args().unwrap();
    if arg.is_trailing_var_arg_set() {
        return format!("[\\fB\\-\\-\\fR] {value} [\\fIARGUMENT\\fR]...");
    }
    if arg.is_positional() {
        return if count.max_values() > 1 { value + "..." } else { value };
    }
    let flag = match (arg.get_short(), arg.get_long()) {
        (Some(short), _) => format!("-{short}"),
        (None, long) => format!("--{}", long.unwrap()),
    };
    let flag = format!("\\fB{}\\fR", flag.replace('-', "\\-"));
    if !count.takes_values() {
        flag
    } else if arg.is_require_equals_set() {
        format!("{flag}[={value}]")
    } else {
        format!("{flag}\\~{value}")
    }
}

/// Returns SEE ALSO: the pages of the command above, of the subcommands below, and of the others at the same level.
fn see_also(name: &str, names: &[&str]) -> String {
    let above = |name: &str| name.rsplit_once('-').map(|(above, _)| above.to_owned());
    let is_near = |other: &str| {
        other != name
            && (above(other).as_deref() == Some(name)
                || above(name).as_deref() == Some(other)
                || above(other).is_some() && above(other) == above(name))
    };
    let mut pages: Vec<_> = names.iter().filter(|other| is_near(other)).map(|other| (*other, 1)).collect();
    pages.sort_unstable();
    pages.extend([("ka", 7), ("ka-preload", 7), ("tcp", 7)]);
    let lines: Vec<_> =
        pages.iter().map(|(name, section)| format!(".BR {} ({section})", name.replace('-', "\\-"))).collect();
    format!(".SH SEE ALSO\n{}\n", lines.join(",\n"))
}

/// Converts the text below the options in --help to sections: examples, the exit status, notes and others.
fn sections(extra: &str) -> String {
    let mut page = String::new();
    let mut before = "";
    for paragraph in extra.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let paragraph = paragraph.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        let (head, text) = match paragraph.split_once(':') {
            Some(("Examples", lines)) => {
                let lines: Vec<_> = lines.trim().lines().map(example).collect();
                (".SH EXAMPLES\n", format!(".nf\n{}\n.fi\n", lines.join("\n")))
            }
            Some(("Policy text", text)) => (".SH POLICY TEXT\n", wrapped(text)),
            Some(("Unacknowledged data", text)) => (".SH UNACKNOWLEDGED DATA\n", wrapped(text)),
            Some(("Status", text)) => (".SH EXIT STATUS\n", wrapped(text)),
            // The lines after the first are a list: a key, a colon, and its description.
            Some(("JSON keys", lines)) => {
                let (text, keys) = lines.split_once('\n').unwrap_or((lines, ""));
                let keys = keys.lines().filter_map(|line| line.trim().split_once(": "));
                let list: Vec<_> =
                    keys.map(|(key, text)| format!(".TP\n\\fB{key}\\fR\n{}", wrapped(text))).collect();
                (".SH JSON\n", wrapped(text) + &list.concat())
            }
            Some(("Environment", text)) => (".SH ENVIRONMENT\n", wrapped(text)),
            _ => (".SH NOTES\n", wrapped(&paragraph)),
        };
        page += if head == before { ".PP\n" } else { head };
        page += &text;
        before = head;
    }
    page
}

/// Returns a line of Examples without its indentation. A comment, which two blanks separate from the command, gets a
/// `#`, so that the whole line can be copied.
fn example(line: &str) -> String {
    let line = line.trim_start();
    match line.split_once("  ") {
        Some((command, rest)) if !rest.trim_start().starts_with('#') => {
            let comment = rest.trim_start();
            let column = line.len() - comment.len();
            format!("{command:column$}# {comment}")
        }
        _ => line.to_owned(),
    }
}

/// Wraps a line of roff text to at most 78 columns. A request stays as it is.
fn wrapped(line: &str) -> String {
    if line.starts_with('.') {
        return format!("{}\n", line.trim_end());
    }
    let mut text = String::new();
    let mut length = 0;
    for word in line.split_whitespace() {
        if length > 0 && length + 1 + word.len() > 78 {
            text.push('\n');
            length = 0;
        }
        if length > 0 {
            text.push(' ');
        }
        text += word;
        length += 1 + word.len();
    }
    text + "\n"
}
