//! The processor time of this process, and the time of the kernel's records.

use std::time::Duration;

/// Returns the processor time that this process has used. clock_gettime(2), `CLOCK_PROCESS_CPUTIME_ID`
pub(crate) fn processor_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
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
