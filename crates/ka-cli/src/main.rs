//! `ka`, the command. The library of this package implements it.

#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)] // except in items that give the reason with `expect`

/// The entry point from C. Rust's own `main` would ignore SIGPIPE. This function leaves the signal dispositions
/// unchanged. So ka ends silently if the reader of its output ends, and a program that `ka run` starts inherits the
/// dispositions.
///
/// # Safety
/// Only the C library calls this, with the arguments of the program.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "C calls it")]
pub unsafe extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: the C library passes argc C strings, which live as long as the program.
    ka_cli::run_command(unsafe { ka_cli::arguments(argc, argv) })
}

/// libka_preload.so does nothing in a program that exports this symbol. If /etc/ld.so.preload loads it into all
/// programs, its policy does not change the sockets that ka sets. build.rs makes the linker export the symbol.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds it by this name")]
pub extern "C" fn ka_preload_off() {}
