//! Finds the libraries that a program is linked to, as its loader does: ld.so(8), "DESCRIPTION"; for musl
//! ldso/dynlink.c. They decide together with the program whether a preloaded library sees the program's sockets.

use std::collections::HashSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::elf::{self, Elf, Libc};
use crate::text;

/// The functions through which a program gets TCP sockets. A preloaded library replaces them.
const SOCKETS: [&str; 5] = ["socket", "connect", "listen", "accept", "accept4"];

/// Returns whether a program imports a socket function. `None` if its symbols cannot be read.
pub fn imports_sockets(program: &Path) -> Option<bool> {
    elf::imports(program, &SOCKETS).ok().flatten()
}

/// An upper bound, more than any real program has.
const MOST_LIBRARIES: usize = 2000;

/// A program and the libraries that it is linked to.
#[derive(Debug)]
pub struct Linked {
    /// The files of the program and its libraries, except the C library. The C library defines the socket functions and
    /// contains the system-call instructions.
    files: Vec<Object>,
    /// The first library that was not found or cannot be read, and the file that is linked to it.
    pub unread: Option<(String, PathBuf)>,
}

impl Linked {
    /// Finds the program's libraries, and their libraries in turn.
    pub fn find(program: &Path, elf: &Elf) -> Self {
        let path = program.canonicalize().unwrap_or_else(|_| program.to_path_buf());
        let search = Search {
            program: elf,
            origin: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            is_musl: elf.libc() == Some(Libc::Musl),
        };
        let mut linked =
            Self { files: vec![Object { path, elf: elf.clone(), rpath: Vec::new() }], unread: None };
        let mut known = HashSet::new();
        let mut next = 0;
        // In the loader's order: first the program's libraries, then those of the libraries.
        while let Some(object) = linked.files.get(next) {
            next = next.saturating_add(1);
            let mut found = Vec::new();
            for name in &object.elf.needed {
                if is_c_library(name) || known.len() >= MOST_LIBRARIES || !known.insert(name.clone()) {
                    continue;
                }
                if let Some(library) = search.find(name, object) {
                    found.push(library);
                } else {
                    let named = || (text::lossless(name).into_owned(), object.path.clone());
                    linked.unread.get_or_insert_with(named);
                }
            }
            linked.files.extend(found);
        }
        linked
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        self.files.first().map_or_else(|| Path::new(""), |program| program.path.as_path())
    }

    /// Returns the first library that was made by Go.
    pub fn go_library(&self) -> Option<&Path> {
        let mut libraries = self.files.iter().skip(1);
        libraries.find(|library| library.elf.is_go).map(|library| library.path.as_path())
    }

    /// Returns whether the program or a library imports a socket function. `None` if some symbols cannot be read and
    /// the readable ones contain no such import.
    pub fn imports_sockets(&self) -> Option<bool> {
        let mut is_known = true;
        for object in &self.files {
            match imports_sockets(&object.path) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => is_known = false,
            }
        }
        is_known.then_some(false)
    }

    /// Returns the first file that contains system-call instructions for socket calls. Reads all code.
    pub fn calls_sockets(&self) -> io::Result<Option<&Path>> {
        for object in &self.files {
            if object.elf.calls_sockets(&object.path)? {
                return Ok(Some(&object.path));
            }
        }
        Ok(None)
    }
}

/// Returns whether this is the name of the C library, of a loader, or of glibc's thread library (separate before 2.34).
fn is_c_library(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 6] =
        [b"libc.so", b"libc.musl-", b"libpthread.so", b"ld-linux", b"ld-musl-", b"ld64.so"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A program or a library.
#[derive(Debug)]
struct Object {
    path: PathBuf,
    elf: Elf,
    /// The folders of `DT_RPATH` of the objects that need this one. They also apply to its own libraries.
    rpath: Vec<PathBuf>,
}

/// The rules for finding libraries.
struct Search<'a> {
    program: &'a Elf,
    /// The folder of the program.
    origin: PathBuf,
    is_musl: bool,
}

impl Search<'_> {
    /// Finds a library that an object needs. Skips libraries for other machines, as the loader does.
    fn find(&self, name: &[u8], asks: &Object) -> Option<Object> {
        let origin = asks.path.parent().unwrap_or_else(|| Path::new("/"));
        let own = |list: &Option<Vec<u8>>| self.folders(list.as_deref().unwrap_or_default(), origin);
        let runpath = own(&asks.elf.runpath);
        // RUNPATH replaces RPATH. musl treats both alike.
        let rpath = match asks.elf.runpath {
            Some(_) if !self.is_musl => Vec::new(),
            _ => [own(&asks.elf.rpath), asks.rpath.clone()].concat(),
        };
        let read = |path: PathBuf| {
            let elf = Elf::read(&path).ok().flatten().filter(|elf| elf.fits(self.program))?;
            let inherited =
                if self.is_musl { [runpath.clone(), rpath.clone()].concat() } else { rpath.clone() };
            Some(Object { path, elf, rpath: inherited })
        };
        let file = Path::new(OsStr::from_bytes(name));
        if name.contains(&b'/') {
            return read(file.to_path_buf());
        }
        let within = |folders: &[PathBuf]| folders.iter().find_map(|folder| read(folder.join(file)));
        let variable = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let variable = self.folders(variable.as_bytes(), &self.origin);
        if self.is_musl {
            let folders = [variable, runpath.clone(), rpath.clone(), musl_folders(self.program)];
            return folders.iter().find_map(|folders| within(folders));
        }
        [&rpath, &variable, &runpath]
            .into_iter()
            .find_map(|folders| within(folders))
            .or_else(|| cache()?.paths(name).map(Path::to_path_buf).find_map(read))
            .or_else(|| within(&default_folders(self.program)))
    }

    /// Expands `$ORIGIN` and `$LIB` in a list of folders. Folders that contain other variables, such as `$PLATFORM`,
    /// are skipped.
    fn folders(&self, list: &[u8], origin: &Path) -> Vec<PathBuf> {
        let list = list.split(|byte| matches!(byte, b':' | b';')).filter(|folder| !folder.is_empty());
        let lib = format!("lib/{}", triple(self.program));
        let words = [
            (&b"${ORIGIN}"[..], origin.as_os_str().as_bytes()),
            (b"$ORIGIN", origin.as_os_str().as_bytes()),
            (b"${LIB}", lib.as_bytes()),
            (b"$LIB", lib.as_bytes()),
        ];
        let expand = |folder: &[u8]| {
            let mut folder = folder.to_vec();
            for (word, value) in words {
                if let Some(at) = folder.windows(word.len()).position(|window| window == word) {
                    folder.splice(at..at.saturating_add(word.len()), value.iter().copied());
                }
            }
            (!folder.contains(&b'$')).then(|| PathBuf::from(OsStr::from_bytes(&folder)))
        };
        list.filter_map(expand).collect()
    }
}

/// The name of Debian's folder for the libraries of a machine.
fn triple(program: &Elf) -> String {
    let machine = program.machine_name();
    let abi = if machine == "arm" { "gnueabihf" } else { "gnu" };
    format!("{machine}-linux-{abi}")
}

/// The folders that glibc searches last. Debian has separate folders for each machine, other distributions use lib64.
fn default_folders(program: &Elf) -> Vec<PathBuf> {
    let own = triple(program);
    let names = if program.is_64 { [own.as_str(), "../lib64", ""] } else { [own.as_str(), "../lib", ""] };
    names.iter().flat_map(|name| ["/lib", "/usr/lib"].map(|folder| Path::new(folder).join(name))).collect()
}

/// The folders that musl searches last.
fn musl_folders(program: &Elf) -> Vec<PathBuf> {
    const MOST: u64 = 64 * 1024;
    let loader = Path::new(OsStr::from_bytes(program.loader.as_deref().unwrap_or_default()));
    // /lib/ld-musl-x86_64.so.1 reads /etc/ld-musl-x86_64.path, relative to its own folder.
    let name = loader.file_stem().map(Path::new).and_then(Path::file_stem).unwrap_or_default();
    let root = loader.parent().and_then(Path::parent).unwrap_or_else(|| Path::new("/"));
    let file = root.join("etc").join(name).with_extension("path");
    let text = fs::File::open(file).and_then(|file| {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MOST), &mut text).map(|_| text)
    });
    let text = text.unwrap_or_else(|_| b"/lib:/usr/local/lib:/usr/lib".to_vec());
    let folders = text.split(|byte| matches!(byte, b':' | b'\n')).filter(|folder| !folder.is_empty());
    folders.map(|folder| PathBuf::from(OsStr::from_bytes(folder))).collect()
}

/// The system's /etc/ld.so.cache, read once.
fn cache() -> Option<&'static Cache> {
    static READ: OnceLock<Option<Cache>> = OnceLock::new();
    READ.get_or_init(|| Cache::new(fs::read("/etc/ld.so.cache").ok()?)).as_ref()
}

/// The cache of ldconfig(8): the libraries in the folders of ld.so.conf(5). glibc, sysdeps/generic/dl-cache.h
pub struct Cache {
    /// The file from the start of this format, because string offsets count from there.
    bytes: Vec<u8>,
    count: usize,
}

impl Cache {
    /// The format since glibc 2.2.
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    /// The older format. Until glibc 2.31 the file starts with it, and the new format follows.
    const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
    const OLD_HEADER: usize = 16;
    const OLD_ENTRY: usize = 12;

    /// Parses the file. `None` if it is not a cache.
    pub fn new(mut bytes: Vec<u8>) -> Option<Self> {
        if bytes.starts_with(Self::OLD_MAGIC) {
            let count = number(&bytes, Self::OLD_HEADER - 4)?;
            let end = count.checked_mul(Self::OLD_ENTRY)?.checked_add(Self::OLD_HEADER)?;
            let start = end.checked_next_multiple_of(8)?;
            if start > bytes.len() {
                return None;
            }
            bytes = bytes.split_off(start);
        }
        if !bytes.starts_with(Self::MAGIC) {
            return None;
        }
        let count = number(&bytes, Self::MAGIC.len())?;
        let end = count.checked_mul(Self::ENTRY)?.checked_add(Self::HEADER)?;
        (end <= bytes.len()).then_some(Self { bytes, count })
    }

    /// Returns the paths of the libraries with this name, for all machines, in the loader's order.
    pub fn paths(&self, name: &[u8]) -> impl Iterator<Item = &Path> {
        let text = |place: usize| self.bytes.get(place..);
        let entries = self.bytes.get(Self::HEADER..).unwrap_or_default().chunks_exact(Self::ENTRY);
        entries.take(self.count).filter_map(move |entry| {
            let rest = text(number(entry, 4)?)?.strip_prefix(name)?;
            if rest.first() != Some(&0) {
                return None;
            }
            let rest = text(number(entry, 8)?)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            Some(Path::new(OsStr::from_bytes(rest.get(..end)?)))
        })
    }
}

/// A number of four bytes.
fn number(bytes: &[u8], place: usize) -> Option<usize> {
    let bytes = bytes.get(place..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Cache, Linked};
    use crate::elf::Elf;

    /// Makes a cache file with these entries, after `before`.
    fn cache(entries: &[(&str, &str)], before: &[u8]) -> Vec<u8> {
        let count = u32::try_from(entries.len()).unwrap();
        let mut texts = Vec::new();
        let mut table = Vec::new();
        for (name, path) in entries {
            let place = |texts: &Vec<u8>| 48 + 24 * count + u32::try_from(texts.len()).unwrap();
            let name_at = place(&texts);
            texts.extend([name.as_bytes(), b"\0"].concat());
            let path_at = place(&texts);
            texts.extend([path.as_bytes(), b"\0"].concat());
            table.extend([0x303, name_at, path_at, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
        }
        let head = [&b"glibc-ld.so.cache1.1"[..], &count.to_ne_bytes(), &[0; 24]].concat();
        [before, &head, &table, &texts].concat()
    }

    #[test]
    fn the_cache_has_both_formats() {
        let entries = [("liba.so.1", "/x/liba.so.1"), ("liba.so", "/x/liba.so"), ("liba.so", "/y/liba.so")];
        // Old: a count of 1, one entry of 12 bytes, and 4 until the next multiple of 8.
        let old = [&b"ld.so-1.7.0\0"[..], &1_u32.to_ne_bytes(), &[0; 16]].concat();
        for before in [&b""[..], &old] {
            let whole = cache(&entries, before);
            let found = Cache::new(whole.clone()).unwrap();
            let paths = |name: &[u8]| found.paths(name).map(Path::to_path_buf).collect::<Vec<PathBuf>>();
            assert_eq!(paths(b"liba.so"), [Path::new("/x/liba.so"), Path::new("/y/liba.so")]);
            assert_eq!(paths(b"liba.so.1"), [Path::new("/x/liba.so.1")]);
            assert!(paths(b"liba").is_empty() && paths(b"/x/liba.so").is_empty());
            for size in 0..whole.len() {
                if let Some(cut) = Cache::new(whole.get(..size).unwrap().to_vec()) {
                    assert!(cut.paths(b"liba.so").count() <= 2);
                }
            }
        }
        assert!(Cache::new(b"something else".to_vec()).is_none());
    }

    #[test]
    fn this_program_s_libraries_are_found() {
        let own = Path::new("/proc/self/exe");
        let linked = Linked::find(own, &Elf::read(own).unwrap().unwrap());
        assert!(linked.unread.is_none(), "{linked:?}");
        // Rust's standard library connects through the C library.
        assert_eq!((linked.imports_sockets(), linked.go_library()), (Some(true), None));
    }
}
