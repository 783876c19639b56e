//! The real functions behind the hooks, which the program would call without this library.
//!
//! The real function is the next definition in load order: that of the C library or of another shim.
//! `dlsym(RTLD_NEXT, …)` would find it, but the shim cannot link to dlsym, which glibc 2.34 moved from libdl to libc.
//! With an older glibc, a library that imports dlsym does not load, or finds no dlsym in a program without libdl. So
//! the shim reads the symbol tables itself ([`object`]).

#![expect(unsafe_code, reason = "it calls functions by the addresses that it found")]

use core::ffi::CStr;
use core::mem::{self, transmute};
use core::ops::ControlFlow;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use ka_core::{Errno, sys};
use libc::{c_char, c_int, c_long, c_ulong, c_void, socklen_t};

use crate::object::{self, Tables};

/// Declares the functions in one list: their names, and their indices in [`FOUND`].
macro_rules! functions {
    ($first:ident $(, $name:ident)*) => {
        /// The names as one string, because the loader would have to relocate an array of strings.
        pub(crate) const NAMES: &[u8] = concat!(stringify!($first), $(",", stringify!($name)),*).as_bytes();

        /// The indices of the functions.
        #[expect(non_camel_case_types, reason = "they have the names of the functions")]
        pub(crate) enum Function { $first, $($name),* }

        pub(crate) const COUNT: usize = [Function::$first, $(Function::$name),*].len();
    };
}

functions! {
    syscall, dlopen, dlsym, socket, connect, accept, accept4, listen, setsockopt, sendto, sendmsg, sendmmsg, recvmsg,
    recvmmsg, prctl
}

/// The addresses of the functions, by their indices. Null before they were looked up. The real syscall(2) is the first,
/// because its hook jumps to the address at the start of this array: calls such as clone and vfork must run on the
/// stack of the program, without a frame of the shim.
pub(crate) static FOUND: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];
const _: () = assert!(Function::syscall as usize == 0);

/// Calls the real syscall(2) with six arguments.
///
/// # Safety
/// The arguments are valid for the system call.
#[inline(never)]
pub(crate) unsafe fn syscall(number: c_long, args: [usize; 6]) -> c_long {
    // SAFETY: syscall(2) is variadic, and reads the six words that the kernel takes.
    let function: unsafe extern "C" fn(c_long, ...) -> c_long =
        unsafe { transmute(find(Function::syscall as usize)) };
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller guarantees that the arguments are valid.
    unsafe { function(number, a, b, c, d, e, f) }
}

/// The type of setsockopt(2).
type SetSockOpt = unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;

/// Calls the real setsockopt(2).
///
/// # Safety
/// As for setsockopt(2).
pub(crate) unsafe fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
) -> c_int {
    // SAFETY: a function of this name has this type.
    let function: SetSockOpt = unsafe { transmute(find(Function::setsockopt as usize)) };
    // SAFETY: the caller guarantees that the arguments are valid.
    unsafe { function(fd, level, name, value, size) }
}

/// Calls the real prctl(2). In C it is variadic. x86_64 and aarch64 pass variadic arguments in the same registers as
/// named arguments.
///
/// # Safety
/// As for prctl(2).
pub(crate) unsafe fn prctl(option: c_int, args: [c_ulong; 4]) -> c_int {
    // SAFETY: a function of this name takes these words.
    let function: unsafe extern "C" fn(c_int, ...) -> c_int =
        unsafe { transmute(find(Function::prctl as usize)) };
    let [a, b, c, d] = args;
    // SAFETY: the caller guarantees that the arguments are valid.
    unsafe { function(option, a, b, c, d) }
}

/// Calls dlsym(3) for the hook itself. Returns null if no library has a dlsym.
///
/// # Safety
/// `handle` is valid, and `name` is a C string.
pub(crate) unsafe fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let found = real_dlsym();
    if found.is_null() {
        return found;
    }
    // SAFETY: a function of this name has this type.
    let function: unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void =
        unsafe { transmute(found) };
    // SAFETY: the caller guarantees that the arguments are valid.
    unsafe { function(handle, name) }
}

/// Returns the address of the real dlsym(3), or null if no library has one.
pub(crate) fn real_dlsym() -> *mut c_void {
    find(Function::dlsym as usize);
    next_function(Function::dlsym as usize)
}

/// Returns the real function with this index, or [`missing`].
#[inline(never)]
pub(crate) extern "C" fn find(index: usize) -> *mut c_void {
    if next_function(index).is_null() {
        resolve();
    }
    let found = next_function(index);
    if found.is_null() { missing as *mut c_void } else { found }
}

/// Fails with ENOSYS. It replaces a function that no library has, so the program could not call it without the shim
/// either.
#[cold]
extern "C" fn missing() -> c_long {
    sys::set_errno(Errno(libc::ENOSYS));
    -1
}

/// The name of a function that only the ka command exports.
const KA: &[u8] = b"ka_preload_off";

/// Looks up the functions behind the hooks. Returns false if the program is the ka command. The constructor of the shim
/// calls this. If the constructor of another library runs earlier and calls a hook, the hook calls this first. A second
/// call, even in another thread at the same time, finds the same functions.
#[cold]
pub(crate) fn resolve() -> bool {
    let ka = AtomicPtr::default();
    let (mut is_first, mut seen_shim) = (true, false);
    let mut look = |tables: &Tables| {
        let iterate = AtomicPtr::default();
        // SAFETY: the object stays loaded during this call.
        unsafe { fill(slice::from_ref(&iterate), b"dl_iterate_phdr", tables) };
        let iterate = iterate.into_inner();
        if !iterate.is_null() {
            object::ITERATE.store(iterate, Ordering::Relaxed);
        }
        let is_program = mem::take(&mut is_first);
        if !is_program && !seen_shim {
            seen_shim = tables.are_own();
            return;
        }
        let (slots, names) = if is_program { (slice::from_ref(&ka), KA) } else { (FOUND.as_slice(), NAMES) };
        // SAFETY: the object stays loaded during this call.
        unsafe { fill(slots, names, tables) };
    };
    if !object::each_at_start(&mut look) {
        object::each(|object| {
            if let Some(tables) = object.tables() {
                look(&tables);
            }
            ControlFlow::Continue(())
        });
    }
    ka.into_inner().is_null()
}

/// Stores the address of each function that an object exports in its slot, unless the slot has one.
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

/// Returns the index of the hooked function with this name.
pub(crate) fn index_of(name: &CStr) -> Option<usize> {
    each_name(NAMES).position(|hooked| hooked == name.to_bytes())
}

fn each_name(names: &[u8]) -> impl Iterator<Item = &[u8]> {
    names.split(|byte| *byte == b',')
}

/// Returns the function that the hook with this index calls.
pub(crate) fn next_function(index: usize) -> *mut c_void {
    FOUND.get(index).map_or(ptr::null_mut(), |slot| slot.load(Ordering::Relaxed))
}
