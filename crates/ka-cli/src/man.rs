//! The manual pages in man/, which are made of the definition that the command reads its arguments by.
//!
//! `make man` runs this with `KA_MAN=write`, which writes the pages instead of comparing them.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Ka;

/// Of the last change that the pages tell of.
const DATE: &str = "2026-11-22";

#[test]
fn the_pages_are_what_the_definition_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man");
    let write = std::env::var_os("KA_MAN").is_some_and(|value| value == "write");
    let mut ka = Ka::command();
    ka.build();
    let mut pages = vec![("ka".to_owned(), page(&ka, "ka"))];
    for command in ka.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("ka-{}", command.get_name());
        pages.push((name.clone(), page(command, &name)));
        for part in command.get_subcommands() {
            let name = format!("{name}-{}", part.get_name());
            pages.push((name.clone(), page(part, &name)));
        }
    }
    for (name, text) in &pages {
        let path = folder.join(name).with_extension("1");
        if write {
            fs::write(&path, text).unwrap();
        } else {
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                *text == committed,
                "man/{name}.1 is not what args.rs says: run `make man` and commit it"
            );
        }
    }
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let known = pages.iter().any(|(name, _)| format!("{name}.1") == file);
        assert!(known || !file.ends_with(".1"), "man/{file} is of no subcommand");
    }
}

fn page(command: &clap::Command, name: &str) -> String {
    // The name without the blank: that of the page.
    let extra = command.get_after_help().map(ToString::to_string).unwrap_or_default();
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
    // What is behind these is said otherwise below.
    let body = text.split(".SH VERSION\n").next().unwrap().split(".SH EXTRA\n").next().unwrap();
    let mut page: String = body.lines().map(wrapped).collect();
    page += &sections(&extra);
    page += &match name {
        "ka" => ".SH SEE ALSO\n.BR tcp (7),\n.BR ka\\-preload (7)\n".to_owned(),
        _ => ".SH SEE ALSO\n.BR ka (1),\n.BR ka\\-preload (7)\n".to_owned(),
    };
    page
}

/// What stands below the options in --help: examples, the status, and what else there is to say.
fn sections(extra: &str) -> String {
    let mut page = String::new();
    for paragraph in extra.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let paragraph = paragraph.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        let (head, text) = match paragraph.split_once(':') {
            Some(("Examples", lines)) => {
                let lines: Vec<_> = lines.trim().lines().map(str::trim_start).collect();
                (".SH EXAMPLES\n", format!(".nf\n{}\n.fi\n", lines.join("\n")))
            }
            Some(("Status", text)) => (".SH EXIT STATUS\n", wrapped(text)),
            Some(("Environment", text)) => (".SH ENVIRONMENT\n", wrapped(text)),
            _ => (".SH NOTES\n", wrapped(&paragraph)),
        };
        page += head;
        page += &text;
    }
    page
}

/// A line of roff text as lines of at most 80 letters: a request stays as it is.
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
