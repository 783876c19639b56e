//! Tests that each name of a type means one type in all crates.
//!
//! `Error` is the exception: by custom, each crate calls the type of its errors so.

use std::collections::BTreeMap;
use std::fs;

use ka_test::path::{packages, root, rust_files};

/// Returns the name of the type that a line defines.
///
/// An indented `type` is the associated type of a trait, whose name the trait has chosen.
fn defined_type(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
    let keyword = words.next()?;
    let is_definition = match keyword {
        "struct" | "enum" | "union" | "trait" => true,
        "type" => !line.starts_with(' '),
        _ => false,
    };
    let name = words.next().filter(|_| is_definition)?;
    name.split(|character: char| !character.is_alphanumeric() && character != '_')
        .next()
        .filter(|name| !name.is_empty())
}

#[test]
fn definitions_are_recognized() {
    assert_eq!(defined_type("pub(crate) struct Config {"), Some("Config"));
    assert_eq!(defined_type("    struct Program(u32);"), Some("Program"));
    assert_eq!(defined_type("pub type Result<T> = core::result::Result<T, Error>;"), Some("Result"));
    assert_eq!(defined_type("    type Item = i32;"), None);
    assert_eq!(defined_type("/// struct of the kernel"), None);
}

#[test]
fn each_type_has_its_own_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in packages().iter().flat_map(|package| rust_files(&package.join("src"))) {
        let source = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root()).unwrap().display();
        for (index, line) in source.lines().enumerate() {
            if let Some(name) = defined_type(line).filter(|name| *name != "Error") {
                places.entry(name.to_owned()).or_default().push(format!("{file}:{}", index + 1));
            }
        }
    }
    assert!(places.contains_key("Config"), "the sources are not found");
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "these names mean more than one type: {places:#?}");
}
