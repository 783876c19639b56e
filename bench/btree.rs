//! An alternative to ka_reaper with Rust's standard library, for bench/reaper.c.

use std::collections::BTreeMap;
use std::ffi::c_int;

/// The connections by the time of their last activity, and this time by connection.
#[derive(Default)]
pub struct Btree {
    by_time: BTreeMap<(u64, c_int), ()>,
    times: Vec<Option<u64>>,
}

#[unsafe(no_mangle)]
extern "C" fn btree_new() -> Box<Btree> {
    Box::default()
}

#[unsafe(no_mangle)]
extern "C" fn btree_free(btree: Box<Btree>) {
    drop(btree);
}

#[unsafe(no_mangle)]
extern "C" fn btree_touch(btree: &mut Btree, fd: c_int, now_ms: u64) {
    let index = usize::try_from(fd).unwrap();
    if btree.times.len() <= index {
        btree.times.resize(index + 1, None);
    }
    if let Some(time) = btree.times[index].replace(now_ms) {
        btree.by_time.remove(&(time, fd));
    }
    btree.by_time.insert((now_ms, fd), ());
}

/// # Safety
/// `fds` has room for `n` descriptors.
#[unsafe(no_mangle)]
unsafe extern "C" fn btree_expired(btree: &mut Btree, now_ms: u64, timeout_ms: u64, fds: *mut c_int, n: usize) -> c_int {
    let mut count = 0;
    while count < n
        && let Some(entry) = btree.by_time.first_entry()
        && now_ms - entry.key().0 >= timeout_ms
    {
        let ((_, fd), ()) = entry.remove_entry();
        btree.times[usize::try_from(fd).unwrap()] = None;
        // SAFETY: fewer than `n` descriptors were written.
        unsafe { fds.add(count).write(fd) };
        count += 1;
    }
    c_int::try_from(count).unwrap()
}
