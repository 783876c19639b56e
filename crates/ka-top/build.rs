//! Links the command so that it exports the symbol `ka_preload_off`. libka_preload.so looks for this symbol.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // By default, the linker exports no symbols of a program.
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=ka_preload_off");
}
