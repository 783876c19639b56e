//! `ka run --via preload`: the dynamic loader loads the shim, libka_preload.so, into the program. The shim sets the
//! program's sockets. ka-preload(7)

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{ATTACH_LATER, Obstacle, Reachability, StartRequest, Way};
use crate::environment::Environment;
use crate::failure::{Failure, RUN_FAILED, warn};
use crate::installed;
use crate::program::Program;
use crate::wrapper::{self, PRELOAD};
use ka_reach::elf::{self, CLibrary, Elf, Linked};
use ka_reach::escape;
use ka_reach::reason::reason;
use ka_reach::{privilege, user};

pub(super) struct Preload;

const SHIM: &str = "libka_preload.so";

/// Functions that the shim exports. A C library exports all of them too, but its SONAME differs from the shim's.
const HOOKS: [&str; 6] = ["socket", "setsockopt", "connect", "listen", "accept", "accept4"];

impl Way for Preload {
    fn name(&self) -> &'static str {
        "preload"
    }

    fn check(&self, request: &StartRequest<'_>) -> Reachability {
        if request.denies_io_uring {
            return Reachability::NotReached(Obstacle::new(
                "a preloaded library cannot deny a program io_uring",
                "--via seccomp",
            ));
        }
        let shim = shim();
        let missing = |why: &str| Obstacle::new(why, "KA_PRELOAD=/path/to/libka_preload.so");
        if let Err(why) = &shim
            && env::var_os("KA_PRELOAD").is_some_and(|path| !path.is_empty())
        {
            return Reachability::Forbidden(missing(why));
        }
        if let Some(exemption) = request.exemption() {
            return Reachability::Forbidden(exemption);
        }
        // If the shim could not reach the program anyway, do not report a missing shim.
        let known = shim.as_ref().ok().copied();
        if let Some(obstacle) = request.program.chain().find_map(|program| obstacle(program, known)) {
            return Reachability::NotReached(obstacle);
        }
        match shim {
            Ok(shim) => Reachability::Reached(format!(
                "{}; does not reach static, Go and 32-bit programs that it starts: use ka run --via seccomp for these",
                shim.path.display()
            )),
            Err(why) => Reachability::NotReached(missing(&why)),
        }
    }

    fn start(&self, request: &StartRequest<'_>) -> Result<Infallible, Failure> {
        let mut sources = request.sources();
        let shim = shim().and_then(|shim| {
            plain_path(&shim.path).map_err(|error| {
                let path = shim.path.display();
                let reason = reason(&error);
                format!(
                    "{path}: LD_PRELOAD cannot contain a path with blanks, colons or $, and ka cannot make a link to \
                     this path: {reason}"
                )
            })
        });
        match shim {
            Ok(shim) => {
                add_preload(&mut sources.environment, &shim);
                if request.verbose {
                    let variables = sources.variables();
                    let mode = variables.mode.name();
                    warn(format_args!("via preload: {}, {}, mode {mode}", shim.display(), variables.config));
                    if let Some(script) = request.program.chain().find_map(|program| program.scripts.first())
                    {
                        let script = escape::visible(script.as_os_str().as_bytes());
                        warn(format_args!(
                            "{script} is a script: preload does not reach static and Go programs that it starts (use \
                             --via seccomp)"
                        ));
                    }
                }
            }
            // ka run has already printed that preload does not reach the program.
            Err(_) if request.best_effort && lacks_shim().is_some() => {}
            Err(why) if request.best_effort => {
                warn(format_args!("run: {why}; running it WITHOUT keepalive"));
            }
            Err(why) => return Err(Failure::new(format_args!("run: {why}")).with_status(RUN_FAILED)),
        }
        Err(request.execute(&sources.environment))
    }
}

/// Returns the reason why the shim does not reach a program, and a way that does. `shim` is `None` if ka found no shim.
fn obstacle(program: &Program, shim: Option<&ShimFile>) -> Option<Obstacle> {
    const OTHER_WAYS: &str = "ka run without --via, or --via seccomp";
    let path = program.executable.display();
    let attach_later = |why: String| Some(Obstacle::new(why, ATTACH_LATER));
    let use_other_way = |why: String| Some(Obstacle::new(why, OTHER_WAYS));
    if program.drops_preload {
        return use_other_way(format!(
            "{}: env(1) in its #! line removes LD_PRELOAD",
            program.path.display()
        ));
    }
    if let Some(secure) = program.secure {
        let why = format!("{path}: {secure}, so the loader ignores LD_PRELOAD");
        let name = program.name();
        let instead = if wrapper::is_wrapper(name) {
            format!("{} ka run -- PROGRAM", name.display())
        } else {
            format!("/etc/ld.so.preload, as in ka-preload(7); or {ATTACH_LATER}")
        };
        return Some(Obstacle::new(why, instead));
    }
    if let Some(why) = &program.loses_preload {
        return Some(Obstacle::new(
            why,
            format!("{OTHER_WAYS}; or {} ka run -- PROGRAM", program.name().display()),
        ));
    }
    let Some(elf) = &program.elf else {
        return attach_later(format!("{path}: not an ELF program, or you may not read it"));
    };
    let is_static = elf.loader.is_none() && !elf.is_loader();
    if elf.is_go {
        let how = if is_static { "it is static, and" } else { "it" };
        use_other_way(format!(
            "{path}: {how} was built with Go, whose programs make system calls without the C library"
        ))
    } else if is_static {
        let how = if elf.is_position_independent { "static-pie" } else { "static" };
        use_other_way(format!("{path}: it is {how}, so no loader reads LD_PRELOAD"))
    } else if let Some(shim) = shim.filter(|shim| !elf.fits(&shim.elf)) {
        attach_later(format!(
            "{path}: it is for {}, but {} is for {}",
            elf.machine_name(),
            shim.path.display(),
            shim.elf.machine_name()
        ))
    } else if elf.libc() == Some(CLibrary::Unknown) {
        let loader = elf.loader.as_deref().unwrap_or_default().escape_ascii();
        use_other_way(format!("{path}: its loader {loader} is neither glibc's nor musl's"))
    } else if elf.is_loader() {
        None
    } else {
        use_other_way(bypass(&program.executable, elf)?)
    }
}

/// Explains why the shim does not see the sockets of a dynamic program, if the program makes system calls without the C
/// library.
///
/// The shim reaches a program if the program or one of its libraries imports a socket function. If they do not import
/// one, this function reads the code of the program and of all its libraries. Most such programs have few libraries.
/// Returns `None` if a library was not found or a file cannot be read.
fn bypass(path: &Path, elf: &Elf) -> Option<String> {
    let linked = Linked::find(path, elf);
    if let Some(library) = linked.go_library() {
        return Some(format!(
            "{}: it is linked to {}, which was built with Go: Go makes system calls without the C library",
            path.display(),
            library.display()
        ));
    }
    if linked.unread.is_some() || linked.imports_sockets() != Some(false) {
        return None;
    }
    let own = linked.calls_sockets().ok().flatten()?;
    let who = if own == linked.program() { "it".to_owned() } else { own.display().to_string() };
    Some(format!(
        "{}: {who} makes system calls without the C library: neither it nor its libraries import socket, connect, \
         listen or accept",
        path.display()
    ))
}

/// The shim, libka_preload.so.
struct ShimFile {
    path: PathBuf,
    elf: Elf,
}

/// Returns the shim. Searches for it only once.
fn shim() -> Result<&'static ShimFile, String> {
    static FOUND: OnceLock<Result<ShimFile, String>> = OnceLock::new();
    FOUND.get_or_init(find_shim).as_ref().map_err(Clone::clone)
}

/// Returns the reason why ka has no shim.
pub(super) fn lacks_shim() -> Option<String> {
    shim().err()
}

/// Returns the shim's path in /etc/ld.so.preload, if that lists it. ld.so(8)
pub(crate) fn listed() -> Option<PathBuf> {
    let list = fs::read("/etc/ld.so.preload").ok()?;
    let lines = list.split(|byte| *byte == b'\n').map(|line| ka_core::bytes::cut(line, b'#').0);
    let words = lines.flat_map(|line| line.split(|byte| byte.is_ascii_whitespace() || *byte == b':'));
    let mut entries = words.map(OsStr::from_bytes);
    entries.find(|entry| Path::new(entry).file_name() == Some(OsStr::new(SHIM))).map(PathBuf::from)
}

/// Returns the shim's path in /etc/ld.so.preload, if that shim gives the program a policy. The loader of glibc reads
/// this file for setuid programs too.
pub(crate) fn listed_for(request: &StartRequest<'_>) -> Option<PathBuf> {
    let path = listed()?;
    let elf = request.program.elf.as_ref()?;
    let shim = Elf::read(&path).ok().flatten()?;
    let is_dynamic =
        elf.loader.is_some() && elf.libc() == Some(CLibrary::Glibc) && elf.fits(&shim) && !elf.is_go;
    let is_seen = is_dynamic && bypass(&request.program.executable, elf).is_none();
    (is_seen && request.exemption().is_none()).then_some(path)
}

/// Returns the path of the shim for LD_PRELOAD. If there is no shim, returns the path at which a package installs it.
///
/// # Errors
///
/// LD_PRELOAD cannot contain the path. The error is a message with advice.
pub(crate) fn shim_path() -> Result<PathBuf, &'static str> {
    let path = shim().map_or_else(|_| Path::new(installed::FOLDER).join(SHIM), |shim| shim.path.clone());
    if is_plain(&path) {
        Ok(path)
    } else {
        Err("LD_PRELOAD cannot contain the path of libka_preload.so: it has blanks, colons or $. Use ka run")
    }
}

/// Finds the shim: the file that KA_PRELOAD names. Without KA_PRELOAD, the shim next to this program, or the installed
/// shim.
fn find_shim() -> Result<ShimFile, String> {
    let named = env::var_os("KA_PRELOAD").filter(|path| !path.is_empty());
    let places = match &named {
        Some(path) => vec![PathBuf::from(path)],
        None => installed::candidates(SHIM),
    };
    let path = installed::first(SHIM, &places)?;
    // The program may change its working directory, so the path must be absolute.
    let mut path =
        std::path::absolute(path).map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
    if named.is_some() {
        path = trusted(&path).map_err(|why| format!("KA_PRELOAD={}: {why}", path.display()))?;
    }
    let refused = |why: &dyn fmt::Display| Err(format!("{}: {why}", path.display()));
    match Elf::read(&path).and_then(|elf| Ok((elf, elf::exports(&path, &HOOKS)?))) {
        Ok((Some(elf), true)) if elf.soname.as_deref().is_none_or(|name| name == SHIM.as_bytes()) => {
            Ok(ShimFile { path, elf })
        }
        Ok((Some(elf), _)) if elf.soname.is_some() || elf.is_position_independent => {
            refused(&format_args!("this library is not {SHIM}"))
        }
        Ok(_) => refused(&"not a shared library"),
        Err(error) => refused(&error),
    }
}

/// Checks that the environment may name this file as the shim. Returns its path, or the reason why not.
///
/// If ka is setuid or has file capabilities, its caller may not choose the library. sudo, doas and pkexec start ka as
/// root with a part of their caller's environment, and name the caller in a variable. In this case, the file and all
/// directories of its path must belong to root. Otherwise another user could replace the file after the check.
fn trusted(path: &Path) -> Result<PathBuf, String> {
    const CALLERS: [&str; 3] = ["SUDO_UID", "DOAS_USER", "PKEXEC_UID"];
    if privilege::has_more_rights() {
        return Err("ka has more privileges than its user, and does not trust the environment".to_owned());
    }
    let (user, _) = user::users();
    let Some(caller) = CALLERS.into_iter().find(|name| user == 0 && env::var_os(name).is_some()) else {
        return Ok(path.to_path_buf());
    };
    let path = path.canonicalize().map_err(|error| reason(&error))?;
    for (depth, place) in path.ancestors().enumerate() {
        let found = fs::symlink_metadata(place)
            .map_err(|error| format!("{}: {}", place.display(), reason(&error)))?;
        // In a sticky directory such as /tmp, other users can create files, but cannot rename or remove those of root.
        let is_sticky = depth > 0 && found.mode() & libc::S_ISVTX != 0;
        if found.uid() != 0 || (found.mode() & 0o022 != 0 && !is_sticky) {
            return Err(format!(
                "{} must belong to root, and only root may be able to write it, because {caller} is set",
                place.display()
            ));
        }
    }
    Ok(path)
}

/// Returns whether LD_PRELOAD can contain this path. The loader splits the list at blanks and colons, and expands `$`.
fn is_plain(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':' | b'$' | 9..=13))
}

/// Returns a path of the shim that LD_PRELOAD can contain.
///
/// If `path` contains special characters, creates a symbolic link to it in a directory that only this user can write.
/// The link is never removed, because all descendants of the program load the shim through it.
fn plain_path(path: &Path) -> io::Result<PathBuf> {
    if is_plain(path) {
        return Ok(path.to_path_buf());
    }
    let (_, user) = user::users();
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    // Programs of root may change to another user, who must be able to follow the link too.
    let (first, mode) = if user == 0 { (Some("/run".into()), 0o755) } else { (runtime, 0o700) };
    let first = first.map(|folder| folder.join("ka")).filter(|folder| is_plain(folder));
    let mut result = Err(io::Error::from(io::ErrorKind::NotFound));
    for folder in first.into_iter().chain([format!("/tmp/ka-{user}").into()]) {
        result = link(&folder, mode, user, path);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Creates a symbolic link to a path, in a directory that only this user can write.
fn link(folder: &Path, mode: u32, user: u32, path: &Path) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "{} must be a directory that only this user can write",
            folder.display()
        )));
    }
    let target = fs::metadata(path)?;
    let link = folder.join(format!("libka_preload-{:x}-{:x}.so", target.dev(), target.ino()));
    if fs::read_link(&link).is_ok_and(|there| there == path) {
        return Ok(link);
    }
    // rename(2) is atomic, so other processes always find the old or the new link.
    let new = folder.join(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&new);
    symlink(path, &new)?;
    fs::rename(&new, &link)?;
    Ok(link)
}

/// Adds the shim to LD_PRELOAD, before all other libraries, unless the list already contains it.
///
/// A library such as torsocks looks functions up in libc directly, so its calls bypass the libraries after it in the
/// list. Only the runtimes of sanitizers stay before the shim, because `ASan` ends the program if it is not the first
/// library.
fn add_preload(environment: &mut Environment, shim: &Path) {
    let is_separator = |byte: &u8| matches!(byte, b':' | b' ');
    let current = environment.get(PRELOAD).unwrap_or_default().to_vec();
    let is_shim = |entry: &[u8]| {
        let entry = fs::canonicalize(OsStr::from_bytes(entry));
        entry.is_ok_and(|entry| shim.canonicalize().is_ok_and(|shim| shim == entry))
    };
    let entries = || current.split(is_separator).filter(|entry| !entry.is_empty());
    if entries().any(is_shim) {
        return;
    }
    let runtimes = entries().take_while(|entry| is_runtime(entry));
    let rest = entries().skip_while(|entry| is_runtime(entry));
    let all: Vec<&[u8]> = runtimes.chain([shim.as_os_str().as_bytes()]).chain(rest).collect();
    environment.set(PRELOAD, &all.join(&b':'));
}

/// Returns whether a library is a sanitizer's runtime, of gcc or clang.
fn is_runtime(library: &[u8]) -> bool {
    const NAMES: [&[u8]; 5] = [b"libasan.", b"libhwasan.", b"liblsan.", b"libtsan.", b"libclang_rt."];
    let name = library.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    NAMES.iter().any(|runtime| name.starts_with(runtime))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Environment, add_preload};

    #[test]
    fn the_shim_is_added_once_and_before_other_libraries() {
        let mut environment = Environment(vec!["A=b".into(), "broken".into()]);
        add_preload(&mut environment, Path::new("/lib/x.so"));
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/lib/x.so"[..]));
        environment.set(b"LD_PRELOAD", b"/proc/self/exe /lib/y.so");
        add_preload(&mut environment, Path::new("/bin/sh"));
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/bin/sh:/proc/self/exe:/lib/y.so"[..]));
        let own = std::env::current_exe().unwrap();
        add_preload(&mut environment, &own);
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/bin/sh:/proc/self/exe:/lib/y.so"[..]));
        assert_eq!(environment.0.len(), 3);
    }

    #[test]
    fn only_runtimes_of_sanitizers_stay_before_the_shim() {
        for (there, all) in [
            ("libasan.so.8", "libasan.so.8:/lib/x.so"),
            (
                ":/a/libtsan.so.2  libclang_rt.asan-x86_64.so y.so",
                "/a/libtsan.so.2:libclang_rt.asan-x86_64.so:/lib/x.so:y.so",
            ),
            ("y.so:libasan.so.8", "/lib/x.so:y.so:libasan.so.8"),
            ("/libasan.d/y.so", "/lib/x.so:/libasan.d/y.so"),
            (": :", "/lib/x.so"),
        ] {
            let mut environment = Environment(vec![format!("LD_PRELOAD={there}").into()]);
            add_preload(&mut environment, Path::new("/lib/x.so"));
            assert_eq!(environment.get(b"LD_PRELOAD"), Some(all.as_bytes()), "{there}");
        }
    }
}
