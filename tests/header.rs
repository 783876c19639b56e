//! include/ka.h: that it is what src/ says, that every C and C++ compiler takes it, and that C and the library
//! mean the same by it.
//!
//! `make header` runs the first test with `KA_HEADER=write`, which writes the header instead of comparing it.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use support::{Compiler, root};

#[test]
fn the_header_is_what_the_sources_say() {
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
        "include/ka.h differs from what src/ says, first in line {}: run `make header` and commit it",
        first.unwrap_or_else(|| generated.lines().count().min(committed.lines().count())) + 1
    );
}

fn generate() -> String {
    let root = root();
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(macros());
    let bindings = cbindgen::generate_with_config(&root, config).unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let mut out = String::new();
    for line in header.lines() {
        match line.rsplit_once(' ') {
            // `#define KA_KEEP -1` would read differently behind a minus sign.
            Some((name, value)) if line.starts_with("#define KA_") && value.starts_with('-') => {
                writeln!(out, "{name} ({value})").unwrap();
            }
            _ if line.trim() == "* PRESETS" => out.push_str(&presets()),
            _ => writeln!(out, "{}", line.trim_end()).unwrap(),
        }
    }
    out
}

/// What cbindgen cannot know: the version, which Cargo.toml has, and the initialisers, which Rust does not need.
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
 * The version of this header. ka_version and ka_version_number say which library runs.
 */
#define KA_VERSION "{version}"
#define KA_VERSION_MAJOR {major}
#define KA_VERSION_MINOR {minor}
#define KA_VERSION_PATCH {patch}
#define KA_VERSION_NUMBER (1000000 * KA_VERSION_MAJOR + 1000 * KA_VERSION_MINOR + KA_VERSION_PATCH)

/**
 * A struct ka_config that leaves everything as it is: struct ka_config config = KA_CONFIG_INIT;
 */
#define KA_CONFIG_INIT {{ sizeof(struct ka_config), KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP }}

/**
 * A struct ka_status to be filled in: struct ka_status status = KA_STATUS_INIT;
 */
#define KA_STATUS_INIT {{ sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }}
"#
    )
}

/// The table in the documentation of `ka_plan_preset`.
fn presets() -> String {
    ka_core::PRESETS.iter().fold(String::new(), |mut text, preset| {
        writeln!(text, " *            {:20} {:>5}  {}", preset.name, preset.path_idle_s, preset.source)
            .unwrap();
        writeln!(text, " *                                        {}", preset.url).unwrap();
        text
    })
}
