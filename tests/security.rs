//! Tests SECURITY.md: the tests and files that it names exist, and its table lists all `unsafe` code.
//!
//! With `deny(unsafe_code)`, the compiler rejects `unsafe` except in modules that expect it with a reason. The tests
//! check that each crate denies it, and that the table is complete.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use ka_test::path::{packages, root, rust_files};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The number of uses of `unsafe` in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// `unsafe { … }` blocks, each with a reason why it is sound.
    blocks: usize,
    /// Unsafe functions, traits and implementations, whose conditions the callers or the implementations must meet.
    contracts: usize,
    /// `#[unsafe(…)]` attributes, for exported symbols and special sections.
    exports: usize,
}

impl Count {
    fn of(tokens: TokenStream) -> Self {
        let mut count = Self::default();
        count.add(tokens);
        count
    }

    /// Counts by token, so comments and strings are ignored, and bodies of macros are included.
    fn add(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.add(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" => {
                    // `unsafe extern "C" fn` may be a function, or the type of one, which has no name.
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

#[test]
fn unsafe_code_is_counted_by_token() {
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
fn crates_deny_unsafe_code_outside_modules_with_a_reason() {
    for package in packages() {
        let entry = ["lib.rs", "main.rs"].map(|name| package.join("src").join(name));
        let entry = entry.iter().find(|path| path.exists()).unwrap();
        let text = fs::read_to_string(entry).unwrap();
        let denies = |level: &str| text.contains(&format!("\n#![{level}(unsafe_code)]"));
        assert!(denies("deny") || denies("forbid"), "{}", entry.display());
        for path in rust_files(&package.join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("allow(unsafe_code"), "{}: expect, not allow", path.display());
        }
    }
}

/// Returns the table for SECURITY.md. Each line is a file of shipped code with `unsafe`, and the reason. ka-test is not
/// included, because it is only a dev-dependency.
fn table() -> String {
    let mut table =
        String::from("| file | blocks | contracts | exports | what for |\n|---|---|---|---|---|\n");
    let mut total = Count::default();
    for package in packages().iter().filter(|package| !package.ends_with("ka-test")) {
        let folders = [package.join("src"), package.join("build.rs")];
        let files = folders.iter().filter(|path| path.exists());
        for path in files.flat_map(|path| if path.is_dir() { rust_files(path) } else { vec![path.clone()] }) {
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

/// Returns the reason for `unsafe` in a file, from the file itself or its module.
fn reason(path: &Path) -> String {
    const SAYS: &str = "[expect(unsafe_code, reason = \"";
    let text = fs::read_to_string(path).unwrap();
    match text.split_once(SAYS) {
        Some((_, behind)) => behind.split_once("\")]").unwrap().0.to_owned(),
        None if path.ends_with("mod.rs") => {
            panic!("{}: unsafe code without expect(unsafe_code)", path.display())
        }
        None => reason(&path.with_file_name("mod.rs")),
    }
}

#[test]
fn the_table_lists_all_unsafe_code() {
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
    assert_eq!(
        there.trim_end(),
        table.trim_end(),
        "SECURITY.md is not up to date: run `make unsafe` and commit it"
    );
}

/// Returns the text of all Rust files.
fn code() -> String {
    let folders = ["src", "crates", "tests"].map(|folder| rust_files(&root().join(folder)));
    folders.iter().flatten().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn tests_and_files_that_are_named_exist() {
    let document = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let code = code();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut seen = 0;
    // The last column of each table names tests and files. The table of `unsafe` code begins with a file, so skip it.
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

/// cargo runs no test, and succeeds, if the name that it was given selects none.
#[test]
fn tests_that_the_makefile_selects_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let code = code();
    let names: Vec<_> = makefile
        .lines()
        .filter(|line| line.contains("$(CARGO) test "))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with(|letter: char| letter.is_ascii_lowercase()) && word.contains('_'))
        .collect();
    assert!(names.len() > 3, "{names:?}");
    for name in names {
        let is_there = code.match_indices("fn ").any(|(place, _)| {
            code[place + 3..].split('(').next().is_some_and(|function| function.contains(name))
        });
        assert!(is_there, "the Makefile selects {name}, which no test is called");
    }
}
