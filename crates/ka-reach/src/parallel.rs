//! Runs a function for each of many items, on as many threads as there are cores.
//!
//! This speeds up system calls: one process can have a hundred thousand descriptors to read. Each new thread has its
//! own descriptor table, so that its calls need no locking against the other threads. A descriptor that the function
//! opens is therefore invalid in other threads. So the function must close the descriptor and must not return it.

use std::num::NonZero;
use std::thread;

use crate::sys;

/// The number of items from which a further thread saves more time than its start costs.
const ITEMS_PER_THREAD: usize = 512;

/// Returns the number of threads that handle this many items fastest: at most one per core.
pub(crate) fn threads(items: usize) -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(items / ITEMS_PER_THREAD + 1)
}

/// Calls the function for each item. Returns the results in the order of the items.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], function: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads(items.len());
    if threads <= 1 {
        return items.iter().map(function).collect();
    }
    let function = &function;
    thread::scope(|scope| {
        let chunks = items.chunks(items.len().div_ceil(threads));
        let threads: Vec<_> = chunks
            .map(|chunk| {
                let thread = thread::Builder::new().spawn_scoped(scope, || {
                    sys::unshare_descriptors();
                    work(chunk, function)
                });
                (chunk, thread)
            })
            .collect();
        threads
            .into_iter()
            // If a thread could not be started, the calling thread does its work.
            .flat_map(|(chunk, thread)| match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(results)) => results,
                _ => work(chunk, function),
            })
            .collect()
    })
}

fn work<T, R>(items: &[T], function: impl Fn(&T) -> R) -> Vec<R> {
    items.iter().map(function).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_are_in_the_order_of_the_items() {
        for count in [0, 1, 511, 512, 5000, 100_000] {
            let items: Vec<u32> = (0..count).collect();
            assert!(super::map(&items, |item| item * 2).into_iter().eq((0..count).map(|item| item * 2)));
        }
    }
}
