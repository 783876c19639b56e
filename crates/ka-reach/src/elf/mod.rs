//! Reads a program's ELF file: its loader, its libraries, the functions that it imports, and its system-call
//! instructions. elf(5)
//!
//! A preloaded library sees the sockets of a program only if the program has a loader and gets its sockets through
//! functions of the C library. This module finds that out before the program starts.
//!
//! The file may be hostile, because the author of a program controls every byte of it. So no file can make the reader
//! panic or run for long, and its memory is limited to a small multiple of the file's size.

mod cache;
mod instructions;
mod linked;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, FileKind};

pub use cache::Cache;
pub use linked::Linked;

use crate::Result;
use crate::file;

/// A program or a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// True for a 64-bit file, false for a 32-bit file.
    pub is_64: bool,
    /// The machine that the code is for.
    pub machine: elf::Machine,
    /// `PT_INTERP`: the path of the loader (dynamic linker), which the kernel starts instead of the program.
    pub loader: Option<Vec<u8>>,
    /// True for `ET_DYN`: a library, or a program that can be loaded at any address. A program without a loader is then
    /// static-pie.
    pub is_position_independent: bool,
    /// True if Go's linker made the file.
    pub is_go: bool,
    /// `DT_SONAME`: the name of a library.
    pub soname: Option<Vec<u8>>,
    /// `DT_NEEDED`: the names of the libraries that the file is linked to.
    pub needed: Vec<Vec<u8>>,
    /// `DT_RPATH`: folders that the loader searches for the libraries. glibc ignores it if there is a `DT_RUNPATH`.
    rpath: Option<Vec<u8>>,
    /// `DT_RUNPATH`: folders that the loader searches for the libraries.
    runpath: Option<Vec<u8>>,
    /// The executable segments of the file: the offset and the size of each.
    code: Vec<(u64, u64)>,
}

/// The C library of a program, recognized by the name of its loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CLibrary {
    /// glibc
    Glibc,
    /// musl
    Musl,
    /// Another C library: the loader's name is neither glibc's nor musl's.
    Unknown,
}

impl CLibrary {
    /// Returns the C library whose loader has this file name. `None` for an unknown loader.
    fn of_loader(name: &[u8]) -> Option<Self> {
        const LOADERS: [(&[u8], CLibrary); 4] = [
            (b"ld-musl-", CLibrary::Musl),
            (b"ld-linux", CLibrary::Glibc),
            (b"ld64.so", CLibrary::Glibc),
            (b"ld.so", CLibrary::Glibc),
        ];
        LOADERS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, libc)| *libc)
    }
}

impl Elf {
    /// Reads a file. Returns `None` if it is not an ELF file, or is malformed.
    ///
    /// # Errors
    /// The error of opening or reading the file, which must be regular.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(cache) = open(path)? else { return Ok(None) };
        Ok(match FileKind::parse(&cache) {
            Ok(FileKind::Elf32) => parse::<FileHeader32<Endianness>, _>(&cache),
            Ok(FileKind::Elf64) => parse::<FileHeader64<Endianness>, _>(&cache),
            _ => None,
        })
    }

    /// Returns the C library. `None` if the file has no loader.
    #[must_use]
    pub fn libc(&self) -> Option<CLibrary> {
        let loader = self.loader.as_deref()?;
        let name = loader.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Some(CLibrary::of_loader(name).unwrap_or(CLibrary::Unknown))
    }

    /// Returns whether this file is a loader. A loader can be started directly, with a program as its argument.
    #[must_use]
    pub fn is_loader(&self) -> bool {
        // musl's loader and its C library are one file.
        let is_name_of_loader = |name: &[u8]| CLibrary::of_loader(name).is_some() || name == b"libc.so";
        self.loader.is_none() && self.soname.as_deref().is_some_and(is_name_of_loader)
    }

    /// Returns whether the code of this file contains system-call instructions for socket calls. `path` is the path
    /// of the file.
    ///
    /// # Errors
    /// The error of opening or reading the file, which must be regular.
    pub fn calls_sockets(&self, path: &Path) -> Result<bool> {
        const PIECE: u64 = 1 << 18;
        let file = file::open_regular(path)?;
        let mut piece = Vec::new();
        for (start, size) in &self.code {
            let mut done = 0;
            while done < *size {
                // Each piece starts with the end of the previous one.
                let from = done.saturating_sub(instructions::OVERLAP as u64);
                let length = size.saturating_sub(from).min(PIECE);
                piece.clear();
                (&file).seek(SeekFrom::Start(start.saturating_add(from)))?;
                let read = (&file).take(length).read_to_end(&mut piece)?;
                if instructions::calls_sockets(self.machine, &piece) {
                    return Ok(true);
                }
                // A truncated file ends before its segment does.
                if u64::try_from(read).unwrap_or(0) < length {
                    break;
                }
                done = from.saturating_add(length);
            }
        }
        Ok(false)
    }

    /// Returns whether both files can be loaded into one process.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        (self.is_64, self.machine) == (other.is_64, other.machine)
    }

    /// Returns the name of the machine. For most machines, uname(1) prints the same name.
    #[must_use]
    pub fn machine_name(&self) -> String {
        let name = match self.machine {
            elf::EM_386 => "i386",
            elf::EM_X86_64 if self.is_64 => "x86_64",
            elf::EM_X86_64 => "x32",
            elf::EM_ARM => "arm",
            elf::EM_AARCH64 => "aarch64",
            elf::EM_RISCV => "riscv",
            elf::EM_PPC64 => "ppc64",
            elf::EM_S390 => "s390x",
            elf::EM_LOONGARCH => "loongarch",
            other => return format!("machine {}", other.0),
        };
        name.to_owned()
    }
}

/// Returns whether a library exports all of these functions.
///
/// # Errors
/// The error of opening or reading the file, which must be regular.
pub fn exports(path: &Path, functions: &[&str]) -> Result<bool> {
    Ok(count_functions(path, functions, Symbols::Defined)? == Some(functions.len()))
}

/// Returns whether a program or a library imports one of these functions. `None` if its symbols cannot be read.
///
/// # Errors
/// The error of opening or reading the file, which must be regular.
pub fn imports(path: &Path, functions: &[&str]) -> Result<Option<bool>> {
    Ok(count_functions(path, functions, Symbols::Undefined)?.map(|count| count > 0))
}

/// A selection of a file's symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbols {
    /// Symbols that the file defines.
    Defined,
    /// Symbols that the file imports.
    Undefined,
}

fn count_functions(path: &Path, functions: &[&str], symbols: Symbols) -> Result<Option<usize>> {
    let Some(cache) = open(path)? else { return Ok(None) };
    Ok(match FileKind::parse(&cache) {
        Ok(FileKind::Elf32) => functions_of::<FileHeader32<Endianness>, _>(&cache, functions, symbols),
        Ok(FileKind::Elf64) => functions_of::<FileHeader64<Endianness>, _>(&cache, functions, symbols),
        _ => None,
    })
}

/// Opens an ELF file. Returns `None` if it is another type of file.
fn open(path: &Path) -> Result<Option<ReadCache<File>>> {
    let mut file = file::open_regular(path)?;
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_err() || magic != elf::ELFMAG {
        return Ok(None);
    }
    file.rewind()?;
    // A program may be large. The cache reads only the parts that are needed.
    Ok(Some(ReadCache::new(file)))
}

/// Counts how many of these functions are in the file's dynamic symbol table. Returns `None` if the table is missing or
/// malformed.
///
/// The table is read in pieces. For imports, counting ends with the piece in which the first one is found. The string
/// table is read at once, as in [`has_section`]. Only if it is large, as in a program that exports thousands of
/// symbols, each name is read separately.
fn functions_of<'data, Header, R>(data: R, functions: &[&str], which: Symbols) -> Option<usize>
where
    Header: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    /// The maximum size in bytes of a string table that is read at once.
    const ONE_PIECE: u64 = 1 << 20;
    /// The number of symbols that are read at a time.
    const PIECE: usize = 1 << 11;
    let header = Header::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.section_headers(endian, data).ok()?;
    let table = sections.iter().find(|section| section.sh_type(endian) == elf::SHT_DYNSYM)?;
    let (mut place, table_size) = table.file_range(endian)?;
    let symbol_size = u64::try_from(size_of::<Header::Sym>()).ok()?;
    let mut count = usize::try_from(table_size.checked_div(symbol_size)?).ok()?;
    let names = sections.get(usize::try_from(table.sh_link(endian)).ok()?)?;
    let (start, size) = names.file_range(endian)?;
    let all = if size <= ONE_PIECE { Some(data.read_bytes_at(start, size).ok()?) } else { None };
    let longest = functions.iter().map(|function| function.len()).max().unwrap_or(0).saturating_add(1);
    let name_at = |place: u64| {
        if let Some(all) = all {
            return all.get(usize::try_from(place).ok()?..);
        }
        let rest = size.checked_sub(place)?.min(u64::try_from(longest).ok()?);
        data.read_bytes_at(start.checked_add(place)?, rest).ok()
    };
    let is_wanted = |symbol: &&Header::Sym| symbol.is_undefined(endian) == (which == Symbols::Undefined);
    let mut left = functions.to_vec();
    // Linkers put imported symbols first, so the first piece mostly has all of them.
    while count > 0 && !left.is_empty() {
        let piece: &[Header::Sym] = data.read_slice_at(place, count.min(PIECE)).ok()?;
        for symbol in piece.iter().filter(is_wanted) {
            let name = name_at(symbol.st_name(endian).into());
            let is = |function: &&str| name?.strip_prefix(function.as_bytes())?.first().copied();
            left.retain(|function| is(function) != Some(0));
        }
        if which == Symbols::Undefined && left.len() < functions.len() {
            break;
        }
        count = count.checked_sub(piece.len())?;
        place = place.checked_add(symbol_size.checked_mul(u64::try_from(piece.len()).ok()?)?)?;
    }
    functions.len().checked_sub(left.len())
}

/// The longest path of a loader that the kernel accepts: `PATH_MAX`.
const MAX_PATH: u64 = 4096;

/// The limit on writable segments that are searched. Linkers make one, or two if the loader makes one of them read-only
/// after relocation.
const MAX_DATA_SEGMENTS: usize = 4;

/// The limit on executable segments that are searched. Linkers make one.
const MAX_CODE_SEGMENTS: usize = 4;

fn parse<'data, Header, R>(data: R) -> Option<Elf>
where
    Header: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = Header::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    // The kernel uses the first PT_INTERP. fs/binfmt_elf.c, `load_elf_binary`
    let loader = segments.iter().find(|segment| segment.p_type(endian) == elf::PT_INTERP);
    let loader = loader.filter(|segment| segment.p_filesz(endian).into() <= MAX_PATH);
    let loader = loader.and_then(|segment| segment.interpreter(endian, data).ok().flatten());
    let is_data = |segment: &&Header::ProgramHeader| {
        segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian).0 & elf::PF_W.0 != 0
    };
    let has_mark = || {
        // In a file without section headers, the magic of .go.buildinfo is still near the start of a writable segment.
        segments.iter().filter(is_data).take(MAX_DATA_SEGMENTS).any(|segment| {
            let (offset, size) = segment.file_range(endian);
            let start = data.read_bytes_at(offset, size.min(64 * 1024)).unwrap_or_default();
            start.chunks(16).any(|chunk| chunk.starts_with(b"\xff Go buildinf:"))
        })
    };
    let is_go = has_section::<Header, R>(header, endian, data, &[b".go.buildinfo", b".note.go.buildid"])
        .unwrap_or_else(has_mark);
    let is_code = |segment: &&Header::ProgramHeader| {
        segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian).0 & elf::PF_X.0 != 0
    };
    let size = data.len().ok()?;
    let code = segments.iter().filter(is_code).map(|segment| segment.file_range(endian));
    let code = code.filter(|(start, _)| *start < size).take(MAX_CODE_SEGMENTS).collect();
    let DynamicSection { soname, needed, rpath, runpath } =
        dynamic::<Header, R>(segments, endian, data).unwrap_or_default();
    Some(Elf {
        is_64: header.is_type_64(),
        machine: header.e_machine(endian),
        loader: loader.map(<[u8]>::to_vec),
        is_position_independent: header.e_type(endian) == elf::ET_DYN,
        is_go,
        soname,
        needed,
        rpath,
        runpath,
        code,
    })
}

/// Returns whether the file has a section with one of these names. `None` if the file has no section names. The string
/// table is read at once, because reading each name separately would take one read(2) per name.
fn has_section<'data, Header, R>(
    header: &Header,
    endian: Endianness,
    data: R,
    wanted: &[&[u8]],
) -> Option<bool>
where
    Header: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let sections = header.section_headers(endian, data).ok()?;
    let index = header.shstrndx(endian, data).ok()?;
    let names = sections.get(usize::try_from(index).ok()?)?.data(endian, data).ok()?;
    let is_wanted = |section: &Header::SectionHeader| {
        let name = usize::try_from(section.sh_name(endian)).ok().and_then(|place| names.get(place..));
        let is = |wanted: &&[u8]| name?.strip_prefix(*wanted)?.first().copied();
        wanted.iter().any(|wanted| is(wanted) == Some(0))
    };
    (!names.is_empty()).then(|| sections.iter().any(is_wanted))
}

/// Entries of the dynamic section.
#[derive(Default)]
struct DynamicSection {
    soname: Option<Vec<u8>>,
    needed: Vec<Vec<u8>>,
    rpath: Option<Vec<u8>>,
    runpath: Option<Vec<u8>>,
}

/// Reads the dynamic section: the library's own name, the names of the needed libraries, and the folders to search for
/// them.
fn dynamic<'data, Header, R>(
    segments: &'data [Header::ProgramHeader],
    endian: Endianness,
    data: R,
) -> Option<DynamicSection>
where
    Header: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let entries = segments.iter().find_map(|segment| segment.dynamic(endian, data).ok().flatten())?;
    let value =
        |tag| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian).into());
    let strings: u64 = value(elf::DT_STRTAB)?;
    // DT_STRTAB is an address in memory. The segments give the offset in the file.
    let place = segments.iter().find_map(|segment| {
        let offset = strings.checked_sub(segment.p_vaddr(endian).into())?;
        let is_here = segment.p_type(endian) == elf::PT_LOAD && offset < segment.p_filesz(endian).into();
        is_here.then(|| offset.checked_add(segment.p_offset(endian).into())).flatten()
    })?;
    let end = place.checked_add(value(elf::DT_STRSZ)?)?;
    let name = |offset: u64| {
        let start = place.checked_add(offset)?;
        data.read_bytes_at_until(start..end, 0).ok().map(<[u8]>::to_vec)
    };
    let needed = entries.iter().filter(|entry| entry.d_tag(endian) == elf::DT_NEEDED);
    // In a hostile file, many entries may refer to the same long string. So the total length of the names is limited to
    // the size of the file.
    let mut left = usize::try_from(data.len().ok()?).ok()?;
    let fits = |name: &Vec<u8>| left.checked_sub(name.len()).map(|rest| left = rest).is_some();
    let needed = needed.map_while(|entry| name(entry.d_val(endian).into())).take_while(fits).collect();
    let text = |tag| value(tag).and_then(name);
    Some(DynamicSection {
        soname: text(elf::DT_SONAME),
        needed,
        rpath: text(elf::DT_RPATH),
        runpath: text(elf::DT_RUNPATH),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{CLibrary, Elf};

    #[test]
    fn this_program_and_its_loader_are_recognized() {
        let own = Elf::read(Path::new("/proc/self/exe")).unwrap().unwrap();
        assert!(own.is_64 && !own.is_go && !own.is_loader());
        assert_eq!(own.libc(), Some(CLibrary::Glibc));
        assert!(own.needed.contains(&b"libc.so.6".to_vec()), "{:?}", own.needed);
        let path = String::from_utf8(own.loader.clone().unwrap()).unwrap();
        let loader = Elf::read(Path::new(&path)).unwrap().unwrap();
        assert!(loader.is_loader() && loader.fits(&own));
        assert_eq!(Elf::read(Path::new("/proc/self/cmdline")).unwrap(), None);
    }

    #[test]
    fn needed_libraries_together_are_no_longer_than_the_file() {
        // The header, a segment for the whole file and one for the dynamic section, the names, and the dynamic section.
        let name = [&[b'x'; 4000][..], b"\0"].concat();
        let (names, head) = (64 + 2 * 56, 64_u64);
        let mut entries = vec![[5_u64, names], [10, u64::try_from(name.len()).unwrap()]];
        entries.extend((0..2000).map(|n| [1, n]));
        let entries: Vec<u8> = entries.into_flattened().into_iter().flat_map(u64::to_le_bytes).collect();
        let dynamic = names + u64::try_from(name.len()).unwrap();
        let size = u64::try_from(entries.len()).unwrap();
        let words = |words: &[u64]| words.iter().copied().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        let bytes = [
            b"\x7fELF\x02\x01\x01".to_vec(),
            vec![0; 9],
            words(&[1 << 32 | 62 << 16 | 3, 0, head, 0, 56 << 48 | 64 << 32, 2]),
            words(&[5 << 32 | 1, 0, 0, 0, dynamic + size, dynamic + size, 1]),
            words(&[6 << 32 | 2, dynamic, dynamic, dynamic, size, size, 1]),
            name,
            entries,
        ]
        .concat();
        let path = std::env::temp_dir().join(format!("ka-elf-needed-{}", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let found = Elf::read(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found.needed.first().map(Vec::len), Some(4000));
        assert!(found.needed.iter().map(Vec::len).sum::<usize>() <= bytes.len());
    }

    #[test]
    fn truncated_files_do_not_panic() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let path = std::env::temp_dir().join(format!("ka-elf-{}", std::process::id()));
        for size in (0..4096).step_by(7) {
            std::fs::write(&path, whole.get(..size).unwrap()).unwrap();
            let _ = Elf::read(&path).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
    }
}
