//! Tests include/ka.h: it equals the sources in src/, C and C++ compilers accept it, and each function is documented
//! completely. src/layout.rs compares the structs and constants with those of the library.
//!
//! `make header` runs the first test with `KA_HEADER=write`, which writes the header instead of comparing it.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use ka_test::child::succeed;
use ka_test::compiler::{LINKS, Linkage, compile};
use ka_test::header::comment;
use ka_test::libka::EXPORTS;
use ka_test::path::root;

#[test]
fn header_equals_the_sources() {
    let path = root().join("include/ka.h");
    let generated = generate();
    if std::env::var_os("KA_HEADER").is_some_and(|value| value == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, generated).unwrap();
        return;
    }
    let committed = fs::read_to_string(&path).unwrap();
    let first = generated.lines().zip(committed.lines()).position(|(new, old)| new != old);
    assert!(
        generated == committed,
        "include/ka.h is not up to date, first in line {}: run `make header` and commit it",
        first.unwrap_or_else(|| generated.lines().count().min(committed.lines().count())) + 1
    );
}

#[test]
fn lines_of_the_header_have_at_most_120_columns() {
    const WIDTH: usize = 120;
    for header in ["ka.h", "ka.hpp"] {
        let text = fs::read_to_string(root().join("include").join(header)).unwrap();
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(wide.is_empty(), "{header}: {wide:#?}");
    }
}

fn generate() -> String {
    let root = root();
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(macros());
    let bindings = cbindgen::generate_with_config(root, config).unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let mut out = String::new();
    for line in header.lines() {
        match line.rsplit_once(' ') {
            // Without parentheses, `-KA_KEEP` would be `--1`.
            Some((name, value)) if line.starts_with("#define KA_") && value.starts_with('-') => {
                writeln!(out, "{name} ({value})").unwrap();
            }
            _ if line.trim() == "* PRESETS" => out.push_str(&presets()),
            // C89 has no // comments.
            _ if line.contains(" // ") => {
                let (code, comment) = line.split_once(" // ").unwrap();
                writeln!(out, "{} /* {comment} */", code.trim_end()).unwrap();
            }
            _ => writeln!(out, "{}", line.trim_end()).unwrap(),
        }
    }
    out
}

/// Returns the macros that cbindgen cannot generate: the version in Cargo.toml, and the initialisers for C.
fn macros() -> String {
    let [version, major, minor, patch] = [
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ];
    format!(
        r#"
/**
 * The version of this header. ka_version and ka_version_number return the version of the library that runs.
 */
#define KA_VERSION "{version}"
#define KA_VERSION_MAJOR {major}
#define KA_VERSION_MINOR {minor}
#define KA_VERSION_PATCH {patch}
#define KA_VERSION_NUMBER (1000000 * KA_VERSION_MAJOR + 1000 * KA_VERSION_MINOR + KA_VERSION_PATCH)

/**
 * Initialise a struct ka_config that changes nothing: struct ka_config config = KA_CONFIG_INIT;
 */
#define KA_CONFIG_INIT {{ sizeof(struct ka_config), KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP }}

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L
/**
 * Create a struct ka_config that sets these fields and changes nothing else (C99):
 *
 *     ka_apply(fd, &KA_CONFIG(.keepalive = KA_ON, .idle = 60, .intvl = 10, .cnt = 5));
 */
#define KA_CONFIG(...) ((struct ka_config){{ .size = sizeof(struct ka_config), __VA_ARGS__ }})
#endif

/**
 * Initialise a struct ka_status for ka_get_status: struct ka_status status = KA_STATUS_INIT;
 */
#define KA_STATUS_INIT {{ sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }}
"#
    )
}

/// Returns the table in the documentation of `ka_plan_preset`. ka_plan_path(3) names the sources of the numbers.
fn presets() -> String {
    ka_core::PRESETS.iter().fold(String::new(), |mut text, preset| {
        writeln!(text, " *            {:20} {:>5}", preset.name, preset.path_idle_s).unwrap();
        text
    })
}

#[test]
fn compilers_accept_the_header_without_warnings() {
    let source = root().join("tests/c/header.c");
    let strict = ["-Wall", "-Wextra", "-pedantic-errors", "-Wconversion", "-Wundef", "-Werror"];
    for (c, cxx) in [("gcc", "g++"), ("clang", "clang++")] {
        for standard in ["-std=c89", "-std=c99", "-std=c11"] {
            for link in LINKS {
                let program = compile(Command::new(c).arg(standard).args(strict), &source, link);
                succeed(&mut Command::new(program));
            }
        }
        for standard in ["-std=c++11", "-std=c++20"] {
            let mut compiler = Command::new(cxx);
            let program =
                compile(compiler.arg(standard).args(strict).args(["-x", "c++"]), &source, Linkage::Shared);
            succeed(&mut Command::new(program));
        }
    }
}

/// Each function must document its result, its errors, its release, and in which threads and handlers it may be called.
#[test]
fn functions_of_the_header_are_documented_completely() {
    let header = ka_test::header::header();
    for name in EXPORTS {
        assert!(header.contains(&format!("{name}(")), "{name} is not declared");
        let comment = comment(name);
        for part in ["Returns", "Since "] {
            assert!(comment.contains(part), "the comment of {name} lacks: {part}");
        }
        let verb = comment.split_whitespace().find(|word| word.starts_with(char::is_uppercase)).unwrap();
        assert!(!verb.ends_with('s'), "the summary of {name} is not in the imperative: {verb}");
        // A reaper has state and uses malloc(3), so one thread at a time may use it.
        let callers = match *name {
            "ka_reaper_new" => "\n * Thread-safe, fork-safe.",
            name if name.starts_with("ka_reaper_") => "\n * One thread at a time; fork-safe.",
            _ => "\n * Thread-safe, async-signal-safe, fork-safe.",
        };
        assert!(comment.contains(callers), "the comment of {name} lacks: {callers}");
        if comment.contains("errno") && name != &"ka_is_enabled" {
            assert!(
                comment.contains("After a failure"),
                "the comment of {name} lacks the state after a failure"
            );
        }
    }
    for word in ["Safety", "unsafe", "Result", "Option", "panic", "Rust", "`ka_core", "&mut", "None", "Err("]
    {
        assert!(!header.contains(word), "the header has {word:?}, a word of Rust");
    }
}
