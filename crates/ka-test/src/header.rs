//! include/ka.h as text.

use std::fs;

use crate::path::root;

/// Returns include/ka.h with each declaration in one line.
pub fn header() -> String {
    one_line_each(&fs::read_to_string(root().join("include/ka.h")).unwrap())
}

/// Returns a header with each declaration in one line.
pub fn one_line_each(header: &str) -> String {
    let mut lines = String::new();
    for line in header.lines() {
        let goes_on = lines.ends_with(',') && line.starts_with("    ");
        lines += if goes_on { " " } else { "\n" };
        lines += if goes_on { line.trim_start() } else { line };
    }
    lines
}

/// Returns the comment of a function in include/ka.h.
pub fn comment(name: &str) -> String {
    let header = header();
    let lines: Vec<_> = header
        .lines()
        .take_while(|line| {
            line.starts_with(' ') || !line.contains(&format!("{name}(")) || !line.ends_with(");")
        })
        .collect();
    let start = lines.iter().rposition(|line| *line == "/**").unwrap();
    lines[start..].join("\n")
}
