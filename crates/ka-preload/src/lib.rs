//! libka_preload.so: keepalive for every TCP socket of a program that cannot be changed.
//!
//! When preloaded, it intercepts the calls of the C library through which a TCP socket is made, becomes connected, or
//! loses its keepalive. Each hook is the real call with a step before or after it:
//!
//! - `socket` makes a socket, which gets the policy at once (`sockets::created`).
//! - `connect`, `listen`, and a send with `MSG_FASTOPEN`, use a socket that may have come from elsewhere
//!   (`sockets::connecting`, `sockets::listening`).
//! - `accept`, and a message with descriptors in it, return a socket (`sockets::accepted`, `sockets::arrived`).
//! - `setsockopt` may change the policy's options (`guard`).
//! - `prctl` may install a seccomp filter, after which the shim does less (`filter`).
//! - `syscall` may make any of these calls.
//! - `dlopen` opens a library whose own calls may bypass the hooks, and `dlsym` finds a function in it (`rebind`).
//!
//! The shim runs inside another program, at any moment: before `main`, in a signal handler, in the child of vfork, in a
//! thread that is being cancelled. So a hook allocates nothing, takes no lock and reads no environment. The shim
//! makes its own system calls by instructions (`raw`), not through the C library. Such calls do not change `errno`,
//! are not cancellation points, and cannot be hooked by another library that would call the shim again. The settings
//! are read once, when the shim is loaded, and do not change (`shim`). Only the dlsym hook takes a lock: that of the
//! loader, which dlsym(3) also takes.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)] // except in the modules that say why
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    clippy::inline_always,
    reason = "system call arguments are words named a to f: pointers, or ints in the lower half"
)]
#![cfg_attr(any(test, not(feature = "hooks")), allow(dead_code, reason = "the hooks use the rest"))]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test may panic"
    )
)]

mod address;
mod filter;
#[cfg(not(feature = "hooks"))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
// In a test, the hooks would intercept the calls of the test itself.
#[cfg(all(feature = "hooks", not(test)))]
pub mod hooks;
mod line;
mod load;
mod log;
mod next;
mod object;
mod raw;
mod rebind;
mod shim;
mod sockets;

/// The panic handler, which a library without std must have. It is unreachable, and a test of the built library
/// proves it. If it were reached, the program would end visibly instead of hanging.
#[cfg(all(feature = "hooks", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    raw::end()
}
