//! The start of ka, and of the program that `ka run` starts: arguments and environment from C, the memory allocator,
//! execve(2). All `unsafe` code of the crate is here, except `main`.

#![expect(unsafe_code, reason = "arguments and environment come from C, and execve(2) takes C strings")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::c_char;

use crate::failure::USAGE;

/// Returns the arguments of `main`. For `ka run`, sets the exit status for a failed allocation first.
///
/// # Safety
/// `argv` has `argc` C strings, which live as long as the program.
pub unsafe fn arguments(argc: libc::c_int, argv: *const *const c_char) -> Vec<OsString> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: `n` is below argc, so argv has this C string.
    let argument = |n| unsafe { CStr::from_ptr(*argv.add(n)) };
    if count > 1 && argument(1) == c"run" {
        STATUS_WITHOUT_MEMORY.store(crate::failure::RUN_FAILED, Ordering::Relaxed);
    }
    (0..count).map(|n| OsString::from_vec(argument(n).to_bytes().to_vec())).collect()
}

/// The system's allocator. Rust would call abort(3) and dump core when memory runs out. This allocator prints a message
/// and exits as after any other failure. Nothing has to be undone, because setting a socket or a sysctl needs no
/// memory.
struct Allocator;

/// The exit status when memory runs out.
static STATUS_WITHOUT_MEMORY: AtomicI32 = AtomicI32::new(USAGE);

#[global_allocator]
static MEMORY: Allocator = Allocator;

impl Allocator {
    /// Returns the address of allocated memory, or exits if the allocation failed.
    fn require(place: *mut u8) -> *mut u8 {
        const MESSAGE: &[u8] = b"ka: out of memory\n";
        if place.is_null() {
            // SAFETY: the pointer and the length are those of `MESSAGE`, and _exit runs no code of this program.
            unsafe {
                libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(STATUS_WITHOUT_MEMORY.load(Ordering::Relaxed));
            }
        }
        place
    }
}

// SAFETY: each method calls the system's allocator with its own arguments and returns the result. None of them unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the conditions of `GlobalAlloc`, and the system's allocator has the same ones.
        Self::require(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Self::require(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Self::require(unsafe { System.realloc(place, layout, size) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Opens /dev/null as standard input, output and error if these are closed. Otherwise the next descriptor that ka opens
/// would get number 0, 1 or 2, and ka would write its messages to that file, or to a socket that it has duplicated.
pub fn open_standard_descriptors() {
    for fd in 0..=2 {
        // SAFETY: fcntl with F_GETFD takes no pointer.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            // SAFETY: the path is a C string. The new descriptor gets the lowest free number, which is `fd`, and is
            // never closed.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// Returns the entries of this process's environment, unchanged.
pub fn environment() -> Vec<OsString> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut found = Vec::new();
    // SAFETY: `environ` is NULL, or an array of C strings that ends with NULL. Nothing in this program changes it.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            found.push(OsString::from_vec(CStr::from_ptr(*entry).to_bytes().to_vec()));
            entry = entry.add(1);
        }
    }
    found
}

/// Becomes another program. Returns only on failure. execve(2)
pub fn exec(path: &Path, arguments: &[OsString], environment: &[OsString]) -> io::Error {
    let strings = |list: &[OsString]| -> Result<Vec<CString>, _> {
        list.iter().map(|text| CString::new(text.as_bytes())).collect()
    };
    let prepared = (|| {
        Ok::<_, io::Error>((
            CString::new(path.as_os_str().as_bytes())?,
            strings(arguments)?,
            strings(environment)?,
        ))
    })();
    let (path, arguments, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: the arguments are a C string, and two arrays of C strings that end with NULL. All outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
