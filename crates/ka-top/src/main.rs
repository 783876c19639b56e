//! `ka-top` draws the live view of `ka top`.
//!
//! The library ka-cli reads the arguments and formats the rows. This program has the parts that the other commands do
//! not need: the terminal ([`terminal`]), the list with its order, filter and selection ([`list`]), the picture
//! ([`screen`]) and the keys ([`app`]).
//!
//! **Processes.** A listing can take seconds, if a program holds the lock of a socket. So a separate process makes the
//! listings ([`helper`]), and the view reacts to keys in the meantime. Both have one thread, because the worker
//! processes of ka-reach need that.

#![deny(unsafe_code)] // except in items that give the reason with `expect`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod app;
mod helper;
mod list;
mod screen;
mod terminal;

fn main() {
    std::process::exit(ka_cli::top::run_view(std::env::args_os(), app::show));
}

/// libka_preload.so does nothing in a program that exports this symbol. If /etc/ld.so.preload loads it into all
/// programs, its policy does not change the sockets that ka sets. build.rs makes the linker export the symbol.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds it by this name")]
pub extern "C" fn ka_preload_off() {}
