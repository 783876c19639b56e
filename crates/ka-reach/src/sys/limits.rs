//! Resource limits of this process. getrlimit(2)

/// Raises the soft limit on descriptors to the hard limit, and returns the limit in force.
///
/// ka opens a descriptor for each process that it examines. If the kernel refuses, the limit is unchanged.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes an rlimit. If setrlimit fails, the limit is unchanged.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
                limit = raised;
            }
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
