//! Tests `make install`. The files are staged, and the prefix is then moved elsewhere. From there, C and C++ programs
//! are built by pkg-config, by CMake and by hand, shared and static.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use ka_test::artifact::{release, soname};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::log::skip;
use ka_test::namespace::is_root;
use ka_test::path::{root, scratch, target, write_script};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns a command that runs `make` in the repository with this DESTDIR.
fn make(target: &str, stage: &Path, variables: &[&str]) -> Command {
    release();
    let mut command = Command::new("make");
    command.current_dir(root()).args(["--no-print-directory", target]).args(variables);
    command.arg(format!("DESTDIR={}", stage.display()));
    command
}

/// Returns the installed prefix, which was moved after staging.
fn prefix() -> &'static Path {
    static MOVED: OnceLock<PathBuf> = OnceLock::new();
    MOVED.get_or_init(|| moved("/usr/local", &[]))
}

fn moved(prefix: &str, variables: &[&str]) -> PathBuf {
    let stage = scratch("stage");
    let place = format!("PREFIX={prefix}");
    let variables = [&[place.as_str()], variables].concat();
    succeed(&mut make("install", &stage, &variables));
    let elsewhere = scratch("moved here");
    fs::rename(stage.join(prefix.trim_start_matches('/')), &elsewhere).unwrap();
    fs::remove_dir_all(stage).unwrap();
    elsewhere
}

/// Returns every file, folder and link below a folder, with its mode and the target of a link.
fn tree(folder: &Path) -> BTreeMap<String, String> {
    let listing = stdout(Command::new("find").arg(folder).args(["-mindepth", "1", "-printf", "%P\t%M %l\n"]));
    let entry = |line: &str| {
        let (path, what) = line.split_once('\t').unwrap();
        (path.to_owned(), what.trim_end().to_owned())
    };
    listing.lines().map(entry).collect()
}

fn pkg_config(prefix: &Path, args: &[&str]) -> Vec<String> {
    let folder = stdout(Command::new("find").arg(prefix).args(["-name", "pkgconfig"]));
    let mut command = Command::new("pkg-config");
    let printed = stdout(command.args(args).arg("ka").env("PKG_CONFIG_LIBDIR", folder.trim()));
    // pkg-config escapes blanks in paths with a backslash.
    printed.trim().replace("\\ ", "\u{1}").split(' ').map(|word| word.replace('\u{1}', " ")).collect()
}

/// Runs a program with the libraries of the prefix. Checks the settings that it prints, and whether it is linked with
/// the shared library.
fn check_program(program: &Path, lib: &Path, shared: bool) {
    let output = succeed(Command::new(program).env("LD_LIBRARY_PATH", lib));
    let printed = String::from_utf8(output.stdout).unwrap();
    // hpp.cpp checks the settings itself, and prints nothing.
    assert!(printed.is_empty() || printed == format!("{VERSION} on 60 10 5\n"), "{printed}");
    let dynamic = stdout(Command::new("readelf").arg("-dW").arg(program).env("LC_ALL", "C"));
    assert_eq!(dynamic.contains(&format!("[{}]", soname())), shared, "{dynamic}");
    assert!(!dynamic.contains(release().to_str().unwrap()), "{dynamic}");
}

fn build(compiler: &str, source: &str, args: &[impl AsRef<OsStr>]) -> PathBuf {
    let program = scratch("program");
    let mut command = Command::new(compiler);
    if compiler.ends_with("++") {
        command.arg("-std=c++17");
    }
    succeed(
        command
            .args(["-Wall", "-Werror", "-o"])
            .arg(&program)
            .arg(root().join("tests").join(source))
            .args(args),
    );
    program
}

const COMPILERS: [(&str, &str); 4] =
    [("gcc", "c/link.c"), ("clang", "c/link.c"), ("g++", "cpp/hpp.cpp"), ("clang++", "cpp/hpp.cpp")];

#[test]
fn files_are_installed_in_the_right_places() {
    let tree = tree(prefix());
    let library = format!("libka.so.{VERSION}");
    let soname = soname();
    let mut expected = BTreeMap::new();
    let mut add = |mode: &'static str, path: &str| {
        expected.insert(path.to_owned(), mode.to_owned());
        for folder in Path::new(path).ancestors().skip(1).filter(|folder| *folder != Path::new("")) {
            expected.insert(folder.to_str().unwrap().to_owned(), "drwxr-xr-x".into());
        }
    };
    for path in [
        "include/ka.h",
        "include/ka.hpp",
        "lib/libka.a",
        "lib/pkgconfig/ka.pc",
        "lib/cmake/ka/ka-config.cmake",
        "lib/cmake/ka/ka-config-version.cmake",
        "lib/ka/installed",
        "share/doc/ka/copyright",
    ] {
        add("-rw-r--r--", path);
    }
    add("-rwxr-xr-x", &format!("lib/{library}"));
    add("-rwxr-xr-x", "lib/ka/libka_preload.so");
    add("-rwxr-xr-x", "lib/ka/ka-metrics");
    add("-rwxr-xr-x", "lib/ka/ka-top");
    add("-rwxr-xr-x", "bin/ka");
    add("-rw-r--r--", "share/bash-completion/completions/ka");
    add("-rw-r--r--", "share/zsh/site-functions/_ka");
    add("-rw-r--r--", "share/fish/vendor_completions.d/ka.fish");
    add("-rwxr-xr-x", "share/ka/ld-so-preload");
    for page in fs::read_dir(root().join("man")).unwrap() {
        let page = page.unwrap().file_name().into_string().unwrap();
        let section = page.rsplit_once('.').unwrap().1.to_owned();
        add("-rw-r--r--", &format!("share/man/man{section}/{page}"));
    }
    expected.insert("lib/libka.so".into(), format!("lrwxrwxrwx {soname}"));
    expected.insert(format!("lib/{soname}"), format!("lrwxrwxrwx {library}"));
    assert_eq!(tree, expected);
    for (source, installed) in
        [("libka.a", "libka.a"), ("libka.so", "libka.so"), ("libka_preload.so", "ka/libka_preload.so")]
    {
        let same = fs::read(release().join(source)).unwrap()
            == fs::read(prefix().join("lib").join(installed)).unwrap();
        assert!(same, "{installed} differs from the release build");
    }
    let printed = stdout(Command::new(prefix().join("bin/ka")).arg("--version"));
    assert_eq!(printed, format!("ka {VERSION}\n"));
    for (path, word) in [
        ("bash-completion/completions/ka", "complete -F _ka"),
        ("zsh/site-functions/_ka", "#compdef ka"),
        ("fish/vendor_completions.d/ka.fish", "complete -c ka"),
    ] {
        let completions = fs::read_to_string(prefix().join("share").join(path)).unwrap();
        assert!(completions.contains(word), "{path}: {completions}");
    }
}

#[test]
fn programs_can_be_built_by_hand() {
    let (include, lib) = (prefix().join("include"), prefix().join("lib"));
    for (compiler, source) in COMPILERS {
        let shared: [&OsStr; 5] =
            ["-I".as_ref(), include.as_ref(), "-L".as_ref(), lib.as_ref(), "-lka".as_ref()];
        check_program(&build(compiler, source, &shared), &lib, true);
        let archive = lib.join("libka.a");
        let with_archive: [&OsStr; 3] = ["-I".as_ref(), include.as_ref(), archive.as_ref()];
        check_program(&build(compiler, source, &with_archive), &lib, false);
    }
}

#[test]
fn programs_can_be_built_by_pkg_config() {
    // Test a prefix with the default folders, and one with Debian's LIBDIR.
    for prefix in [prefix(), &moved("/usr", &["LIBDIR=/usr/lib/x86_64-linux-gnu"])] {
        let lib = PathBuf::from(pkg_config(prefix, &["--variable=libdir"]).remove(0));
        assert!(lib.canonicalize().unwrap().starts_with(prefix), "{lib:?}");
        for (compiler, source) in COMPILERS {
            check_program(&build(compiler, source, &pkg_config(prefix, &["--cflags", "--libs"])), &lib, true);
            let mut args = pkg_config(prefix, &["--static", "--cflags", "--libs"]);
            args.push("-static".into());
            check_program(&build(compiler, source, &args), &lib, false);
        }
        assert_eq!(pkg_config(prefix, &["--modversion"]), [VERSION]);
    }
}

#[test]
fn programs_can_be_built_by_cmake() {
    for prefix in [prefix(), &moved("/usr", &["LIBDIR=/usr/lib/x86_64-linux-gnu"])] {
        let folder = scratch("cmake");
        let mut configure = Command::new("cmake");
        configure.arg("-S").arg(root().join("tests/cmake")).arg("-B").arg(&folder);
        configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
        let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
        let printed = stdout(configure.arg(format!("-DKA_ASKED={major}.{minor}")));
        assert!(printed.contains(&format!("found ka {VERSION}")), "{printed}");
        succeed(Command::new("cmake").arg("--build").arg(&folder));
        let lib = PathBuf::from(pkg_config(prefix, &["--variable=libdir"]).remove(0));
        for (program, shared) in
            [("c_shared", true), ("c_static", false), ("cxx_shared", true), ("cxx_static", false)]
        {
            check_program(&folder.join(program), &lib, shared);
        }
    }
}

/// CMake must accept exactly the versions that a program can run with. The rule is that of the SONAME.
#[test]
fn cmake_accepts_the_same_major_version_not_older() {
    let source = root().join("pkg/ka-config-version.cmake.in");
    let template = fs::read_to_string(source).unwrap();
    let compatible = |version: &str, soname: &str, asked: &str| {
        let file = scratch("version.cmake");
        let text =
            template.replace("@VERSION@", version).replace("@SONAME@", soname).replace("@POINTER_SIZE@", "8");
        fs::write(&file, text).unwrap();
        // Set the variables that find_package sets.
        let (min, max) = asked.split_once("...").unwrap_or((asked, ""));
        let mut script = String::new();
        let mut set = |name: &str, value: &str| writeln!(script, "set({name} \"{value}\")").unwrap();
        let numbers: Vec<_> = min.split('.').collect();
        set("PACKAGE_FIND_VERSION", min);
        set("PACKAGE_FIND_VERSION_COUNT", &numbers.len().to_string());
        for (name, at) in [("MAJOR", 0), ("MINOR", 1), ("PATCH", 2)] {
            set(&format!("PACKAGE_FIND_VERSION_{name}"), numbers.get(at).unwrap_or(&"0"));
        }
        if !max.is_empty() {
            set("PACKAGE_FIND_VERSION_RANGE", asked);
            set("PACKAGE_FIND_VERSION_MIN", min);
            set("PACKAGE_FIND_VERSION_MAX", max.trim_start_matches('<'));
            let end = if max.starts_with('<') { "EXCLUDE" } else { "INCLUDE" };
            set("PACKAGE_FIND_VERSION_RANGE_MAX", end);
        }
        writeln!(script, "include(\"{}\")", file.display()).unwrap();
        script +=
            "message(STATUS \"compatible: ${PACKAGE_VERSION_COMPATIBLE} exact: ${PACKAGE_VERSION_EXACT}\")\n";
        let path = scratch("ask.cmake");
        fs::write(&path, script).unwrap();
        let printed = stdout(Command::new("cmake").arg("-P").arg(&path));
        assert_eq!(printed.contains("exact: TRUE"), asked == version, "{version} {asked}: {printed}");
        printed.contains("compatible: TRUE")
    };
    for (version, soname, asked, expected) in [
        ("0.1.0", "libka.so.0", "0.1", true),
        ("0.1.0", "libka.so.0", "0.1.0", true),
        ("0.1.0", "libka.so.0", "0.1.1", false),
        ("0.1.0", "libka.so.0", "0.2", false),
        ("0.1.0", "libka.so.0", "0", true),
        ("0.1.0", "libka.so.0", "1", false),
        ("0.3.7", "libka.so.0", "0.3.2", true),
        ("0.3.7", "libka.so.0", "0.2", true),
        ("0.3.7", "libka.so.0", "0.1...0.4", true),
        ("0.3.7", "libka.so.0", "0.1...<0.3.7", false),
        ("0.3.7", "libka.so.0", "0.1...0.3.7", true),
        ("0.3.7", "libka.so.0", "0.4...1.0", false),
        ("1.4.2", "libka.so.1", "1.2", true),
        ("1.4.2", "libka.so.1", "1.4.2", true),
        ("1.4.2", "libka.so.1", "1.5", false),
        ("1.4.2", "libka.so.1", "0.9", false),
        ("1.4.2", "libka.so.1", "0", false),
        ("2.0.0", "libka.so.2", "1.4", false),
    ] {
        assert_eq!(compatible(version, soname, asked), expected, "version {version}, requested {asked}");
    }

    // If no version is suitable, CMake reports it.
    let output = configure("-DKA_ASKED=99.1");
    assert!(!output.status.success() && stderr(&output).contains(VERSION), "{}", stderr(&output));
}

/// Configures a user's project with the installed prefix.
fn configure(define: &str) -> Output {
    let mut command = Command::new("cmake");
    command.arg("-S").arg(root().join("tests/cmake")).arg("-B").arg(scratch("cmake"));
    command.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())).arg(define);
    command.output().unwrap()
}

#[test]
fn cmake_rejects_components_that_do_not_exist() {
    let output = configure("-DKA_ASKED=COMPONENTS;nonsense");
    let printed = stderr(&output);
    assert!(!output.status.success(), "{output:?}");
    assert!(
        printed.split_whitespace().collect::<Vec<_>>().join(" ").contains("ka has no component nonsense"),
        "{printed}"
    );
    let output = configure("-DKA_ASKED=OPTIONAL_COMPONENTS;nonsense");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn versions_come_from_one_place() {
    let pc = fs::read_to_string(prefix().join("lib/pkgconfig/ka.pc")).unwrap();
    assert!(pc.contains(&format!("\nVersion: {VERSION}\n")), "{pc}");
    let cmake = fs::read_to_string(prefix().join("lib/cmake/ka/ka-config-version.cmake")).unwrap();
    assert!(cmake.contains(&format!("set(PACKAGE_VERSION \"{VERSION}\")")), "{cmake}");
    for header in ["include/ka.h", "include/ka.hpp"] {
        assert_eq!(fs::read(root().join(header)).unwrap(), fs::read(prefix().join(header)).unwrap());
    }
    let header = fs::read_to_string(prefix().join("include/ka.h")).unwrap();
    assert!(header.contains(&format!("\n#define KA_VERSION \"{VERSION}\"\n")));
    // Cargo.toml repeats the version for crates.io where it names our own crates. ka-test is not published.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let published = |line: &&str| line.contains("{ path = \"crates/") && !line.starts_with("ka-test ");
    let own: Vec<_> = manifest.lines().filter(published).collect();
    assert!(!own.is_empty(), "{manifest}");
    for line in own {
        assert!(line.contains(&format!("version = \"{VERSION}\"")), "{line}");
    }
    // tests/exports.rs compares the version of the library, the SONAME and CHANGELOG.md.
    assert!(VERSION.starts_with(soname().strip_prefix("libka.so.").unwrap()));
}

#[test]
fn the_installed_shim_and_command_work() {
    let code = "import socket as s; t = s.socket(); print(t.getsockopt(s.SOL_SOCKET, s.SO_KEEPALIVE), \
                t.getsockopt(s.IPPROTO_TCP, s.TCP_KEEPIDLE))";
    let shim = prefix().join("lib/ka/libka_preload.so");
    // The command finds the shim relative to its own path.
    let mut command = Command::new(prefix().join("bin/ka"));
    command.args(["run", "--policy", "77,7,7", "--", "python3", "-c", code]).env_remove("KA_PRELOAD");
    assert_eq!(stdout(&mut command), "1 77\n");
    // In LD_PRELOAD, a blank separates names, so use a link without a blank.
    let link = scratch("shim.so");
    std::os::unix::fs::symlink(shim, &link).unwrap();
    let mut command = Command::new("python3");
    assert_eq!(
        stdout(command.args(["-c", code]).env("LD_PRELOAD", link).env("KA_POLICY", "77,7,7")),
        "1 77\n"
    );
}

#[test]
fn the_installed_command_finds_the_program_of_its_view() {
    let ka = prefix().join("bin/ka");
    let command = format!("TERM=xterm '{}' top 999999999", ka.display());
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(std::process::Stdio::null());
    let output = String::from_utf8(script.output().unwrap().stdout).unwrap();
    // ka-top has tried to list the sockets of this process.
    assert!(output.starts_with("ka: top: process 999999999: "), "{output}");
}

#[test]
fn uninstall_removes_only_installed_files() {
    let stage = scratch("stage");
    let install = || succeed(&mut make("install", &stage, &["PREFIX=/opt/ka"]));
    let uninstall = || succeed(&mut make("uninstall", &stage, &["PREFIX=/opt/ka"]));
    let nothing = BTreeMap::new();

    install();
    let once = tree(&stage);
    install();
    assert_eq!(tree(&stage), once, "a second installation has changed something");
    uninstall();
    assert_eq!(tree(&stage), nothing);

    // Files and folders that existed before stay, even empty folders.
    fs::create_dir_all(stage.join("opt/ka/include")).unwrap();
    fs::create_dir_all(stage.join("opt/ka/lib/ka")).unwrap();
    fs::write(stage.join("opt/ka/lib/libother.so"), "").unwrap();
    let before = tree(&stage);
    install();
    install();
    uninstall();
    assert_eq!(tree(&stage), before);

    // Files that were added after the installation stay too.
    install();
    fs::write(stage.join("opt/ka/lib/pkgconfig/other.pc"), "").unwrap();
    uninstall();
    let left = tree(&stage);
    assert!(left.contains_key("opt/ka/lib/pkgconfig/other.pc"), "{left:?}");
    assert_eq!(left.len(), before.len() + 2, "{left:?}");

    // A newer version removes the files of an older one.
    install();
    let installed = stage.join("opt/ka/lib/ka/installed");
    let notes = fs::read_to_string(&installed).unwrap() + "file lib/libka.so.0.0.9\n";
    fs::write(&installed, notes).unwrap();
    fs::write(stage.join("opt/ka/lib/libka.so.0.0.9"), "").unwrap();
    install();
    assert!(!tree(&stage).contains_key("opt/ka/lib/libka.so.0.0.9"));
    assert!(!fs::read_to_string(&installed).unwrap().contains("0.0.9"));
    uninstall();
    assert_eq!(tree(&stage), left);

    // If nothing is installed, uninstall fails with a message.
    let output = make("uninstall", &stage, &["PREFIX=/opt/ka"]).output().unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("nothing was installed there"),
        "{output:?}"
    );
    // If the command would not find the shim in LIBDIR, make prints how to build it.
    for (libdir, is_said) in
        [("/opt/ka/lib64", false), ("/opt/ka/lib/x86_64-linux-gnu", false), ("/opt/lib", true)]
    {
        let libdir = format!("LIBDIR={libdir}");
        let variables = ["PREFIX=/opt/ka", libdir.as_str()];
        let output = succeed(&mut make("install", &stage, &variables));
        assert_eq!(stderr(&output).contains("built with KA_LIBDIR=/opt/lib/ka"), is_said, "{output:?}");
        succeed(&mut make("uninstall", &stage, &variables));
    }
    let output = make("install", &stage, &["PREFIX=opt"]).output().unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("PREFIX=opt is not an absolute path"),
        "{output:?}"
    );
    assert_eq!(tree(&stage), left);
}

/// The list of installed files is relative to the prefix, so it is right after a move.
#[test]
fn uninstall_after_a_move_keeps_files_at_the_old_place() {
    let stage = scratch("stage");
    let uninstall = |prefix: &str, more: &[&str]| {
        let place = format!("PREFIX={prefix}");
        make("uninstall", &stage, &[&[place.as_str()], more].concat()).output().unwrap()
    };
    // These folders existed before the installation, so uninstall must keep them.
    fs::create_dir_all(stage.join("opt")).unwrap();
    fs::create_dir_all(stage.join("usr/bin")).unwrap();
    let nothing = tree(&stage);
    // The second one has a file outside of its prefix.
    for more in [&[][..], &["BINDIR=/usr/bin"]] {
        let variables = [&["PREFIX=/opt/ka"], more].concat();
        succeed(&mut make("install", &stage, &variables));
        fs::rename(stage.join("opt/ka"), stage.join("opt/moved")).unwrap();
        succeed(&mut make("install", &stage, &variables));
        let moved = tree(&stage.join("opt/moved"));
        assert!(moved.contains_key("lib/libka.a"), "{moved:?}");
        let another = |tree: BTreeMap<String, String>| -> BTreeMap<String, String> {
            tree.into_iter().filter(|(path, _)| !path.starts_with("opt/moved")).collect()
        };
        let before = another(tree(&stage));

        let output = uninstall("/opt/moved", more);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(tree(&stage), before, "{more:?}");
        // The moved installation was removed, so a second uninstall fails.
        let output = uninstall("/opt/moved", more);
        assert!(stderr(&output).contains("nothing was installed there"), "{output:?}");
        let output = uninstall("/opt/ka", more);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(tree(&stage), nothing, "{more:?}");
    }

    // LIBDIR has the list of another prefix.
    succeed(&mut make("install", &stage, &["PREFIX=/opt/ka"]));
    let before = tree(&stage);
    for variables in [["PREFIX=/opt/other", "LIBDIR=/opt/ka/lib"], ["PREFIX=/opt", "LIBDIR=/opt/ka/lib"]] {
        for target in ["uninstall", "install"] {
            let output = make(target, &stage, &variables).output().unwrap();
            assert!(!output.status.success(), "{target} {variables:?}");
            assert!(stderr(&output).contains("is of an installation with PREFIX=/opt/ka"), "{output:?}");
            assert_eq!(tree(&stage), before, "{target} {variables:?}");
        }
    }
}

/// The cache of the dynamic loader belongs to the machine. install must update it only if LIBDIR is a folder of the
/// loader.
#[test]
fn install_runs_ldconfig_only_for_folders_of_the_loader() {
    let folder = scratch("loader");
    let (tools, prefix) = (folder.join("tools"), folder.join("prefix"));
    fs::create_dir_all(&tools).unwrap();
    let log = folder.join("log");
    let lib = prefix.join("lib");
    for (name, what) in [
        ("id", "echo 0".to_owned()),
        // This ldconfig reports the folders of this machine, and one that the test chooses.
        (
            "ldconfig",
            format!(
                "echo \"$*\" >>'{}'\nprintf '%s: (from x)\\n\\tlibc.so.6 -> libc.so.6\\n' /usr/lib \"$KNOWN\"",
                log.display()
            ),
        ),
    ] {
        let path = tools.join(name);
        write_script(&path, &format!("#!/bin/sh\n{what}\n"));
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    // A link leads to the same folder.
    let link = folder.join("link");
    std::os::unix::fs::symlink(&lib, &link).unwrap();
    for (known, runs) in [(Path::new("/usr/lib/x"), false), (&lib, true), (&link, true)] {
        for target in ["install", "uninstall"] {
            let _ = fs::remove_file(&log);
            let mut make = make(target, Path::new(""), &[&format!("PREFIX={}", prefix.display())]);
            succeed(make.env("PATH", &path).env("KNOWN", known));
            let printed = fs::read_to_string(&log).unwrap_or_default();
            let updates = printed.lines().filter(|args| !args.contains("-N")).count();
            assert_eq!(updates, usize::from(runs), "{target}, {}: {printed}", known.display());
        }
    }
    // A staged installation is for another machine.
    let _ = fs::remove_file(&log);
    let mut make = make("install", &scratch("stage"), &[&format!("PREFIX={}", prefix.display())]);
    succeed(make.env("PATH", &path).env("KNOWN", &lib));
    assert!(!log.exists());
}

/// root may have no Rust compiler, and any umask.
#[test]
fn install_does_not_build_again() {
    let stage = scratch("stage");
    succeed(&mut make("install", &stage, &[]));
    let target = fs::metadata(release().join("libka.so")).unwrap();
    let stage = scratch("stage");
    let mut shell = Command::new("sh");
    let command = make("install", &stage, &["CARGO=/bin/false"]);
    shell.args(["-c", "umask 077; exec \"$@\"", "sh", "make"]).args(command.get_args());
    succeed(shell.current_dir(root()));
    assert_eq!(
        fs::metadata(release().join("libka.so")).unwrap().modified().unwrap(),
        target.modified().unwrap()
    );
    for (path, what) in tree(&stage) {
        assert!(what.starts_with('l') || what.ends_with("r-x") || what.ends_with("r--"), "{path}: {what}");
    }
    assert_eq!(
        fs::metadata(stage.join("usr/local/lib/ka/installed")).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

/// Debian 12's own Rust is too old. make must print the command to type, instead of an error of Cargo.
#[test]
fn make_rejects_an_old_rust_before_the_build() {
    let folder = scratch("old");
    fs::create_dir(&folder).unwrap();
    let old = [("rustc", "echo rustc 1.63.0"), ("cargo", "echo cargo was called"), ("id", "echo 1000")];
    for (name, what) in old {
        let path = folder.join(name);
        write_script(&path, &format!("#!/bin/sh\n{what}\n"));
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    for target in ["all", "libka"] {
        let mut make = make(target, Path::new(""), &[]);
        let output = make.env("PATH", &path).env_remove("CARGO").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{target}: {output:?}");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("cargo was called"),
            "{target}: {output:?}"
        );
        assert!(
            stderr(&output).contains("    sudo apt-get install cargo-web rustc-web\n"),
            "{target}: {output:?}"
        );
    }
}

/// Normalizes the path in a word of pkg-config. The path may contain `..`.
fn plain(word: &str) -> String {
    let mut parts: Vec<&str> = vec![];
    for part in word.split('/') {
        match part {
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Needs cargo-c, which takes minutes to build. `make cargo-c` builds it, and runs this test.
#[test]
#[ignore = "run it with `make cargo-c`"]
fn cargo_c_installs_the_same_library() {
    let stage = scratch("stage");
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["cinstall", "--locked", "--release", "--prefix", "/usr/local"]);
    command.args(["--libdir", "lib", "--destdir"]).arg(&stage);
    succeed(command.arg("--target-dir").arg(target().join("capi")));
    let theirs = stage.join("usr/local");

    // make installs each file of cargo-c too, with the same type, SONAME, symbols and versions.
    for (path, what) in tree(&theirs) {
        let ours = tree(prefix());
        assert_eq!(ours.get(&path).map(|what| &what[..1]), Some(&what[..1]), "{path}: {ours:?}");
    }
    for header in ["include/ka.h", "include/ka.hpp"] {
        assert_eq!(fs::read(theirs.join(header)).unwrap(), fs::read(prefix().join(header)).unwrap());
    }
    for (tool, args) in
        [("nm", ["-D", "--defined-only"]), ("nm", ["-D", "--undefined-only"]), ("readelf", ["-V", "-W"])]
    {
        let table = |prefix: &Path| {
            let printed = stdout(Command::new(tool).args(args).arg(prefix.join("lib/libka.so")));
            let names = printed
                .lines()
                .filter(|line| line.contains("ka_") || line.contains("GLIBC") || line.contains("Name:"));
            let last = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
            names.map(last).collect::<Vec<_>>()
        };
        assert_eq!(table(&theirs), table(prefix()), "{tool} {args:?}");
        assert_ne!(table(&theirs), Vec::<String>::new());
    }
    let dynamic =
        stdout(Command::new("readelf").arg("-d").arg(theirs.join("lib/libka.so")).env("LC_ALL", "C"));
    assert!(dynamic.contains(&format!("[{}]", soname())), "{dynamic}");

    // pkg-config prints the same flags. cargo-c writes an absolute prefix, so a moved prefix needs --define-prefix.
    let elsewhere = scratch("moved here");
    succeed(Command::new("cp").arg("-a").arg(&theirs).arg(&elsewhere));
    let ways: [&[&str]; 4] =
        [&["--modversion"], &["--cflags"], &["--libs"], &["--static", "--cflags", "--libs"]];
    for args in ways {
        let printed = |prefix: &Path, args: &[&str], written: &Path| -> Vec<_> {
            let word = |word: String| plain(&word.replace(written.to_str().unwrap(), "PREFIX"));
            pkg_config(prefix, args).into_iter().map(word).collect()
        };
        let ours = printed(prefix(), args, prefix());
        assert_eq!(printed(&theirs, args, Path::new("/usr/local")), ours, "{args:?}");
        for place in [&theirs, &elsewhere] {
            assert_eq!(
                printed(place, &[args, &["--define-prefix"]].concat(), place),
                ours,
                "{place:?} {args:?}"
            );
        }
    }
    let pc = |args: &[&str]| pkg_config(&theirs, &[args, &["--define-prefix"]].concat());
    let lib = theirs.join("lib");
    check_program(&build("gcc", "c/link.c", &pc(&["--cflags", "--libs"])), &lib, true);
    let mut args = pc(&["--static", "--cflags", "--libs"]);
    args.push("-static".into());
    check_program(&build("gcc", "c/link.c", &args), &lib, false);
}

/// While `scripts/need` installs Debian packages, it prevents them from starting their servers. The test has its own
/// apt-get and its own /usr/sbin.
#[test]
fn policy_rc_d_is_removed_when_an_installation_is_interrupted() {
    if !is_root() {
        skip("only root may mount a /usr/sbin of its own");
        return;
    }
    let script = r#"
        mount -t tmpfs -o mode=755 none /usr/sbin && mkdir /usr/sbin/bin && PATH=/usr/sbin/bin:/usr/bin:/bin
        policy=/usr/sbin/policy-rc.d
        cat >/usr/sbin/bin/apt-get <<'END'
#!/bin/sh
[ "$1" = install ] || exit 0
/usr/sbin/policy-rc.d; echo "policy $?"
[ ! -e /proc/self/fd/9 ] || echo "the lock is inherited"
[ -z "$signal" ] || kill -"$signal" $PPID
END
        chmod 755 /usr/sbin/bin/apt-get
        for signal in '' HUP INT TERM KILL ''; do
            signal=$signal "$need" ka-no-such-tool >/usr/sbin/said 2>/dev/null
            echo "signal ${signal:-none}: status $?, $(grep policy /usr/sbin/said), $(ls /usr/sbin | grep policy || echo removed)"
            grep lock /usr/sbin/said
        done
        printf '#!/bin/sh\nexit 0\n' >$policy; chmod 755 $policy
        "$need" ka-no-such-tool 2>/dev/null | grep policy
        cat $policy
    "#;
    let mut command = Command::new("unshare");
    // A shell cannot trap a signal that was ignored at its start. A script ignores SIGINT for commands that it starts
    // with &.
    command.args(["--mount", "env", "--default-signal=HUP,INT,TERM", "dash", "-c", script]);
    command.env("need", root().join("scripts/need"));
    let expected = "\
        signal none: status 1, policy 101, removed\n\
        signal HUP: status 129, policy 101, removed\n\
        signal INT: status 130, policy 101, removed\n\
        signal TERM: status 143, policy 101, removed\n\
        signal KILL: status 137, policy 101, policy-rc.d\n\
        signal none: status 1, policy 101, removed\n\
        policy 0\n#!/bin/sh\nexit 0\n";
    // The last line's shell prints no message of its own.
    assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap(), expected);
}

/// Cargo may put intermediate files and libka.so into different folders. The link with the SONAME must be beside the
/// library.
#[test]
fn the_soname_link_is_beside_the_library() {
    let folder = scratch("build-dir");
    let (build, target) = (folder.join("build"), folder.join("target"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["build", "--quiet", "--locked", "--release", "--lib"]);
    succeed(cargo.env("CARGO_BUILD_BUILD_DIR", &build).env("CARGO_TARGET_DIR", &target));
    // Older versions of Cargo ignore the first variable.
    let library = fs::canonicalize(target.join("release/libka.so")).unwrap();
    assert_eq!(fs::canonicalize(target.join("release").join(soname())).unwrap(), library);
    fs::remove_dir_all(folder).unwrap();
}
