//! The same for each of many, on as many threads as there are cores: system calls, of which one process can have a
//! hundred thousand to make. A thread has a table of descriptors of its own: what it opens, it must close, and not
//! hand on.

use std::num::NonZero;
use std::thread;

use crate::sys;

/// Fewer are not worth a thread.
const FEW: usize = 512;

/// What a function makes of each item, in their order.
pub fn map<T: Sync, R: Send>(items: &[T], function: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get).min(items.len() / FEW + 1);
    if cores <= 1 {
        return items.iter().map(function).collect();
    }
    let function = &function;
    thread::scope(|scope| {
        let chunks = items.chunks(items.len().div_ceil(cores));
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
            // Where there is no thread to be had, this one does it.
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
    fn the_order_is_kept() {
        for count in [0, 1, 511, 512, 5000, 100_000] {
            let items: Vec<u32> = (0..count).collect();
            assert!(super::map(&items, |item| item * 2).into_iter().eq((0..count).map(|item| item * 2)));
        }
    }
}
