//! Tests that programs that were built against an older libka with the same SONAME still run, and that abidiff(1) finds
//! incompatible changes.
//!
//! tests/abi/ has the declarations of the header and the version script of each release. From these two files, the
//! tests make a library with the same ABI, in C with empty functions. abidiff(1) compares these libraries, and test
//! programs are linked with them. libka's own debugging information is not suitable, because it describes Rust's types
//! and differs between compilers. The constants of the header are macros. The library has them as an enumeration.
//! `make header` writes the files of the next release. SHA256SUMS detects changes in the files of older releases.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ka_test::artifact::{release, soname};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::compiler::cc;
use ka_test::header::one_line_each;
use ka_test::libka::EXPORTS;
use ka_test::path::{root, scratch};

/// The header and the version script of a release.
struct Api {
    header: String,
    map: String,
}

impl Api {
    fn of(folder: &Path, map: &Path) -> Self {
        let read = |path: PathBuf| {
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Self { header: read(folder.join("ka.h")), map: read(map.to_owned()) }
    }

    /// Returns the API of the sources.
    fn now() -> Self {
        Self::of(&root().join("include"), &root().join("src/libka.map"))
    }

    /// Returns the API of a release.
    fn then(version: &str) -> Self {
        let folder = root().join("tests/abi").join(version);
        Self::of(&folder, &folder.join("libka.map"))
    }

    /// Returns a copy in which `new` replaces `old`.
    fn with(&self, old: &str, new: &str) -> Self {
        let changed = |text: &str| text.replacen(old, new, 1);
        let api = Self { header: changed(&self.header), map: changed(&self.map) };
        assert!(api.header != self.header || api.map != self.map, "{old:?} was not found");
        api
    }

    /// Makes a folder with ka.h and a libka.so that has this ABI and empty functions.
    fn library(&self) -> PathBuf {
        let folder = scratch("abi");
        fs::create_dir_all(&folder).unwrap();
        let mut source = String::from("#include <ka.h>\nenum ka_constants {\n");
        for name in constants(&self.header).keys() {
            writeln!(source, "    in_{name} = {name},").unwrap();
        }
        source += "};\nenum ka_constants ka_constants(void) { return in_KA_KEEP; }\n";
        for declaration in one_line_each(&self.header).lines() {
            if let Some(function) = declaration.strip_suffix(';').filter(|line| is_function(line)) {
                writeln!(source, "{function} {{ __builtin_trap(); }}").unwrap();
            }
        }
        fs::write(folder.join("ka.h"), &self.header).unwrap();
        fs::write(folder.join("libka.c"), source).unwrap();
        let map = self.map.replacen("    global:\n", "    global:\n        ka_constants;\n", 1);
        fs::write(folder.join("libka.map"), map).unwrap();
        let mut compiler = Command::new("gcc");
        compiler.current_dir(&folder).args([
            "-g",
            "-shared",
            "-fPIC",
            "-I.",
            "-Wall",
            "-Werror",
            "-Wno-unused",
        ]);
        succeed(
            compiler
                .args(["libka.c", "-o", "libka.so", "-Wl,--version-script=libka.map"])
                .arg(format!("-Wl,-soname,{}", soname())),
        );
        folder
    }
}

fn is_function(line: &str) -> bool {
    line.ends_with(')')
        && line.contains(" *ka_") | line.contains(" ka_")
        && line.starts_with(char::is_alphabetic)
}

/// Returns the constants of the API, which are macros, with their values.
fn constants(header: &str) -> BTreeMap<&str, &str> {
    header
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .filter(|(name, value)| {
            !name.starts_with("KA_VERSION") && !value.starts_with('{') && !name.contains('(')
        })
        .collect()
}

/// Returns the versions in tests/abi/.
fn all_versions() -> Vec<String> {
    let mut versions: Vec<_> = fs::read_dir(root().join("tests/abi"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    versions.sort();
    versions
}

/// Returns the versions with the current SONAME. Programs that were built against them must run.
fn versions() -> Vec<String> {
    let prefix = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".");
    let versions: Vec<_> = all_versions().into_iter().filter(|version| version.starts_with(prefix)).collect();
    assert!(!versions.is_empty(), "tests/abi/ has no version of this SONAME: run `make header`");
    versions
}

/// The structs that begin with their size, and may grow at their end (ka.h, "Versions").
const GROWING: [&str; 2] = ["ka_config", "ka_status"];

/// Runs abidiff on two libraries. Additions are compatible, so they are hidden. abidiff's own rule for structs that may
/// grow is not used, because it also accepts members that have become wider.
fn abidiff(old: &Api, new: &Api) -> Output {
    let mut new = Api { header: new.header.clone(), map: new.map.clone() };
    for name in GROWING {
        let (was, is) = (body(&old.header, name), body(&new.header, name));
        if members(is).starts_with(&members(was)) {
            new.header = new.header.replace(is, was);
        }
    }
    let mut command = Command::new("abidiff");
    command.arg("--no-added-syms");
    for api in [old, &new] {
        command.arg(api.library().join("libka.so"));
    }
    command.output().unwrap_or_else(|error| panic!("abidiff: {error}"))
}

/// Returns the text between the braces of a struct.
fn body<'a>(header: &'a str, name: &str) -> &'a str {
    header.split_once(&format!("\nstruct {name} {{\n")).unwrap().1.split_once("\n};").unwrap().0
}

/// Returns the members in the body of a struct, one for each line.
fn members(body: &str) -> Vec<&str> {
    body.lines().filter(|line| line.ends_with(';') && !line.trim_start().starts_with('*')).collect()
}

/// The files in tests/abi/ of the version in Cargo.toml must equal the sources. `make header` writes them until the
/// version is released, and never writes those of another version.
#[test]
fn baseline_equals_the_sources() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let is_released = !changelog.contains(&format!("## [{version}] - unreleased"));
    let folder = root().join("tests/abi").join(version);
    let files = [("include/ka.h", "ka.h"), ("src/libka.map", "libka.map")]
        .map(|(source, name)| (code(&fs::read_to_string(root().join(source)).unwrap()), folder.join(name)));
    if !is_released && std::env::var_os("KA_HEADER").is_some_and(|value| value == "write") {
        fs::create_dir_all(&folder).unwrap();
        for (source, path) in &files {
            fs::write(path, source).unwrap();
        }
        write_checksums(version);
    }
    for (source, path) in files {
        let what = if is_released {
            format!("{version} is released, so start the next version as CONTRIBUTING.md says")
        } else {
            "run `make header` and commit the file".to_owned()
        };
        let baseline = fs::read_to_string(&path).unwrap_or_default();
        assert!(baseline == source, "{} does not equal the sources: {what}", path.display());
    }
}

/// The checksums of all files in tests/abi/, as sha256sum(1) prints them.
const CHECKSUMS: &str = "SHA256SUMS";

/// Returns the files of a version, relative to tests/abi/.
fn files(version: impl Display) -> [String; 2] {
    ["ka.h", "libka.map"].map(|name| format!("{version}/{name}"))
}

/// Writes the checksums of a version, and keeps those of the others.
fn write_checksums(version: &str) {
    let folder = root().join("tests/abi");
    let own = files(version);
    let before = fs::read_to_string(folder.join(CHECKSUMS)).unwrap_or_default();
    let now = stdout(Command::new("sha256sum").args(&own).current_dir(&folder));
    let others = before.lines().filter(|line| !own.iter().any(|file| line.ends_with(&format!(" {file}"))));
    let text: String = others.chain(now.lines()).flat_map(|line| [line, "\n"]).collect();
    fs::write(folder.join(CHECKSUMS), text).unwrap();
}

/// Programs may be built against a released version, so its files must not change any more.
#[test]
fn baselines_of_all_versions_are_unchanged() {
    let folder = root().join("tests/abi");
    succeed(
        Command::new("sha256sum").args(["--check", "--strict", "--quiet", CHECKSUMS]).current_dir(&folder),
    );
    let listed = fs::read_to_string(folder.join(CHECKSUMS)).unwrap();
    let listed: BTreeSet<_> =
        listed.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect();
    let files = all_versions().into_iter().flat_map(files);
    assert_eq!(listed, files.collect());
}

/// Returns a file of C without comments and empty lines, on which no program depends.
fn code(source: &str) -> String {
    // The version script ends with "*;", which is not a comment.
    let is_comment =
        |line: &str| line == "*" || ["/*", "* ", "*/"].iter().any(|start| line.starts_with(start));
    let is_code = |line: &&str| !line.trim().is_empty() && !is_comment(line.trim());
    source.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn baselines_have_no_comments() {
    for version in versions() {
        let api = Api::then(&version);
        assert_eq!(code(&api.header), api.header, "tests/abi/{version}/ka.h");
        assert_eq!(code(&api.map), api.map, "tests/abi/{version}/libka.map");
    }
}

#[test]
fn releases_with_this_soname_stay_compatible() {
    let now = Api::now();
    for version in versions() {
        let output = abidiff(&Api::then(&version), &now);
        assert!(
            output.status.success(),
            "programs that were built against {version} would break:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn abidiff_reports_breaks_and_accepts_additions() {
    let now = Api::now();
    let declaration = "int ka_disable(int fd);";
    for (what, broken) in [
        ("a function is gone", now.with("        ka_disable;\n", "")),
        ("a function has another parameter", now.with(declaration, "int ka_disable(int fd, int why);")),
        ("a function returns something else", now.with(declaration, "long ka_disable(int fd);")),
        (
            "a struct has another member in between",
            now.with("    int32_t idle;", "    int32_t more;\n    int32_t idle;"),
        ),
        ("a member of a struct is wider", now.with("    int32_t cnt;", "    int64_t cnt;")),
        ("a member of a struct is gone", now.with("    uint32_t unacked;\n", "")),
        (
            "two members have changed places",
            now.with("    int32_t idle;", "    int32_t swap;")
                .with("    int32_t intvl;", "    int32_t idle;")
                .with("swap", "intvl"),
        ),
        (
            "a struct grew that has no size",
            now.with("    uint64_t sequence;", "    uint64_t sequence;\n    uint64_t more;"),
        ),
        ("a constant has another number", now.with("#define KA_AUTO (-2)", "#define KA_AUTO (-3)")),
        ("a constant is gone", now.with("#define KA_CNT_MAX 127\n", "")),
    ] {
        let output = abidiff(&now, &broken);
        assert_ne!(output.status.code(), Some(0), "abidiff did not see that {what}");
        // Bits 1 and 2 mean that abidiff itself has failed.
        assert_eq!(output.status.code().unwrap() & 3, 0, "{what}: {}", stderr(&output));
    }
    let more = "int ka_disable(int fd);\nint ka_more(int fd);";
    for (what, grown) in [
        ("nothing", Api::now()),
        (
            "function",
            now.with(declaration, more).with("        ka_parse;", "        ka_parse;\n        ka_more;"),
        ),
        ("constant", now.with("#define KA_CNT_MAX 127\n", "#define KA_CNT_MAX 127\n#define KA_MORE 1\n")),
        (
            "member of a struct with a size",
            now.with("    int32_t rto_max;", "    int32_t rto_max;\n    int32_t more;"),
        ),
    ] {
        let output = abidiff(&now, &grown);
        assert!(
            output.status.success(),
            "abidiff rejects this addition: {what}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

/// The program is compiled with the header and linked with the library of the release, and runs with today's library.
#[test]
fn programs_of_older_releases_run() {
    for version in versions() {
        let library = Api::then(&version).library();
        let program = scratch("older");
        let mut compiler = cc();
        compiler.arg("-I").arg(&library).arg("-L").arg(&library).arg("-o").arg(&program);
        succeed(compiler.arg(root().join("tests/c/older.c")).arg("-lka"));
        let run = |folder: &Path| Command::new(&program).env("LD_LIBRARY_PATH", folder).output().unwrap();
        let output = run(release());
        assert!(output.status.success(), "a program of {version}: {}", stderr(&output));
        // If a symbol's version were missing, the loader would print it.
        assert_eq!(stderr(&output), "", "a program of {version}");

        // If the library does not have that version, the program does not start.
        let older = Api { map: Api::now().map.replace("KA_0.1", "KA_0.0"), ..Api::now() }.library();
        fs::rename(older.join("libka.so"), older.join(soname())).unwrap();
        let output = run(&older);
        let printed = stderr(&output);
        assert!(!output.status.success() && printed.contains("version `KA_0.1' not found"), "{printed}");
    }
}

/// ka.h names the release of each function ("Since"). The version script and the library must have the function in the
/// node of that release.
#[test]
fn functions_have_the_symbol_version_of_their_release() {
    let header = ka_test::header::header();
    let mut since = BTreeSet::new();
    for name in EXPORTS {
        let declared = header
            .lines()
            .position(|line| is_function(line.trim_end_matches(';')) && line.contains(&format!("{name}(")))
            .unwrap();
        let before = header.lines().take(declared).collect::<Vec<_>>().join("\n");
        let release = before.rsplit_once("Since ").unwrap().1.split_once(".\n").unwrap().0;
        since.insert(format!("{name}@@KA_{}", release.strip_suffix(".0").unwrap_or(release)));
    }
    assert_eq!(exported(&release().join("libka.so")), since);

    // The version script lists the same functions, and no others.
    let map = fs::read_to_string(root().join("src/libka.map")).unwrap();
    let mut node = "";
    let mut listed = BTreeSet::new();
    for line in map.lines() {
        if let Some((name, _)) = line.split_once(" {") {
            node = name;
        } else if let Some(name) = line.strip_prefix("        ka_") {
            listed.insert(format!("ka_{}@@{node}", name.trim_end_matches(';')));
        }
    }
    assert_eq!(listed, since);
}

/// Returns the functions that a library exports, with their versions.
fn exported(library: &Path) -> BTreeSet<String> {
    let table =
        stdout(Command::new("nm").args([OsStr::new("-D"), "--defined-only".as_ref(), library.as_os_str()]));
    table
        .lines()
        .map(|line| line.split_whitespace().rev().collect::<Vec<_>>())
        .filter(|words| words[1] == "T")
        .map(|words| words[0].to_owned())
        .collect()
}
