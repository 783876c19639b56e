//! Finds the libraries that a program is linked to, as its loader does. ld.so(8), "DESCRIPTION"; for musl,
//! ldso/dynlink.c
//!
//! A program may leave its socket calls to a library. So ka must read both to find out whether a preloaded library
//! would see the sockets. Starting the loader (ldd(1)) would be easier, but a hostile program can name any file as
//! its loader.

use std::cell::Cell;
use std::collections::HashSet;
use std::env;
use std::ffi::OsStr;
use std::io::Read as _;
use std::iter;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{CLibrary, Cache, Elf, imports};
use crate::Result;
use crate::escape;
use crate::file;

/// The functions through which a program gets TCP sockets. A preloaded library replaces them.
const SOCKET_FUNCTIONS: [&str; 5] = ["socket", "connect", "listen", "accept", "accept4"];

/// The limit on the libraries of a program. Real programs have fewer. A hostile program may name any number.
const MAX_LIBRARIES: usize = 2000;

/// The limit on the paths that the search tries. Real programs need fewer. Each library of a hostile program may name
/// any number of folders.
const MAX_PATHS: u32 = 100_000;

/// A program and the libraries that it is linked to.
#[derive(Debug)]
pub struct Linked {
    /// The program and its libraries. The C library is left out: it always defines the socket functions and contains
    /// their system-call instructions, so it proves nothing.
    objects: Vec<Object>,
    /// The name of the first library that was not found, cannot be read, or is beyond a limit, and the file that needs
    /// it.
    pub unread: Option<(String, PathBuf)>,
}

impl Linked {
    /// Finds the program's libraries, and the libraries of these in turn. Uses the LD_LIBRARY_PATH of this process.
    ///
    /// The files may be hostile, so the number of libraries and the number of paths are limited. If a limit is reached,
    /// [`Linked::unread`] has the first library that was not found or not searched for.
    #[must_use]
    pub fn find(program: &Path, elf: &Elf) -> Self {
        let path = program.canonicalize().unwrap_or_else(|_| program.to_path_buf());
        let search = Search::new(elf);
        let mut linked =
            Self { objects: vec![Object { path, elf: elf.clone(), needed_by: None }], unread: None };
        let mut known = HashSet::new();
        let mut next = 0;
        // In the loader's order: first the program's libraries, then those of the libraries.
        while let Some(object) = linked.objects.get(next) {
            let mut found = Vec::new();
            for name in &object.elf.needed {
                if is_c_library(name) || known.contains(name) {
                    continue;
                }
                let is_within = known.len() < MAX_LIBRARIES;
                let library = is_within.then(|| search.find(name, object, &linked.objects)).flatten();
                if is_within {
                    known.insert(name.clone());
                }
                if let Some((path, elf)) = library {
                    found.push(Object { path, elf, needed_by: Some(next) });
                } else {
                    let named = || (escape::lossless(name).into_owned(), object.path.clone());
                    linked.unread.get_or_insert_with(named);
                }
            }
            linked.objects.extend(found);
            next = next.saturating_add(1);
        }
        linked
    }

    /// Returns the path of the program's file, without symbolic links.
    #[must_use]
    pub fn program(&self) -> &Path {
        self.objects.first().map_or_else(|| Path::new(""), |program| program.path.as_path())
    }

    /// Returns the first library that Go's linker made.
    #[must_use]
    pub fn go_library(&self) -> Option<&Path> {
        let mut libraries = self.objects.iter().skip(1);
        libraries.find(|library| library.elf.is_go).map(|library| library.path.as_path())
    }

    /// Returns whether the program or a library imports socket, connect, listen, accept or accept4. `None` if no such
    /// import was found, but some files' symbols cannot be read.
    #[must_use]
    pub fn imports_sockets(&self) -> Option<bool> {
        let mut is_known = true;
        for object in &self.objects {
            match imports(&object.path, &SOCKET_FUNCTIONS) {
                Ok(Some(true)) => return Some(true),
                Ok(Some(false)) => {}
                Ok(None) | Err(_) => is_known = false,
            }
        }
        is_known.then_some(false)
    }

    /// Returns the first file that contains system-call instructions for socket calls. This reads all code of the
    /// files.
    ///
    /// # Errors
    /// The error of reading a file. Later files have not been read.
    pub fn calls_sockets(&self) -> Result<Option<&Path>> {
        for object in &self.objects {
            if object.elf.calls_sockets(&object.path)? {
                return Ok(Some(&object.path));
            }
        }
        Ok(None)
    }
}

/// Returns whether this is the name of the C library, of a loader, or of glibc's thread library (part of the C library
/// since glibc 2.34).
fn is_c_library(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"libc.so", b"libc.musl-", b"libpthread.so"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || CLibrary::of_loader(name).is_some()
}

/// A program or a library.
#[derive(Debug)]
struct Object {
    path: PathBuf,
    elf: Elf,
    /// The index of the object that needs this one. `None` for the program.
    needed_by: Option<usize>,
}

impl Object {
    /// Returns the value of `$ORIGIN`.
    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new("/"))
    }
}

/// The search for libraries.
struct Search<'a> {
    program: &'a Elf,
    is_musl: bool,
    /// The value of `$LIB`.
    lib: String,
    /// The number of paths that may still be tried.
    paths_left: Cell<u32>,
}

impl<'a> Search<'a> {
    fn new(program: &'a Elf) -> Self {
        Self {
            program,
            is_musl: program.libc() == Some(CLibrary::Musl),
            lib: format!("lib/{}", triple(program)),
            paths_left: Cell::new(MAX_PATHS),
        }
    }

    /// Finds a library that an object needs. Skips libraries for other machines, as the loader does.
    ///
    /// Folders are expanded one at a time, because a short list of a hostile program may expand to many long paths.
    fn find(&self, name: &[u8], object: &Object, objects: &[Object]) -> Option<(PathBuf, Elf)> {
        let read = |path: PathBuf| {
            self.paths_left.set(self.paths_left.get().checked_sub(1)?);
            let elf = Elf::read(&path).ok().flatten().filter(|elf| elf.fits(self.program))?;
            Some((path, elf))
        };
        let file = Path::new(OsStr::from_bytes(name));
        if name.contains(&b'/') {
            return read(file.to_path_buf());
        }
        let within = |folders: &mut dyn Iterator<Item = PathBuf>| {
            folders.take_while(|_| self.paths_left.get() > 0).find_map(|folder| read(folder.join(file)))
        };
        let variable = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let origin = objects.first().map_or_else(|| Path::new("/"), Object::folder);
        let variable = self.folders(variable.as_bytes(), origin);
        // The object itself, the object that needs it, and so on up to the program.
        let ancestors = iter::successors(Some(object), |object| objects.get(object.needed_by?));
        if self.is_musl {
            let lists = ancestors.flat_map(|object| {
                let lists = [&object.elf.runpath, &object.elf.rpath].into_iter().flatten();
                lists.flat_map(|list| self.folders(list, object.folder()))
            });
            return within(&mut variable.chain(lists).chain(musl_folders(self.program)));
        }
        // An object's RUNPATH disables its own RPATH. For the libraries that this object needs, it also disables the
        // RPATH of all ancestors.
        let has_runpath = |object: &Object| object.elf.runpath.is_some();
        let rpaths = ancestors
            .filter(|ancestor| !has_runpath(object) && !has_runpath(ancestor))
            .flat_map(|object| object.elf.rpath.iter().flat_map(|list| self.folders(list, object.folder())));
        let runpath = object.elf.runpath.iter().flat_map(|list| self.folders(list, object.folder()));
        within(&mut rpaths.chain(variable).chain(runpath))
            .or_else(|| Cache::of_this_system()?.paths(name).map(Path::to_path_buf).find_map(read))
            .or_else(|| within(&mut default_folders(self.program).into_iter()))
    }

    /// Expands `$ORIGIN` and `$LIB` in a list of folders. Folders that contain other variables, such as `$PLATFORM`,
    /// are skipped.
    fn folders<'l>(&'l self, list: &'l [u8], origin: &'l Path) -> impl Iterator<Item = PathBuf> + 'l {
        let list = list.split(|byte| matches!(byte, b':' | b';')).filter(|folder| !folder.is_empty());
        list.filter_map(move |folder| {
            let words = [
                (&b"${ORIGIN}"[..], origin.as_os_str().as_bytes()),
                (b"$ORIGIN", origin.as_os_str().as_bytes()),
                (b"${LIB}", self.lib.as_bytes()),
                (b"$LIB", self.lib.as_bytes()),
            ];
            let mut folder = folder.to_vec();
            for (word, value) in words {
                if let Some(at) = folder.windows(word.len()).position(|window| window == word) {
                    folder.splice(at..at.saturating_add(word.len()), value.iter().copied());
                }
            }
            (!folder.contains(&b'$')).then(|| PathBuf::from(OsStr::from_bytes(&folder)))
        })
    }
}

/// Returns the name of Debian's folder for the libraries of a machine.
fn triple(program: &Elf) -> String {
    let machine = program.machine_name();
    let abi = if machine == "arm" { "gnueabihf" } else { "gnu" };
    format!("{machine}-linux-{abi}")
}

/// Returns the folders that glibc searches last. Debian has a folder for each machine. Other distributions use lib64.
fn default_folders(program: &Elf) -> Vec<PathBuf> {
    let own = triple(program);
    let names = if program.is_64 { [own.as_str(), "../lib64", ""] } else { [own.as_str(), "../lib", ""] };
    names.iter().flat_map(|name| ["/lib", "/usr/lib"].map(|folder| Path::new(folder).join(name))).collect()
}

/// Returns the folders that musl searches last.
fn musl_folders(program: &Elf) -> Vec<PathBuf> {
    const MAX_SIZE: u64 = 64 * 1024;
    let loader = Path::new(OsStr::from_bytes(program.loader.as_deref().unwrap_or_default()));
    // /lib/ld-musl-x86_64.so.1 reads /etc/ld-musl-x86_64.path, relative to its own folder.
    let name = loader.file_stem().map(Path::new).and_then(Path::file_stem).unwrap_or_default();
    let root = loader.parent().and_then(Path::parent).unwrap_or_else(|| Path::new("/"));
    let list = root.join("etc").join(name).with_extension("path");
    // The program chooses the loader's path, so this path may name any file, such as a FIFO.
    let text = file::open_regular(&list).ok().and_then(|file| {
        let mut text = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut text).ok().map(|_| text)
    });
    let text = text.unwrap_or_else(|| b"/lib:/usr/local/lib:/usr/lib".to_vec());
    let folders = text.split(|byte| matches!(byte, b':' | b'\n')).filter(|folder| !folder.is_empty());
    folders.map(|folder| PathBuf::from(OsStr::from_bytes(folder))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Linked, MAX_LIBRARIES, MAX_PATHS, Object, Search, musl_folders};
    use crate::elf::Elf;

    fn own() -> Elf {
        Elf::read(Path::new("/proc/self/exe")).unwrap().unwrap()
    }

    #[test]
    fn this_program_s_libraries_are_found() {
        let linked = Linked::find(Path::new("/proc/self/exe"), &own());
        assert!(linked.unread.is_none(), "{linked:?}");
        // Rust's standard library connects through the C library.
        assert_eq!((linked.imports_sockets(), linked.go_library()), (Some(true), None));
    }

    #[test]
    fn rpath_of_all_ancestors_is_searched_and_runpath_only_of_the_object() {
        let program = own();
        let folder = std::env::temp_dir().join(format!("ka-elf-rpath-{}", std::process::id()));
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::copy("/proc/self/exe", folder.join("lib/libka-test.so")).unwrap();
        let object = |needed_by, rpath: Option<&str>, runpath: Option<&str>| Object {
            path: folder.join("object"),
            elf: Elf {
                rpath: rpath.map(|list| list.as_bytes().to_vec()),
                runpath: runpath.map(|list| list.as_bytes().to_vec()),
                ..program.clone()
            },
            needed_by,
        };
        let is_found = |is_musl, objects: &[Object]| {
            let search = Search { is_musl, ..Search::new(&program) };
            search.find(b"libka-test.so", objects.last().unwrap(), objects).is_some()
        };
        let list = Some("/no/such/folder:$ORIGIN/lib");
        for (objects, is_found_by_glibc, is_found_by_musl) in [
            ([object(None, list, None), object(Some(0), None, None)], true, true),
            ([object(None, None, None), object(Some(0), None, list)], true, true),
            ([object(None, None, list), object(Some(0), None, None)], false, true),
            ([object(None, list, None), object(Some(0), None, Some("/"))], false, true),
            ([object(None, list, Some("/")), object(Some(0), None, None)], false, true),
            ([object(None, None, None), object(Some(0), Some("$PLATFORM"), None)], false, false),
        ] {
            assert_eq!(is_found(false, &objects), is_found_by_glibc, "{objects:?}");
            assert_eq!(is_found(true, &objects), is_found_by_musl, "{objects:?}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_search_stops_after_the_maximum_number_of_paths() {
        let folder = std::env::temp_dir().join(format!("ka-elf-paths-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::copy("/proc/self/exe", folder.join("libka-test.so")).unwrap();
        let is_found = |misses: u32| {
            let misses = b"/no:".repeat(usize::try_from(misses).unwrap());
            let rpath = Some([&misses, folder.as_os_str().as_encoded_bytes()].concat());
            let program = Elf { rpath, runpath: None, needed: vec![b"libka-test.so".to_vec()], ..own() };
            let linked = Linked::find(Path::new("/proc/self/exe"), &program);
            linked.unread.is_none_or(|(name, _)| name != "libka-test.so")
        };
        assert!(is_found(MAX_PATHS - 100) && !is_found(MAX_PATHS));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_library_beyond_the_limit_is_reported() {
        let folder = std::env::temp_dir().join(format!("ka-elf-many-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let names: Vec<_> = (0..=MAX_LIBRARIES).map(|n| format!("libka-{n}.so")).collect();
        for name in &names {
            std::os::unix::fs::symlink("/proc/self/exe", folder.join(name)).unwrap();
        }
        let unread = |names: &[String]| {
            let needed = names.iter().map(|name| name.clone().into_bytes()).collect();
            let rpath = Some(folder.as_os_str().as_encoded_bytes().to_vec());
            let program = Elf { rpath, runpath: None, needed, ..own() };
            Linked::find(Path::new("/proc/self/exe"), &program).unread.map(|(name, _)| name)
        };
        assert_eq!(unread(names.get(..10).unwrap()), None);
        assert_eq!(unread(&names).as_ref(), names.last());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_list_of_musl_s_folders_must_be_a_regular_file() {
        let root = std::env::temp_dir().join(format!("ka-elf-musl-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        let list = root.join("etc/ld-musl-x.path");
        let loader = root.join("lib/ld-musl-x.so.1").into_os_string().into_encoded_bytes();
        let program = Elf { loader: Some(loader), ..own() };
        fs::write(&list, "/a:/b\n").unwrap();
        assert_eq!(musl_folders(&program), [PathBuf::from("/a"), PathBuf::from("/b")]);
        fs::remove_file(&list).unwrap();
        // Opening a FIFO without a writer would block forever.
        assert!(std::process::Command::new("mkfifo").arg(&list).status().unwrap().success());
        assert_eq!(musl_folders(&program).len(), 3);
        fs::remove_dir_all(&root).unwrap();
    }
}
