//! Tests the pages in man/: each function and each flag is on a page, and the pages agree with the header and `--help`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ka_test::artifact::release;
use ka_test::child::stdout;
use ka_test::header::{comment, header};
use ka_test::libka::EXPORTS;
use ka_test::path::root;

fn man() -> PathBuf {
    root().join("man")
}

/// Returns the pages in man/.
fn pages() -> Vec<PathBuf> {
    fs::read_dir(man()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Returns the text of a page. If the page is a link, returns the text of its target.
fn page(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match text.strip_prefix(".so ") {
        // A link names the installed folder of a section, such as man3. In this repository all pages are in one folder.
        Some(target) => {
            let (folder, file) = target.trim().split_once('/').unwrap();
            assert!(file.ends_with(&folder.replace("man", ".")), "{text} is of another section");
            fs::read_to_string(man().join(file)).unwrap_or_else(|error| panic!("man/{file}: {error}"))
        }
        None => text,
    }
}

/// Returns the text of a section.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) =
        page.split_once(&format!(".Sh {name}\n")).unwrap_or_else(|| panic!("no {name} in: {page}"));
    rest.split("\n.Sh ").next().unwrap()
}

/// Returns the functions of a SYNOPSIS as C declarations.
fn prototypes(synopsis: &str) -> Vec<String> {
    // Arguments are in quotes if they contain a blank.
    let arguments = |text: &str| -> Vec<String> {
        text.split('"').enumerate().fold(vec![], |mut arguments, (index, part)| {
            if index % 2 == 1 {
                arguments.push(part.to_owned());
            } else {
                arguments.extend(part.split_whitespace().map(String::from));
            }
            arguments
        })
    };
    let (mut result, mut declared) = (String::new(), vec![]);
    let mut open: Vec<String> = vec![];
    for line in synopsis.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            ".Ft" => result = arguments(rest).join(" "),
            ".Fn" | ".Fo" => open = arguments(rest),
            ".Fa" => open.extend(arguments(rest)),
            _ => {}
        }
        if matches!(word, ".Fn" | ".Fc") {
            let blank = if result.ends_with('*') { "" } else { " " };
            declared.push(format!("{result}{blank}{}({});", open[0], open[1..].join(", ")));
        }
    }
    declared
}

#[test]
fn function_pages_have_the_prototypes_of_the_header() {
    let header = header();
    for name in EXPORTS {
        let page = page(&man().join(name).with_extension("3"));
        assert!(
            section(&page, "NAME").contains(&format!(".Nm {name}")),
            "the page of {name} does not name it"
        );
        let declared = prototypes(section(&page, "SYNOPSIS"));
        let own = declared.iter().find(|line| line.contains(&format!("{name}(")));
        let own = own.unwrap_or_else(|| panic!("the page of {name} does not declare it"));
        assert!(header.lines().any(|line| line == own), "ka.h does not declare {own}");
    }
}

/// Each error in the header's comment of a function must be on the function's page.
#[test]
fn function_pages_name_the_errors_of_the_header() {
    let words = |text: &str| -> BTreeSet<String> {
        text.split(|letter: char| !letter.is_ascii_alphanumeric())
            .filter(|word| word.len() > 3 && word.starts_with('E') && *word == word.to_uppercase())
            .map(String::from)
            .collect()
    };
    let mut named = 0;
    for name in EXPORTS {
        let (header, page) = (words(&comment(name)), words(&page(&man().join(name).with_extension("3"))));
        let missing: Vec<_> = header.difference(&page).collect();
        assert!(missing.is_empty(), "the page of {name} does not name {missing:?}");
        named += header.len();
    }
    assert!(named > EXPORTS.len(), "the header names only {named} errors, so the test would prove nothing");
}

#[test]
fn the_page_of_the_presets_lists_all_of_them() {
    let page = page(&man().join("ka_plan_preset.3"));
    let rows: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix(".It ")?.split_once(" Ta ")).collect();
    let expected: Vec<_> =
        ka_core::PRESETS.iter().map(|preset| (preset.name, preset.path_idle_s.to_string())).collect();
    let rows: Vec<_> = rows.iter().map(|(name, seconds)| (*name, (*seconds).to_owned())).collect();
    assert_eq!(rows.split_first().unwrap().1, expected);
}

/// The page names the document of each preset, and its address. ka.h refers to the page.
#[test]
fn the_page_of_the_presets_names_each_source() {
    let page = page(&man().join("ka_plan_preset.3"));
    // A source may take several lines.
    let found: BTreeSet<(String, String, String)> = section(&page, "SOURCES")
        .split("\n.It ")
        .skip(1)
        .map(|item| {
            let (name, rest) = item.split_once('\n').unwrap();
            let (source, url) = rest.split_once("\n.Lk ").unwrap();
            // groff may break a line at `\:`.
            let url = url.lines().next().unwrap().replace("\\:", "");
            (name.to_owned(), source.replace('\n', " "), url)
        })
        .collect();
    let expected: BTreeSet<_> = ka_core::PRESETS
        .iter()
        .map(|preset| (preset.name.to_owned(), format!("{}.", preset.source), preset.url.to_owned()))
        .collect();
    assert_eq!(found, expected);
    assert!(comment("ka_plan_preset").contains("ka_plan_path(3) names its source"));
    for line in comment("ka_plan_preset").lines() {
        assert!(!line.contains("http"), "the page has the addresses: {line}");
    }
}

/// Each page of ka that another page refers to must exist. The overview must name all pages that are not links.
#[test]
fn references_among_the_pages_are_valid() {
    for path in pages() {
        let text = page(&path);
        let references = text.lines().filter_map(|line| {
            let mut words = line.strip_prefix(".Xr ")?.split_whitespace();
            Some((words.next()?, words.next()?))
        });
        for (name, section) in
            references.filter(|(name, _)| *name == "ka" || name.starts_with("ka_") || name.starts_with("ka-"))
        {
            let there = man().join(format!("{name}.{section}")).exists();
            assert!(there, "{}: {name}({section})", path.display());
        }
    }
    let overview = page(&man().join("ka.7"));
    for path in pages().iter().filter(|path| !fs::read_to_string(path).unwrap().starts_with(".so ")) {
        let (name, section) =
            (path.file_stem().unwrap().to_str().unwrap(), path.extension().unwrap().to_str().unwrap());
        let named = overview.lines().any(|line| {
            let line = line.trim_start_matches(".It ").trim_start_matches('.');
            line.starts_with(&format!("Xr {name} {section}"))
        });
        assert!(
            named || section == "1" || (name, section) == ("ka", "7"),
            "ka(7) does not name {name}({section})"
        );
    }
}

/// The pages of the command must refer to each other, and only to pages that exist. No section may occur twice.
#[test]
fn pages_of_the_command_refer_to_each_other() {
    let command = |path: &&PathBuf| path.extension().is_some_and(|section| section == "1");
    let references = |name: &str| -> BTreeSet<String> {
        let text = page(&man().join(name)).replace("\\-", "-");
        let (before, see_also) = text.split_once(".SH SEE ALSO\n").unwrap();
        let sections: Vec<_> = before.lines().filter(|line| line.starts_with(".SH ")).collect();
        let once: BTreeSet<_> = sections.iter().collect();
        assert_eq!(once.len(), sections.len(), "{name}: {sections:?}");
        let (names, rest): (Vec<_>, Vec<_>) = see_also
            .lines()
            .map(|line| {
                line.trim_end_matches(',').trim_start_matches(".BR ").replace(" (", ".").replace(')', "")
            })
            .partition(|name| name == "tcp.7" || man().join(name).exists());
        assert!(rest.is_empty(), "{name}: {rest:?}");
        names.into_iter().collect()
    };
    let pages = pages();
    for path in pages.iter().filter(command) {
        let name = path.file_name().unwrap().to_str().unwrap();
        for other in references(name).iter().filter(|other| other.ends_with(".1")) {
            assert!(references(other).contains(name), "{other} does not refer to {name}");
        }
    }
    for near in ["ka.1", "ka-attach.1", "ka-cgroup.1", "ka.7", "ka-preload.7"] {
        assert!(references("ka-run.1").contains(near), "{near}");
    }
}

#[test]
fn mandoc_reports_nothing() {
    for path in pages().iter().filter(|path| !fs::read_to_string(path).unwrap().starts_with(".so ")) {
        let output = Command::new("mandoc").args(["-T", "lint"]).arg(path).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        // Pages of other packages need not be installed on this machine.
        let printed: Vec<_> =
            printed.lines().filter(|line| !line.contains("referenced manual not found")).collect();
        assert!(printed.is_empty(), "{printed:#?}");
    }
}

/// An enclosing macro, such as Pq, encloses the rest of its line, except for punctuation at the end of the line.
#[test]
fn enclosing_macros_end_at_the_right_word() {
    for path in pages() {
        let text = page(&path);
        let encloses = |line: &&str| [".Pq ", ".Dq ", ".Sq "].iter().any(|name| line.starts_with(name));
        for line in text.lines().filter(encloses) {
            let enclosed = line.trim_end_matches([' ', ',', '.', ';', ':']);
            assert!(
                !enclosed.split(' ').any(|word| word.ends_with(';') || word == ","),
                "{}: {line}",
                path.display()
            );
        }
    }
    let rendered = stdout(Command::new("mandoc").args(["-T", "ascii"]).arg(man().join("ka-preload.7")));
    let words: Vec<_> = rendered.split_whitespace().collect();
    let sentence = r#"A policy, as "60,10,6" or "idle=5m, user_timeout=auto"; see"#;
    assert!(words.join(" ").contains(sentence));
}

/// Returns the flags at the beginning of the lines of --help.
fn flags(help: &str) -> BTreeSet<String> {
    help.lines()
        // Lines of flags are indented. A wrapped line of text is not, but may begin with a flag.
        .filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-'))
        .flat_map(|line| line.split([' ', ',', '=', '[']))
        .filter(|word| {
            word.len() > 1
                && word.starts_with('-')
                && word.as_bytes()[1..].iter().any(u8::is_ascii_alphanumeric)
        })
        .map(String::from)
        .collect()
}

#[test]
fn each_flag_is_on_the_page_of_its_subcommand() {
    let ka = release().join("ka");
    let help = stdout(Command::new(&ka).arg("--help"));
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"ls"), "{commands:?}");
    for command in commands {
        let page = page(&man().join(format!("ka-{command}.1"))).replace("\\-", "-");
        let help = stdout(Command::new(&ka).args([command, "--help"]));
        let flags = flags(&help);
        assert!(flags.contains("--help"), "{help}");
        for flag in flags {
            let there =
                page.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-')).any(|word| {
                    word == flag
                // In bold: \fB-p\fR
                || word.strip_prefix("fB").is_some_and(|word| word == flag)
                });
            assert!(there, "ka-{command}.1 does not have {flag}");
        }
    }
}

/// The compiler may not find a layer that lacks a new option. This test does. CONTRIBUTING.md, "Add a socket option"
#[test]
fn each_value_of_a_policy_is_in_every_layer() {
    for timer in ka_core::Timer::ALL {
        let name = timer.name();
        let (flag, variable) = (name.replace('_', "-"), format!("KA_{}", name.to_uppercase()));
        let getter = format!("ka_get_{name};");
        for (file, text) in [
            ("include/ka.h", name),
            ("include/ka.hpp", name),
            ("src/libka.map", &getter),
            ("bindings/python/src/ka/_config.py", name),
            ("man/ka_apply.3", name),
            ("man/ka_parse.3", name),
            ("man/ka-preload.7", &variable),
            ("deploy/ld-so-preload", &variable),
            ("man/ka-run.1", &flag),
            ("man/ka-attach.1", &flag),
            ("man/ka-cgroup-attach.1", &flag),
            ("man/ka-ls.1", name),
        ] {
            // troff escapes hyphens.
            let found = fs::read_to_string(root().join(file)).unwrap().replace("\\-", "-").contains(text);
            assert!(found, "{file} lacks {text}");
        }
    }
}
