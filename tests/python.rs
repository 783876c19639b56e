//! bindings/python: builds and installs the package as users do. The package's own tests run against the installed
//! package.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ka_test::artifact::{release, soname};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::log::say;
use ka_test::path::{copy_program, root, scratch, target};

/// Debian's Python. scripts/need installs its modules.
const PYTHON: &str = "/usr/bin/python3";

fn package() -> PathBuf {
    root().join("bindings/python")
}

/// Returns a pip command that downloads nothing and uses Debian's build tools.
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

/// Returns the Python of a new virtual environment, which has Debian's modules, including pip.
fn environment() -> PathBuf {
    let folder = scratch("venv");
    succeed(
        Command::new(PYTHON).args(["-m", "venv", "--system-site-packages", "--without-pip"]).arg(&folder),
    );
    folder.join("bin/python")
}

/// Builds a wheel with this library and returns its path.
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
    // Without KA_LIBRARY, as for a user: cargo builds the library.
    succeed(install.env_remove("KA_LIBRARY").env("CARGO_TARGET_DIR", target().join("python")));
    let output = stdout(
        Command::new(&python)
            .args(["-m", "pytest", "-q", "-rs"])
            .current_dir(package())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    assert!(output.contains(" passed"), "{output}");
    // Print which tests were skipped, and how many passed.
    for line in output.lines().filter(|line| line.contains("SKIPPED") || line.contains(" passed")) {
        say(&format!("pytest: {line}"));
    }
    succeed(pip(&python, "uninstall").args(["--yes", "libka"]));
    let gone = Command::new(&python).args(["-c", "import ka"]).output().unwrap();
    assert!(stderr(&gone).contains("No module named 'ka'"));
}

#[test]
fn wheels_contain_the_library_and_name_its_machine() {
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
    let (folder, printed) = installed.trim().rsplit_once(' ').unwrap();
    assert_eq!(printed, version);
    let packed = fs::read(Path::new(folder).join("libka.so")).unwrap();
    assert!(packed == fs::read(library()).unwrap(), "the wheel has another library");
    assert!(Path::new(folder).join("py.typed").exists());
    let copyright = fs::read(Path::new(folder).join("copyright")).unwrap();
    assert!(
        copyright == fs::read(root().join("pkg/debian/copyright")).unwrap(),
        "the wheel has another copyright"
    );
}

#[test]
fn pip_rejects_wheels_for_another_machine() {
    // Make the ELF header name the other processor. pip checks only the name of the wheel.
    let mut bytes = fs::read(library()).unwrap();
    let (other, number) = if cfg!(target_arch = "x86_64") { ("aarch64", 183) } else { ("x86_64", 62) };
    bytes[18] = number;
    let patched = scratch("libka.so");
    fs::write(&patched, bytes).unwrap();
    let wheel = wheel(&patched);
    assert!(name(&wheel).contains(&format!("manylinux_2_17_{other}")), "{}", name(&wheel));
    let rejected = pip(&environment(), "install").arg(&wheel).output().unwrap();
    assert!(!rejected.status.success());
    assert!(stderr(&rejected).contains("is not a supported wheel on this platform"), "{rejected:?}");
}

#[test]
fn build_errors_name_the_missing_library() {
    let build = |library: &str| -> Output {
        let mut pip = pip(Path::new(PYTHON), "wheel");
        pip.args(["--no-build-isolation", "--wheel-dir"]).arg(scratch("wheel")).arg(package());
        pip.env("KA_LIBRARY", library).output().unwrap()
    };
    let failed = build("/nowhere/libka.so");
    assert!(!failed.status.success());
    assert!(stderr(&failed).contains("KA_LIBRARY is /nowhere/libka.so: there is no such file"));
    let failed = build("/etc/passwd");
    assert!(stderr(&failed).contains("/etc/passwd is not a library for x86_64 or aarch64"), "{failed:?}");
}

/// Distributions have libka in a separate package.
#[test]
fn a_wheel_without_the_library_loads_the_system_s() {
    let wheel = wheel("system");
    let python = environment();
    succeed(pip(&python, "install").arg(&wheel));
    // Prints the file of the loaded library, which /proc/self/maps names.
    let code = "import ka; print(ka.version(), *{line.split()[-1] for line in open('/proc/self/maps') \
                if 'libka.so' in line})";
    let import = |folder: &Path| {
        let mut import = Command::new(&python);
        import.current_dir("/").args(["-c", code]).env("LD_LIBRARY_PATH", folder).output().unwrap()
    };
    // The loader searches this folder first, so a libka that is installed on the machine has no effect.
    let folder = scratch("system");
    fs::create_dir(&folder).unwrap();
    let system = folder.join(soname());
    fs::write(&system, "no library").unwrap();
    let failed = import(&folder);
    assert!(!failed.status.success());
    assert!(stderr(&failed).contains("ImportError: no libka: "), "{failed:?}");
    assert!(stderr(&failed).contains(&format!("{}: file too short", system.display())), "{failed:?}");
    copy_program(library(), &system);
    let loaded = import(&folder);
    let expected = format!("{} {}\n", env!("CARGO_PKG_VERSION"), system.display());
    assert_eq!(String::from_utf8_lossy(&loaded.stdout), expected, "{}", stderr(&loaded));
}

#[test]
fn mypy_accepts_the_package_and_rejects_mistakes() {
    let mut mypy = Command::new("mypy");
    mypy.current_dir(package()).arg("--cache-dir").arg(scratch("mypy"));
    assert!(stdout(&mut mypy).contains("no issues found"));
    let program = scratch("wrong").with_extension("py");
    let mistakes = [
        "ka.enable('x')",
        "ka.Config(idle='60')",
        "ka.Config(keepalive=2)",
        "ka.enable_lenient(1, idle='60')",
        "ka.explain(60)",
        "ka.Reaper()",
        "ka.nothing",
    ];
    fs::write(&program, format!("import ka\n{}\n", mistakes.join("\n"))).unwrap();
    let mut mypy = Command::new("mypy");
    mypy.arg("--strict").arg("--cache-dir").arg(scratch("mypy")).arg(&program);
    let output = mypy.env("MYPYPATH", package().join("src")).output().unwrap();
    let messages = String::from_utf8(output.stdout).unwrap();
    assert!(messages.contains(&format!("Found {} errors", mistakes.len())), "{messages}");
}
