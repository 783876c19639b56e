//! Paths: the repository, Cargo's target folder, and scratch files.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the root folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Returns the folders of the packages of this workspace.
pub fn packages() -> Vec<PathBuf> {
    let mut packages: Vec<_> =
        fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packages.push(root().to_path_buf());
    packages.sort();
    packages
}

/// Returns the Rust files below a folder.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the target folder of the running test: `target`, or `target/TRIPLE` if Cargo was told a target.
///
/// Cargo sets this folder (`CARGO_TARGET_TMPDIR`) only for the test programs themselves, when it compiles them. So this
/// function derives the folder from the path of the test program: `TARGET/PROFILE/deps/NAME-HASH`.
pub fn target() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| {
        let suite = env::current_exe().unwrap();
        let folders: Vec<_> = suite.ancestors().skip(1).take(3).collect();
        let [deps, _, target] = folders[..] else { panic!("{} is not in a target folder", suite.display()) };
        assert!(deps.ends_with("deps"), "{} is not in a target folder", suite.display());
        target.to_owned()
    })
}

/// Returns a new path for a file or folder that a test creates. Each call returns another path.
///
/// The path is in the target folder, so `cargo clean` removes it.
pub fn scratch(name: &str) -> PathBuf {
    let folder = target().join("tmp").join(suite());
    fs::create_dir_all(&folder).unwrap();
    folder.join(unique(name))
}

/// Copies a program or a library, with its mode.
///
/// A child process copies it. If the test itself had the copy open for writing, another thread could start a program at
/// that moment, and the new process would inherit the open file for an instant. execve(2) of the copy then fails with
/// ETXTBSY.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied =
        Command::new("cp").arg("--preserve=mode").arg(from.as_ref()).arg(to.as_ref()).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

/// Writes a script that can be executed. A child process writes it, for the reason given at [`copy_program`].
pub fn write_script(path: impl AsRef<Path>, text: &str) {
    let mut child = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path.as_ref())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{}", path.as_ref().display());
}

/// Returns a name that starts with `name` and is unique on this machine.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // A PID is not unique. In its own PID namespace, each test has PID 1.
    static STARTED: OnceLock<u128> = OnceLock::new();
    let started = STARTED.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{started:x}-{count}", process::id())
}

/// A folder below /tmp that every user may enter, unlike the repository, which may be private. The folder is removed
/// when this is dropped.
pub struct PublicFolder(PathBuf);

impl PublicFolder {
    /// Creates an empty folder.
    pub fn new(name: &str) -> Self {
        let folder = Self(env::temp_dir().join(unique(&format!("ka-{name}"))));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }
}

impl Deref for PublicFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for PublicFolder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<OsStr> for PublicFolder {
    fn as_ref(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

impl Drop for PublicFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the name of the running suite: the name of its program without the hash that Cargo appends.
fn suite() -> String {
    let program = env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    name.rsplit_once('-').unwrap().0.to_owned()
}
