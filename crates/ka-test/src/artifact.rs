//! The shipped files of the release build: libka.so, libka.a, libka_preload.so and `ka`.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::child::{stdout, succeed};
use crate::path::{root, target};

/// Returns Cargo as a command, run in the root folder of the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns the folder of the release build, and builds it first if the sources have changed.
///
/// The folder also contains a link that has the SONAME of libka.so as its name.
pub fn release() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        build(&["--workspace", "--exclude", "ka-test"].map(OsStr::new));
        target().join("release")
    })
}

/// Returns the folder of a release build whose libraries still have their symbols, and builds it first if needed.
pub fn unstripped() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = target().join("unstripped");
        let mut args: Vec<&OsStr> = vec!["--target-dir".as_ref(), folder.as_os_str()];
        args.extend(["--package", "ka", "--package", "ka-preload"].map(OsStr::new));
        for config in [
            "profile.release.strip=false",
            "profile.release.package.ka-core.strip=false",
            "profile.release.package.ka-preload.strip=false",
            "profile.release.package.ka-policy.strip=false",
        ] {
            args.extend(["--config".as_ref(), OsStr::new(config)]);
        }
        build(&args);
        // Cargo adds a folder for the target that it was told to build for.
        folder.join(env::var_os("CARGO_BUILD_TARGET").unwrap_or_default()).join("release")
    })
}

/// Builds in release mode with these arguments of `cargo build`.
fn build(args: &[&OsStr]) {
    succeed(cargo().args(["build", "--release", "--quiet"]).args(args));
}

/// Returns the path of the shim, libka_preload.so.
pub fn shim() -> PathBuf {
    release().join("libka_preload.so")
}

/// Returns the SONAME of libka.so.
pub fn soname() -> String {
    let dynamic =
        stdout(Command::new("readelf").arg("-d").arg(release().join("libka.so")).env("LC_ALL", "C"));
    dynamic.split_once("soname: [").unwrap().1.split_once(']').unwrap().0.to_owned()
}

/// Returns how many bytes of a library the loader loads. Unlike the size of the file, this does not depend on how the
/// linker pads the file.
pub fn loaded_size(library: &Path) -> u64 {
    let headers = stdout(Command::new("readelf").arg("-lW").arg(library));
    let sizes = headers.lines().filter(|line| line.trim_start().starts_with("LOAD")).map(|line| {
        let size = line.split_whitespace().nth(4).unwrap();
        u64::from_str_radix(size.strip_prefix("0x").unwrap(), 16).unwrap()
    });
    sizes.sum()
}
