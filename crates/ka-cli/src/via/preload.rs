//! LD_PRELOAD: the dynamic loader puts libka_preload.so into the program, which does the rest. ka-preload(7)

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use super::environment::{Environment, execute, is_off};
use super::{Launch, Reach, Way, no};
use crate::failure::{Failure, OUR_OWN};
use crate::program::Program;
use crate::wrapper;
use ka_reach::elf::{self, Elf, Libc};
use ka_reach::libraries::Linked;
use ka_reach::text::{self, reason};
use ka_reach::{privilege, user};

pub(super) struct Preload;

const SHIM: &str = "libka_preload.so";

/// What the shim takes the place of. A C library has all of them too, and a SONAME, which the shim has not.
const HOOKS: [&str; 6] = ["socket", "setsockopt", "connect", "listen", "accept", "accept4"];

/// Where packages put it, unless they say otherwise when they build.
const PRIVATE_FOLDER: &str = match option_env!("KA_LIBDIR") {
    Some(folder) => folder,
    None => "/usr/lib/ka",
};

impl Way for Preload {
    fn name(&self) -> &'static str {
        "preload"
    }

    fn reach(&self, launch: &Launch<'_>) -> Reach {
        if launch.no_io_uring {
            return no("a preloaded library cannot keep a program from io_uring", "--via seccomp");
        }
        let shim = shim();
        let instead = "KA_PRELOAD=/path/to/libka_preload.so";
        if let Err(why) = &shim
            && env::var_os("KA_PRELOAD").is_some_and(|path| !path.is_empty())
        {
            return Reach::Wrong { why: why.clone(), instead: instead.to_owned() };
        }
        if let Some((why, instead)) = is_off(launch) {
            return Reach::Wrong { why, instead };
        }
        // If no shim can reach the program, the missing shim is not the reason.
        let known = shim.as_ref().ok().copied();
        if let Some((why, instead)) = launch.program.chain().find_map(|program| obstacle(program, known)) {
            return no(why, instead);
        }
        match shim {
            Ok(shim) => Reach::Yes(format!(
                "{}; static, Go's and 32-bit programs that it starts are not: ka run --via seccomp",
                shim.path.display()
            )),
            Err(why) => no(why, instead),
        }
    }

    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure> {
        let file = ka_reach::conf::text().unwrap_or_default();
        let mut environment = Environment::of(launch, &file);
        let shim = shim().and_then(|shim| {
            plain_path(&shim.path).map_err(|error| {
                let path = shim.path.display();
                let reason = reason(&error);
                format!(
                    "{path}: the loader accepts no path with blanks, colons or $, and ka cannot make a link to it: \
                     {reason}"
                )
            })
        });
        match shim {
            Ok(shim) => {
                add_preload(&mut environment, &shim);
                if launch.verbose {
                    let variables = environment.variables(&file);
                    let mode = variables.mode.name();
                    let _ = writeln!(
                        io::stderr(),
                        "ka: via preload: {}, {}, mode {mode}",
                        shim.display(),
                        variables.config
                    );
                    if let Some(script) = launch.program.chain().find_map(|program| program.scripts.first()) {
                        let script = text::visible(script.as_os_str().as_bytes());
                        let _ = writeln!(
                            io::stderr(),
                            "ka: {script} is a script: static and Go programs that it starts are not reached (use \
                             --via seccomp)"
                        );
                    }
                }
            }
            // ka run has already printed that preload does not reach the program.
            Err(_) if launch.best_effort && lacks_shim().is_some() => {}
            Err(why) if launch.best_effort => {
                let why = text::visible_lines(&why);
                let _ = writeln!(io::stderr(), "ka: run: {why}; running it WITHOUT keepalive");
            }
            Err(why) => return Err(Failure::new(format_args!("run: {why}")).with_status(OUR_OWN)),
        }
        Err(execute(launch, &environment))
    }
}

/// Returns the reason why the shim does not reach a program, and a way that does. `shim` is `None` if ka found no shim.
fn obstacle(program: &Program, shim: Option<&Shim>) -> Option<(String, String)> {
    const FOLLOW: &str = "ka attach --follow PID, once it runs (ka run --best-effort starts it without)";
    const OTHERWISE: &str = "ka run without --via, or --via seccomp";
    let path = program.executable.display();
    let follow = |why: String| Some((why, FOLLOW.to_owned()));
    let otherwise = |why: String| Some((why, OTHERWISE.to_owned()));
    if program.drops_environment {
        return otherwise(format!("{}: its #! line drops LD_PRELOAD with env(1)", program.path.display()));
    }
    if let Some(secure) = program.secure {
        let why = format!("{path}: {secure}, so the loader ignores LD_PRELOAD");
        let name = program.name();
        let instead = if wrapper::is_wrapper(name) {
            format!("ka behind it: {} ka run -- PROGRAM", name.display())
        } else {
            format!("/etc/ld.so.preload, as in ka-preload(7); or {FOLLOW}")
        };
        return Some((why, instead));
    }
    if let Some(why) = &program.loses_preload {
        return Some((
            why.clone(),
            format!("{OTHERWISE}; or ka behind it: {} ka run -- PROGRAM", program.name().display()),
        ));
    }
    let Some(elf) = &program.elf else {
        return follow(format!("{path}: it is no ELF program, or may not be read"));
    };
    let is_static = elf.loader.is_none() && !elf.is_loader();
    if elf.is_go {
        let how = if is_static { "it is static, and" } else { "it" };
        otherwise(format!("{path}: {how} was made by Go, whose programs make their system calls themselves"))
    } else if is_static {
        let how = if elf.is_position_independent { "static-pie" } else { "static" };
        otherwise(format!("{path}: it is {how}, so no loader reads LD_PRELOAD"))
    } else if let Some(shim) = shim.filter(|shim| !elf.fits(&shim.elf)) {
        follow(format!(
            "{path}: it is for {}, and {} is for {}",
            elf.machine_name(),
            shim.path.display(),
            shim.elf.machine_name()
        ))
    } else if elf.libc() == Some(Libc::Unknown) {
        let loader = elf.loader.as_deref().unwrap_or_default().escape_ascii();
        otherwise(format!("{path}: its loader {loader} is neither glibc's nor musl's"))
    } else if elf.is_loader() {
        None
    } else {
        otherwise(passes_by(&program.executable, elf)?)
    }
}

/// Explains why the shim does not see the sockets of a dynamic program: the program makes its system calls past the C
/// library.
///
/// The shim reaches a program that imports a socket function. So the code of all libraries is read only for other
/// programs, and most of these have few libraries. Files that cannot be read are ignored.
fn passes_by(path: &Path, elf: &Elf) -> Option<String> {
    let linked = Linked::find(path, elf);
    if let Some(library) = linked.go_library() {
        return Some(format!(
            "{}: it is linked to {}, which was made by Go: Go makes its system calls itself",
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
        "{}: {who} makes its system calls itself: neither it nor its libraries import socket, connect, listen or accept",
        path.display()
    ))
}

/// libka_preload.so, found.
struct Shim {
    path: PathBuf,
    elf: Elf,
}

/// The shim, found once.
fn shim() -> Result<&'static Shim, String> {
    static FOUND: OnceLock<Result<Shim, String>> = OnceLock::new();
    FOUND.get_or_init(find_shim).as_ref().map_err(Clone::clone)
}

/// Why there is nothing to preload.
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

/// Returns the shim's path in /etc/ld.so.preload, if a program gets its policy from it. The loader of glibc reads this file
/// for setuid programs too.
pub(crate) fn listed_for(launch: &Launch<'_>) -> Option<PathBuf> {
    let path = listed()?;
    let elf = launch.program.elf.as_ref()?;
    let shim = Elf::read(&path).ok().flatten()?;
    let is_dynamic = elf.loader.is_some() && elf.libc() == Some(Libc::Glibc) && elf.fits(&shim) && !elf.is_go;
    let is_seen = is_dynamic && passes_by(&launch.program.executable, elf).is_none();
    (is_seen && is_off(launch).is_none()).then_some(path)
}

/// The path of the shim as LD_PRELOAD takes it; where it is not here, as a package would have it. `None` where the loader
/// takes no such path.
pub(crate) fn shim_path() -> Option<PathBuf> {
    let path = shim().map_or_else(|_| Path::new(PRIVATE_FOLDER).join(SHIM), |shim| shim.path.clone());
    is_plain(&path).then_some(path)
}

/// Finds the shim: what KA_PRELOAD names, else beside this program, else where it is installed.
fn find_shim() -> Result<Shim, String> {
    let named = env::var_os("KA_PRELOAD").filter(|path| !path.is_empty());
    let places = match &named {
        Some(path) => vec![PathBuf::from(path)],
        None => places(),
    };
    let Some(path) = places.iter().find(|path| path.exists()) else {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("{SHIM} is not there: looked for {}", places.join(", ")));
    };
    // The program may run in another folder, or change to one.
    let mut path =
        std::path::absolute(path).map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
    if named.is_some() {
        path = trusted(&path).map_err(|why| format!("KA_PRELOAD={}: {why}", path.display()))?;
    }
    let refused = |why: &dyn fmt::Display| Err(format!("{}: {why}", path.display()));
    match Elf::read(&path).and_then(|elf| Ok((elf, elf::exports(&path, &HOOKS)?))) {
        Ok((Some(elf), true)) if elf.soname.as_deref().is_none_or(|name| name == SHIM.as_bytes()) => {
            Ok(Shim { path, elf })
        }
        Ok((Some(elf), _)) if elf.soname.is_some() || elf.is_position_independent => {
            refused(&format_args!("it is not {SHIM}, and nothing in it gives sockets a policy"))
        }
        Ok(_) => refused(&"it is no shared library"),
        Err(error) => refused(&reason(&error)),
    }
}

fn places() -> Vec<PathBuf> {
    let own = env::current_exe().and_then(|path| path.canonicalize());
    let folder = own.ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let triple = format!("../lib/{}-linux-gnu/ka", env::consts::ARCH);
    let beside = folder.into_iter().flat_map(|folder| {
        ["", "../lib/ka", &triple, "../lib64/ka"].map(|place| normal(&folder.join(place).join(SHIM)))
    });
    let mut places: Vec<PathBuf> = Vec::new();
    for place in beside.chain([Path::new(PRIVATE_FOLDER).join(SHIM)]) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// A path without `..`. The part before it must have no symbolic links.
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

/// A file that the environment names, where that may decide what is preloaded; else why not.
///
/// Who has us run with more rights than theirs has no say. sudo, doas and pkexec start us as root with what they keep of
/// their caller's environment, and say whose it was: then the file must be root's, and so must all folders on the way to
/// it, or its owner could put another in its place when we have looked.
fn trusted(path: &Path) -> Result<PathBuf, String> {
    const CALLERS: [&str; 3] = ["SUDO_UID", "DOAS_USER", "PKEXEC_UID"];
    if privilege::has_more_rights() {
        return Err("ka runs with more rights than its user's, and does not trust the environment".to_owned());
    }
    let (user, _) = user::users();
    let Some(caller) = CALLERS.into_iter().find(|name| user == 0 && env::var_os(name).is_some()) else {
        return Ok(path.to_path_buf());
    };
    let path = path.canonicalize().map_err(|error| reason(&error))?;
    for (depth, place) in path.ancestors().enumerate() {
        let found = fs::symlink_metadata(place)
            .map_err(|error| format!("{}: {}", place.display(), reason(&error)))?;
        // In a folder as /tmp is, others can make files, but not move or remove root's.
        let is_sticky = depth > 0 && found.mode() & libc::S_ISVTX != 0;
        if found.uid() != 0 || (found.mode() & 0o022 != 0 && !is_sticky) {
            return Err(format!(
                "where {caller} is set, {} must be root's, and nobody else may write it",
                place.display()
            ));
        }
    }
    Ok(path)
}

/// Whether the loader takes a path in LD_PRELOAD, where blanks and colons separate and $ begins a word of its own.
fn is_plain(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':' | b'$' | 9..=13))
}

/// A path that the loader takes in LD_PRELOAD.
///
/// One that it does not take gets a link in a folder where nobody else can put anything. The link stays: the program's
/// children, and theirs, find the shim by it too.
fn plain_path(path: &Path) -> io::Result<PathBuf> {
    if is_plain(path) {
        return Ok(path.to_path_buf());
    }
    let (_, user) = user::users();
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    // Root's programs may become other users', who must find it too.
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

/// Makes a link to a path in a folder that is the user's alone.
fn link(folder: &Path, mode: u32, user: u32, path: &Path) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("{} is not ours alone", folder.display())));
    }
    let target = fs::metadata(path)?;
    let link = folder.join(format!("libka_preload-{:x}-{:x}.so", target.dev(), target.ino()));
    if fs::read_link(&link).is_ok_and(|there| there == path) {
        return Ok(link);
    }
    // Others who start programs at the same time find the old link or the new one.
    let new = folder.join(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&new);
    symlink(path, &new)?;
    fs::rename(&new, &link)?;
    Ok(link)
}

/// Adds the shim before what is preloaded already, unless it is there: a library that asks libc itself for a function, as
/// torsocks does, calls past all that is behind it. Only the runtimes of sanitizers stay first: `ASan`'s ends the program
/// where it is not.
fn add_preload(environment: &mut Environment, shim: &Path) {
    const NAME: &[u8] = b"LD_PRELOAD";
    let is_separator = |byte: &u8| matches!(byte, b':' | b' ');
    let there = environment.get(NAME).unwrap_or_default().to_vec();
    let is_shim = |entry: &[u8]| {
        let entry = fs::canonicalize(OsStr::from_bytes(entry));
        entry.is_ok_and(|entry| shim.canonicalize().is_ok_and(|shim| shim == entry))
    };
    let entries = || there.split(is_separator).filter(|entry| !entry.is_empty());
    if entries().any(is_shim) {
        return;
    }
    let runtimes = entries().take_while(|entry| is_runtime(entry));
    let rest = entries().skip_while(|entry| is_runtime(entry));
    let all: Vec<&[u8]> = runtimes.chain([shim.as_os_str().as_bytes()]).chain(rest).collect();
    environment.set(NAME, &all.join(&b':'));
}

/// Whether a library is the runtime of a sanitizer, of gcc or of clang.
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
    fn what_is_preloaded_stays() {
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
    fn only_runtimes_of_sanitizers_are_before_the_shim() {
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
