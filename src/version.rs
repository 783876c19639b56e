//! Which libka this is. Cargo.toml says it, and nothing else does.

#![expect(unsafe_code, reason = "it is what C calls")]

use libc::c_char;

/// Says which version of the library runs, as "0.1.0"; KA_VERSION is the one that the program was built with.
///
/// Returns a string that lives as long as the library; it never fails.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Says which version of the library runs, as a number to compare: 1000000 * major + 1000 * minor + patch;
/// KA_VERSION_NUMBER is the one that the program was built with.
///
/// Returns the number; it never fails.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_version_number() -> u32 {
    const NUMBER: u32 = 1_000_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
        + 1000 * number(env!("CARGO_PKG_VERSION_MINOR"))
        + number(env!("CARGO_PKG_VERSION_PATCH"));
    NUMBER
}

/// Digits of Cargo.toml, read while compiling.
const fn number(digits: &str) -> u32 {
    match u32::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}
