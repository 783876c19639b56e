//! Loaded objects: the program and its shared libraries, as dl_iterate_phdr(3) lists them.
//!
//! The loader keeps each object's dynamic section in memory. From it this module reads two tables: the symbols that the
//! object defines (ELF gABI, "Hash Table"; for the GNU one, binutils' bfd/elflink.c), and the slots that the loader
//! filled with the address of a symbol (ELF gABI, "Relocation").

#![expect(unsafe_code, reason = "it reads the tables of loaded objects")]

use core::ffi::{CStr, c_char};
use core::mem::transmute;
use core::ops::{ControlFlow, Range};
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{Elf64_Phdr as Header, Elf64_Sym as Symbol, c_int, c_void, dl_phdr_info};

/// The number of files that may be part of the C library.
pub(crate) const C_LIBRARY_PARTS: usize = 4;

/// A loaded object. It stays loaded during the call of `look` in [`each`].
pub(crate) struct LoadedObject<'a> {
    info: &'a dl_phdr_info,
    headers: &'a [Header],
}

/// The numbers of objects that were ever added and removed. While both stay the same, the loaded objects have not
/// changed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

/// The type of dl_iterate_phdr(3).
type Iterate = unsafe extern "C" fn(
    Option<unsafe extern "C" fn(*mut dl_phdr_info, usize, *mut c_void) -> c_int>,
    *mut c_void,
) -> c_int;

/// The C library's dl_iterate_phdr(3). The program or another library may define its own, which may call dlsym(3). The
/// dlsym hook walks the loaded objects, so it would call itself without end. The C library is the last that defines it.
pub(crate) static ITERATE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The loaded objects at one moment.
#[derive(Clone, Copy, Default)]
pub(crate) struct Loaded {
    pub(crate) changes: Changes,
    /// The number of objects.
    pub(crate) count: usize,
}

/// Passes each loaded object to `look`, in load order, until `look` breaks. The first object is the program.
///
/// During this call, glibc holds a lock, so that no object is added or removed. The lock is recursive, so a signal
/// handler that interrupts `look` may call this function.
pub(crate) fn each<F: FnMut(&LoadedObject<'_>) -> ControlFlow<()>>(mut look: F) {
    unsafe extern "C" fn show<F: FnMut(&LoadedObject<'_>) -> ControlFlow<()>>(
        info: *mut dl_phdr_info,
        _: usize,
        look: *mut c_void,
    ) -> c_int {
        // SAFETY: dl_iterate_phdr(3) passes the description of a loaded object, and the pointer that `each` has
        // passed to it.
        let (info, look) = unsafe { (&*info, &mut *look.cast::<F>()) };
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the description has the number of program headers.
        let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        look(&LoadedObject { info, headers }).is_break().into()
    }
    let found = ITERATE.load(Ordering::Relaxed);
    // Before the C library's function is found, use the one that the loader has bound.
    let iterate: Iterate = if found.is_null() {
        libc::dl_iterate_phdr
    } else {
        // SAFETY: a function of this name has this type.
        unsafe { transmute::<*mut c_void, Iterate>(found) }
    };
    // SAFETY: `show` takes the arguments of dl_iterate_phdr(3), and a pointer to a closure of the type that it expects.
    unsafe { iterate(Some(show::<F>), (&raw mut look).cast()) };
}

impl LoadedObject<'_> {
    pub(crate) const fn changes(&self) -> Changes {
        Changes { added: self.info.dlpi_adds, removed: self.info.dlpi_subs }
    }

    /// Returns the path by which the loader found the object. It is empty for the program.
    pub(crate) fn path(&self) -> &[u8] {
        if self.info.dlpi_name.is_null() {
            return b"";
        }
        // SAFETY: the loader's name of the object is a C string.
        unsafe { CStr::from_ptr(self.info.dlpi_name) }.to_bytes()
    }

    /// Returns the index of the part of the C library that this object is, if any. Before glibc 2.34, several parts
    /// defined hooked functions. The C library of musl is its loader.
    #[inline(never)]
    pub(crate) fn c_library_part(&self) -> Option<usize> {
        const STARTS: [&[u8]; C_LIBRARY_PARTS] = [b"libc.", b"ld-musl-", b"libpthread.", b"libdl."];
        let name = self.path().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        STARTS.iter().position(|start| name.starts_with(start))
    }

    const fn base(&self) -> usize {
        self.info.dlpi_addr as usize
    }

    fn addresses(&self, header: &Header) -> Range<usize> {
        let start = self.base().wrapping_add(header.p_vaddr as usize);
        start..start.wrapping_add(header.p_memsz as usize)
    }

    /// Returns whether an address is in a segment with these permissions (`PF_W`, ...).
    pub(crate) fn contains(&self, address: usize, permissions: u32) -> bool {
        self.headers.iter().any(|header| {
            header.p_type == libc::PT_LOAD
                && header.p_flags & permissions == permissions
                && self.addresses(header).contains(&address)
        })
    }

    /// Returns the addresses of the segment with the code.
    pub(crate) fn code(&self) -> Range<usize> {
        let is_code = |header: &&Header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0;
        self.headers.iter().find(is_code).map_or(0..0, |header| self.addresses(header))
    }

    /// Returns the addresses of the pages that the loader has filled and then made read-only (`PT_GNU_RELRO`). The
    /// loader rounds both ends down (elf/dl-reloc.c, `_dl_protect_relro`).
    pub(crate) fn relro(&self, page_size: usize) -> Range<usize> {
        let down = |address: usize| address & !page_size.wrapping_sub(1);
        let relro = self.headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO);
        relro.map_or(0..0, |header| {
            let Range { start, end } = self.addresses(header);
            down(start)..down(end)
        })
    }

    /// Returns the tables of the object, if it has any.
    pub(crate) fn tables(&self) -> Option<Tables> {
        let dynamic = self.headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC)?;
        // SAFETY: this is the dynamic section of a loaded object.
        unsafe { Tables::of(self.base(), self.addresses(dynamic).start as *const DynamicEntry) }
    }
}

/// An entry of the dynamic section.
#[repr(C)]
struct DynamicEntry {
    tag: usize,
    value: usize,
}

unsafe extern "C" {
    /// The dynamic section of this library. Every linker defines this symbol.
    #[link_name = "_DYNAMIC"]
    static OWN: [DynamicEntry; 0];
}

/// The list of loaded objects that the loader keeps for debuggers: `struct r_debug` and `struct link_map`. link.h
#[repr(C)]
struct Debug {
    version: c_int,
    first: *const Link,
}

#[repr(C)]
struct Link {
    base: usize,
    name: *const c_char,
    dynamic: *const DynamicEntry,
    next: *const Link,
}

/// Passes the tables of each loaded object to `look`, in load order, without calling dl_iterate_phdr(3). Returns
/// whether the program has the list of objects (`DT_DEBUG`).
///
/// A hook may need this function before the constructors have run. At that time, a sanitizer that hooks
/// dl_iterate_phdr(3) may still be looking up the real functions with dlsym(3). Its dl_iterate_phdr(3) may then not
/// work yet.
pub(crate) fn each_at_start(mut look: impl FnMut(&Tables)) -> bool {
    // SAFETY: getauxval(3) takes a number. The kernel provides the program headers, and the loader has filled the
    // dynamic section of the program. No other thread changes the list.
    unsafe {
        let headers = libc::getauxval(libc::AT_PHDR) as *const Header;
        let headers = slice::from_raw_parts(headers, libc::getauxval(libc::AT_PHNUM) as usize);
        let address =
            |kind| headers.iter().find(|header| header.p_type == kind).map(|header| header.p_vaddr as usize);
        let (Some(own), Some(dynamic)) = (address(libc::PT_PHDR), address(libc::PT_DYNAMIC)) else {
            return false;
        };
        let base = (headers.as_ptr() as usize).wrapping_sub(own);
        let debug = entry(base.wrapping_add(dynamic) as *const DynamicEntry, DT_DEBUG) as *const Debug;
        let Some(debug) = debug.as_ref() else { return false };
        let mut link = debug.first;
        while let Some(Link { base, dynamic, next, .. }) = link.as_ref() {
            if let Some(tables) = Tables::of(*base, *dynamic) {
                look(&tables);
            }
            link = *next;
        }
    }
    true
}

/// Returns the value of the first entry with this tag, or 0.
///
/// # Safety
/// `dynamic` is the dynamic section of a loaded object.
unsafe fn entry(mut dynamic: *const DynamicEntry, wanted: usize) -> usize {
    // SAFETY: the section ends with DT_NULL, whose tag is 0.
    while let DynamicEntry { tag: tag @ 1.., value } = unsafe { &*dynamic } {
        if *tag == wanted {
            return *value;
        }
        // SAFETY: this entry was not the last.
        dynamic = unsafe { dynamic.add(1) };
    }
    0
}

const DT_PLTRELSZ: usize = 2;
const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_RELA: usize = 7;
const DT_RELASZ: usize = 8;
const DT_DEBUG: usize = 21;
const DT_JMPREL: usize = 23;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSYM: usize = 0x6fff_fff0;
const DT_RELACOUNT: usize = 0x6fff_fff9;

/// A relocation (`Elf64_Rela`).
#[repr(C)]
struct Relocation {
    offset: usize,
    info: u64,
    addend: i64,
}

/// The relocations that store only the address of a symbol: `R_X86_64_64`, `_GLOB_DAT` and `_JUMP_SLOT`, in this order.
/// System V ABI, AMD64 supplement, "Relocation Types"
#[cfg(target_arch = "x86_64")]
const ADDRESSES: [u32; 3] = [1, 6, 7];
/// `R_AARCH64_ABS64`, `_GLOB_DAT` and `_JUMP_SLOT`. ELF for the Arm 64-bit Architecture, "Dynamic relocations"
#[cfg(target_arch = "aarch64")]
const ADDRESSES: [u32; 3] = [257, 1025, 1026];

/// The section index of a symbol that is not defined here.
const UNDEFINED: u16 = 0;

/// A memory word that the loader fills with the address of a symbol.
pub(crate) struct SymbolSlot<'a> {
    pub(crate) place: &'a AtomicPtr<c_void>,
    /// True if the loader may fill the slot only when the function is called for the first time.
    pub(crate) may_be_lazy: bool,
    /// The name of the symbol.
    pub(crate) name: &'a CStr,
}

/// The tables of a loaded object.
pub(crate) struct Tables {
    base: usize,
    dynamic: *const DynamicEntry,
    names: *const c_char,
    symbols: *const Symbol,
    /// The hash tables, either of which may be null. If an object has both, the GNU table is used.
    gnu_hash: *const u32,
    hash: *const u32,
    /// The version of each symbol, or null if the symbols have no versions.
    versions: *const u16,
    relocations: *const Relocation,
    relocations_size: usize,
    /// The number of relocations without a symbol. They come first.
    relative: usize,
    jumps: *const Relocation,
    jumps_size: usize,
}

impl Tables {
    /// # Safety
    /// `dynamic` is the dynamic section of an object that is loaded at `base`.
    unsafe fn of(base: usize, dynamic: *const DynamicEntry) -> Option<Self> {
        let mut tables = Self {
            base,
            dynamic,
            names: ptr::null(),
            symbols: ptr::null(),
            gnu_hash: ptr::null(),
            hash: ptr::null(),
            versions: ptr::null(),
            relocations: ptr::null(),
            relocations_size: 0,
            relative: 0,
            jumps: ptr::null(),
            jumps_size: 0,
        };
        let mut entry = dynamic;
        // SAFETY: the section ends with DT_NULL, whose tag is 0.
        while let DynamicEntry { tag: tag @ 1.., value } = unsafe { &*entry } {
            // glibc has replaced offsets by addresses. musl has not, and the vDSO has offsets too.
            let address = if *value < base { base.wrapping_add(*value) } else { *value };
            match *tag {
                DT_STRTAB => tables.names = address as *const c_char,
                DT_SYMTAB => tables.symbols = address as *const Symbol,
                DT_GNU_HASH => tables.gnu_hash = address as *const u32,
                DT_HASH => tables.hash = address as *const u32,
                DT_VERSYM => tables.versions = address as *const u16,
                DT_RELA => tables.relocations = address as *const Relocation,
                DT_RELASZ => tables.relocations_size = *value,
                DT_RELACOUNT => tables.relative = *value,
                DT_JMPREL => tables.jumps = address as *const Relocation,
                DT_PLTRELSZ => tables.jumps_size = *value,
                _ => {}
            }
            // SAFETY: this entry was not the last.
            entry = unsafe { entry.add(1) };
        }
        (!tables.names.is_null() && !tables.symbols.is_null()).then_some(tables)
    }

    /// Returns whether these are the tables of the shim itself.
    pub(crate) fn are_own(&self) -> bool {
        ptr::eq(self.dynamic, (&raw const OWN).cast())
    }

    /// Passes each slot of a symbol that the object imports to `look`. Unaligned slots are left out.
    ///
    /// # Safety
    /// The object is still loaded, and its relocations were applied.
    pub(crate) unsafe fn each_slot(&self, mut look: impl FnMut(&SymbolSlot<'_>)) {
        let lists =
            [(self.relocations, self.relocations_size, self.relative), (self.jumps, self.jumps_size, 0)];
        for (list, size, skipped) in lists {
            if list.is_null() {
                continue;
            }
            let count = size.checked_div(size_of::<Relocation>()).unwrap_or(0);
            // SAFETY: the loader has read a list of this size at this address.
            let list = unsafe { slice::from_raw_parts(list, count) };
            for relocation in list.iter().skip(skipped) {
                let kind = relocation.info as u32;
                let symbol = (relocation.info >> 32) as usize;
                let place = self.base.wrapping_add(relocation.offset) as *mut *mut c_void;
                let is_address = ADDRESSES.contains(&kind) && relocation.addend == 0;
                if !is_address || symbol == 0 || !place.is_aligned() {
                    continue;
                }
                // SAFETY: the loader has written a pointer to the slot, and found the symbol and its name in the
                // tables. Other users of the slot read or write it atomically.
                let slot = unsafe {
                    let symbol = &*self.symbols.add(symbol);
                    if symbol.st_shndx != UNDEFINED {
                        continue;
                    }
                    let name = self.names.add(symbol.st_name as usize);
                    SymbolSlot {
                        place: AtomicPtr::from_ptr(place),
                        may_be_lazy: ADDRESSES.last() == Some(&kind),
                        name: CStr::from_ptr(name),
                    }
                };
                look(&slot);
            }
        }
    }

    /// Returns the address of the function that the object exports under this name.
    ///
    /// # Safety
    /// The object is still loaded.
    pub(crate) unsafe fn find(&self, name: &[u8]) -> Option<usize> {
        // SAFETY: the caller guarantees that the object is loaded, so its tables are readable.
        unsafe {
            if !self.gnu_hash.is_null() {
                self.find_by_gnu_hash(name)
            } else if !self.hash.is_null() {
                self.find_by_hash(name)
            } else {
                None
            }
        }
    }

    /// The table has four words (nbuckets, symoffset, bloom_size, bloom_shift), the bloom filter, the buckets, and a
    /// hash for each symbol from symoffset on. The lowest bit of a hash is set in the last symbol of a bucket.
    unsafe fn find_by_gnu_hash(&self, name: &[u8]) -> Option<usize> {
        let wanted =
            name.iter().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        // SAFETY: the linker wrote a table of this layout, and the object is loaded.
        unsafe {
            let (buckets, first) = (*self.gnu_hash, *self.gnu_hash.add(1));
            let bloom_words = *self.gnu_hash.add(2) as usize;
            let buckets_at = self.gnu_hash.add(4).add(bloom_words.saturating_mul(size_of::<usize>() / 4));
            let hashes_at = buckets_at.add(buckets as usize);
            let mut index = *buckets_at.add(wanted.checked_rem(buckets)? as usize);
            if index < first {
                return None;
            }
            loop {
                let hash = *hashes_at.add(index.wrapping_sub(first) as usize);
                if hash | 1 == wanted | 1
                    && let Some(address) = self.function(index as usize, name)
                {
                    return Some(address);
                }
                if hash & 1 == 1 {
                    return None;
                }
                index = index.wrapping_add(1);
            }
        }
    }

    /// The table has two words (nbuckets, nchain), the buckets, and for each symbol the index of the next in its
    /// bucket.
    unsafe fn find_by_hash(&self, name: &[u8]) -> Option<usize> {
        let wanted = name.iter().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(u32::from(*byte));
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        });
        // SAFETY: the linker wrote a table of this layout, and the object is loaded.
        unsafe {
            let buckets = *self.hash;
            let buckets_at = self.hash.add(2);
            let links_at = buckets_at.add(buckets as usize);
            let mut index = *buckets_at.add(wanted.checked_rem(buckets)? as usize);
            while index != 0 {
                if let Some(address) = self.function(index as usize, name) {
                    return Some(address);
                }
                index = *links_at.add(index as usize);
            }
            None
        }
    }

    /// Returns the symbol's address if it is a function of this name that the object defines, in the version that a
    /// reference without a version gets.
    unsafe fn function(&self, index: usize, name: &[u8]) -> Option<usize> {
        const FUNCTION: u8 = 2;
        const HIDDEN: u16 = 0x8000;
        // SAFETY: the hash tables hold valid indexes, and each symbol has a name and an entry in the table of versions.
        unsafe {
            let symbol = &*self.symbols.add(index);
            let hidden = !self.versions.is_null() && *self.versions.add(index) & HIDDEN != 0;
            let fits = symbol.st_shndx != UNDEFINED
                && symbol.st_info & 0xf == FUNCTION
                && symbol.st_value != 0
                && !hidden
                && CStr::from_ptr(self.names.add(symbol.st_name as usize)).to_bytes() == name;
            fits.then(|| self.base.wrapping_add(symbol.st_value as usize))
        }
    }
}
