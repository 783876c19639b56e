//! Runs a function for each of many items, on as many threads as there are cores.
//!
//! This is for system calls: one process can have a hundred thousand descriptors to read. Each thread has its own
//! descriptor table. So the function must close the descriptors that it opens, and must not return them.

use std::num::NonZero;
use std::thread;

use crate::sys;

/// A thread for fewer items costs more than it saves.
const FEW: usize = 512;

/// Returns the results of the function, in the order of the items.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], function: impl Fn(&T) -> R + Sync) -> Vec<R> {
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
