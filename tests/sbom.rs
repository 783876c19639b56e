//! Tests the bills of materials of `make sbom`: each must list every crate of its binary.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use ka_test::artifact::{cargo, release, unstripped};
use ka_test::child::{stdout, succeed};
use ka_test::log::skip;
use ka_test::path::{root, target};
use serde_json::Value;

/// The shipped binaries, each with its package and its bill of materials.
const SHIPPED: [(&str, &str, &str); 5] = [
    ("libka.so", "ka", "libka.cdx.json"),
    ("libka_preload.so", "ka-preload", "libka_preload.cdx.json"),
    ("ka", "ka-cli", "ka.cdx.json"),
    ("ka-top", "ka-top", "ka-top.cdx.json"),
    ("ka-metrics", "ka-metrics", "ka-metrics.cdx.json"),
];

fn bill(name: &str) -> Value {
    let path = target().join("sbom").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    assert!(!text.contains(root().to_str().unwrap()), "{name} contains the path of this folder");
    serde_json::from_str(&text).unwrap()
}

/// Returns the components of a bill as `name version`.
fn components(bill: &Value) -> BTreeSet<String> {
    let word = |component: &Value, name: &str| component[name].as_str().unwrap().to_owned();
    let components = bill["components"].as_array().unwrap();
    components
        .iter()
        .map(|component| format!("{} {}", word(component, "name"), word(component, "version")))
        .collect()
}

#[test]
#[ignore = "run it with `make sbom`: it needs cargo-cyclonedx, which takes minutes to build"]
fn bills_of_materials_list_every_crate_of_their_binary() {
    for (file, package, name) in SHIPPED {
        assert!(release().join(file).exists());
        let bill = bill(name);
        let found = components(&bill);
        // The crates that cargo compiles for the binary.
        let tree =
            ["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}", "--package", package];
        let tree = stdout(cargo().args(tree));
        let expected: BTreeSet<_> = tree
            .lines()
            .skip(1)
            .map(|line| {
                let mut words = line.split(' ');
                format!("{} {}", words.next().unwrap(), words.next().unwrap().trim_start_matches('v'))
            })
            .collect();
        assert!(!expected.is_empty());
        // The bill may list more crates, for other platforms and features.
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(missing.is_empty(), "{name} lacks {missing:?}");
        let own = &bill["metadata"]["component"];
        assert_eq!(own["version"], env!("CARGO_PKG_VERSION"));
        for component in bill["components"].as_array().unwrap().iter().chain([own]) {
            assert!(component["purl"].as_str().unwrap().starts_with("pkg:cargo/"), "{component}");
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            let is_ours = component["purl"].as_str().unwrap().contains("download_url=file://");
            assert_eq!(component["hashes"].is_array(), !is_ours, "{component}");
        }
    }
}

#[test]
#[ignore = "make sbom runs it"]
fn bills_of_materials_list_every_linked_crate() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let crates: Vec<_> =
        lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    for (file, _, name) in SHIPPED.iter().filter(|(file, ..)| file.starts_with("libka")) {
        let found = components(&bill(name));
        let symbols = stdout(Command::new("nm").arg("-C").arg(unstripped().join(file)));
        let mut seen = 0;
        for name in &crates {
            let path = format!("{}::", name.replace('-', "_"));
            let is_there = symbols.lines().any(|line| {
                let symbol = line.rsplit(' ').next().unwrap();
                symbol.starts_with(&path) || symbol.starts_with(&format!("<{path}"))
            });
            if is_there && !matches!(*name, "ka" | "ka-preload") {
                seen += 1;
                assert!(
                    found.iter().any(|component| component.starts_with(&format!("{name} "))),
                    "{file}: {name}"
                );
            }
        }
        assert!(seen > 0, "{file}: no symbol names a crate");
    }
}

#[test]
#[ignore = "make sbom runs it"]
fn bills_of_materials_match_the_schema_of_cyclonedx() {
    const VALIDATE: &str = "import sys\n\
        from cyclonedx.schema import SchemaVersion\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        for path in sys.argv[1:]:\n\
        \x20   error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(path).read())\n\
        \x20   assert error is None, (path, error)\n";
    let has_validator = Command::new("python3").args(["-c", "import cyclonedx.validation.json"]).output();
    if !has_validator.is_ok_and(|output| output.status.success()) {
        skip("Python has no cyclonedx-python-lib[json-validation] to validate with");
        return;
    }
    let paths = SHIPPED.map(|(.., name)| target().join("sbom").join(name));
    succeed(Command::new("python3").args(["-c", VALIDATE]).args(paths));
}
