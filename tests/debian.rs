//! Tests the Debian packages of `make deb`: lintian accepts them, and they can be installed, used and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ka_test::artifact::release;
use ka_test::child::{stderr, stdout, succeed};
use ka_test::log::skip;
use ka_test::namespace::is_root;
use ka_test::path::{root, scratch};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the name and path of each package. Makes them once.
fn packages() -> &'static [(String, PathBuf)] {
    static MADE: OnceLock<Vec<(String, PathBuf)>> = OnceLock::new();
    MADE.get_or_init(|| {
        release();
        succeed(Command::new("make").current_dir(root()).args(["--no-print-directory", "deb"]));
        let mut packages: Vec<_> = fs::read_dir(root().join("target/deb"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .map(|path| (field(&path, "Package"), path))
            .collect();
        packages.sort();
        packages
    })
}

fn field(package: &Path, name: &str) -> String {
    stdout(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim().to_owned()
}

#[test]
fn package_names_and_versions_equal_those_of_the_library() {
    let library = concat!("libka", env!("CARGO_PKG_VERSION_MAJOR"));
    let names: Vec<_> = packages().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ka", "libka-dev", library]);
    for (name, package) in packages() {
        assert_eq!(field(package, "Version"), VERSION, "{name}");
    }
    // A packaged program depends on the release that introduced the functions that it calls.
    let symbols = stdout(Command::new("dpkg-deb").arg("--info").arg(&packages()[2].1).arg("symbols"));
    assert!(symbols.contains(" ka_enable@KA_0.1 0.1\n"), "{symbols}");
    assert_eq!(field(&packages()[1].1, "Depends"), format!("{library} (= {VERSION})"));
}

#[test]
fn lintian_reports_nothing() {
    let changes = packages()[0]
        .1
        .with_file_name(format!("ka_{VERSION}_{}.changes", field(&packages()[0].1, "Architecture")));
    let mut lintian = Command::new("lintian");
    lintian.args(["--display-info", "--fail-on", "error,warning,info", "--allow-root"]);
    // lintian mistakes machine code for words.
    lintian.args(["--suppress-tags", "spelling-error-in-binary"]).arg(changes);
    let output = lintian.env("LC_ALL", "C.UTF-8").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{}", stderr(&output));
    assert!(output.status.success(), "{output:?}");
}

/// Runs tests/debian/machine on a copy of this machine that does not have this repository. Its changes are in memory,
/// and vanish with the last process. The script installs the packages, builds a user's programs in each way, runs the
/// installed demo, and removes the packages.
#[test]
fn packages_can_be_installed_used_and_removed() {
    if !is_root() {
        skip("only root may install the Debian packages");
        return;
    }
    let folder = scratch("machine");
    let bring = folder.join("bring");
    fs::create_dir_all(bring.join("tests")).unwrap();
    for (_, package) in packages() {
        fs::copy(package, bring.join(package.file_name().unwrap())).unwrap();
    }
    for tests in ["c", "cpp", "cmake"] {
        succeed(Command::new("cp").arg("-r").arg(root().join("tests").join(tests)).arg(bring.join("tests")));
    }
    let script = root().join("tests/debian/machine");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-eu"]).arg(script).arg(&folder).arg(root());
    let printed = stdout(command.env_remove("LD_LIBRARY_PATH").env("MAKEFLAGS", ""));

    let on = format!("{VERSION} on 60 10 5");
    for way in ["plain cc", "pkg-config, shared", "pkg-config, static", "cmake, shared", "cmake, static"] {
        assert!(printed.contains(&format!("{way}: {on}\n")), "{way}: {printed}");
    }
    assert!(printed.contains("shim: 1 77\n"), "{printed}");
    let list = "/usr/lib/ka/libka_preload.so is in /etc/ld.so.preload";
    assert!(
        printed.contains(&format!("machine: {list}: programs that start from now on use it\n1 77\n")),
        "{printed}"
    );
    assert!(printed.contains("demo: the probes were seen, and the pulled cable was found\n"), "{printed}");
    assert!(printed.ends_with("removed: nothing is left\n"), "{printed}");
    assert!(printed.contains(&format!("command: ka {VERSION}, 1 77\n")), "{printed}");
}
