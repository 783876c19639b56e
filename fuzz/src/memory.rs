//! Guarded memory. After an object is a page without access, and before it are bytes that must not change. A read
//! beyond the end of an argument crashes, even without a sanitizer.

use std::cell::RefCell;
use std::ptr;

const PAGE: usize = 4096;
const ROOM: usize = 4 * PAGE;
const CANARY: u8 = 0xa5;
/// The number of bytes before an object that are checked.
const BEFORE: usize = 64;

/// Memory for an object that ends at the page without access.
pub struct Guarded(*mut u8);

thread_local! {
    static ROOMS: RefCell<[Guarded; 3]> = RefCell::new([Guarded::new(), Guarded::new(), Guarded::new()]);
}

/// Runs a function with three of these. They are reused by the next call.
pub fn with_rooms(work: impl FnOnce(&mut [Guarded; 3])) {
    ROOMS.with_borrow_mut(work);
}

impl Guarded {
    fn new() -> Self {
        // SAFETY: mmap(2) returns new pages, and mprotect(2) changes only the last of them.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages =
                libc::mmap(ptr::null_mut(), ROOM + PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(pages != libc::MAP_FAILED);
            let pages = pages.cast::<u8>();
            assert_eq!(libc::mprotect(pages.add(ROOM).cast(), PAGE, libc::PROT_NONE), 0);
            Self(pages)
        }
    }

    /// Copies an object into this memory, at any alignment.
    pub fn put(&mut self, object: &[u8]) -> Object<'_> {
        assert!(object.len() + BEFORE <= ROOM);
        // SAFETY: the object and the bytes before it fit into the memory.
        let first = unsafe {
            let first = self.0.add(ROOM - object.len());
            first.sub(BEFORE).write_bytes(CANARY, BEFORE);
            first.copy_from_nonoverlapping(object.as_ptr(), object.len());
            first
        };
        Object { first, size: object.len(), _room: self }
    }
}

/// An object in guarded memory.
pub struct Object<'a> {
    first: *mut u8,
    size: usize,
    _room: &'a mut Guarded, // so that no other object is put there
}

impl Object<'_> {
    pub fn pointer<T>(&mut self) -> *mut T {
        self.first.cast()
    }

    /// Returns the current bytes of the object. Checks that the bytes before it have not changed.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: the object and the bytes before it are in the memory.
        unsafe {
            let before = std::slice::from_raw_parts(self.first.sub(BEFORE), BEFORE);
            assert!(before.iter().all(|byte| *byte == CANARY), "something was written before an object");
            std::slice::from_raw_parts(self.first, self.size).to_vec()
        }
    }
}
