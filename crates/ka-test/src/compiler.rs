//! The C compiler, and test programs in C.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifact::release;
use crate::child::succeed;
use crate::path::{root, scratch};

/// The way in which a C program links to libka.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Linkage {
    /// To libka.so, which the loader finds through an rpath.
    Shared,
    /// To libka.a, without any other flag.
    Static,
    /// The program does not use libka.
    Nothing,
}

/// Both ways to link to libka.
pub const LINKS: [Linkage; 2] = [Linkage::Shared, Linkage::Static];

/// Returns the C compiler that the cc crate finds. The cc crate honours the variables CC and CFLAGS.
pub fn cc() -> Command {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut build = cc::Build::new();
    build.target(&triple).host(&triple).opt_level(1).debug(true).cargo_metadata(false);
    let mut command = build.get_compiler().to_command();
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    command
}

/// Compiles tests/c/NAME.c and returns the path of the program.
pub fn program(name: &str, link: Linkage) -> PathBuf {
    compile(&mut cc(), &root().join("tests/c").join(name).with_extension("c"), link)
}

/// Compiles one source file with this compiler and returns the path of the program.
pub fn compile(compiler: &mut Command, source: &Path, link: Linkage) -> PathBuf {
    let output = scratch(source.file_stem().unwrap().to_str().unwrap());
    compiler.arg("-I").arg(root().join("include")).arg("-o").arg(&output).arg(source);
    match link {
        Linkage::Shared => {
            let mut rpath = OsString::from("-Wl,-rpath,");
            rpath.push(release());
            compiler.arg("-L").arg(release()).arg("-lka").arg(rpath);
        }
        Linkage::Static => {
            compiler.arg(release().join("libka.a"));
        }
        Linkage::Nothing => {}
    }
    succeed(compiler);
    output
}

/// Compiles tests/c/allow.c, which runs a program under a seccomp filter that allows only these system calls.
///
/// System calls that this architecture does not have are left out.
pub fn allowing<'a>(calls: impl IntoIterator<Item = &'a str>) -> PathBuf {
    let table = scratch("calls").with_extension("inc");
    let lines = calls.into_iter().map(|call| format!("#ifdef __NR_{call}\n__NR_{call},\n#endif\n"));
    fs::write(&table, lines.collect::<String>()).unwrap();
    let define = format!("-DCALLS=\"{}\"", table.display());
    compile(cc().arg(define), &root().join("tests/c/allow.c"), Linkage::Nothing)
}
