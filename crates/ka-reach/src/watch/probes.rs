//! The kernel's counter of keepalive probes.

use super::counters::CounterFile;

/// The counter of one network namespace.
pub(super) struct ProbeCounter {
    /// `None` if the file cannot be opened.
    file: Option<CounterFile>,
    last: u64,
}

impl ProbeCounter {
    /// Opens the counter of the network namespace that the calling thread is in.
    pub(super) fn open() -> Self {
        Self { file: CounterFile::open("netstat").ok(), last: 0 }
    }

    /// Returns the number of probes that the kernel has sent since the last call. The first call returns the number
    /// since the namespace was created.
    pub(super) fn more(&mut self) -> u64 {
        let now = self.file.as_ref().and_then(|file| file.read("TcpExt:", "TCPKeepAlive"));
        let Some(now) = now else { return 0 };
        let more = now.saturating_sub(self.last);
        self.last = now;
        more
    }
}
