//! Rebinds calls that the loader has bound directly to the C library instead of the shim.
//!
//! A library that is opened with `RTLD_DEEPBIND` looks symbols up in itself and its own dependencies first. The C
//! library is one of those, so the library's calls of connect(2) bypass the hook. PHP opens every extension like that.
//! Removing the flag from dlopen(3) would change the symbols that the library gets, which is the purpose of the flag.
//!
//! So this module leaves binding to the loader, and corrects the result. After objects were loaded, it examines their
//! slots, which hold the addresses of symbols. If a slot belongs to a hooked function and holds the function of the C
//! library, it gets the address of the hook. If it holds the function of another library, it is left unchanged: the
//! library was bound to its own function, or to that of another shim. The dlsym(3) hook calls this module, because a
//! program must call dlsym to use a library that it has opened. Afterwards, the policy is set on sockets that the
//! constructors of the library have made.
//!
//! If the loader has not filled a slot yet (lazy binding), its later target is unknown. The slot gets the hook only
//! if no other library defines the function, because the loader could then only choose the hook or the C library's
//! function.
//!
//! Threads: glibc iterates over its list of objects under a lock, so only one thread at a time examines them. An
//! object is in that list before it is relocated. So this module first waits until every dlopen(3) that has begun is
//! complete.

#![expect(unsafe_code, reason = "it changes what the loader wrote into loaded objects")]

use core::ffi::{CStr, c_char, c_void};
use core::ops::{ControlFlow, Range};
use core::ptr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

use crate::filter;
use crate::load;
use crate::next::{self, COUNT, NAMES};
use crate::object::{self, C_LIBRARY_PARTS, Changes, Loaded, LoadedObject};
use crate::raw;
use crate::shim::Shim;

/// The loader's counters when the objects were last examined.
static ADDED: AtomicU64 = AtomicU64::new(0);
static REMOVED: AtomicU64 = AtomicU64::new(0);
/// The number of objects that were examined then.
static EXAMINED: AtomicUsize = AtomicUsize::new(0);

/// True after the program has called dlopen(3). Before that, the dlsym hook does no extra work, and takes no lock. If a
/// thread holds such a lock while another thread forks, the lock stays locked in the child forever.
static OPENED: AtomicBool = AtomicBool::new(false);

/// Records that the program opens a library.
pub(crate) fn opening() {
    OPENED.store(true, Relaxed);
}

/// The hooks.
static HOOKS: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];

/// A bit for each hooked function that an object other than the shim and the C library exports.
static ELSEWHERE: AtomicU32 = AtomicU32::new(0);
const _: () = assert!(COUNT <= 32);

/// The start and end addresses of the code of each part of the C library.
static C_LIBRARY: [[AtomicUsize; 2]; C_LIBRARY_PARTS] =
    [const { [const { AtomicUsize::new(0) }; 2] }; C_LIBRARY_PARTS];

fn examined() -> Changes {
    Changes { added: ADDED.load(Relaxed), removed: REMOVED.load(Relaxed) }
}

fn set_examined(changes: Changes, count: usize) {
    ADDED.store(changes.added, Relaxed);
    REMOVED.store(changes.removed, Relaxed);
    EXAMINED.store(count, Relaxed);
}

/// The number of attempts of [`catch_up`]. Other threads may close libraries during each attempt.
const TRIES: usize = 64;

/// Binds the objects that were loaded since the last call to the hooks.
pub(crate) fn catch_up(shim: &Shim) {
    if !OPENED.load(Relaxed) {
        return;
    }
    for _ in 0..TRIES {
        let Some(surveyed) = survey(false) else { return };
        wait_for_loads();
        if let Some(bound) = bind(&surveyed) {
            // The program's filter may kill the process for calls on sockets that the program does not use.
            if bound > 0 && !filter::is_installed() {
                load::sweep(shim);
            }
            return;
        }
    }
}

/// Waits until each dlopen(3) that another thread has begun is complete: dlsym(3) takes the lock that dlopen holds.
fn wait_for_loads() {
    // SAFETY: RTLD_DEFAULT is a handle that is always valid.
    unsafe { next::dlsym(libc::RTLD_DEFAULT, c"syscall".as_ptr()) };
}

/// Examines the objects that were loaded since the last call. Returns `None` if there are none and `always` is false.
fn survey(always: bool) -> Option<Loaded> {
    let mut result = None;
    let (mut count, mut first) = (0_usize, 0);
    object::each(|object| {
        let changes = object.changes();
        if count == 0 {
            if changes == examined() && !always {
                return ControlFlow::Break(());
            }
            // If an object was removed, the indices of those after it have changed.
            if changes.removed != examined().removed {
                EXAMINED.store(0, Relaxed);
                ELSEWHERE.store(0, Relaxed);
            }
            first = EXAMINED.load(Relaxed);
        }
        if count >= first {
            look_at(object);
        }
        count = count.saturating_add(1);
        result = Some(Loaded { changes, count });
        ControlFlow::Continue(())
    });
    result
}

fn look_at(object: &LoadedObject<'_>) {
    if let Some(part) = object.c_library_part() {
        let Range { start, end } = object.code();
        // The first object with this name is the C library. A later one only has the same name.
        if let Some([first, last]) = C_LIBRARY.get(part)
            && first.load(Relaxed) == 0
        {
            first.store(start, Relaxed);
            last.store(end, Relaxed);
        }
        return;
    }
    let Some(tables) = object.tables() else { return };
    let is_shim = tables.are_own();
    let found: [AtomicPtr<c_void>; COUNT] = Default::default();
    // SAFETY: the object stays loaded during this call.
    unsafe { next::fill(if is_shim { &HOOKS } else { &found }, NAMES, &tables) };
    for (index, address) in found.iter().enumerate() {
        if !address.load(Relaxed).is_null() {
            ELSEWHERE.store(ELSEWHERE.load(Relaxed) | bit(index), Relaxed);
        }
    }
}

const fn bit(index: usize) -> u32 {
    1_u32.wrapping_shl(index as u32)
}

/// Returns whether an object other than the shim and the C library exports the function with this index.
fn is_elsewhere(index: usize) -> bool {
    ELSEWHERE.load(Relaxed) & bit(index) != 0
}

#[inline(never)]
fn is_in_c_library(address: *mut c_void) -> bool {
    C_LIBRARY
        .iter()
        .any(|[start, end]| (start.load(Relaxed)..end.load(Relaxed)).contains(&(address as usize)))
}

fn hook(index: usize) -> Option<*mut c_void> {
    HOOKS.get(index).map(|hook| hook.load(Relaxed)).filter(|hook| !hook.is_null())
}

/// Examines the slots of the surveyed objects. Returns the number of slots that now have the address of a hook. If an
/// object was removed since the survey, returns `None`. Objects that were added since then are skipped, because they
/// may not be relocated yet.
fn bind(surveyed: &Loaded) -> Option<usize> {
    let mut bound = None;
    let first = EXAMINED.load(Relaxed);
    let mut index = 0_usize;
    object::each(|object| {
        if object.changes().removed != surveyed.changes.removed || index >= surveyed.count {
            return ControlFlow::Break(());
        }
        let mut slots = 0;
        if index >= first && object.c_library_part().is_none() {
            slots = bind_object(object);
        }
        bound = Some(bound.unwrap_or(0_usize).saturating_add(slots));
        index = index.saturating_add(1);
        set_examined(surveyed.changes, index);
        ControlFlow::Continue(())
    });
    bound
}

fn bind_object(object: &LoadedObject<'_>) -> usize {
    let Some(tables) = object.tables().filter(|tables| !tables.are_own()) else { return 0 };
    let code = object.code();
    let mut pages = Pages::of(object);
    let mut bound = 0_usize;
    let look = |slot: &object::SymbolSlot<'_>| {
        let address = slot.place.load(Relaxed);
        let bypasses_hook = is_in_c_library(address);
        // A slot that the loader has not bound yet points into the procedure linkage table of its own object.
        let is_unbound = slot.may_be_lazy && code.contains(&(address as usize));
        if !bypasses_hook && !is_unbound {
            return;
        }
        let Some(index) = next::index_of(slot.name) else { return };
        let Some(hook) = hook(index) else { return };
        // A later shim in load order may call the library. The hook would call that shim again.
        if is_unbound && is_elsewhere(index) || !is_in_c_library(next::next_function(index)) {
            return;
        }
        if pages.may_write(slot.place) {
            // A compare-and-exchange would add code: on aarch64 it is a function of libgcc. The only other writer is
            // the loader, when another thread calls a function for the first time.
            slot.place.store(hook, Relaxed);
            bound = bound.saturating_add(1);
        }
    };
    // SAFETY: the object stays loaded during this call, and no dlopen(3) of it is under way.
    unsafe { tables.each_slot(look) };
    bound
}

/// The pages of an object that the loader has made read-only. The first write makes them writable, and dropping this
/// value makes them read-only again.
struct Pages<'a> {
    object: &'a LoadedObject<'a>,
    read_only: Range<usize>,
    is_open: bool,
}

/// The thread that has made pages writable, or 0.
static WRITER: AtomicI32 = AtomicI32::new(0);

impl<'a> Pages<'a> {
    fn of(object: &'a LoadedObject<'a>) -> Self {
        // SAFETY: getauxval(3) takes a number.
        let page = unsafe { libc::getauxval(libc::AT_PAGESZ) } as usize;
        Self { object, read_only: object.relro(page), is_open: false }
    }

    /// Returns whether a slot can be written now.
    fn may_write(&mut self, slot: &AtomicPtr<c_void>) -> bool {
        let address = (&raw const *slot) as usize;
        if !self.object.contains(address, libc::PF_W) {
            return false;
        }
        if !self.read_only.contains(&address) || self.is_open {
            return true;
        }
        // The program's filter may kill the process for mprotect(2).
        if filter::is_installed() {
            return false;
        }
        // A signal handler that calls dlsym(3) between two writes of this thread must not make the pages read-only.
        let thread = raw::gettid();
        if WRITER.load(Relaxed) == thread {
            return false;
        }
        self.is_open = raw::protect(&self.read_only, libc::PROT_READ | libc::PROT_WRITE).is_ok();
        if self.is_open {
            WRITER.store(thread, Relaxed);
        }
        self.is_open
    }
}

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        if self.is_open {
            WRITER.store(0, Relaxed);
            let _ = raw::protect(&self.read_only, libc::PROT_READ);
        }
    }
}

/// Returns the hook that a look-up by dlsym(3) must find, if the result would otherwise be the C library's function.
///
/// The program may search the C library itself, through the handle that dlopen("libc.so.6") returns. It then means the
/// function that the program would call, which is the hook. `RTLD_NEXT` searches the libraries after the caller, so
/// only the loader can find the result. If another shim defines the function and comes later in load order, the loader
/// also answers the look-ups through other handles. The caller may be that shim. If it got the hook as its next
/// function, the hook and the other shim would call each other without end.
///
/// # Safety
/// The arguments are those of a call of dlsym(3).
pub(crate) unsafe fn look_up(handle: *mut c_void, name: *const c_char) -> Option<*mut c_void> {
    if handle == libc::RTLD_NEXT || name.is_null() {
        return None;
    }
    // SAFETY: dlsym(3) takes a C string.
    let index = next::index_of(unsafe { CStr::from_ptr(name) })?;
    if hook(index).is_none() {
        survey(true);
    }
    if !is_in_c_library(next::next_function(index)) {
        return None;
    }
    if handle == libc::RTLD_DEFAULT {
        // SAFETY: the program has passed these arguments to dlsym(3). With this handle, the shim finds the function
        // that the program would find.
        return (!is_elsewhere(index)).then(|| unsafe { next::dlsym(handle, name) });
    }
    // SAFETY: the program has passed these arguments to dlsym(3). With such a handle, the result does not depend on the
    // caller's address.
    let found = unsafe { next::dlsym(handle, name) };
    if is_in_c_library(found) { hook(index) } else { None }
}
