//! Paths: the repository, Cargo's target folder, and scratch files.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the root folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
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
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // A PID is not unique. In a new PID namespace, a test has the same low PID in every run.
    static STARTED: OnceLock<u128> = OnceLock::new();
    let started = STARTED.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos());
    let folder = target().join("tmp").join(suite());
    fs::create_dir_all(&folder).unwrap();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{name}-{}-{started:x}-{count}", process::id()))
}

/// Returns the name of the running suite: the name of its program without the hash that Cargo appends.
fn suite() -> String {
    let program = env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    name.rsplit_once('-').unwrap().0.to_owned()
}
