//! The processor time of this process, and the time of the kernel's records.

use std::mem;
use std::time::Duration;

/// Returns the processor time that this process has used. clock_gettime(2), `CLOCK_PROCESS_CPUTIME_ID`
pub(crate) fn processor_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the processor time of this process, and of its children that have been waited for. getrusage(2)
pub(crate) fn processor_time_with_children() -> Duration {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].into_iter().flat_map(used).sum()
}

/// Returns the processor times in user space and in the kernel.
fn used(who: i32) -> [Duration; 2] {
    // SAFETY: a rusage consists of integers, so all bytes may be 0.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes only `usage`, during the call. If the call fails, the times stay 0.
    unsafe { libc::getrusage(who, &raw mut usage) };
    [usage.ru_utime, usage.ru_stime].map(|time| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    })
}

/// Returns the time since an arbitrary moment, as `bpf_ktime_get_ns` does. clock_gettime(2), `CLOCK_MONOTONIC`
pub(crate) fn monotonic_time() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec. If the call fails, the time stays 0.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
