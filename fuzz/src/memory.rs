//! Memory that ends where it ends: behind it is a page that nobody may touch, and before it are bytes that nobody may
//! change. So a read beyond an argument's end is a crash, with a sanitizer or without.

use std::cell::RefCell;
use std::ptr;

const PAGE: usize = 4096;
const ROOM: usize = 4 * PAGE;
const CANARY: u8 = 0xa5;
/// How many bytes before an object are looked at.
const BEFORE: usize = 64;

/// Room for an object, its end at the guard.
pub struct Guarded(*mut u8);

thread_local! {
    static ROOMS: RefCell<[Guarded; 3]> = RefCell::new([Guarded::new(), Guarded::new(), Guarded::new()]);
}

/// Gives some work three rooms, which are the next one's afterwards.
pub fn with_rooms(work: impl FnOnce(&mut [Guarded; 3])) {
    ROOMS.with_borrow_mut(work);
}

impl Guarded {
    fn new() -> Self {
        // SAFETY: new pages, of which the last is then taken away.
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

    /// Puts an object there, at any alignment.
    pub fn put(&mut self, object: &[u8]) -> Object<'_> {
        assert!(object.len() + BEFORE <= ROOM);
        // SAFETY: it fits, with what is before it.
        let first = unsafe {
            let first = self.0.add(ROOM - object.len());
            first.sub(BEFORE).write_bytes(CANARY, BEFORE);
            first.copy_from_nonoverlapping(object.as_ptr(), object.len());
            first
        };
        Object { first, size: object.len(), room: self }
    }
}

/// An object in guarded memory.
pub struct Object<'a> {
    first: *mut u8,
    size: usize,
    room: &'a mut Guarded,
}

impl Object<'_> {
    pub fn pointer<T>(&mut self) -> *mut T {
        self.first.cast()
    }

    /// What is there now. Nothing may have changed before it.
    pub fn bytes(&self) -> Vec<u8> {
        let _ = &self.room;
        // SAFETY: both are within the room.
        unsafe {
            let before = std::slice::from_raw_parts(self.first.sub(BEFORE), BEFORE);
            assert!(before.iter().all(|byte| *byte == CANARY), "something was written before an object");
            std::slice::from_raw_parts(self.first, self.size).to_vec()
        }
    }
}
