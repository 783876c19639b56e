//! The version of libka, from Cargo.toml.

#![expect(unsafe_code, reason = "C calls these functions")]

use libc::c_char;

/// Return the version of the library that runs, for example "0.1.0". KA_VERSION is the version of the header that the
/// program was compiled with.
///
/// Returns a string that is valid as long as the library is loaded. Never fails.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Return the version of the library that runs, as a number to compare: 1000000 * major + 1000 * minor + patch.
/// KA_VERSION_NUMBER is that of the header that the program was compiled with.
///
/// Returns the number. Never fails.
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

/// Parses a part of the version in Cargo.toml, at compile time.
const fn number(digits: &str) -> u32 {
    match u32::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}
