//! Messages of a test. They go to standard error directly, so the test runner does not capture them.

use std::io::{self, Write as _};

/// Prints which test or case is skipped, and why.
pub fn skip(why: &str) {
    say(&format!("SKIPPED: {why}"));
}

/// Prints a line.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
