//! libka: the C ABI of ka, and nothing else. The rules are ka-core's; include/ka.h is generated from here, so the
//! documentation of what is exported is written for C.
//!
//! Each function checks its arguments, asks ka-core, and answers as a system call would: a result, or -1 and
//! `errno`. Nothing here panics: the lints below deny what could, and a test finds no panic in the library.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)] // but in the modules that say why
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
    reason = "what is exported is documented for C, where every function that takes a pointer is what Rust calls unsafe"
)]

mod errno;
#[cfg(test)]
mod layout;
mod words;

pub mod socket;

pub mod config;

pub mod text;

pub mod plan;

pub mod status;

pub mod reaper;

pub mod beat;

pub mod version;

/// Unreachable, as a test of the built library shows; but a library without std must have one.
#[cfg(not(any(test, fuzzing)))]
#[panic_handler]
#[expect(unsafe_code, reason = "nothing else ends a program without std")]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort(3) takes nothing and does not return.
    unsafe { libc::abort() }
}
