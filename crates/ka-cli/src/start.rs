//! The entry from C, the memory allocator, and execve(2): the only `unsafe` of this crate.

#![expect(unsafe_code, reason = "the start of programs: this one, and the one that ka run starts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::c_char;

/// Where the program begins: not in Rust's own main, which would ignore SIGPIPE. So a reader that goes away ends us
/// without a word, as it does any filter, and a program that is started by us has the signals that we were given.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub extern "C" fn main(argc: libc::c_int, argv: *const *const c_char) -> libc::c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: argv has argc C strings, which live as long as the program.
    let argument = |n| unsafe { CStr::from_ptr(*argv.add(n)) };
    if count > 1 && argument(1) == c"run" {
        STATUS_WITHOUT_MEMORY.store(crate::failure::OUR_OWN, Ordering::Relaxed);
    }
    crate::run_command((0..count).map(|n| OsString::from_vec(argument(n).to_bytes().to_vec())).collect())
}

/// What libka_preload.so knows ka by, to leave it alone wherever it is preloaded: a policy that it was told for all
/// programs is not to take the place of the one that ka is told. build.rs has the linker export it.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub extern "C" fn ka_preload_off() {}

/// Memory, of malloc(3). Rust's own answer to a lack of it is abort(3), with a core; here the program ends as it does on
/// any other failure. Nobody has to tidy up behind it: a socket is given its policy without memory, and so are sysctls.
struct Memory;

/// The status that the program ends with where there is no memory: that of a failure (`crate::failure::USAGE`), or `ka
/// run`'s own.
static STATUS_WITHOUT_MEMORY: AtomicI32 = AtomicI32::new(2);

#[global_allocator]
static MEMORY: Memory = Memory;

impl Memory {
    fn need(place: *mut u8) -> *mut u8 {
        const MESSAGE: &[u8] = b"ka: out of memory\n";
        if place.is_null() {
            // SAFETY: as many bytes as there are; and the program ends here.
            unsafe {
                libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(STATUS_WITHOUT_MEMORY.load(Ordering::Relaxed));
            }
        }
        place
    }
}

// SAFETY: all is the system's allocator, whose answers are handed on; and none of this unwinds.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the system allocator's condition, here and below.
        Self::need(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Self::need(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Self::need(unsafe { System.realloc(place, layout, size) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Standard input, output and error that are closed become /dev/null: else the next descriptor would take the number,
/// and a message would go into a file, or into the socket of another process that we have just been given.
pub fn open_standard_descriptors() {
    for fd in 0..=2 {
        // SAFETY: fcntl with F_GETFD takes no pointer.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            // SAFETY: a C string. It gets the lowest number that is free, which is `fd`, and keeps it to the end.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// The environment, entry by entry, as it came.
pub fn environment() -> Vec<OsString> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut found = Vec::new();
    // SAFETY: nobody changes the environment: NULL, or an array of C strings that ends with NULL.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            found.push(OsString::from_vec(CStr::from_ptr(*entry).to_bytes().to_vec()));
            entry = entry.add(1);
        }
    }
    found
}

/// Becomes another program. It returns only where that failed. execve(2)
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
    // SAFETY: a C string, and two arrays of C strings that end with NULL, all alive.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
