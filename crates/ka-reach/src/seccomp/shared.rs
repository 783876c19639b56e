//! The memory that the supervisor, its spare and the proxy share.
//!
//! If the supervisor is killed while it handles a call, the spare must answer this call, or the program would wait
//! forever. The answer needs the call's ID. So the supervisor keeps each call in this memory.

#![expect(unsafe_code, reason = "memory that several processes share")]

use std::cell::UnsafeCell;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::listener::{Call, Listener, Padded};

/// The maximum number of worker threads, including those that are stuck.
pub(super) const MAX_WORKERS: usize = 16;

/// Memory that the supervisor, its spare and the proxy share.
#[repr(C)]
pub(super) struct Shared {
    pub(super) workers: [WorkerSlot; MAX_WORKERS],
    /// The PID of the program that was started.
    pub(super) program: AtomicI32,
    /// The PID of the proxy.
    pub(super) proxy: AtomicI32,
    /// The PID of the spare.
    pub(super) spare: AtomicI32,
    /// Set when the supervisor exits because no process of the program is left.
    pub(super) is_finished: AtomicBool,
    /// Set while a thread of the supervisor is stuck. Then the supervisor may stay a zombie after its end, so no
    /// process may wait for it.
    pub(super) is_stuck: AtomicBool,
}

/// The state of a worker.
#[repr(C)]
pub(super) struct WorkerSlot {
    /// The call that the worker handles. The kernel itself writes it here. So the spare knows the ID of the call, no
    /// matter when the supervisor is killed.
    call: UnsafeCell<Padded<Call>>,
    /// Odd while the worker handles a call. Incremented at the beginning and the end of each call.
    sequence: AtomicU32,
    /// The ID of the task that made the call.
    task: AtomicU32,
    /// The ID of the call.
    id: AtomicU64,
}

// SAFETY: while the supervisor runs, only the slot's worker accesses `call`. The spare reads it after the supervisor's
// main thread has ended. A worker that is left then is stuck in a system call on a program's socket or memory. This
// system call does not write `call`, and the worker dies when it returns.
unsafe impl Sync for WorkerSlot {}

impl Shared {
    /// Maps memory that this process and its future children share. It is never unmapped.
    pub(super) fn new() -> io::Result<&'static Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping has the size of `Self` and starts at a page, so it is aligned. It is zeroed, and zeros
        // are valid for each field.
        Ok(unsafe { &*place.cast::<Self>() })
    }

    /// Returns the calls that the dead supervisor was handling.
    pub(super) fn unanswered_calls(&self) -> Vec<Call> {
        // SAFETY: the supervisor has ended, so no thread writes the slots (see `WorkerSlot`).
        let calls = self.workers.iter().map(|slot| unsafe { ptr::read_volatile(slot.call.get().cast()) });
        calls.filter(|call: &Call| call.id != 0 || call.pid != 0).collect()
    }
}

impl WorkerSlot {
    /// Waits for a call. After EINTR, and after ENOENT if the call was cancelled, the caller must try again.
    pub(super) fn receive(&self, listener: &Listener) -> io::Result<Call> {
        self.clear();
        // SAFETY: `clear` has just zeroed the slot, and only this worker accesses it.
        let call = unsafe { listener.receive(self.call.get()) }?;
        self.begin(&call);
        Ok(call)
    }

    /// Marks the beginning of a call.
    pub(super) fn begin(&self, call: &Call) {
        self.task.store(call.pid, Ordering::Relaxed);
        self.id.store(call.id, Ordering::Relaxed);
        // The worker checks afterwards whether the watchdog sleeps. SeqCst keeps this order.
        self.sequence.fetch_add(1, Ordering::SeqCst);
    }

    /// Marks the end of a call. The worker must have closed its duplicates of the task's descriptors.
    pub(super) fn end(&self) {
        self.clear();
        // The stores of the next call must not move before this one.
        self.sequence.fetch_add(1, Ordering::AcqRel);
    }

    /// Zeroes the call.
    fn clear(&self) {
        // SAFETY: only this worker accesses the slot, and zeros are a valid seccomp_notif.
        unsafe { ptr::write_volatile(self.call.get(), MaybeUninit::zeroed().assume_init()) };
    }

    /// Clears the state of a dead supervisor's worker.
    pub(super) fn reset(&self) {
        self.clear();
        self.sequence.store(0, Ordering::Relaxed);
    }

    pub(super) fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::SeqCst)
    }

    /// Returns the ID of the worker's current call, and the task that made it. Returns `None` if the worker handles no
    /// call, or is no longer at this sequence number.
    pub(super) fn current_call(&self, sequence: u32) -> Option<(u64, i32)> {
        let (id, task) = (self.id.load(Ordering::Acquire), self.task.load(Ordering::Acquire));
        (self.sequence() == sequence && sequence % 2 == 1).then_some((id, task.cast_signed()))
    }
}
