//! Tests ka_reaper_* through the C API: the contract, failed allocations, and memory that is freed.

use std::process::Command;
use std::ptr;

use ka_test::child::stdout;
use ka_test::compiler::{LINKS, Linkage, cc, compile, program};
use ka_test::libka::{RawReaper, call, libka};
use ka_test::path::root;
use libc::{EBADF, EINVAL, ENOENT, c_int};

/// A reaper, freed when dropped.
struct Own(*mut RawReaper);

impl Own {
    fn new(timeout_ms: u32) -> Self {
        // SAFETY: the call takes no pointer.
        let reaper = unsafe { (libka().ka_reaper_new)(timeout_ms) };
        assert!(!reaper.is_null());
        Self(reaper)
    }

    fn touch(&self, fd: c_int, now_ms: u64) -> Result<c_int, c_int> {
        // SAFETY: `new` made the reaper, and nothing has freed it.
        call(|ka| unsafe { (ka.ka_reaper_touch)(self.0, fd, now_ms) })
    }

    fn forget(&self, fd: c_int) -> Result<c_int, c_int> {
        // SAFETY: `new` made the reaper, and nothing has freed it.
        call(|ka| unsafe { (ka.ka_reaper_forget)(self.0, fd) })
    }

    fn expired(&self, now_ms: u64, n: usize) -> Vec<c_int> {
        let mut fds = vec![-7; n];
        // SAFETY: `fds` has room for `n` descriptors.
        let count =
            call(|ka| unsafe { (ka.ka_reaper_expired)(self.0, now_ms, fds.as_mut_ptr(), n) }).unwrap();
        let count = usize::try_from(count).unwrap();
        assert!(fds[count..].iter().all(|fd| *fd == -7), "written beyond the count");
        fds.truncate(count);
        fds
    }

    /// Returns -1 if there is no connection. Checks that errno never changes.
    fn next(&self, now_ms: u64) -> c_int {
        // SAFETY: the reaper is valid until it is dropped, and errno belongs to this thread.
        unsafe {
            *libc::__errno_location() = 9999;
            let next = (libka().ka_reaper_next)(self.0, now_ms);
            assert_eq!(*libc::__errno_location(), 9999, "errno was changed");
            next
        }
    }

    fn len(&self) -> usize {
        // SAFETY: `new` made the reaper, and nothing has freed it.
        unsafe { (libka().ka_reaper_len)(self.0) }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: the reaper is valid, and nothing uses it after this call.
        unsafe { (libka().ka_reaper_free)(self.0) };
    }
}

#[test]
fn inactive_connections_are_returned_in_order_and_once() {
    let reaper = Own::new(1000);
    assert_eq!((reaper.len(), reaper.next(0)), (0, -1));
    for (fd, now) in [(5, 100), (6, 200), (7, 300), (5, 400)] {
        assert_eq!(reaper.touch(fd, now), Ok(0));
    }
    assert_eq!((reaper.len(), reaper.next(400)), (3, 800));
    assert_eq!(reaper.expired(1199, 10), []);
    assert_eq!(reaper.next(1200), 0);
    assert_eq!(reaper.expired(1300, 1), [6], "at most n");
    assert_eq!(reaper.expired(1400, 10), [7, 5]);
    assert_eq!((reaper.len(), reaper.next(1400)), (0, -1));
    assert_eq!(reaper.forget(5), Err(ENOENT), "the reaper has returned it already");
}

#[test]
fn time_does_not_go_backward() {
    let reaper = Own::new(1000);
    reaper.touch(5, 5000).unwrap();
    reaper.touch(6, 100).unwrap();
    assert_eq!(reaper.next(0), 1000);
    assert_eq!(reaper.expired(5999, 10), []);
    reaper.touch(7, 0).unwrap();
    assert_eq!(reaper.expired(6000, 10), [5, 6]);
    assert_eq!(reaper.expired(6998, 10), []);
    assert_eq!(reaper.expired(6999, 10), [7]);
    // ka_reaper_next does not advance the reaper's clock.
    reaper.touch(8, 7000).unwrap();
    assert_eq!((reaper.next(u64::MAX), reaper.next(7000)), (0, 1000));
}

#[test]
fn waits_are_clamped_to_int_max() {
    let reaper = Own::new(u32::MAX);
    reaper.touch(5, u64::MAX - 10).unwrap();
    assert_eq!(reaper.next(u64::MAX), c_int::MAX);
    assert_eq!(reaper.expired(u64::MAX, 10), []);
    let reaper = Own::new(u32::MAX);
    reaper.touch(5, 0).unwrap();
    assert_eq!(reaper.next((1 << 31) - 1), c_int::MAX);
    assert_eq!(reaper.next((1 << 31) + 1), c_int::MAX - 1);
    assert_eq!(reaper.next(u64::from(u32::MAX) - 1), 1);
    assert_eq!(reaper.expired(u64::from(u32::MAX), 10), [5]);
}

#[test]
fn wrong_arguments_leave_the_reaper_unchanged() {
    // SAFETY: the call takes no pointer.
    let none = unsafe { (libka().ka_reaper_new)(0) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((none, errno), (ptr::null_mut(), Some(EINVAL)));

    let reaper = Own::new(1000);
    reaper.touch(5, 100).unwrap();
    for fd in [-1, c_int::MIN] {
        assert_eq!(reaper.touch(fd, 99_999), Err(EBADF));
        assert_eq!(reaper.forget(fd), Err(ENOENT));
    }
    assert_eq!(reaper.forget(6), Err(ENOENT));
    // SAFETY: each pointer is NULL, which the functions reject.
    let (nothing, refused) = unsafe {
        (
            call(|ka| (ka.ka_reaper_expired)(reaper.0, 99_999, ptr::null_mut(), 1)),
            call(|ka| (ka.ka_reaper_expired)(reaper.0, 99_999, ptr::null_mut(), usize::MAX)),
        )
    };
    assert_eq!((nothing, refused), (Err(EINVAL), Err(EINVAL)));
    assert_eq!((reaper.len(), reaper.next(100)), (1, 1000), "a rejected call has advanced the clock");

    // With n = 0 the call removes no connection, but advances the clock.
    // SAFETY: the call writes nothing.
    assert_eq!(call(|ka| unsafe { (ka.ka_reaper_expired)(reaper.0, 600, ptr::null_mut(), 0) }), Ok(0));
    assert_eq!((reaper.len(), reaper.next(100)), (1, 500));
    // n is larger than an int.
    let mut fd = 0;
    // SAFETY: one connection is due, and there is room for it.
    assert_eq!(call(|ka| unsafe { (ka.ka_reaper_expired)(reaper.0, 1100, &raw mut fd, usize::MAX) }), Ok(1));
    assert_eq!(fd, 5);
}

#[test]
fn null_is_rejected() {
    let mut fd = 0;
    // SAFETY: each pointer is NULL, which the functions reject.
    unsafe {
        for result in [
            call(|ka| (ka.ka_reaper_touch)(ptr::null_mut(), 5, 0)),
            // The descriptor is wrong too, but NULL is checked first.
            call(|ka| (ka.ka_reaper_touch)(ptr::null_mut(), -1, 0)),
            call(|ka| (ka.ka_reaper_forget)(ptr::null_mut(), 5)),
            call(|ka| (ka.ka_reaper_expired)(ptr::null_mut(), 0, &raw mut fd, 1)),
            call(|ka| (ka.ka_reaper_expired)(ptr::null_mut(), 0, ptr::null_mut(), 0)),
            call(|ka| (ka.ka_reaper_next)(ptr::null(), 0)),
        ] {
            assert_eq!(result, Err(EINVAL));
        }
        (libka().ka_reaper_free)(ptr::null_mut());
        assert_eq!((libka().ka_reaper_len)(ptr::null()), 0);
    }
}

#[test]
fn any_descriptor_number_is_accepted() {
    let reaper = Own::new(1);
    let fds: Vec<c_int> =
        (0..31).map(|bit| 1 << bit).chain([0, 255, 65_535, c_int::MAX - 1, c_int::MAX]).collect();
    for fd in &fds {
        assert_eq!(reaper.touch(*fd, 0), Ok(0));
    }
    assert_eq!(reaper.len(), fds.len());
    assert_eq!(reaper.forget(c_int::MAX), Ok(0));
    assert_eq!(reaper.expired(1, 100), fds[..fds.len() - 1]);
}

#[test]
fn reapers_use_little_memory_and_free_it() {
    for link in LINKS {
        print!("{}", stdout(&mut Command::new(program("memory", link))));
    }
}

#[test]
fn failed_allocations_return_enomem_and_change_nothing() {
    let source = root().join("tests/c/allocation.c");
    for sanitizer in [&[][..], &["-fsanitize=address,undefined"]] {
        let mut compiler = cc();
        compiler.args(["-Wl,--wrap=malloc,--wrap=calloc,--wrap=free"]).args(sanitizer);
        let program = compile(&mut compiler, &source, Linkage::Static);
        let failed: u32 = stdout(&mut Command::new(program)).trim().parse().unwrap();
        assert!(failed > 10, "{failed} allocations failed");
    }
}
