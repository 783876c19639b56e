//! What SECURITY.md says: that the tests that it names are there, where `unsafe` is, and that it is nowhere else.
//!
//! The compiler refuses it where a crate says `deny(unsafe_code)`, but in modules that expect it and say what for.
//! What is tested here is that each crate says so, and that SECURITY.md tells of all that there is.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ka_test::path::root;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The `unsafe` of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// `unsafe { … }`: here it is that says why something is sound.
    blocks: usize,
    /// Functions, traits and their implementations: others must say it, or do here.
    contracts: usize,
    /// `#[unsafe(…)]`: what is exported, and what is in a section of its own.
    exports: usize,
}

impl Count {
    fn of(tokens: TokenStream) -> Self {
        let mut count = Self::default();
        count.add(tokens);
        count
    }

    /// Token by token: so comments and texts are none, and what macros are made of counts.
    fn add(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.add(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" => {
                    // `unsafe extern "C" fn`, and the type of one, which has no name.
                    let mut what = String::new();
                    while let Some(next) = tokens.next_if(|next| !matches!(next, TokenTree::Group(_))) {
                        what = next.to_string();
                        if !matches!(what.as_str(), "extern" | "fn") && !what.starts_with('"') {
                            break;
                        }
                    }
                    match tokens.peek() {
                        Some(TokenTree::Group(group)) if what.is_empty() => match group.delimiter() {
                            Delimiter::Parenthesis => self.exports += 1,
                            _ => self.blocks += 1,
                        },
                        _ if what == "fn" => {}
                        _ => self.contracts += 1,
                    }
                }
                _ => {}
            }
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The folders of the packages of this workspace.
fn packages() -> Vec<PathBuf> {
    let mut packages: Vec<_> =
        fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packages.push(root().to_path_buf());
    packages.sort();
    packages
}

#[test]
fn what_counts_as_unsafe() {
    let count = |text: &str| {
        let Count { blocks, contracts, exports } = Count::of(text.parse().unwrap());
        (blocks, contracts, exports)
    };
    assert_eq!(count("// unsafe {}\nfn f() { g(\"unsafe {}\") }"), (0, 0, 0));
    assert_eq!(count("fn f() { unsafe { g(unsafe { h() }) } }"), (2, 0, 0));
    assert_eq!(count("unsafe fn f() {} unsafe impl<T> Sync for P<T> {} unsafe trait Z {}"), (0, 3, 0));
    assert_eq!(count("#[unsafe(no_mangle)] pub unsafe extern \"C\" fn f() {}"), (0, 1, 1));
    assert_eq!(count("unsafe extern \"C\" { static environ: u8; }"), (0, 1, 0));
    assert_eq!(count("let f: unsafe extern \"C\" fn(c_int) -> c_int = g;"), (0, 0, 0));
    assert_eq!(count("macro_rules! m { ($n:ident) => { unsafe fn $n() { unsafe { $n() } } } }"), (1, 1, 0));
}

#[test]
fn every_crate_denies_unsafe_code_but_in_modules_that_say_what_for() {
    for package in packages() {
        let entry = ["lib.rs", "main.rs"].map(|name| package.join("src").join(name));
        let entry = entry.iter().find(|path| path.exists()).unwrap();
        let text = fs::read_to_string(entry).unwrap();
        let denies = |level: &str| text.contains(&format!("\n#![{level}(unsafe_code)]"));
        assert!(denies("deny") || denies("forbid"), "{}", entry.display());
        for path in sources(&package.join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("allow(unsafe_code"), "{}: expect, not allow", path.display());
        }
    }
}

/// SECURITY.md's table of shipped code: a file with `unsafe` a line, and what for. ka-test is only a dev-dependency.
fn table() -> String {
    let mut table =
        String::from("| file | blocks | contracts | exports | what for |\n|---|---|---|---|---|\n");
    let mut total = Count::default();
    for package in packages().iter().filter(|package| !package.ends_with("ka-test")) {
        let folders = [package.join("src"), package.join("build.rs")];
        let files = folders.iter().filter(|path| path.exists());
        for path in files.flat_map(|path| if path.is_dir() { sources(path) } else { vec![path.clone()] }) {
            let text = fs::read_to_string(&path).unwrap();
            let count = Count::of(text.parse().unwrap_or_else(|why| panic!("{}: {why}", path.display())));
            if count.is_none() {
                continue;
            }
            let name = path.strip_prefix(root()).unwrap().display();
            let Count { blocks, contracts, exports } = count;
            let _ = writeln!(table, "| `{name}` | {blocks} | {contracts} | {exports} | {} |", reason(&path));
            total.blocks += blocks;
            total.contracts += contracts;
            total.exports += exports;
        }
    }
    let Count { blocks, contracts, exports } = total;
    let _ = writeln!(table, "| together | {blocks} | {contracts} | {exports} | |");
    table
}

/// What a file, or the module that it belongs to, says that it has `unsafe` for.
fn reason(path: &Path) -> String {
    const SAYS: &str = "[expect(unsafe_code, reason = \"";
    let text = fs::read_to_string(path).unwrap();
    match text.split_once(SAYS) {
        Some((_, behind)) => behind.split_once("\")]").unwrap().0.to_owned(),
        None if path.ends_with("mod.rs") => panic!("{}: unsafe that nobody expects", path.display()),
        None => reason(&path.with_file_name("mod.rs")),
    }
}

#[test]
fn all_unsafe_is_in_the_table() {
    const BEGIN: &str = "<!-- written by `make unsafe` -->\n";
    let path = root().join("SECURITY.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, behind) = text.split_once(BEGIN).unwrap();
    let (there, after) = behind.split_once("\n\n").unwrap_or((behind, ""));
    let table = table();
    if std::env::var_os("KA_UNSAFE").is_some_and(|value| value == "write") {
        let after = if after.is_empty() { String::new() } else { format!("\n{after}") };
        fs::write(&path, format!("{before}{BEGIN}{table}{after}")).unwrap();
        return;
    }
    assert_eq!(there.trim_end(), table.trim_end(), "`make unsafe` writes the table anew");
}

#[test]
fn every_test_that_is_named_is_there() {
    let document = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "crates", "tests"] {
        for path in sources(&root().join(folder)) {
            code += &fs::read_to_string(path).unwrap();
        }
    }
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut seen = 0;
    // The last column of each table, but for that of `unsafe`, which tells of files.
    for line in document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| `")) {
        let held_by = line.trim_end_matches('|').rsplit('|').next().unwrap();
        for name in held_by.split('`').skip(1).step_by(2) {
            let is_there = if let Some(target) = name.strip_prefix("make ") {
                let target = target.split(' ').next().unwrap();
                makefile.lines().any(|line| line.starts_with(&format!("{target}:")))
            } else if name.contains('/') {
                root().join(name).exists() || root().join("crates/ka-cli/src").join(name).exists()
            } else {
                code.contains(&format!("fn {name}("))
            };
            assert!(is_there, "SECURITY.md names {name}: {line}");
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}
