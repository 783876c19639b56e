//! The functions behind the hooks: what the program would have called without this library.
//!
//! Each is the definition in the next library in load order that has one: the C library, or another shim.
//! `dlsym(RTLD_NEXT, …)` finds the same, but the shim cannot link to dlsym. glibc 2.34 moved it from libdl to libc. A library
//! that imports dlsym does not load before that version, or finds nothing in a program without libdl. So the shim reads
//! the symbol tables itself ([`object`]).

#![expect(unsafe_code, reason = "it calls functions by the addresses that it found")]

use core::ffi::CStr;
use core::mem::{self, transmute_copy};
use core::ops::ControlFlow;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use ka_core::{Errno, sys};
use libc::{
    c_char, c_int, c_long, c_uint, c_ulong, c_void, mmsghdr, msghdr, sockaddr, socklen_t, ssize_t, timespec,
};

use crate::object::{self, Object, Tables};

/// Declares the functions, in one list: their names, the place of each among what was found, and how it is called.
macro_rules! next {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        /// One text and not an array of them, which the loader would have to relocate.
        pub(crate) const NAMES: &[u8] = concat!("syscall,dlsym", $(",", stringify!($name)),*).as_bytes();

        /// The places of the functions.
        #[expect(non_camel_case_types, reason = "they are called as the functions are")]
        pub(crate) enum Place { syscall, dlsym, $($name),* }

        pub(crate) const COUNT: usize = [Place::syscall, Place::dlsym, $(Place::$name),*].len();

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
    // Variadic in C. Both architectures pass its words in the same registers as this.
    prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
}

/// dlsym(3), as the hook calls it on its own behalf. Null if no library has one.
///
/// # Safety
/// `handle` is valid, and `name` is a C string.
pub(crate) unsafe fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let found = find(Place::dlsym);
    if found.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: a function of this name has this type.
    let function: unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void =
        unsafe { transmute_copy(&found) };
    // SAFETY: the caller vouches for the arguments.
    unsafe { function(handle, name) }
}

/// The real dlsym(3), to jump to. Null if no library has one.
pub(crate) fn real_dlsym() -> *mut c_void {
    find(Place::dlsym)
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

/// Finds the functions behind the hooks, and returns whether the program is the ka command. It is called when the shim is
/// loaded, or earlier if the constructor of another library calls a hook first. Calling it again, or in two threads at
/// once, finds the same.
#[cold]
pub(crate) fn resolve() -> bool {
    let ka = AtomicPtr::default();
    let (mut seen_program, mut seen_shim) = (false, false);
    object::each(|object| {
        let is_program = !mem::replace(&mut seen_program, true);
        if !is_program && !seen_shim {
            seen_shim = is_shim(object);
        } else if let Some(tables) = object.tables() {
            let (slots, names) =
                if is_program { (slice::from_ref(&ka), KA) } else { (FOUND.as_slice(), NAMES) };
            // SAFETY: the object is loaded while it is shown.
            unsafe { fill(slots, names, &tables) };
        }
        ControlFlow::Continue(())
    });
    !ka.into_inner().is_null()
}

/// Whether an object is this library.
pub(crate) fn is_shim(object: &Object<'_>) -> bool {
    object.contains((&raw const FOUND) as usize, 0)
}

/// Puts the address of each function that an object exports into its slot, unless the slot has one.
///
/// # Safety
/// The object is loaded.
pub(crate) unsafe fn fill(slots: &[AtomicPtr<c_void>], names: &[u8], tables: &Tables) {
    for (slot, name) in slots.iter().zip(each_name(names)) {
        if slot.load(Ordering::Relaxed).is_null() {
            // SAFETY: the caller guarantees that the object is loaded.
            if let Some(address) = unsafe { tables.find(name) } {
                slot.store(address as *mut c_void, Ordering::Relaxed);
            }
        }
    }
}

/// The place of the hooked function that has this name.
pub(crate) fn place(name: &CStr) -> Option<usize> {
    each_name(NAMES).position(|hooked| hooked == name.to_bytes())
}

fn each_name(names: &[u8]) -> impl Iterator<Item = &[u8]> {
    names.split(|byte| *byte == b',')
}

/// What the hook of the function at this place calls.
pub(crate) fn behind(place: usize) -> *mut c_void {
    FOUND.get(place).map_or(ptr::null_mut(), |slot| slot.load(Ordering::Relaxed))
}
