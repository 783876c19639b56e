//! The installed files of ka that are not programs for users: the shim, and the programs that `ka` starts.

use std::env;
use std::path::{Component, Path, PathBuf};

/// The directory in which packages install these files. A package can set another one at build time.
pub(crate) const FOLDER: &str = match option_env!("KA_LIBDIR") {
    Some(folder) => folder,
    None => "/usr/lib/ka",
};

/// Returns the paths at which a file may be: next to this program, or installed.
pub(crate) fn candidates(file: &str) -> Vec<PathBuf> {
    let own = env::current_exe().and_then(|path| path.canonicalize());
    let folder = own.ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let triple = format!("../lib/{}-linux-gnu/ka", env::consts::ARCH);
    let beside = folder.into_iter().flat_map(|folder| {
        ["", "../lib/ka", &triple, "../lib64/ka"].map(|place| normal(&folder.join(place).join(file)))
    });
    let mut places: Vec<PathBuf> = Vec::new();
    for place in beside.chain([Path::new(FOLDER).join(file)]) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Returns the first of these paths that exists. Otherwise, returns a message that lists the paths.
pub(crate) fn first<'a>(file: &str, places: &'a [PathBuf]) -> Result<&'a Path, String> {
    places.iter().find(|path| path.exists()).map(PathBuf::as_path).ok_or_else(|| {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        format!("cannot find {file}: looked for {}", places.join(", "))
    })
}

/// Removes `..` from a path. The components before `..` must not be symbolic links.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}
