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

fn page(command: &clap::Command, name: &str) -> String {
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
    let page: String = body.lines().map(wrapped).collect();
    page + &sections(&extra)
}

/// Returns the section SEE ALSO: the pages of the parent command, of the subcommands, and of the parent's other
/// subcommands.
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
                let lines: Vec<_> = lines.trim().lines().map(str::trim_start).collect();
                (".SH EXAMPLES\n", format!(".nf\n{}\n.fi\n", lines.join("\n")))
            }
            Some(("Policy text", text)) => (".SH POLICY TEXT\n", wrapped(text)),
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

/// Wraps a line of roff text at 80 letters. A request is not wrapped.
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
