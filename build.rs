//! Sets the linker options of libka: its SONAME, which is the version that a program depends on, and the symbol
//! versions.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/libka.map");
    println!("cargo::rerun-if-changed=scripts/ld");

    // A version with the same major number runs every program that was built against an older one. This also holds
    // before 1.0: the ABI only grows (tests/abi.rs), so distributions need no new package for a new minor version.
    let soname = format!("libka.so.{}", env::var("CARGO_PKG_VERSION_MAJOR")?);
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    // Reject undefined symbols at link time. Otherwise a program would fail only when it starts.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    // The core library that comes with Rust is compiled for panics that unwind, so some of its functions name Rust's
    // unwinder hook, rust_eh_personality. Only std defines that hook, and this library has no std. The release profile
    // links with LTO, which drops the references; the debug profile has no LTO and would fail to link. Panics abort in
    // both profiles, so nothing ever calls the hook: the debug profile defines it as null, which unwinders take as
    // "this function has no hook".
    let is_debug = env::var("PROFILE")? == "debug";
    if is_debug {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--defsym=rust_eh_personality=0");
    }
    version_symbols()?;

    // A program linked with -Ltarget/release -lka looks for the SONAME when it starts, and Cargo writes only libka.so.
    // target/debug gets no link of that name: `cargo test` puts target/debug on LD_LIBRARY_PATH, which has precedence
    // over the rpath of the test programs. With a link they would load a debug build, possibly an old one, instead of
    // the release build that they test.
    for folder in library_folders()? {
        let path = folder.join(&soname);
        if is_debug {
            remove(&path)?;
        } else {
            link(Path::new("libka.so"), &path)?;
        }
    }
    Ok(())
}

/// Returns the folders where Cargo may put libka.so.
///
/// OUT_DIR is `<build folder>/[<target triple>/]<profile>/build/ka-<hash>/out`. The build folder is also the target
/// folder, unless CARGO_BUILD_BUILD_DIR separates them.
fn library_folders() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CARGO_BUILD_BUILD_DIR");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-env-changed=CARGO_BUILD_TARGET_DIR");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let profile = out.ancestors().nth(3).ok_or("OUT_DIR is not where Cargo puts it")?;
    let name = profile.file_name().ok_or("the profile has no name")?;
    let triple = env::var_os("TARGET").ok_or("Cargo sets TARGET")?;
    let above = profile.parent().and_then(Path::file_name);
    let within = if above == Some(&triple) { Path::new(&triple).join(name) } else { name.into() };
    let target = env::var_os("CARGO_TARGET_DIR").or_else(|| env::var_os("CARGO_BUILD_TARGET_DIR"));
    let target = target.unwrap_or_else(|| "target".into());
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(target).join(within);
    let mut folders = vec![profile.to_owned()];
    if folder != profile && env::var_os("CARGO_BUILD_BUILD_DIR").is_some() {
        fs::create_dir_all(&folder)?;
        folders.push(folder);
    }
    Ok(folders)
}

/// Makes src/libka.map the only version script. The compiler runs scripts/ld as its linker, which removes the script of
/// rustc and explains why.
fn version_symbols() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let folder = PathBuf::from(env::var("OUT_DIR")?).join("ld");
    let next = folder.join("next");
    // Remove the files of an older build script.
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&next)?,
    }
    // With -B and -fuse-ld=bfd, gcc and clang both look for this name. The last -fuse-ld wins.
    link(&root.join("scripts/ld"), &folder.join("ld.bfd"))?;
    let linker = linker()?;
    link(&linker, &next.join(linker.file_name().ok_or("a linker without a name")?))?;
    println!("cargo::rustc-cdylib-link-arg=-B{}", folder.display());
    println!("cargo::rustc-cdylib-link-arg=-fuse-ld=bfd");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--version-script={}/src/libka.map", root.display());
    Ok(())
}

/// Returns the lld that came with rustc. If there is none, returns the linker of the C compiler. (GNU ld also exports a
/// symbol for each node of a version script, such as KA_0.1. lld does not.)
fn linker() -> Result<PathBuf, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").ok_or("Cargo sets RUSTC")?;
    let mut lld = PathBuf::from(output(&rustc, &["--print", "sysroot"])?);
    lld.extend(["lib", "rustlib", &env::var("HOST")?, "bin", "gcc-ld", "ld.lld"]);
    if lld.exists() {
        return Ok(lld);
    }
    let compiler = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let ld = PathBuf::from(output(&compiler, &["-print-prog-name=ld"])?);
    if ld.is_absolute() {
        return Ok(ld);
    }
    // The compiler printed only a name, so search PATH.
    let path = env::var_os("PATH").ok_or("PATH is not set")?;
    env::split_paths(&path)
        .map(|folder| folder.join(&ld))
        .find(|ld| ld.exists())
        .ok_or_else(|| format!("{} has no linker: {}", compiler.display(), ld.display()).into())
}

fn output(program: &OsString, args: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Makes a symbolic link. Replaces an existing file.
fn link(target: &Path, path: &Path) -> io::Result<()> {
    remove(path)?;
    symlink(target, path)
}

/// Removes a file. A file that does not exist is not an error.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
