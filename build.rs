//! Names libka: the version that a program is linked against goes into the library as its SONAME.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");

    // Before 1.0 each minor version may break programs, from then on each major one (Cargo's reading of
    // semantic versioning).
    let major = env::var("CARGO_PKG_VERSION_MAJOR")?;
    let minor = env::var("CARGO_PKG_VERSION_MINOR")?;
    let version = if major == "0" { format!("0.{minor}") } else { major };
    let soname = format!("libka.so.{version}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    // Nothing may stay undefined: a program would find out only when it starts.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");

    // A program linked with -Ltarget/release -lka looks for the SONAME when it starts, and Cargo writes only
    // libka.so. OUT_DIR is <profile>/build/ka-<hash>/out.
    let profile = PathBuf::from(env::var("OUT_DIR")?);
    let profile = profile.ancestors().nth(3).ok_or("OUT_DIR is not where Cargo puts it")?;
    match fs::remove_file(profile.join(&soname)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => symlink("libka.so", profile.join(&soname))?,
    }
    Ok(())
}
