//! Compares the JSON output of ka with the section JSON of its manual pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use ka_test::path::root;
use serde_json::Value;

/// The keys that a manual page describes. `ways[].why` is the key `why` of the objects in the array `ways`.
pub type DescribedKeys = BTreeMap<String, String>;

/// Returns the lists of keys in the section JSON of a manual page.
pub fn described<const N: usize>(page: &str) -> [DescribedKeys; N] {
    let page = fs::read_to_string(root().join("man").join(page)).unwrap();
    let section = page.split_once("\n.SH JSON\n").unwrap().1.split("\n.SH ").next().unwrap();
    let key = |entry: &str| {
        let (key, text) = entry.split_once("\\fR\n").unwrap();
        (key.to_owned(), text.replace('\n', " ").replace("\\-", "-"))
    };
    let lists: Vec<DescribedKeys> =
        section.split("\n.PP\n").map(|list| list.split("\n.TP\n\\fB").skip(1).map(key).collect()).collect();
    lists.try_into().unwrap()
}

/// Asserts that the outputs together have exactly the described keys. Each value has the described type and is in the
/// described set. A value is null, and a key is absent, only if the description says when. Units match the key's name.
pub fn assert_described(keys: &DescribedKeys, outputs: &[Value]) {
    let mut printed = BTreeSet::new();
    for output in outputs {
        match output {
            Value::Array(items) => items.iter().for_each(|item| check(keys, "", item, &mut printed)),
            object => check(keys, "", object, &mut printed),
        }
    }
    assert_eq!(printed, keys.keys().cloned().collect(), "printed keys, described keys");
    for (key, text) in keys {
        assert_eq!(text.contains(", milliseconds."), key.ends_with("_ms"), "{key}: {text}");
        let is_seconds = key.ends_with("_s") || ["idle", "intvl"].contains(&key.rsplit('.').next().unwrap());
        assert_eq!(text.contains(", seconds."), is_seconds, "{key}: {text}");
    }
}

/// Checks an object and the objects in it. `prefix` is the path of the object, such as `sockets[].before.`.
fn check(keys: &DescribedKeys, prefix: &str, object: &Value, printed: &mut BTreeSet<String>) {
    let members = object.as_object().unwrap_or_else(|| panic!("{prefix} is not an object: {object}"));
    let is_here = |key: &str| key.strip_prefix(prefix).is_some_and(|rest| !rest.contains('.'));
    for (key, text) in keys.iter().filter(|(key, _)| is_here(key)) {
        let is_there = members.contains_key(key.strip_prefix(prefix).unwrap());
        assert!(is_there || text.contains("Absent:"), "{key} is absent: {object}");
    }
    for (name, value) in members {
        let key = format!("{prefix}{name}");
        let text = keys.get(&key).unwrap_or_else(|| panic!("the manual page lacks {key}: {value}"));
        printed.insert(key.clone());
        let kind = text.split([',', '.']).next().unwrap();
        if value.is_null() {
            assert!(text.contains("null:"), "{key} is null: {text}");
            continue;
        }
        let is_array =
            |is_item: fn(&Value) -> bool| value.as_array().is_some_and(|all| all.iter().all(is_item));
        let is_kind = match kind {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            "array of strings" => is_array(Value::is_string),
            "array of integers" => is_array(Value::is_i64),
            "array of objects" => is_array(Value::is_object),
            other => panic!("{key}: the manual page has no type: {other}"),
        };
        assert!(is_kind, "{key} is not of type {kind}: {value}");
        if let Some((_, set)) = text.split_once(" One of ") {
            let mut set = set.split('.').next().unwrap().split(", ");
            assert!(set.any(|one| *value == one), "{key}: {value} is not in: {text}");
        }
        match value {
            Value::Object(_) => check(keys, &format!("{key}."), value, printed),
            Value::Array(items) => {
                let items = items.iter().filter(|item| item.is_object());
                items.for_each(|item| check(keys, &format!("{key}[]."), item, printed));
            }
            _ => {}
        }
    }
}
