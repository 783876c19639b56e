//! What ka is made of, held to deny.toml: what cargo-deny checks of licences, versions and sources, without it, which
//! takes minutes to build. `make deny` is cargo-deny's own word.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};
use support::{root, stdout};

/// deny.toml.
fn policy() -> toml::Table {
    fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

/// The strings in an array of a table.
fn strings<'a>(table: &'a toml::Value, name: &str) -> Vec<&'a str> {
    table[name].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

/// The packages that a workspace is built from on what deny.toml names, as cargo has them.
fn packages(workspace: &Path) -> Vec<Value> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["metadata", "--locked", "--format-version=1", "--all-features", "--manifest-path"])
        .arg(workspace);
    for target in strings(&policy()["graph"], "targets") {
        cargo.args(["--filter-platform", target]);
    }
    let mut metadata: Value = serde_json::from_str(&stdout(&mut cargo)).unwrap();
    let used: HashSet<String> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect();
    let Value::Array(mut packages) = metadata["packages"].take() else { panic!("cargo names no packages") };
    packages.retain(|package| used.contains(package["id"].as_str().unwrap()));
    assert!(packages.len() > 3, "{}: {packages:?}", workspace.display());
    packages
}

/// Those of both workspaces; what both have is there once.
fn all() -> BTreeMap<String, Value> {
    ["Cargo.toml", "fuzz/Cargo.toml"]
        .into_iter()
        .flat_map(|workspace| packages(&root().join(workspace)))
        .map(|package| (package["id"].as_str().unwrap().to_owned(), package))
        .collect()
}

/// What a package's terms come to where these licences are accepted.
fn is_licensed(terms: &str, accepted: &[&str]) -> bool {
    let accepted: Vec<_> = accepted.iter().map(|id| Licensee::parse(id).unwrap()).collect();
    let terms = Expression::parse_mode(terms, ParseMode::LAX).unwrap_or_else(|why| panic!("{terms}: {why}"));
    // An exception, as LLVM's, only takes something from what its licence demands.
    terms.evaluate(|wanted| {
        let plain = spdx::LicenseReq { addition: None, ..wanted.clone() };
        accepted.iter().any(|licensee| licensee.satisfies(&plain))
    })
}

#[test]
fn every_dependency_is_under_a_licence_that_is_accepted() {
    let policy = policy();
    let licenses = &policy["licenses"];
    let mut exceptions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for exception in licenses["exceptions"].as_array().unwrap() {
        exceptions.insert(exception["crate"].as_str().unwrap(), strings(exception, "allow"));
    }
    for (id, package) in all() {
        let name = package["name"].as_str().unwrap();
        let terms = package["license"].as_str().unwrap_or_else(|| panic!("{id} names no licence"));
        let mut accepted = strings(licenses, "allow");
        accepted.extend(exceptions.remove(name).unwrap_or_default());
        assert!(is_licensed(terms, &accepted), "{id}: {terms}, and deny.toml accepts {accepted:?}");
    }
    assert!(exceptions.is_empty(), "deny.toml has exceptions for what is not there: {exceptions:?}");
}

#[test]
fn the_terms_of_a_licence_are_read_as_they_are_meant() {
    assert!(is_licensed("MIT/Apache-2.0", &["MIT"]));
    assert!(is_licensed("MIT OR GPL-3.0-only", &["MIT"]));
    assert!(!is_licensed("MIT AND GPL-3.0-only", &["MIT"]));
    assert!(!is_licensed("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT"]));
    assert!(is_licensed("Apache-2.0 WITH LLVM-exception", &["Apache-2.0"]));
}

#[test]
fn no_dependency_is_there_twice_but_those_that_are_named() {
    let policy = policy();
    let skipped: Vec<_> = policy["bans"]["skip"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skip| (skip["crate"].as_str().unwrap(), skip["reason"].as_str().unwrap()))
        .collect();
    let is_skipped = |package: &Value, skip: &str| {
        let (name, version) = skip.split_once('@').unwrap();
        let found = package["version"].as_str().unwrap();
        package["name"] == name && (found == version || found.starts_with(&format!("{version}.")))
    };
    for workspace in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let packages = packages(&root().join(workspace));
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in &packages {
            if !skipped.iter().any(|(skip, _)| is_skipped(package, skip)) {
                let name = package["name"].as_str().unwrap();
                versions.entry(name).or_default().push(package["version"].as_str().unwrap());
            }
        }
        versions.retain(|_, versions| versions.len() > 1);
        assert!(versions.is_empty(), "{workspace}: {versions:?}");
    }
    let all = all();
    for (skip, _) in skipped {
        assert!(all.values().any(|package| is_skipped(package, skip)), "deny.toml skips {skip} in vain");
    }
}

#[test]
fn every_dependency_comes_from_crates_io_and_is_locked() {
    let policy = policy();
    assert_eq!(policy["sources"]["unknown-registry"].as_str(), Some("deny"));
    assert_eq!(policy["sources"]["unknown-git"].as_str(), Some("deny"));
    for (id, package) in all() {
        let from = package["source"].as_str();
        let own = package["manifest_path"].as_str().unwrap().starts_with(root().to_str().unwrap());
        let is_known =
            from.map_or(own, |from| from == "registry+https://github.com/rust-lang/crates.io-index");
        assert!(is_known, "{id} is from {from:?}");
    }
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock: toml::Table = fs::read_to_string(root().join(lock)).unwrap().parse().unwrap();
        for package in lock["package"].as_array().unwrap() {
            let has_checksum = package.get("checksum").is_some();
            assert_eq!(package.get("source").is_some(), has_checksum, "{package:?}");
        }
    }
}
