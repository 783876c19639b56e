//! libka: the C ABI of ka. The rules of keepalive are in ka-core, and heartbeats and reapers are in ka-liveness.
//!
//! include/ka.h is generated from these files. So the documentation of exported items is written for C programmers.
//!
//! Each function checks its arguments, calls ka-core or ka-liveness, and returns as a system call does: a value, or -1
//! with `errno` set. No function panics. The lints below deny code that can panic, and a test checks that the built
//! library contains no panic.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)] // except in modules that give a reason
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]
#![expect(
    clippy::missing_safety_doc,
    reason = "exported functions are documented for C, where every function with a pointer is unsafe"
)]

mod errno;
#[cfg(test)]
mod layout;
mod words;

// The order of these modules is that of ka.h. The blank lines keep rustfmt from sorting them.

pub mod socket;

pub mod config;

pub mod text;

pub mod plan;

pub mod status;

pub mod probe;

pub mod reaper;

pub mod beat;

pub mod version;

/// Aborts. A library without std must define this function, but no code calls it: a test of the built library checks
/// that.
#[cfg(not(any(test, fuzzing)))]
#[panic_handler]
#[expect(unsafe_code, reason = "a library without std must end the program itself")]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort(3) takes nothing and does not return.
    unsafe { libc::abort() }
}
