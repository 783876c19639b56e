//! The functions behind the hooks: what the program would have called without this library.
//!
//! That is the definition in the next library that has one, in the order in which they were loaded: the C library's,
//! or that of another shim. It is what `dlsym(RTLD_NEXT, …)` finds, but dlsym itself will not do: it has moved from
//! libdl to libc in glibc 2.34, so a library that names it either does not load before that version, or finds
//! nothing in a program without libdl. So the tables are read here, by dl_iterate_phdr(3), which every libc has: the
//! loaded objects come in load order, each with a hash table of its symbols (ELF gABI, "Hash Table"; for the GNU
//! one, binutils' bfd/elflink.c).

#![expect(unsafe_code, reason = "it reads the tables of loaded objects, and calls what it finds there")]

use core::ffi::{CStr, c_char};
use core::mem::{self, transmute_copy};
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use ka_core::{Errno, cut, sys};
use libc::{
    Elf64_Sym as Symbol, c_int, c_long, c_uint, c_void, dl_phdr_info, mmsghdr, msghdr, sockaddr, socklen_t,
    ssize_t, timespec,
};

/// Declares the functions, in one list: their names, the place of each among what was found, and how it is called.
macro_rules! next {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        /// One text and not an array of them, which the loader would have to relocate.
        const NAMES: &[u8] = concat!("syscall", $(",", stringify!($name)),*).as_bytes();

        /// The places of the functions.
        #[expect(non_camel_case_types, reason = "they are called as the functions are")]
        enum Place { syscall, $($name),* }

        const COUNT: usize = [Place::syscall, $(Place::$name),*].len();

        $(
            /// The real one.
            ///
            /// # Safety
            /// As its manual page says.
            #[inline]
            pub(crate) unsafe fn $name($($arg: $type),*) -> $result {
                let found = find(Place::$name);
                if found.is_null() {
                    return missing() as $result;
                }
                // SAFETY: a function of this name has this type.
                let function: unsafe extern "C" fn($($type),*) -> $result = unsafe { transmute_copy(&found) };
                // SAFETY: the caller vouches for the arguments.
                unsafe { function($($arg),*) }
            }
        )*
    };
}

next! {
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    connect(fd: c_int, address: *const sockaddr, size: socklen_t) -> c_int;
    accept(fd: c_int, address: *mut sockaddr, size: *mut socklen_t) -> c_int;
    accept4(fd: c_int, address: *mut sockaddr, size: *mut socklen_t, flags: c_int) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: socklen_t) -> c_int;
    sendto(fd: c_int, data: *const c_void, len: usize, flags: c_int, to: *const sockaddr, size: socklen_t) -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
}

/// The functions, by their places. Null before they were looked for. The real syscall(2) is the first: its hook jumps to
/// where this points, so that what the call does to the stack (clone, vfork) is between the program and it alone.
pub(crate) static FOUND: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];
const _: () = assert!(Place::syscall as usize == 0);

/// syscall(2) with six arguments.
///
/// # Safety
/// As the system call demands of its arguments.
#[inline(never)]
pub(crate) unsafe fn syscall(number: c_long, args: [usize; 6]) -> c_long {
    let found = find(Place::syscall);
    if found.is_null() {
        return missing().into();
    }
    // SAFETY: syscall(2) is a variadic function; what it reads are as many words as the kernel takes.
    let function: unsafe extern "C" fn(c_long, ...) -> c_long = unsafe { transmute_copy(&found) };
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller vouches for the arguments.
    unsafe { function(number, a, b, c, d, e, f) }
}

#[inline(never)]
fn find(place: Place) -> *mut c_void {
    let slot = FOUND.get(place as usize);
    let load = || slot.map_or(ptr::null_mut(), |slot| slot.load(Ordering::Relaxed));
    let mut found = load();
    if found.is_null() {
        resolve();
        found = load();
    }
    found
}

/// No library has the function. Then nobody could have called it without this one either.
#[cold]
fn missing() -> c_int {
    sys::set_errno(Errno(libc::ENOSYS));
    -1
}

/// A function that the ka command offers, and nobody else: its name.
const KA: &[u8] = b"ka_preload_off";

/// What the walk through the loaded objects, of which the program is the first, has come by.
#[derive(Default)]
struct Walk {
    program: bool,
    us: bool,
    ka: AtomicPtr<c_void>,
}

/// Looks for all of them, and says whether the program is the ka command. Called when the library is loaded, and before
/// that where a constructor of another library is quicker; to do it twice, or in two threads at once, finds the same.
#[cold]
pub(crate) fn resolve() -> bool {
    let mut walk = Walk::default();
    // SAFETY: `visit` takes what dl_iterate_phdr(3) gives, and the data that is given here.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut walk).cast()) };
    !walk.ka.into_inner().is_null()
}

/// Looks into one loaded object: the program, and those behind this library, which are next.
unsafe extern "C" fn visit(info: *mut dl_phdr_info, _: usize, walk: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr gives a description of a loaded object, and the walk that was given to it.
    let (info, walk) = unsafe { (&*info, &mut *walk.cast::<Walk>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: an object has as many program headers as it says.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let base = info.dlpi_addr as usize;
    let is_program = !mem::replace(&mut walk.program, true);
    if !is_program && !walk.us {
        let here = (&raw const FOUND) as usize;
        walk.us = headers.iter().any(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            header.p_type == libc::PT_LOAD && here.wrapping_sub(start) < header.p_memsz as usize
        });
        return 0;
    }
    let dynamic = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC);
    if let Some(symbols) = dynamic.and_then(|header| {
        // SAFETY: the dynamic section of a loaded object.
        unsafe { Symbols::of(base, base.wrapping_add(header.p_vaddr as usize) as *const Dynamic) }
    }) {
        let (slots, names) =
            if is_program { (slice::from_ref(&walk.ka), KA) } else { (FOUND.as_slice(), NAMES) };
        let mut names = Some(names);
        for slot in slots {
            let (name, behind) = cut(names.unwrap_or_default(), b',');
            names = behind;
            if slot.load(Ordering::Relaxed).is_null() {
                // SAFETY: the tables of a loaded object.
                if let Some(address) = unsafe { symbols.find(name) } {
                    slot.store(address as *mut c_void, Ordering::Relaxed);
                }
            }
        }
    }
    0
}

/// An entry of the dynamic section.
#[repr(C)]
struct Dynamic {
    tag: usize,
    value: usize,
}

const DT_NULL: usize = 0;
const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSYM: usize = 0x6fff_fff0;

/// The symbols that a loaded object offers.
struct Symbols {
    base: usize,
    names: *const c_char,
    table: *const Symbol,
    /// One of the two hash tables; the GNU one if there are both.
    gnu_hash: *const u32,
    hash: *const u32,
    /// A version for each symbol, if they have versions.
    versions: *const u16,
}

impl Symbols {
    /// # Safety
    /// `dynamic` is the dynamic section of an object that is loaded at `base`.
    unsafe fn of(base: usize, dynamic: *const Dynamic) -> Option<Self> {
        let mut symbols = Self {
            base,
            names: ptr::null(),
            table: ptr::null(),
            gnu_hash: ptr::null(),
            hash: ptr::null(),
            versions: ptr::null(),
        };
        let mut entry = dynamic;
        // SAFETY: the section goes up to its DT_NULL.
        while let Dynamic { tag: tag @ 1.., value } = unsafe { &*entry } {
            // glibc has put the addresses in place of the offsets; musl has not, nor has the vDSO.
            let address = if *value < base { base.wrapping_add(*value) } else { *value };
            match *tag {
                DT_STRTAB => symbols.names = address as *const c_char,
                DT_SYMTAB => symbols.table = address as *const Symbol,
                DT_GNU_HASH => symbols.gnu_hash = address as *const u32,
                DT_HASH => symbols.hash = address as *const u32,
                DT_VERSYM => symbols.versions = address as *const u16,
                _ => {}
            }
            // SAFETY: this entry was not the last.
            entry = unsafe { entry.add(1) };
        }
        const { assert!(DT_NULL == 0) };
        (!symbols.names.is_null() && !symbols.table.is_null()).then_some(symbols)
    }

    /// The address of a function of this name that others may use.
    ///
    /// # Safety
    /// The object is still loaded.
    unsafe fn find(&self, name: &[u8]) -> Option<usize> {
        // SAFETY: the caller vouches for the object, whose tables these are.
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

    /// nbuckets, symoffset, bloom_size, bloom_shift; the bloom filter; the buckets; a hash for each symbol from
    /// symoffset on, whose lowest bit ends a bucket.
    unsafe fn find_by_gnu_hash(&self, name: &[u8]) -> Option<usize> {
        let wanted =
            name.iter().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        // SAFETY: the table has these words, and as many buckets and hashes as they say.
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

    /// nbuckets, nchain; the buckets; for each symbol the next of its bucket.
    unsafe fn find_by_hash(&self, name: &[u8]) -> Option<usize> {
        let wanted = name.iter().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(u32::from(*byte));
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        });
        // SAFETY: the table has these words, and as many buckets and links as they say.
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

    /// The symbol at this place, if it is a function of this name, defined here, in the version that is meant where
    /// none is named.
    unsafe fn function(&self, index: usize, name: &[u8]) -> Option<usize> {
        const UNDEFINED: u16 = 0;
        const FUNCTION: u8 = 2;
        const HIDDEN: u16 = 0x8000;
        // SAFETY: the hash tables name symbols that there are, and each has a name and, if any has, a version.
        unsafe {
            let symbol = &*self.table.add(index);
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
