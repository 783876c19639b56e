//! How the shim is linked: small, and without anything that runs in a stranger's process but itself.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // No C runtime of its own: there is nothing to register, and nothing to do when the process ends.
    println!("cargo::rustc-cdylib-link-arg=-nostartfiles");
    // Nothing may stay undefined: a program would find out only when it starts.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    // libka's build.rs says why the debug profile needs it.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--defsym=rust_eh_personality=0");
    }
}
