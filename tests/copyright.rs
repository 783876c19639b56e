//! Tests pkg/debian/copyright, which is in every package and installation. It names the copyright holders and licences
//! of all shipped code. `make copyright` writes it from the files of the crates. The test fails if a crate is missing
//! or its licence has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ka_test::artifact::cargo;
use ka_test::child::stdout;
use ka_test::path::root;
use serde_json::Value;

/// The targets of the packages.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// Runs Cargo and returns its output.
fn output_of_cargo(args: &[&str]) -> String {
    stdout(cargo().args(args).arg("--locked"))
}

/// Returns the name and version of each crate that is linked into libka, the shim, ka, ka-top or ka-metrics. Crates
/// that are used only for builds and tests are not included.
fn linked() -> BTreeSet<(String, String)> {
    let tree = |target| {
        let edges = "normal,no-proc-macro";
        output_of_cargo(&[
            "tree",
            "--workspace",
            "--exclude",
            "ka-test",
            "--target",
            target,
            "--edges",
            edges,
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
    };
    let trees = TARGETS.map(tree).concat();
    // A line is `libc v0.2.191`. The lines of this workspace's crates end with a folder.
    let crates = trees.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.contains("(/"));
    crates
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

/// The entry of a crate in the copyright file.
struct Entry {
    name: String,
    holders: Vec<String>,
    license: &'static str,
}

/// The licences that ka uses the crates under, most preferred first. Each has Debian's name, the name in Cargo.toml,
/// the first words of the text (a file may begin with a title), and the crate if only one crate has this licence.
const LICENSES: [(&str, &str, &str, &str); 5] = [
    ("Expat", "MIT", "Permission is hereby granted, free of charge", ""),
    // Expat with a paragraph about changed versions.
    ("Expat-with-contact-clause", "MIT", "Permission is hereby granted, free of charge", "netlink-sys"),
    ("BSD-3-clause", "BSD-3-Clause", "Redistribution and use in source and binary forms", "subtle"),
    ("BSL-1.0", "BSL-1.0", "Boost Software License - Version 1.0", "ryu"),
    ("Zlib", "Zlib", "This software is provided 'as-is'", "foldhash"),
];

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Returns the files of a folder that may have the text of its licence.
fn license_files(folder: &Path) -> Vec<PathBuf> {
    let files =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let names = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];
    let mut files: Vec<_> = files
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().to_uppercase();
            names.iter().any(|start| name.starts_with(start))
        })
        .collect();
    files.sort();
    files
}

/// Returns the text of a licence in a file, without a title before it.
fn text_of(file: &Path, begins: &str) -> Option<String> {
    let text = fs::read_to_string(file).unwrap();
    text.find(begins).map(|at| text[at..].trim_end().to_owned())
}

/// Returns the copyright holders that a file names, in Debian's form: `2014 Alex Crichton`.
fn holders(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let before = text.find("Permission is hereby").or_else(|| text.find("Redistribution and use"));
    let lines = text[..before.unwrap_or(0)].lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix("Copyright "))
        .map(|rest| rest.trim_start_matches("(c) ").trim_end_matches(" All rights reserved.").to_owned())
        .map(|rest| rest.trim_end_matches(" All Rights Reserved.").to_owned())
        .collect()
}

/// Returns Cargo's metadata of the packages, by name and version.
fn packages() -> BTreeMap<(String, String), Value> {
    let metadata = |target| -> Value {
        let metadata = output_of_cargo(&["metadata", "--format-version", "1", "--filter-platform", target]);
        serde_json::from_str(&metadata).unwrap()
    };
    let text = |package: &Value, key: &str| package[key].as_str().unwrap().to_owned();
    let mut packages = BTreeMap::new();
    for mut metadata in TARGETS.map(metadata) {
        let Value::Array(found) = metadata["packages"].take() else {
            panic!("cargo metadata has no packages")
        };
        packages.extend(
            found.into_iter().map(|package| ((text(&package, "name"), text(&package, "version")), package)),
        );
    }
    packages
}

fn folder(package: &Value) -> &Path {
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap()
}

fn entry(package: &Value, texts: &BTreeMap<&'static str, String>) -> Entry {
    let name = package["name"].as_str().unwrap().to_owned();
    let offered: Vec<_> = package["license"].as_str().unwrap_or("").split([' ', '/']).collect();
    let files = license_files(folder(package));
    let found =
        LICENSES.iter().filter(|(_, spdx, ..)| offered.contains(spdx)).find_map(|(license, _, begins, _)| {
            let same = |file: &&PathBuf| {
                text_of(file, begins).is_some_and(|text| words(&text) == words(&texts[license]))
            };
            files.iter().find(same).map(|file| (*license, file))
        });
    let (license, file) = found.unwrap_or_else(|| {
        panic!(
            "{name} has the licences {offered:?}, and {files:?} has no text of LICENSES in tests/copyright.rs"
        )
    });
    let mut holders = holders(file);
    let has_name = |holder: &String| holder.contains(char::is_alphabetic);
    if !holders.iter().any(has_name) {
        // If the licence names no holder, or only years, Cargo.toml may name the authors.
        let years = holders.first().map_or_else(String::new, |years| format!("{years} "));
        let authors = package["authors"].as_array().unwrap();
        let without_address =
            |author: &Value| author.as_str().unwrap().split(" <").next().unwrap().to_owned();
        holders = authors.iter().map(without_address).collect();
        if holders.is_empty() {
            holders.push(format!("The authors of {name}"));
        }
        holders = holders.into_iter().map(|holder| format!("{years}{holder}")).collect();
    }
    Entry { name, holders, license }
}

/// Indents a text as a field of a Debian control file.
fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| if line.trim().is_empty() { " ." } else { line.trim_end() });
    lines.map(|line| if line == " ." { " .\n".into() } else { format!(" {line}\n") }).collect()
}

fn expected() -> String {
    let packages = packages();
    let own = root().join("LICENSE-MIT");
    let texts: BTreeMap<_, _> = LICENSES
        .iter()
        .map(|(license, _, begins, of)| {
            let from = packages.iter().find(|((name, _), _)| name == of).map(|(_, package)| package);
            let files = from.map_or_else(|| vec![own.clone()], |package| license_files(folder(package)));
            (*license, files.iter().find_map(|file| text_of(file, begins)).unwrap())
        })
        .collect();
    // Crates with the same holders and licence share one entry.
    let mut entries: BTreeMap<(&str, Vec<String>), Vec<String>> = BTreeMap::new();
    for key in linked() {
        let Entry { name, holders, license } = entry(&packages[&key], &texts);
        entries.entry((license, holders)).or_default().push(name);
    }
    let mut text = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: ka
Comment:
 The sources do not contain the files below vendor/. These are the crates that
 Cargo.lock names, in the folder where `cargo vendor` puts them. They are linked
 into libka, the shim, ka, ka-top or ka-metrics. If a crate has several
 licences, ka uses it under the one that is named here.
 .
 The programs ka, ka-top and ka-metrics also contain Rust's standard library.
 libka and the shim contain the base of this library (core, alloc,
 compiler_builtins). Its copyright holders are The Rust Project Developers, see
 https://thanks.rust-lang.org, and its licence is Expat.

Files: *
"
    .to_owned();
    let [holder] = &holders(&own)[..] else { panic!("LICENSE-MIT names no holder") };
    writeln!(text, "Copyright: {holder}\nLicense: Expat or Apache-2.0\n").unwrap();
    for ((license, holders), mut names) in entries {
        names.dedup();
        let files: Vec<_> = names.iter().map(|name| format!("vendor/{name}/*")).collect();
        writeln!(text, "Files: {}", files.join("\n ")).unwrap();
        writeln!(text, "Copyright: {}\nLicense: {license}\n", holders.join("\n ")).unwrap();
    }
    for (license, ..) in LICENSES {
        writeln!(text, "License: {license}\n{}", indented(&texts[license])).unwrap();
    }
    text + "\
License: Apache-2.0
 On Debian systems, the text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0; else it is at
 https://www.apache.org/licenses/LICENSE-2.0.
"
}

#[test]
fn debian_copyright_lists_every_linked_crate() {
    let path = root().join("pkg/debian/copyright");
    let expected = expected();
    if std::env::var("KA_COPYRIGHT").is_ok_and(|value| value == "write") {
        fs::write(&path, &expected).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    for (line, expected) in committed.lines().zip(expected.lines()) {
        assert_eq!(
            line, expected,
            "pkg/debian/copyright is not up to date: run `make copyright` and commit it"
        );
    }
    assert!(
        committed == expected,
        "pkg/debian/copyright is not up to date: run `make copyright` and commit it"
    );
}
