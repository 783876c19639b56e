//! How the command is linked: with the name in its dynamic symbol table that libka_preload.so knows it by.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Nothing in the program calls it, and a program exports nothing by itself.
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=ka_preload_off");
}
