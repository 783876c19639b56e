//! Tests the library file: its exports, its dependencies, its size and its contents.

use std::fs;
use std::path::Path;
use std::process::Command;

use ka_test::artifact::{loaded_size, release, unstripped};
use ka_test::child::stdout;
use ka_test::compiler::{Linkage, cc, compile, program};
use ka_test::libka::{EXPORTS, libka};
use ka_test::path::root;

fn readelf(flags: &str, library: &Path) -> String {
    stdout(Command::new("readelf").arg(flags).arg(library).env("LC_ALL", "C"))
}

/// Returns the undefined or the exported symbols of a dynamic symbol table, without their versions. Symbols that GNU ld
/// makes for the versions themselves are left out.
fn dynamic_symbols(library: &Path, filter: &str) -> Vec<String> {
    let table = stdout(Command::new("nm").args(["-D", filter]).arg(library));
    let mut names: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().rev().collect::<Vec<_>>())
        .filter(|words| words[1] != "A")
        .filter_map(|words| words[0].split('@').next().map(String::from))
        .collect();
    names.sort();
    names
}

#[test]
fn libka_exports_only_the_api() {
    let mut expected = EXPORTS.to_vec();
    expected.sort_unstable();
    assert_eq!(dynamic_symbols(&release().join("libka.so"), "--defined-only"), expected);
}

#[test]
fn the_header_declares_every_export() {
    let header = ka_test::header::header();
    let mut declared: Vec<_> = header
        .lines()
        .filter(|line| line.ends_with(");") && !line.starts_with(' '))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .collect();
    declared.sort_unstable();
    let mut expected = EXPORTS.to_vec();
    expected.sort_unstable();
    assert_eq!(declared, expected);
}

#[test]
fn the_soname_has_the_version_that_programs_depend_on() {
    let soname = concat!("libka.so.", env!("CARGO_PKG_VERSION_MAJOR"));
    let dynamic = readelf("-dW", &release().join("libka.so"));
    assert!(dynamic.contains(&format!("Library soname: [{soname}]")), "{dynamic}");
    assert_eq!(fs::read_link(release().join(soname)).unwrap(), Path::new("libka.so"));
}

#[test]
fn libka_needs_only_libc() {
    let dynamic = readelf("-dW", &release().join("libka.so"));
    let needed: Vec<_> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.len() == 1 && needed[0].ends_with("[libc.so.6]"), "{needed:?}");
    // The loader binds all symbols when it loads the library. Otherwise a call in a signal handler could bind one.
    assert!(dynamic.contains("NOW"), "{dynamic}");
}

/// libka calls no function that takes a lock or writes a log. Only the reaper allocates memory.
#[test]
fn libka_calls_only_allowed_functions() {
    let symbols = dynamic_symbols(&release().join("libka.so"), "--undefined-only");
    let runtime =
        ["_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize", "__gmon_start__"];
    let allowed = [
        "__errno_location",
        "calloc",
        "free",
        "getauxval", // on aarch64: the features of the processor
        "getsockopt",
        "malloc",
        "setsockopt",
        "socket",
        "syscall",
    ];
    // The compiler may call these for a copy or a comparison.
    let memory = ["bcmp", "memcmp", "memcpy", "memmove", "memset", "strlen"];
    for name in symbols {
        assert!([&runtime[..], &allowed, &memory].concat().contains(&name.as_str()), "it calls {name}");
    }
}

#[test]
fn libka_needs_at_most_glibc_2_17() {
    let symbols = stdout(Command::new("nm").args(["-D", "--undefined-only"]).arg(release().join("libka.so")));
    let versions: Vec<(u32, u32)> = symbols
        .lines()
        .filter_map(|line| line.split_once("@GLIBC_")?.1.split_once('.'))
        .map(|(major, rest)| (major.parse().unwrap(), rest.split('.').next().unwrap().parse().unwrap()))
        .collect();
    assert!(!versions.is_empty(), "{symbols}");
    assert!(versions.iter().all(|version| *version <= (2, 17)), "newer than GLIBC_2.17: {symbols}");
}

#[test]
fn libka_is_at_most_60_kib() {
    let size = loaded_size(&release().join("libka.so"));
    assert!((1..=60 * 1024).contains(&size), "{size} bytes");
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("libka.so has at most 60 KiB"), "README.md has another limit");
}

/// If the library kept state between calls, it would need writable data. Its only writable data is that of the C
/// runtime, a byte in which SHA-256 records the instructions of the processor, and the locks of sockets that threads
/// are probing.
#[test]
fn libka_keeps_no_state() {
    let symbols = stdout(Command::new("nm").arg(unstripped().join("libka.so")));
    let writable = |line: &&str| line.split_whitespace().nth(1).is_some_and(|kind| "bBdD".contains(kind));
    let runtime =
        ["_DYNAMIC", "_GLOBAL_OFFSET_TABLE_", "__TMC_END__", "__TMC_LIST__", "__dso_handle", "completed.0"];
    let own: Vec<_> = symbols
        .lines()
        .filter(writable)
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| !runtime.contains(name) && !name.ends_with("array_entry"))
        .filter(|name| !(name.contains("ka_core5probe") && name.contains("LOCKS")))
        .filter(|name| {
            !(name.starts_with("_ZN4sha26sha256")
                && ["cpuid", "hwcap"].iter().any(|word| name.contains(word)))
        })
        .collect();
    assert_eq!(own, Vec::<&str>::new());
}

/// If the library could panic, it would contain core's panic functions, and paths of sources for the message. The test
/// also runs its search on a program that has them.
#[test]
fn the_library_cannot_panic() {
    let library = unstripped().join("libka.so");
    let symbols = stdout(Command::new("nm").arg("--demangle").arg(&library));
    assert!(symbols.contains("ka_core::"), "the symbols are stripped, so the test would prove nothing");
    assert_eq!(panic_symbols(&symbols), Vec::<&str>::new());
    assert_eq!(panic_strings(&fs::read(release().join("libka.so")).unwrap()), Vec::<&str>::new());

    // The same search finds them in this test, which has Rust's standard library.
    let this = std::env::current_exe().unwrap();
    let symbols = stdout(Command::new("nm").arg("--demangle").arg(&this));
    assert_ne!(panic_symbols(&symbols), Vec::<&str>::new());
    assert_ne!(panic_strings(&fs::read(&this).unwrap()), Vec::<&str>::new());
}

fn panic_symbols(symbols: &str) -> Vec<&str> {
    symbols
        .lines()
        .filter(|line| {
            ["panic", "unwind", "slice_index_fail", "unwrap_failed"].iter().any(|word| line.contains(word))
        })
        .collect()
}

fn panic_strings(library: &[u8]) -> Vec<&'static str> {
    let words = ["panicked", "index out of bounds", "attempt to ", "called `", ".rs"];
    words
        .into_iter()
        .filter(|word| library.windows(word.len()).any(|bytes| bytes == word.as_bytes()))
        .collect()
}

#[test]
fn libka_links_statically_without_further_flags() {
    let program = program("link", Linkage::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
    let dynamic = readelf("-dW", &program);
    assert!(!dynamic.contains("libka") && !dynamic.contains("libgcc"), "{dynamic}");

    // Also link it into a program without a dynamic loader.
    let source = root().join("tests/c/link.c");
    let program = compile(cc().arg("-static"), &source, Linkage::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
}

#[test]
fn libka_loads_in_musl_programs() {
    let source = root().join("tests/c/link.c");
    let mut compiler = Command::new("musl-gcc");
    let program =
        compile(compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror"]), &source, Linkage::Shared);
    assert!(readelf("-lW", &program).contains("ld-musl"), "not a musl program");
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));

    let mut compiler = Command::new("musl-gcc");
    let program = compile(compiler.arg("-static"), &source, Linkage::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
}

#[test]
fn versions_come_from_one_place() {
    let program = program("link", Linkage::Shared);
    assert!(stdout(&mut Command::new(&program)).starts_with(env!("CARGO_PKG_VERSION")));
    let number = |part: &str| part.parse::<u32>().unwrap();
    let expected = 1_000_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
        + 1000 * number(env!("CARGO_PKG_VERSION_MINOR"))
        + number(env!("CARGO_PKG_VERSION_PATCH"));
    // SAFETY: the call takes no argument.
    assert_eq!(unsafe { (libka().ka_version_number)() }, expected);
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(
        changelog.contains(concat!("## [", env!("CARGO_PKG_VERSION"), "]")),
        "CHANGELOG.md has no section for this version"
    );
}
