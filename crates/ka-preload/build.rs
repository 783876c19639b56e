//! Links the shim without a C runtime, so that no other code runs in the host program.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The shim needs no C runtime: it registers nothing, and does nothing when the process ends.
    println!("cargo::rustc-cdylib-link-arg=-nostartfiles");
    // An undefined symbol must fail here, not when a program starts.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    // The build.rs of libka explains why the debug profile needs this.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--defsym=rust_eh_personality=0");
    }
}
