//! bindings/python: the package, built, installed and used as its users do. Its own tests are in its folder; they run
//! here, against what was installed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ka_test::artifact::release;
use ka_test::child::{stderr, stdout, succeed};
use ka_test::log::say;
use ka_test::path::{root, scratch, target};

/// Debian's Python: scripts/need sees to its modules.
const PYTHON: &str = "/usr/bin/python3";

fn package() -> PathBuf {
    root().join("bindings/python")
}

/// pip, which asks nobody and takes the build's tools from Debian.
fn pip(python: &Path, command: &str) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "--quiet", command]);
    if command != "uninstall" {
        pip.args(["--no-index", "--no-deps"]);
    }
    pip.env("PIP_ROOT_USER_ACTION", "ignore").env_remove("PIP_FIND_LINKS").env("KA_LIBRARY", library());
    pip
}

fn library() -> PathBuf {
    release().join("libka.so")
}

/// A Python of its own, with Debian's modules, pip among them.
fn environment() -> PathBuf {
    let folder = scratch("venv");
    succeed(
        Command::new(PYTHON).args(["-m", "venv", "--system-site-packages", "--without-pip"]).arg(&folder),
    );
    folder.join("bin/python")
}

/// The one wheel that is built of this library.
fn wheel(library: impl AsRef<OsStr>) -> PathBuf {
    let folder = scratch("wheel");
    let mut pip = pip(Path::new(PYTHON), "wheel");
    succeed(
        pip.args(["--no-build-isolation", "--wheel-dir"])
            .arg(&folder)
            .arg(package())
            .env("KA_LIBRARY", library),
    );
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_iter().next().unwrap()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn the_package_installs_from_its_sources_and_its_tests_pass() {
    let python = environment();
    let mut install = pip(&python, "install");
    install.arg("--no-build-isolation").arg(package());
    // As a user has it: cargo builds the library.
    succeed(install.env_remove("KA_LIBRARY").env("CARGO_TARGET_DIR", target().join("python")));
    let said = stdout(
        Command::new(&python)
            .args(["-m", "pytest", "-q", "-rs"])
            .current_dir(package())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    assert!(said.contains(" passed"), "{said}");
    // What was not tried, and how many were.
    for line in said.lines().filter(|line| line.contains("SKIPPED") || line.contains(" passed")) {
        say(&format!("pytest: {line}"));
    }
    succeed(pip(&python, "uninstall").args(["--yes", "libka"]));
    let gone = Command::new(&python).args(["-c", "import ka"]).output().unwrap();
    assert!(stderr(&gone).contains("No module named 'ka'"));
}

#[test]
fn a_wheel_carries_the_library_and_says_for_which_machines() {
    let wheel = wheel(library());
    let version = env!("CARGO_PKG_VERSION");
    let machines = ["manylinux_2_17", "manylinux2014", "musllinux_1_2"]
        .map(|tag| format!("{tag}_{}", std::env::consts::ARCH))
        .join(".");
    assert_eq!(name(&wheel), format!("libka-{version}-py3-none-{machines}.whl"));

    let python = environment();
    succeed(pip(&python, "install").arg(&wheel));
    let installed = stdout(
        Command::new(&python)
            .current_dir("/")
            .args(["-c", "import ka, pathlib; print(pathlib.Path(ka.__file__).parent, ka.version())"]),
    );
    let (folder, said) = installed.trim().rsplit_once(' ').unwrap();
    assert_eq!(said, version);
    let packed = fs::read(Path::new(folder).join("libka.so")).unwrap();
    assert!(packed == fs::read(library()).unwrap(), "another library");
    assert!(Path::new(folder).join("py.typed").exists());
    let copyright = fs::read(Path::new(folder).join("copyright")).unwrap();
    assert!(copyright == fs::read(root().join("pkg/debian/copyright")).unwrap(), "another copyright");
}

#[test]
fn pip_refuses_a_wheel_of_another_machine() {
    // A library whose header says that it is for the other processor: pip goes by the wheel's name.
    let mut bytes = fs::read(library()).unwrap();
    let (other, number) = if cfg!(target_arch = "x86_64") { ("aarch64", 183) } else { ("x86_64", 62) };
    bytes[18] = number;
    let patched = scratch("libka.so");
    fs::write(&patched, bytes).unwrap();
    let wheel = wheel(&patched);
    assert!(name(&wheel).contains(&format!("manylinux_2_17_{other}")), "{}", name(&wheel));
    let refused = pip(&environment(), "install").arg(&wheel).output().unwrap();
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("is not a supported wheel on this platform"), "{refused:?}");
}

#[test]
fn a_build_without_a_library_says_what_is_missing() {
    let build = |library: &str| -> Output {
        let mut pip = pip(Path::new(PYTHON), "wheel");
        pip.args(["--no-build-isolation", "--wheel-dir"]).arg(scratch("wheel")).arg(package());
        pip.env("KA_LIBRARY", library).output().unwrap()
    };
    let failed = build("/nowhere/libka.so");
    assert!(!failed.status.success());
    assert!(stderr(&failed).contains("KA_LIBRARY is /nowhere/libka.so: there is no such file"));
    let failed = build("/etc/passwd");
    assert!(stderr(&failed).contains("/etc/passwd is no library for x86_64 or aarch64"), "{failed:?}");
}

/// For distributions, whose libka is a package of its own.
#[test]
fn a_wheel_without_the_library_uses_the_system_s() {
    let wheel = wheel("system");
    let python = environment();
    succeed(pip(&python, "install").arg(&wheel));
    let mut import = Command::new(&python);
    import.current_dir("/").args(["-c", "import ka; print(ka.version())"]);
    let failed = import.output().unwrap();
    assert!(stderr(&failed).contains("ImportError: no libka"), "{failed:?}");
    assert_eq!(stdout(import.env("LD_LIBRARY_PATH", release())).trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn its_types_are_strict() {
    let mut mypy = Command::new("mypy");
    mypy.current_dir(package()).arg("--cache-dir").arg(scratch("mypy"));
    assert!(stdout(&mut mypy).contains("no issues found"));
    // And they say what a user may not do.
    let program = scratch("wrong").with_extension("py");
    fs::write(&program, "import ka\nka.enable('x')\nka.Config(idle='60')\nka.Reaper()\nka.nothing\n")
        .unwrap();
    let mut mypy = Command::new("mypy");
    mypy.arg("--strict").arg("--cache-dir").arg(scratch("mypy")).arg(&program);
    let output = mypy.env("MYPYPATH", package().join("src")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Found 4 errors"), "{said}");
}
