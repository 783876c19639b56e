//! libka as a file: what it exports, what it needs, what is in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use ka_test::artifact::{loaded_size, release, unstripped};
use ka_test::child::stdout;
use ka_test::compiler::{Link, cc, compile, program};
use ka_test::libka::{EXPORTS, libka};
use ka_test::path::root;

fn readelf(flags: &str, library: &Path) -> String {
    stdout(Command::new("readelf").arg(flags).arg(library).env("LC_ALL", "C"))
}

/// The symbols of a dynamic symbol table: undefined ones, or those that others can use. Without their versions, and
/// without the symbols that GNU ld makes for the versions themselves.
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
fn it_exports_the_api_and_nothing_else() {
    let mut expected = EXPORTS.to_vec();
    expected.sort_unstable();
    assert_eq!(dynamic_symbols(&release().join("libka.so"), "--defined-only"), expected);
}

#[test]
fn the_header_declares_what_it_exports() {
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
fn it_needs_libc_alone() {
    let dynamic = readelf("-dW", &release().join("libka.so"));
    let needed: Vec<_> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.len() == 1 && needed[0].ends_with("[libc.so.6]"), "{needed:?}");
    // Bound when it is loaded: nothing is left to be resolved in a signal handler.
    assert!(dynamic.contains("NOW"), "{dynamic}");
}

/// All that it can call: nothing that takes a lock or writes a log; what allocates is for a reaper.
#[test]
fn it_calls_little() {
    let symbols = dynamic_symbols(&release().join("libka.so"), "--undefined-only");
    let runtime =
        ["_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize", "__gmon_start__"];
    let allowed = [
        "__errno_location",
        "calloc",
        "free",
        "getauxval", // on aarch64: what the processor has
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
fn it_runs_on_a_glibc_of_2012() {
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
fn it_is_at_most_64_kib() {
    let size = loaded_size(&release().join("libka.so"));
    assert!((1..=64 * 1024).contains(&size), "{size} bytes");
}

/// What it could keep between calls would be in data that it can write. Only the C runtime's own is, and a byte where
/// SHA-256 notes which instructions the processor has.
#[test]
fn it_keeps_no_state() {
    let symbols = stdout(Command::new("nm").arg(unstripped().join("libka.so")));
    let writable = |line: &&str| line.split_whitespace().nth(1).is_some_and(|kind| "bBdD".contains(kind));
    let runtime =
        ["_DYNAMIC", "_GLOBAL_OFFSET_TABLE_", "__TMC_END__", "__TMC_LIST__", "__dso_handle", "completed.0"];
    let own: Vec<_> = symbols
        .lines()
        .filter(writable)
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| !runtime.contains(name) && !name.ends_with("array_entry"))
        .filter(|name| {
            !(name.starts_with("_ZN4sha26sha256")
                && ["cpuid", "hwcap"].iter().any(|word| name.contains(word)))
        })
        .collect();
    assert_eq!(own, Vec::<&str>::new());
}

/// A panic that could be reached would keep core's panic functions in the library, and the paths of the sources for
/// its message. The tools that look for them are tried on a library that has them.
#[test]
fn nothing_in_it_can_panic() {
    let library = unstripped().join("libka.so");
    let symbols = stdout(Command::new("nm").arg("--demangle").arg(&library));
    assert!(symbols.contains("ka_core::"), "the symbols are stripped, this would prove nothing");
    assert_eq!(panic_symbols(&symbols), Vec::<&str>::new());
    assert_eq!(panic_strings(&fs::read(release().join("libka.so")).unwrap()), Vec::<&str>::new());

    // The same search finds them in a program of Rust's standard library: this one.
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
fn it_links_statically_with_no_other_flag() {
    let program = program("link", Link::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
    let dynamic = readelf("-dW", &program);
    assert!(!dynamic.contains("libka") && !dynamic.contains("libgcc"), "{dynamic}");

    // And into a program without a dynamic loader.
    let source = root().join("tests/c/link.c");
    let program = compile(cc().arg("-static"), &source, Link::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
}

#[test]
fn it_loads_in_a_musl_program() {
    let source = root().join("tests/c/link.c");
    let mut compiler = Command::new("musl-gcc");
    let program =
        compile(compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror"]), &source, Link::Shared);
    assert!(readelf("-lW", &program).contains("ld-musl"), "not a musl program");
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));

    let mut compiler = Command::new("musl-gcc");
    let program = compile(compiler.arg("-static"), &source, Link::Static);
    assert_eq!(stdout(&mut Command::new(&program)), concat!(env!("CARGO_PKG_VERSION"), " on 60 10 5\n"));
}

#[test]
fn versions_come_from_one_place() {
    let program = program("link", Link::Shared);
    assert!(stdout(&mut Command::new(&program)).starts_with(env!("CARGO_PKG_VERSION")));
    let number = |part: &str| part.parse::<u32>().unwrap();
    let expected = 1_000_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
        + 1000 * number(env!("CARGO_PKG_VERSION_MINOR"))
        + number(env!("CARGO_PKG_VERSION_PATCH"));
    // SAFETY: takes nothing.
    assert_eq!(unsafe { (libka().ka_version_number)() }, expected);
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(
        changelog.contains(concat!("## [", env!("CARGO_PKG_VERSION"), "]")),
        "CHANGELOG.md has no section for this version"
    );
}
