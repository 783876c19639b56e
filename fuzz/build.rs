//! Writes an enum of the functions that libka exports. The target `api` matches on this enum, so it does not compile if
//! it lacks a function.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let map = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../src/libka.map");
    println!("cargo::rerun-if-changed={}", map.display());
    let text = fs::read_to_string(map).unwrap();
    let is_export = |line: &&str| line.starts_with("ka_") && line.ends_with(';');
    let names: Vec<_> =
        text.lines().map(str::trim).filter(is_export).map(|line| line.trim_end_matches(';')).collect();
    assert!(!names.is_empty(), "libka.map exports nothing");
    let mut code = String::from("#[derive(Clone, Copy, Debug, PartialEq, Eq)]\npub enum Export {\n");
    for name in &names {
        writeln!(code, "    {name},").unwrap();
    }
    writeln!(code, "}}\n\npub const ALL: [Export; {}] = [", names.len()).unwrap();
    for name in &names {
        writeln!(code, "    Export::{name},").unwrap();
    }
    code += "];\n";
    fs::write(Path::new(&env::var_os("OUT_DIR").unwrap()).join("exports.rs"), code).unwrap();
}
